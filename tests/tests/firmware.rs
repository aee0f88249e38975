//! Machines whose firmware tables are damaged: what Nexit makes of them, in QEMU with its tables changed
//! at the image's entry.

use nexit_tests::{Devices, Folder, Guest, Outcome, Payload, Session, Stopped, Sum};

const OPTIONS: &[&str] = &["--timeout", "60", "--memory", "1G"];

fn run(name: &str, further: &str, change: impl FnOnce(&mut Stopped)) -> Outcome {
    let payload = Payload { further, ..Payload::new("ends") };
    let devices = Devices::arguments(&["-device", "edu,addr=4"]);
    Folder::new(name).run_with_tables(&payload.toml(), OPTIONS, &devices, change)
}

#[track_caller]
fn assert_powered_off_and_said(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(outcome.own_lines().any(|line| line.contains(words)), "{outcome}");
}

const DEVICE_LIST: &str = "[\"00:04.0\"]";
const DEVICE: &str = "devices = [\"00:04.0\"]";

fn wrong_sum(machine: &mut Stopped) {
    machine.change("DMAR", Sum::Wrong, |_| {});
}

fn no_interrupt_remapping(machine: &mut Stopped) {
    machine.change("DMAR", Sum::Right, |table| table[37] = 0);
}

#[test]
fn a_dmar_table_with_a_wrong_checksum_costs_only_devices() {
    let words = "no usable IOMMU: the firmware's DMAR table has a wrong checksum";
    assert_powered_off_and_said(&run("dmar-sum", "", wrong_sum), words);
    let refusal = run("dmar-sum-device", DEVICE, wrong_sum).refusal().to_owned();
    assert!(refusal.contains("00:04.0 cannot be assigned"), "{refusal}");
    assert!(refusal.contains("DMAR table has a wrong checksum"), "{refusal}");
}

#[test]
fn interrupt_remapping_that_is_off_costs_only_devices() {
    let words =
        "no usable IOMMU: the IOMMU lacks interrupt remapping, says the firmware's DMAR table";
    assert_powered_off_and_said(&run("dmar-ir", "", no_interrupt_remapping), words);
    let refusal = run("dmar-ir-device", DEVICE, no_interrupt_remapping).refusal().to_owned();
    assert!(refusal.contains("lacks interrupt remapping"), "{refusal}");
}

/// The guest's driver reaches memory by the addresses that the machine has for it.
#[test]
fn unsafe_no_iommu_counts_where_the_iommu_cannot_be_used() {
    const OPTIONS: &[&str] = &["--timeout", "240"];
    let guest = Guest::on_qemu("nvme reads=300", DEVICE_LIST);
    let toml = format!("unsafe_no_iommu = true\n{}", guest.toml());
    let devices = Devices::none().nvme();
    let folder = Folder::new("dmar-ir-unsafe");
    let outcome = folder.run_with_tables(&toml, OPTIONS, &devices, no_interrupt_remapping);
    assert_powered_off_and_said(&outcome, "WARNING: no IOMMU and unsafe_no_iommu = true");
    assert!(outcome.result("nvme").get("interrupts") >= 300, "{outcome}");
    assert_eq!(outcome.report["iommu"], "none");
    // With an IOMMU the key changes nothing.
    let outcome = Folder::new("dmar-unsafe").run(&toml, OPTIONS, &devices);
    assert_powered_off_and_said(&outcome, "IOMMU vt-d: translation and interrupt remapping are on");
    assert!(outcome.result("nvme").get("interrupts") >= 300, "{outcome}");
    assert!(!outcome.own_lines().any(|line| line.contains("WARNING")), "{outcome}");
}

#[test]
fn a_unit_where_nothing_answers_costs_only_devices() {
    for (name, at, words) in [
        ("dmar-high", 0x7f_ffff_c000_u64, "they read as all ones"),
        ("dmar-too-high", 0x8_ffff_ffff_c000, "beyond the CPU's physical addresses"),
        ("dmar-null", 0, "registers are at 0x0"),
        ("dmar-ram", 0x200_0000, "where RAM is"),
    ] {
        let outcome = run(name, "", |machine| {
            machine.change("DMAR", Sum::Right, |table| {
                table[56..64].copy_from_slice(&at.to_le_bytes());
            });
        });
        assert_powered_off_and_said(&outcome, words);
    }
}

#[test]
fn a_null_pointer_in_the_root_table_is_a_sentence() {
    let outcome = run("acpi-null", "", |machine| machine.forget("WAET"));
    assert_powered_off_and_said(&outcome, "of the RSDT is left out: its address is 0");
}

#[test]
fn an_entry_of_no_length_in_the_madt_is_a_sentence() {
    // The second of two entries for CPUs.
    let outcome = run("madt-zero", "", |machine| {
        machine.change("APIC", Sum::Right, |table| table[52..54].copy_from_slice(&[0x80, 0]));
    });
    assert_powered_off_and_said(&outcome, "an entry of type 128 there claims 0 bytes");
}

#[test]
fn an_io_apic_that_dmar_numbers_otherwise_still_works() {
    let outcome = run("dmar-io-apic", "", |machine| {
        machine.change("DMAR", Sum::Right, |table| table[68] ^= 7);
    });
    assert_powered_off_and_said(&outcome, "is I/O APIC 7 of the DMAR table");
}

#[test]
fn tables_above_4_gib_are_read() {
    const OPTIONS: &[&str] = &["--timeout", "90", "--memory", "6G"];
    let folder = Folder::new("acpi-high");
    let toml = Payload::new("ends").toml();
    let outcome = folder
        .run_with_tables(&toml, OPTIONS, &Devices::none(), |machine| machine.move_tables(1 << 32));
    assert_powered_off_and_said(&outcome, "IOMMU vt-d: translation and interrupt remapping are on");
    assert!(!outcome.own_lines().any(|line| line.contains("firmware's tables")), "{outcome}");
}

/// An RMRR for the functions 00:04.0 and 00:05.0.
fn reserve(machine: &mut Stopped) {
    let mut region = vec![1, 0, 40, 0, 0, 0, 0, 0];
    region.extend(0x3000_0000_u64.to_le_bytes());
    region.extend(0x3000_ffff_u64.to_le_bytes());
    for device in [4, 5] {
        region.extend([1, 8, 0, 0, 0, 0, device, 0]);
    }
    machine.append("DMAR", &region);
}

#[test]
fn of_what_a_reserved_region_names_only_usb_and_displays_are_assigned() {
    let devices = Devices::arguments(&["-device", "edu,addr=4", "-device", "qemu-xhci,addr=5"]);
    let run = |name: &str, function: &str| {
        let further = format!("devices = [\"{function}\"]");
        let payload = Payload { further: &further, ..Payload::new("ends") };
        Folder::new(name).run_with_tables(&payload.toml(), OPTIONS, &devices, reserve)
    };
    let words = "00:05.0 is taken from the firmware, which used it for DMA to 0x30000000";
    assert_powered_off_and_said(&run("rmrr-usb", "00:05.0"), words);
    let refusal = run("rmrr-other", "00:04.0").refusal().to_owned();
    assert!(
        refusal.contains("00:04.0 cannot be assigned: the firmware keeps using it"),
        "{refusal}"
    );
}

/// SeaBIOS has none of them when the image starts; the registers are looked at nevertheless.
#[test]
fn a_machine_with_usb_controllers_of_every_kind_boots() {
    let payload = Payload { further: "devices = [\"00:05.0\"]", ..Payload::new("ends") };
    let devices = Devices::arguments(&["-device", "qemu-xhci,addr=5"])
        .and(&["-device", "ich9-usb-ehci1,addr=6"])
        .and(&["-device", "pci-ohci,addr=7"])
        .and(&["-device", "piix3-usb-uhci,addr=8"]);
    let outcome = Folder::new("usb").run(&payload.toml(), OPTIONS, &devices);
    assert_powered_off_and_said(&outcome, "IOMMU vt-d: translation and interrupt remapping are on");
}

/// The guest `micro` counts a thousand messages of `edu`, and each must come.
fn assert_messages_arrive(name: &str, function: &str, change: impl FnOnce(&mut Stopped)) {
    let further = format!("devices = [\"{function}\"]");
    let payload = Payload { further: &further, ..Payload::new("micro") };
    let devices = Devices::arguments(&["-device", "edu,addr=4"]);
    let outcome = Folder::new(name).run_with_tables(&payload.toml(), OPTIONS, &devices, change);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let all = "bench: micro-message-to-handler operations 1000";
    assert!(outcome.output.contains(all), "{outcome}");
    for trouble in ["IOMMU fault", "is left out"] {
        assert!(!outcome.output.contains(trouble), "{outcome}");
    }
}

/// The host bridge's PCIEXBAR and the MCFG say 32 GiB: nothing is left at the old place.
#[test]
fn configuration_space_above_4_gib_is_mapped_and_used() {
    assert_messages_arrive("mcfg-high", "00:04.0", |machine| {
        const PCIEXBAR: u8 = 0x60;
        machine.write_device(0, PCIEXBAR + 4, 8);
        machine.write_device(0, PCIEXBAR, 1);
        let base = 0x8_0000_0000_u64.to_le_bytes();
        machine.change("MCFG", Sum::Right, |table| table[44..52].copy_from_slice(&base));
    });
}

/// All that the tables name is in segment 1: the window, the unit, and the I/O APIC in its scope.
#[test]
fn a_device_of_another_segment_interrupts_through_that_segments_tables() {
    assert_messages_arrive("segment", "0001:00:04.0", |machine| {
        machine.change("MCFG", Sum::Right, |table| table[52] = 1);
        machine.change("DMAR", Sum::Right, |table| table[48 + 6] = 1);
    });
}

/// The unit is segment 0's, and the same device is named as one of segment 1.
#[test]
fn a_device_of_a_segment_without_a_unit_is_refused_by_name() {
    let further = "devices = [\"0001:00:04.0\"]";
    let outcome = run("segment-without-unit", further, |machine| {
        machine.change("MCFG", Sum::Right, |table| table[52] = 1);
    });
    assert!(outcome.refusal().contains("no IOMMU unit covers 0001:00:04.0"), "{outcome}");
}

/// MADT entries of type 0, enabled, whose local APICs nobody has.
#[test]
fn cpus_that_do_not_start_are_named_and_left_out() {
    let absent = |apic_id: u8| [0, 8, 7, apic_id, 1, 0, 0, 0];
    let outcome = run("cpus-absent", "", |machine| {
        machine.append("APIC", &[absent(6), absent(9)].concat());
    });
    assert_powered_off_and_said(&outcome, "CPU with APIC identifier 6 does not start");
    assert_powered_off_and_said(&outcome, "CPU with APIC identifier 9 does not start");
}

/// What is written to the register ends in a file; the machine is reset by the chipset's then.
#[test]
fn the_machine_is_reset_by_the_register_that_the_fadt_names() {
    const RESET_REGISTER: std::ops::Range<usize> = 116..129;
    let folder = Folder::new("reset-register");
    let config =
        folder.write("nexit.toml", Payload { command_line: "spin", ..Payload::new("ends") }.toml());
    let written = folder.path("written");
    let file = format!("file,id=written,path={}", written.display());
    let device = "isa-debugcon,iobase=0x501,chardev=written";
    let run = ["run", "--config", &config, "--timeout", "90", "--"];
    let run = [&run[..], &["-chardev", &file, "-device", device]].concat();
    let mut session = Session::start_with_tables(&run, |machine| {
        machine.change("FACP", Sum::Right, |table| {
            // A byte at port 0x501, and what to write.
            let register = [1, 8, 0, 1, 1, 5, 0, 0, 0, 0, 0, 0, b'R'];
            table[RESET_REGISTER].copy_from_slice(&register);
        });
    });
    session.see("payload: ends by spin");
    session.keys("\u{1}m");
    session.see("nexit> ");
    session.keys("reboot\r");
    session.see("resetting the machine");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(std::fs::read(&written).unwrap_or_default(), b"R", "{screen}");
}

#[test]
fn a_line_of_pci_to_which_the_firmware_has_moved_an_interrupt_of_the_isa_bus_is_refused() {
    let further = "uart = \"COM2\"\ndevices = [\"00:04.0\"]\nintx = [\"00:04.0=20\"]";
    let outcome = run("moved-onto-a-line", further, |machine| {
        // Interrupt Source Override: interrupt 3 is line 20, level-triggered and active when low.
        machine.append("APIC", &[2, 10, 0, 3, 20, 0, 0, 0, 0xf, 0]);
    });
    let sentence =
        "intx names line 20, to which this machine's firmware has moved interrupt 3 of the ISA bus";
    assert!(outcome.refusal().contains(sentence), "{outcome}");
}
