//! Control registers, MSRs and CPUID, as the trials need them.

use core::arch::asm;
use core::fmt;

use cpu::instructions::cpuid;

use crate::trial::{self, Mode, Outcome, Registers};

pub(crate) const OSFXSR: u64 = 1 << 9;
pub(crate) const OSXMMEXCPT: u64 = 1 << 10;
pub(crate) const UMIP: u64 = 1 << 11;
pub(crate) const LA57: u64 = 1 << 12;
pub(crate) const PGE: u64 = 1 << 7;
pub(crate) const VMXE: u64 = 1 << 13;
pub(crate) const SMXE: u64 = 1 << 14;
pub(crate) const FSGSBASE: u64 = 1 << 16;
pub(crate) const PCIDE: u64 = 1 << 17;
pub(crate) const OSXSAVE: u64 = 1 << 18;
pub(crate) const SMEP: u64 = 1 << 20;
pub(crate) const SMAP: u64 = 1 << 21;
pub(crate) const PKE: u64 = 1 << 22;
pub(crate) const CET: u64 = 1 << 23;
pub(crate) const PKS: u64 = 1 << 24;

/// Whether this is QEMU, which has the one AMD CPU here: after a reserved bit of CR4 or CR3 it never goes on, and of CR0 it
/// takes anything.
pub(crate) fn qemu() -> bool {
    cpuid(0, 0).ebx.to_le_bytes() == *b"Auth"
}

/// CR0.
pub(crate) const MP: u64 = 1 << 1;
pub(crate) const EM: u64 = 1 << 2;
pub(crate) const TS: u64 = 1 << 3;
pub(crate) const NE: u64 = 1 << 5;
pub(crate) const WP: u64 = 1 << 16;

/// A feature of CPUID: leaf, register (0 EAX to 3 EDX), bit.
pub(crate) type Feature = (u32, u32, u32);

pub(crate) fn register(leaf: u32, subleaf: u32, register: u32) -> u32 {
    let most = cpuid(leaf & 0x8000_0000, 0).eax;
    let answer = cpuid(leaf, subleaf);
    let value = [answer.eax, answer.ebx, answer.ecx, answer.edx];
    if leaf <= most { value.get(register as usize).copied().unwrap_or(0) } else { 0 }
}

pub(crate) fn has((leaf, of, bit): Feature) -> bool {
    register(leaf, 0, of) >> bit & 1 != 0
}

pub(crate) const HAS_SMEP: Feature = (7, 1, 7);
pub(crate) const HAS_SMAP: Feature = (7, 1, 20);
pub(crate) const HAS_UMIP: Feature = (7, 2, 2);
pub(crate) const HAS_PKU: Feature = (7, 2, 3);
pub(crate) const HAS_XSAVE: Feature = (1, 2, 26);
pub(crate) const HAS_PCID: Feature = (1, 2, 17);
pub(crate) const HAS_INVPCID: Feature = (7, 1, 10);

pub(crate) fn cr0() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr0", out(reg) value) };
    value
}

pub(crate) fn cr4() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr4", out(reg) value) };
    value
}

pub(crate) fn set_cr0(value: u64) -> Outcome {
    trial::kernel(&[0x0f, 0x22, 0xc7], value)
}

pub(crate) fn set_cr3(value: u64) -> Outcome {
    trial::kernel(&[0x0f, 0x22, 0xdf], value)
}

pub(crate) fn set_cr4(value: u64) -> Outcome {
    trial::kernel(&[0x0f, 0x22, 0xe7], value)
}

/// WRMSR.
pub(crate) fn write_msr(msr: u32, value: u64) -> Outcome {
    let registers = Registers {
        rcx: msr.into(),
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
        ..Registers::default()
    };
    trial::run(Mode::Kernel, &[0x0f, 0x30], registers)
}

/// What a register holds, or what came instead.
pub(crate) enum Value {
    Read(u64),
    Raised(Outcome),
}

impl Value {
    /// In EDX:EAX.
    pub(crate) const fn of(seen: Outcome) -> Self {
        let value = seen.after.rdx << 32 | seen.after.rax & 0xffff_ffff;
        if seen.fine() { Self::Read(value) } else { Self::Raised(seen) }
    }

    /// 0 where something else came.
    pub(crate) const fn or_zero(&self) -> u64 {
        match self {
            Self::Read(value) => *value,
            Self::Raised(_) => 0,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(value) => write!(f, "{value:#x}"),
            Self::Raised(seen) => seen.fmt(f),
        }
    }
}

/// RDMSR.
pub(crate) fn read_msr(msr: u32) -> Value {
    let registers = Registers { rcx: msr.into(), ..Registers::default() };
    Value::of(trial::run(Mode::Kernel, &[0x0f, 0x32], registers))
}

/// The bits for which `works` says no.
pub(crate) fn refused(mut works: impl FnMut(u64) -> bool) -> u64 {
    (0..64).filter(|bit| !works(1 << bit)).fold(0, |bits, bit| bits | 1 << bit)
}
