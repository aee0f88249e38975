//! The machine's facts and handles: read-only once [`crate::boot_order`] has found them.

use alloc::string::String;
use alloc::vec::Vec;

use arch::address::HpaRange;
use arch::msr::PortRange;
use arch::{ApicId, Bdf, Hpa, Width};
use boot::Module;
use cpu::config_space::{EcamWindow, MachineConfigSpace};
use cpu::hpet::Hpet;
use cpu::io_apic::IoApic;
use firmware::{Reset, SoftOff};
use guest::lines::Wired;
use guest::memory_map::GpaRange;
use iommu::dmar::Dmar;
use pci::header::HeaderType;

use crate::machine::MachineClock;
use crate::memory::Memory;
use crate::routes::SharedIommu;

/// The machine, once it is the hypervisor's.
pub(crate) struct Hardware {
    pub(crate) memory: Memory,
    pub(crate) modules: &'static [Module<'static>],
    /// In the order in which the configuration counts them.
    pub(crate) cpus: Vec<ApicId>,
    /// Those that answered; the boot processor is the first.
    pub(crate) started: Vec<ApicId>,
    pub(crate) boot_processor: ApicId,
    pub(crate) clock: MachineClock,
    pub(crate) io_apics: &'static [IoApic],
    pub(crate) hpet: Option<Hpet>,
    pub(crate) ecam: &'static [EcamWindow],
    pub(crate) config: MachineConfigSpace,
    pub(crate) functions: Vec<pci::Function>,
    /// What their BARs said before any guest ran.
    pub(crate) claims: pci::Claims,
    pub(crate) groups: pci::Groups,
    pub(crate) iommu: Option<SharedIommu>,
    pub(crate) dmar: Option<Dmar<'static>>,
    /// Why there is no IOMMU, where there is none.
    pub(crate) no_iommu: String,
    /// The RAM of the one identity-mapped guest, where there is no IOMMU and the configuration
    /// accepts that.
    pub(crate) identity_ram: Option<Vec<GpaRange>>,
    pub(crate) soft_off: Option<SoftOff>,
    /// How to reset the machine.
    pub(crate) resets: Vec<Reset>,
    /// The manufacturer of the firmware's tables.
    pub(crate) origins: Vec<firmware::Origin>,
    /// The ACPI timer, which all guests read.
    pub(crate) pm_timer: Option<PortRange>,
    /// Global system interrupts that may be guests'.
    pub(crate) guests_lines: Vec<u32>,
    /// How each interrupt of the ISA bus is wired.
    pub(crate) isa_lines: [Wired; 16],
    /// The name of each guest and its functions, once the configuration fits.
    pub(crate) owned: Vec<(String, Vec<Bdf>)>,
}

impl Hardware {
    /// The boot module of this name.
    pub(crate) fn module(&self, name: &str) -> Option<&Module<'static>> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// The guest that has a function, by its index.
    pub(crate) fn owners_index(&self, function: Bdf) -> Option<usize> {
        self.owned.iter().position(|(_, functions)| functions.contains(&function))
    }

    /// The name of the guest that has a function, or `-`.
    pub(crate) fn owner(&self, function: Bdf) -> &str {
        let owner = self.owners_index(function).and_then(|index| self.owned.get(index));
        owner.map_or("-", |(name, _)| name)
    }

    /// How an interrupt of the ISA bus is wired.
    pub(crate) fn isa_line(&self, irq: u8) -> Wired {
        let straight = Wired { gsi: irq.into(), active_low: false, level: false };
        self.isa_lines.get(usize::from(irq)).copied().unwrap_or(straight)
    }

    /// Address, Capability and Extended Capability Register of each unit of the IOMMU.
    pub(crate) fn iommu_units(&self) -> impl Iterator<Item = (Hpa, u64, u64)> {
        let units = self.dmar.as_ref().map(Dmar::units);
        units.into_iter().flatten().map(|unit| {
            let read = |offset| {
                // SAFETY: the boot order has mapped the registers, and reading these changes nothing.
                unsafe {
                    cpu::physical::mmio_read(unit.registers.wrapping_add(offset), Width::Qword)
                }
            };
            (unit.registers, read(8), read(0x10))
        })
    }

    /// Whether a unit of the IOMMU covers this function.
    pub(crate) fn is_covered(&self, function: Bdf) -> bool {
        let space = self.config;
        self.dmar.is_some_and(|dmar| {
            dmar.drhd_for(function, &move |bridge| buses_behind(&space, bridge)).is_some()
        })
    }

    /// Memory to which the firmware keeps using this function for DMA.
    pub(crate) fn reserved_memory(&self, function: Bdf) -> Option<HpaRange> {
        let space = self.config;
        self.dmar
            .and_then(|dmar| dmar.rmrr_for(function, &move |bridge| buses_behind(&space, bridge)))
    }
}

/// The buses behind a PCI-to-PCI bridge.
pub(crate) fn buses_behind(
    space: &MachineConfigSpace,
    bridge: Bdf,
) -> Option<core::ops::RangeInclusive<u8>> {
    match pci::Function::read(space, bridge)?.header {
        HeaderType::Bridge { secondary, subordinate } => Some(secondary..=subordinate),
        HeaderType::Device | HeaderType::Unknown(_) => None,
    }
}
