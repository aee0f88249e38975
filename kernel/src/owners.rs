//! Whose the machine's addresses are, for [`pci::Claims`]: no BAR of a guest's function may be there.

use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};
use arch::msr::PortRange;
use boot::BootInfo;
use cpu::config_space::EcamWindow;
use firmware::{Platform, Register};
use guest::devices::Devices;
use iommu::dmar::Dmar;
use pci::claims::Owners;

use crate::bring_up::UNIT_REGISTERS;
use crate::console;
use crate::memory::{image, is_ram};

/// All writes to these addresses are interrupts (SDM "Message Signalled Interrupts").
const INTERRUPTS: HpaRange = HpaRange { start: Hpa::new(0xfee0_0000), length: 1 << 20 };
/// What the system board has, not the buses: interrupt controllers, timers, keyboard, DMA, clock.
const SYSTEM_BOARD: PortRange = PortRange { first: 0, last: 0xff };
const PCI_CONFIGURATION: PortRange = PortRange { first: 0xcf8, last: 0xcff };

/// The owners of all that is known to be somebody's.
pub(crate) fn of(info: &BootInfo<'_>, firmware: &Platform, ecam: &[EcamWindow]) -> Owners {
    let mut owners = Owners::default();
    let page = |start| HpaRange { start, length: PAGE_SIZE };
    let memory = &mut owners.memory;
    memory.push((image::whole(), "the hypervisor"));
    let ram = info.memory.iter().filter(|region| is_ram(region.kind));
    memory.extend(ram.map(|region| (region.range, "RAM")));
    memory.push((INTERRUPTS, "the local APICs"));
    memory.extend(firmware.io_apics.iter().map(|it| (page(it.address), "an I/O APIC")));
    memory.extend(firmware.hpet.map(|at| (page(at), "the HPET")));
    memory.extend(ecam.iter().map(|window| (window.range(), "PCI configuration space")));
    let dmar = firmware.dmar.as_ref().ok().and_then(|table| Dmar::parse(table).ok());
    let units = dmar.iter().flat_map(Dmar::units);
    memory.extend(
        units.map(|unit| (HpaRange { start: unit.registers, length: UNIT_REGISTERS }, "an IOMMU")),
    );

    let ports = &mut owners.ports;
    ports.push((SYSTEM_BOARD, "the system board"));
    ports.push((PCI_CONFIGURATION, "PCI's configuration ports"));
    ports.extend(
        console::uart().map(|first| (PortRange { first, last: first | 7 }, "the console's UART")),
    );
    // The hypervisor answers those itself, unless a BAR of the guest's is there.
    ports.extend(Devices::ranges().map(|range| (range, "a virtual device of the guest")));
    let timer = firmware.pm_timer.map(|timer| timer.port);
    ports.extend(timer.map(|first| (PortRange { first, last: first | 3 }, "the ACPI timer")));
    let off = firmware.soft_off.iter().flat_map(firmware::SoftOff::registers);
    for register in off.chain(firmware.reset.map(|reset| reset.register)) {
        match register {
            Register::Port(first) => owners.ports.push((
                PortRange { first, last: first.saturating_add(1) },
                "the register that switches the machine off",
            )),
            Register::Memory(at) => {
                owners.memory.push((page(at.page()), "the register that switches the machine off"));
            }
        }
    }
    owners
}
