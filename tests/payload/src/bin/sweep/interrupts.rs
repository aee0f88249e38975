//! Interrupt descriptor tables, one for each CPU, and handlers that count.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch::msr;
use cpu::instructions::{read_msr, write_msr};
use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

/// The vectors of the messages: two that take turns, and a lower one.
pub(crate) const FIRST: u8 = 0x61;
pub(crate) const SECOND: u8 = 0x71;
pub(crate) const LOWER: u8 = 0x41;
/// An IPI that wakes a CPU.
pub(crate) const WAKE: u8 = 0x51;

const KINDS: usize = 8;

/// Alone in its page: what shares one with the IDT exits when it is written.
#[repr(align(4096))]
struct Taken([[AtomicU32; KINDS]; 2]);
static TAKEN: Taken = Taken([const { [const { AtomicU32::new(0) }; KINDS] }; 2]);
/// Handlers end nothing and never return.
pub(crate) static STAY: AtomicBool = AtomicBool::new(false);

const fn kind(vector: u8) -> usize {
    (vector >> 4) as usize % KINDS
}

/// What a CPU has taken of a vector.
pub(crate) fn taken(cpu: usize, vector: u8) -> u32 {
    TAKEN.0[cpu][kind(vector)].load(Ordering::SeqCst)
}

/// Of the messages' vectors, on both CPUs.
pub(crate) fn all_taken() -> u32 {
    (0..2).map(|cpu| taken(cpu, FIRST) + taken(cpu, SECOND)).sum()
}

extern "x86-interrupt" fn handler<const CPU: usize, const VECTOR: u8>(_: InterruptStackFrame) {
    TAKEN.0[CPU][kind(VECTOR)].fetch_add(1, Ordering::SeqCst);
    if STAY.load(Ordering::Relaxed) {
        crate::dying::in_service();
    }
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

#[repr(align(4096))]
struct Tables(UnsafeCell<[InterruptDescriptorTable; 2]>);
// SAFETY: each CPU uses its own.
unsafe impl Sync for Tables {}
static TABLES: Tables = Tables(UnsafeCell::new([const { InterruptDescriptorTable::new() }; 2]));

/// Loads the table of the CPU that calls, `CPU`, and switches its local APIC on.
pub(crate) fn load<const CPU: usize>() {
    const SOFTWARE_ENABLE: u64 = 1 << 8;
    // SAFETY: nobody else uses this CPU's table.
    let table = unsafe { &mut (*TABLES.0.get())[CPU] };
    table[FIRST].set_handler_fn(handler::<CPU, FIRST>);
    table[SECOND].set_handler_fn(handler::<CPU, SECOND>);
    table[LOWER].set_handler_fn(handler::<CPU, LOWER>);
    table[WAKE].set_handler_fn(handler::<CPU, WAKE>);
    let pointer = DescriptorTablePointer {
        limit: (size_of::<InterruptDescriptorTable>() - 1) as u16,
        base: VirtAddr::from_ptr(table),
    };
    // SAFETY: the table is static, and its handlers are the functions above.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
    // SAFETY: the guest's own local APIC.
    unsafe { write_msr(msr::IA32_X2APIC_SIVR, SOFTWARE_ENABLE | 0xff) };
}

/// Whether any vector is in service or requested on this CPU.
pub(crate) fn is_busy() -> bool {
    let words =
        (0..8).flat_map(|word| [msr::IA32_X2APIC_ISR0 + word, msr::IA32_X2APIC_IRR0 + word]);
    // SAFETY: these registers may be read.
    words.into_iter().any(|word| unsafe { read_msr(word) } != 0)
}
