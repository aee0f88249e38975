//! The exitless path from a guest's side: gates that are granted and not granted, `INT n`, EOI, the
//! APIC timer, HLT, and an IDT that moves and is rewritten while interrupts flow.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::msr;
use cpu::instructions::{cpuid, read_msr, tsc, write_msr};
use payload::{Counter, exits, exits_during, power_off, say, verdict};
use x86_64::instructions::interrupts;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

const SELF_IPI_VECTOR: u8 = 0x40;
const SOFTWARE_VECTOR: u8 = 0x50;
const ABSENT_VECTOR: u8 = 0x60;
const TIMER_VECTOR: u8 = 0x70;

static TAKEN: AtomicU32 = AtomicU32::new(0);
static TAKEN_BY_SECOND: AtomicU32 = AtomicU32::new(0);
static NOT_PRESENT_ERROR: AtomicU64 = AtomicU64::new(0);

extern "x86-interrupt" fn device(_: InterruptStackFrame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
    end_of_interrupt();
}

extern "x86-interrupt" fn second(_: InterruptStackFrame) {
    TAKEN_BY_SECOND.fetch_add(1, Ordering::Relaxed);
    end_of_interrupt();
}

extern "x86-interrupt" fn software(_: InterruptStackFrame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

extern "x86-interrupt" fn not_present(mut frame: InterruptStackFrame, error: u64) {
    NOT_PRESENT_ERROR.store(error, Ordering::Relaxed);
    // The saved RIP is that of `INT n` itself (SDM "Interrupt 11"): go on behind its two bytes.
    // SAFETY: the frame is this handler's own, and the code behind the instruction is the payload's.
    unsafe {
        frame.as_mut().update(|value| value.instruction_pointer += 2);
    }
}

fn end_of_interrupt() {
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

fn self_ipi(vector: u8) {
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_SELF_IPI, u64::from(vector)) };
}

/// Two IDTs' worth of room, so that a table can be put at any offset of its first page.
#[repr(align(4096))]
struct Room(core::cell::UnsafeCell<[u8; 3 * 4096]>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Room {}
static ROOM: Room = Room(core::cell::UnsafeCell::new([0; 3 * 4096]));

/// Puts the IDT at `offset` in [`ROOM`] and loads it.
fn load_idt(offset: usize) -> &'static mut InterruptDescriptorTable {
    // SAFETY: one CPU uses the room, and interrupts are off while the table moves.
    let table = unsafe {
        let at = ROOM.0.get().cast::<u8>().add(offset).cast::<InterruptDescriptorTable>();
        at.write(InterruptDescriptorTable::new());
        &mut *at
    };
    table.segment_not_present.set_handler_fn(not_present);
    table[SELF_IPI_VECTOR].set_handler_fn(device);
    table[SOFTWARE_VECTOR].set_handler_fn(software);
    table[TIMER_VECTOR].set_handler_fn(device);
    let pointer = DescriptorTablePointer {
        limit: (size_of::<InterruptDescriptorTable>() - 1) as u16,
        base: x86_64::VirtAddr::from_ptr(table),
    };
    // SAFETY: the table is static and its handlers are the functions above.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
    table
}

fn taken(work: impl FnOnce()) -> u32 {
    let before = TAKEN.load(Ordering::Relaxed);
    work();
    TAKEN.load(Ordering::Relaxed) - before
}

fn self_ipis(count: u32) {
    for _ in 0..count {
        self_ipi(SELF_IPI_VECTOR);
    }
}

fn first_arrival_is_granted() {
    let before = exits(Counter::ShadowGate);
    let seen = taken(|| self_ipis(1));
    let gates = exits(Counter::ShadowGate) - before;
    verdict(
        "a first arrival meets a gate that is not present and is delivered once",
        seen == 1,
        format_args!("{seen} taken, {gates} shadow_gate exits"),
    );
}

fn granted_vector_costs(table_is: &str) {
    let mut seen = 0;
    let spent = exits_during(|| seen = taken(|| self_ipis(1000)));
    verdict(
        "a thousand interrupts of a granted vector are all taken",
        seen == 1000,
        format_args!("{seen} taken; IDT {table_is}"),
    );
    say!("exits for 1000 self-IPIs with EOI, IDT {table_is}: {spent}");
}

fn software_interrupt_works() {
    let seen = taken(|| {
        for _ in 0..3 {
            // SAFETY: the handler changes nothing but a counter.
            unsafe { core::arch::asm!("int 0x50") };
        }
    });
    verdict("INT n of a vector never granted works", seen == 3, format_args!("{seen} of 3"));
}

fn own_absent_gate_is_a_fault() {
    NOT_PRESENT_ERROR.store(0, Ordering::Relaxed);
    // SAFETY: the gate is not present, so #NP's handler runs and skips the instruction.
    unsafe { core::arch::asm!("int 0x60") };
    let error = NOT_PRESENT_ERROR.load(Ordering::Relaxed);
    verdict(
        "INT n of a gate that the guest itself left not present is #NP",
        error == u64::from(ABSENT_VECTOR) << 3 | 2,
        format_args!("error code {error:#x}"),
    );
}

fn rewritten_gate_counts(table: &mut InterruptDescriptorTable) {
    let faults = exits(Counter::NestedPageFault);
    table[SELF_IPI_VECTOR].set_handler_fn(second);
    let faults = exits(Counter::NestedPageFault) - faults;
    let first = taken(|| self_ipis(10));
    let second = TAKEN_BY_SECOND.load(Ordering::Relaxed);
    table[SELF_IPI_VECTOR].set_handler_fn(device);
    verdict(
        "a rewritten gate takes effect at once",
        first == 0 && second == 10,
        format_args!("old handler {first}, new handler {second}, {faults} write exits"),
    );
}

/// Arms the APIC timer as one-shot for `count` ticks.
fn arm_timer(count: u64) {
    // SAFETY: the guest's own timer.
    unsafe { write_msr(msr::IA32_X2APIC_INIT_COUNT, count) };
}

fn timer_costs() {
    const DIVIDE_BY_1: u64 = 0xb;
    // SAFETY: the guest's own timer.
    unsafe { write_msr(msr::IA32_X2APIC_DIV_CONF, DIVIDE_BY_1) };
    // SAFETY: as above; one-shot, not masked.
    unsafe { write_msr(msr::IA32_X2APIC_LVT_TIMER, u64::from(TIMER_VECTOR)) };
    let mut seen = 0;
    let spent = exits_during(|| {
        seen = taken(|| {
            for _ in 0..100 {
                interrupts::disable();
                arm_timer(10_000);
                // Interrupts on and HLT in one go, so that the wake-up is not lost.
                interrupts::enable_and_hlt();
            }
        });
    });
    verdict("a halted CPU wakes for each timer interrupt", seen == 100, format_args!("{seen}"));
    say!("exits for 100 timers armed, slept for and ended: {spent}");
}

/// With interrupts off nothing but the watchdog can take the CPU from the guest.
fn watchdog_comes_back() {
    const MOST_TICKS: u64 = 40_000_000_000;
    interrupts::disable();
    let watchdog = || exits(Counter::Nmi) + exits(Counter::PreemptionTimer);
    let before = watchdog();
    let start = tsc();
    let mut rounds = 0_u64;
    while watchdog() == before && tsc() - start < MOST_TICKS {
        for _ in 0..100_000 {
            core::hint::spin_loop();
        }
        rounds += 1;
    }
    let ticks = watchdog() - before;
    interrupts::enable();
    verdict(
        "the watchdog calls the host back while the guest has interrupts off",
        ticks > 0,
        format_args!(
            "{ticks} calls: {} NMIs, {} preemption timers; {rounds} rounds",
            exits(Counter::Nmi),
            exits(Counter::PreemptionTimer)
        ),
    );
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    let signature = cpuid(0x4000_0100, 0);
    verdict(
        "the hypervisor's own leaf is there",
        signature.ebx.to_le_bytes() == *b"Nexi",
        format_args!("{:#x}", signature.ebx),
    );
    // SAFETY: the guest starts in x2APIC mode; bit 8 enables the APIC.
    unsafe { write_msr(msr::IA32_X2APIC_SIVR, 0x1ff) };
    // SAFETY: as above.
    let mode = unsafe { read_msr(msr::IA32_APIC_BASE) };
    verdict("the guest starts in x2APIC mode", mode >> 10 & 3 == 3, format_args!("{mode:#x}"));
    let table = load_idt(0);
    interrupts::enable();
    first_arrival_is_granted();
    granted_vector_costs("page-aligned");
    software_interrupt_works();
    own_absent_gate_is_a_fault();
    rewritten_gate_counts(table);
    timer_costs();
    interrupts::disable();
    load_idt(4096 - 16 * 0x40 - 8);
    interrupts::enable();
    granted_vector_costs("straddling two pages in the middle of a gate");
    watchdog_comes_back();
    for (name, counter) in [
        ("external_interrupt", Counter::ExternalInterrupt),
        ("eoi", Counter::Eoi),
        ("shadow_gate", Counter::ShadowGate),
    ] {
        say!("exits by {name}: {}", exits(counter));
    }
    say!("done");
    power_off()
}
