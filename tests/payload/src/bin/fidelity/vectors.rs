//! The vectors 0 to 31 as interrupts, and priorities at the edges of their classes.

use crate::fact;
use crate::local::{self, PPR, TPR, mode, read, send, set_cr8, write};
use crate::trap;

const ESR: u16 = 0x280;
const TIMER: u16 = 0x320;
const INITIAL_COUNT: u16 = 0x380;
const MASKED: u32 = 1 << 16;
/// The vectors 0 to 31 are told of as 0xC0 to 0xDF while they are interrupts.
const AS: u8 = 0xc0;

pub(crate) fn all() {
    let mode = mode();
    for vector in 0..32 {
        trap::set_gate_of(vector, AS + vector);
    }
    too_low(mode);
    low(mode);
    for vector in 0..32 {
        trap::set_gate_of(vector, vector);
    }
    edges(mode);
}

/// Those that cannot be sent.
fn too_low(mode: &str) {
    write(ESR, 0);
    write(ESR, 0);
    // QEMU requests 0, too, and then never delivers it.
    for vector in 1..16 {
        send(vector);
        let came = trap::listen();
        write(ESR, 0);
        fact!("vectors: {mode}: too low, by ICR: {vector}"; "{came}, ESR {:#x}", read(ESR));
    }
    write(ESR, 0);
}

fn low(mode: &str) {
    for vector in 16..32 {
        send(vector);
        let came = trap::listen();
        fact!("vectors: {mode}: {vector} by ICR"; "{came}");
    }
    if local::in_x2apic_mode() {
        for vector in 16..32 {
            write(0x3f0, vector);
        }
        fact!("vectors: {mode}: 16 to 31 by SELF IPI, at once"; "{}", trap::listen());
    }
    (16..32).for_each(send);
    fact!("vectors: {mode}: 16 to 31 by ICR, at once"; "{}", trap::listen());
    set_cr8(1);
    send(0x1f);
    fact!("vectors: {mode}: 31 at CR8 = 1"; "{}", trap::listen());
    send(0x20);
    fact!("vectors: {mode}: 32 at CR8 = 1"; "{}", trap::listen());
    set_cr8(0);
    fact!("vectors: {mode}: 31 at CR8 = 0"; "{}", trap::listen());
    for tpr in [0xf, 0x10] {
        write(TPR, tpr);
        send(0x10);
        fact!("vectors: {mode}: 16 at TPR = {tpr:#x}"; "{}", trap::listen());
    }
    write(TPR, 0);
    let _ = trap::listen();
    for vector in [16, 17, 18, 30, 31] {
        write(0x3e0, 0xb);
        write(TIMER, vector);
        write(INITIAL_COUNT, 1000);
        (0..200).for_each(|_| trap::wait());
        fact!("vectors: {mode}: {vector} by the timer"; "{}", trap::listen());
    }
    write(TIMER, MASKED);
    write(ESR, 0);
    fact!("vectors: {mode}: ESR behind them"; "{:#x}", {
        write(ESR, 0);
        read(ESR)
    });
}

/// PPR by TPR and by what is in service; their classes are not the same, where a CPU may do as it likes.
fn edges(mode: &str) {
    local::ends(false);
    // 0xFF is the spurious vector, which is not in service.
    for (served, tprs) in [
        (0x7f_u32, [0x6f_u32, 0x80, 0x8f, 0x00, 0x0f, 0xff]),
        (0x20, [0x1f, 0x30, 0x3a, 0x00, 0x0f, 0xf0]),
        (0xfe, [0xef, 0xe0, 0x10, 0x00, 0x0f, 0x7f]),
    ] {
        send(served);
        let came = trap::listen();
        let seen = tprs.map(|tpr| {
            write(TPR, tpr);
            read(PPR)
        });
        fact!("vectors: {mode}: PPR with {served:#x} in service, TPR {tprs:x?}"; "{came}, {seen:x?}");
        write(TPR, 0);
        let next = served & 0xf0 | 1;
        let other = (served & 0xf0).wrapping_add(0x10) & 0xff;
        send(next);
        let same = trap::listen();
        fact!("vectors: {mode}: {next:#x} with {served:#x} in service"; "{same}");
        if other != 0 {
            send(other);
            let higher = trap::listen();
            fact!("vectors: {mode}: {other:#x} with {served:#x} in service"; "{higher}, PPR {:#x}", read(PPR));
            local::end();
        }
        local::end();
        fact!("vectors: {mode}: {next:#x} behind its end"; "{}, PPR {:#x}", trap::listen(), read(PPR));
        local::end();
        fact!("vectors: {mode}: PPR behind the end of {next:#x}"; "{:#x}", read(PPR));
        local::end();
    }
    local::ends(true);
}
