//! Privileged instructions without a compiler intrinsic.
//!
//! The *checked* forms come back with `None`/`false` where the CPU raises #GP or #UD: the exception handler
//! moves RIP from the one faulting instruction to a landing pad (see [`landing_pad`]).

use core::arch::{asm, global_asm};

use arch::machine::{CpuidResult, Width};
use x86_64::structures::port::{PortRead, PortWrite};

global_asm!(
    // Contract of all: System V calls, RDI = register index or field; return EAX = 1, or 0 after #GP.
    ".pushsection .text.nexit, \"ax\"",
    ".global nexit_rdmsr_checked",
    "nexit_rdmsr_checked:", // RSI = where the value goes
    "    mov ecx, edi",
    "nexit_rdmsr_instruction:",
    "    rdmsr",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    mov [rsi], rax",
    "    mov eax, 1",
    "    ret",
    ".global nexit_wrmsr_checked",
    "nexit_wrmsr_checked:", // RSI = the value
    "    mov ecx, edi",
    "    mov eax, esi",
    "    mov rdx, rsi",
    "    shr rdx, 32",
    "nexit_wrmsr_instruction:",
    "    wrmsr",
    "    mov eax, 1",
    "    ret",
    ".global nexit_xsetbv_checked",
    "nexit_xsetbv_checked:", // RSI = the value
    "    mov ecx, edi",
    "    mov eax, esi",
    "    mov rdx, rsi",
    "    shr rdx, 32",
    "nexit_xsetbv_instruction:",
    "    xsetbv",
    "    mov eax, 1",
    "    ret",
    ".global nexit_vmwrite_checked",
    "nexit_vmwrite_checked:", // RSI = the value
    "nexit_vmwrite_instruction:",
    "    vmwrite rdi, rsi",
    "    mov eax, 1",
    "    ret",
    "nexit_checked_landing:",
    "    xor eax, eax",
    "    ret",
    ".global nexit_rdmsr_instruction",
    ".global nexit_wrmsr_instruction",
    ".global nexit_xsetbv_instruction",
    ".global nexit_vmwrite_instruction",
    ".global nexit_checked_landing",
    ".popsection",
);

unsafe extern "C" {
    fn nexit_rdmsr_checked(msr: u32, value: *mut u64) -> u32;
    fn nexit_wrmsr_checked(msr: u32, value: u64) -> u32;
    fn nexit_xsetbv_checked(register: u32, value: u64) -> u32;
    fn nexit_vmwrite_checked(field: u64, value: u64) -> u32;
    static nexit_rdmsr_instruction: u8;
    static nexit_wrmsr_instruction: u8;
    static nexit_xsetbv_instruction: u8;
    static nexit_vmwrite_instruction: u8;
    static nexit_checked_landing: u8;
}

/// Where a #GP or #UD at `rip` continues, if `rip` is one of the checked instructions.
pub(crate) fn landing_pad(rip: u64) -> Option<u64> {
    let checked = [
        &raw const nexit_rdmsr_instruction,
        &raw const nexit_wrmsr_instruction,
        &raw const nexit_xsetbv_instruction,
        &raw const nexit_vmwrite_instruction,
    ];
    checked.iter().any(|at| *at as u64 == rip).then_some(&raw const nexit_checked_landing as u64)
}

/// Reads an MSR; `None` where the CPU raises #GP.
///
/// # Safety
/// Ring 0, and the exception handlers of [`crate::exceptions`] are installed.
#[must_use]
pub unsafe fn read_msr_checked(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the caller vouches for ring 0 and the handler that catches a #GP.
    let read = unsafe { nexit_rdmsr_checked(msr, &raw mut value) };
    (read == 1).then_some(value)
}

/// Writes an MSR; `false` where the CPU raises #GP.
///
/// # Safety
/// As [`read_msr_checked`]; and the write must not break what the hypervisor relies on.
#[must_use]
pub unsafe fn write_msr_checked(msr: u32, value: u64) -> bool {
    // SAFETY: the caller vouches for the value and for the handler that catches a #GP.
    unsafe { nexit_wrmsr_checked(msr, value) == 1 }
}

/// Writes XCR0; `false` where the CPU raises #GP.
///
/// # Safety
/// As [`read_msr_checked`]; CR4.OSXSAVE is set.
#[must_use]
pub unsafe fn write_xcr0_checked(value: u64) -> bool {
    // SAFETY: the caller vouches for ring 0, CR4.OSXSAVE and the handler that catches a #GP.
    unsafe { nexit_xsetbv_checked(0, value) == 1 }
}

/// PKRU.
///
/// # Safety
/// Ring 0, and the CPU has protection keys.
#[must_use]
pub unsafe fn protection_keys() -> u32 {
    let value;
    // SAFETY: the caller vouches for it; CR4.PKE is as before behind it, and protects no page of the supervisor's.
    unsafe {
        asm!(
            "mov {before}, cr4",
            "mov {with}, {before}",
            "bts {with}, 22",
            "mov cr4, {with}",
            "rdpkru",
            "mov cr4, {before}",
            before = out(reg) _,
            with = out(reg) _,
            in("ecx") 0,
            out("eax") value,
            out("edx") _,
            options(nostack),
        );
    }
    value
}

/// Writes a field of the current VMCS; nothing happens without one, or outside VMX operation.
///
/// # Safety
/// As [`read_msr_checked`]; the owner of the VMCS expects it.
pub unsafe fn vmwrite_checked(field: u32, value: u64) {
    // SAFETY: the caller vouches for the field and for the handler that catches a #UD.
    unsafe { nexit_vmwrite_checked(field.into(), value) };
}

/// Reads an MSR that exists.
///
/// # Safety
/// Ring 0 and the MSR exists.
#[must_use]
#[inline]
pub unsafe fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches for ring 0 and the MSR.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR that exists.
///
/// # Safety
/// Ring 0, the MSR exists and takes the value.
#[inline]
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for ring 0, the MSR and the value.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    CpuidResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}

/// DR0 to DR3, and DR6.
///
/// # Safety
/// Ring 0, and DR7.GD is clear.
#[must_use]
pub unsafe fn debug_registers() -> ([u64; 4], u64) {
    let (first, second, third, fourth, status);
    // SAFETY: ring 0, says the caller; reading them changes nothing.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, dr6",
            out(reg) first, out(reg) second, out(reg) third, out(reg) fourth, out(reg) status,
            options(nomem, nostack, preserves_flags)
        );
    }
    ([first, second, third, fourth], status)
}

/// Sets DR0 to DR3, and DR6.
///
/// # Safety
/// Ring 0, DR7.GD is clear and no breakpoint on; the bits of DR6 that have to be 0 are.
pub unsafe fn set_debug_registers([first, second, third, fourth]: [u64; 4], status: u64) {
    // SAFETY: ring 0, says the caller, who has no breakpoint on.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr6, {}",
            in(reg) first, in(reg) second, in(reg) third, in(reg) fourth, in(reg) status,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// DR6.
///
/// # Safety
/// Ring 0, and DR7.GD is clear.
#[must_use]
pub unsafe fn debug_status() -> u64 {
    let status;
    // SAFETY: ring 0, says the caller; reading it changes nothing.
    unsafe {
        asm!("mov {}, dr6", out(reg) status, options(nomem, nostack, preserves_flags));
    }
    status
}

/// Sets DR6.
///
/// # Safety
/// As for [`debug_status`]; the bits that have to be 0 are.
pub unsafe fn set_debug_status(status: u64) {
    // SAFETY: ring 0, says the caller; it only says what has happened.
    unsafe { asm!("mov dr6, {}", in(reg) status, options(nomem, nostack, preserves_flags)) };
}

/// WBINVD.
pub fn write_back_caches() {
    // SAFETY: it changes no value that anybody reads.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

#[must_use]
#[inline(always)]
pub fn stack_pointer() -> u64 {
    let pointer;
    // SAFETY: it only reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// The time-stamp counter.
#[must_use]
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is allowed in ring 0 and, as CR4.TSD is clear, everywhere else.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads a port.
///
/// # Safety
/// Ring 0; a read of the port must not disturb a device that somebody else uses.
#[must_use]
pub unsafe fn port_read(port: u16, width: Width) -> u32 {
    match width {
        // SAFETY: the caller vouches for the port.
        Width::Byte => unsafe { u8::read_from_port(port) }.into(),
        // SAFETY: the caller vouches for the port.
        Width::Word => unsafe { u16::read_from_port(port) }.into(),
        // SAFETY: the caller vouches for the port.
        Width::Dword | Width::Qword => unsafe { u32::read_from_port(port) },
    }
}

/// Writes a port.
///
/// # Safety
/// Ring 0; the write must not break what the hypervisor relies on.
pub unsafe fn port_write(port: u16, width: Width, value: u32) {
    match width {
        // SAFETY: the caller vouches for the port.
        Width::Byte => unsafe { u8::write_to_port(port, value as u8) },
        // SAFETY: the caller vouches for the port.
        Width::Word => unsafe { u16::write_to_port(port, value as u16) },
        // SAFETY: the caller vouches for the port.
        Width::Dword | Width::Qword => unsafe { u32::write_to_port(port, value) },
    }
}

/// Stops this CPU for good: interrupts off, HLT for ever.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts off HLT waits for an NMI or INIT, which change nothing here.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// The legacy region of FXSAVE (SDM "FXSAVE Area").
#[repr(C, align(16))]
struct FxsaveArea([u8; 512]);

/// The FPU's and SSE's registers as they stand, as FXSAVE stores them in 64-bit mode: the hypervisor itself is compiled
/// without such instructions.
#[must_use]
pub fn fxsave() -> [u8; 512] {
    let mut area = FxsaveArea([0; 512]);
    // SAFETY: the area is 512 bytes, aligned to 16; every CPU in long mode has FXSAVE.
    unsafe {
        asm!("fxsave64 [{}]", in(reg) &raw mut area, options(nostack, preserves_flags));
    }
    area.0
}

/// Sets them.
///
/// # Safety
/// They are nobody's who would notice: a guest's that is to have these, of which `area` has all. Its MXCSR has no bit that
/// the CPU lacks.
pub unsafe fn fxrstor(area: [u8; 512]) {
    let area = FxsaveArea(area);
    // SAFETY: the area is 512 bytes, aligned to 16; the caller vouches for the rest.
    unsafe {
        asm!("fxrstor64 [{}]", in(reg) &raw const area, options(nostack, preserves_flags, readonly));
    }
}

/// The area of XSAVE, as far as the upper halves of YMM0 to YMM15 (SDM "XSAVE Area"; APM "XSAVE/XRSTOR Area Layout").
#[repr(C, align(64))]
struct XsaveArea {
    legacy: [u8; 512],
    /// XSTATE_BV, and zeros.
    header: [u64; 8],
    upper: [u8; 256],
}

/// The state component of those upper halves, and its bit in XCR0.
const AVX: u64 = 1 << 2;

/// The upper halves of YMM0 to YMM15 as they stand; `None` where XCR0, which is the guest's, has none.
///
/// # Safety
/// Ring 0.
#[must_use]
pub unsafe fn upper_halves() -> Option<[u8; 256]> {
    const OSXSAVE: u64 = 1 << 18;
    let (cr4, low): (u64, u32);
    // SAFETY: ring 0, says the caller; it only reads.
    unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
    if cr4 & OSXSAVE == 0 {
        return None;
    }
    // SAFETY: CR4.OSXSAVE is set; it only reads XCR0.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    if u64::from(low) & AVX == 0 {
        return None;
    }
    let mut area = XsaveArea { legacy: [0; 512], header: [0; 8], upper: [0; 256] };
    // SAFETY: XCR0 has the component; the area is aligned, and as large as it takes.
    unsafe {
        asm!("xsave64 [{}]", in(reg) &raw mut area, in("eax") AVX as u32, in("edx") 0, options(nostack, preserves_flags));
    }
    Some(area.upper)
}

/// Sets them.
///
/// # Safety
/// As for [`fxrstor`], of whose area this is the other part; [`upper_halves`] gives some.
pub unsafe fn set_upper_halves(upper: [u8; 256]) {
    // MXCSR is loaded with them.
    let area = XsaveArea { legacy: fxsave(), header: [AVX, 0, 0, 0, 0, 0, 0, 0], upper };
    // SAFETY: XCR0 has the component, says the caller; the area is aligned and has a header as XSAVE leaves it.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) &raw const area, in("eax") AVX as u32, in("edx") 0, options(nostack, preserves_flags, readonly));
    }
}

/// The low 128 bits of XMM0 to XMM15 (`register` modulo 16), as they stand.
#[must_use]
pub fn vector_register(register: u8) -> [u8; 16] {
    const XMM0: usize = 160;
    let area = fxsave();
    let at = XMM0 + 16 * usize::from(register & 15);
    core::array::from_fn(|byte| area[at + byte])
}
