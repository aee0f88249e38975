//! Into the guest and back.
//!
//! Invariant: between [`enter`] and its return the guest has all general registers; the host finds
//! its own callee-saved registers and its stack as they were. Nothing else is switched here: RSP,
//! RIP, RFLAGS, segments, control registers, IA32_EFER and IA32_PAT are the VMCS's, the rest stays
//! the guest's (see the crate's first page).

use core::arch::{asm, naked_asm};

/// How an attempt to enter ended.
pub(crate) mod status {
    /// The guest ran (or its state was refused) and exited.
    pub(crate) const EXITED: u32 = 0;
    /// VMfailValid: the VM-instruction error says why.
    pub(crate) const FAIL_VALID: u32 = 2;
}

/// Enters the guest of the current VMCS.
///
/// Contract: in RDI the general registers in encoding order (RSP's place is not used), in ESI 0 for
/// VMLAUNCH and 1 for VMRESUME; out EAX, one of [`status`], or 1 for VMfailInvalid. On the stack
/// while the guest runs: the callee-saved registers and, at HOST_RSP, RDI. HOST_RIP is [`exited`].
///
/// # Safety
/// A VMCS is current whose host state is the caller's own environment, with HOST_RIP = [`exited`];
/// `registers` is not touched by anyone else until the return; interrupts are off.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn enter(registers: *mut [u64; 16], launched: u32) -> u32 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "mov eax, 0x6c14", // HOST_RSP
        "vmwrite rax, rsp",
        "test esi, esi",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]", // MOV leaves the flags of TEST alone
        "jnz 2f",
        "vmlaunch",
        "jmp 3f",
        "2:",
        "vmresume",
        "3:", // VMfailInvalid sets CF, VMfailValid ZF
        "mov eax, 1",
        "jc 4f",
        "mov eax, 2",
        "4:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Where the CPU comes back: HOST_RIP. Returns from the call of [`enter`] with 0.
///
/// Contract: all general registers but RSP are the guest's; RSP is HOST_RSP, with the stack that
/// [`enter`] has left. Never called by Rust.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn exited() {
    naked_asm!(
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "pop qword ptr [rdi + 56]",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "xor eax, eax",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Takes the NMI that has just exited through the host's own handler. The NMI is gone with the exit
/// but NMIs stay blocked; the handler's IRET ends that (SDM "Loading Host State", "Handling Multiple
/// NMIs").
///
/// # Safety
/// This runs in ring 0 and gate 2 of the host's IDT leads to its NMI handler.
pub(crate) unsafe fn take_nmi() {
    // SAFETY: the caller's promise; the handler preserves every register.
    unsafe { asm!("int 2") };
}
