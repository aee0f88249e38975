//! Exceptions and interrupts of a payload: an IDT of its own, and handlers that catch every fault.

use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::InterruptStackFrame;

/// Type and attributes of a present interrupt gate (SDM "64-Bit Mode IDT").
pub const INTERRUPT_GATE: u64 = 0x8e;
/// The code segment of every payload.
pub const CODE_SEGMENT: u64 = 8;
/// The limit of a whole table.
pub const LIMIT: u16 = 0xfff;

/// A handler for all faults of a payload.
pub trait Faults {
    /// Handles a fault; `error_code` is 0 if the vector has none.
    fn fault(vector: u64, error_code: u64, frame: &mut InterruptStackFrame);
}

/// An IDT that fills a page.
#[repr(align(4096))]
pub struct Table(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: gates are only written as whole words, and the CPU that writes them uses the table.
unsafe impl Sync for Table {}

impl Table {
    /// A table without gates.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new([[0; 2]; 256]))
    }

    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    fn gate(&self, vector: u8) -> *mut [u64; 2] {
        self.0.get().cast::<[u64; 2]>().wrapping_add(vector.into())
    }

    /// Sets an interrupt gate.
    pub fn set(&self, vector: u8, handler: *const ()) {
        self.set_gate(vector, handler as u64, CODE_SEGMENT, INTERRUPT_GATE);
    }

    /// Sets a gate with this selector, type and attributes.
    pub fn set_gate(&self, vector: u8, handler: u64, selector: u64, flags: u64) {
        let low = handler & 0xffff | selector << 16 | flags << 40 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: one of the table's 256 gates.
        unsafe { self.gate(vector).write_volatile([low, handler >> 32]) };
    }

    /// Delivers `vector` on this interrupt stack of the TSS.
    pub fn use_stack(&self, vector: u8, stack: u64) {
        let low = self.gate(vector).cast::<u64>();
        // SAFETY: one of the table's 256 gates.
        let gate = unsafe { low.read_volatile() };
        // SAFETY: as above.
        unsafe { low.write_volatile(gate | stack << 32) };
    }

    /// Sets gates that call `F` for every fault.
    pub fn catch<F: Faults>(&self) {
        self.set(0, without_code::<F, 0> as *const ());
        self.set(1, without_code::<F, 1> as *const ());
        self.set(3, without_code::<F, 3> as *const ());
        self.set(6, without_code::<F, 6> as *const ());
        self.set(7, without_code::<F, 7> as *const ());
        self.set(16, without_code::<F, 16> as *const ());
        self.set(19, without_code::<F, 19> as *const ());
        self.set(10, with_code::<F, 10> as *const ());
        self.set(11, with_code::<F, 11> as *const ());
        self.set(12, with_code::<F, 12> as *const ());
        self.set(13, with_code::<F, 13> as *const ());
        self.set(14, with_code::<F, 14> as *const ());
        self.set(17, with_code::<F, 17> as *const ());
    }

    /// Loads it with this limit.
    pub fn load(&self, limit: u16) {
        load(self.address(), limit);
    }
}

/// Loads the table at `base`.
pub fn load(base: u64, limit: u16) {
    let pointer = DescriptorTablePointer { limit, base: VirtAddr::new(base) };
    // SAFETY: interrupts are off, or the table is the payload's.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
}

extern "x86-interrupt" fn without_code<F: Faults, const VECTOR: u64>(
    mut frame: InterruptStackFrame,
) {
    F::fault(VECTOR, 0, &mut frame);
}

extern "x86-interrupt" fn with_code<F: Faults, const VECTOR: u64>(
    mut frame: InterruptStackFrame,
    error_code: u64,
) {
    F::fault(VECTOR, error_code, &mut frame);
}
