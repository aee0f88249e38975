//! Interrupt descriptor tables, one for each CPU, and handlers that count.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

use crate::local::{FAULTS, Local};

/// Priority classes 4, 5 and 6, the timer's, and one whose handler ends nothing.
pub(crate) const LOW: u8 = 0x41;
pub(crate) const MIDDLE: u8 = 0x51;
pub(crate) const HIGH: u8 = 0x61;
pub(crate) const TIMER: u8 = 0x71;
pub(crate) const UNENDED: u8 = 0x52;
/// Of the lowest class that there is, whose vectors are exceptions, too.
pub(crate) const LOWEST_CLASS: u8 = 20;

const KINDS: usize = 7;
static TAKEN: [[AtomicU32; KINDS]; 2] = [const { [const { AtomicU32::new(0) }; KINDS] }; 2];
/// TSC at the last NMI of CPU 1.
pub(crate) static NMI_AT: AtomicU64 = AtomicU64::new(0);

fn kind(vector: u8) -> usize {
    match vector {
        LOW => 0,
        MIDDLE => 1,
        HIGH => 2,
        TIMER => 3,
        UNENDED => 4,
        LOWEST_CLASS => 6,
        _ => 5,
    }
}

/// What CPU `cpu` has taken of a vector so far; vector 2 is NMI.
pub(crate) fn taken(cpu: usize, vector: u8) -> u32 {
    TAKEN[cpu][kind(vector)].load(Ordering::SeqCst)
}

extern "x86-interrupt" fn device<const CPU: usize, const VECTOR: u8>(_: InterruptStackFrame) {
    TAKEN[CPU][kind(VECTOR)].fetch_add(1, Ordering::SeqCst);
    if VECTOR == 2 {
        NMI_AT.store(cpu::instructions::tsc(), Ordering::SeqCst);
    } else if VECTOR != UNENDED {
        Local(CPU).eoi();
    }
}

/// Skips RDMSR or WRMSR.
extern "x86-interrupt" fn general_protection(mut frame: InterruptStackFrame, _: u64) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the frame is this handler's own; the instruction is two bytes long.
    unsafe { frame.as_mut().update(|value| value.instruction_pointer += 2) };
}

#[repr(align(4096))]
struct Tables(UnsafeCell<[InterruptDescriptorTable; 2]>);
// SAFETY: each CPU uses its own.
unsafe impl Sync for Tables {}
static TABLES: Tables = Tables(UnsafeCell::new([const { InterruptDescriptorTable::new() }; 2]));

/// Loads the table of the CPU that calls, `CPU`.
pub(crate) fn load<const CPU: usize>() {
    // SAFETY: nobody else uses this CPU's table.
    let table = unsafe { &mut (*TABLES.0.get())[CPU] };
    table.general_protection_fault.set_handler_fn(general_protection);
    table.non_maskable_interrupt.set_handler_fn(device::<CPU, 2>);
    table[LOW].set_handler_fn(device::<CPU, LOW>);
    table[MIDDLE].set_handler_fn(device::<CPU, MIDDLE>);
    table[HIGH].set_handler_fn(device::<CPU, HIGH>);
    table[TIMER].set_handler_fn(device::<CPU, TIMER>);
    table[UNENDED].set_handler_fn(device::<CPU, UNENDED>);
    table.virtualization.set_handler_fn(device::<CPU, LOWEST_CLASS>);
    let pointer = x86_64::structures::DescriptorTablePointer {
        limit: (size_of::<InterruptDescriptorTable>() - 1) as u16,
        base: VirtAddr::from_ptr(table),
    };
    // SAFETY: the table is static, and its handlers are the functions above.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
}
