//! What a slow machine's log looks like: each step that may take longer than a second is said before it
//! begins.

use nexit_tests::{Devices, Folder, Payload, Sum};

/// A machine with CPUs that do not start, a USB controller, and an IOMMU.
#[test]
fn each_step_that_may_take_its_time_is_said_before_it_begins() {
    let absent = |apic_id: u8| [0, 8, 7, apic_id, 1, 0, 0, 0];
    let payload = Payload { command_line: "poweroff", ..Payload::new("ends") };
    let devices = Devices::arguments(&["-device", "qemu-xhci,addr=6"]);
    let folder = Folder::new("steps");
    let options = ["--timeout", "90", "--memory", "1G"];
    let outcome = folder.run_with_tables(&payload.toml(), &options, &devices, |machine| {
        machine.append("APIC", &(20..30).flat_map(absent).collect::<Vec<_>>());
        machine.change("APIC", Sum::Right, |_| {});
    });
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let lines: Vec<&str> = outcome.own_lines().collect();
    let at = |text: &str| {
        let found = lines.iter().position(|line| line.contains(text));
        assert!(found.is_some(), "{text:?} is missing\n{outcome}");
        found.unwrap_or_default()
    };
    for (before, after) in [
        ("nexit: the clocks are measured", "nexit: TSC at "),
        (
            "nexit: other CPUs are started, one by one: 11",
            "CPU with APIC identifier 20 does not start",
        ),
        ("CPU with APIC identifier 29 does not start", "nexit: 2 CPUs"),
        (
            "nexit: USB controllers are taken from the firmware: 1",
            "nexit: IOMMU units are switched",
        ),
        ("nexit: IOMMU units are switched on: 1", "translation and interrupt remapping are on"),
        ("nexit: all guests have ended", "nexit: the machine is switched off"),
    ] {
        assert!(at(before) < at(after), "{before:?} is not before {after:?}\n{outcome}");
    }
}

/// What a support engineer needs, from the first lines of the log alone.
#[test]
fn the_first_lines_say_what_the_machine_is() {
    let payload = Payload { command_line: "poweroff", ..Payload::new("ends") };
    let outcome =
        Folder::new("banner").run(&payload.toml(), &["--timeout", "90"], &Devices::none());
    for start in [
        "nexit: Nexit ",
        "nexit: CPU: AMD EPYC-v4 Processor, AuthenticAMD, family 0x17 model 0x1 stepping 2, microcode 0x",
        "nexit: SVM: 8000000a.eax=1 ebx=10 ecx=0 edx=10001 width=",
        "nexit: console: COM1 at port 0x3f8",
        "nexit: TSC at ",
        "nexit: IOMMU unit at 0xfed90000: CAP 0x",
        "nexit: CPUs: 2 found, 2 started: 1 package, 2 cores, 2 threads",
        "nexit: memory: ",
        "nexit: firmware: BIOS, or unknown to the loader; FADT \"BOCHS\" \"BXPC\"; DSDT \"BOCHS\" \
         \"BXPC\"; DMAR \"BOCHS\" \"BXPC\"",
        "nexit: PCI: ",
    ] {
        assert!(outcome.own_lines().any(|line| line.starts_with(start)), "{start}\n{outcome}");
    }
}
