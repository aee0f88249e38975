//! One CPU: a message at every delay, its vector changed while it is under way, and forged ones.

use arch::machine::Width;
use cpu::instructions::{cpuid, port_read, tsc};
use payload::{Counter, exits, say, verdict};
use x86_64::instructions::interrupts;

use crate::interrupts::{FIRST, SECOND, all_taken, taken};
use payload::controller::{Controller, State};

const LONGEST: u32 = 1500;
/// A change of a vector takes thousands of ticks: the message comes before, in and behind it.
const LONGEST_CHANGE: u32 = 30_000;
const CHANGE_STEP: usize = 21;

/// Waits for what is to come, and a little longer. How many came since `before`.
fn arrived(before: u32) -> u32 {
    const PATIENCE: u64 = 2_000_000;
    const A_LITTLE: u32 = 40;
    let start = tsc();
    while all_taken() == before && tsc() - start < PATIENCE {
        core::hint::spin_loop();
    }
    (0..A_LITTLE).for_each(|_| core::hint::spin_loop());
    all_taken() - before
}

/// Exits that an interrupt or its EOI caused.
pub(crate) fn interrupt_exits() -> u64 {
    exits(Counter::ExternalInterrupt) + exits(Counter::Eoi) + exits(Counter::ShadowGate)
}

/// How many were lost, how many came more than once.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) sent: u32,
    lost: u32,
    doubled: u32,
}

impl Tally {
    pub(crate) fn count(&mut self, seen: u32) {
        self.sent += 1;
        self.lost += u32::from(seen == 0);
        self.doubled += u32::from(seen > 1);
    }

    pub(crate) fn tell(&self, claim: &str, what: &str) {
        let right = self.sent > 0 && self.lost + self.doubled == 0;
        let Self { sent, lost, doubled } = self;
        verdict(claim, right, format_args!("{what}: {sent} sent, {lost} lost, {doubled} doubled"));
    }
}

/// A message for each delay, while the guest does `work` again and again.
fn while_it(device: Controller, what: &str, work: impl Fn()) {
    let mut tally = Tally::default();
    let before_all = interrupt_exits();
    for ticks in 1..=LONGEST {
        let before = all_taken();
        device.send_in(ticks, 0);
        while device.state() == State::UnderWay {
            work();
        }
        tally.count(arrived(before));
    }
    let spent = interrupt_exits() - before_all;
    tally.tell("a message comes once at every delay", what);
    say!("exits by {LONGEST} messages while it {what}: {spent}");
}

pub(crate) fn every_delay(device: Controller) {
    // 00:1e.7 writes where it may not.
    device.fault_in(1, 0xf7, 0x05, 0xdead_b000);
    device.finish();
    device.route(0, 0, FIRST);
    // The first event of all has the shadow IDT put in place, which is an exit of its own.
    device.send_in(1, 0);
    arrived(0);
    while_it(device, "asks CPUID", || {
        let _ = cpuid(0, 0);
    });
    while_it(device, "reads a port", || {
        // SAFETY: nothing is at this port: the hypervisor answers.
        let _ = unsafe { port_read(0x1ce, Width::Word) };
    });
    while_it(device, "does nothing", || ());
    sleeps(device);
}

/// A halted CPU wakes for each.
fn sleeps(device: Controller) {
    const STEP: usize = 7;
    let (mut slept, before_all) = (0, interrupt_exits());
    for ticks in (1..=LONGEST).step_by(STEP) {
        let before = taken(0, FIRST);
        interrupts::disable();
        device.send_in(ticks, 0);
        while taken(0, FIRST) == before {
            interrupts::enable_and_hlt();
            interrupts::disable();
        }
        interrupts::enable();
        slept += 1;
    }
    let spent = interrupt_exits() - before_all;
    verdict("a message wakes a halted CPU at every delay", slept > 200, format_args!("{slept}"));
    say!("exits by {slept} messages while it sleeps: {spent}");
}

/// Every message arrives by the old vector or by the new one, and once.
pub(crate) fn every_change(device: Controller) {
    for (what, masked) in [("masked", true), ("in place", false)] {
        let mut tally = Tally::default();
        let mut vector = FIRST;
        for ticks in (1..=LONGEST_CHANGE).step_by(CHANGE_STEP) {
            vector = if vector == FIRST { SECOND } else { FIRST };
            let before = all_taken();
            device.send_in(ticks, 0);
            if masked {
                device.route(0, 0, vector);
            } else {
                device.change_vector_in_place(vector);
            }
            device.finish();
            tally.count(arrived(before));
        }
        tally.tell("a message comes once while its vector changes", what);
    }
    device.route(0, 0, FIRST);
}

/// The device may name any index of the remapping table, or none: only its own entries let it through.
pub(crate) fn forged(device: Controller) {
    const OWN: u32 = 2;
    device.route(1, 0, SECOND);
    let (mut passed, mut sent) = (0, 0);
    let before = all_taken();
    for index in (0..64).chain([4095, 4096, 0x7fff_u64]) {
        device.write_in(1, 0xfee0_0010 | index << 5, 0);
        passed += u32::from(device.finish() == State::Done);
        sent += 1;
    }
    let came = arrived(before);
    verdict(
        "a forged message passes by the device's own entries alone",
        (passed, came) == (OWN, OWN),
        format_args!("{passed} of {sent} passed, {came} came"),
    );
    // Fixed, lowest priority, SMI, NMI, INIT, ExtINT; level; for any CPU, by number or as a set.
    let before = all_taken();
    let (mut passed, mut sent) = (0, 0);
    for mode in [0, 1, 2, 4, 5, 7] {
        for (address, data) in
            [(0xfee0_0000, 0), (0xfeef_f000, 0), (0xfeef_f004, 0), (0xfee0_0000, 1 << 15 | 1 << 14)]
        {
            device.write_in(1, address, data | mode << 8 | u32::from(FIRST));
            passed += u32::from(device.finish() == State::Done);
            sent += 1;
        }
    }
    let came = all_taken() - before;
    verdict(
        "no message in compatibility format passes",
        (passed, came) == (0, 0),
        format_args!("{passed} of {sent} passed, {came} came"),
    );
}
