//! A guest of two CPUs for a debugger. The first arms its timer for one interrupt after the other; the second sends it an
//! IPI whenever a debugger asks for one. Both count, so that each interrupt that a debugger has held up is accounted for.
//! The command line has the ticks of the timer: so many that the guest comes to a breakpoint first.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::{ApicId, Hpa, Vector, msr};
use cpu::instructions::{halt_forever, read_msr, write_msr};
use cpu::local_apic::LocalApic;
use cpu::start::StartPage;
use payload::{exits_during, loaded, power_off, say, verdict};
use x86_64::instructions::interrupts;
use x86_64::registers::control::Cr3;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

const TIMER: u8 = 0x51;
const IPI: Vector = Vector(0x52);
/// What `calls` calls.
const CALL: u8 = 0x60;

const START_PAGE: Hpa = Hpa::new(0x1_0000);
/// A low guess: it only makes the waits between INIT and the start-up IPIs.
const TSC_KHZ: u64 = 10_000;

/// Ticks of the timer until it interrupts, where no debugger is to come first.
const SOON: u64 = 100_000;

/// Declares counters that a debugger reads by name, too.
macro_rules! counters {
    ($($(#[$what:meta])* $name:ident),* $(,)?) => {
        $($(#[$what])* #[unsafe(no_mangle)] static $name: AtomicU64 = AtomicU64::new(0);)*
    };
}

counters! {
    /// The timer was armed so often, and has interrupted so often.
    ARMED, TICKS,
    /// The second CPU has sent so many IPIs, and the first has taken so many.
    SENT, TAKEN,
    /// Interrupts that were taken in `armed`: where the first CPU stands while a debugger holds it there.
    HELD,
    /// What each CPU counts while nothing else is to do.
    FIRST, SECOND,
    /// INT and SYSCALL of `calls`.
    CALLS, SYSCALLS,
    /// A debugger writes something here: the second CPU sends one IPI.
    ASKED,
    /// A debugger writes something here: it is done.
    DONE,
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::SeqCst) + 1
}

// `armed` and `sent` are places to be held at. `calls` leaves for two handlers, which come back.
global_asm!(
    ".global armed, armed_end, sent, calls, behind_int, behind_syscall, on_syscall",
    "armed: nop",
    "nop",
    "ret",
    "armed_end:",
    "sent: nop",
    "ret",
    "calls: int {call}",
    "behind_int: syscall",
    "behind_syscall: ret",
    "on_syscall: lock inc qword ptr [rip + {syscalls}]",
    "push r11",
    "popfq",
    "jmp rcx",
    call = const CALL,
    syscalls = sym SYSCALLS,
);

unsafe extern "C" {
    fn armed();
    fn armed_end();
    fn sent();
    fn calls();
    fn on_syscall();
}

/// Alone in its page: writes to a page with an IDT exit.
#[repr(align(4096))]
struct Table(InterruptDescriptorTable);
static mut TABLE: Table = Table(InterruptDescriptorTable::new());

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; 16384]>);
// SAFETY: the second CPU alone uses it.
unsafe impl Sync for Stack {}
static STACK: Stack = Stack(UnsafeCell::new([0; 16384]));

fn taken(counter: &AtomicU64, frame: &InterruptStackFrame) {
    count(counter);
    let place = armed as *const () as u64..armed_end as *const () as u64;
    if place.contains(&frame.instruction_pointer.as_u64()) {
        count(&HELD);
    }
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

#[unsafe(no_mangle)]
extern "x86-interrupt" fn tick(frame: InterruptStackFrame) {
    taken(&TICKS, &frame);
}

extern "x86-interrupt" fn ipi(frame: InterruptStackFrame) {
    taken(&TAKEN, &frame);
}

extern "x86-interrupt" fn call(_: InterruptStackFrame) {
    count(&CALLS);
}

/// One round of the second CPU: a place for a breakpoint.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn second_round() {
    count(&SECOND);
    if ASKED.swap(0, Ordering::SeqCst) != 0 {
        LocalApic::current().send(ApicId(0), IPI);
        count(&SENT);
        // SAFETY: it does nothing.
        unsafe { sent() };
    }
}

/// Interrupts are off here.
extern "C" fn second(_: u64) -> ! {
    while read(&DONE) == 0 {
        second_round();
    }
    halt_forever()
}

/// All that was armed or sent has come: a place for a breakpoint.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn arrived() {
    count(&FIRST);
}

/// Arms the timer, and waits until all that is on its way has come. `false`: it does not come, or more comes.
fn one_shot(ticks: u64) -> bool {
    const MAX_TURNS: u32 = 30_000_000;
    count(&ARMED);
    // SAFETY: the guest's own local APIC, in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_INIT_COUNT, ticks) };
    // SAFETY: it does nothing.
    unsafe { armed() };
    let all_came = (0..MAX_TURNS).any(|_| {
        count(&FIRST);
        read(&TICKS) == read(&ARMED) && read(&TAKEN) == read(&SENT)
    });
    arrived();
    all_came
}

/// Has SYSCALL stay in this code segment, with all flags as they are.
fn allow_system_calls() {
    const SYSCALL_ENABLE: u64 = 1;
    // SAFETY: ring 0.
    let efer = unsafe { read_msr(msr::IA32_EFER) };
    for (register, value) in [
        (msr::IA32_EFER, efer | SYSCALL_ENABLE),
        (msr::IA32_STAR, payload::trap::CODE_SEGMENT << 32),
        (msr::IA32_LSTAR, on_syscall as *const () as u64),
        (msr::IA32_FMASK, 0),
    ] {
        // SAFETY: the handler comes back to where it was called, with the flags of the caller.
        unsafe { write_msr(register, value) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: these are the arguments of `kernel_main`.
    let Some(info) = (unsafe { loaded(magic, info) }) else { power_off() };
    let later = info.command_line.trim().parse().unwrap_or(SOON);
    let table = &raw mut TABLE;
    // SAFETY: one CPU, before the table is loaded.
    let idt = unsafe { &mut (*table).0 };
    idt[TIMER].set_handler_fn(tick);
    idt[IPI.0].set_handler_fn(ipi);
    idt[CALL].set_handler_fn(call);
    idt.load();
    allow_system_calls();
    const SOFTWARE_ENABLE: u64 = 1 << 8;
    const DIVIDE_BY_1: u64 = 0xb;
    for (register, value) in [
        (msr::IA32_X2APIC_SIVR, SOFTWARE_ENABLE | 0xff),
        (msr::IA32_X2APIC_DIV_CONF, DIVIDE_BY_1),
        (msr::IA32_X2APIC_LVT_TIMER, u64::from(TIMER)),
    ] {
        // SAFETY: the guest's own local APIC.
        unsafe { write_msr(register, value) };
    }
    // SAFETY: low memory that nothing else uses.
    let mut page = unsafe { StartPage::new(START_PAGE) };
    let stack = STACK.0.get() as u64 + size_of::<Stack>() as u64;
    page.prepare(Hpa::new(Cr3::read().0.start_address().as_u64()), stack, second, 0);
    // SAFETY: x2APIC mode, and the guest's own CPU; low memory is executable.
    unsafe { page.start(ApicId(1), TSC_KHZ) };
    interrupts::enable();
    say!("two CPUs count");
    let mut right = true;
    while read(&DONE) == 0 && right {
        right = one_shot(later);
        // SAFETY: its handlers come back.
        unsafe { calls() };
    }
    // What comes twice, comes soon.
    right &= (0..3).all(|_| one_shot(SOON));
    let (ticks, armed) = (read(&TICKS), read(&ARMED));
    let (taken, sent) = (read(&TAKEN), read(&SENT));
    let seen = format_args!("{ticks} of {armed} ticks, {taken} of {sent} IPIs");
    verdict("each interrupt comes once", right && ticks == armed && taken == sent, seen);
    let exits = exits_during(|| right &= (0..10).all(|_| one_shot(SOON)));
    verdict("nothing exits behind a debugger", right && exits == 0, format_args!("{exits} exits"));
    power_off()
}
