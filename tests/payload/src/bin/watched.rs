//! A guest for a debugger: it counts, is interrupted by its timer all the while, and ends when a debugger says so.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::msr;
use cpu::instructions::write_msr;
use payload::{exits_during, power_off, say, verdict};
use x86_64::instructions::interrupts;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

const VECTOR: u8 = 0x51;

/// Interrupts that were taken.
#[unsafe(no_mangle)]
static TICKS: AtomicU64 = AtomicU64::new(0);
/// Rounds that were made.
#[unsafe(no_mangle)]
static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// A debugger writes something else here: it is done.
#[unsafe(no_mangle)]
static DONE: AtomicU64 = AtomicU64::new(0);

/// Its own breakpoint was met so often.
static MET: AtomicU64 = AtomicU64::new(0);

/// DR7 with a breakpoint of its own, for execution at DR1; and with none.
const OWN: u64 = 0x400 | 1 << 2;
const NONE: u64 = 0x400;

/// Alone in its page: writes to a page with an IDT exit.
#[repr(align(4096))]
struct Table(InterruptDescriptorTable);

static mut TABLE: Table = Table(InterruptDescriptorTable::new());

extern "x86-interrupt" fn tick(_: InterruptStackFrame) {
    TICKS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

extern "x86-interrupt" fn met(_: InterruptStackFrame) {
    MET.fetch_add(1, Ordering::Relaxed);
    // SAFETY: no breakpoint is on then.
    unsafe { asm!("mov dr7, {}", in(reg) NONE) };
}

/// More places for breakpoints than a CPU has.
macro_rules! places {
    ($($name:ident = $number:literal),*) => {
        $(
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name() -> u64 {
                black_box($number)
            }
        )*

        /// Through all of them.
        fn places() -> u64 {
            0 $(+ $name())*
        }
    };
}

places!(
    place_0 = 0x10,
    place_1 = 0x21,
    place_2 = 0x32,
    place_3 = 0x43,
    place_4 = 0x54,
    place_5 = 0x65
);

/// Where its own breakpoint is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn own_place() {
    black_box(());
}

/// Whether it reads back what it writes to its debug registers. Its own breakpoint is on afterwards.
fn debug_registers_are_right(rounds: u64) -> bool {
    const STATUS: u64 = 0xffff_0ff0;
    let wanted = [rounds, own_place as *const () as u64, !rounds, 3, STATUS, OWN];
    let mut read = [0_u64; 6];
    // SAFETY: what DR1 names is not executed before its handler is there.
    unsafe {
        asm!(
            "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr6, {4}", "mov dr7, {5}",
            in(reg) wanted[0], in(reg) wanted[1], in(reg) wanted[2], in(reg) wanted[3], in(reg) wanted[4], in(reg) wanted[5],
        );
    }
    // SAFETY: it reads them.
    unsafe {
        asm!(
            "mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3", "mov {4}, dr6", "mov {5}, dr7",
            out(reg) read[0], out(reg) read[1], out(reg) read[2], out(reg) read[3], out(reg) read[4], out(reg) read[5],
        );
    }
    read == wanted
}

/// One round: a place for a breakpoint.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn one_round(rounds: u64) -> u64 {
    ROUNDS.store(rounds, Ordering::Relaxed);
    black_box(rounds + 1)
}

/// What a step must not change: PUSHFQ and POPFQ, CLI and STI. The flags that were pushed, with interrupts on and with
/// interrupts off.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flags() -> u64 {
    let (on, off): (u64, u64);
    // SAFETY: interrupts are on before and behind it; the stack is as it was.
    unsafe {
        asm!("pushfq", "pop {}", "cli", "pushfq", "pop {}", "sti", "pushfq", "popfq", out(reg) on, out(reg) off);
    }
    black_box(on << 32 | off & 0xffff_ffff)
}

/// Where the CPU has AVX: switches it on, and puts a number in the upper half of YMM5.
fn fill_upper_half() -> bool {
    const XSAVE_AND_AVX: u32 = 1 << 26 | 1 << 28;
    const OSXSAVE: u64 = 1 << 18;
    const FPU_SSE_AVX: u32 = 7;
    if core::arch::x86_64::__cpuid(1).ecx & XSAVE_AND_AVX != XSAVE_AND_AVX {
        return false;
    }
    let number = [0x1234_5678_9abc_def0_u64, 0x1122_3344_5566_7788];
    // SAFETY: the CPU has both; nothing else uses the registers.
    unsafe {
        asm!(
            "mov {cr4}, cr4", "or {cr4}, {osxsave}", "mov cr4, {cr4}", "xsetbv",
            "vzeroall", "vinsertf128 ymm5, ymm5, [{number}], 1",
            cr4 = out(reg) _, osxsave = in(reg) OSXSAVE, number = in(reg) &raw const number,
            in("ecx") 0, in("eax") FPU_SSE_AVX, in("edx") 0
        );
    }
    true
}

/// Whether the flags are what they are without a debugger: IF set and clear, TF never.
fn flags_are_right() -> bool {
    const TRAP: u64 = 1 << 8;
    const INTERRUPTS: u64 = 1 << 9;
    let seen = flags();
    seen >> 32 & (TRAP | INTERRUPTS) == INTERRUPTS && seen & (TRAP | INTERRUPTS) == 0
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    let table = &raw mut TABLE;
    // SAFETY: one CPU, before the table is loaded.
    let idt = unsafe { &mut (*table).0 };
    idt[VECTOR].set_handler_fn(tick);
    idt.debug.set_handler_fn(met);
    idt.load();
    const SOFTWARE_ENABLE: u64 = 1 << 8;
    const PERIODIC: u64 = 1 << 17;
    const DIVIDE_BY_1: u64 = 0xb;
    for (register, value) in [
        (msr::IA32_X2APIC_SIVR, SOFTWARE_ENABLE | 0xff),
        (msr::IA32_X2APIC_DIV_CONF, DIVIDE_BY_1),
        (msr::IA32_X2APIC_LVT_TIMER, PERIODIC | u64::from(VECTOR)),
        (msr::IA32_X2APIC_INIT_COUNT, 100_000),
    ] {
        // SAFETY: the guest's own local APIC.
        unsafe { write_msr(register, value) };
    }
    // SAFETY: nothing else uses the FPU.
    unsafe { asm!("fninit", "fldpi") };
    say!("AVX: {}", if fill_upper_half() { "on" } else { "none" });
    // SAFETY: nobody makes a system call.
    unsafe { write_msr(msr::IA32_LSTAR, 0x1234_5678) };
    interrupts::enable();
    say!("counting");
    let (mut rounds, mut wrong, mut wrong_debug) = (0, 0, 0);
    while DONE.load(Ordering::Relaxed) == 0 {
        rounds = one_round(rounds);
        wrong += u64::from(!flags_are_right());
        wrong_debug += u64::from(!debug_registers_are_right(rounds));
        black_box(places());
    }
    verdict("its flags are its own", wrong == 0, format_args!("{wrong} of {rounds} rounds"));
    let seen = format_args!("{wrong_debug} of {rounds} rounds");
    verdict("its debug registers are its own", wrong_debug == 0, seen);
    own_place();
    let met = MET.load(Ordering::Relaxed);
    verdict("its own breakpoint is met behind a debugger", met == 1, format_args!("{met} times"));
    let before = TICKS.load(Ordering::Relaxed);
    let exits = exits_during(|| {
        while TICKS.load(Ordering::Relaxed) < before + 100 {
            core::hint::spin_loop();
        }
    });
    verdict("nothing exits behind a debugger", exits == 0, format_args!("{exits} exits"));
    power_off()
}
