//! What arrives at this CPU: an IDT that catches the fault of a trial and counts everything else.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::msr;
use cpu::instructions::write_msr;
use payload::{power_off, say};
use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;
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

fn faulted(vector: u32, frame: &mut InterruptStackFrame) {
    let resume = RESUME.swap(0, Ordering::Relaxed);
    if resume == 0 {
        say!("FAILED: exception {vector} at {:#x}", frame.instruction_pointer);
        power_off();
    }
    FAULT.store(vector, Ordering::Relaxed);
    // SAFETY: the frame is this handler's own; a trial left the address.
    unsafe { frame.as_mut().update(|value| value.instruction_pointer = VirtAddr::new(resume)) };
}

extern "x86-interrupt" fn fault<const VECTOR: u32>(mut frame: InterruptStackFrame) {
    faulted(VECTOR, &mut frame);
}

extern "x86-interrupt" fn fault_with_code<const VECTOR: u32>(
    mut frame: InterruptStackFrame,
    _: u64,
) {
    faulted(VECTOR, &mut frame);
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

#[repr(align(4096))]
struct Table(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: one CPU uses it, and its device writes to it as to any memory.
unsafe impl Sync for Table {}
static TABLE: Table = Table(UnsafeCell::new([[0; 2]; 256]));

/// The page that holds the IDT.
pub(crate) fn page() -> u64 {
    TABLE.0.get() as u64
}

fn set(vector: u8, handler: *const ()) {
    /// Code segment 8, an interrupt gate, present (SDM "64-Bit Mode IDT").
    const GATE: u64 = 8 << 16 | 0x8e << 40;
    let address = handler as u64;
    let gate = [address & 0xffff | (address >> 16 & 0xffff) << 48 | GATE, address >> 32];
    let at = TABLE.0.get().cast::<[u64; 2]>().wrapping_add(vector.into());
    // SAFETY: one of the table's 256 gates.
    unsafe { at.write_volatile(gate) };
}

/// Has `vector` delivered on one of the TSS's stacks.
pub(crate) fn use_stack(vector: u8, stack: u64) {
    let gate = TABLE.0.get().cast::<[u64; 2]>().wrapping_add(vector.into()).cast::<u64>();
    // SAFETY: one of the table's 256 gates.
    let before = unsafe { gate.read_volatile() };
    // SAFETY: as above.
    unsafe { gate.write_volatile(before | stack << 32) };
}

/// Makes the table and loads it.
pub(crate) fn load() {
    (32..=255).for_each(|vector| set(vector, stray as *const ()));
    OWN.for_each(|vector| set(vector, expected as *const ()));
    set(TIMER, tick as *const ());
    set(1, step as *const ());
    set(SOFTWARE, step as *const ());
    set(2, nmi as *const ());
    set(0, fault::<0> as *const ());
    set(3, fault::<3> as *const ());
    set(6, fault::<6> as *const ());
    set(7, fault::<7> as *const ());
    set(16, fault::<16> as *const ());
    set(10, fault_with_code::<10> as *const ());
    set(11, fault_with_code::<11> as *const ());
    set(12, fault_with_code::<12> as *const ());
    set(13, fault_with_code::<13> as *const ());
    set(14, fault_with_code::<14> as *const ());
    set(17, fault_with_code::<17> as *const ());
    point_at(page(), 0xfff);
}

/// LIDT.
pub(crate) fn point_at(base: u64, limit: u16) {
    let pointer = DescriptorTablePointer { limit, base: VirtAddr::new(base) };
    // SAFETY: interrupts are off, or the table there is the one above.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
}
