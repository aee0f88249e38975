//! `probe = true`: prints the machine as lines from which `nexit probe --from-log` makes a machine file.
//!
//! Invariant: it prints the machine's own data, not conclusions. On a slow line 200 KiB are the limit of patience, so
//! zeroes are left out and, beyond limits, tables with AML and extended configuration space.

use alloc::vec::Vec;
use core::fmt;

use arch::machine::{ConfigSpace as _, CpuidResult};
use arch::{Bdf, Hpa, Width};
use banner::Lines;
use boot::{BootInfo, MemoryKind};
use cpu::instructions::{cpuid, read_msr};
use pci::Function;
use pci::header::HeaderType;

use crate::console::{self, logln};
use crate::hardware::Hardware;
use crate::memory;
use crate::{announce, backend};

/// Above this many bytes, the extended configuration space of functions is left out.
const MAX_LENGTH: usize = 100 << 10;

/// The writer of the lines, and its sources.
struct Probe<'a, F> {
    lines: Lines<F>,
    hardware: &'a Hardware,
}

/// Prints the lines, if there is a serial line.
pub(crate) fn print(hardware: &Hardware, info: &BootInfo<'_>) {
    if console::uart().is_none() {
        logln!("no serial line: what `nexit probe --from-log` reads is not printed");
        return;
    }
    logln!("the machine in lines for `nexit probe --from-log`: this may take 20 seconds");
    let lines = Lines::new(|line: fmt::Arguments<'_>| logln!("{line}"));
    let mut probe = Probe { lines, hardware };
    probe.lines.line(format_args!("begin 1 {}", env!("CARGO_PKG_VERSION")));
    probe.lines.line(format_args!("uefi {}", u8::from(info.uefi)));
    probe.cpus();
    for region in info.memory.iter() {
        let (start, length) = (region.range.start.as_u64(), region.range.length);
        probe.lines.line(format_args!("memory {start:x} {length:x} {}", name(region.kind)));
    }
    probe.tables(info);
    probe.functions();
    probe.lines.end();
}

const fn name(kind: MemoryKind) -> &'static str {
    match kind {
        MemoryKind::Usable => "usable",
        MemoryKind::AcpiReclaimable => "acpi-reclaimable",
        MemoryKind::AcpiNvs => "acpi-nvs",
        MemoryKind::Persistent => "persistent",
        MemoryKind::Reserved => "reserved",
        MemoryKind::Mmio => "mmio",
        MemoryKind::Defective => "defective",
    }
}

/// Whether a function is of the kinds of which a server's processors have many: memory controllers, system
/// peripherals, counters (PCI Code and ID Assignment Specification, "Class Codes").
const fn is_of_a_processor(class: u32) -> bool {
    matches!(class >> 16, 0x05 | 0x08 | 0x11)
}

impl<F: FnMut(fmt::Arguments<'_>)> Probe<'_, F> {
    /// The CPUs, and CPUID and MSRs of the boot processor.
    fn cpus(&mut self) {
        for id in &self.hardware.cpus {
            let started = u8::from(self.hardware.started.contains(id));
            self.lines.line(format_args!("cpu {:x} {started}", id.0));
        }
        if let Some(revision) = announce::microcode() {
            self.lines.line(format_args!("microcode {revision:x}"));
        }
        let read = |leaf: u32, subleaf: u32| cpuid(leaf, subleaf);
        banner::leaves(read, &mut |leaf, subleaf, CpuidResult { eax, ebx, ecx, edx }| {
            self.lines
                .line(format_args!("cpuid {leaf:x} {subleaf:x} {eax:x} {ebx:x} {ecx:x} {edx:x}"));
        });
        let mut found = Vec::new();
        let asked = core::cell::RefCell::new(&mut found);
        let read = |number: u32| {
            // SAFETY: ring 0, and the MSR is one that the CPU has.
            let value = unsafe { read_msr(number) };
            asked.borrow_mut().push((number, value));
            value
        };
        backend::read_capabilities(cpuid, read);
        for (number, value) in found {
            self.lines.line(format_args!("msr {number:x} {value:x}"));
        }
        for (at, capability, extended) in self.hardware.iommu_units() {
            let at = at.as_u64();
            self.lines.line(format_args!("unit {at:x} {capability:x} {extended:x}"));
        }
    }

    /// The ACPI tables, without licence keys and without those that are too long.
    fn tables(&mut self, info: &BootInfo<'_>) {
        /// Limit in bytes for tables with AML and for unknown tables.
        const MAX_OTHERS: usize = 24 << 10;
        const KNOWN: &[&[u8; 4]] = &[
            b"RSD ", b"RSDT", b"XSDT", b"APIC", b"FACP", b"MCFG", b"DMAR", b"IVRS", b"HPET",
            b"SPCR", b"DBG2", b"SRAT",
        ];
        const LICENCES: &[&[u8; 4]] = &[b"MSDM", b"SLIC"];
        let memory = self.hardware.memory;
        let bytes = |at: Hpa, length: usize| memory::firmware_bytes(memory, info, at, length);
        let mut others = MAX_OTHERS;
        firmware::each_table(info.rsdp, &bytes, &mut |at, table| {
            let at = at.as_u64();
            let starts = |list: &[&[u8; 4]]| list.iter().any(|it| table.starts_with(*it));
            let whole = !starts(LICENCES) && (starts(KNOWN) || table.len() <= others);
            if whole && !starts(KNOWN) {
                others -= table.len();
            }
            let signature = table.get(..4).and_then(|it| core::str::from_utf8(it).ok());
            let signature = signature.unwrap_or("????").trim_end();
            let words = if whole { "" } else { " left out" };
            self.lines.line(format_args!("table {at:x} {:x} {signature}{words}", table.len()));
            if whole {
                self.lines.bytes(format_args!("t {at:x}"), table);
            }
        });
    }

    /// Every function's configuration space and the sizes of its BARs; bridges and the like come last.
    /// Bridges' BARs are not sized: while a bridge does not decode, the devices behind it are cut off.
    fn functions(&mut self) {
        let (last, first): (Vec<&Function>, Vec<&Function>) =
            self.hardware.functions.iter().partition(|it| is_of_a_processor(it.class));
        for function in first.into_iter().chain(last) {
            let mut space = self.hardware.config;
            let at = function.bdf;
            let mut bytes = Vec::new();
            let extended = space.read(at, pci::capability::EXTENDED, Width::Dword) != u32::MAX;
            let room = self.lines.length() < MAX_LENGTH;
            let length: u16 = if extended && room { 0x1000 } else { 0x100 };
            for offset in (0..length).step_by(4) {
                bytes.extend(space.read(at, offset, Width::Dword).to_le_bytes());
            }
            let sized = function.header == HeaderType::Device && !function.is_infrastructure();
            if sized {
                let bars = pci::bar::size_bars(&mut space, at, 6);
                let [a, b, c, d, e, f] = bars.map(|bar| bar.map_or(0, |bar| bar.size));
                let sizes = format_args!("{a:x} {b:x} {c:x} {d:x} {e:x} {f:x}");
                self.function(at, length, sizes, &bytes);
            } else {
                self.function(at, length, format_args!("?"), &bytes);
            }
            if extended && !room {
                self.lines.line(format_args!("short {at}"));
            }
        }
    }

    fn function(&mut self, at: Bdf, length: u16, sizes: fmt::Arguments<'_>, bytes: &[u8]) {
        self.lines.line(format_args!("pci {at} {length:x} {sizes}"));
        self.lines.bytes(format_args!("c {at}"), bytes);
    }
}
