//! Captured machines for tests, made of words and numbers.

use arch::Bdf;
use capture::{Bytes, Capture, Cpu, CpuKind, Function, IommuUnit, MemoryKind, MemoryRange, Table};
use nexit_cases::Case;

const MIB: u64 = 1 << 20;
/// Tables of a PC with eight CPUs on four cores and one VT-d unit.
const TABLES: &str = "table APIC\nd FEE00000 1\nlapic 0 0 1\nlapic 1 1 1\nlapic 2 2 1\nlapic 3 3 1\n\
    lapic 4 4 1\nlapic 5 5 1\nlapic 6 6 1\nlapic 7 7 1\nioapic 2 fec00000 0\n\
    table MCFG\nq 0\nmcfg e0000000 0 0 ff\n";
const DMAR: &str = "table DMAR\nhex 26 0\nzero a\nflags 1\ndrhd 1 0 fed91000\nscope 3 2 f0 1f.0\n";
/// The unit's own words: queued invalidation, interrupt remapping, extended interrupt mode.
const UNIT: IommuUnit =
    IommuUnit { address: 0xfed9_1000, capability: 0x00d2_008c_4066_0462, extended: 0x00f0_50da };

/// A PC with Intel's CPU, 4 GiB in two pieces, and devices.
pub(crate) fn pc() -> Capture {
    with_tables(&format!("{TABLES}{DMAR}"))
}

/// The same with these tables.
pub(crate) fn with_tables(words: &str) -> Capture {
    let cpu = |id| Cpu { apic_id: id, kind: 0, package: None, core: None, numa: None };
    let mut capture = Capture {
        system: Some("Test PC".into()),
        cpus: (0..8).map(cpu).collect(),
        cpu_kinds: vec![intel()],
        memory: vec![ram(0, 0x9_f000), ram(MIB, 3071 * MIB), ram(4096 * MIB, 1024 * MIB)],
        iommu_units: vec![UNIT],
        functions: devices(),
        ..Capture::new("a test")
    };
    set_tables(&mut capture, &Case::parse(words));
    capture
}

/// The PC's MADT and MCFG with the DMAR table of this case.
pub(crate) fn with_dmar(name: &str) -> Capture {
    let mut capture = with_tables(TABLES);
    let dmar = Case::named(name).table("DMAR");
    capture.tables.push(Table::new(None, dmar));
    capture.iommu_units.clear();
    capture
}

/// The PC without DMAR.
pub(crate) fn without_dmar() -> Capture {
    with_tables(TABLES)
}

/// The PC with one region of the firmware's for each of these (device, function).
pub(crate) fn with_reserved(devices: &[(u8, u8)]) -> Capture {
    let scopes: String = devices
        .iter()
        .map(|(d, f)| format!("rmrr 0 7b800000 7bffffff\nscope 1 0 0 {d:x}.{f:x}\n"))
        .collect();
    with_tables(&format!("{TABLES}{DMAR}{scopes}"))
}

pub(crate) fn set_tables(capture: &mut Capture, case: &Case) {
    capture.tables = case.names().map(|name| Table::new(None, case.table(name))).collect();
}

pub(crate) fn ram(start: u64, length: u64) -> MemoryRange {
    MemoryRange { start, length, kind: MemoryKind::Usable }
}

/// A Skylake server core's words, two threads to a core.
pub(crate) fn intel() -> CpuKind {
    let mut kind = CpuKind { name: Some("a CPU".into()), ..CpuKind::default() };
    for (leaf, registers) in [
        ((0, 0), [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        ((1, 0), [0x5_0654, 0, 1 << 5 | 1 << 21, 0]),
        ((0xb, 0), [1, 2, 1 << 8, 0]),
        ((0xb, 1), [3, 8, 2 << 8 | 1, 0]),
        ((0x8000_0000, 0), [0x8000_0008, 0, 0, 0]),
        ((0x8000_0001, 0), [0, 0, 0, 1 << 20 | 1 << 26]),
        ((0x8000_0008, 0), [46, 0, 0, 0]),
    ] {
        kind.cpuid.0.insert(leaf, registers);
    }
    kind.msrs.0.extend([
        (0x3a, 5),
        (0x480, 0x00da_0400_0000_0004),
        (0x48d, 0x0000_007f_0000_0016),
        (0x48e, 0xfff9_fffe_0400_6172),
        (0x48b, 0x0015_3cff_0000_0000),
        (0x48f, 0x01ff_ffff_0003_6dfb),
        (0x490, 0x0000_ffff_0000_11fb),
        (0x481, 0x0000_007f_0000_0016),
        (0x482, 0xfff9_fffe_0400_6172),
        (0x483, 0x01ff_ffff_0003_6dff),
        (0x484, 0x0000_ffff_0000_11ff),
        (0x485, 0x0000_0000_7004_c1e7),
        (0x486, 0x8000_0021),
        (0x487, 0xffff_ffff),
        (0x488, 0x2000),
        (0x489, 0x0037_67ff),
        (0x48c, 0x0000_0f01_0633_4141),
    ]);
    kind
}

/// A CPU with AMD-V.
pub(crate) fn amd() -> CpuKind {
    let mut kind = intel();
    kind.msrs.0.clear();
    for (leaf, registers) in [
        ((0, 0), [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        ((1, 0), [0, 0, 1 << 21, 0]),
        ((0x8000_0000, 0), [0x8000_001f, 0, 0, 0]),
        ((0x8000_0001, 0), [0, 0, 1 << 2, 1 << 20 | 1 << 26]),
        ((0x8000_000a, 0), [1, 16, 0, 0x8d]),
    ] {
        kind.cpuid.0.insert(leaf, registers);
    }
    kind
}

/// Device, function, class, has more functions, interrupt pin; and what it is in capabilities.
const DEVICES: [(u8, u8, u32, bool, Kind); 12] = [
    (0, 0, 0x06_0000, false, Kind::Plain),
    (2, 0, 0x03_0000, false, Kind::Msi),
    (3, 0, 0x07_0002, false, Kind::Pin),
    (4, 0, 0x01_0802, false, Kind::Whole),
    (5, 0, 0x0c_0330, false, Kind::Msi),
    (6, 0, 0x02_0000, true, Kind::Whole),
    (6, 1, 0x02_0000, true, Kind::Whole),
    (0x1f, 0, 0x06_0100, true, Kind::Plain),
    (0x1f, 2, 0x01_0601, true, Kind::Msi),
    (0x1f, 3, 0x0c_0500, true, Kind::Pin),
    (7, 0, 0x06_0400, false, Kind::Bridge(1)),
    (8, 0, 0x08_0600, false, Kind::Plain),
];

/// Which capabilities.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    /// An interrupt pin.
    Pin,
    /// A pin and MSI.
    Msi,
    /// MSI-X with 17 messages, and Function Level Reset.
    Whole,
    /// A root port that leads to this bus.
    Bridge(u8),
}

fn devices() -> Vec<Function> {
    let mut functions: Vec<Function> = DEVICES
        .iter()
        .map(|(device, function, class, multi, kind)| {
            self::function(Bdf::new(0, *device, *function), *class, *multi, *kind)
        })
        .collect();
    // Behind the port.
    functions.push(function(Bdf::new(1, 0, 0), 0x02_8000, false, Kind::Msi));
    functions
}

/// Where the BARs of the functions of a bus are: a MiB each.
fn window(bus: u8) -> u32 {
    0xd000_0000 | u32::from(bus) << 20
}

fn function(at: Bdf, class: u32, multi: bool, kind: Kind) -> Function {
    let mut bytes = vec![0; 256];
    let mut put =
        |offset: usize, part: &[u8]| bytes[offset..offset + part.len()].copy_from_slice(part);
    put(0, &[0x86, 0x80, 0x34, 0x12]);
    put(8, &(class << 8).to_le_bytes());
    put(0xe, &[u8::from(multi) << 7]);
    let mut bar_sizes = vec![Some(0); 7];
    match kind {
        Kind::Plain => {}
        Kind::Pin => put(0x3d, &[1]),
        Kind::Msi => {
            put(0x3d, &[1]);
            put(0x06, &[0x10]);
            put(0x34, &[0x40]);
            put(0x40, &[5, 0, 0x80, 0]);
        }
        Kind::Whole => {
            put(0x3d, &[1]);
            put(0x06, &[0x10]);
            put(0x34, &[0x40]);
            // MSI-X: table at the start of BAR 0, pending bits behind it.
            put(0x40, &[0x11, 0x60, 16, 0, 0, 0, 0, 0, 0, 8, 0, 0]);
            // PCI Express endpoint with Function Level Reset.
            put(0x60, &[0x10, 0, 2, 0, 0, 0, 0, 0x10]);
            let own = u32::from(at.device()) << 15 | u32::from(at.function() & 1) << 14;
            put(0x10, &(window(at.bus()) | own).to_le_bytes());
            bar_sizes[0] = Some(0x4000);
        }
        Kind::Bridge(bus) => {
            put(0xe, &[1]);
            put(0x18, &[0, bus, bus]);
            let memory = (window(bus) >> 16) as u16;
            put(0x20, &memory.to_le_bytes());
            put(0x22, &memory.to_le_bytes());
            put(0x06, &[0x10]);
            put(0x34, &[0x40]);
            put(0x40, &[0x10, 0, 0x42, 0]);
        }
    }
    Function {
        at,
        name: None,
        driver: None,
        iommu_group: None,
        numa: None,
        bar_sizes,
        config: Bytes(bytes),
    }
}
