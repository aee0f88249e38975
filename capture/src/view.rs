//! The machine as the boot sees it: what the hypervisor's crates make of a capture.

use std::ops::RangeInclusive;

use arch::address::HpaRange;
use arch::{ApicId, Bdf};
use firmware::{FirmwareError, PlatformTables};
use iommu::dmar::Dmar;
use pci::header::HeaderType;
use pci::{Bar, Function, Groups};

use crate::{Capture, CapturedSpace, CpuKind};

/// A captured machine after the steps of the boot that ask no device: tables read, functions found,
/// isolation switched on, groups found.
#[derive(Clone, Debug)]
pub struct View {
    /// What the firmware's tables say.
    pub platform: Result<PlatformTables, FirmwareError>,
    /// Configuration space, Access Control Services on.
    pub space: CapturedSpace,
    /// The functions that the boot finds, in its order.
    pub functions: Vec<Function>,
    /// Functions that were captured and that the boot does not reach: the MCFG does not name their bus,
    /// or no bridge leads there.
    pub unreached: Vec<Bdf>,
    /// Which functions go together.
    pub groups: Groups,
    /// The kind of the boot processor, or the first.
    pub kind: Option<CpuKind>,
}

impl View {
    pub(crate) fn new(capture: &Capture) -> Self {
        let platform = capture.memory().platform();
        let mut space = capture.config_space();
        let mut functions: Vec<Function> = Vec::new();
        for segment in segments(capture) {
            let buses = (0..=u8::MAX).filter(|bus| reaches(&platform, segment, *bus));
            functions.extend(pci::scan(&space, segment, buses));
        }
        pci::header::leave_out_twins(&space, &mut functions);
        let found = |at: Bdf| functions.iter().any(|function| function.bdf == at);
        let unreached = capture.functions.iter().map(|it| it.at).filter(|at| !found(*at)).collect();
        pci::acs::enable(&mut space, &functions);
        let groups = Groups::new(&space, &functions);
        let first = platform.as_ref().ok().and_then(|it| it.cpus.first());
        let kind = first.and_then(|id| capture.cpus.iter().find(|cpu| cpu.apic_id == id.0));
        let kind = kind.and_then(|cpu| capture.kind_of(cpu)).or(capture.cpu_kinds.first()).cloned();
        Self { platform, space, functions, unreached, groups, kind }
    }

    /// The CPUs, in the order in which the configuration counts them.
    #[must_use]
    pub fn cpus(&self) -> &[ApicId] {
        self.platform.as_ref().map_or(&[], |platform| &platform.cpus)
    }

    /// The BARs of a function.
    #[must_use]
    pub fn bars(&self, function: &Function) -> [Option<Bar>; 6] {
        let registers = match function.header {
            HeaderType::Device => 6,
            HeaderType::Bridge { .. } => 2,
            HeaderType::Unknown(_) => 0,
        };
        pci::bar::size_bars(&mut self.space.clone(), function.bdf, registers)
    }

    /// The DMAR table, or why there is none that can be used.
    ///
    /// # Errors
    /// Why not: the end of a sentence.
    pub fn dmar(&self) -> Result<Dmar<'_>, String> {
        let platform = self.platform.as_ref().map_err(ToString::to_string)?;
        let table = platform.dmar.as_ref().map_err(String::clone)?;
        Dmar::parse(table).map_err(|error| error.to_string())
    }

    /// Memory to which the firmware keeps using this function for DMA.
    #[must_use]
    pub fn reserved_memory(&self, function: Bdf) -> Option<HpaRange> {
        self.dmar().ok()?.rmrr_for(function, &|bridge| self.buses_behind(bridge))
    }

    /// The buses behind a PCI-to-PCI bridge.
    #[must_use]
    pub fn buses_behind(&self, bridge: Bdf) -> Option<RangeInclusive<u8>> {
        match Function::read(&self.space, bridge)?.header {
            HeaderType::Bridge { secondary, subordinate } => Some(secondary..=subordinate),
            HeaderType::Device | HeaderType::Unknown(_) => None,
        }
    }
}

/// The segments of the captured functions, 0 first.
fn segments(capture: &Capture) -> Vec<u16> {
    let mut segments: Vec<u16> = capture.functions.iter().map(|it| it.at.segment()).collect();
    segments.push(0);
    segments.sort_unstable();
    segments.dedup();
    segments
}

/// As `cpu::config_space` reaches: segment 0 by ports too. Without any tables the capture is believed.
fn reaches(platform: &Result<PlatformTables, FirmwareError>, segment: u16, bus: u8) -> bool {
    let Ok(platform) = platform else { return true };
    segment == 0
        || platform.ecam.iter().any(|window| {
            window.segment == segment && (window.first_bus..=window.last_bus).contains(&bus)
        })
}
