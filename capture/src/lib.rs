//! The machine file: what a machine reports about itself, unchanged.
//!
//! A [`Capture`] holds claims only: CPUID leaves, capability MSRs, the bytes of the ACPI tables and of
//! configuration space. The hypervisor's own crates draw the conclusions (groups, reserved memory, whether a guest can
//! run); they read a capture as they read a machine:
//!
//! * [`Capture::config_space`] answers as the machine's configuration space would ([`space`])
//! * [`Capture::memory`] has the ACPI tables where the machine has them ([`memory`])
//! * [`CpuKind::cpuid`], [`CpuKind::vmx`] and [`CpuKind::svm`] answer for a CPU ([`cpu`])
//! * [`Capture::view`] is all of it as the boot sees it ([`view`])
//!
//! Invariant: unknown values are `None`, or missing from their list, and [`Capture::missing`] says why.
//! A file may also be written by hand: no content makes this crate panic.
#![forbid(unsafe_code)]

pub mod bytes;
pub mod cpu;
pub mod file;
pub mod memory;
mod numbers;
pub mod space;
pub mod view;

use arch::Bdf;
use serde::{Deserialize, Serialize};

pub use bytes::Bytes;
pub use cpu::{Cpu, CpuKind, Leaves, Words};
pub use file::FileError;
pub use memory::TableMemory;
pub use space::CapturedSpace;
pub use view::View;

/// The format of the file that this crate writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// What a machine reports about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// Of the file: [`FORMAT`].
    pub format: u32,
    /// Where all this was read, such as `this Linux` or the name of a folder.
    pub source: String,
    /// The maker's name of the machine and the version of its firmware, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The firmware is UEFI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uefi: Option<bool>,
    /// What could not be read, why, and what to do about it: a sentence each.
    #[serde(default)]
    pub missing: Vec<String>,
    /// The CPUs that an operating system has found; the order is the system's, not the MADT's.
    #[serde(default, rename = "cpu")]
    pub cpus: Vec<Cpu>,
    /// CPUID and MSRs of the CPUs, each kind once.
    #[serde(default, rename = "cpu_kind")]
    pub cpu_kinds: Vec<CpuKind>,
    /// The memory map, sorted by address.
    #[serde(default)]
    pub memory: Vec<MemoryRange>,
    /// The firmware's ACPI tables; the RSDP and the root tables if they are known.
    #[serde(default, rename = "table")]
    pub tables: Vec<Table>,
    /// VT-d units.
    #[serde(default, rename = "iommu_unit")]
    pub iommu_units: Vec<IommuUnit>,
    /// PCI functions.
    #[serde(default, rename = "function")]
    pub functions: Vec<Function>,
}

impl Capture {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            format: FORMAT,
            source: source.into(),
            system: None,
            uefi: None,
            missing: Vec::new(),
            cpus: Vec::new(),
            cpu_kinds: Vec::new(),
            memory: Vec::new(),
            tables: Vec::new(),
            iommu_units: Vec::new(),
            functions: Vec::new(),
        }
    }

    /// The machine's configuration space: every write stays in the answer.
    #[must_use]
    pub fn config_space(&self) -> CapturedSpace {
        CapturedSpace::new(self)
    }

    /// Memory with the ACPI tables in it.
    #[must_use]
    pub fn memory(&self) -> TableMemory {
        TableMemory::new(&self.tables)
    }

    /// The machine as the boot sees it.
    #[must_use]
    pub fn view(&self) -> View {
        View::new(self)
    }

    /// The kind of a CPU.
    #[must_use]
    pub fn kind_of(&self, cpu: &Cpu) -> Option<&CpuKind> {
        self.cpu_kinds.get(cpu.kind)
    }

    /// The record of the function at `at`.
    #[must_use]
    pub fn function(&self, at: Bdf) -> Option<&Function> {
        self.functions.iter().find(|function| function.at == at)
    }
}

/// The use of a range of memory, as in [`boot::MemoryKind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryKind {
    Usable,
    AcpiReclaimable,
    AcpiNvs,
    Persistent,
    Reserved,
    Mmio,
    Defective,
}

impl From<MemoryKind> for boot::MemoryKind {
    fn from(kind: MemoryKind) -> Self {
        match kind {
            MemoryKind::Usable => Self::Usable,
            MemoryKind::AcpiReclaimable => Self::AcpiReclaimable,
            MemoryKind::AcpiNvs => Self::AcpiNvs,
            MemoryKind::Persistent => Self::Persistent,
            MemoryKind::Reserved => Self::Reserved,
            MemoryKind::Mmio => Self::Mmio,
            MemoryKind::Defective => Self::Defective,
        }
    }
}

/// A range of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRange {
    /// First byte.
    #[serde(with = "numbers::hex")]
    pub start: u64,
    /// Number of bytes.
    #[serde(with = "numbers::hex")]
    pub length: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// An ACPI table, whole; or the RSDP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Its signature, for human readers; the RSDP's is `RSD PTR`.
    pub signature: String,
    /// Its address in the machine's memory, if known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "numbers::optional_hex")]
    pub address: Option<u64>,
    /// All of it, header included.
    pub bytes: Bytes,
}

impl Table {
    /// The table that these bytes are.
    #[must_use]
    pub fn new(address: Option<u64>, bytes: Vec<u8>) -> Self {
        let length = if bytes.starts_with(memory::RSDP_SIGNATURE) { 7 } else { 4 };
        let signature = bytes.get(..length).unwrap_or_default();
        let signature = signature.iter().map(|byte| {
            if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' }
        });
        Self { signature: signature.collect(), address, bytes: Bytes(bytes) }
    }
}

/// A VT-d unit's own words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IommuUnit {
    /// Where its registers are.
    #[serde(with = "numbers::hex")]
    pub address: u64,
    /// Capability Register.
    #[serde(with = "numbers::hex")]
    pub capability: u64,
    /// Extended Capability Register.
    #[serde(with = "numbers::hex")]
    pub extended: u64,
}

/// A PCI function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Its address.
    #[serde(with = "numbers::bdf")]
    pub at: Bdf,
    /// What people call it, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The driver that has it, where an operating system runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The group in which Linux has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
    /// The NUMA node that it is near.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// Sizes of its BARs in bytes, in the order of the registers, then of its expansion ROM; 0
    /// if there is none, `None` if it is unknown. The second register of a 64-bit BAR has 0.
    #[serde(default, with = "numbers::sizes")]
    pub bar_sizes: Vec<Option<u64>>,
    /// Configuration space from its first byte: 64 bytes, 256, or 4096.
    pub config: Bytes,
}

#[cfg(test)]
mod tests;
