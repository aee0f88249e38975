//! Which bits of CR4 a guest may set: those of the features that it is shown. A bit of another feature would bring in
//! what nobody has thought through, as event delivery by FRED does, past the shadow IDT.

use arch::machine::CpuidResult;

/// A register of CPUID's answer.
type Register = fn(&CpuidResult) -> u32;

const EAX: Register = |answer| answer.eax;
const EBX: Register = |answer| answer.ebx;
const ECX: Register = |answer| answer.ecx;
const EDX: Register = |answer| answer.edx;

/// Bits of CR4, and the leaf, subleaf, register and bit of CPUID that announce them (SDM "Control Registers").
const FEATURES: [(u64, u32, u32, Register, u32); 27] = [
    (0b11 << VME, 1, 0, EDX, 1), // VME, PVI
    (1 << 2, 1, 0, EDX, 4),      // TSD
    (1 << 3, 1, 0, EDX, 2),      // DE
    (1 << 4, 1, 0, EDX, 3),      // PSE
    (1 << 5, 1, 0, EDX, 6),      // PAE
    (1 << MCE, 1, 0, EDX, 7),    // MCE
    (1 << 7, 1, 0, EDX, 13),     // PGE
    (1 << 9, 1, 0, EDX, 24),     // OSFXSR
    (1 << 10, 1, 0, EDX, 25),    // OSXMMEXCPT
    (1 << 11, 7, 0, ECX, 2),     // UMIP
    (1 << 12, 7, 0, ECX, 16),    // LA57
    (1 << 13, 1, 0, ECX, 5),     // VMXE
    (1 << 14, 1, 0, ECX, 6),     // SMXE
    (1 << 16, 7, 0, EBX, 0),     // FSGSBASE
    (1 << 17, 1, 0, ECX, 17),    // PCIDE
    (1 << 18, 1, 0, ECX, 26),    // OSXSAVE
    (1 << 19, 7, 0, ECX, 23),    // KL
    (1 << 20, 7, 0, EBX, 7),     // SMEP
    (1 << 21, 7, 0, EBX, 20),    // SMAP
    (1 << 22, 7, 0, ECX, 3),     // PKE
    (1 << 23, 7, 0, ECX, 7),     // CET, for shadow stacks
    (1 << 23, 7, 0, EDX, 20),    // CET, for indirect branches
    (1 << 24, 7, 0, ECX, 31),    // PKS
    (1 << 25, 7, 0, EDX, 5),     // UINTR
    (1 << 27, 7, 1, EAX, 6),     // LASS
    (1 << 28, 7, 1, EAX, 26),    // LAM_SUP
    (1 << FRED, 7, 1, EAX, 17),  // FRED
];

/// VME, and PVI behind it.
const VME: u32 = 0;
const MCE: u32 = 6;
const FRED: u32 = 32;
/// PCE: RDPMC for user programs, on every CPU.
const ALWAYS: u64 = 1 << 8;

/// The bits that go with the features of these answers.
pub(super) fn bits(answer: impl Fn(u32, u32) -> CpuidResult) -> u64 {
    FEATURES.iter().fold(ALWAYS, |bits, (of_cr4, leaf, subleaf, register, bit)| {
        let there = register(&answer(*leaf, *subleaf)) >> bit & 1 != 0;
        if there { bits | of_cr4 } else { bits }
    })
}

/// MCE, which a guest may set although machine checks are not shown to it: a loader may have set it, and it brings
/// in nothing but #MC in place of a shutdown.
pub(super) const HARMLESS: u64 = 1 << MCE;
