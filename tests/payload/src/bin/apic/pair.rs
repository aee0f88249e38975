//! IPIs between two CPUs, in both modes.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::Hpa;
use cpu::instructions::{cpuid, tsc};
use cpu::start::StartPage;
use payload::{say, verdict};
use x86_64::instructions::interrupts;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::{lgdt, sgdt};
use x86_64::registers::control::Cr3;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;

use crate::interrupts::{LOWEST_CLASS, MIDDLE, NMI_AT, load, taken};
use crate::local::{
    CURRENT_COUNT, DFR, DISABLED, DIVIDE, ENABLED, INITIAL_COUNT, LDR, LVT_TIMER, Local, PAGE, SVR,
    X2APIC, XAPIC,
};

const BOTH: [Local; 2] = [Local(0), Local(1)];
const START_PAGE: Hpa = Hpa::new(0x1_0000);
const NMI: u8 = 2;

const FIXED: u32 = 1 << 14 | MIDDLE as u32;
const LOWEST: u32 = FIXED | 1 << 8;
const LOGICAL: u32 = 1 << 11;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;
const NMI_KIND: u32 = 1 << 14 | 4 << 8;
const INIT: u32 = 1 << 14 | 5 << 8;
const START: u32 = 1 << 14 | 6 << 8 | 0x10;

/// What CPU 1 is to do, and how often it has done something.
static ORDER: AtomicU32 = AtomicU32::new(WAIT);
static DONE: AtomicU32 = AtomicU32::new(0);
static ENTRIES: AtomicU32 = AtomicU32::new(0);
const WAIT: u32 = 0;
const TAKE_LDR: u32 = 1;
const TAKE_X2APIC: u32 = 2;
const SWITCH_OFF: u32 = 3;
const SWITCH_ON: u32 = 4;
const EXIT_ONCE: u32 = 5;
/// What CPU 1 has found in its timer's registers that is not there after a reset.
static TIMER_FOUND: AtomicU32 = AtomicU32::new(0);
/// CPU 1 is about to exit.
static READY: AtomicBool = AtomicBool::new(false);
/// TSC ticks from the exit to the NMI, at most.
static LONGEST: AtomicU64 = AtomicU64::new(0);
/// DFR and LDR for [`TAKE_LDR`].
static DFR_LDR: AtomicU64 = AtomicU64::new(0);

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; 16384]>);
// SAFETY: CPU 1 alone uses it.
unsafe impl Sync for Stack {}
static STACK: Stack = Stack(UnsafeCell::new([0; 16384]));
/// CPU 0's GDT: base in 47:0, limit above.
static GDT: AtomicU64 = AtomicU64::new(0);

extern "C" fn second(_: u64) -> ! {
    let gdt = GDT.load(Ordering::SeqCst);
    let base = x86_64::VirtAddr::new(gdt & 0xffff_ffff_ffff);
    // SAFETY: the table is CPU 0's, whose entry 1 is a 64-bit code segment.
    unsafe { lgdt(&DescriptorTablePointer { limit: (gdt >> 48) as u16, base }) };
    // SAFETY: as above.
    unsafe { CS::set_reg(SegmentSelector(8)) };
    load::<1>();
    let own = BOTH[1];
    const MASKED: u32 = 1 << 16;
    let counts = [INITIAL_COUNT, CURRENT_COUNT, DIVIDE].map(|register| own.read(register));
    let found = counts.into_iter().fold(own.read(LVT_TIMER) ^ MASKED, |all, one| all | one);
    TIMER_FOUND.fetch_or(found, Ordering::SeqCst);
    // INIT leaves the mode as it was.
    let mode = own.base() & X2APIC;
    if mode == X2APIC && ENTRIES.load(Ordering::SeqCst) == 0 {
        own.set_base(PAGE, DISABLED);
        own.set_base(PAGE, XAPIC);
    }
    own.write(SVR, ENABLED);
    // For the next start.
    own.write(DIVIDE, 3);
    own.write(INITIAL_COUNT, u32::MAX);
    interrupts::enable();
    ENTRIES.fetch_add(1, Ordering::SeqCst);
    loop {
        match ORDER.load(Ordering::SeqCst) {
            WAIT => {
                spin_loop();
                continue;
            }
            TAKE_LDR => {
                let value = DFR_LDR.load(Ordering::SeqCst);
                own.write(DFR, (value >> 32) as u32);
                own.write(LDR, value as u32);
            }
            TAKE_X2APIC => {
                own.set_base(PAGE, X2APIC);
            }
            SWITCH_OFF => own.write(SVR, ENABLED & !0x100),
            SWITCH_ON => own.write(SVR, ENABLED),
            _ => exit_once(),
        }
        ORDER.store(WAIT, Ordering::SeqCst);
        DONE.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until `holds`, for a long while at most.
fn wait_until(holds: impl Fn() -> bool) -> bool {
    const MAX_TURNS: u32 = 20_000_000;
    (0..MAX_TURNS).any(|_| {
        spin_loop();
        holds()
    })
}

/// Has CPU 1 do something.
fn order(what: u32) -> bool {
    let before = DONE.load(Ordering::SeqCst);
    ORDER.store(what, Ordering::SeqCst);
    wait_until(|| DONE.load(Ordering::SeqCst) != before)
}

/// How often each CPU takes a vector while `work` runs and for a while after it, which ends a little
/// after the `expected`th.
fn arrivals(vector: u8, expected: u32, work: impl FnOnce()) -> [u32; 2] {
    const A_LITTLE: u32 = 2000;
    let count = || [taken(0, vector), taken(1, vector)];
    let before = count();
    let since = || {
        let now = count();
        [now[0] - before[0], now[1] - before[1]]
    };
    work();
    wait_until(|| since().iter().sum::<u32>() >= expected);
    (0..A_LITTLE).for_each(|_| spin_loop());
    since()
}

/// Destination, the low half of ICR, and how often each CPU is to take it.
type Case = (u32, u32, [u32; 2]);

fn check(mode: &str, cases: &[Case]) {
    let wrong = cases.iter().find_map(|case @ (to, how, expected)| {
        let seen = arrivals(MIDDLE, expected.iter().sum(), || BOTH[0].send(*to, *how));
        (seen != *expected).then_some((case, seen))
    });
    let claim = "IPIs reach the CPUs that they name and no other";
    verdict(
        claim,
        wrong.is_none(),
        format_args!("{mode}: {} kinds, wrong {wrong:x?}", cases.len()),
    );
}

/// Physical destinations and shorthands, alike in both modes.
const PLAIN: [Case; 6] = [
    (0, FIXED, [1, 0]),
    (1, FIXED, [0, 1]),
    (5, FIXED, [0, 0]),
    (5, SELF | FIXED, [1, 0]),
    (5, ALL | FIXED, [1, 1]),
    (5, OTHERS | FIXED, [0, 1]),
];

/// Gives both CPUs a destination format and their logical destinations.
fn take_logical(dfr: u32, ldr: [u32; 2]) {
    BOTH[0].write(DFR, dfr);
    BOTH[0].write(LDR, ldr[0] << 24);
    DFR_LDR.store(u64::from(dfr) << 32 | u64::from(ldr[1] << 24), Ordering::SeqCst);
    order(TAKE_LDR);
}

/// All that is to be seen between two CPUs, in xAPIC mode and then in x2APIC mode. CPU 0 is in xAPIC
/// mode before it and in x2APIC mode after it.
pub(crate) fn all() {
    // SAFETY: low memory that nothing else uses.
    let mut page = unsafe { StartPage::new(START_PAGE) };
    let stack = STACK.0.get() as u64 + size_of::<Stack>() as u64;
    let root = Hpa::new(Cr3::read().0.start_address().as_u64());
    page.prepare(root, stack, second, 0);
    let gdt = sgdt();
    GDT.store(gdt.base.as_u64() | u64::from(gdt.limit) << 48, Ordering::SeqCst);
    starts_and_restarts("xAPIC mode");
    check("xAPIC mode", &PLAIN);
    check("xAPIC mode, broadcast", &[(0xff, FIXED, [1, 1])]);
    take_logical(u32::MAX, [0x10, 0x80]);
    let flat =
        [0x10, 0x80, 0x90, 0x6f].map(|set| (set, LOGICAL | FIXED, owners(set, [0x10, 0x80])));
    check("flat model", &flat);
    one_of_two_takes_lowest_priority("flat model", 0x90);
    take_logical(0, [0x11, 0x22]);
    let cluster = [(0x11, [1, 0]), (0x22, [0, 1]), (0x21, [0, 0]), (0x13, [1, 0]), (0xf3, [1, 1])];
    check("cluster model", &cluster.map(|(set, who)| (set, LOGICAL | FIXED, who)));
    one_of_two_takes_lowest_priority("cluster model", 0xff);
    lowest_class_arrives("xAPIC mode");
    nmis_arrive("xAPIC mode");
    off_takes_nmis_only();
    order(TAKE_X2APIC);
    BOTH[0].set_base(PAGE, X2APIC);
    check("x2APIC mode", &PLAIN);
    check("x2APIC mode, broadcast", &[(u32::MAX, FIXED, [1, 1])]);
    let logical = [(1, [1, 0]), (2, [0, 1]), (3, [1, 1]), (0x1_0003, [0, 0]), (u32::MAX, [1, 1])];
    check("x2APIC clusters", &logical.map(|(set, who)| (set, LOGICAL | FIXED, who)));
    one_of_two_takes_lowest_priority("x2APIC mode", 3);
    lowest_class_arrives("x2APIC mode");
    nmis_arrive("x2APIC mode");
    nmis_at_any_moment_arrive_soon();
    starts_and_restarts("x2APIC mode");
    BOTH[0].send(1, INIT);
}

fn owners(set: u32, of: [u32; 2]) -> [u32; 2] {
    of.map(|own| u32::from(own & set != 0))
}

/// INIT stops CPU 1, a start-up IPI starts it, and one to a CPU that runs does nothing.
fn starts_and_restarts(mode: &str) {
    let mut seen = [0; 3];
    let entries = || ENTRIES.load(Ordering::SeqCst);
    let before = entries();
    for count in &mut seen {
        BOTH[0].send(1, INIT);
        *count += arrivals(MIDDLE, 0, || BOTH[0].send(1, FIXED))[1];
        let now = entries();
        BOTH[0].send(1, START);
        wait_until(|| entries() != now);
        *count += 10 * arrivals(MIDDLE, 1, || BOTH[0].send(1, FIXED))[1];
        BOTH[0].send(1, START);
    }
    let _ = arrivals(MIDDLE, 0, || ());
    let entered = entries() - before;
    verdict(
        "INIT stops a CPU and a start-up IPI starts it anew, three times",
        (entered, seen) == (3, [10; 3]),
        format_args!("{mode}: entered {entered}, {seen:?}"),
    );
    let found = TIMER_FOUND.load(Ordering::SeqCst);
    let claim = "a CPU that starts finds its timer as after a reset";
    verdict(claim, found == 0, format_args!("{mode}: {found:#x}"));
}

fn one_of_two_takes_lowest_priority(mode: &str, set: u32) {
    let seen = arrivals(MIDDLE, 1, || BOTH[0].send(set, LOGICAL | LOWEST));
    let one = seen.iter().sum::<u32>() == 1;
    verdict("one CPU takes a lowest-priority IPI", one, format_args!("{mode}: {seen:?}"));
}

fn lowest_class_arrives(mode: &str) {
    const HOW: u32 = 1 << 14 | LOWEST_CLASS as u32;
    let seen = [(1, HOW), (0, OTHERS | HOW), (0, ALL | HOW), (0, HOW)].map(|(to, how)| {
        arrivals(LOWEST_CLASS, 1 + u32::from(how & 3 << 18 == ALL), || BOTH[0].send(to, how))
    });
    let right = seen == [[0, 1], [0, 1], [1, 1], [1, 0]];
    let claim = "a vector below 32 reaches the CPUs that the IPI names";
    verdict(claim, right, format_args!("{mode}: {seen:?}"));
}

fn nmis_arrive(mode: &str) {
    let seen = [(1, NMI_KIND), (0, OTHERS | NMI_KIND), (0, NMI_KIND)]
        .map(|(to, how)| arrivals(NMI, 1, || BOTH[0].send(to, how)));
    let right = seen == [[0, 1], [0, 1], [1, 0]];
    verdict("NMIs reach the CPU that they name", right, format_args!("{mode}: {seen:?}"));
}

fn off_takes_nmis_only() {
    order(SWITCH_OFF);
    let lost = arrivals(MIDDLE, 0, || BOTH[0].send(1, FIXED));
    let nmi = arrivals(NMI, 1, || BOTH[0].send(1, NMI_KIND));
    order(SWITCH_ON);
    let back = arrivals(MIDDLE, 1, || BOTH[0].send(1, FIXED));
    verdict(
        "a CPU whose APIC is software-disabled takes NMIs only",
        (lost, nmi, back) == ([0, 0], [0, 1], [0, 1]),
        format_args!("{lost:?} {nmi:?} {back:?}"),
    );
}

/// CPU 1 exits once and then never, while an NMI comes to it at all moments of that exit. One that
/// the host swallowed would be seen at the watchdog's next call only.
fn nmis_at_any_moment_arrive_soon() {
    const MOMENTS: u32 = 600;
    LONGEST.store(0, Ordering::SeqCst);
    let before = taken(1, NMI);
    for moment in 0..MOMENTS {
        let done = DONE.load(Ordering::SeqCst);
        READY.store(false, Ordering::SeqCst);
        ORDER.store(EXIT_ONCE, Ordering::SeqCst);
        wait_until(|| READY.load(Ordering::SeqCst));
        (0..2 * moment).for_each(|_| spin_loop());
        BOTH[0].send(1, NMI_KIND);
        wait_until(|| DONE.load(Ordering::SeqCst) != done);
    }
    let seen = taken(1, NMI) - before;
    verdict("an NMI at any moment of an exit arrives", seen == MOMENTS, format_args!("{seen}"));
    say!("longest time to such an NMI: {}", LONGEST.load(Ordering::SeqCst));
}

/// CPU 1's part of it.
fn exit_once() {
    let before = taken(1, NMI);
    READY.store(true, Ordering::SeqCst);
    // CPU 0's own exit, to send the NMI, takes longer than this one.
    (0..500).for_each(|_| spin_loop());
    let _ = cpuid(0, 0);
    let start = tsc();
    while taken(1, NMI) == before {
        spin_loop();
    }
    let time = NMI_AT.load(Ordering::SeqCst).saturating_sub(start);
    LONGEST.fetch_max(time, Ordering::SeqCst);
}
