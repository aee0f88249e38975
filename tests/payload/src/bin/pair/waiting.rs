//! IPIs to a CPU that halts, waits for a start-up IPI, or has its local APIC off.

use core::sync::atomic::Ordering::SeqCst;

use crate::ipi::{FIXED, mark_other};
use crate::other::{self, ASSERT, NMI};
use crate::trap::{self, Came, HOLD, pause, wait_until};
use crate::{capture, fact, local, start};

pub(crate) fn all() {
    HOLD.store(0, SeqCst);
    halted();
    stopped();
    off();
}

/// HLT ends with what comes, whenever that is.
fn halted() {
    let mode = local::mode();
    other::begin(other::halt, 0);
    other::wait_for_it();
    pause();
    local::send(1, FIXED);
    let came = wait_until(|| trap::count(1) == 1);
    pause();
    local::send(1, ASSERT | 0x71);
    let again = wait_until(|| trap::count(1) == 2);
    fact!("waiting: {mode}: 0x51 and 0x71 to a CPU in HLT"; "{came}, {again}, {}", trap::take_came(1));
    // One that comes before HLT ends none: then the next one does.
    local::send(1, NMI);
    let nmi = wait_until(|| trap::count(1) == 1);
    fact!("waiting: {mode}: NMI to a CPU in HLT"; "{nmi}, {}", trap::take_came(1));
    other::enough();
    local::send(1, FIXED);
    let woken = other::end() != !0;
    fact!("waiting: {mode}: the loop of HLT ends"; "{woken}, {}", trap::take_came(1));
    // With interrupts off an NMI ends it, or INIT; no fixed one does.
    other::begin(halt_with_interrupts_off, 0);
    other::wait_for_it();
    pause();
    local::send(1, FIXED);
    (0..3).for_each(|_| pause());
    let count = trap::count(1);
    let mut sent = 0;
    while sent < 100 && !other::done() {
        local::send(1, NMI);
        sent += 1;
        wait_until(|| trap::count(1) == count + sent);
        pause();
    }
    let ended = other::end() != !0;
    let _ = trap::take_came(1);
    fact!("waiting: {mode}: HLT with IF = 0: came by 0x51, ended by NMIs"; "{count}, {ended}");
    fact!("waiting: {mode}: 0x51 comes behind it"; "{}", let_in());
    other::begin(halt_for_ever, 0);
    other::wait_for_it();
    pause();
    other::stop();
    let started = other::start();
    other::run(start::enable, 0);
    fact!("waiting: {mode}: INIT and a start-up IPI to a CPU in HLT with IF = 0"; "{started}");
}

/// Has CPU 1 take interrupts: what has waited, up to a marker behind it.
fn let_in() -> Came {
    other::begin(other::listen, 0);
    other::wait_for_it();
    mark_other();
    other::enough();
    other::end();
    trap::take_came(1)
}

extern "C" fn halt_with_interrupts_off(_: u64) -> u64 {
    other::ready();
    // SAFETY: an NMI ends it.
    unsafe { core::arch::asm!("hlt") };
    0
}

extern "C" fn halt_for_ever(_: u64) -> u64 {
    other::ready();
    loop {
        // SAFETY: INIT ends it.
        unsafe { core::arch::asm!("cli", "hlt") };
    }
}

/// A CPU that waits for a start-up IPI.
fn stopped() {
    let mode = local::mode();
    // QEMU's CPU, which is AMD's here, takes an NMI, and was not seen to start behind it; and nothing tells when it has
    // heard the INIT that takes away what was sent before.
    if !other::is_intel() {
        return;
    }
    for (name, how) in [("0x51", FIXED), ("an NMI", NMI), ("two NMIs", NMI)] {
        other::stop();
        let (starts, nmis) = (capture::starts(), capture::nmis());
        local::send(1, how);
        if name == "two NMIs" {
            local::send(1, how);
        }
        other::let_it_hear();
        let still = capture::starts() - starts;
        let started = other::start();
        other::run(start::enable, 0);
        let came = let_in();
        let nmis = capture::nmis() - nmis;
        fact!("waiting: {mode}: {name} to a CPU that waits for a start-up IPI: starts by it, starts, NMIs in real mode, comes later"; "{still}, {started}, {nmis}, {came}");
    }
    other::stop();
    let nmis = capture::nmis();
    local::send(1, NMI);
    other::let_it_hear();
    other::stop();
    let started = other::start();
    let nmis = capture::nmis() - nmis;
    other::run(start::enable, 0);
    fact!("waiting: {mode}: NMI, INIT, start-up IPI to such a CPU: starts, NMIs in real mode"; "{started}, {nmis}");
}

/// A CPU whose local APIC is software-disabled (SDM "Local APIC State After It Has Been Software Disabled").
fn off() {
    let mode = local::mode();
    other::run(switch_off, 0);
    local::send(1, FIXED);
    (0..3).for_each(|_| pause());
    fact!("waiting: {mode}: 0x51 to a CPU whose APIC is software-disabled: IRR"; "{}", other::run(irr, 0x51));
    local::send(1, NMI);
    let came = wait_until(|| trap::count(1) == 1);
    fact!("waiting: {mode}: NMI to a CPU whose APIC is software-disabled"; "{came}, {}", trap::take_came(1));
    other::run(start::enable, 0);
    fact!("waiting: {mode}: 0x51 once it is on again"; "{}", let_in());
    // What waits stays.
    local::send(1, FIXED);
    (0..3).for_each(|_| pause());
    let waits = other::run(irr, 0x51);
    other::run(switch_off, 0);
    let off = other::run(irr, 0x51);
    other::run(start::enable, 0);
    fact!("waiting: {mode}: 0x51 waits, the APIC is switched off and on: IRR before, off; comes"; "{waits}, {off}, {}", let_in());
}

extern "C" fn switch_off(_: u64) -> u64 {
    local::write(local::SVR, local::ENABLED & !0x100);
    0
}

extern "C" fn irr(vector: u64) -> u64 {
    local::bit(local::IRR, vector as u8).into()
}
