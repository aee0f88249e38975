//! A guest of two CPUs that does anything, from a seed: instructions, MSRs, ports, device registers, interrupts, APIC
//! registers, gates, control registers. It catches what comes of it and puts its CPUs back as they were, so that its life
//! lasts: `SEED TRIALS` on the command line, where `any` is a seed from the clock, which it says. A third number is the first
//! trial from which on each one is shown before it is tried.
//!
//! What a CPU tries depends on nothing but the seed: a failure comes again with the seed that was said.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

mod code;
mod processor;
mod random;
mod state;
mod trials;
mod window;

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{ApicId, Hpa, msr};
use cpu::instructions::{tsc, write_msr};
use cpu::start::StartPage;
use payload::{loaded, power_off, say, verdict};
use x86_64::registers::control::Cr3;

use crate::random::Random;
use crate::state::State;
use crate::trials::Tester;

const START_PAGE: Hpa = Hpa::new(0x1_0000);
/// What the second CPU's start waits for is in ticks of this.
const TSC_KHZ: u64 = 10_000;

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; 16384]>);
// SAFETY: CPU 1 alone uses it.
unsafe impl Sync for Stack {}
static STACK: Stack = Stack(UnsafeCell::new([0; 16384]));

static SEED: AtomicU64 = AtomicU64::new(0);
/// The first trial that is shown.
static SHOWN: AtomicU64 = AtomicU64::new(u64::MAX);
/// Trials that each CPU has done.
static DONE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Trials by what ended them: a fault, an interrupt, an NMI.
static ENDS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static RESCUES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static OVER: AtomicBool = AtomicBool::new(false);
/// The second CPU has its tables. Before that an NMI would be its end.
static SECOND_LISTENS: AtomicBool = AtomicBool::new(false);

fn done(cpu: usize) -> u64 {
    DONE[cpu & 1].load(Ordering::Relaxed)
}

fn one_trial(cpu: usize, state: &State) {
    let number = DONE[cpu & 1].fetch_add(1, Ordering::Relaxed);
    let mut random = Random::of(SEED.load(Ordering::Relaxed), cpu, number);
    if number.is_multiple_of(256) {
        window::fill(&mut random);
        state::end_all();
    }
    let shown = (number >= SHOWN.load(Ordering::Relaxed)).then_some(number);
    let end = match trials::run(Tester { cpu, random, state, shown }) {
        2 => 2,
        32.. => 1,
        _ => 0,
    };
    ENDS[end].fetch_add(1, Ordering::Relaxed);
}

/// Looks whether the other CPU goes on: an NMI brings it back from where no interrupt gets in.
struct Watch {
    seen: u64,
    since: u64,
}

impl Watch {
    const PATIENCE: u64 = 300;

    /// Whether even that was of no use.
    fn look(&mut self, own: usize) -> bool {
        const NMI: u64 = 4 << 8 | 1 << 14;
        let (seen, now) = (done(1 - own), done(own));
        if seen != self.seen {
            *self = Self { seen, since: now };
            return false;
        }
        let waited = now - self.since;
        if waited > 0 && waited.is_multiple_of(Self::PATIENCE) {
            RESCUES[0].fetch_add(1, Ordering::Relaxed);
            // SAFETY: the guest's own other CPU; x2APIC mode.
            unsafe { write_msr(msr::IA32_X2APIC_ICR, (1 - own as u64) << 32 | NMI) };
        }
        waited > 10 * Self::PATIENCE
    }
}

extern "C" fn second(_: u64) -> ! {
    processor::prepare(1);
    let state = state::begin();
    SECOND_LISTENS.store(true, Ordering::SeqCst);
    let mut watch = Watch { seen: 0, since: done(1) };
    while !OVER.load(Ordering::Relaxed) {
        one_trial(1, &state);
        watch.look(1);
    }
    cpu::instructions::halt_forever()
}

/// Starts the second CPU, or starts it again whatever it is at, and waits until NMIs may come to it.
fn start_second(page: &mut StartPage) {
    SECOND_LISTENS.store(false, Ordering::SeqCst);
    let stack = STACK.0.get() as u64 + size_of::<Stack>() as u64;
    page.prepare(Hpa::new(Cr3::read().0.start_address().as_u64()), stack, second, 0);
    // SAFETY: x2APIC mode, and the guest's own CPU; low memory is executable.
    unsafe { page.start(ApicId(1), TSC_KHZ) };
    trials::console_back();
    const LONG: u32 = 1_000_000_000;
    let listens = (0..LONG).any(|_| {
        spin_loop();
        SECOND_LISTENS.load(Ordering::SeqCst)
    });
    if !listens {
        say!("FAILED: the second CPU does not come up");
    }
}

fn fuzz(trials: u64) {
    processor::prepare(0);
    window::make();
    let state = state::begin();
    // SAFETY: low memory that nothing else uses.
    let mut page = unsafe { StartPage::new(START_PAGE) };
    start_second(&mut page);
    let mut watch = Watch { seen: 0, since: 0 };
    for number in 0..trials {
        if number.is_multiple_of(5000) {
            say!("trial {number}, {} of the second CPU", done(1));
        }
        one_trial(0, &state);
        // It is started again now and then, at any moment, and where nothing else helps.
        if watch.look(0) || number % 4096 == 4095 {
            RESCUES[1].fetch_add(1, Ordering::Relaxed);
            watch = Watch { seen: 0, since: done(0) };
            // SAFETY: as above.
            page = unsafe { StartPage::new(START_PAGE) };
            start_second(&mut page);
        }
    }
    OVER.store(true, Ordering::Relaxed);
    const INIT: u64 = 5 << 8 | 1 << 14;
    // SAFETY: the guest's own second CPU.
    unsafe { write_msr(msr::IA32_X2APIC_ICR, 1 << 32 | INIT) };
    trials::console_back();
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: these are the arguments of `kernel_main`.
    let Some(info) = (unsafe { loaded(magic, info) }) else { power_off() };
    let mut words = info.command_line.split_whitespace();
    let seed = words.next().and_then(|word| word.parse().ok()).unwrap_or_else(tsc);
    let trials = words.next().and_then(|word| word.parse().ok()).unwrap_or(1000);
    say!("seed {seed}, {trials} trials");
    SEED.store(seed, Ordering::Relaxed);
    if let Some(first) = words.next().and_then(|word| word.parse().ok()) {
        SHOWN.store(first, Ordering::Relaxed);
    }
    fuzz(trials);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let [faults, interrupts, nmis] = [0, 1, 2].map(|index| count(&ENDS[index]));
    let caught = format_args!("{faults} faults, {interrupts} interrupts, {nmis} NMIs");
    verdict("its life lasts", done(0) == trials && faults > trials / 2, caught);
    let (rescues, starts) = (count(&RESCUES[0]), count(&RESCUES[1]));
    verdict(
        "its second CPU goes on",
        done(1) > trials / 50,
        format_args!("{} trials, {rescues} rescues, {starts} starts", done(1)),
    );
    power_off()
}
