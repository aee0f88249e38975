//! The machine that QEMU emulates for `nexit run`, as a machine file: written by hand, so that what
//! `nexit check` says of it and what the hypervisor says on it come from two sources.

use capture::{Bytes, Capture, Cpu, CpuKind, Function, MemoryKind, MemoryRange, Table};
use nexit_cases::Case;

const MIB: u64 = 1 << 20;
const MADT: &str =
    "table APIC\nd fee00000 1\nlapic 0 0 1\nlapic 1 1 1\nioapic 0 fec00000 0\niso 0 2 0\n";
const MCFG: &str = "table MCFG\nq 0\nmcfg b0000000 0 0 ff\n";
const DMAR: &str = "table DMAR\nhex 26 0\nzero a\nflags 1\ndrhd 1 0 fed90000\nscope 3 0 ff 0.0\n";

/// A function: its address, vendor and device, class; it is one of several, it has an interrupt pin.
pub type Row = (&'static str, u32, u32, bool, bool);

/// What is always there.
const ALWAYS: [Row; 4] = [
    ("00:00.0", 0x29c0_8086, 0x06_0000, false, false),
    ("00:1f.0", 0x2918_8086, 0x06_0100, true, false),
    ("00:1f.2", 0x2922_8086, 0x01_0601, true, true),
    ("00:1f.3", 0x2930_8086, 0x0c_0500, true, true),
];

/// Two CPUs with AMD-V, 1 GiB, and these functions beside what is always there; `dmar` is what stands in
/// the DMAR table beside its unit, or `None` where there is no such table.
///
/// # Panics
/// An address cannot be read.
#[must_use]
pub fn q35(devices: &[Row], dmar: Option<&str>) -> Capture {
    let cpu = |apic_id| Cpu { apic_id, kind: 0, package: None, core: None, numa: None };
    let mut rows: Vec<Row> = ALWAYS.iter().chain(devices).copied().collect();
    rows.sort_unstable();
    let dmar = dmar.map_or(String::new(), |more| format!("{DMAR}{more}\n"));
    let case = Case::parse(&format!("{MADT}{MCFG}{dmar}"));
    let ram = |start, end| MemoryRange { start, length: end - start, kind: MemoryKind::Usable };
    Capture {
        cpus: vec![cpu(0), cpu(1)],
        cpu_kinds: vec![amd()],
        memory: vec![ram(0, 0x9_fc00), ram(MIB, 1023 * MIB + 0xe_0000)],
        tables: case.names().map(|name| Table::new(None, case.table(name))).collect(),
        functions: rows.iter().map(function).collect(),
        ..Capture::new("by hand")
    }
}

fn amd() -> CpuKind {
    let mut kind = CpuKind::default();
    for (leaf, registers) in [
        ((0, 0), [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        ((1, 0), [0x80_0f12, 0, 1 << 21, 0]),
        ((0x8000_0000, 0), [0x8000_001f, 0, 0, 0]),
        ((0x8000_0001, 0), [0, 0, 1 << 2, 1 << 20]),
        ((0x8000_0008, 0), [40, 0, 0, 0]),
        ((0x8000_000a, 0), [1, 16, 0, 1]),
    ] {
        kind.cpuid.0.insert(leaf, registers);
    }
    kind
}

fn function(row: &Row) -> Function {
    let (at, identity, class, of_several, pin) = *row;
    let at = at.parse();
    assert!(at.is_ok(), "{row:?}");
    let mut bytes = vec![0; 256];
    bytes[..4].copy_from_slice(&identity.to_le_bytes());
    bytes[8..12].copy_from_slice(&(class << 8).to_le_bytes());
    bytes[0xe] = u8::from(of_several) << 7;
    bytes[0x3d] = u8::from(pin);
    Function {
        at: at.unwrap_or(arch::Bdf::new(0, 0, 0)),
        name: None,
        driver: None,
        iommu_group: None,
        numa: None,
        bar_sizes: vec![Some(0); 7],
        config: Bytes(bytes),
    }
}
