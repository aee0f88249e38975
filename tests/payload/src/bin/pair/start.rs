//! How the second CPU starts: the state behind INIT and a start-up IPI, at first and in the midst of work (SDM "IA-32 and
//! Intel 64 Processor States Following Power-up, Reset, or INIT", "Local APIC State After It Receives an INIT Reset").

use core::sync::atomic::Ordering::SeqCst;

use cpu::instructions::{cpuid, tsc};

use crate::other::{self, INIT, START};
use crate::trap::{self, HELD, HOLD, HOLDS, wait_until};
use crate::{capture, fact, local, state};

/// A fixed IPI.
const FIXED: u32 = other::ASSERT;

pub(crate) fn all() {
    other::stop();
    let before = tsc();
    fact!("AP: first: it comes to its loop"; "{}", other::start());
    tell("first", before);
    // The modes are the same from here on.
    other::run(enter_xapic_mode, 0);
    again("after INIT in the midst of work", 0);
    again("after INIT with CR0.CD", 1);
    other::run(enter_xapic_mode, 0);
    in_handlers();
    sequences();
}

pub(crate) fn in_x2apic_mode() {
    again("after INIT in x2APIC mode", 0);
    other::run(enter_x2apic_mode, 0);
    in_handlers();
}

pub(crate) extern "C" fn enter_xapic_mode(_: u64) -> u64 {
    local::enter_xapic_mode();
    0
}

pub(crate) extern "C" fn enter_x2apic_mode(_: u64) -> u64 {
    local::enter_x2apic_mode();
    0
}

fn again(when: &str, cache: u64) {
    other::begin(state::fill, cache);
    other::wait_for_it();
    let before = tsc();
    other::stop();
    fact!("AP: {when}: it comes to its loop"; "{}", other::start());
    tell(when, before);
}

fn tell(when: &str, before: u64) {
    let Some(state) = state::last() else { return };
    let [eax, ecx, edx, others @ ..] = capture::registers();
    fact!("AP: {when}: EAX, ECX, and EBX to EDI"; "{eax:#x}, {ecx:#x}, {others:x?}");
    fact!("AP: {when}: EDX is CPUID's signature"; "{}", edx == cpuid(1, 0).eax);
    fact!("AP: {when}: ES, CS, SS, DS, FS, GS"; "{:x?}", capture::selectors());
    fact!("AP: {when}: LDTR and TR"; "{:x?}", state.system_selectors());
    fact!("AP: {when}: EFLAGS"; "{:#x}", capture::flags());
    let [cr0, cr2, cr3, cr4] = capture::control();
    fact!("AP: {when}: CR0"; "{cr0:#x}");
    fact!("AP: {when}: CR2, CR3, CR4"; "{cr2:#x}, {cr3:#x}, {cr4:#x}");
    fact!("AP: {when}: EFER"; "{:#x}", capture::efer());
    fact!("AP: {when}: DR0 to DR3, DR6, DR7"; "{:x?}", capture::debug());
    fact!("AP: {when}: base and limit of GDTR and IDTR"; "{:x?}", capture::tables());
    for (name, value) in state.msrs() {
        fact!("AP: {when}: {name}"; "{value:#x}");
    }
    if let Some(value) = state.tsc_aux() {
        fact!("AP: {when}: IA32_TSC_AUX"; "{value:#x}");
    }
    if let Some(value) = state.xcr0() {
        fact!("AP: {when}: XCR0"; "{value:#x}");
    }
    fact!("AP: {when}: the TSC runs on"; "{}", state.tsc() > before && state.tsc() < tsc());
    // What firmware has left there is not of interest.
    if when != "first" {
        fact!("AP: {when}: FCW, FSW, FTW"; "{:x?}", state.x87());
        fact!("AP: {when}: MXCSR"; "{:#x}", state.mxcsr());
        fact!("AP: {when}: ST0 and XMM1"; "{:x?}", state.values());
    }
    fact!("AP: {when}: it is the bootstrap processor"; "{}", state.base() >> 8 & 1);
    fact!("AP: {when}: local APIC"; "{}", state.further_local());
    for (name, value) in state.local() {
        fact!("AP: {when}: local APIC: {name}"; "{value:#x}");
    }
}

/// INIT ends a handler: nothing is in service behind it, and NMIs come again.
fn in_handlers() {
    let mode = local::mode();
    for (name, how) in [("interrupt's", FIXED | u32::from(HOLDS)), ("NMI's", other::NMI)] {
        HOLD.store(1, SeqCst);
        HELD.store(0, SeqCst);
        other::begin(other::listen, 0);
        other::wait_for_it();
        local::send(1, how);
        let held = wait_until(|| HELD.load(SeqCst) != 0);
        other::stop();
        HOLD.store(0, SeqCst);
        let _ = trap::take_came(1);
        let started = other::start();
        let any = state::last().map(|state| state.in_service());
        fact!("AP: {mode}: INIT in an {name} handler: begun, started, any in service"; "{held}, {started}, {any:x?}");
        other::run(enable, 0);
        other::begin(other::listen, 0);
        other::wait_for_it();
        local::send(1, other::NMI);
        wait_until(|| trap::count(1) == 1);
        local::send(1, FIXED | 0x51);
        wait_until(|| trap::count(1) == 2);
        other::enough();
        other::end();
        fact!("AP: {mode}: INIT in an {name} handler: an NMI and 0x51 behind it"; "{}", trap::take_came(1));
    }
}

pub(crate) extern "C" fn enable(_: u64) -> u64 {
    local::write(local::SVR, local::ENABLED);
    0
}

/// How often the CPU starts by what is sent (SDM "MP Initialization Protocol Algorithm for Intel 64 Processors").
fn sequences() {
    const DEASSERT: u32 = 1 << 15 | 5 << 8;
    const OTHERS: u32 = 3 << 18;
    let sent = |name: &str, whats: &[(u32, u32)], alive: bool| {
        let (starts, entries) = (capture::starts(), other::entries());
        for (to, what) in whats {
            local::send(*to, *what);
            other::let_it_hear();
        }
        if alive {
            wait_until(|| other::entries() != entries);
        }
        let answers = other::run(answer, 20);
        let answers = if answers == 41 { "it works" } else { "it does not work" };
        let started = [capture::starts() - starts, other::entries() - entries];
        fact!("AP: {name}: starts, and it comes to its loop"; "{started:?}, {answers}");
    };
    sent("a start-up IPI to a CPU that runs", &[(1, START)], false);
    sent("INIT and two start-up IPIs", &[(1, INIT), (1, START), (1, START)], true);
    sent("INIT twice and a start-up IPI", &[(1, INIT), (1, INIT), (1, START)], true);
    sent(
        "INIT to all others, a start-up IPI to all others",
        &[(0, OTHERS | INIT), (0, OTHERS | START)],
        true,
    );
    sent("INIT de-assert, level", &[(1, DEASSERT)], false);
    sent("INIT, INIT de-assert, a start-up IPI", &[(1, INIT), (1, DEASSERT), (1, START)], true);
    sent("a start-up IPI, then INIT and one more", &[(1, START), (1, INIT), (1, START)], true);
    other::run(enable, 0);
}

extern "C" fn answer(argument: u64) -> u64 {
    2 * argument + 1
}
