//! What arrives at this CPU: an IDT that catches the fault of a trial and counts everything else.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::msr;
use cpu::instructions::write_msr;
use payload::trap::{Faults, LIMIT, Table};
use payload::{power_off, say};
use x86_64::VirtAddr;
use x86_64::structures::idt::InterruptStackFrame;

/// The vector of the guest's own timer.
pub(crate) const TIMER: u8 = 0x70;
/// The vector of an `INT n`.
const SOFTWARE: u8 = 0x50;
/// Vectors that the guest sends itself on purpose.
pub(crate) const OWN: core::ops::RangeInclusive<u8> = 0x40..=0x4f;

/// Where a trial that faults goes on; 0 outside a trial.
pub(crate) static RESUME: AtomicU64 = AtomicU64::new(0);
/// The vector of the last trial's fault; [`NONE`] without one.
pub(crate) static FAULT: AtomicU32 = AtomicU32::new(NONE);
pub(crate) const NONE: u32 = u32::MAX;

pub(crate) static TICKS: AtomicU32 = AtomicU32::new(0);
pub(crate) static NMIS: AtomicU32 = AtomicU32::new(0);
pub(crate) static STEPS: AtomicU32 = AtomicU32::new(0);
/// Interrupts that the guest sent itself, and those that nobody here asked for.
pub(crate) static EXPECTED: AtomicU32 = AtomicU32::new(0);
pub(crate) static STRAY: AtomicU32 = AtomicU32::new(0);

/// Runs one instruction, with register operands as `asm!` takes them. The vector of its fault.
macro_rules! fault_of {
    ($code:literal $(, $($operands:tt)*)?) => {{
        use core::sync::atomic::Ordering;
        $crate::trap::FAULT.store($crate::trap::NONE, Ordering::Relaxed);
        // SAFETY: a fault leads behind the instruction, and what it may change is the guest's own.
        unsafe {
            core::arch::asm!(
                "lea r11, [rip + 77f]",
                "mov [rip + {resume}], r11",
                $code,
                "77:",
                resume = sym $crate::trap::RESUME,
                out("r11") _,
                $($($operands)*)?
            );
        }
        $crate::trap::RESUME.store(0, Ordering::Relaxed);
        $crate::trap::FAULT.load(Ordering::Relaxed)
    }};
}
pub(crate) use fault_of;

/// Ends a trial by its fault.
struct Trial;

impl Faults for Trial {
    fn fault(vector: u64, _: u64, frame: &mut InterruptStackFrame) {
        let resume = RESUME.swap(0, Ordering::Relaxed);
        if resume == 0 {
            say!("FAILED: exception {vector} at {:#x}", frame.instruction_pointer);
            power_off();
        }
        FAULT.store(vector as u32, Ordering::Relaxed);
        // SAFETY: the frame is this handler's own; a trial left the address.
        unsafe { frame.as_mut().update(|value| value.instruction_pointer = VirtAddr::new(resume)) };
    }
}

/// A single step, or what stands for it: goes on.
extern "x86-interrupt" fn step(_: InterruptStackFrame) {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

extern "x86-interrupt" fn nmi(_: InterruptStackFrame) {
    NMIS.fetch_add(1, Ordering::Relaxed);
}

extern "x86-interrupt" fn tick(_: InterruptStackFrame) {
    TICKS.fetch_add(1, Ordering::Relaxed);
    end_of_interrupt();
}

extern "x86-interrupt" fn expected(_: InterruptStackFrame) {
    EXPECTED.fetch_add(1, Ordering::Relaxed);
    end_of_interrupt();
}

extern "x86-interrupt" fn stray(_: InterruptStackFrame) {
    STRAY.fetch_add(1, Ordering::Relaxed);
    end_of_interrupt();
}

fn end_of_interrupt() {
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

static TABLE: Table = Table::new();

/// The page that holds the IDT.
pub(crate) fn page() -> u64 {
    TABLE.address()
}

/// Has `vector` delivered on one of the TSS's stacks.
pub(crate) fn use_stack(vector: u8, stack: u64) {
    TABLE.use_stack(vector, stack);
}

/// Makes the table and loads it.
pub(crate) fn load() {
    (32..=255).for_each(|vector| TABLE.set(vector, stray as *const ()));
    OWN.for_each(|vector| TABLE.set(vector, expected as *const ()));
    TABLE.set(TIMER, tick as *const ());
    TABLE.catch::<Trial>();
    TABLE.set(1, step as *const ());
    TABLE.set(SOFTWARE, step as *const ());
    TABLE.set(2, nmi as *const ());
    point_at(page(), LIMIT);
}

/// LIDT.
pub(crate) fn point_at(base: u64, limit: u16) {
    payload::trap::load(base, limit);
}
