//! The interrupt descriptor table, where it lies, and its handlers.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::msr;
use cpu::instructions::write_msr;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::InterruptStackFrame;

pub(crate) const SELF_IPI_VECTOR: u8 = 0x40;
pub(crate) const SOFTWARE_VECTOR: u8 = 0x50;
pub(crate) const ABSENT_VECTOR: u8 = 0x60;
pub(crate) const TIMER_VECTOR: u8 = 0x70;
pub(crate) const ICR_VECTOR: u8 = 0x80;

static TAKEN: AtomicU32 = AtomicU32::new(0);
static TAKEN_BY_SECOND: AtomicU32 = AtomicU32::new(0);
/// Error code of the last #NP.
static NOT_PRESENT_ERROR: AtomicU64 = AtomicU64::new(0);
/// The next #NP is that of an interrupt and not of `INT n`.
static INTERRUPT_WITHOUT_GATE: AtomicBool = AtomicBool::new(false);

pub(crate) extern "x86-interrupt" fn device(_: InterruptStackFrame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
    end_of_interrupt();
}

pub(crate) extern "x86-interrupt" fn second(_: InterruptStackFrame) {
    TAKEN_BY_SECOND.fetch_add(1, Ordering::Relaxed);
    end_of_interrupt();
}

extern "x86-interrupt" fn without_end(_: InterruptStackFrame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

extern "x86-interrupt" fn not_present(mut frame: InterruptStackFrame, error: u64) {
    NOT_PRESENT_ERROR.store(error, Ordering::Relaxed);
    if INTERRUPT_WITHOUT_GATE.load(Ordering::Relaxed) {
        // Its delivery failed behind the local APIC: it is in service.
        return end_of_interrupt();
    }
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

/// Room for tables at any offset of its first page, and for one in its last.
#[repr(align(4096))]
struct Room(UnsafeCell<[u8; 3 * 4096]>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Room {}
static ROOM: Room = Room(UnsafeCell::new([0; 3 * 4096]));

/// The first byte of the room.
pub(crate) fn room() -> *mut u8 {
    ROOM.0.get().cast()
}

/// A table of 256 gates, at any multiple of 8 (so no type of the compiler's).
#[derive(Clone, Copy)]
pub(crate) struct Idt(*mut u64);

impl Idt {
    const GATES: usize = 256;
    const BREAKPOINT: u8 = 3;
    const NMI: u8 = 2;
    const SEGMENT_NOT_PRESENT: u8 = 11;

    /// Code segment 8, an interrupt gate (SDM "64-Bit Mode IDT").
    const INTERRUPT_GATE: u64 = 8 << 16 | 0xe << 40;
    const PRESENT: u64 = 1 << 47;

    /// Points a gate at a handler.
    pub(crate) fn set(self, vector: u8, handler: *const ()) {
        let address = handler as u64;
        let offset = address & 0xffff | (address >> 16 & 0xffff) << 48;
        self.write(vector, [offset | Self::INTERRUPT_GATE | Self::PRESENT, address >> 32]);
    }

    /// Makes a gate not present.
    pub(crate) fn close(self, vector: u8) {
        self.write(vector, [Self::INTERRUPT_GATE, 0]);
    }

    fn write(self, vector: u8, gate: [u64; 2]) {
        for (half, value) in gate.into_iter().enumerate() {
            let at = self.0.wrapping_add(2 * usize::from(vector) + half);
            // SAFETY: the gate lies in the room (see `load`).
            unsafe { at.write_volatile(value) };
        }
    }
}

/// Makes a new table at `offset` in the room, where a table fits. Interrupts are off, or none can come.
pub(crate) fn fill(offset: usize) -> Idt {
    let table = Idt(room().wrapping_add(offset).cast());
    (0..=255).for_each(|vector| table.close(vector));
    table.set(Idt::BREAKPOINT, without_end as *const ());
    table.set(Idt::NMI, without_end as *const ());
    table.set(Idt::SEGMENT_NOT_PRESENT, not_present as *const ());
    table.set(SOFTWARE_VECTOR, without_end as *const ());
    for vector in [SELF_IPI_VECTOR, TIMER_VECTOR, ICR_VECTOR] {
        table.set(vector, device as *const ());
    }
    table
}

/// The same, and loads it.
pub(crate) fn load(offset: usize) -> Idt {
    let table = fill(offset);
    let pointer = DescriptorTablePointer {
        limit: (16 * Idt::GATES - 1) as u16,
        base: x86_64::VirtAddr::from_ptr(table.0),
    };
    // SAFETY: the table is static and its handlers are the functions above.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
    table
}

/// Interrupts and exceptions that [`device`] and its like take while `work` runs.
pub(crate) fn taken(work: impl FnOnce()) -> u32 {
    let before = TAKEN.load(Ordering::Relaxed);
    work();
    TAKEN.load(Ordering::Relaxed) - before
}

/// What [`second`] has taken.
pub(crate) fn taken_by_second() -> u32 {
    TAKEN_BY_SECOND.load(Ordering::Relaxed)
}

/// The error code of the #NP that `work` ends in, 0 without one. `interrupt`: it is an interrupt's.
pub(crate) fn not_present_error(interrupt: bool, work: impl FnOnce()) -> u64 {
    INTERRUPT_WITHOUT_GATE.store(interrupt, Ordering::Relaxed);
    NOT_PRESENT_ERROR.store(0, Ordering::Relaxed);
    work();
    NOT_PRESENT_ERROR.load(Ordering::Relaxed)
}
