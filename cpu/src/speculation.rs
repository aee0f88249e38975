//! Speculation: what [`crate::mitigations`] finds is to be done, done. On each CPU when it is taken over ([`prepare`]); when
//! a CPU changes hands ([`forget`]); and by the world switch at each entry and exit, which looks at [`AT_SWITCH`].

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU8, Ordering};

use arch::machine::CpuidResult;
use arch::msr::{IA32_ARCH_CAPABILITIES, IA32_EFER, IA32_SPEC_CTRL};
use arch::register::Efer;

use crate::instructions::{cpuid, read_msr, write_msr};
use crate::mitigations::{Mitigations, Said};

/// IA32_PRED_CMD, IA32_FLUSH_CMD (SDM volume 4; APM "Speculation Control MSRs").
const PREDICTION_COMMAND: u32 = 0x49;
const FLUSH_COMMAND: u32 = 0x10b;
/// What bit 0 of the two commands does: the indirect branch predictors are emptied; the first-level data cache is.
const DO_IT: u64 = 1;

/// What the world switch does, for all CPUs: what one of them needs. It reads this as a byte.
pub static AT_SWITCH: AtomicU8 = AtomicU8::new(0);
/// In [`AT_SWITCH`]: at an entry, VERW.
const CLEAR_BUFFERS: u8 = 1 << 0;
/// In [`AT_SWITCH`]: at an entry, the first-level data cache is emptied.
const FLUSH_FIRST_LEVEL: u8 = 1 << 1;
/// In [`AT_SWITCH`]: something is done at an entry: [`nexit_before_entry`], and VERW behind it.
pub const AT_ENTRY: u8 = CLEAR_BUFFERS | FLUSH_FIRST_LEVEL;
/// In [`AT_SWITCH`]: at an exit [`nexit_fill_returns`] comes before the first return.
pub const AT_EXIT: u8 = 1 << 2;

global_asm!(
    ".pushsection .text.nexit, \"ax\"",
    // Both keep all registers but the flags.
    ".globl nexit_before_entry, nexit_fill_returns", // another of the compiler's units asks for them
    "nexit_before_entry:",
    "    test byte ptr [rip + {at_switch}], {flush}",
    "    jz 1f",
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    mov ecx, {command}",
    "    mov eax, 1",
    "    xor edx, edx",
    "    wrmsr",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    "1:  ret",
    // As many calls as the largest buffer has entries. Where one is taken for a return, it leads to INT3.
    "nexit_fill_returns:",
    "    .rept 32",
    "    call 2f",
    "    int3",
    "2:",
    "    .endr",
    "    add rsp, 32 * 8",
    "    lfence",
    "    ret",
    ".popsection",
    at_switch = sym AT_SWITCH,
    flush = const FLUSH_FIRST_LEVEL,
    command = const FLUSH_COMMAND,
);

unsafe extern "sysv64" {
    /// Called by the assembly of the world switch only, right before VERW and the entry.
    pub fn nexit_before_entry();
    /// Called by the assembly of the world switch only, right behind an exit.
    pub fn nexit_fill_returns();
}

/// A selector for VERW, in memory: only that form empties the buffers.
pub static DATA_SELECTOR: u16 = crate::segments::DATA.0;

/// Whether the world switch is to fill the return-stack buffer behind an exit.
#[must_use]
pub fn fills_returns() -> bool {
    AT_SWITCH.load(Ordering::Relaxed) & AT_EXIT != 0
}

/// Whether the world switch has anything to do.
#[inline]
#[must_use]
pub fn switches_plainly() -> bool {
    AT_SWITCH.load(Ordering::Relaxed) == 0
}

/// What the CPU that calls says of its speculation.
///
/// # Safety
/// Ring 0.
unsafe fn said() -> Said {
    const ARCH_CAPABILITIES: u32 = 1 << 29;
    let (basic, extended) = (cpuid(0, 0), cpuid(0x8000_0000, 0).eax);
    let there = |leaf, most| if leaf <= most { cpuid(leaf, 0) } else { CpuidResult::default() };
    let structured = there(7, basic.eax);
    let has_them = structured.edx & ARCH_CAPABILITIES != 0;
    // SAFETY: ring 0, says the caller, and CPUID shows it.
    let read = || unsafe { read_msr(IA32_ARCH_CAPABILITIES) };
    Said {
        structured,
        sizes: there(0x8000_0008, extended),
        virtualization: there(0x8000_000a, extended),
        extended: there(0x8000_0021, extended),
        arch_capabilities: if has_them { read() } else { 0 },
        // "AuthenticAMD", "HygonGenuine".
        is_amd: matches!(basic.ebx, 0x6874_7541 | 0x6f67_7948),
    }
}

/// What is done on the CPU that calls.
///
/// # Safety
/// Ring 0.
#[must_use]
pub unsafe fn mitigations() -> Mitigations {
    // SAFETY: as the caller promises.
    Mitigations::of(&unsafe { said() })
}

/// From here on the hypervisor is held to it on the CPU that calls, and the world switch on all.
///
/// # Safety
/// Ring 0, and no guest runs on this CPU.
pub unsafe fn prepare() {
    // SAFETY: as the caller promises.
    let mitigations = unsafe { mitigations() };
    let bit = |wanted: bool, bit: u8| if wanted { bit } else { 0 };
    let wanted = bit(mitigations.clear_buffers, CLEAR_BUFFERS)
        | bit(mitigations.flush_first_level, FLUSH_FIRST_LEVEL)
        | bit(mitigations.fill_returns, AT_EXIT);
    AT_SWITCH.fetch_or(wanted, Ordering::Relaxed);
    if let Some(control) = mitigations.host_control {
        // SAFETY: CPUID shows the MSR and the bit.
        unsafe { write_msr(IA32_SPEC_CTRL, control) };
    }
    if mitigations.automatic_ibrs {
        // SAFETY: every CPU in long mode has IA32_EFER.
        let efer = unsafe { read_msr(IA32_EFER) };
        // SAFETY: CPUID shows the bit; the rest is kept.
        unsafe { write_msr(IA32_EFER, efer | Efer::AIBRSE.bits()) };
    }
}

/// The MSRs to write when a CPU changes hands, each with its value.
fn writes(said: &Said) -> impl Iterator<Item = (u32, u64)> {
    let intel = |bit: u32| said.structured.edx >> bit & 1 != 0;
    let amd = |bit: u32| said.sizes.ebx >> bit & 1 != 0;
    // IBRS, STIBP or SSBD of either vendor.
    let control = intel(26) || intel(27) || intel(31) || amd(14) || amd(15) || amd(24);
    let predictors = intel(26) || amd(12);
    let first_level_cache = intel(28);
    let host_control = Mitigations::of(said).host_control.unwrap_or(0);
    [
        (control, IA32_SPEC_CTRL, host_control),
        (predictors, PREDICTION_COMMAND, DO_IT),
        (first_level_cache, FLUSH_COMMAND, DO_IT),
    ]
    .into_iter()
    .filter(|(there, ..)| *there)
    .map(|(_, msr, value)| (msr, value))
}

/// Forgets the guest that ran on this CPU before: what was learned of it, and what it asked of speculation.
///
/// # Safety
/// Ring 0, and no guest runs on this CPU.
pub unsafe fn forget() {
    // SAFETY: as the caller promises.
    for (msr, value) in writes(&unsafe { said() }) {
        // SAFETY: ring 0, says the caller; CPUID shows the MSR, and the value is one that it takes.
        unsafe { write_msr(msr, value) };
    }
    // SAFETY: it keeps all registers but the flags; its stack is this one, with room.
    unsafe { asm!("call {}", sym nexit_fill_returns) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_told_to_forget_by_the_msrs_that_it_has_and_no_other() {
        let cpu = |edx: u32, ebx: u32, svm: u32| {
            let structured = CpuidResult { edx, ..CpuidResult::default() };
            let sizes = CpuidResult { ebx, ..CpuidResult::default() };
            let virtualization = CpuidResult { edx: svm, ..CpuidResult::default() };
            let is_amd = ebx != 0;
            writes(&Said { structured, sizes, virtualization, is_amd, ..Said::default() })
                .collect::<std::vec::Vec<_>>()
        };
        let (predictors, cache) = ((0x49, 1), (0x10b, 1));
        let control = |host: u64| (0x48, host);
        for (what, edx, ebx, svm, expected) in [
            ("neither", 0, 0, 0, &[][..]),
            ("Intel with IBRS and IBPB", 1 << 26, 0, 0, &[control(1), predictors]),
            ("with L1D_FLUSH, too", 1 << 26 | 1 << 28, 0, 0, &[control(1), predictors, cache]),
            ("AMD with IBPB alone", 0, 1 << 12, 0, &[predictors]),
            ("AMD with SSBD", 0, 1 << 12 | 1 << 24, 0, &[control(0), predictors]),
            ("AMD with IBRS", 0, 1 << 12 | 1 << 14, 0, &[control(0), predictors]),
            ("AMD that switches it", 0, 1 << 12 | 1 << 14, 1 << 20, &[control(1), predictors]),
        ] {
            assert_eq!(cpu(edx, ebx, svm), expected, "{what}");
        }
    }

    #[test]
    fn what_the_world_switch_calls_keeps_its_registers_and_its_stack() {
        let (mut a, mut c, mut d) = (1_u64, 2_u64, 3_u64);
        let (before, behind): (u64, u64);
        // SAFETY: nothing is to be done at an entry in a test, so no privileged instruction is met; the rest is calls.
        unsafe {
            asm!(
                "mov {before}, rsp", "call {entry}", "call {returns}", "mov {behind}, rsp",
                entry = sym nexit_before_entry, returns = sym nexit_fill_returns,
                before = out(reg) before, behind = out(reg) behind,
                inout("rax") a, inout("rcx") c, inout("rdx") d,
            );
        }
        assert_eq!((a, c, d, before), (1, 2, 3, behind));
    }
}
