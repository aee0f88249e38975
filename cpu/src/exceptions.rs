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
    // symbol as operand would be taken for a memory address. An interrupt of such a vector, which comes
    // in a window, pushes no error code: there RFLAGS, with IF, stands where CS would, which never has that bit.
    ".pushsection .text.nexit, \"ax\"",
    ".balign 16",
    "nexit_interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    "    .balign 16",
    "    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30",
    "        test byte ptr [rsp + 17], 2",
    "        jz 2f",
    "        push 0",
    "2:      .byte 0x6a", // push imm8
    "        .byte vector",
    "    .else",
    "        .byte 0x6a, 0, 0x68", // push 0, push vector
    "        .long vector",
    "    .endif",
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
);

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

/// The two tables: with stacks of their own for what needs one, and without.
static IDT: Once<[[Gate; 256]; 2]> = Once::new();
static FATAL: Once<fn(&Frame) -> !> = Once::new();
/// See [`at_nmi`].
static AT_NMI: Once<fn()> = Once::new();

/// In RAX behind a window, beside the vector that was taken in it.
const TAKEN: u64 = 1 << 8;

extern "C" fn handle(frame: &mut Frame) {
    const NMI: u64 = 2;
    const INVALID_OPCODE: u64 = 6;
    const GENERAL_PROTECTION: u64 = 13;
    const MACHINE_CHECK: u64 = 18;
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
        // The one exception that can come in a window.
        MACHINE_CHECK if machine_check::in_progress() => fatal(frame),
        vector if vector > 31 || in_window(frame) => {
            // The window's own register, so that no CPU can see another's: see `take_interrupt`.
            frame.rax = vector | TAKEN;
            // One window takes one interrupt: the next stays pending in the local APIC.
            frame.rflags &= !arch::register::Rflags::IF.bits();
        }
        _ => fatal(frame),
    }
}

/// Whether it came at the end of a window, with IF = 1 and before CLI, which no exception does. VMRUN's IF is 1, too, but CLI
/// stands behind it.
fn in_window(frame: &Frame) -> bool {
    const CLI: u8 = 0xfa;
    let open = frame.rflags & arch::register::Rflags::IF.bits() != 0;
    // SAFETY: the CPU was about to execute it.
    open && unsafe { *(frame.rip as *const u8) } == CLI
}

fn fatal(frame: &Frame) -> ! {
    match FATAL.get() {
        Some(fatal) => fatal(frame),
        None => instructions::halt_forever(),
    }
}

/// Opens a window in which this CPU takes the highest external interrupt that is pending, if any. It is
/// still in service in the local APIC then. Of the vectors 0 to 31, too: a local APIC delivers those from 16 on, and QEMU's
/// those below (an entry of the local vector table or SELF IPI with such a vector).
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
    IDT.call_once(|| [table(own_stack), table(|_| 0)]);
    use_own_stacks(false);
}

/// Whether double faults and machine checks are taken on stacks of their own on the CPU that calls. Its TSS names them: not
/// while that is a guest's (AMD-V), nor before it is ours.
pub fn use_own_stacks(yes: bool) {
    if let Some([with, without]) = IDT.get() {
        point_at(if yes { with } else { without });
    }
}

fn table(stack: fn(usize) -> u8) -> [Gate; 256] {
    core::array::from_fn(|vector| Gate::interrupt(stub(vector), stack(vector)))
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

    /// CLI, and another.
    static CODE: [u8; 2] = [0xfa, 0x90];

    fn frame(vector: u64) -> Frame {
        let frame = [0_u64; 22];
        // SAFETY: 22 words, of which every value is valid.
        let mut frame: Frame = unsafe { core::mem::transmute(frame) };
        (frame.vector, frame.rflags) = (vector, arch::register::Rflags::IF.bits());
        frame.rip = (&raw const CODE).addr() as u64;
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
    fn in_a_window_a_vector_below_32_is_an_interrupt_too() {
        // NMI, and machine checks, of which a test cannot ask.
        for vector in (0..32).filter(|vector| ![2, 18].contains(vector)) {
            let mut low = frame(vector);
            handle(&mut low);
            assert_eq!((taken(low.rax), low.rflags), (Some(vector as u8), 0), "{vector}");
        }
    }

    #[test]
    fn an_exception_elsewhere_is_none_though_if_is_set() {
        let mut elsewhere = frame(14);
        elsewhere.rip += 1;
        assert!(!in_window(&elsewhere), "as before VMRUN");
        let mut closed = frame(14);
        closed.rflags = 2;
        assert!(!in_window(&closed));
    }

    /// What the CPU pushes, from the top of the stack on.
    const WITHOUT_CODE: [u64; 5] = [0x1234_5678, 8, 0x202, 0x7000, 16];

    #[test]
    fn a_stub_tells_an_interrupt_from_an_exception_with_an_error_code() {
        const CODES: [usize; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
        let table = table(|_| 0);
        for (vector, gate) in table.iter().enumerate() {
            let at = gate.low & 0xffff | gate.low >> 32 & 0xffff_0000 | gate.high << 32;
            // SAFETY: the stubs are code of this program, 16 bytes each.
            let code = unsafe { *(at as *const [u8; 16]) };
            let tests = code.starts_with(&[0xf6, 0x44, 0x24, 17, 2, 0x74, 2, 0x6a, 0, 0x6a]);
            assert_eq!(tests, CODES.contains(&vector), "{vector}");
            let pushes = if tests { code[10] } else { code[3] };
            assert_eq!(usize::from(pushes), vector);
        }
        // The byte that the test looks at.
        let byte = |words: &[u64]| words[2].to_le_bytes()[1];
        assert_eq!(byte(&WITHOUT_CODE) & 2, 2, "RFLAGS of a window");
        let with_code = [&[0xffff_ffff], &WITHOUT_CODE[..]].concat();
        assert_eq!(byte(&with_code) & 2, 0, "CS");
        const { assert!(segments::CODE.0 < 0x200) };
    }
}
