//! The world switch, and the few instructions that only make sense next to it.
//!
//! Nothing here decides anything. The host has GIF = 0 and IF = 0 whenever Rust code of it runs
//! after the first entry.

use core::arch::asm;

use arch::Hpa;
use cpu::speculation;

/// The instructions of [`vmrun`], with some before the entry and some behind the exit, which keep all registers.
macro_rules! switch {
    ($vmcb:ident, $gpr:ident, [$($before:literal),* $(,)?], [$($behind:literal),* $(,)?] $(, $name:ident = $kind:tt $what:path)* $(,)?) => {
        // SAFETY: the caller's promise; every register that changes is named or put back.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "push rsi",
                "clgi",
                "sti",
                "mov rcx, [rsi + 8]",
                "mov rdx, [rsi + 16]",
                "mov rbx, [rsi + 24]",
                "mov rbp, [rsi + 40]",
                "mov rdi, [rsi + 56]",
                "mov r8,  [rsi + 64]",
                "mov r9,  [rsi + 72]",
                "mov r10, [rsi + 80]",
                "mov r11, [rsi + 88]",
                "mov r12, [rsi + 96]",
                "mov r13, [rsi + 104]",
                "mov r14, [rsi + 112]",
                "mov r15, [rsi + 120]",
                "mov rsi, [rsi + 48]",
                $($before,)*
                "vmrun rax",
                "cli",
                $($behind,)*
                "mov rax, [rsp]",
                "mov [rax + 8], rcx",
                "mov [rax + 16], rdx",
                "mov [rax + 24], rbx",
                "mov [rax + 40], rbp",
                "mov [rax + 48], rsi",
                "mov [rax + 56], rdi",
                "mov [rax + 64], r8",
                "mov [rax + 72], r9",
                "mov [rax + 80], r10",
                "mov [rax + 88], r11",
                "mov [rax + 96], r12",
                "mov [rax + 104], r13",
                "mov [rax + 112], r14",
                "mov [rax + 120], r15",
                "pop rsi",
                "pop rbp",
                "pop rbx",
                inout("rax") $vmcb => _,
                inout("rsi") $gpr => _,
                out("rcx") _, out("rdx") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _,
                out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                $($name = $kind $what,)*
            );
        }
    };
}

/// Enters the guest and returns at its next exit.
///
/// Register contract: RAX = physical address of the VMCB, RSI = the guest's general registers in
/// encoding order. VMRUN loads and stores the guest's RAX and RSP through the VMCB (the slots of the
/// two are not touched) and brings back the host's RAX, RSP, RFLAGS and segments; the other fourteen
/// go through the array. RBX and RBP come back as they were, the rest is clobbered: the compiler keeps
/// only what it needs.
///
/// GIF is cleared first, so the STI lets nothing into the host; it is there because the CPU looks at
/// the host's IF for physical interrupts while a guest runs with V_INTR_MASKING = 1. STI stands well
/// before VMRUN so that its shadow ends in the host.
///
/// # Safety
/// SVM is on, `vmcb` is the physical address of a VMCB that nothing else touches meanwhile, `gpr`
/// is valid, and the guest's nested table gives it no memory of the host.
#[inline(always)]
pub(crate) unsafe fn vmrun(vmcb: u64, gpr: *mut [u64; 16]) {
    if speculation::switches_plainly() {
        switch!(vmcb, gpr, [], []);
    } else {
        // SAFETY: the caller's promise.
        unsafe { vmrun_guarded(vmcb, gpr) };
    }
}

/// [`vmrun`] on a CPU whose speculation is to be held back.
///
/// # Safety
/// As for [`vmrun`].
#[cold]
#[inline(never)]
unsafe fn vmrun_guarded(vmcb: u64, gpr: *mut [u64; 16]) {
    switch!(
        vmcb,
        gpr,
        [
            "test byte ptr [rip + {at_switch}], {at_entry}",
            "jz 2f",
            "call {before_entry}",
            "verw word ptr [rip + {data_selector}]", // the last that the host does
            "2:",
        ],
        [
            "test byte ptr [rip + {at_switch}], {at_exit}",
            "jz 3f",
            "call {fill_returns}",
            "3:",
        ],
        at_switch = sym speculation::AT_SWITCH,
        at_entry = const speculation::AT_ENTRY,
        at_exit = const speculation::AT_EXIT,
        before_entry = sym speculation::nexit_before_entry,
        data_selector = sym speculation::DATA_SELECTOR,
        fill_returns = sym speculation::nexit_fill_returns,
    );
}

/// Loads FS, GS, TR, LDTR and the MSRs of SYSCALL, SYSENTER and KernelGSBase from a VMCB.
///
/// # Safety
/// SVM is on, `vmcb` is the physical address of a VMCB, and the host needs none of these registers.
pub(crate) unsafe fn vmload(vmcb: u64) {
    // SAFETY: as the caller promises.
    unsafe { asm!("vmload rax", in("rax") vmcb, options(nostack, preserves_flags)) };
}

/// Stores into a VMCB what [`vmload`] loads.
///
/// # Safety
/// SVM is on, `vmcb` is the physical address of a VMCB, and no reference to it is alive.
pub(crate) unsafe fn vmsave(vmcb: u64) {
    // SAFETY: as the caller promises; the memory clobber is the default.
    unsafe { asm!("vmsave rax", in("rax") vmcb, options(nostack, preserves_flags)) };
}

/// Gives the CPU the host's TR, and with it the stacks of its own that exceptions of the host have.
///
/// # Safety
/// SVM is on, at `host` is what [`vmsave`] stored before a guest ran, and what [`vmload`] loads is not the guest's newest.
pub(crate) unsafe fn take_task_register(host: Hpa) {
    // SAFETY: as the caller promises.
    unsafe { vmload(host.as_u64()) };
    cpu::exceptions::use_own_stacks(true);
}

/// Takes a pending NMI through the host's IDT.
///
/// # Safety
/// SVM is on, IF = 0, and the host's IDT has a handler for NMI that needs no IST stack and returns.
pub(crate) unsafe fn take_nmi() {
    // SAFETY: as the caller promises. The NOP is the boundary at which the NMI comes.
    unsafe { asm!("stgi", "nop", "clgi") };
}

/// Takes a pending external interrupt through the host's IDT, and leaves it in service.
///
/// # Safety
/// As for [`take_nmi`], and the host's IDT is the one of [`cpu::exceptions`].
pub(crate) unsafe fn take_interrupt() -> Option<u8> {
    // SAFETY: as the caller promises.
    unsafe { asm!("stgi") };
    // SAFETY: as the caller promises.
    let vector = unsafe { cpu::exceptions::take_interrupt() };
    // SAFETY: as the caller promises.
    unsafe { asm!("clgi") };
    vector
}
