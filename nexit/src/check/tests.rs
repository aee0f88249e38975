//! Bad configurations and bad machines, each with its sentence.

pub(crate) mod machines;

use arch::Bdf;

use super::*;
use machines::{amd, pc, ram, with_dmar, with_reserved, with_tables, without_dmar};

/// A folder with the files that configurations here name.
pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("k", &kernel());
    write("initrd", &[1; 100]);
    write("empty", b"");
    write("noise", &[7; 9000]);
    write("cut", &kernel()[..40]);
    let large = std::fs::File::create(folder.path().join("large")).unwrap();
    large.set_len(70 << 20).unwrap();
    write("nexit.elf", b"x");
    write("a b", b"x");
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("sub/k"), kernel()).unwrap();
    folder
}

/// A multiboot kernel of 64 bytes at 1 MiB, by its address fields.
fn kernel() -> Vec<u8> {
    const AT: u32 = 0x10_0000;
    let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, checksum, AT, AT, AT + 64, 0, AT];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(64, 0);
    bytes
}

/// Name on line 2, cpus 3, memory 4, kernel 5, `further` from 6 on.
fn guest(further: &str) -> String {
    format!("[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"k\"\n{further}\n")
}

/// What is said, one finding a line; the folder's name is taken out.
fn said(text: &str, machine: Option<&Capture>) -> Vec<String> {
    let folder = folder();
    let machine = machine.map(|capture| (capture, Path::new("machine.toml")));
    let findings = find(&folder.path().join("c.toml"), text, machine);
    let shown = format!("{}/", folder.path().display());
    findings.refusals.iter().map(|it| it.to_string().replace(&shown, "")).collect()
}

/// What is written in place of what, without a machine; and what is said.
#[rustfmt::skip]
const CONFIGURATIONS: &[(&str, &str, &str)] = &[
    ("name = \"a\"", "name = \"a",
         "c.toml:2: this is not TOML: the text that begins here has no end: close it with \" on this line (column 8)"),
    ("#", "memry = 1",
         "c.toml:6: unknown key \"memry\" in [[guest]]: the keys are name, cpus, memory, kernel, initrd, cmdline, modules, symbols, devices, except, interrupts, io_ports, intx, uart, gdb, pit, on_crash, on_reboot, unsafe_no_iommu"),
    ("cpus = [0]", "",
         "c.toml:1: this [[guest]] has no cpus: add a line such as cpus = [0]"),
    ("\"64M\"", "64",
         "c.toml:4: memory must be a size in K, M or G such as \"512M\", not an integer"),
    ("64M", "65M",
         "c.toml:4: memory must be at least 16M and a multiple of 2M, not 68157440 bytes"),
    ("[0]", "[]",
         "c.toml:3: cpus is empty: give at least one, such as cpus = [0]"),
    ("[0]", "[0, 0]",
         "c.toml:3: cpus must be a list of CPU numbers such as [0, 1], not \"0 for the second time\""),
    ("#", "devices = [\"00:4\"]",
         "c.toml:6: devices must be a list of PCI functions such as [\"00:04.0\"], or \"all\", not \"00:4\""),
    ("#", "except = [\"00:04.0\"]",
         "c.toml:6: except takes functions out of devices = \"all\", which does not stand here: write it, or remove except"),
    ("#", "interrupts = \"fast\"",
         "c.toml:6: interrupts must be \"exitless\", \"exiting\" or \"posted\", not \"fast\""),
    ("#", "[[guest]]\nname = \"b\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"k\"",
         "c.toml:8: CPU 0 already belongs to guest \"a\": give it to one only"),
    ("#", "[[shared]]\nname = \"s\"\nsize = \"1M\"\nguests = [\"a\", \"z\"]",
         "c.toml:9: there is no [[guest]] \"z\": add it, or share with others"),
    ("#", "uart = \"COM1\"",
         "c.toml:6: uart must be \"COM2\" or \"COM4\" (COM1 is the hypervisor's own, for all consoles, and COM3 has the same interrupt line), not \"COM1\""),
    ("[[guest]]", "console = \"COM2\"\n[[guest]]\nuart = \"COM2\"",
         "c.toml: guest \"a\" has the UART at port 0x2f8 or its interrupt line, and it is the console: take it from the guest (uart, io_ports), or write console = \"none\" or another UART's port at the top of the file"),
    ("#", "unsafe_no_iommu = true\n[[guest]]\nname = \"b\"\ncpus = [1]\nmemory = \"64M\"\nkernel = \"k\"",
         "c.toml: unsafe_no_iommu is for one guest only, as its memory must lie where the devices see it: remove the other guests or the key"),
    ("\"k\"", "\"gone\"",
         "c.toml:5: guest a: kernel = \"gone\": there is no such file: gone"),
    ("\"k\"", "\"sub\"",
         "c.toml:5: guest a: kernel = \"sub\": sub is a folder: name a file in it"),
    ("\"k\"", "\"/dev/null\"",
         "c.toml:5: guest a: kernel = \"/dev/null\": /dev/null is not a regular file: copy its contents to one"),
    ("\"k\"", "\"noise\"",
         "c.toml:5: guest a: kernel = \"noise\": this is neither a Linux bzImage nor a multiboot kernel: give one of these"),
    ("\"k\"", "\"empty\"",
         "c.toml:5: guest a: kernel = \"empty\": the file is empty: copy it again"),
    ("\"k\"", "\"cut\"",
         "c.toml:5: guest a: kernel = \"cut\": the kernel is cut off: its headers promise 64 bytes of load segment, and there are 40: copy the file again"),
    ("#", "initrd = \"empty\"",
         "c.toml:6: guest a: initrd = \"empty\": the file is empty: copy it again, or remove initrd"),
    ("#", "initrd = \"large\"",
         "c.toml:4: guest a: kernel = \"k\": the initrd needs 0x4600000 bytes, and the guest has no room for it: give it more memory"),
    ("#", "initrd = \"a b\"",
         "c.toml:6: guest a: the file name \"a b\" cannot be used: its last part may have letters, digits and ._-+~ (no comma, no space)"),
    ("#", "initrd = \"nexit.elf\"",
         "c.toml:6: guest a: the name nexit.elf is the hypervisor's own: rename nexit.elf"),
    ("#", "initrd = \"sub/k\"",
         "c.toml:6: guest a: k and sub/k would both be called k in the image: rename one of them"),
    ("#", "symbols = \"gone\"", "c.toml:6: guest a: symbols = \"gone\": there is no such file: gone"),
    ("#", "modules = [\n\"k\",\n\"gone x\"]",
         "c.toml:8: guest a: modules = \"gone\": there is no such file: gone"),
    ("#", "io_ports = [\"0xcf8\"]",
         "c.toml:6: guest a: io_ports names 0xcf8, which is a virtual device's or the hypervisor's own: remove it"),
    ("#", "io_ports = [\"0x300\", \"0x3f0-0x3ff\"]",
         "c.toml:6: guest a: io_ports names 0x3f8, which is a virtual device's or the hypervisor's own: remove it"),
    ("#", "intx = [\"00:04.0=16\"]",
         "c.toml:6: guest a: intx names 00:04.0, which has no interrupt pin or is not among the guest's devices: remove it there"),
    ("#", "devices = \"all\"\nintx = [\"00:04.0=30\", \"00:04.1=31\", \"00:04.2=32\", \"00:04.3=33\", \"00:04.4=34\", \"00:04.5=35\", \"00:04.6=36\", \"00:04.7=37\", \"00:05.0=38\"]",
         "c.toml:7: guest a: intx names more than 8 different lines: remove some"),
];

/// The same on the PC.
#[rustfmt::skip]
const ON_THE_PC: &[(&str, &str, &str)] = &[
    ("[0]", "[9]",
         "c.toml:3: guest a: cpus names CPU 9, but the machine has 8, counted from 0: choose among those"),
    ("64M", "9G",
         "c.toml:4: guest a: memory = 9216 MiB is not there (in at most 32 pieces): the machine has 4091 MiB free: give the guests less"),
    ("#", "[[guest]]\nname = \"b\"\ncpus = [2]\nmemory = \"64M\"\nkernel = \"k\"\n[[shared]]\nname = \"s\"\nsize = \"8G\"\nguests = [\"a\", \"b\"]",
         "c.toml:13: shared s: size = 8388608 KiB is not there in one piece: the machine has 4091 MiB free"),
    ("#", "devices = [\"00:09.0\"]",
         "c.toml:6: guest a: devices names 00:09.0, but the machine has no such PCI function; it has 00:00.0, 00:02.0, 00:03.0, 00:04.0, 00:05.0, 00:06.0, 00:06.1, 00:07.0, 00:08.0, 00:1f.0, 00:1f.2, 00:1f.3, 01:00.0"),
    ("#", "devices = [\"0001:00:04.0\"]",
         "c.toml:6: guest a: devices names 0001:00:04.0, but the machine has no such PCI function; it has 00:00.0, 00:02.0, 00:03.0, 00:04.0, 00:05.0, 00:06.0, 00:06.1, 00:07.0, 00:08.0, 00:1f.0, 00:1f.2, 00:1f.3, 01:00.0"),
    ("#", "devices = \"all\"\nexcept = [\"00:19.0\"]",
         "c.toml:7: guest a: except names 00:19.0, but the machine has no such PCI function; it has 00:00.0, 00:02.0, 00:03.0, 00:04.0, 00:05.0, 00:06.0, 00:06.1, 00:07.0, 00:08.0, 00:1f.0, 00:1f.2, 00:1f.3, 01:00.0"),
    ("#", "devices = [\"00:07.0\"]",
         "c.toml:6: guest a: devices: 00:07.0 is a bridge or an IOMMU: assign the functions behind it instead"),
    ("#", "devices = [\"00:08.0\"]",
         "c.toml:6: guest a: devices: 00:08.0 is a bridge or an IOMMU: assign the functions behind it instead"),
    ("#", "devices = [\"00:06.1\"]",
         "c.toml:6: guest a: devices: 00:06.1 cannot be assigned without 00:06.0, as nothing keeps the two from reaching each other (no Access Control Services): give 00:06.0, 00:06.1 to one guest, or none of them to any"),
    ("#", "devices = [\"00:04.0\"]\nintx = [\"00:04.0=999\"]",
         "c.toml:7: guest a: no I/O APIC has interrupt line 999: name another one in intx"),
    ("#", "interrupts = \"posted\"",
         "c.toml:6: guest a: interrupts = \"posted\": the CPU's VT-x has no APIC_REGISTER_VIRTUALIZATION (IA32_VMX_PROCBASED_CTLS2 = 0x00153cff00000000): use a newer CPU, or choose \"exitless\" or \"exiting\""),
];

/// What of the PC is changed; and what is then said of a guest with the NVMe controller.
#[rustfmt::skip]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn bad_machines() -> Vec<(&'static str, Capture, &'static str)> {
    let leaf = |leaf, register: usize, bit: u32| {
        let mut machine = pc();
        machine.cpu_kinds[0].cpuid.0.get_mut(&(leaf, 0)).unwrap()[register] &= !(1 << bit);
        machine
    };
    let msr = |number, value| {
        let mut machine = pc();
        machine.cpu_kinds[0].msrs.0.insert(number, value);
        machine
    };
    let unit = |capability, extended| {
        let mut machine = pc();
        machine.iommu_units[0].capability = capability;
        machine.iommu_units[0].extended = extended;
        machine
    };
    let mut without_paging = pc();
    without_paging.cpu_kinds = vec![amd()];
    without_paging.cpu_kinds[0].cpuid.0.insert((0x8000_000a, 0), [1, 16, 0, 0x8c]);
    let mut in_ram = pc();
    in_ram.memory.push(ram(0xfed9_0000, 0x10_0000));
    let mut fragmented = pc();
    fragmented.memory = (8..108).map(|n| ram(n << 22, 1 << 20)).collect();
    let mut small = pc();
    small.memory = vec![ram(0, 0x9_f000), ram(1 << 20, 31 << 20)];
    let words = "table APIC\nd fee00000 1\nlapic 0 0 1\ntable DMAR\nhex 26 0\nzero a\nflags 1\n\
                 drhd 0 0 fed91000\nscope 1 0 0 5.0\n";
    let uncovered = with_tables(words);
    let mut far = pc();
    far.functions.iter_mut().filter(|it| it.at == Bdf::new(0, 4, 0)).for_each(|it| it.at = it.at.in_segment(1));
    vec![
        ("no VT-x", leaf(1, 2, 5),
             "machine.toml: the CPU shows neither VT-x (CPUID 1 ECX bit 5) nor AMD-V (CPUID 0x80000001 ECX bit 2): enable virtualization in the firmware's setup, or in the emulator"),
        ("VT-x locked off", msr(0x3a, 1),
             "machine.toml: VT-x is locked off by firmware (IA32_FEATURE_CONTROL = 0x1): enable it in setup"),
        ("no EPT", msr(0x48b, 0),
             "machine.toml: the CPU's VT-x has no ENABLE_EPT (IA32_VMX_PROCBASED_CTLS2 = 0x0000000000000000): use a newer CPU"),
        ("EPT without INVEPT", msr(0x48c, 0x0000_0f01_0623_4141),
             "machine.toml: the CPU's EPT has no INVEPT (IA32_VMX_EPT_VPID_CAP = 0xf0106234141): use a newer CPU"),
        ("no execute disable", leaf(0x8000_0001, 3, 20),
             "machine.toml: the CPU has no execute disable (CPUID 0x80000001 EDX bit 20): switch it on in the firmware's setup (\"XD\", \"NX\" or \"no-execute memory protection\")"),
        ("no x2APIC", leaf(1, 2, 21),
             "machine.toml: the CPU has no x2APIC (CPUID 1 ECX bit 21): enable it in the firmware's setup; without it interrupts cannot be ended without an exit"),
        ("AMD-V without nested paging", without_paging,
             "machine.toml: the CPU's AMD-V has no nested paging (CPUID 0x8000000A EDX.NP = 0): use a newer machine, or under an emulator a CPU model with npt"),
        ("no DMAR", without_dmar(),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the firmware has no DMAR table: enable VT-d in the firmware's setup). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("DMAR with a wrong sum", with_dmar("badsum.dmar"),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the firmware's DMAR table has a wrong checksum: update the firmware). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("VT-d switched off", with_dmar("vtd-off-leftover.dmar"),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the firmware's DMAR table cannot be used: it names a unit whose registers are at 0x0 (is VT-d off in setup?); update the firmware). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("no unit there", with_dmar("zero-unit.dmar"),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the firmware's DMAR table cannot be used: it names a unit whose registers are at 0x0 (is VT-d off in setup?); update the firmware). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("no interrupt remapping", with_tables("table APIC\nd fee00000 1\nlapic 0 0 1\ntable DMAR\nhex 26 0\nzero a\nflags 0\ndrhd 1 0 fed91000\n"),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the IOMMU lacks interrupt remapping, says the firmware's DMAR table: enable it in setup). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("a unit in RAM", in_ram,
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the firmware's DMAR table names a unit at 0xfed91000, where RAM is). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("a unit that is not there", unit(u64::MAX, u64::MAX),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the IOMMU lacks registers: they read as all ones or all zeroes, so the firmware's DMAR table names a wrong address). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("a unit without x2APIC", unit(0x00d2_008c_4066_0462, 0x00f0_504a),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, so the device could reach all memory (the IOMMU lacks extended interrupt mode, which x2APIC needs). Repair that, or write unsafe_no_iommu = true to trust the guest with the whole machine"),
        ("firmware keeps the controller", with_reserved(&[(4, 0)]),
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: the firmware keeps using it for DMA to 0x7b800000 (an RMRR of its DMAR table): remove it"),
        ("no unit for the controller", uncovered,
             "c.toml:6: guest a: devices: 00:04.0 cannot be assigned: no IOMMU unit covers 00:04.0: remove it, or update the firmware"),
        ("no MADT", with_tables("table MCFG\nq 0\nmcfg e0000000 0 0 ff\n"),
             "machine.toml: the firmware's tables name no usable CPU (MADT): update the firmware"),
        ("memory in pieces", fragmented,
             "c.toml:4: guest a: memory = 64 MiB is not there (in at most 32 pieces): the machine has 99 MiB free: give the guests less"),
        ("little memory", small,
             "c.toml:4: guest a: memory = 64 MiB is not there (in at most 32 pieces): the machine has 27 MiB free: give the guests less"),
        ("a controller that the boot does not reach", far,
             "c.toml:6: guest a: devices names 00:04.0, but the machine has no such PCI function; it has 00:00.0, 00:02.0, 00:03.0, 00:05.0, 00:06.0, 00:06.1, 00:07.0, 00:08.0, 00:1f.0, 00:1f.2, 00:1f.3, 01:00.0"),
    ]
}

#[test]
fn every_bad_configuration_has_its_sentence_without_a_machine() {
    for (from, to, expected) in CONFIGURATIONS {
        assert_eq!(said(&guest("#").replace(from, to), None), [*expected], "{to}");
    }
}

/// On a machine the same is said, and what only the machine can tell besides.
#[test]
fn every_bad_configuration_has_its_sentence_on_a_machine() {
    for (from, to, expected) in CONFIGURATIONS {
        let said = said(&guest("#").replace(from, to), Some(&pc()));
        assert!(said.iter().any(|it| it == expected), "{to}: {said:#?}");
    }
    for (from, to, expected) in ON_THE_PC {
        assert_eq!(said(&guest("#").replace(from, to), Some(&pc())), [*expected], "{to}");
        assert_eq!(said(&guest("#").replace(from, to), None), [] as [&str; 0], "{to}");
    }
}

#[test]
fn every_bad_machine_has_its_sentence() {
    let text = guest("devices = [\"00:04.0\"]");
    assert_eq!(said(&text, Some(&pc())), [] as [&str; 0]);
    for (what, machine, expected) in bad_machines() {
        assert_eq!(said(&text, Some(&machine)), [expected], "{what}");
    }
}

#[test]
fn there_are_thirty_bad_configurations_and_fifteen_bad_machines() {
    assert!(CONFIGURATIONS.len() + ON_THE_PC.len() >= 30 && bad_machines().len() >= 15);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let text =
        guest("devices = [\"00:07.0\", \"00:06.0\"]\ninitrd = \"gone\"").replace("[0]", "[8]");
    let text = text.replace("64M", "8G").replace("\"k\"", "\"sub\"");
    let said = said(&text, Some(&without_dmar()));
    let lines: Vec<&str> = said.iter().filter_map(|it| it.split(':').nth(1)).collect();
    assert_eq!(lines, ["6", "3", "4", "5", "7", "6"], "{said:#?}");
}

fn verdicts_of(machine: &Capture, text: &str) -> Vec<DeviceVerdict> {
    let folder = folder();
    find(&folder.path().join("c.toml"), text, Some((machine, Path::new("m.toml")))).devices
}

#[test]
fn each_device_has_a_verdict() {
    let verdicts =
        verdicts_of(&with_reserved(&[(0x1f, 2), (5, 0)]), &guest("devices = [\"00:04.0\"]"));
    let shown = |at: &str| verdicts.iter().find(|it| it.at == at).unwrap().to_string();
    assert_eq!(
        shown("00:04.0"),
        "00:04.0 8086:1234 NVMe controller: guest a's\n    interrupts: MSI-X, 17 messages, exitless\n    \
         reset: by Function Level Reset"
    );
    assert_eq!(
        shown("00:06.1"),
        "00:06.1 8086:1234 Ethernet controller: assignable\n    together with 00:06.0\n    interrupts: \
         MSI-X, 17 messages, exitless\n    reset: by Function Level Reset"
    );
    assert_eq!(
        shown("00:05.0"),
        "00:05.0 8086:1234 USB controller: assignable\n    interrupts: MSI, one message, exitless\n    reset: \
         in no way: it is handed on as it is\n    what a guest leaves in it, the next one finds\n    taken from \
         the firmware, which uses it for DMA to 0x7b800000 (RMRR)"
    );
    assert!(
        shown("00:1f.2").contains("not assignable: 00:1f.2 cannot be assigned: the firmware keeps")
    );
    assert!(
        shown("00:03.0").contains("interrupts: only by its pin INTA: it needs an entry in intx")
    );
    assert!(shown("00:07.0").ends_with(
        "not assignable: 00:07.0 is a bridge or an IOMMU: assign the functions \
                                        behind it instead"
    ));
    assert!(shown("01:00.0").contains("reset: with its bus, by 00:07.0"), "{}", shown("01:00.0"));
    assert!(shown("00:1f.3").contains("not among \"all\""));
}

#[test]
fn a_function_that_the_boot_does_not_reach_is_in_the_list_with_the_reason() {
    let mut far = pc();
    far.functions[3].at = far.functions[3].at.in_segment(1);
    let verdicts = verdicts_of(&far, &guest(""));
    let shown = verdicts.iter().find(|it| it.at == "0001:00:04.0").unwrap().to_string();
    assert!(shown.contains("not assignable: the boot does not find it"), "{shown}");
}

#[test]
fn what_the_machine_file_does_not_say_is_not_refused_but_said() {
    let mut machine = pc();
    machine.memory.clear();
    machine.cpu_kinds.clear();
    machine.functions[3].config.0.truncate(64);
    machine.missing = vec!["the keyboard: it was not asked".into()];
    let folder = folder();
    let path = folder.path().join("c.toml");
    let text = guest("devices = [\"00:04.0\"]");
    let findings = find(&path, &text, Some((&machine, Path::new("m.toml"))));
    assert_eq!(findings.refusals, []);
    let unknown = findings.unknown.join("\n");
    for words in ["has no CPUID", "has no memory map", "in the machine file: the keyboard"] {
        assert!(unknown.contains(words), "{unknown}");
    }
    let shown = findings.devices.iter().find(|it| it.at == "00:04.0").unwrap().to_string();
    assert!(shown.contains("its capabilities were not read (probe as root)"), "{shown}");
    let json = serde_json::to_value(&findings).unwrap();
    assert_eq!(json["devices"][3]["assignable"], true);
}
