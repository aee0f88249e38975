//! How the host gets a CPU back whose guest never exits: the preemption timer on VT-x, on AMD-V the
//! HPET through an I/O APIC input whose remapping entry has delivery mode NMI. And a key on the serial line, as an
//! NMI too. What is done then is `housekeeping`.

use arch::interrupt::{DeliveryMode, InterruptTarget, TriggerMode};
use arch::iommu::{InterruptSource, IommuError};
use arch::vcpu::Vcpu;
use arch::{ApicId, Vector};
use core::sync::atomic::{AtomicBool, Ordering};
use guest::lines::Wired;
use spin::Once;

use crate::console::{self, logln};
use crate::hardware::Hardware;
use crate::routes::SharedIommu;

static HPET: Once<()> = Once::new();
/// A key on the serial line interrupts the boot processor.
static KEYS_INTERRUPT: AtomicBool = AtomicBool::new(false);

/// Arms the watchdog for the virtual CPU on the CPU that calls: about one call a second. The HPET calls every CPU, so that
/// none is called only if another lives.
pub(crate) fn arm(hardware: &Hardware, vcpu: &mut impl Vcpu) {
    if !vcpu.set_host_timer(Some(hardware.clock.tsc_khz * 1000)) {
        HPET.call_once(|| match arm_hpet(hardware) {
            Ok(()) => logln!("watchdog: the HPET by NMI, once a second"),
            Err(why) => logln!(
                "watchdog: none ({why}): a guest that hangs with interrupts off cannot be stopped"
            ),
        });
    }
}

fn arm_hpet(hardware: &Hardware) -> Result<(), &'static str> {
    let hpet = hardware.hpet.ok_or("the machine has no HPET")?;
    let iommu =
        hardware.iommu.ok_or("the machine has no IOMMU to turn its interrupt into an NMI")?;
    let io_apic = hardware.io_apics.first().ok_or("the machine has no I/O APIC")?;
    // The highest input that the timer can drive: the low ones are ISA's. Some are PCI's too.
    let free = |input: &u32| {
        hpet.possible_inputs() >> input & 1 != 0
            && !hardware.guests_lines.contains(&(io_apic.first_gsi + input))
    };
    let input = (0..io_apic.inputs.min(32))
        .rev()
        .find(free)
        .ok_or("the HPET drives no I/O APIC input that is not a guest's")?;
    let entry = route(iommu, io_apic.id, nmi(ApicId::EVERY), false)
        .map_err(|_| "the IOMMU has no entry for it")?;
    io_apic.set_redirection(input, entry);
    if hpet.start_each_second(input) { Ok(()) } else { Err("the HPET's timer 0 is not periodic") }
}

/// Has a key on the serial line call the boot processor: the line of the console's UART as an NMI,
/// where that has an interrupt of the ISA bus.
pub(crate) fn arm_console(hardware: &Hardware) {
    let port = console::uart().and_then(|place| place.first_port());
    if port.is_some_and(|base| arm_uart(hardware, base)) {
        console::interrupt_on_receive();
        KEYS_INTERRUPT.store(true, Ordering::Relaxed);
    }
}

/// Has the line of the UART at `base` call the boot processor by NMI, where that has an interrupt of the ISA bus.
pub(crate) fn arm_uart(hardware: &Hardware, base: u16) -> bool {
    let Some(irq) = mux::uart::line(base) else { return false };
    let Wired { gsi, active_low, .. } = hardware.isa_line(irq);
    let mut io_apics = hardware.io_apics.iter();
    let Some((io_apic, input)) = io_apics.find_map(|it| Some((it, it.input(gsi)?))) else {
        return false;
    };
    let target = nmi(hardware.boot_processor);
    let entry = match hardware.iommu {
        Some(iommu) => route(iommu, io_apic.id, target, active_low).ok(),
        None => target.redirection(active_low),
    };
    if let Some(entry) = entry {
        io_apic.set_redirection(input, entry);
    }
    entry.is_some()
}

fn nmi(destination: ApicId) -> InterruptTarget {
    InterruptTarget {
        vector: Vector(0),
        destination,
        trigger: TriggerMode::Edge,
        delivery: DeliveryMode::Nmi,
    }
}

fn route(
    iommu: SharedIommu,
    io_apic: u8,
    target: InterruptTarget,
    active_low: bool,
) -> Result<u64, IommuError> {
    let mut iommu = iommu.lock();
    let index = iommu.allocate_remap(InterruptSource::IoApic(io_apic), 1)?;
    iommu.set_remap(index, Some(target))?;
    Ok(iommu.remap_redirection(index, target, active_low))
}

/// Whether a key on the serial line calls the boot processor.
pub(crate) fn keys_call() -> bool {
    KEYS_INTERRUPT.load(Ordering::Relaxed)
}
