//! What the host does beside running guests: when it is called, and where a CPU has nothing else to do.

use core::sync::atomic::{AtomicU64, Ordering};

use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use spin::Once;

use crate::hardware::Hardware;
use crate::processors::{self, Processor};
use crate::{console, faults, watchdog};

/// TSC at the last look at what does not call.
static LAST_LOOK: AtomicU64 = AtomicU64::new(0);

/// Every CPU is called about once a second where nothing keeps it.
const OVERDUE_MS: u64 = 3000;

/// Takes what was typed, and answers the operator.
static OPERATOR: Once<fn(&Hardware, LocalApic)> = Once::new();

/// Takes what a gdb has sent, where a guest has a line for one.
static DEBUGGER: Once<fn()> = Once::new();

/// From now on `answer` is called whenever the host attends.
pub(crate) fn attend_operator(answer: fn(&Hardware, LocalApic)) {
    OPERATOR.call_once(|| answer);
}

/// From now on `listen` is called whenever the host attends.
pub(crate) fn attend_debugger(listen: fn()) {
    DEBUGGER.call_once(|| listen);
}

/// What is done when the watchdog, a key on the serial line or another CPU calls the CPU with `own`.
pub(crate) fn attend(hardware: &Hardware, own: LocalApic) {
    if let Some(answer) = OPERATOR.get() {
        answer(hardware, own);
    }
    if let Some(listen) = DEBUGGER.get() {
        listen();
    }
    console::pass();
    let last = LAST_LOOK.load(Ordering::Relaxed);
    let overdue = tsc().saturating_sub(last) > hardware.clock.tsc_khz * OVERDUE_MS;
    if own.id() == hardware.boot_processor || overdue {
        attend_all(hardware, own);
    }
}

/// What the boot processor does for all, and any other that is called when it has not for a while: at most every half
/// second reads the IOMMU's fault records.
fn attend_all(hardware: &Hardware, own: LocalApic) {
    if console::take_news() {
        // Once: a key that its guest does not take shall call nobody again. The key came to this CPU; the guest that it is for may run on another.
        call_others(own);
    }
    let (now, last) = (tsc(), LAST_LOOK.load(Ordering::Relaxed));
    if now.wrapping_sub(last) < hardware.clock.tsc_khz * 500 {
        return;
    }
    LAST_LOOK.store(now, Ordering::Relaxed);
    faults::read(hardware);
}

fn call_others(own: LocalApic) {
    for id in processors::busy().filter(|id| *id != own.id()) {
        own.send_nmi(id);
    }
}

/// Sleeps for a moment, with virtualization off, and attends.
pub(crate) fn idle(hardware: &Hardware, processor: &Processor) {
    // SAFETY: the handlers are installed, no guest runs here now, and virtualization is off.
    unsafe { processor.apic.idle() };
    attend(hardware, processor.apic);
}

/// Attends on the boot processor, which has no job, and waits for what calls it or for the next time to look after what
/// does not call: IOMMU faults and, on a machine where keys do not call, keys. `seen`: NMIs before.
pub(crate) fn wait(hardware: &Hardware, boot_processor: &Processor, seen: u32) {
    let own = boot_processor.apic;
    attend(hardware, own);
    // About a tenth of a second, or a thousandth. A slower timer is no harm.
    let ticks = if watchdog::keys_call() { 100_000_000 } else { 1_000_000 };
    // SAFETY: the handlers are installed, no guest runs here now, and virtualization is off.
    unsafe { own.sleep(seen, ticks) };
}
