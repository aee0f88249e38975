//! The host's way back to a CPU whose guest never exits: the preemption timer on VT-x, on AMD-V the
//! HPET through an I/O APIC input whose remapping entry has delivery mode NMI.
//!
//! Each call also reads the IOMMU's fault records and gives the log what it finds.

use arch::interrupt::{DeliveryMode, InterruptTarget, TriggerMode};
use arch::iommu::{Fault, InterruptSource, IommuError};
use arch::vcpu::Vcpu;
use arch::{ApicId, Vector};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::lines::Wired;
use spin::{Mutex, Once};

use crate::bring_up::Hardware;
use crate::console::{self, logln};
use crate::monitor;

/// So many faults are logged one by one; the rest is counted.
const MOST_FAULTS_LOGGED: u32 = 16;

/// So many functions are told apart in what the monitor shows.
const MOST_FAULTING: usize = 16;

static FAULTS: AtomicU32 = AtomicU32::new(0);
/// The last fault of each function, and how many it had.
static FAULTING: Mutex<ArrayVec<(Fault, u32), MOST_FAULTING>> = Mutex::new(ArrayVec::new_const());
static HPET: Once<()> = Once::new();
/// A key on the serial line calls the boot processor.
static KEYS_CALL: AtomicBool = AtomicBool::new(false);
/// TSC at the last call.
static LAST_CALL: AtomicU64 = AtomicU64::new(0);

/// Arms the watchdog for the virtual CPU on the CPU that calls: about one call a second. The HPET
/// calls the boot processor, which passes the call on.
pub(crate) fn arm(hardware: &Hardware, vcpu: &mut impl Vcpu) {
    if !vcpu.set_preemption_timer(Some(hardware.clock.tsc_khz * 1000)) {
        HPET.call_once(|| match arm_hpet(hardware) {
            Ok(()) => logln!("watchdog: the HPET by NMI, once a second"),
            Err(why) => logln!(
                "watchdog: none ({why}): a guest that hangs with interrupts off stays that way"
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
    let target = nmi(hardware.apic.id());
    let entry =
        route(iommu, io_apic.id, target, false).map_err(|_| "the IOMMU has no entry for it")?;
    io_apic.set_redirection(input, entry);
    if hpet.start_each_second(input) { Ok(()) } else { Err("the HPET's timer 0 is not periodic") }
}

/// The boot processor waits, without a job, for what calls it, or for the next time to look after what does not call:
/// IOMMU faults and, on a machine where keys do not call, keys. `seen`: NMIs before it looked.
pub(crate) fn wait(own: LocalApic, seen: u32) {
    // About a tenth of a second, or a thousandth. A slower timer is no harm.
    let ticks = if KEYS_CALL.load(Ordering::Relaxed) { 100_000_000 } else { 1_000_000 };
    // SAFETY: the handlers are installed, no guest runs here now, and virtualization is off.
    unsafe { own.sleep(seen, ticks) };
}

/// Has a key on the serial line call the boot processor: the line of the console's UART as an NMI,
/// where that has an interrupt of the ISA bus.
pub(crate) fn arm_console(hardware: &Hardware) {
    const NMI_ENTRY: u64 = 4 << 8;
    let port = console::uart().and_then(|place| place.first_port());
    let Some(irq) = port.and_then(mux::uart::line) else { return };
    let Wired { gsi, active_low, .. } = hardware.isa_line(irq);
    let mut io_apics = hardware.io_apics.iter();
    let Some((io_apic, input)) = io_apics.find_map(|it| Some((it, it.input(gsi)?))) else {
        return;
    };
    let target = nmi(hardware.apic.id());
    let entry = match hardware.iommu {
        Some(iommu) => route(iommu, io_apic.id, target, active_low).ok(),
        None => Some(
            u64::from(target.destination.0 & 0xff) << 56 | u64::from(active_low) << 13 | NMI_ENTRY,
        ),
    };
    if let Some(entry) = entry {
        io_apic.set_redirection(input, entry);
        console::interrupt_on_receive();
        KEYS_CALL.store(true, Ordering::Relaxed);
    }
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
    iommu: crate::routes::SharedIommu,
    io_apic: u8,
    target: InterruptTarget,
    active_low: bool,
) -> Result<u64, IommuError> {
    let mut iommu = iommu.lock();
    let index = iommu.allocate_remap(InterruptSource::IoApic(io_apic), 1)?;
    iommu.set_remap(index, Some(target))?;
    Ok(iommu.remap_redirection(index, target, active_low))
}

/// What the host does when the watchdog, a key on the serial line or another CPU calls.
pub(crate) fn look_after(hardware: &Hardware, own: LocalApic) {
    monitor::listen(hardware, own);
    if own.id() == hardware.apic.id() {
        call(hardware, own);
    }
}

/// At most every half second: reads the IOMMU's fault records, and on AMD-V passes the call on to
/// the other processors.
pub(crate) fn call(hardware: &Hardware, own: LocalApic) {
    if console::has_typed() {
        // The key came to this CPU; who is typed to may run on another.
        for id in hardware.busy().filter(|id| *id != own.id()) {
            own.send_nmi(id);
        }
    }
    let (now, last) = (tsc(), LAST_CALL.load(Ordering::Relaxed));
    if now.wrapping_sub(last) < hardware.clock.tsc_khz * 500 {
        return;
    }
    LAST_CALL.store(now, Ordering::Relaxed);
    read_faults(hardware);
    if HPET.is_completed() {
        for id in hardware.busy().filter(|id| *id != own.id()) {
            own.send_nmi(id);
        }
    }
}

fn read_faults(hardware: &Hardware) {
    let Some(iommu) = hardware.iommu else { return };
    let lost = iommu.lock().poll_faults(&mut log_fault);
    if lost > 0 {
        logln!("IOMMU: its fault records overflowed {lost} times");
    }
}

fn log_fault(fault: Fault) {
    let before = FAULTS.fetch_add(1, Ordering::Relaxed);
    let mut faulting = FAULTING.lock();
    match faulting.iter_mut().find(|(known, _)| known.source == fault.source) {
        Some((known, count)) => (*known, *count) = (fault, count.saturating_add(1)),
        // What finds no room is in the sum.
        None => drop(faulting.try_push((fault, 1))),
    }
    if before < MOST_FAULTS_LOGGED {
        logln!("IOMMU fault: {fault}; guest: {}", monitor::owner(fault.source));
    } else if before == MOST_FAULTS_LOGGED {
        logln!("IOMMU fault: more follow and are counted only");
    }
}

/// Says how many faults there were, and which function and guest had them.
pub(crate) fn show_faults(iommu: &str) {
    logln!("{iommu}: {} faults", FAULTS.load(Ordering::Relaxed));
    for (last, count) in FAULTING.lock().iter() {
        let (function, guest) = (last.source, monitor::owner(last.source));
        logln!("{function}, guest {guest}: {count} faults, the last: {last}");
    }
}

/// Reads the fault records once more, and says how many faults there were.
pub(crate) fn last_look(hardware: &Hardware) {
    read_faults(hardware);
    let faults = FAULTS.load(Ordering::Relaxed);
    if faults > 0 {
        logln!("IOMMU faults: {faults}");
    }
}
