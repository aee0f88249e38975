use arch::machine::ConfigSpace;
use arch::{Hpa, Width};
use nexit_cases::{Case, Ram};
use pci::{Bar, BarKind};
use proptest::prelude::*;

use super::*;

const AT: Bdf = Bdf::new(0, 4, 0);

/// A function with these dwords.
pub(crate) fn function(at: Bdf, length: usize, dwords: &[(usize, u32)]) -> Function {
    let mut bytes = vec![0; length];
    for (offset, value) in dwords {
        bytes[*offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    let bar_sizes = vec![Some(0); 7];
    let config = Bytes(bytes);
    Function { at, name: None, driver: None, iommu_group: None, numa: None, bar_sizes, config }
}

fn machine(functions: Vec<Function>) -> Capture {
    Capture { functions, ..Capture::new("a test") }
}

/// Sets register `index` to a BAR; the number of registers that it takes.
fn set_bar(
    function: &mut Function,
    index: usize,
    kind: u8,
    bits: u32,
    address: u64,
) -> Option<Bar> {
    let (kind, flags, bits, top) = match kind {
        0 => (BarKind::Memory32, 0, bits.clamp(4, 31), 32),
        1 if index < 5 => (BarKind::Memory64, 0xc_u64, bits, 63),
        2 => (BarKind::Io, 1, bits.clamp(2, 8), 16),
        _ => return None,
    };
    let size = 1 << bits;
    let base = address & ((1 << top) - 1) & !(size - 1);
    let value = (base | flags).to_le_bytes();
    let width = if kind == BarKind::Memory64 { 8 } else { 4 };
    function.config.0[16 + 4 * index..][..width].copy_from_slice(&value[..width]);
    function.bar_sizes[index] = Some(size);
    Some(Bar { index: index as u8, kind, prefetchable: flags & 8 != 0, base, size })
}

proptest! {
    #[test]
    fn sizing_the_bars_of_a_capture_finds_the_captured_sizes(
        list in proptest::collection::vec((0_u8..4, 4_u32..40, any::<u64>()), 6), command: u16,
    ) {
        let mut made = function(AT, 256, &[(0, 0x1234_8086), (4, command.into())]);
        let mut bars = [None; 6];
        let mut index = 0;
        for (kind, bits, address) in list {
            if index > 5 { break; }
            bars[index] = set_bar(&mut made, index, kind, bits, address);
            let wide = bars[index].is_some_and(|bar| bar.kind == BarKind::Memory64);
            index += if wide { 2 } else { 1 };
        }
        let capture = machine(vec![made]);
        let mut space = capture.config_space();
        prop_assert_eq!(pci::bar::size_bars(&mut space, AT, 6), bars);
        for offset in (0..0x40).step_by(4) {
            let before = capture.config_space().read(AT, offset, Width::Dword);
            prop_assert_eq!(space.read(AT, offset, Width::Dword), before, "at {}", offset);
        }
    }

    #[test]
    fn any_function_is_scanned_sized_and_grouped(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        sizes in proptest::collection::vec(proptest::option::of(any::<u64>()), 0..9),
    ) {
        let mut made = function(AT, 0, &[]);
        (made.config, made.bar_sizes) = (Bytes(bytes), sizes);
        let mut zero = made.clone();
        zero.at = Bdf::new(0, 0, 0);
        let view = machine(vec![zero, made]).view();
        for function in &view.functions {
            let _ = view.bars(function);
        }
    }

    #[test]
    fn any_text_is_a_machine_or_refused(text in ".{0,200}") {
        let _ = Capture::from_toml(&text);
        let _ = Capture::from_json(&text);
    }
}

#[test]
fn a_bar_of_unknown_size_is_none_and_keeps_its_address() {
    let mut made = function(AT, 64, &[(0, 0x1234_8086), (0x10, 0xfebd_0000)]);
    made.bar_sizes = Vec::new();
    let mut space = machine(vec![made]).config_space();
    assert_eq!(pci::bar::size_bars(&mut space, AT, 6), [None; 6]);
    assert_eq!(space.read(AT, 0x10, Width::Dword), 0xfebd_0000);
}

#[test]
fn what_was_not_captured_reads_as_ones() {
    let space = machine(vec![function(AT, 64, &[(0, 0x1234_8086)])]).config_space();
    assert_eq!(space.read(AT, 0x40, Width::Dword), u32::MAX);
    assert_eq!(space.read(AT, 0x3f, Width::Byte), 0);
    assert_eq!(space.read(Bdf::new(0, 5, 0), 0, Width::Word), 0xffff);
}

/// The tables of a case, whole as they are in its memory.
fn tables(case: &Case) -> Vec<Table> {
    case.names().map(|name| Table::new(None, case.table(name))).collect()
}

#[test]
fn tables_without_an_address_are_found_all_the_same() {
    let case =
        Case::parse("table APIC\nd fee00000 1\nlapic 0 0 1\nlapic 1 2 1\nioapic 1 fec00000 0");
    let capture = Capture { tables: tables(&case), ..Capture::new("a test") };
    let platform = capture.memory().platform().unwrap();
    assert_eq!(platform.cpus.iter().map(|id| id.0).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(platform.io_apics.len(), 1);
    // One table without an address, and the pointers of the others are not followed.
    let ram = Ram::new(&case, 0x10_0000);
    let mut some = everything(&ram);
    some.iter_mut().filter(|it| it.signature == "APIC").for_each(|it| it.address = None);
    let memory = Capture { tables: some, ..Capture::new("a test") }.memory();
    assert_eq!(memory.platform().unwrap().cpus.len(), 2);
    // The DSDT is where the FADT says, although nothing says so of the DSDT.
    let case = Case::named("s5-in-ssdt.txt");
    let mut without = tables(&case);
    let dsdt = 0x7ff0_0000_u32;
    let fadt = without.iter_mut().find(|table| table.signature == "FACP").unwrap();
    fadt.bytes.0[40..44].copy_from_slice(&dsdt.to_le_bytes());
    let memory = Capture { tables: without, ..Capture::new("a test") }.memory();
    assert_eq!(memory.bytes(Hpa::new(dsdt.into()), 4), Some(&b"DSDT"[..]));
}

/// What `firmware` says of a machine it also says of its capture, notes about pointers included.
#[test]
fn a_whole_capture_is_read_as_the_machine_is() {
    for name in ["xsdt-null-first.txt", "hw-reduced-s5.txt", "mcfg-slimboot.txt"] {
        let ram = Ram::new(&Case::named(name), 0x10_0000);
        let bytes = |at: Hpa, length: usize| ram.bytes(at.as_u64(), length);
        let direct = firmware::PlatformTables::read(Some(Hpa::new(Ram::RSDP)), &bytes);
        let capture = Capture { tables: everything(&ram), ..Capture::new("a test") };
        let again = Capture::from_toml(&capture.to_toml().unwrap()).unwrap();
        assert_eq!(again.memory().platform(), direct, "{name}");
    }
}

/// RSDP, root tables and tables, found by their pointers.
fn everything(ram: &Ram) -> Vec<Table> {
    let table = |at: u64| {
        let length = arch::bytes::u32_at(ram.bytes(at, 8)?, 4)? as usize;
        Some(Table::new(Some(at), ram.bytes(at, length)?.to_vec()))
    };
    let rsdp = ram.bytes(Ram::RSDP, 36).unwrap().to_vec();
    let root = arch::bytes::u64_at(&rsdp, 24).filter(|at| *at != 0);
    let mut found = vec![Table::new(Some(Ram::RSDP), rsdp)];
    let Some(root) = root.and_then(table) else { return found };
    let entries = root.bytes.0[36..].chunks_exact(8);
    let entries: Vec<u64> = entries.map(|it| arch::bytes::u64_at(it, 0).unwrap()).collect();
    found.push(root);
    found.extend(entries.into_iter().filter_map(table));
    let dsdt = found.iter().find(|it| it.signature == "FACP");
    let dsdt = dsdt
        .and_then(|fadt| arch::bytes::u32_at(&fadt.bytes.0, 40))
        .and_then(|at| table(at.into()));
    found.extend(dsdt);
    found
}

fn whole() -> Capture {
    let mut capture = machine(vec![function(AT, 4096, &[(0, 0x1234_8086), (0x100, 0x1001_000d)])]);
    capture.functions[0].bar_sizes = vec![Some(0x4000), None, Some(0)];
    capture.functions[0].driver = Some(String::from("nvme"));
    capture.system = Some(String::from("a \"machine\""));
    capture.missing.push(String::from("nothing"));
    capture.cpus.push(Cpu { apic_id: 2, kind: 0, package: Some(0), core: Some(1), numa: None });
    let mut kind = CpuKind { microcode: Some(u64::MAX), ..CpuKind::default() };
    kind.cpuid.0.insert((7, 1), [1, 2, 3, u32::MAX]);
    kind.msrs.0.insert(0x480, u64::MAX);
    capture.cpu_kinds.push(kind);
    let kind = MemoryKind::AcpiReclaimable;
    capture.memory.push(MemoryRange { start: 1 << 63, length: 0x1000, kind });
    capture.iommu_units.push(IommuUnit { address: 0xfed9_0000, capability: 1, extended: u64::MAX });
    capture.tables.push(Table::new(Some(0xf_0010), b"RSD PTR \0".to_vec()));
    capture
}

#[test]
fn a_capture_comes_back_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["machine.toml", "machine.json"] {
        whole().write(&folder.join(name)).unwrap();
        assert_eq!(Capture::read(&folder.join(name)), Ok(whole()), "{name}");
    }
    let error = Capture::read(folder).unwrap_err().to_string();
    assert!(error.contains("is a folder, and a machine file is wanted"), "{error}");
}

#[test]
fn a_file_that_is_none_says_why() {
    let text = whole().to_toml().unwrap();
    for (text, sentence) in [
        (text.replace("format = 1", "format = 2"), "its format is 2, and this version"),
        (text.replace("0xfed90000", "fed90000"), "\"fed90000\" is no number"),
        (text.replace("00:04.0", "00:24.0"), "a PCI function is written bus:device.function"),
        (text.replace("acpi-reclaimable", "free"), "unknown variant `free`"),
        (text.replace("0000 86803412", "0000 8680341"), "is no row of bytes"),
        (text.replace("driver", "river"), "unknown field `river`"),
        (String::from("[[guest]]\nname = \"linux\"\n"), "no machine file that `nexit probe` wrote"),
        (String::new(), "missing field `format`"),
    ] {
        let error = Capture::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    }
}

/// A root port with isolation off, as an idle firmware leaves it, and a device with an RMRR behind it.
#[test]
fn the_view_is_what_the_boot_computes() {
    let (port, behind) = (Bdf::new(0, 1, 0), Bdf::new(1, 0, 0));
    let bridge = function(
        port,
        4096,
        &[
            (0, 0x1234_8086),
            (4, 1 << 20),
            (8, 0x0604_0000),
            (0xc, 1 << 16),
            (0x18, 0x0001_0100),
            (0x34, 0x40),
            (0x40, 0x0042_0010),
            (0x100, 0x0001_000d),
            (0x104, 0x1f),
        ],
    );
    let device = function(behind, 4096, &[(0, 0x1234_8086), (8, 0x0108_0200)]);
    let stray = function(Bdf::new(9, 0, 0).in_segment(1), 4096, &[(0, 0x1234_8086)]);
    let case = Case::parse(
        "table APIC\nd fee00000 1\nlapic 0 0 1\ntable MCFG\nzero 8\nmcfg e0000000 0 0 ff\n\
         table DMAR\nhex 26 1\nzero a\ndrhd 1 0 fed90000\nrmrr 0 1000 1fff\nscope 1 0 0 1.0/0.0",
    );
    let mut capture = machine(vec![bridge, device, stray]);
    capture.tables = tables(&case);
    let view = capture.view();
    assert_eq!(view.functions.iter().map(|it| it.bdf).collect::<Vec<_>>(), [port, behind]);
    assert_eq!(view.unreached, [Bdf::new(9, 0, 0).in_segment(1)]);
    assert_eq!(view.groups.group(behind).count(), 1, "isolation is switched on");
    assert!(view.dmar().unwrap().interrupt_remapping());
    assert_eq!(view.reserved_memory(behind).unwrap().length, 0x1000);
    assert_eq!(view.reserved_memory(port), None);
}
