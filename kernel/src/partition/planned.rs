//! What the configuration comes to on this machine: all refusals that `plan` can make, before the first guest
//! is built.

use alloc::string::ToString as _;
use alloc::vec::Vec;

use arch::Bdf;
use arch::machine::CpuidResult;
use banner::Topology;
use config::Config;
use cpu::instructions::cpuid;
use mem::FrameAllocator;
use plan::{Cpu, File, Machine};

use super::files::{module, module_bytes};
use super::memory::low_window;
use crate::backend::Backend;
use crate::console::{self, logln};
use crate::hardware::Hardware;
use crate::refusal::Refusal;

/// The functions of each guest, in the order of the file. Of several things that are wrong the first is
/// what is refused; the others are in the log.
pub(crate) fn planned<B: Backend>(
    hardware: &Hardware,
    config: &Config,
) -> Result<Vec<Vec<Bdf>>, Refusal> {
    let machine = Machine {
        vendor: B::VENDOR,
        lacks: &|mode| B::support(mode).err().map(|refusal| refusal.to_string()),
        cpus: &cpus(hardware),
        free: hardware.memory.snapshot().unwrap_or(FrameAllocator::new(&[], &[])),
        identity_ram: hardware.identity_ram.as_deref(),
        ecam: low_window(hardware),
        space: &hardware.config,
        functions: &hardware.functions,
        groups: &hardware.groups,
        reserved: &|function| hardware.reserved_memory(function),
        covered: &|function| hardware.is_covered(function),
        no_iommu: hardware.iommu.is_none().then_some(&hardware.no_iommu),
        has_line: &|gsi| hardware.io_apics.iter().any(|io_apic| io_apic.input(gsi).is_some()),
        claims: &hardware.claims,
        isa_line: &|irq| hardware.isa_line(irq),
        console_irq: console::uart().and_then(|it| it.first_port()).and_then(mux::uart::line),
        files: &|_, path| {
            let bytes = module_bytes(module(hardware, path)?);
            Ok(File { size: bytes.len(), bytes })
        },
    };
    let plan = plan::check(config, &machine);
    plan.remarks.iter().for_each(|remark| logln!("{}", remark.words()));
    let mut refusals = plan.refusals.into_iter();
    let Some(first) = refusals.next() else { return Ok(plan.functions) };
    refusals.for_each(|other| logln!("also wrong: {other}"));
    Err(first.into())
}

fn cpus(hardware: &Hardware) -> Vec<Cpu> {
    let ask = |leaf, subleaf| -> CpuidResult { cpuid(leaf, subleaf) };
    let topology = Topology::read(ask);
    let cpu = |id: &arch::ApicId| Cpu {
        id: *id,
        started: hardware.started.contains(id),
        core: topology.map(|topology| topology.core(id.0)),
    };
    hardware.cpus.iter().map(cpu).collect()
}
