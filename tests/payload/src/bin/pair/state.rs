//! What the second CPU holds when it has come to 64-bit mode and nothing has changed it.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt::{self, Display};

use arch::msr::{IA32_EFER, IA32_PAT};
use cpu::instructions::{cpuid, fxsave, read_msr, tsc, write_msr};

use crate::local;
use crate::trap::Place;

/// MSRs that every CPU in long mode has.
pub(crate) const MSRS: &[(&str, u32)] = &[
    ("IA32_PAT", IA32_PAT),
    ("IA32_MTRR_DEF_TYPE", 0x2ff),
    ("IA32_SYSENTER_CS", 0x174),
    ("IA32_SYSENTER_ESP", 0x175),
    ("IA32_SYSENTER_EIP", 0x176),
    ("STAR", 0xc000_0081),
    ("LSTAR", 0xc000_0082),
    ("CSTAR", 0xc000_0083),
    ("SFMASK", 0xc000_0084),
    ("FS_BASE", 0xc000_0100),
    ("GS_BASE", 0xc000_0101),
    ("KERNEL_GS_BASE", 0xc000_0102),
    ("IA32_DEBUGCTL", 0x1d9),
];
const COUNT: usize = 13;

/// Registers of the local APIC.
const LOCAL: &[(&str, u16)] = &[
    ("ID", local::ID),
    ("TPR", local::TPR),
    ("LDR", local::LDR),
    ("SVR", local::SVR),
    ("ESR", local::ESR),
    ("LVT timer", local::TIMER),
    ("LVT thermal", 0x330),
    ("LVT performance", 0x340),
    ("LVT LINT0", 0x350),
    ("LVT LINT1", 0x360),
    ("LVT error", 0x370),
    ("initial count", local::INITIAL_COUNT),
    ("current count", 0x390),
    ("divide configuration", local::DIVIDE),
];
const LOCAL_COUNT: usize = 14;

#[derive(Clone, Copy)]
pub(crate) struct State {
    msrs: [u64; COUNT],
    tsc_aux: Option<u64>,
    base: u64,
    local: [u32; LOCAL_COUNT],
    /// DFR, which is there in xAPIC mode.
    dfr: Option<u32>,
    /// ISR, TMR and IRR, all bits together.
    bits: u32,
    float: [u8; 512],
    xcr0: Option<u64>,
    tsc: u64,
    ldtr: u16,
    tr: u16,
}

static STATE: Place<Option<State>> = Place(UnsafeCell::new(None));

fn cr4() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr4", out(reg) value) };
    value
}

fn set_cr4(value: u64) {
    // SAFETY: bits that CPUID announces.
    unsafe { asm!("mov cr4, {}", in(reg) value) };
}

/// FPU and SSE are in use from here on.
fn float_on() {
    const OSFXSR: u64 = 3 << 9;
    set_cr4(cr4() | OSFXSR);
}

fn has_xsave() -> bool {
    cpuid(1, 0).ecx >> 26 & 1 != 0
}

fn has_tsc_aux() -> bool {
    cpuid(0x8000_0001, 0).edx >> 27 & 1 != 0
}

fn xcr0() -> Option<u64> {
    const OSXSAVE: u64 = 1 << 18;
    if !has_xsave() {
        return None;
    }
    let before = cr4();
    set_cr4(before | OSXSAVE);
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set; a read.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    set_cr4(before);
    Some(u64::from(high) << 32 | u64::from(low))
}

fn set_xcr0(low: u32) {
    const OSXSAVE: u64 = 1 << 18;
    let before = cr4();
    set_cr4(before | OSXSAVE);
    // SAFETY: CR4.OSXSAVE is set; x87 and SSE are there.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") 0) };
    set_cr4(before);
}

/// Writes it down; by the second CPU.
pub(crate) fn take() {
    let tsc = tsc();
    let (mut ldtr, mut tr): (u64, u64);
    // SAFETY: reads.
    unsafe { asm!("sldt {}", "str {}", out(reg) ldtr, out(reg) tr) };
    ldtr &= 0xffff;
    tr &= 0xffff;
    // SAFETY: they are there.
    let msr = |msr| unsafe { read_msr(msr) };
    let bits = [local::ISR, local::TMR, local::IRR].map(local::bits);
    float_on();
    let state = State {
        msrs: core::array::from_fn(|index| msr(MSRS[index].1)),
        tsc_aux: has_tsc_aux().then(|| msr(0xc000_0103)),
        base: local::base(),
        local: core::array::from_fn(|index| local::read(LOCAL[index].1)),
        dfr: (!local::in_x2apic_mode()).then(|| local::read(local::DFR)),
        bits: bits.as_flattened().iter().fold(0, |all, word| all | word),
        float: fxsave(),
        xcr0: xcr0(),
        tsc,
        ldtr: ldtr as u16,
        tr: tr as u16,
    };
    // SAFETY: the first CPU reads it once this one has come to its loop.
    unsafe { *STATE.0.get() = Some(state) };
}

/// What it was at the second CPU's last start, which has come to its loop.
pub(crate) fn last() -> Option<State> {
    // SAFETY: nobody writes it now.
    unsafe { *STATE.0.get() }
}

impl State {
    pub(crate) fn msrs(&self) -> impl Iterator<Item = (&'static str, u64)> {
        MSRS.iter().map(|(name, _)| *name).zip(self.msrs)
    }

    pub(crate) fn local(&self) -> impl Iterator<Item = (&'static str, u32)> {
        LOCAL.iter().map(|(name, _)| *name).zip(self.local)
    }

    pub(crate) fn further_local(&self) -> impl Display {
        let Self { dfr, bits, base, .. } = *self;
        fmt::from_fn(move |f| {
            write!(f, "IA32_APIC_BASE {base:#x}, any of ISR, TMR and IRR {bits:#x}, DFR ")?;
            match dfr {
                Some(dfr) => write!(f, "{dfr:#x}"),
                None => f.write_str("none"),
            }
        })
    }

    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    /// Any of ISR, TMR and IRR.
    pub(crate) const fn in_service(&self) -> u32 {
        self.bits
    }

    pub(crate) const fn tsc(&self) -> u64 {
        self.tsc
    }

    /// LDTR's selector and TR's.
    pub(crate) const fn system_selectors(&self) -> [u16; 2] {
        [self.ldtr, self.tr]
    }

    pub(crate) const fn tsc_aux(&self) -> Option<u64> {
        self.tsc_aux
    }

    pub(crate) const fn xcr0(&self) -> Option<u64> {
        self.xcr0
    }

    /// FCW, FSW, the abridged FTW.
    pub(crate) fn x87(&self) -> [u16; 3] {
        let word = |at: usize| u16::from_le_bytes([self.float[at], self.float[at + 1]]);
        [word(0), word(2), word(4) & 0xff]
    }

    pub(crate) fn mxcsr(&self) -> u32 {
        self.float[24..28].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte))
    }

    /// ST0's exponent and sign, and the low half of XMM1.
    pub(crate) fn values(&self) -> (u16, u64) {
        let low = |at: usize| {
            let bytes = self.float.get(at..at + 8).unwrap_or_default();
            bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
        };
        (low(40) as u16, low(176))
    }
}

/// Fills whatever INIT may keep or reset; by the second CPU. `cache`: CR0.CD, too.
pub(crate) extern "C" fn fill(cache: u64) -> u64 {
    let write = |msr, value| {
        // SAFETY: they are there, and this CPU is stopped behind this.
        unsafe { write_msr(msr, value) };
    };
    write(IA32_PAT, 0x0007_0406_0001_0406);
    // The default type, with the ranges off.
    write(0x2ff, 0x804);
    for (index, (_, msr)) in MSRS.iter().enumerate().skip(2) {
        if *msr != 0x1d9 {
            write(*msr, 0x10_0000 + 0x1000 * index as u64);
        }
    }
    if has_tsc_aux() {
        write(0xc000_0103, 0x77);
    }
    // SAFETY: NXE and SCE beside what is on.
    let efer = unsafe { read_msr(IA32_EFER) };
    write(IA32_EFER, efer | 1);
    float_on();
    if has_xsave() {
        set_xcr0(3);
    }
    fill_float();
    fill_debug();
    // DE, PGE.
    set_cr4(cr4() | 1 << 3 | 1 << 7);
    // SAFETY: CR2 means nothing until the next page fault.
    unsafe { asm!("mov cr2, {}", in(reg) 0x1234_5678_u64) };
    for (register, value) in [
        (local::SVR, 0x1e0),
        (local::TPR, 0x30),
        (local::TIMER, 0x3_0044),
        (0x340, 0x1_0045),
        (0x350, 0x1_0046),
        (0x360, 0x1_0447),
        (0x370, 0x48),
        (local::DIVIDE, 3),
        (local::INITIAL_COUNT, 0x7fff_ffff),
    ] {
        local::write(register, value);
    }
    if !local::in_x2apic_mode() {
        local::write(local::LDR, 0x2000_0000);
        local::write(local::DFR, 0x0fff_ffff);
    }
    if cache != 0 {
        const CD: u64 = 1 << 30;
        // SAFETY: memory is slower, and that is all.
        unsafe { asm!("mov {0}, cr0", "or {0}, {1}", "mov cr0, {0}", out(reg) _, in(reg) CD) };
    }
    crate::other::ready();
    loop {
        crate::trap::spin();
        // In the midst of work, with registers that a reset does not have.
        // SAFETY: no memory is touched.
        unsafe {
            asm!("mov esi, 1", "mov edi, 2", "mov r8d, 3", out("rsi") _, out("rdi") _, out("r8") _);
        }
    }
}

fn fill_float() {
    let (control, mxcsr): (u16, u32) = (0x27f, 0x3f80);
    // SAFETY: no code of this payload uses these registers.
    unsafe {
        asm!(
            "fninit", "fldcw [{0}]", "fld1", "ldmxcsr [{1}]", "movq xmm1, {2}",
            in(reg) &raw const control, in(reg) &raw const mxcsr, in(reg) 0x1122_3344_5566_7788_u64,
        );
    }
}

/// Breakpoints that are off.
fn fill_debug() {
    // SAFETY: as it says.
    unsafe {
        asm!(
            "mov dr0, {0}", "mov dr1, {0}", "mov dr2, {0}", "mov dr3, {0}", "mov dr6, {1}", "mov dr7, {2}",
            in(reg) 0x7000_u64, in(reg) 0xffff_4ff3_u64, in(reg) 0x700_u64,
        );
    }
}
