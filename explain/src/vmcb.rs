//! AMD-V: why VMRUN refused a VMCB, by the manual's rules
//! (APM volume 2, "Canonicalization and Consistency Checks").
//!
//! The CPU only says VMEXIT_INVALID; this names the first rule that the VMCB breaks. Emulators
//! enter with some states that hardware refuses: the rules stand here as the manual has them.

use arch::register::{Cr0, Cr4, Efer};

use crate::State;

/// CR4.CET.
const CR4_CET: u64 = 1 << 23;
/// Bits of CR4 that must be zero on every CPU: all but VME–UMIP, LA57, FSGSBASE–OSXSAVE, SMEP–CET.
const CR4_MBZ: u64 = !(0x1fff | 0b111 << 16 | 0b1111 << 20);
/// Bits of EFER that must be zero on every CPU: all but SCE, LME, LMA–TCE, MCOMMIT, INTWB, UAIE,
/// AIBRSE.
const EFER_MBZ: u64 = !(1 | 1 << 8 | 0b11_1111 << 10 | 0b11 << 17 | 0b11 << 20);
/// Upper half of a register whose upper half must be zero.
const UPPER: u64 = 0xffff_ffff << 32;
/// Bits 63:52 of an address, which no CPU has.
const BEYOND_52_BITS: u64 = 0xfff << 52;

/// What the rules look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vmcb {
    intercept_4: u32,
    iopm_base_pa: u64,
    msrpm_base_pa: u64,
    guest_asid: u32,
    np_enable: u64,
    eventinj: u64,
    n_cr3: u64,
    /// Attributes of CS.
    cs: u16,
    efer: u64,
    cr4: u64,
    cr3: u64,
    cr0: u64,
    dr7: u64,
    dr6: u64,
    g_pat: u64,
}

impl Vmcb {
    /// From quadwords by their offsets (APM "Layout of VMCB").
    pub(super) fn read(state: &State) -> Self {
        let at = |offset| state.at(offset);
        Self {
            intercept_4: at(0x10) as u32,
            iopm_base_pa: at(0x40),
            msrpm_base_pa: at(0x48),
            guest_asid: at(0x58) as u32,
            np_enable: at(0x90),
            eventinj: at(0xa8),
            n_cr3: at(0xb0),
            cs: (at(0x410) >> 16) as u16,
            efer: at(0x4d0),
            cr4: at(0x548),
            cr3: at(0x550),
            cr0: at(0x558),
            dr7: at(0x560),
            dr6: at(0x568),
            g_pat: at(0x668),
        }
    }

    /// The first rule that it breaks of those that VMRUN checks.
    pub(super) fn broken(&self) -> Option<&'static str> {
        let rules =
            control_registers(self).into_iter().chain(long_mode(self)).chain(controls(self));
        rules.into_iter().find_map(|(broken, rule)| broken.then_some(rule))
    }
}

fn control_registers(vmcb: &Vmcb) -> [(bool, &'static str); 9] {
    let cr0 = Cr0::from_bits_retain(vmcb.cr0);
    [
        (vmcb.efer & Efer::SVME.bits() == 0, "EFER.SVME is 0"),
        (!cr0.contains(Cr0::CD) && cr0.contains(Cr0::NW), "CR0.CD is 0 and CR0.NW is 1"),
        (vmcb.cr0 & UPPER != 0, "CR0 bits 63:32 are not zero"),
        (vmcb.cr3 & BEYOND_52_BITS != 0, "a must-be-zero bit of CR3 is set"),
        (vmcb.cr4 & CR4_MBZ != 0, "a must-be-zero bit of CR4 is set"),
        (vmcb.dr6 & UPPER != 0, "DR6 bits 63:32 are not zero"),
        (vmcb.dr7 & UPPER != 0, "DR7 bits 63:32 are not zero"),
        (vmcb.efer & EFER_MBZ != 0, "a must-be-zero bit of EFER is set"),
        (vmcb.cr4 & CR4_CET != 0 && !cr0.contains(Cr0::WP), "CR4.CET is 1 and CR0.WP is 0"),
    ]
}

fn long_mode(vmcb: &Vmcb) -> [(bool, &'static str); 3] {
    let long = vmcb.efer & Efer::LME.bits() != 0 && vmcb.cr0 & Cr0::PG.bits() != 0;
    let pae = vmcb.cr4 & Cr4::PAE.bits() != 0;
    const LONG: u16 = 1 << 9;
    const DEFAULT: u16 = 1 << 10;
    let both = vmcb.cs & LONG != 0 && vmcb.cs & DEFAULT != 0;
    [
        (long && !pae, "EFER.LME and CR0.PG are 1 and CR4.PAE is 0"),
        (long && vmcb.cr0 & Cr0::PE.bits() == 0, "EFER.LME and CR0.PG are 1 and CR0.PE is 0"),
        (long && pae && both, "EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D are all 1"),
    ]
}

fn controls(vmcb: &Vmcb) -> [(bool, &'static str); 7] {
    const VMRUN: u32 = 1;
    let nested = vmcb.np_enable & 1 != 0;
    [
        (vmcb.intercept_4 & VMRUN == 0, "VMRUN is not intercepted"),
        (vmcb.msrpm_base_pa & BEYOND_52_BITS != 0, "MSRPM_BASE_PA is no physical address"),
        (vmcb.iopm_base_pa & BEYOND_52_BITS != 0, "IOPM_BASE_PA is no physical address"),
        (!event_legal(vmcb.eventinj), "EVENTINJ holds an event that cannot be injected"),
        (vmcb.guest_asid == 0, "the ASID is 0"),
        (nested && vmcb.n_cr3 & BEYOND_52_BITS != 0, "a must-be-zero bit of N_CR3 is set"),
        (nested && !pat_legal(vmcb.g_pat), "G_PAT holds a reserved memory type"),
    ]
}

/// Bit 31 of EVENTINJ.
const EVENT_VALID: u64 = 1 << 31;

/// APM "Event Injection": reserved types, and exceptions that are none.
fn event_legal(eventinj: u64) -> bool {
    let vector = eventinj & 0xff;
    match eventinj >> 8 & 7 {
        _ if eventinj & EVENT_VALID == 0 => true,
        0 | 2 | 4 => true,
        3 => vector != 2 && vector < 32,
        _ => false,
    }
}

fn pat_legal(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit guest that VMRUN accepts.
    fn long_mode_guest() -> Vmcb {
        Vmcb {
            intercept_4: 1,
            guest_asid: 1,
            np_enable: 1,
            efer: 0x1500,
            cr0: 0x8000_0011,
            cr4: 0x20,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            g_pat: 0x0007_0406_0007_0406,
            cs: 0x29b,
            ..Vmcb::read(&State::default())
        }
    }

    #[test]
    fn a_long_mode_guest_breaks_no_rule() {
        assert_eq!(long_mode_guest().broken(), None);
    }

    #[test]
    fn each_rule_is_named_when_it_alone_is_broken() {
        type Case = (&'static str, fn(&mut Vmcb));
        let cases: [Case; 22] = [
            ("EFER.SVME is 0", |v| v.efer = 0x500),
            ("CR0.CD is 0", |v| v.cr0 |= 1 << 29),
            ("CR0 bits 63:32", |v| v.cr0 |= 1 << 32),
            ("of CR3", |v| v.cr3 = 1 << 52),
            ("of CR4", |v| v.cr4 |= 1 << 13),
            ("of CR4", |v| v.cr4 |= 1 << 24),
            ("DR6", |v| v.dr6 |= 1 << 63),
            ("DR7", |v| v.dr7 |= 1 << 32),
            ("of EFER", |v| v.efer |= 1 << 9),
            ("of EFER", |v| v.efer |= 1 << 32),
            ("CR4.CET", |v| v.cr4 |= 1 << 23),
            ("CR4.PAE is 0", |v| v.cr4 = 0),
            ("CR0.PE is 0", |v| v.cr0 = 1 << 31),
            ("CS.L and CS.D", |v| v.cs |= 0x400),
            ("VMRUN", |v| v.intercept_4 = 0x7e),
            ("MSRPM", |v| v.msrpm_base_pa = 1 << 52),
            ("IOPM", |v| v.iopm_base_pa = 1 << 63),
            ("EVENTINJ", |v| v.eventinj = 0x8000_0302),
            ("EVENTINJ", |v| v.eventinj = 0x8000_0120),
            ("ASID", |v| v.guest_asid = 0),
            ("N_CR3", |v| v.n_cr3 = 1 << 60),
            ("G_PAT", |v| v.g_pat = 2),
        ];
        for (part, spoil) in cases {
            let mut vmcb = long_mode_guest();
            spoil(&mut vmcb);
            let rule = vmcb.broken().expect(part);
            assert!(rule.contains(part), "{rule} does not say {part}");
        }
    }

    #[test]
    fn what_the_manual_allows_breaks_no_rule() {
        let allowed: [fn(&mut Vmcb); 5] = [
            // Real mode, also paged.
            |v| (v.efer, v.cr0) = (0x1000, 1 << 31),
            |v| v.cr0 |= 0b11 << 29,
            |v| v.eventinj = 0x8000_0b0e,
            |v| v.eventinj = 0x0000_0702,
            |v| (v.np_enable, v.g_pat) = (0, 2),
        ];
        for change in allowed {
            let mut vmcb = long_mode_guest();
            change(&mut vmcb);
            assert_eq!(vmcb.broken(), None);
        }
    }
}
