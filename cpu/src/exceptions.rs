//! The hypervisor's own IDT.
//!
//! Invariants: the host never depends on a maskable vector: external interrupts are taken only in
//! windows of a few instructions ([`take_interrupt`]), and then only noted down, in the register that the
//! window gives for it. An NMI is only a call back into the host: its handler only sees to it that the next
//! entry exits at once ([`at_nmi`]). Every other exception but a #GP or #UD at a checked instruction is our
//! own bug and ends in the kernel's fatal handler.

use core::arch::{asm, global_asm};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;

use crate::instructions;
use crate::machine_check;
use crate::segments;

global_asm!(
    // 256 stubs of 16 bytes each: make the stack look alike with and without an error code, push
    // the vector, and go on in common code. `push imm32` is spelled in bytes because an assembler
    // symbol as operand would be taken for a memory address.
    ".pushsection .text.nexit, \"ax\"",
    ".balign 16",
    "nexit_interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    "    .balign 16",
    "    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)",
    "        .byte 0x6a, 0", // push 0
    "    .endif",
    "    .byte 0x68", // push vector
    "    .long vector",
    "    jmp nexit_interrupt_common",
    "    .set vector, vector + 1",
    ".endr",
    // 32 more for the vectors 0 to 31 as interrupts, which push no error code.
    ".set vector, {as_interrupt}",
    ".rept 32",
    "    .balign 16",
    "    .byte 0x6a, 0, 0x68",
    "    .long vector",
    "    jmp nexit_interrupt_common",
    "    .set vector, vector + 1",
    ".endr",
    "nexit_interrupt_common:",
    ".irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15",
    "    push \\register",
    ".endr",
    "    cld",
    "    mov rdi, rsp",
    "    call {handler}", // the CPU aligned RSP; 22 pushes of 8 bytes keep it so
    ".irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax",
    "    pop \\register",
    ".endr",
    "    add rsp, 16",
    "    iretq",
    ".popsection",
    handler = sym handle,
    as_interrupt = const AS_INTERRUPT,
);

/// Is added to the vectors 0 to 31 where they are interrupts.
const AS_INTERRUPT: u64 = 0x100;

unsafe extern "C" {
    static nexit_interrupt_stubs: u8;
}

/// What the stubs leave on the stack.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 22 * 8);

/// A 64-bit interrupt gate (SDM "64-Bit Mode IDT").
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    fn interrupt(handler: u64, interrupt_stack: u8) -> Self {
        const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
        Self {
            low: handler & 0xffff
                | u64::from(segments::CODE.0) << 16
                | u64::from(interrupt_stack) << 32
                | PRESENT_INTERRUPT_GATE
                | (handler >> 16 & 0xffff) << 48,
            high: handler >> 32,
        }
    }
}

/// The three tables: with stacks of their own for what needs one, without, and for a window of [`take_any_interrupt`].
static IDT: Once<[[Gate; 256]; 3]> = Once::new();
static FATAL: Once<fn(&Frame) -> !> = Once::new();
/// See [`at_nmi`].
static AT_NMI: Once<fn()> = Once::new();

/// In RAX behind a window, beside the vector that was taken in it.
const TAKEN: u64 = 1 << 8;

extern "C" fn handle(frame: &mut Frame) {
    const NMI: u64 = 2;
    const INVALID_OPCODE: u64 = 6;
    const GENERAL_PROTECTION: u64 = 13;
    const LAST_LOW: u64 = AS_INTERRUPT + 31;
    const MACHINE_CHECK: u64 = AS_INTERRUPT + 18;
    match frame.vector {
        NMI => {
            frame.rip = crate::sleep::at_nmi(frame.rip);
            if let Some(work) = AT_NMI.get() {
                work();
            }
        }
        INVALID_OPCODE | GENERAL_PROTECTION if instructions::landing_pad(frame.rip).is_some() => {
            frame.rip = instructions::landing_pad(frame.rip).unwrap_or(frame.rip);
        }
        // The one exception that can come in a window; it has no error code either.
        MACHINE_CHECK if machine_check::in_progress() => fatal(frame),
        vector @ (32..=255 | AS_INTERRUPT..=LAST_LOW) => {
            // The window's own register, so that no CPU can see another's: see `take_interrupt`.
            frame.rax = vector | TAKEN;
            // One window takes one interrupt: the next stays pending in the local APIC.
            frame.rflags &= !arch::register::Rflags::IF.bits();
        }
        _ => fatal(frame),
    }
}

fn fatal(frame: &mut Frame) -> ! {
    frame.vector &= 0xff;
    match FATAL.get() {
        Some(fatal) => fatal(frame),
        None => instructions::halt_forever(),
    }
}

/// Opens a window in which this CPU takes the highest external interrupt that is pending, if any. It is
/// still in service in the local APIC then.
///
/// # Safety
/// Ring 0 with interrupts off, and the handlers are installed on this CPU.
pub unsafe fn take_interrupt() -> Option<u8> {
    let seen: u64;
    // STI's shadow covers the NOP; the interrupt comes behind it.
    // SAFETY: the handler puts the vector in RAX and comes back with interrupts off.
    unsafe { asm!("sti", "nop", "cli", inout("rax") 0_u64 => seen, options(nostack)) };
    taken(seen)
}

/// As [`take_interrupt`], of the vectors 0 to 31 too, which are exceptions everywhere else: for these few instructions
/// another IDT is in place. A local APIC delivers the vectors 16 to 31; QEMU's delivers those below, too (an entry of the local
/// vector table or SELF IPI with such a vector).
///
/// # Safety
/// As for [`take_interrupt`].
pub unsafe fn take_any_interrupt() -> Option<u8> {
    let [.., table] = IDT.get()?;
    let window = pointer(table);
    let mut before = DescriptorTablePointer { limit: 0, base: VirtAddr::zero() };
    let seen: u64;
    // SAFETY: as in `take_interrupt`; none of these instructions raises an exception, and the IDT is put back.
    unsafe {
        asm!("sidt [{before}]", "lidt [{window}]", "sti", "nop", "cli", "lidt [{before}]",
            before = in(reg) &raw mut before, window = in(reg) &raw const window,
            inout("rax") 0_u64 => seen);
    }
    taken(seen)
}

/// What a handler of an interrupt has put in RAX, if one ran.
pub(crate) fn taken(rax: u64) -> Option<u8> {
    (rax & TAKEN != 0).then_some(rax as u8)
}

/// Registers `work` to run on every host NMI, on whatever CPU and at whatever instruction it comes.
pub fn at_nmi(work: fn()) {
    AT_NMI.call_once(|| work);
}

/// Installs the IDT on the CPU that calls, whose TSS has not been taken over yet; `fatal` gets every exception that is our
/// own bug.
pub fn install(fatal: fn(&Frame) -> !) {
    FATAL.call_once(|| fatal);
    IDT.call_once(|| [table(own_stack), table(|_| 0), table_of_a_window()]);
    use_own_stacks(false);
}

/// Whether double faults and machine checks are taken on stacks of their own on the CPU that calls. Its TSS names them: not
/// while that is a guest's (AMD-V), nor before it is ours.
pub fn use_own_stacks(yes: bool) {
    if let Some([with, without, _]) = IDT.get() {
        point_at(if yes { with } else { without });
    }
}

fn table(stack: fn(usize) -> u8) -> [Gate; 256] {
    core::array::from_fn(|vector| Gate::interrupt(stub(vector), stack(vector)))
}

/// The vectors 0 to 31 as interrupts, but that of NMIs, which still come.
fn table_of_a_window() -> [Gate; 256] {
    const NMI: usize = 2;
    core::array::from_fn(|vector| {
        let low = vector < 32 && vector != NMI;
        Gate::interrupt(stub(if low { vector + 256 } else { vector }), 0)
    })
}

fn stub(index: usize) -> u64 {
    const BYTES: u64 = 16;
    &raw const nexit_interrupt_stubs as u64 + index as u64 * BYTES
}

/// The index of the stack that an exception has for itself; 0 where it takes the one in use.
const fn own_stack(vector: usize) -> u8 {
    const DOUBLE_FAULT: usize = 8;
    const MACHINE_CHECK: usize = 18;
    match vector {
        DOUBLE_FAULT => segments::DOUBLE_FAULT_STACK,
        MACHINE_CHECK => segments::MACHINE_CHECK_STACK,
        _ => 0,
    }
}

fn pointer(idt: &'static [Gate; 256]) -> DescriptorTablePointer {
    DescriptorTablePointer { limit: (size_of_val(idt) - 1) as u16, base: VirtAddr::from_ptr(idt) }
}

fn point_at(idt: &'static [Gate; 256]) {
    // SAFETY: the table is static, and each gate leads to a stub that keeps every register.
    unsafe { x86_64::instructions::tables::lidt(&pointer(idt)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn frame(vector: u64) -> Frame {
        let frame = [0_u64; 22];
        // SAFETY: 22 words, of which every value is valid.
        let mut frame: Frame = unsafe { core::mem::transmute(frame) };
        (frame.vector, frame.rflags) = (vector, arch::register::Rflags::IF.bits());
        frame
    }

    #[test]
    fn a_double_fault_and_a_machine_check_have_a_stack_each_where_the_tss_is_ours_and_nobody_else_has()
     {
        let stacks = |table: [Gate; 256]| {
            let of = |(vector, gate): (usize, &Gate)| (vector, gate.low >> 32 & 7);
            table.iter().enumerate().map(of).filter(|(_, stack)| *stack != 0).collect::<Vec<_>>()
        };
        assert_eq!(stacks(table(own_stack)), [(8, 1), (18, 2)]);
        assert_eq!(stacks(table(|_| 0)), []);
    }

    #[test]
    fn a_vector_goes_to_the_window_that_took_it_whatever_the_cpu_is_called() {
        // Two CPUs in their windows at once, as two frames: nothing else is there to tell them apart.
        let (mut one, mut other) = (frame(0x41), frame(0xf0));
        handle(&mut one);
        handle(&mut other);
        assert_eq!((taken(one.rax), taken(other.rax)), (Some(0x41), Some(0xf0)));
        assert_eq!((one.rflags, other.rflags), (0, 0), "one window takes one interrupt");
        assert_eq!(taken(0), None);
    }

    #[test]
    fn in_a_window_for_any_interrupt_the_vectors_to_31_have_stubs_that_expect_no_error_code() {
        let (usual, window) = (table(|_| 0), table_of_a_window());
        let handler =
            |gate: &Gate| gate.low & 0xffff | gate.low >> 32 & 0xffff_0000 | gate.high << 32;
        for vector in 0..256 {
            let low = vector < 32 && vector != 2;
            assert_eq!(handler(&window[vector]) != handler(&usual[vector]), low, "{vector}");
        }
        assert_eq!(handler(&window[0]), handler(&usual[255]) + 16, "behind all others");
        for vector in [0, 8, 12, 15, 16, 17, 30, 31] {
            let mut low = frame(AS_INTERRUPT + vector);
            handle(&mut low);
            assert_eq!((taken(low.rax), low.rflags), (Some(vector as u8), 0));
        }
    }
}
