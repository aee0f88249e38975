//! Kernels that have no driver for their local APIC, or are told not to use it, and others that nobody here has written.

use std::path::PathBuf;

use nexit::failure::Failure;
use nexit_tests::{Devices, Emulator, Folder, Guest, Kernel, Session, packaged};

/// A Linux with these words: the demo's timer ticks, and the guest ends as a Linux does.
#[test]
#[ignore = "four boots: `make test-all`"]
fn a_linux_that_leaves_its_local_apic_or_acpi_alone_works_on_amd_v() {
    for (words, end) in [
        ("noapic", "poweroff"),
        ("nolapic", "poweroff"),
        ("acpi=off", "halted"),
        ("noapic nolapic acpi=off", "halted"),
    ] {
        let guest = Guest::on_qemu("timer", "[]").toml();
        let guest = guest.replace("demo=timer", &format!("demo=timer {words}"));
        let name = format!("boots-{}", words.replace([' ', '='], "-"));
        let outcome = Folder::new(&name).run(&guest, &["--timeout", "240"], &Devices::none());
        assert_eq!(outcome.guest_outcome("linux"), Some(end), "{words}\n{outcome}");
        assert!(outcome.result("timer").get("interrupts") > 0, "{words}\n{outcome}");
    }
}

/// Each Linux that apt knows, of every series and kind: its clock ticks without exits, and it switches itself off.
fn every_packaged_linux_boots(emulator: Emulator, timeout: &str) {
    let packages = packaged::linuxes().unwrap_or_else(|error| panic!("{error}"));
    for (series, kind) in ["6.1.", "6.12."].iter().flat_map(|series| {
        ["", "-cloud", "-rt"].map(|kind| (format!("linux-image-{series}"), format!("{kind}-amd64")))
    }) {
        let of_kind = |name: &str| {
            let other = kind == "-amd64" && (name.contains("-cloud-") || name.contains("-rt-"));
            name.starts_with(&series) && name.ends_with(&kind) && !other
        };
        assert!(
            packages.iter().any(|name| of_kind(name)),
            "apt knows no {series}…{kind}: run `apt-get update`; 6.12 is in Debian 12's backports\n{packages:?}"
        );
    }
    for package in packages {
        let kernel = packaged::linux(&package).unwrap_or_else(|error| panic!("{error}"));
        let guest =
            Guest { kernel: Kernel::Cloud, memory: "256M", ..Guest::on_qemu("timer", "[]") };
        let own = Kernel::Cloud.folder().join("vmlinuz").display().to_string();
        let toml = guest.toml().replace(&own, &kernel.display().to_string());
        let options = [emulator.options(), &["--timeout", timeout]].concat();
        let folder = Folder::new(&format!("boots-{package}-{emulator}"));
        let outcome = folder.run(&toml, &options, &Devices::none());
        assert_eq!(outcome.guest_outcome("linux"), Some("poweroff"), "{package}\n{outcome}");
        let line = outcome.result("timer");
        assert!(line.get("interrupts") > 0, "{package}: {line:?}");
        assert_eq!(line.interrupt_exits(), 0, "{package}: {line:?}");
        println!("{package}: {line:?}");
    }
}

#[test]
#[ignore = "fetches kernels: `make test-all`"]
fn every_packaged_linux_boots_on_amd_v() {
    every_packaged_linux_boots(Emulator::Qemu, "600");
}

#[test]
#[ignore = "fetches kernels: `make test-all`"]
fn every_packaged_linux_boots_on_vt_x() {
    every_packaged_linux_boots(Emulator::Bochs, "3600");
}

/// A run of this kernel, as a guest named `guest` with this memory.
fn start(
    emulator: Emulator,
    name: &str,
    kernel: Result<PathBuf, Failure>,
    memory: &str,
    words: &str,
) -> Session {
    let kernel = kernel.unwrap_or_else(|error| panic!("{error}"));
    let folder = Folder::new(&format!("boots-{name}-{emulator}"));
    let config = folder.write(
        "config.toml",
        format!(
            "[[guest]]\nname = \"guest\"\ncpus = [0]\nmemory = \"{memory}\"\nkernel = \"{}\"\ncmdline = \"{words}\"\n\
             on_reboot = \"stop\"\n",
            kernel.display()
        ),
    );
    let run = ["run", "--config", &config, "--timeout", "3600"];
    Session::start(&[&run, emulator.options()].concat())
}

/// It comes to its end, which is that it has nothing to start, and its clock goes on.
fn gnumach_ticks_by_the_pit(emulator: Emulator, name: &str, kernel: Result<PathBuf, Failure>) {
    let mut session = start(emulator, name, kernel, "64M", "console=com0");
    session.see("No bootstrap code loaded with the kernel!");
    session.see("guest guest: its clock ticks through the 8259s");
    session.kill_child();
}

/// A multiboot kernel of 32 bits.
fn gnumach_for_i386() -> Result<PathBuf, Failure> {
    packaged::kernel("gnumach-image-1.8-486", "gnumach-1.8-486.gz")
}

/// A multiboot kernel in an ELF file of 64 bits.
fn gnumach_for_x86_64() -> Result<PathBuf, Failure> {
    packaged::kernel_of_debian_13("gnumach-image-1.8-amd64-up", "gnumach-1.8-amd64-up.gz")
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn gnumach_ticks_by_the_pit_on_amd_v() {
    gnumach_ticks_by_the_pit(Emulator::Qemu, "gnumach", gnumach_for_i386());
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn gnumach_ticks_by_the_pit_on_vt_x() {
    gnumach_ticks_by_the_pit(Emulator::Bochs, "gnumach", gnumach_for_i386());
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn gnumach_for_x86_64_ticks_by_the_pit_on_amd_v() {
    gnumach_ticks_by_the_pit(Emulator::Qemu, "gnumach-x86-64", gnumach_for_x86_64());
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn gnumach_for_x86_64_ticks_by_the_pit_on_vt_x() {
    gnumach_ticks_by_the_pit(Emulator::Bochs, "gnumach-x86-64", gnumach_for_x86_64());
}

/// A whole pass, six minutes on a quiet host.
fn memtest86_passes_without_an_error(emulator: Emulator) {
    let kernel = packaged::kernel("memtest86+", "memtest86+x64.bin");
    let words = "console=ttyS0,115200 nosmp";
    let mut session = start(emulator, "memtest", kernel, "24M", words);
    session.see("Memtest86+ v");
    session.see("#10 [Bit fade test, 2 patterns]");
    session.see("Pass:  1        Errors: 0 ");
    session.kill_child();
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn memtest86_passes_without_an_error_on_amd_v() {
    memtest86_passes_without_an_error(Emulator::Qemu);
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn memtest86_passes_without_an_error_on_vt_x() {
    memtest86_passes_without_an_error(Emulator::Bochs);
}
