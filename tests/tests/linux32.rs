//! A 32-bit Linux begins by the 32-bit boot protocol, in xAPIC mode, and comes to its `init`.

use nexit_tests::{Devices, Emulator, Folder, i386};

fn comes_to_its_init(emulator: Emulator, cpus: &str, interrupts: &str, timeout: &str) {
    let kernel = i386::kernel().unwrap_or_else(|error| panic!("{error}"));
    let folder = Folder::new(&format!("linux32-{emulator}-{interrupts}"));
    let (kernel, initrd) = (kernel.display(), i386::initrd(&folder));
    let toml = format!(
        "[[guest]]\nname = \"linux\"\ncpus = {cpus}\nmemory = \"256M\"\nkernel = \"{kernel}\"\n\
         initrd = \"{initrd}\"\ncmdline = \"console=ttyS0 panic=-1\"\non_reboot = \"stop\"\n\
         interrupts = \"{interrupts}\"\n"
    );
    let options = [emulator.options(), &["--timeout", timeout]].concat();
    let outcome = folder.run(&toml, &options, &Devices::none());
    assert!(outcome.output.contains(i386::MARKER), "{outcome}");
    assert_eq!(outcome.guest_outcome("linux"), Some("poweroff"), "{outcome}");
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn a_32_bit_linux_on_two_cpus_comes_to_its_init_on_amd_v() {
    for interrupts in ["exitless", "exiting"] {
        comes_to_its_init(Emulator::Qemu, "[0, 1]", interrupts, "240");
    }
}

#[test]
#[ignore = "fetches a kernel: `make test-all`"]
fn a_32_bit_linux_comes_to_its_init_on_vt_x() {
    comes_to_its_init(Emulator::Bochs, "[0]", "exitless", "540");
}
