//! Into the guest and back.
//!
//! Invariant: between [`enter`] and its return the guest has all general registers; the host finds
//! its own callee-saved registers and its stack as they were. Nothing else is switched here: RSP,
//! RIP, RFLAGS, segments, control registers, IA32_EFER and IA32_PAT are the VMCS's, the rest stays
//! the guest's (see the crate's first page).

use core::arch::{asm, naked_asm};

use cpu::speculation;

use crate::field;

/// How an attempt to enter ended.
pub(crate) mod status {
    /// The guest ran (or its state was refused) and exited.
    pub(crate) const EXITED: u64 = 0;
    /// VMfailInvalid: there is no current VMCS to say why.
    pub(crate) const FAIL_INVALID: u64 = 1;
    /// VMfailValid: the VM-instruction error says why.
    pub(crate) const FAIL_VALID: u64 = 2;
}

/// VM-instruction error: VMRESUME with a VMCS that is not launched (SDM "VM Instruction Error Numbers").
const NOT_LAUNCHED: u32 = 5;

/// In place of an exit reason; no exit has it.
const NO_EXIT: u32 = u32::MAX;

/// What goes through memory at an entry and an exit.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Registers {
    /// The guest's general registers in encoding order; RSP is the VMCS's.
    pub(crate) gpr: [u64; 16],
    /// One of [`status`]; written only where the entry fails.
    pub(crate) status: u64,
}

/// Enters the guest of the current VMCS and returns at its next exit with the exit reason, or at once,
/// with a status and [`NO_EXIT`], where the CPU does not take the instruction.
///
/// # Safety
/// A VMCS is current whose host state is the caller's own environment, with HOST_RIP = [`place_of_exits`];
/// `registers` is not touched by anyone else until the return; interrupts are off.
#[inline(always)]
pub(crate) unsafe fn enter(registers: *mut Registers) -> u32 {
    let reason;
    // SAFETY: the caller's promise; every register that changes is named or put back.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "call {switch}",
            "pop rbp",
            "pop rbx",
            switch = sym switch,
            inout("rdi") registers => _,
            out("eax") reason, out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    reason
}

/// The way in. A VMCS that was never launched makes VMRESUME fail: VMLAUNCH follows.
///
/// Contract: in RDI a [`Registers`]. All other registers but RSP are lost. On the stack while the
/// guest runs, at HOST_RSP: RDI. HOST_RIP is [`exited`].
#[unsafe(naked)]
unsafe extern "sysv64" fn switch() {
    naked_asm!(
        "push rdi",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
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
        "mov rdi, [rdi + 56]",
        "test byte ptr [rip + {at_switch}], {at_entry}",
        "jz 4f",
        "call {before_entry}",
        "verw word ptr [rip + {data_selector}]", // the last that the host does
        "4:",
        "vmresume",
        "jc 2f", // VMfailInvalid sets CF, VMfailValid ZF
        "push rax",
        "mov eax, {instruction_error}",
        "vmread rax, rax",
        "cmp eax, {not_launched}",
        "pop rax",
        "mov edi, {fail_valid}", // MOV leaves the flags of CMP alone
        "jne 3f",
        "mov rdi, [rsp]",
        "mov rdi, [rdi + 56]",
        "vmlaunch",
        "mov edi, {fail_valid}",
        "jnc 3f",
        "2:",
        "mov edi, {fail_invalid}",
        "3:",
        "pop rax",
        "mov [rax + 128], rdi",
        "mov eax, {no_exit}",
        "ret",
        host_rsp = const field::HOST_RSP.number(),
        instruction_error = const field::VM_INSTRUCTION_ERROR.number(),
        not_launched = const NOT_LAUNCHED,
        fail_valid = const status::FAIL_VALID,
        fail_invalid = const status::FAIL_INVALID,
        no_exit = const NO_EXIT,
        at_switch = sym speculation::AT_SWITCH,
        at_entry = const speculation::AT_ENTRY,
        before_entry = sym speculation::nexit_before_entry,
        data_selector = sym speculation::DATA_SELECTOR,
    )
}

/// Where the CPU comes back: HOST_RIP. Returns from the call of [`switch`] with the exit reason in EAX,
/// a field that every VMCS has: no test whether VMREAD failed.
///
/// Contract: all general registers but RSP are the guest's; RSP is HOST_RSP, with the stack that
/// [`switch`] has left. Never called by Rust.
#[unsafe(naked)]
unsafe extern "sysv64" fn exited() {
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
        "mov eax, {exit_reason}",
        "vmread rax, rax",
        "add rsp, 8",
        "ret",
        exit_reason = const field::EXIT_REASON.number(),
    )
}

/// HOST_RIP where the return-stack buffer is to be filled before the first return: then [`exited`].
///
/// Contract: as for [`exited`].
#[unsafe(naked)]
unsafe extern "sysv64" fn exited_filling() {
    naked_asm!(
        "call {fill_returns}",
        "jmp {exited}",
        fill_returns = sym speculation::nexit_fill_returns,
        exited = sym exited,
    )
}

/// HOST_RIP.
pub(crate) fn place_of_exits() -> u64 {
    if speculation::fills_returns() {
        exited_filling as *const () as u64
    } else {
        exited as *const () as u64
    }
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
