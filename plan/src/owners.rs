//! Whose the machine's addresses are, for [`pci::Claims`]: no BAR of a guest's function may be there.

use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};
use arch::msr::PortRange;
use arch::uart::UartPlace;
use firmware::{Block, PlatformTables, Register};
use guest::devices::Devices;
use pci::claims::Owners;

/// All writes to these addresses are interrupts (SDM "Message Signalled Interrupts").
const INTERRUPTS: HpaRange = HpaRange { start: Hpa::new(0xfee0_0000), length: 1 << 20 };
/// What the system board has, not the buses: interrupt controllers, timers, keyboard, DMA, clock.
const SYSTEM_BOARD: PortRange = PortRange { first: 0, last: 0xff };
const PCI_CONFIGURATION: PortRange = PortRange { first: 0xcf8, last: 0xcff };

/// What owns addresses and is not in a table of the firmware.
#[derive(Clone, Debug)]
pub struct Others<R, E, U> {
    /// The hypervisor's image.
    pub image: HpaRange,
    pub ram: R,
    /// Windows to configuration space.
    pub ecam: E,
    /// Registers of the IOMMU's units.
    pub units: U,
    /// The console's UART.
    pub console: Option<UartPlace>,
}

/// The owners of all that is known to be somebody's.
pub fn of(
    firmware: Option<&PlatformTables>,
    others: Others<
        impl Iterator<Item = HpaRange>,
        impl Iterator<Item = HpaRange>,
        impl Iterator<Item = HpaRange>,
    >,
) -> Owners {
    const SOFT_OFF: &str = "the register that switches the machine off";
    let mut owners = Owners::default();
    let page = |start| HpaRange { start, length: PAGE_SIZE };
    let (memory, ports) = (&mut owners.memory, &mut owners.ports);
    memory.push((others.image, "the hypervisor"));
    memory.extend(others.ram.map(|range| (range, "RAM")));
    memory.push((INTERRUPTS, "the local APICs"));
    memory.extend(others.ecam.map(|range| (range, "PCI configuration space")));
    memory.extend(others.units.map(|range| (range, "an IOMMU")));

    ports.push((SYSTEM_BOARD, "the system board"));
    ports.push((PCI_CONFIGURATION, "PCI's configuration ports"));
    if let Some(uart) = others.console {
        let first = uart.first_port();
        let range = first.map(|first| PortRange { first, last: first.saturating_add(7) });
        ports.extend(range.map(|range| (range, "the console's UART")));
        memory.extend(uart.range().map(|range| (range, "the console's UART")));
    }
    // The hypervisor answers those itself, unless a BAR of the guest's is there.
    ports.extend(Devices::ranges().map(|range| (range, "a virtual device of the guest")));

    let Some(firmware) = firmware else { return owners };
    memory.extend(firmware.io_apics.iter().map(|it| (page(it.address), "an I/O APIC")));
    memory.extend(firmware.hpet.map(|at| (page(at), "the HPET")));
    let timer = firmware.pm_timer.map(|timer| timer.port);
    ports.extend(timer.map(|first| (PortRange { first, last: first | 3 }, "the ACPI timer")));
    let off = firmware.soft_off.iter().flat_map(firmware::SoftOff::registers);
    for register in off.chain(firmware.reset.map(|reset| reset.register)) {
        match register {
            Register::Port(first) => {
                ports.push((PortRange { first, last: first.saturating_add(1) }, SOFT_OFF));
            }
            Register::Memory(at) => memory.push((page(at.page()), SOFT_OFF)),
        }
    }
    for Block { name, register, bytes } in &firmware.acpi_blocks {
        match register {
            Register::Port(first) => {
                let last = first.saturating_add(u16::from(*bytes) - 1);
                ports.push((PortRange { first: *first, last }, *name));
            }
            Register::Memory(at) => memory.push((page(at.page()), *name)),
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use arch::Width;
    use arch::uart::UartBase;

    use super::*;

    fn owners(firmware: Option<&PlatformTables>, console: Option<UartPlace>) -> Owners {
        let none = || core::iter::empty();
        let image = HpaRange { start: Hpa::new(0x20_0000), length: PAGE_SIZE };
        of(firmware, Others { image, ram: none(), ecam: none(), units: none(), console })
    }

    fn with(console: UartPlace) -> Owners {
        owners(None, Some(console))
    }

    #[test]
    fn the_registers_of_the_acpi_hardware_are_the_systems() {
        let block = |register, bytes| Block { name: "the ACPI hardware", register, bytes };
        let tables = PlatformTables {
            cpus: Vec::new(),
            io_apics: Vec::new(),
            overrides: Vec::new(),
            ecam: Vec::new(),
            hpet: None,
            pm_timer: None,
            serial: Vec::new(),
            origins: Vec::new(),
            acpi_blocks: vec![
                block(Register::Port(0x1800), 4),
                block(Register::Port(0xffff), 2),
                block(Register::Memory(Hpa::new(0xfed0_1234)), 0x40),
            ],
            soft_off: None,
            reset: None,
            dmar: Err(String::new()),
            has_rtc: true,
            has_8259: true,
            hardware_reduced: false,
            notes: Vec::new(),
        };
        let owners = owners(Some(&tables), None);
        for (first, last) in [(0x1800, 0x1803), (0xffff, 0xffff)] {
            assert!(owners.ports.contains(&(PortRange { first, last }, "the ACPI hardware")));
        }
        let page = HpaRange { start: Hpa::new(0xfed0_1000), length: PAGE_SIZE };
        assert!(owners.memory.contains(&(page, "the ACPI hardware")));
    }

    #[test]
    fn the_consoles_registers_are_its_own_wherever_they_are() {
        const WHO: &str = "the console's UART";
        let ports = with(UartPlace::port(0x2f8)).ports;
        assert!(ports.contains(&(PortRange { first: 0x2f8, last: 0x2ff }, WHO)), "{ports:?}");
        let start = Hpa::new(0xfe03_4000);
        let place = UartPlace { base: UartBase::Memory(start), stride: 4, width: Width::Dword };
        let memory = with(place).memory;
        assert!(memory.contains(&(HpaRange { start, length: 32 }, WHO)), "{memory:?}");
    }
}
