//! The smallest pieces of work, a thousand times each, in the windows of the counting plugin
//! (`bench/README.md`). Runs on the bare machine, too.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

mod arrival;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::hint::black_box;

use arch::machine::Width;
use arch::{Hpa, Vector, msr};
use cpu::instructions::{cpuid, port_write, tsc, write_msr};
use cpu::local_apic::LocalApic;
use payload::{power_off, say};
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

const ROUNDS: u64 = 1000;
const VECTOR: Vector = Vector(0x61);
const IO_APIC: u64 = 0xfec0_0000;

struct Idt(UnsafeCell<InterruptDescriptorTable>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Idt {}
static IDT: Idt = Idt(UnsafeCell::new(InterruptDescriptorTable::new()));

extern "x86-interrupt" fn device(_: InterruptStackFrame) {
    end_of_interrupt();
}

fn end_of_interrupt() {
    // SAFETY: the local APIC is in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

/// Does `work` a thousand times in a window. The first time of all is before it: it grants vectors.
fn measure(name: &str, work: impl Fn()) {
    work();
    let before = exits();
    let start = tsc();
    // SAFETY: a NOP: window 1 opens.
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80, 0x01, 0x78, 0x65, 0x6e") };
    for _ in 0..ROUNDS {
        work();
    }
    // SAFETY: a NOP: window 1 closes.
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80, 0x81, 0x78, 0x65, 0x6e") };
    let ticks = tsc() - start;
    // Less the two CPUIDs that ask.
    let exits = exits().saturating_sub(before + 2);
    print(name, ticks, exits);
}

fn print(name: &str, ticks: u64, exits: u64) {
    say!("bench: micro-{name} operations {ROUNDS}");
    say!("bench: micro-{name} output busy={ticks} exits={exits}");
}

fn under_nexit() -> bool {
    cpuid(0x4000_0100, 0).ebx.to_le_bytes() == *b"Nexi"
}

/// This CPU's exits so far. Not inlined, or a part of it is moved into what is counted, another on each machine.
#[inline(never)]
fn exits() -> u64 {
    if !under_nexit() {
        return 0;
    }
    let answer = cpuid(0x4000_0101, 0);
    u64::from(answer.ebx) << 32 | u64::from(answer.eax)
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    for port in [0x21, 0xa1] {
        // SAFETY: masks both 8259s, whose vectors are those of exceptions.
        unsafe { port_write(port, Width::Byte, 0xff) };
    }
    // On a bare machine nobody may have set the line up: 8 bits, no parity.
    // SAFETY: COM1's line control register.
    unsafe { port_write(0x3fb, Width::Byte, 3) };
    // SAFETY: the payload owns the machine, and interrupts are off.
    let Some(apic) = (unsafe { LocalApic::enable() }) else {
        say!("FAILED: no x2APIC");
        power_off()
    };
    // SAFETY: nobody else uses the table yet.
    let idt = unsafe { &mut *IDT.0.get() };
    idt[VECTOR.0].set_handler_fn(device);
    // SAFETY: the handler takes an interrupt's stack.
    unsafe {
        idt[arrival::VECTOR.0].set_handler_addr(VirtAddr::from_ptr(arrival::handler as *const ()))
    };
    // SAFETY: the table is static.
    unsafe { idt.load_unsafe() };
    interrupts::enable();
    let me = apic.id();
    measure("cpuid", || {
        black_box(cpuid(0, 0));
    });
    measure("icr-to-handler", || apic.send(me, VECTOR));
    measure("self-ipi-to-handler", || apic.self_ipi(VECTOR));
    measure("eoi", end_of_interrupt);
    measure("nested-page-fault", || {
        // SAFETY: a read of the I/O APIC's index register.
        black_box(unsafe { cpu::physical::pointer::<u32>(Hpa::new(IO_APIC)).read_volatile() });
    });
    measure("timer-arm", || arm(1 << 30));
    // One-shot, not masked.
    // SAFETY: the guest's own timer.
    unsafe { write_msr(msr::IA32_X2APIC_LVT_TIMER, u64::from(VECTOR.0)) };
    measure("timer-to-handler", || {
        interrupts::disable();
        arm(1000);
        interrupts::enable_and_hlt();
    });
    arrival::message(me.0);
    arrival::line();
    say!("bench: end status 0");
    if !under_nexit() {
        // The emulated machine's own way to S5: type 0, where a guest's is 5.
        // SAFETY: the port is the machine's power control.
        unsafe { port_write(0x604, Width::Word, 1 << 13) };
    }
    power_off()
}

fn arm(ticks: u64) {
    // SAFETY: the guest's own timer.
    unsafe { write_msr(msr::IA32_X2APIC_INIT_COUNT, ticks) };
}
