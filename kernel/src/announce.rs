//! What the log says of the machine, for who helps from afar; the words are `banner`'s.

use alloc::string::String;
use core::fmt::Write as _;

use arch::machine::CpuidResult;
use banner::{Cpu, Kinds, SvmWords, Topology, Words};
use boot::{BootInfo, MemoryKind};
use cpu::instructions::{cpuid, read_msr, write_msr};
use plan::Vendor;

use crate::backend;
use crate::console::logln;
use crate::hardware::Hardware;
use crate::processors;
use crate::refusal::{Refusal, refuse};

fn read_cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    cpuid(leaf, subleaf)
}

/// Which CPU it is.
pub(crate) fn processor() {
    logln!("CPU: {}", Cpu::read(read_cpuid, microcode()));
}

/// The microcode's revision (SDM "Microcode Update Resources": the signature is loaded by CPUID after
/// IA32_BIOS_SIGN_ID was cleared; AMD has the patch level in the same MSR's low half).
pub(crate) fn microcode() -> Option<u32> {
    const IA32_BIOS_SIGN_ID: u32 = 0x8b;
    const GENUINE_INTEL_EBX: u32 = 0x756e_6547;
    const AUTHENTIC_AMD_EBX: u32 = 0x6874_7541;
    match cpuid(0, 0).ebx {
        GENUINE_INTEL_EBX => {
            // SAFETY: every CPU of this maker with 64 bits has the MSR, and this is how it is read.
            unsafe { write_msr(IA32_BIOS_SIGN_ID, 0) };
            let _ = cpuid(1, 0);
            // SAFETY: as above.
            Some((unsafe { read_msr(IA32_BIOS_SIGN_ID) } >> 32) as u32)
        }
        // SAFETY: every CPU of this maker with 64 bits has the MSR.
        AUTHENTIC_AMD_EBX => Some(unsafe { read_msr(IA32_BIOS_SIGN_ID) } as u32),
        _ => None,
    }
}

/// What its virtualization can do, in one line that can be pasted into a table of CPUs.
pub(crate) fn capabilities(vendor: Vendor) {
    let width = cpuid(0x8000_0008, 0).eax & 0xff;
    match vendor {
        Vendor::AmdV => logln!("SVM: {} width={width}", SvmWords(cpuid(0x8000_000a, 0))),
        Vendor::VtX => logln!("VMX: {} width={width}", Words(&backend::capability_msrs())),
    }
}

/// What there is beside the CPU, and what is missing.
pub(crate) fn machine(hardware: &Hardware, info: &BootInfo<'_>) {
    let (found, started) = (hardware.cpus.len(), hardware.started.len());
    let mut cpus = String::new();
    if let Some(topology) = Topology::read(read_cpuid) {
        let counts = topology.count(hardware.started.iter().map(|id| id.0));
        // Writing to a string never fails.
        let _ = write!(cpus, ": {counts}");
        if topology.hybrid() {
            let kinds = processors::kinds(&hardware.started);
            let _ = write!(cpus, "; of several kinds: {}", Kinds(&kinds));
        }
    }
    logln!("CPUs: {found} found, {started} started{cpus}");
    let usable = info.memory.iter().filter(|region| region.kind == MemoryKind::Usable);
    let (bytes, regions) =
        usable.fold((0, 0), |(bytes, count), region| (bytes + region.range.length, count + 1));
    let free = hardware.memory.available();
    logln!("memory: {} MiB usable in {regions} regions, {} MiB free", bytes >> 20, free >> 20);
    let mut firmware =
        String::from(if info.uefi { "UEFI" } else { "BIOS, or unknown to the loader" });
    for origin in &hardware.origins {
        // As above.
        let _ = write!(firmware, "; {origin}");
    }
    logln!("firmware: {firmware}");
    let bridges = hardware.functions.iter().filter(|it| it.is_infrastructure()).count();
    logln!("PCI: {} functions, of these {bridges} bridges and similar", hardware.functions.len());
    missing(hardware);
}

/// What this machine lacks, and what that costs.
fn missing(hardware: &Hardware) {
    if hardware.iommu.is_none() {
        let why = &hardware.no_iommu;
        logln!("missing: an IOMMU ({why}): guests with devices need unsafe_no_iommu");
    }
    if hardware.hpet.is_none() && cpuid(0x8000_0001, 0).ecx >> 2 & 1 != 0 {
        logln!(
            "missing: an HPET: no watchdog, a guest that hangs with interrupts off cannot be stopped"
        );
    }
    if hardware.pm_timer.is_none() {
        logln!("missing: the ACPI timer: guests read a virtual one; each read exits");
    }
    if hardware.soft_off.is_none() {
        logln!("missing: the way to switch off (\\_S5): the machine halts after the last guest");
    }
}

/// The longer form, and the sentence with which a probe ends.
pub(crate) fn probe(hardware: &Hardware) -> Refusal {
    for (index, id) in hardware.cpus.iter().enumerate() {
        let state = if hardware.started.contains(id) { "" } else { ", did not start" };
        logln!("CPU {index}: APIC identifier {id}{state}");
    }
    for io_apic in hardware.io_apics {
        let (id, first, inputs) = (io_apic.id, io_apic.first_gsi, io_apic.inputs);
        logln!("I/O APIC {id}: interrupts {first} to {}", first + inputs.saturating_sub(1));
    }
    for function in &hardware.functions {
        let (bdf, owner) = (function.bdf, hardware.owner(function.bdf));
        let (vendor, device, class) = (function.vendor, function.device, function.class);
        logln!("{bdf} {vendor:04x}:{device:04x} class {class:06x} {owner}");
    }
    for function in &hardware.functions {
        if let Some(range) = hardware.reserved_memory(function.bdf) {
            logln!("{}: the firmware keeps using memory at {} (RMRR)", function.bdf, range.start);
        }
    }
    refuse!("nexit.toml: probe = true: the machine is described above; no guest is started")
}
