//! CPUID against what the CPU does, and the MSRs that need no CPUID.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use cpu::instructions::{cpuid, read_msr, tsc, write_msr};

use crate::fact;
use crate::trap::{self, Told};

static SAME: AtomicBool = AtomicBool::new(false);

fn cr4() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr4", out(reg) value) };
    value
}

fn set_cr4(value: u64) -> bool {
    trap::bytes(&[0x0f, 0x22, 0xe7], value).is_none()
}

/// A feature that CPUID shows and a bit of CR4 goes with: leaf, subleaf, register (1 EBX to 3 EDX), bit; bit of CR4.
const CR4_BITS: &[(&str, u32, u32, u8, u64)] = &[
    ("DE", 1, 3, 2, 3),
    ("PSE", 1, 3, 3, 4),
    ("MCE", 1, 3, 7, 6),
    ("PGE", 1, 3, 13, 7),
    ("SMEP", 7, 1, 7, 20),
    ("SMAP", 7, 1, 20, 21),
    ("FSGSBASE", 7, 1, 0, 16),
    ("XSAVE", 1, 2, 26, 18),
    ("PCID", 1, 2, 17, 17),
    ("UMIP", 7, 2, 2, 11),
    ("PKU", 7, 2, 3, 22),
    ("LA57", 7, 2, 16, 12),
    ("CET", 7, 2, 7, 23),
    ("SMX", 1, 2, 6, 14),
];

fn shown(leaf: u32, register: u32, bit: u8) -> bool {
    let most = cpuid(leaf & 0x8000_0000, 0).eax;
    let answer = cpuid(leaf, 0);
    let value = match register {
        1 => answer.ebx,
        2 => answer.ecx,
        _ => answer.edx,
    };
    leaf <= most && value >> bit & 1 != 0
}

/// Name; leaf, register and bit of CPUID; code and its argument.
type Instruction = (&'static str, u32, u32, u8, &'static [u8], u64);

/// Instructions that work where CPUID shows them, and else are #UD.
const INSTRUCTIONS: &[Instruction] = &[
    ("RDTSCP", 0x8000_0001, 3, 27, &[0x0f, 0x01, 0xf9], 0),
    ("MONITOR", 1, 2, 3, &[0x48, 0x89, 0xf8, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xc8], 0x20_0000),
    ("INVPCID", 7, 1, 10, &[0x31, 0xc0, 0x66, 0x0f, 0x38, 0x82, 0x07], 0x20_0000),
    ("RDRAND", 1, 2, 30, &[0x0f, 0xc7, 0xf0], 0),
    ("RDSEED", 7, 1, 18, &[0x0f, 0xc7, 0xf8], 0),
    ("CLFLUSHOPT", 7, 1, 23, &[0x66, 0x0f, 0xae, 0x3f], 0x20_0000),
    ("CLAC", 7, 1, 20, &[0x0f, 0x01, 0xca], 0),
    ("RDPID", 7, 2, 22, &[0xf3, 0x0f, 0xc7, 0xf8], 0),
];

pub(crate) fn all() {
    let before = cr4();
    for (name, leaf, register, bit, flag) in CR4_BITS {
        // QEMU does not survive a bit of a feature that it does not have.
        let seen = if shown(*leaf, *register, *bit) {
            let set = set_cr4(before | 1 << flag);
            let kept = cr4() >> flag & 1 != 0;
            set_cr4(before);
            if set && kept { "shown, can be switched on" } else { "shown, cannot be switched on" }
        } else {
            "not shown"
        };
        fact!("cpuid: {name}"; "{seen}");
    }
    for (name, leaf, register, bit, code, argument) in INSTRUCTIONS {
        let works = trap::bytes(code, *argument).is_none();
        fact!("cpuid: {name} works as CPUID shows it"; "{}", works == shown(*leaf, *register, *bit));
    }
    let xsetbv = [0x31, 0xc9, 0x31, 0xd2, 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xd1];
    let osxsave = || cpuid(1, 0).ecx >> 27 & 1;
    set_cr4(before & !(1 << 18));
    fact!("cpuid: OSXSAVE with CR4.OSXSAVE = 0"; "{}", osxsave());
    fact!("cpuid: XSETBV with CR4.OSXSAVE = 0"; "{}", Told(trap::bytes(&xsetbv, 0)));
    if set_cr4(before | 1 << 18) {
        fact!("cpuid: OSXSAVE with CR4.OSXSAVE = 1"; "{}", osxsave());
        fact!("cpuid: XSETBV with CR4.OSXSAVE = 1"; "{}", Told(trap::bytes(&xsetbv, 0)));
        let bad = [0x31, 0xc9, 0x31, 0xd2, 0xb8, 0, 0, 0, 0, 0x0f, 0x01, 0xd1];
        fact!("cpuid: XSETBV of 0"; "{}", Told(trap::bytes(&bad, 0)));
    }
    set_cr4(before);
    msrs();
}

/// MSRs that a guest may touch without asking CPUID, or after a question that its CPU answers with yes: name, number,
/// whether it may be written with what it holds.
const MSRS: &[(&str, u32, bool)] = &[
    ("P5_MC_ADDR", 0x0, true),
    ("P5_MC_TYPE", 0x1, true),
    ("TSC", 0x10, false),
    ("IA32_PLATFORM_ID", 0x17, false),
    ("IA32_APIC_BASE", 0x1b, true),
    ("EBL_CR_POWERON", 0x2a, true),
    ("IA32_FEATURE_CONTROL", 0x3a, false),
    ("IA32_BIOS_SIGN_ID", 0x8b, false),
    ("IA32_SMM_MONITOR_CTL", 0x9b, false),
    ("IA32_MTRRCAP", 0xfe, false),
    ("IA32_SYSENTER_CS", 0x174, true),
    ("IA32_SYSENTER_ESP", 0x175, true),
    ("IA32_SYSENTER_EIP", 0x176, true),
    ("IA32_MCG_CAP", 0x179, false),
    ("IA32_MCG_STATUS", 0x17a, true),
    ("IA32_MISC_ENABLE", 0x1a0, false),
    ("IA32_DEBUGCTL", 0x1d9, true),
    ("LAST_BRANCH_FROM_IP", 0x1db, false),
    ("IA32_MTRR_PHYSBASE0", 0x200, true),
    ("IA32_MTRR_FIX64K_00000", 0x250, true),
    ("IA32_PAT", 0x277, true),
    ("IA32_MTRR_DEF_TYPE", 0x2ff, true),
    ("EFER", 0xc000_0080, true),
    ("STAR", 0xc000_0081, true),
    ("LSTAR", 0xc000_0082, true),
    ("CSTAR", 0xc000_0083, true),
    ("SFMASK", 0xc000_0084, true),
    ("FS_BASE", 0xc000_0100, true),
    ("GS_BASE", 0xc000_0101, true),
    ("KERNEL_GS_BASE", 0xc000_0102, true),
    ("SYSCFG", 0xc001_0010, false),
    ("HWCR", 0xc001_0015, false),
    ("PERF_CTL0", 0xc001_0000, true),
    ("PERF_CTR3", 0xc001_0007, true),
    ("PATCH_LEVEL", 0x8b, false),
    ("TOP_MEM", 0xc001_001a, false),
    ("AMD: NB_CFG", 0xc001_001f, true),
    ("AMD: PATCH_LOADER", 0xc001_0020, false),
    ("AMD: interrupt pending", 0xc001_0055, true),
    ("AMD: MMIO_CFG_BASE", 0xc001_0058, true),
    ("AMD: SMM_BASE", 0xc001_0111, true),
    ("AMD: SMM_ADDR", 0xc001_0112, true),
    ("AMD: SMM_MASK", 0xc001_0113, true),
    ("AMD: LS_CFG", 0xc001_1020, false),
    ("AMD: IC_CFG", 0xc001_1021, true),
    ("AMD: DC_CFG", 0xc001_1022, true),
    ("AMD: EX_CFG", 0xc001_102c, true),
    ("AMD: DE_CFG", 0xc001_1029, true),
];

fn msrs() {
    for (name, number, writable) in MSRS {
        // MOV ECX, EDI; RDMSR; and WRMSR.
        let read = trap::bytes(&[0x89, 0xf9, 0x0f, 0x32], (*number).into());
        fact!("msr: {name} ({number:#x}) read"; "{}", Told(read));
        if *writable && read.is_none() {
            let written = trap::bytes(&[0x89, 0xf9, 0x0f, 0x32, 0x0f, 0x30], (*number).into());
            fact!("msr: {name} ({number:#x}) written with what it holds"; "{}", Told(written));
        }
    }
    processor_name();
    tsc_written();
}

/// MSRs C001_0030 to C001_0035 hold what CPUID says.
fn processor_name() {
    extern "C" fn compare(_: u64) {
        let same = (0..6_u32).all(|part| {
            let answer = cpuid(0x8000_0002 + part / 2, 0);
            let [low, high] =
                if part & 1 == 0 { [answer.eax, answer.ebx] } else { [answer.ecx, answer.edx] };
            // SAFETY: a #GP ends the trial.
            let value = unsafe { read_msr(0xc001_0030 + part) };
            value == u64::from(high) << 32 | u64::from(low)
        });
        SAME.store(same, Ordering::Relaxed);
    }
    SAME.store(false, Ordering::Relaxed);
    let seen = Told(trap::run(compare, 0));
    let same = SAME.load(Ordering::Relaxed);
    fact!("msr: AMD: the processor's name is CPUID's"; "{seen}, {same}");
}

/// A write of the TSC takes effect. It is set back.
fn tsc_written() {
    const FURTHER: u64 = 1 << 50;
    let before = tsc();
    // SAFETY: nobody measures a time now.
    unsafe { write_msr(0x10, before + FURTHER) };
    let moved = tsc() >= before + FURTHER;
    if moved {
        // SAFETY: as above.
        unsafe { write_msr(0x10, before) };
    }
    fact!("msr: a write of the TSC moves it"; "{moved}");
}
