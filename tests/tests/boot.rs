//! The ways of booting: each brings the hypervisor, its configuration, the guest's kernel and its
//! initrd, unharmed.

use nexit_tests::{Devices, Folder, Guest, Outcome, Payload};

/// FNV-1a, 64 bits, as the payload computes it.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn run(name: &str, options: &[&str]) -> Outcome {
    let folder = Folder::new(name);
    // Not of whole pages, larger than the hypervisor, different in every page.
    let initrd: Vec<u8> = (0_u32..1_500_001).map(|at| (at ^ (at >> 12)) as u8).collect();
    folder.write("initrd.img", &initrd);
    let payload = Payload {
        command_line: "poweroff one  two",
        further: "initrd = \"initrd.img\"",
        ..Payload::new("ends")
    };
    let options = [&["--timeout", "120"], options].concat();
    let outcome = folder.run(&payload.toml(), &options, &Devices::none());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.guest_outcome("ends"), Some("poweroff"), "{outcome}");
    assert_eq!(outcome.payload("command line: "), Some("poweroff one  two"), "{outcome}");
    let module = format!("{} bytes, checksum {:#x}", initrd.len(), checksum(&initrd));
    assert_eq!(outcome.payload("module: "), Some(module.as_str()), "{outcome}");
    let freed = outcome.output.find("KiB of code that only the boot needs are free memory now");
    assert!(freed.is_some() && freed < outcome.output.find("guest ends: entering"), "{outcome}");
    outcome
}

#[test]
fn qemu_itself_boots_it() {
    run("boot-kernel", &["--boot", "kernel"]);
}

#[test]
fn bios_and_grub_boot_it_in_qemu() {
    run("boot-bios", &["--boot", "iso"]);
}

#[test]
fn bios_and_grub_boot_it_in_bochs() {
    run("boot-bochs", &["--emulator", "bochs", "--iommu", "none"]);
}

#[test]
fn uefi_and_grub_boot_it() {
    let outcome = run("boot-uefi-grub", &["--boot", "uefi"]);
    assert!(outcome.output.contains("Nexit: loading"), "GRUB's menu entry\n{outcome}");
}

#[test]
fn uefi_and_its_own_loader_boot_it() {
    let outcome = run("boot-uefi-native", &["--boot", "uefi", "--loader", "native"]);
    assert!(!outcome.output.contains("Nexit: loading"), "GRUB's menu entry\n{outcome}");
}

#[test]
fn linux_boots_by_uefi_and_the_own_loader() {
    let guest = Guest::on_qemu("idle", "[]");
    let options = ["--timeout", "240", "--boot", "uefi", "--loader", "native"];
    let outcome = Folder::new("boot-linux").run(&guest.toml(), &options, &Devices::none());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.guest_outcome("linux"), Some("poweroff"), "{outcome}");
    let _ = outcome.result("idle");
}
