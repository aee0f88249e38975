//! Non-maskable interrupts: while one is served, until IRET, one more waits and no further.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::fact;
use crate::local::{mode, send};
use crate::trap::{self, Frame};

const NMI: u32 = 4 << 8 | 1 << 14;
const VECTOR: u32 = 0x58;

/// How many have come, how deep they were nested, and how deep they are.
static CAME: AtomicU64 = AtomicU64::new(0);
static DEEPEST: AtomicU64 = AtomicU64::new(0);
static DEPTH: AtomicU64 = AtomicU64::new(0);
/// What the handler does: sends so many NMIs the first time, and then, with bit 32, an exception and one more.
static SENDS: AtomicU64 = AtomicU64::new(0);
/// Where the first and the second came.
static PLACES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
const EXCEPTION: u64 = 1 << 32;
const INTERRUPT: u64 = 1 << 33;

pub(crate) fn came(frame: &mut Frame) {
    let depth = DEPTH.fetch_add(1, Ordering::Relaxed) + 1;
    DEEPEST.fetch_max(depth, Ordering::Relaxed);
    let nth = CAME.fetch_add(1, Ordering::Relaxed);
    if let Some(place) = PLACES.get(nth as usize) {
        place.store(frame.rip, Ordering::Relaxed);
    }
    let sends = SENDS.swap(0, Ordering::Relaxed);
    if sends & INTERRUPT != 0 {
        send(VECTOR);
    }
    for _ in 0..sends as u32 {
        send(NMI);
        trap::wait();
    }
    if sends & EXCEPTION != 0 {
        // A software interrupt, whose IRET ends the blocking.
        // SAFETY: its handler does nothing but count.
        unsafe { asm!("int 0x59") };
        trap::wait();
    }
    DEPTH.fetch_sub(1, Ordering::Relaxed);
}

/// How many have come since the last call.
pub(crate) fn count() -> u64 {
    DEEPEST.store(0, Ordering::Relaxed);
    CAME.swap(0, Ordering::Relaxed)
}

/// Sends one NMI, whose handler sends as it is told; how many came, and how deep.
fn served(sends: u64) -> [u64; 2] {
    SENDS.store(sends, Ordering::Relaxed);
    send(NMI);
    trap::wait();
    [&CAME, &DEEPEST].map(|counter| counter.swap(0, Ordering::Relaxed))
}

pub(crate) fn all() {
    let mode = mode();
    fact!("nmi: {mode}: one, and how deep they nest"; "{:?}", served(0));
    fact!("nmi: {mode}: one sent in its handler"; "{:?}", served(1));
    let same = PLACES[0].load(Ordering::Relaxed) == PLACES[1].load(Ordering::Relaxed);
    fact!("nmi: {mode}: the second comes where the first was to go on"; "{same}");
    fact!("nmi: {mode}: ten sent in the handler"; "{:?}", served(10));
    fact!("nmi: {mode}: one sent in the handler, and then an IRET in it"; "{:?}", served(1 | EXCEPTION));
    let _ = trap::take_came();
    // An interrupt that the handler sends waits for IRET, too, and comes behind the NMI that waits.
    fact!("nmi: {mode}: one and an interrupt sent in the handler, IF = 0"; "{:?}", served(1 | INTERRUPT));
    fact!("nmi: {mode}: the interrupt comes with IF = 1"; "{}", trap::listen());
    // INT 2 blocks nothing: what its handler sends comes in it.
    SENDS.store(1, Ordering::Relaxed);
    // SAFETY: the handler is that of NMIs.
    unsafe { asm!("int 2") };
    trap::wait();
    let counts = [&CAME, &DEEPEST].map(|counter| counter.swap(0, Ordering::Relaxed));
    fact!("nmi: {mode}: INT 2, and one sent in its handler"; "{counts:?}");
    // With IF = 1.
    SENDS.store(1 | INTERRUPT, Ordering::Relaxed);
    // SAFETY: the handlers take whatever comes.
    unsafe { asm!("sti") };
    send(NMI);
    trap::wait();
    // SAFETY: as above.
    unsafe { asm!("cli") };
    let counts = [&CAME, &DEEPEST].map(|counter| counter.swap(0, Ordering::Relaxed));
    fact!("nmi: {mode}: the same with IF = 1"; "{counts:?}, then {}", trap::take_came());
}
