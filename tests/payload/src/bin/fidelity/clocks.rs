//! The old clocks: channel 2 of the 8254, the ticks of its first and the UART's interrupts through the two 8259s, as firmware has left LINT0.

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

const PORT_61: u16 = 0x61;
const CHANNEL_2: u16 = 0x42;
/// 50 ms.
const LONGEST: u16 = 59_659;

fn gate(open: bool) {
    out(PORT_61, open.into());
}

/// The output of channel 2.
fn high() -> u8 {
    input(PORT_61) >> 5 & 1
}

fn turns(high: impl Fn() -> bool) -> bool {
    (0..2_000_000).any(|_| high())
}

/// Channel 2 with this control word, decimal or not, and this count.
fn begin_2(control: u8, count: u16) {
    out(PIT_CONTROL, 0xb0 | control);
    count.to_le_bytes().into_iter().for_each(|byte| out(CHANNEL_2, byte));
}

fn count() -> u16 {
    out(PIT_CONTROL, 0x80);
    u16::from_le_bytes([input(CHANNEL_2), input(CHANNEL_2)])
}

/// Whether the count goes on.
fn counts() -> bool {
    let before = count();
    turns(|| count() != before)
}

fn stands() -> bool {
    let before = count();
    (0..200).all(|_| count() == before)
}

/// What read-back says.
fn status() -> u8 {
    out(PIT_CONTROL, 0xe8);
    input(CHANNEL_2)
}

/// The gate and the output of channel 2, by port 0x61.
fn by_gate() {
    for mode in [0, 4] {
        gate(true);
        begin_2(mode << 1, LONGEST);
        fact!("clocks: channel 2, mode {mode}: it counts, output meanwhile"; "{}, {}", counts(), high());
        gate(false);
        fact!("clocks: channel 2, mode {mode}: gate low: the count stands, output"; "{}, {}", stands(), high());
        let rest = count();
        gate(true);
        fact!("clocks: channel 2, mode {mode}: gate high: it goes on with the rest"; "{}", counts() && count() < rest);
        fact!("clocks: channel 2, mode {mode}: at its end"; "{}, {}", turns(|| count() > rest), high());
        gate(false);
        fact!("clocks: channel 2, mode {mode}: gate low behind its end"; "{}", high());
        out(PIT_CONTROL, 0xb0 | mode << 1);
        fact!("clocks: channel 2, mode {mode}: behind a control word, half a count, a count"; "{}, {}, {}", high(),
            { out(CHANNEL_2, 0); high() }, { out(CHANNEL_2, 0x10); high() });
    }
    for mode in [1, 5] {
        gate(true);
        begin_2(mode << 1, LONGEST);
        fact!("clocks: channel 2, mode {mode}: output before its trigger"; "{}", high());
        gate(false);
        gate(true);
        fact!("clocks: channel 2, mode {mode}: triggered: it counts, output meanwhile"; "{}, {}", counts(), high());
        gate(false);
        fact!("clocks: channel 2, mode {mode}: gate low: it counts, output"; "{}, {}", counts(), high());
        let rest = count();
        gate(true);
        fact!("clocks: channel 2, mode {mode}: triggered once more: it begins anew"; "{}, {}", turns(|| count() > rest), high());
        fact!("clocks: channel 2, mode {mode}: at its end"; "{}, {}", turns(|| count() > LONGEST), high());
    }
    for mode in [2, 3] {
        gate(true);
        begin_2(mode << 1, LONGEST);
        fact!("clocks: channel 2, mode {mode}: it counts"; "{}", counts());
        // In mode 2 the output is low for a clock, which nobody sees.
        let low = mode == 2 || turns(|| high() == 0);
        gate(false);
        fact!("clocks: channel 2, mode {mode}: gate low: the count stands, output"; "{low}, {}, {}", stands(), high());
        gate(true);
        fact!("clocks: channel 2, mode {mode}: gate high: it counts"; "{}, {}", counts(), high());
    }
}

fn decimal() {
    gate(true);
    begin_2(1, 0x9999);
    let decimal = |count: u16| [0, 4, 8, 12].into_iter().all(|shift| count >> shift & 0xf < 10);
    fact!("clocks: channel 2, decimal: digits of 200 counts"; "{}", (0..200).all(|_| decimal(count())));
    fact!("clocks: channel 2, decimal: it ends"; "{}", turns(|| high() == 1));
    fact!("clocks: channel 2, decimal: and goes on with 9999"; "{}", turns(|| count() > 0x9000) && decimal(count()));
    gate(false);
    for control in [0, 1, 4, 7, 9] {
        out(PIT_CONTROL, 0xb0 | control);
        let [first, loaded] = [status(), {
            [0, 0x10].into_iter().for_each(|byte| out(CHANNEL_2, byte));
            // It is loaded with the next clock.
            (0..100).map(|_| status()).find(|status| status & 0x40 == 0).unwrap_or(0xff)
        }];
        fact!("clocks: channel 2, control {control}: status before a count and behind it"; "{first:#x}, {loaded:#x}");
    }
    out(PIT_CONTROL, 0xb2);
    [0, 0x10].into_iter().for_each(|byte| out(CHANNEL_2, byte));
    let waiting = status();
    gate(true);
    let triggered = turns(|| status() & 0x40 == 0);
    fact!("clocks: channel 2, mode 1: a count that waits for its trigger"; "{waiting:#x}, {triggered}");
    gate(false);
}

pub(crate) fn all() {
    by_gate();
    decimal();
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
