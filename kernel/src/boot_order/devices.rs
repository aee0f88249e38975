//! The PCI functions: found, woken, taken from the firmware, and kept from mastering the bus.

use alloc::vec::Vec;

use arch::address::HpaRange;
use arch::{Hpa, Width};
use boot::BootInfo;
use config::Config;
use cpu::config_space::{EcamWindow, MachineConfigSpace};
use firmware::PlatformTables;
use iommu::dmar::{Dmar, UNIT_REGISTERS};
use pci::claims::Owners;
use pci::header::HeaderType;
use pci::usb;
use plan::owners::Others;

use crate::console::{self, logln};
use crate::memory::{self, Memory, image};

/// Finds every PCI function and takes bus mastering from all of them: firmware hands disks over with
/// it on, and nothing may master the bus before translation is on. USB controllers come from the firmware
/// before that.
pub(super) fn take_over(
    info: &BootInfo<'_>,
    config: &Config,
    memory: Memory,
    space: &mut MachineConfigSpace,
    tsc_khz: u64,
) -> Vec<pci::Function> {
    let mut delay = |ms: u32| cpu::start::wait(tsc_khz, u64::from(ms) * 1000);
    let functions = find_functions(space, &mut delay);
    let controllers = functions.iter().filter(|it| it.class >> 8 == usb::CLASS).count();
    if controllers > 0 {
        logln!("USB controllers are taken from the firmware: {controllers}, a second each at most");
    }
    for function in &functions {
        let map = |start: Hpa| {
            let range = HpaRange { start, length: usb::REGISTERS };
            let reachable =
                !memory::is_ram(info, range) && memory::map_device(memory, range).is_ok();
            reachable.then_some(UsbRegisters(start))
        };
        let how = match usb::take(space, function, map, &mut delay) {
            usb::HandOff::Nothing => continue,
            usb::HandOff::Given => "given up by the firmware",
            usb::HandOff::Taken => "not given up by the firmware within a second: taken",
        };
        logln!("{}: USB controller {how}", function.bdf);
    }
    pci::reset::quiesce(space, &functions);
    let map = |range| memory::map_device(memory, range).is_ok();
    console::find_card(config, space, &functions, |range| memory::is_ram(info, range), map);
    functions
}

/// Finds every function, awake: one that sleeps would lose its BARs on the way to its guest, and what is
/// behind a bridge that sleeps is found once that is awake.
fn find_functions(
    space: &mut MachineConfigSpace,
    delay: &mut dyn FnMut(u32),
) -> Vec<pci::Function> {
    /// Bridges behind each other that sleep.
    const MAX_DEPTH: u32 = 8;
    let mut functions = Vec::new();
    for _ in 0..MAX_DEPTH {
        functions.clear();
        for segment in space.segments() {
            let buses = (0..=u8::MAX).filter(|bus| space.reaches(segment, *bus));
            functions.extend(pci::scan(space, segment, buses));
        }
        pci::header::leave_out_twins(space, &mut functions);
        let mut woken = false;
        for function in &functions {
            let (bdf, report) = (function.bdf, &mut |event| logln!("{event}"));
            match pci::power::wake(space, function, delay, report) {
                Ok(false) => {}
                Ok(true) => {
                    logln!("{bdf}: the firmware left it asleep: woken");
                    woken |= matches!(function.header, HeaderType::Bridge { .. });
                }
                Err(error) => logln!("{error}"),
            }
        }
        if !woken {
            break;
        }
    }
    functions
}

/// A USB controller's registers, mapped.
struct UsbRegisters(Hpa);

impl usb::Registers for UsbRegisters {
    fn read(&self, offset: u64) -> u32 {
        // SAFETY: `take_over` has mapped the registers, and no driver runs.
        unsafe { cpu::physical::mmio_read(self.0.wrapping_add(offset), Width::Dword) as u32 }
    }

    fn write(&mut self, offset: u64, value: u32) {
        // SAFETY: as above; `usb` writes what the specifications ask of a new owner.
        unsafe {
            cpu::physical::mmio_write(self.0.wrapping_add(offset), Width::Dword, value.into())
        }
    }
}

/// Whose the addresses are that no BAR may claim.
pub(super) fn owners(
    info: &BootInfo<'_>,
    firmware: &PlatformTables,
    ecam: &[EcamWindow],
) -> Owners {
    let dmar = firmware.dmar.as_ref().ok().and_then(|table| Dmar::parse(table).ok());
    let units = dmar.iter().flat_map(Dmar::units);
    let others = Others {
        image: image::whole(),
        ram: memory::ram(info),
        ecam: ecam.iter().map(EcamWindow::range),
        units: units.map(|unit| HpaRange { start: unit.registers, length: UNIT_REGISTERS }),
        // A card's registers are its own BAR's, which goes with it.
        console: match console::card() {
            Some(_) => None,
            None => console::uart(),
        },
    };
    plan::owners::of(Some(firmware), others)
}
