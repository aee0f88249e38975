//! The old clocks: the 8254's ticks and the UART's interrupts through the two 8259s, as firmware has left LINT0.

use core::arch::asm;

use arch::machine::Width;
use cpu::instructions::{port_read, port_write};

use crate::trap::{self, Came};
use crate::{fact, local};

const PIT_CONTROL: u16 = 0x43;
const PIT_COUNT: u16 = 0x40;
/// A millisecond.
const COUNT: u16 = 1193;
/// Twenty.
const LONGER: u16 = 23_864;
const UART: u16 = 0x3f8;
const LINT0: u16 = 0x350;
const EXTERNAL: u32 = 0x700;

fn out(port: u16, value: u8) {
    // SAFETY: the payload's own 8259s, 8254 or UART.
    unsafe { port_write(port, Width::Byte, value.into()) };
}

fn input(port: u16) -> u8 {
    // SAFETY: as above.
    unsafe { port_read(port, Width::Byte) as u8 }
}

/// Both 8259s with this ICW4, at vectors 0x60 and 0x68, and these lines of the first not masked.
fn prepare(icw4: u8, lines: u8) {
    for (command, base, cascade) in [(0x20, 0x60, 4), (0xa0, 0x68, 2)] {
        out(command, 0x11);
        [base, cascade, icw4].into_iter().for_each(|word| out(command + 1, word));
        out(command + 1, 0xff);
    }
    out(0x21, !lines);
}

/// Requests, or with 0x0B what is in service.
fn register(command: u8) -> u8 {
    out(0x20, command);
    input(0x20)
}

fn end() {
    out(0x20, 0x20);
}

fn begin(mode: u8, count: u16) {
    out(PIT_CONTROL, 0x30 | mode << 1);
    count.to_le_bytes().into_iter().for_each(|byte| out(PIT_COUNT, byte));
}

/// Waits for a request of line 0.
fn requested() -> bool {
    (0..200_000).any(|_| register(0x0a) & 1 != 0)
}

/// Lets interrupts in for up to `turns` while none has come.
fn let_in(turns: u32) -> Came {
    for _ in 0..turns {
        // SAFETY: the table has a gate for each vector.
        unsafe { asm!("sti", "nop", "nop", "cli") };
        if trap::any_came() {
            break;
        }
    }
    trap::take_came()
}

/// Long enough for three ticks.
fn next() -> Came {
    let_in(2_000_000)
}

/// Halts until one comes.
fn halted() -> Came {
    // SAFETY: as for `let_in`.
    unsafe { asm!("sti", "hlt", "cli") };
    trap::take_came()
}

fn periodic() {
    prepare(1, 1);
    for (name, mode) in [("2", 2), ("3", 3)] {
        begin(mode, COUNT);
        fact!("clocks: mode {name}: a tick"; "{}", next());
        fact!("clocks: mode {name}: in service"; "{:#x}", register(0x0b));
        fact!("clocks: mode {name}: the next is requested"; "{}", requested());
        fact!("clocks: mode {name}: and waits for the end of the first"; "{}", trap::listen());
        end();
        fact!("clocks: mode {name}: after that"; "{}", trap::listen());
        end();
        fact!("clocks: mode {name}: a tick ends a halt"; "{}", halted());
        end();
        out(0x21, 0xff);
        fact!("clocks: mode {name}: requested though masked"; "{}", requested());
        fact!("clocks: mode {name}: masked"; "{}", trap::listen());
        out(0x21, 0xfe);
        fact!("clocks: mode {name}: not masked any more"; "{}", trap::listen());
        end();
    }
    prepare(3, 1);
    let came = [next(), next()].map(|came| came.any());
    fact!("clocks: ticks with automatic EOI, and another"; "{came:?}");
    fact!("clocks: in service with automatic EOI"; "{:#x}", register(0x0b));
}

fn once() {
    for mode in [0, 4] {
        // The 8259s forget what has ticked before.
        begin(mode, LONGER);
        prepare(1, 1);
        fact!("clocks: mode {mode}: the tick"; "{}", next());
        end();
        fact!("clocks: mode {mode}: no other one"; "{}", let_in(20_000));
        LONGER.to_le_bytes().into_iter().for_each(|byte| out(PIT_COUNT, byte));
        fact!("clocks: mode {mode}: loaded again"; "{}", next());
        end();
    }
}

fn by_poll() {
    prepare(1, 1);
    begin(2, COUNT);
    fact!("clocks: polled, requested"; "{}", requested());
    out(0x20, 0x0c);
    fact!("clocks: polled"; "{:#x}", input(0x20));
    fact!("clocks: in service after the poll"; "{:#x}", register(0x0b));
    end();
}

fn by_lint0() {
    prepare(1, 1);
    local::write(LINT0, 1 << 16 | EXTERNAL);
    fact!("clocks: LINT0 masked"; "{}, {}", requested(), trap::listen());
    local::write(LINT0, EXTERNAL);
    fact!("clocks: LINT0 not masked any more"; "{}", next());
    end();
}

fn of_the_uart() {
    out(PIT_CONTROL, 0x30);
    prepare(1, 1 << 4);
    out(UART + 4, 8);
    out(UART + 1, 2);
    let came = let_in(20_000);
    let reason = input(UART + 2);
    out(UART + 1, 0);
    fact!("clocks: the UART's transmitter is empty"; "{came}, {:#x}", reason & 0xf);
    end();
    out(0x4d0, 0xff);
    out(0x4d1, 0xff);
    fact!("clocks: which lines may be level-triggered"; "{:#x}, {:#x}", input(0x4d0), input(0x4d1));
    out(0x4d0, 0);
    out(0x4d1, 0);
}

pub(crate) fn all() {
    periodic();
    once();
    by_poll();
    // The local APIC is enabled, as LINT0 is masked else.
    local::enable();
    by_lint0();
    of_the_uart();
    for port in [0x21, 0xa1] {
        out(port, 0xff);
    }
}
