//! What one CPU can check: modes and their transitions, the page, the timer, priorities.

use core::hint::spin_loop;

use cpu::instructions::{read_msr, tsc, write_msr};
use payload::{Counter, exits, exits_during, say, verdict};
use x86_64::instructions::interrupts;

use crate::interrupts::{HIGH, LOW, MIDDLE, TIMER, UNENDED, taken};
use crate::local::{
    DFR, DISABLED, DIVIDE, ENABLED, FAULTS, ICR, ID, INITIAL_COUNT, IRR, ISR, LDR, LVT_TIMER,
    Local, PAGE, PPR, SVR, TPR, X2APIC, XAPIC, peek,
};

const OWN: Local = Local(0);
const SELF: u32 = 1 << 18;
const MASKED: u32 = 1 << 16;
/// Neither a mode that there is.
const NO_MODE: u64 = 1 << 10;
const ELSEWHERE: u64 = 0xfed4_0000;
const NOTHING: u32 = u32::MAX;

fn faults(work: impl FnOnce()) -> u32 {
    let before = FAULTS.load(core::sync::atomic::Ordering::Relaxed);
    work();
    FAULTS.load(core::sync::atomic::Ordering::Relaxed) - before
}

/// What CPU 0 takes of a vector while `work` runs and a little after.
fn takes(vector: u8, work: impl FnOnce()) -> u32 {
    let before = taken(0, vector);
    work();
    for _ in 0..1000 {
        spin_loop();
    }
    taken(0, vector) - before
}

pub(crate) fn modes_change_as_the_manual_allows() {
    let page = peek(PAGE + 0x30);
    verdict("there is no page in x2APIC mode", page == NOTHING, format_args!("{page:#x}"));
    let tries = |tries: &[(u64, u64, bool)]| {
        tries.iter().position(|(page, mode, allowed)| OWN.set_base(*page, *mode) != *allowed)
    };
    let out_of_x2apic = [(PAGE, XAPIC, false), (PAGE, NO_MODE, false), (PAGE | 1, X2APIC, false)];
    let out_of_disabled = [
        (PAGE, DISABLED, true),
        (PAGE, X2APIC, false),
        (PAGE, NO_MODE, false),
        (PAGE, XAPIC, true),
        (PAGE, NO_MODE, false),
        (1 << 62 | PAGE, XAPIC, false),
        // Its own memory.
        (0x10_0000, XAPIC, false),
    ];
    let wrong = (tries(&out_of_x2apic), tries(&out_of_disabled));
    verdict("modes change as the manual allows", wrong == (None, None), format_args!("{wrong:?}"));
    // SAFETY: a #GP is skipped.
    let read = faults(|| _ = unsafe { read_msr(0x802) });
    // SAFETY: as above.
    let write = faults(|| unsafe { write_msr(0x80f, ENABLED.into()) });
    verdict(
        "there are no MSRs in xAPIC mode",
        (read, write) == (1, 1),
        format_args!("{read} {write}"),
    );
}

pub(crate) fn ipis_to_itself_arrive() {
    OWN.write(SVR, ENABLED);
    OWN.write(LDR, 0x0400_0000);
    let sends: [(u32, u32); 4] = [(0, SELF), (0, 0), (4, 1 << 11), (0, 2 << 18)];
    let seen = sends.map(|(to, how)| takes(LOW, || OWN.send(to, how | u32::from(LOW))));
    verdict("IPIs to itself arrive in xAPIC mode", seen == [1; 4], format_args!("{seen:?}"));
    let costs = exits_during(|| {
        for _ in 0..100 {
            OWN.send(0, SELF | u32::from(LOW));
        }
    });
    say!("exits for 100 IPIs by three writes to the page: {costs}");
}

pub(crate) fn the_timer_works(mode: &str) {
    const DIVIDE_BY_1: u32 = 0xb;
    OWN.write(DIVIDE, DIVIDE_BY_1);
    OWN.write(LVT_TIMER, TIMER.into());
    let seen = takes(TIMER, || {
        for _ in 0..50 {
            interrupts::disable();
            OWN.write(INITIAL_COUNT, 10_000);
            interrupts::enable_and_hlt();
        }
    });
    OWN.write(LVT_TIMER, MASKED);
    let masked = takes(TIMER, || OWN.write(INITIAL_COUNT, 1000));
    verdict(
        "the timer wakes a halted CPU, and not while it is masked",
        (seen, masked) == (50, 0),
        format_args!("{mode}: {seen}, {masked}"),
    );
}

/// TPR, PPR, ISR and IRR, and that a higher class interrupts a lower one.
pub(crate) fn priorities_hold() {
    let send = |vector: u8| OWN.send(0, SELF | u32::from(vector));
    OWN.write(TPR, 0x50);
    let held = takes(MIDDLE, || send(MIDDLE));
    let waits = OWN.bit(IRR, MIDDLE);
    let passes = takes(HIGH, || send(HIGH));
    let released = takes(MIDDLE, || OWN.write(TPR, 0));
    verdict(
        "TPR holds its class back and lets higher ones pass",
        (held, waits, passes, released) == (0, true, 1, 1),
        format_args!("{held} {waits} {passes} {released}"),
    );
    send(UNENDED);
    let (in_service, ppr) = (OWN.bit(ISR, UNENDED), OWN.read(PPR));
    let lower = takes(LOW, || send(LOW));
    let higher = takes(HIGH, || send(HIGH));
    let after = takes(LOW, crate::forms::end_by_immediate);
    verdict(
        "what is in service holds lower classes back until its EOI",
        (in_service, ppr, lower, higher, after) == (true, 0x50, 0, 1, 1),
        format_args!("{in_service} {ppr:#x} {lower} {higher} {after}"),
    );
    verdict("nothing is left in service", !OWN.bit(ISR, UNENDED), format_args!(""));
}

pub(crate) fn the_page_moves() {
    let moved = OWN.set_base(ELSEWHERE, XAPIC);
    let (here, there) = (peek(ELSEWHERE + 0x30), peek(PAGE + 0x30));
    let seen = takes(LOW, || OWN.send(0, SELF | u32::from(LOW)));
    let back = OWN.set_base(PAGE, XAPIC);
    verdict(
        "the page moves, and IPIs and EOIs with it",
        (moved, here, there, seen, back) == (true, 0x5_0014, NOTHING, 1, true),
        format_args!("{moved} {here:#x} {there:#x} {seen} {back}"),
    );
}

pub(crate) fn software_disabled_and_back() {
    OWN.write(LVT_TIMER, TIMER.into());
    OWN.write(SVR, ENABLED & !0x100);
    let lost = takes(LOW, || OWN.send(0, SELF | u32::from(LOW)));
    OWN.write(LVT_TIMER, TIMER.into());
    let masked = OWN.read(LVT_TIMER);
    OWN.write(SVR, ENABLED);
    let back = takes(LOW, || OWN.send(0, SELF | u32::from(LOW)));
    verdict(
        "a software-disabled APIC takes no IPI and keeps its timer masked",
        (lost, masked, back) == (0, MASKED | u32::from(TIMER), 1),
        format_args!("{lost} {masked:#x} {back}"),
    );
}

pub(crate) fn disabled_and_back() {
    OWN.send(0, SELF | u32::from(UNENDED));
    OWN.write(LVT_TIMER, TIMER.into());
    OWN.write(DIVIDE, 3);
    OWN.write(INITIAL_COUNT, 20_000);
    let off = OWN.set_base(PAGE, DISABLED);
    let fired = takes(TIMER, || (0..50_000).for_each(|_| spin_loop()));
    let page = peek(PAGE + 0x30);
    let on = OWN.set_base(PAGE, XAPIC);
    let after_reset = [SVR, LVT_TIMER, LDR, DFR, TPR, ICR, INITIAL_COUNT, DIVIDE];
    let after_reset = after_reset.map(|register| OWN.read(register));
    verdict(
        "a disabled APIC is silent, and as after reset when it comes back",
        (off, fired, page, on) == (true, 0, NOTHING, true)
            && after_reset == [0xff, MASKED, 0, NOTHING, 0, 0, 0, 0],
        format_args!("{off} {fired} {page:#x} {on} {after_reset:x?}"),
    );
    OWN.write(SVR, ENABLED);
    let works = takes(LOW, || OWN.send(0, SELF | u32::from(LOW)));
    verdict("it works again", works == 1, format_args!("{works}, id {:#x}", OWN.read(ID)));
}

pub(crate) fn x2apic_mode_is_free_again() {
    let on = OWN.set_base(PAGE, X2APIC);
    let page = peek(PAGE + 0x30);
    OWN.write(SVR, ENABLED);
    let mut seen = 0;
    let self_ipis = || {
        for _ in 0..100 {
            // SAFETY: x2APIC mode.
            unsafe { write_msr(arch::msr::IA32_X2APIC_SELF_IPI, LOW.into()) };
        }
    };
    let costs = exits_during(|| seen = takes(LOW, self_ipis));
    verdict(
        "in x2APIC mode the page is gone and interrupts arrive",
        (on, page, seen) == (true, NOTHING, 100),
        format_args!("{on} {page:#x} {seen}"),
    );
    say!("exits for 100 self-IPIs and EOIs after it: {costs}");
    say!("nested page faults: {}", exits(Counter::NestedPageFault));
}

/// TSC ticks that a hundred writes of an x2APIC register take.
fn ticks_of_writes(register: u32, value: u64) -> u64 {
    const WRITES: u64 = 100;
    let start = tsc();
    for _ in 0..WRITES {
        // SAFETY: x2APIC mode; the registers are this guest's.
        unsafe { write_msr(register, value) };
    }
    (tsc() - start) / WRITES
}

/// What an IPI costs beyond a register write that does not exit. Where the TSC counts instructions
/// (Bochs, one CPU), these are the hypervisor's, from the exit to the next entry.
pub(crate) fn the_icr_path_is_measured() {
    let to_itself = |vector: u8| ticks_of_writes(arch::msr::IA32_X2APIC_ICR, vector.into());
    interrupts::disable();
    // The first one may grant the vector.
    let (_, ipi) = (to_itself(LOW), to_itself(LOW));
    let free = ticks_of_writes(arch::msr::IA32_X2APIC_TPR, 0);
    interrupts::enable();
    say!("ticks for an IPI beyond a write that passes: {}", ipi.saturating_sub(free));
}
