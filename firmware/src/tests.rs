//! Every case of `nexit-cases`, and bytes that no case has.

use nexit_cases::{Case, Ram};
use proptest::prelude::*;

use super::*;
use arch::ApicId;

const BASE: u64 = 0x7f00_0000;

fn read_ram(ram: &Ram) -> Result<PlatformTables, String> {
    let memory = |at: Hpa, length: usize| ram.bytes(at.as_u64(), length);
    PlatformTables::read(None, &memory).map_err(|error| error.to_string())
}

fn read(case: &Case) -> Result<PlatformTables, String> {
    read_ram(&Ram::new(case, BASE))
}

fn named(name: &str) -> PlatformTables {
    read(&Case::named(name)).unwrap()
}

fn cpus(platform: &PlatformTables) -> Vec<u32> {
    platform.cpus.iter().map(|id| id.0).collect()
}

/// A machine with one CPU, and further tables.
fn with(tables: &str) -> PlatformTables {
    read(&Case::parse(&format!("table APIC\nd fee00000 1\nlapic 0 0 1\n{tables}"))).unwrap()
}

/// The notes, without those that every small case has.
fn notes(platform: &PlatformTables) -> String {
    platform.notes.join("\n")
}

#[test]
fn each_cpu_comes_once_whatever_the_order_of_its_entries() {
    assert_eq!(cpus(&named("arl-madt.txt")), [0x10, 0, 2, 0x40, 0x42]);
    assert_eq!(cpus(&named("x2apic-first-dup.txt")), [0, 2]);
    assert_eq!(cpus(&named("bogus-x2apic.txt")), [0, 2, 0x1716_1514]);
    let last = "table APIC\nd fee00000 1\nlapic 0 0 1\nlapic 1 2 1\nx2apic 0 0 1\nx2apic 2 1 1\n";
    assert_eq!(cpus(&read(&Case::parse(last)).unwrap()), [0, 2]);
}

#[test]
fn a_cpu_that_is_only_online_capable_is_not_there_yet() {
    let text = "table APIC\nd fee00000 1\nlapic 0 0 1\nlapic 1 1 2\nlapic 2 2 3\nx2apic 3 3 2\n";
    assert_eq!(cpus(&read(&Case::parse(text)).unwrap()), [0, 2]);
}

#[test]
fn an_identifier_that_means_all_cpus_is_refused_by_name() {
    let platform = named("x2apic-broadcast.txt");
    assert_eq!(cpus(&platform), [0]);
    let notes = notes(&platform);
    let wanted = "x2APIC entry of processor 2 is left out: identifier 0xffffffff means all CPUs";
    assert!(notes.contains(wanted), "{notes}");
    assert!(
        notes.contains("local APIC entry of processor 1 is left out: identifier 0xff"),
        "{notes}"
    );
}

#[test]
fn an_entry_of_no_length_ends_the_madt_with_a_sentence() {
    let platform = named("madt-zero-length.txt");
    assert_eq!(cpus(&platform), [0], "what was before it counts");
    let wanted = "the MADT ends at its offset 52: an entry of type 128 there claims 0 bytes";
    assert!(notes(&platform).contains(wanted), "{}", notes(&platform));
    let one = "table APIC\nd fee00000 1\nlapic 0 0 1\nhex 0 1 0 8 1 1 1 0 0 0\n";
    let platform = read(&Case::parse(one)).unwrap();
    assert!(notes(&platform).contains("type 0 there claims 1 bytes"), "{}", notes(&platform));
    let refusal = read(&Case::named("madt-zero-length-lapic.txt")).unwrap_err();
    assert!(refusal.contains("no usable CPU"), "{refusal}");
    assert!(refusal.contains("an entry of type 0 there claims 0 bytes"), "{refusal}");
}

#[test]
fn an_entry_that_is_too_short_for_its_kind_is_left_out() {
    let text = "table APIC\nd fee00000 1\nhex 0 4 0 7\nlapic 0 0 1\nhex 1 2\nhex 2 10 0\n";
    let platform = read(&Case::parse(text)).unwrap();
    assert_eq!(cpus(&platform), [0]);
    let notes = notes(&platform);
    assert!(notes.contains("type 0 at its offset 44 is left out: it has 4 bytes"), "{notes}");
    assert!(notes.contains("type 1 at its offset 56 is left out"), "{notes}");
    assert!(notes.contains("ends at its offset 58: an entry of type 2 there claims 16"), "{notes}");
}

#[test]
fn a_null_pointer_among_the_tables_is_a_sentence() {
    for name in ["xsdt-null-first.txt", "xsdt-null-ivt.txt"] {
        let platform = named(name);
        assert_eq!(cpus(&platform), [0], "{name}");
        let wanted = "entry 0 of the XSDT is left out: its address is 0";
        assert!(notes(&platform).contains(wanted), "{}", notes(&platform));
        assert!(platform.dmar.unwrap_err().contains("no DMAR table"));
    }
}

#[test]
fn without_an_xsdt_the_rsdt_serves() {
    let platform = named("rsdp-rev2-no-xsdt.txt");
    assert_eq!(cpus(&platform), [0]);
    let wanted = "the RSDT is used, as the XSDT cannot be: its address is 0";
    assert!(notes(&platform).contains(wanted), "{}", notes(&platform));
}

#[test]
fn tables_above_4_gib_are_read() {
    let case = Case::named("arl-madt.txt");
    // The RSDT's pointers would be too short; the XSDT's are not.
    let platform = read_ram(&Ram::new(&case, 0x20_7f00_0000)).unwrap();
    assert_eq!(platform.cpus.len(), 5);
}

#[test]
fn windows_to_configuration_space_are_those_that_can_be() {
    assert_eq!(named("mcfg-short.txt").ecam, []);
    assert!(notes(&named("mcfg-short.txt")).contains("the MCFG is left out: its 36 bytes"));
    let one = EcamWindow { segment: 0, first_bus: 0, last_bus: 0, base: Hpa::new(0xc000_0000) };
    assert_eq!(named("mcfg-slimboot.txt").ecam, [one]);
    let platform = with(
        "table MCFG\nq 0\nmcfg 3fc0000000 0 0 ff\nmcfg e0000000 1 40 7f\nmcfg 0 0 0 ff\n\
         mcfg e0000000 0 9 8\nmcfg e0001000 0 0 1\nmcfg fffffffffff00000 2 0 1\nhex 0 0 0\n",
    );
    let windows: Vec<_> = platform.ecam.iter().map(|w| (w.segment, w.first_bus, w.base)).collect();
    assert_eq!(windows, [(0, 0, Hpa::new(0x3f_c000_0000)), (1, 0x40, Hpa::new(0xe000_0000))]);
    assert_eq!(notes(&platform).matches("that cannot be").count(), 4);
}

/// A FADT with its flags, PM1a_CNT, PM1b_CNT and the addresses at its end, a DSDT with `\_S5`.
fn fadt(flags: u32, pm1: (u32, u32), end: &str) -> PlatformTables {
    with(&format!(
        "table FACP\nrevision 6\nd 0 0\nhex 1 2\nw 9\nd b2\nzero 4\nd 400 0 {:x} {:x} 0 408\nzero 8\n\
         hex 4 2 0 4\nzero 11\nw 20\nhex 0\nd {flags:x}\nhex 1 8 0 1\nq cf9\nhex 6 0 0 0\nzero 70\n{end}\n\
         table DSDT\nhex 08 5f 53 35 5f 12 07 04 0a 07 0a 06 00 00\n",
        pm1.0, pm1.1
    ))
}

#[test]
fn the_machine_is_switched_off_by_what_it_has() {
    let pm1 = |port, sleep_type| Pm1Control { register: Register::Port(port), sleep_type };
    let both = fadt(0x500, (0x404, 0x504), "zero 18");
    assert_eq!(both.soft_off, Some(SoftOff::Pm1 { a: pm1(0x404, 7), b: Some(pm1(0x504, 6)) }));
    assert_eq!(both.pm_timer, Some(PmTimer { port: 0x408, is_32_bit: true }));
    assert_eq!(both.reset, Some(Reset { register: Register::Port(0xcf9), value: 6 }));
    assert!(!both.has_rtc && both.has_8259 && !both.hardware_reduced);
    let at = |register, value| Reset { register: Register::Port(register), value };
    assert_eq!(both.resets()[..2], [at(0xcf9, 6), at(0xcf9, 2)]);
    let one = fadt(0, (0x404, 0), "zero 18");
    assert_eq!(one.resets(), [at(0xcf9, 2), at(0xcf9, 6)], "none in the FADT: the chipset's");
    assert_eq!(one.soft_off, Some(SoftOff::Pm1 { a: pm1(0x404, 7), b: None }));
    assert_eq!((one.reset, one.pm_timer.unwrap().is_32_bit), (None, false));
    let reduced = fadt(1 << 20, (0x404, 0), "hex 1 8 0 1\nq 600\nhex 1 8 0 1\nq 601");
    let register = Register::Port(0x600);
    assert_eq!(reduced.soft_off, Some(SoftOff::SleepControl { register, sleep_type: 7 }));
    assert_eq!((reduced.pm_timer, reduced.hardware_reduced), (None, true));
    let none = fadt(1 << 20, (0x404, 0), "zero 18");
    assert_eq!(none.soft_off, None);
    assert_eq!(none.resets(), [], "hardware-reduced: no port is guessed");
    assert!(notes(&none).contains("neither PM1a_CNT nor SLEEP_CONTROL_REG"), "{}", notes(&none));
    let memory = fadt(1 << 20, (0, 0), "hex 0 8 0 1\nq fed00600\nzero c");
    let register = Register::Memory(Hpa::new(0xfed0_0600));
    assert_eq!(memory.soft_off, Some(SoftOff::SleepControl { register, sleep_type: 7 }));
}

#[test]
fn register_blocks_are_where_the_longer_field_says_and_as_long_as_their_length() {
    let found = |platform: &PlatformTables| -> Vec<(Register, u8)> {
        platform.acpi_blocks.iter().map(|block| (block.register, block.bytes)).collect()
    };
    let ports = |list: &[(u16, u8)]| -> Vec<(Register, u8)> {
        list.iter().map(|(port, bytes)| (Register::Port(*port), *bytes)).collect()
    };
    // The short fields: PM1a_EVT, PM1a_CNT, SMI_CMD; PM1b_CNT too.
    let short = fadt(0, (0x404, 0x504), "zero 18");
    assert_eq!(found(&short), ports(&[(0x400, 4), (0x404, 2), (0x504, 2), (0xb2, 1)]));
    assert_eq!(found(&fadt(1 << 20, (0x404, 0), "zero 18")), [], "means nothing there");
    // All of them; GPE0 is longer than bits in a byte can say, and PM1a_EVT and GPE0 have longer fields.
    let all = with(
        "table FACP\nrevision 6\nd 0 0\nhex 1 2\nw 9\nd b2\nzero 4\nd 400 410 404 414 450 408 420 460\n\
         hex 4 2 1 4 40 8\nzero f\nw 20\nhex 0\nd 0\nhex 1 8 0 1\nq cf9\nhex 6 0 0 0\nzero 10\n\
         hex 1 20 0 2\nq 1800\nzero 3c\nhex 0 80 0 1\nq fed01234\nzero 24\n",
    );
    let mut expected = ports(&[(0x1800, 4), (0x410, 4), (0x404, 2), (0x414, 2), (0x450, 1)]);
    expected.push((Register::Memory(Hpa::new(0xfed0_1234)), 0x40));
    expected.extend(ports(&[(0x460, 8), (0xb2, 1)]));
    assert_eq!(found(&all), expected);
}

/// The `acpi` crate multiplies these in a byte.
#[test]
fn register_blocks_of_impossible_lengths_do_no_harm() {
    let text = "table FACP\nzero 34\nhex ff ff ff ff ff ff\nzero a0\n";
    assert_eq!(with(text).soft_off, None);
}

#[test]
fn nothing_is_ever_written_to_port_0() {
    let platform = named("hw-reduced-s5.txt");
    assert_eq!(platform.soft_off, None);
    assert!(notes(&platform).contains("the machine cannot be switched off"));
}

#[test]
fn soft_off_is_found_in_an_ssdt() {
    let a = Pm1Control { register: Register::Port(0x404), sleep_type: 7 };
    assert_eq!(named("s5-in-ssdt.txt").soft_off, Some(SoftOff::Pm1 { a, b: None }));
    let without = fadt(0, (0x404, 0), "zero 18\ntable DSDT\nhex 0");
    assert_eq!(without.soft_off, None);
    assert!(notes(&without).contains("neither DSDT nor SSDTs have \\_S5"), "{}", notes(&without));
}

#[test]
fn a_wrong_checksum_costs_the_table_alone_and_is_said() {
    let platform = with(
        "table MCFG\nbadsum\nq 0\nmcfg e0000000 0 0 ff\ntable HPET\nbadsum\nd 1\nhex 0 40 0 0\nq fed00000\n\
         hex 0 0 0 0\ntable DMAR\nbadsum\nhex 26 1\nzero a\ndrhd 1 0 fed91000\n",
    );
    assert_eq!((platform.ecam.len(), platform.hpet), (0, None));
    assert!(notes(&platform).contains("the MCFG is left out: its checksum is wrong"));
    assert!(notes(&platform).contains("the HPET is left out: its checksum is wrong"));
    assert!(platform.dmar.unwrap_err().contains("DMAR table has a wrong checksum"));
    // Without a MADT there is no machine.
    let madt = read(&Case::parse("table APIC\nbadsum\nd fee00000 1\nlapic 0 3 1\n")).unwrap();
    assert_eq!(cpus(&madt), [3]);
    assert!(notes(&madt).contains("the MADT has a wrong checksum; it is used nevertheless"));
}

#[test]
fn the_hpet_is_where_memory_is() {
    let hpet = |place: &str| with(&format!("table HPET\nd 8086a201\n{place}\nhex 0 80 0 0\n"));
    assert_eq!(hpet("hex 0 40 0 0\nq fed00000").hpet, Some(Hpa::new(0xfed0_0000)));
    for place in ["hex 1 40 0 0\nq fed00000", "hex 0 40 0 0\nq 0", "hex 0 40 0 0\nq fed00010"] {
        let platform = hpet(place);
        assert_eq!(platform.hpet, None);
        assert!(notes(&platform).contains("the HPET is left out"));
    }
    assert_eq!(with("table HPET\nd 1\n").hpet, None, "too short for an address");
}

#[test]
fn interrupts_of_the_isa_bus_go_where_the_overrides_say() {
    let platform = with("");
    let wired = |platform: &PlatformTables, irq| {
        let line = platform.isa_line(irq);
        (line.gsi, line.active_low)
    };
    assert_eq!(wired(&platform, 0), (0, false));
    let text = "table APIC\nd fee00000 1\nlapic 0 0 1\niso 0 2 0\niso 4 14 f\niso e 2e d\n";
    let platform = read(&Case::parse(text)).unwrap();
    let lines: Vec<_> = [0, 3, 4, 14, 15].map(|irq| wired(&platform, irq)).into();
    assert_eq!(lines, [(2, false), (3, false), (0x14, true), (0x2e, false), (15, false)]);
    assert!(platform.overrides[1].level && platform.overrides[2].level);
}

#[test]
fn io_apics_are_named_once_and_never_at_0() {
    let text = "table APIC\nd fee00000 1\nlapic 0 0 1\nioapic 2 fec00000 0\nioapic 3 fec01000 18\n\
                ioapic 4 fec00000 0\nioapic 5 0 30\n";
    let platform = read(&Case::parse(text)).unwrap();
    let found: Vec<_> = platform.io_apics.iter().map(|entry| (entry.id, entry.first_gsi)).collect();
    assert_eq!(found, [(2, 0), (3, 0x18)]);
    assert!(notes(&platform).contains("names the I/O APIC at 0xfec00000 twice"));
    assert!(notes(&platform).contains("I/O APIC 5 of the MADT is left out"));
}

#[test]
fn a_machine_without_tables_is_refused_in_a_sentence() {
    let nothing = |_: Hpa, _: usize| None;
    let refusal = |rsdp| PlatformTables::read(rsdp, &nothing).unwrap_err().to_string();
    assert!(refusal(None).contains("the firmware has no ACPI tables"));
    assert!(refusal(Some(Hpa::new(0x1000))).contains("at 0x1000 there is no RSDP"));
    assert!(read(&Case::parse("table HPET\nd 0\n")).unwrap_err().contains("no usable CPU"));
}

/// Cases, all that they have in one machine.
fn everything() -> Case {
    Case::parse(
        "table APIC\nd fee00000 1\nlapic 0 0 1\nx2apic 2 1 1\nioapic 2 fec00000 0\niso 0 2 0\n\
         table FACP\nrevision 6\nzero f0\ntable DSDT\nhex 08 5f 53 35 5f 12 07 04 0a 07 0a 06 00 00\n\
         table SSDT\nhex 08 5f 53 35 5f 12 06 04 0a 07 00 00 00\n\
         table MCFG\nq 0\nmcfg e0000000 0 0 ff\ntable HPET\nd 1\nhex 0 40 0 0\nq fed00000\nhex 0 0 0 0\n\
         table DMAR\nhex 26 1\nzero a\ndrhd 1 0 fed91000\n\
         table SPCR\nrevision 2\nhex 0 0 0 0 1 8 0 1\nq 2f8\nzero 1c\n\
         table DBG2\nd 2c 1\nhex 0 22 0 1 2 0 20 0 0 0 0 0 0 80 0 0 0 0 16 0 0 0 1 8 0 1\nq 2e8\n",
    )
}

#[test]
fn the_serial_ports_that_tables_name_come_once_the_consoles_first() {
    let platform = read(&everything()).unwrap();
    let ports: Vec<_> =
        platform.serial.iter().map(|port| (port.table, port.place.first_port())).collect();
    assert_eq!(ports, [("SPCR", Some(0x2f8)), ("DBG2", Some(0x2e8))]);
    let twice = with(
        "table SPCR\nhex 0 0 0 0 1 8 0 1\nq 2e8\nzero 1c\n\
         table DBG2\nd 2c 1\nhex 0 22 0 1 2 0 20 0 0 0 0 0 0 80 0 0 0 0 16 0 0 0 1 8 0 1\nq 2e8\n",
    );
    assert_eq!(twice.serial.len(), 1);
    let damaged = with("table SPCR\nbadsum\nhex 0 0 0 0 1 8 0 1\nq 2e8\nzero 1c\n");
    assert_eq!(damaged.serial, []);
    assert!(notes(&damaged).contains("the SPCR is left out: its checksum is wrong"));
    let makers: Vec<_> = platform.origins.iter().map(|origin| origin.table.as_str()).collect();
    assert_eq!(makers, ["FADT", "DSDT", "DMAR"]);
}

proptest! {
    #[test]
    fn tables_with_changed_bytes_never_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        seal: bool,
    ) {
        let mut ram = Ram::new(&everything(), BASE);
        let count = ram.each_byte().count();
        for (index, value) in changes {
            if let Some(byte) = ram.each_byte().nth(index.index(count)) {
                *byte = value;
            }
        }
        if seal {
            ram.seal();
        }
        if let Ok(platform) = read_ram(&ram) {
            prop_assert!(!platform.cpus.contains(&ApicId(u32::MAX)));
            let off = format!("{:?}", platform.soft_off);
            prop_assert!(!off.contains("Port(0)"), "{}", off);
        }
    }

    #[test]
    fn tables_of_any_bytes_never_panic(
        signature in proptest::sample::select(vec![
            "APIC", "FACP", "MCFG", "HPET", "DSDT", "SSDT", "SPCR", "DBG2"
        ]),
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let body: Vec<String> = body.iter().map(|byte| format!("{byte:x}")).collect();
        let text = format!(
            "table {signature}\nhex {}\ntable APIC\nd fee00000 1\nlapic 0 0 1\n", body.join(" ")
        );
        let _ = read(&Case::parse(&text));
    }
}

#[test]
fn every_table_is_named_once_with_the_roots_and_the_dsdt() {
    let ram = Ram::new(&Case::named("s5-in-ssdt.txt"), BASE);
    let memory = |at: Hpa, length: usize| ram.bytes(at.as_u64(), length);
    let mut found = Vec::new();
    each_table(None, &memory, &mut |at, bytes| {
        assert_eq!(memory(at, bytes.len()), Some(bytes));
        found.push(String::from_utf8_lossy(&bytes[..4]).into_owned());
    });
    found.sort();
    assert_eq!(found, ["APIC", "DSDT", "FACP", "RSD ", "RSDT", "SSDT", "XSDT"]);
}

#[test]
fn tables_that_cannot_be_are_no_tables() {
    for name in ["xsdt-null-first.txt", "xsdt-null-ivt.txt", "rsdp-rev2-no-xsdt.txt"] {
        let ram = Ram::new(&Case::named(name), BASE);
        let memory = |at: Hpa, length: usize| ram.bytes(at.as_u64(), length);
        let mut found = 0;
        each_table(None, &memory, &mut |at, bytes| {
            assert!(at.as_u64() != 0 && bytes.len() >= 20);
            found += 1;
        });
        assert!(found > 2, "{name}");
    }
}
