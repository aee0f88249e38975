//! Why VMRUN refused a VMCB: the manual's rules
//! (APM volume 2, "Canonicalization and Consistency Checks").
//!
//! Pure. The CPU only says VMEXIT_INVALID; this names the first rule that the VMCB breaks. Emulators
//! enter with some states that hardware refuses: the rules stand here as the manual has them.

use arch::register::{Cr0, Cr4, Efer};
use arch::segment::{Segment, SegmentRegister};

use crate::controls::{EVENT_VALID, Intercepts4};
use crate::vmcb::{StateSaveArea, Vmcb};

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

/// Checks a VMCB as VMRUN does.
///
/// # Errors
/// The first rule that it breaks, as a sentence.
pub fn check(vmcb: &Vmcb) -> Result<(), &'static str> {
    let rules = control_registers(vmcb).into_iter().chain(long_mode(vmcb)).chain(controls(vmcb));
    for (broken, rule) in rules {
        if broken {
            return Err(rule);
        }
    }
    Ok(())
}

fn control_registers(vmcb: &Vmcb) -> [(bool, &'static str); 9] {
    let save = &vmcb.save;
    let cr0 = Cr0::from_bits_retain(save.cr0);
    [
        (save.efer & Efer::SVME.bits() == 0, "EFER.SVME is 0"),
        (!cr0.contains(Cr0::CD) && cr0.contains(Cr0::NW), "CR0.CD is 0 and CR0.NW is 1"),
        (save.cr0 & UPPER != 0, "CR0 bits 63:32 are not zero"),
        (save.cr3 & BEYOND_52_BITS != 0, "a must-be-zero bit of CR3 is set"),
        (save.cr4 & CR4_MBZ != 0, "a must-be-zero bit of CR4 is set"),
        (save.dr6 & UPPER != 0, "DR6 bits 63:32 are not zero"),
        (save.dr7 & UPPER != 0, "DR7 bits 63:32 are not zero"),
        (save.efer & EFER_MBZ != 0, "a must-be-zero bit of EFER is set"),
        (save.cr4 & CR4_CET != 0 && !cr0.contains(Cr0::WP), "CR4.CET is 1 and CR0.WP is 0"),
    ]
}

fn long_mode(vmcb: &Vmcb) -> [(bool, &'static str); 3] {
    let save = &vmcb.save;
    let long = save.efer & Efer::LME.bits() != 0 && save.cr0 & Cr0::PG.bits() != 0;
    let pae = save.cr4 & Cr4::PAE.bits() != 0;
    let code =
        Segment::from(save.segments[StateSaveArea::segment_index(SegmentRegister::Cs)]).access;
    let both = code.long() && code.default_32();
    [
        (long && !pae, "EFER.LME and CR0.PG are 1 and CR4.PAE is 0"),
        (long && save.cr0 & Cr0::PE.bits() == 0, "EFER.LME and CR0.PG are 1 and CR0.PE is 0"),
        (long && pae && both, "EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D are all 1"),
    ]
}

fn controls(vmcb: &Vmcb) -> [(bool, &'static str); 7] {
    let control = &vmcb.control;
    let nested = control.np_enable & 1 != 0;
    [
        (control.intercept_4 & Intercepts4::VMRUN.bits() == 0, "VMRUN is not intercepted"),
        (control.msrpm_base_pa & BEYOND_52_BITS != 0, "MSRPM_BASE_PA is no physical address"),
        (control.iopm_base_pa & BEYOND_52_BITS != 0, "IOPM_BASE_PA is no physical address"),
        (!event_legal(control.eventinj), "EVENTINJ holds an event that cannot be injected"),
        (control.guest_asid == 0, "the ASID is 0"),
        (nested && control.n_cr3 & BEYOND_52_BITS != 0, "a must-be-zero bit of N_CR3 is set"),
        (nested && !pat_legal(vmcb.save.g_pat), "G_PAT holds a reserved memory type"),
    ]
}

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
    use arch::segment::AccessRights;

    /// A 64-bit guest that VMRUN accepts.
    fn long_mode_guest() -> Vmcb {
        let mut vmcb = Vmcb::zeroed();
        vmcb.control.intercept_4 = 1;
        vmcb.control.guest_asid = 1;
        vmcb.control.np_enable = 1;
        vmcb.save.efer = 0x1500;
        vmcb.save.cr0 = 0x8000_0011;
        vmcb.save.cr4 = 0x20;
        vmcb.save.dr6 = 0xffff_0ff0;
        vmcb.save.dr7 = 0x400;
        vmcb.save.g_pat = 0x0007_0406_0007_0406;
        vmcb.save.segments[1] = Segment { access: AccessRights::CODE64, ..Segment::NULL }.into();
        vmcb
    }

    #[test]
    fn a_long_mode_guest_breaks_no_rule() {
        assert_eq!(check(&long_mode_guest()), Ok(()));
    }

    #[test]
    fn each_rule_is_named_when_it_alone_is_broken() {
        type Case = (&'static str, fn(&mut Vmcb));
        let cases: [Case; 22] = [
            ("EFER.SVME is 0", |v| v.save.efer = 0x500),
            ("CR0.CD is 0", |v| v.save.cr0 |= 1 << 29),
            ("CR0 bits 63:32", |v| v.save.cr0 |= 1 << 32),
            ("of CR3", |v| v.save.cr3 = 1 << 52),
            ("of CR4", |v| v.save.cr4 |= 1 << 13),
            ("of CR4", |v| v.save.cr4 |= 1 << 24),
            ("DR6", |v| v.save.dr6 |= 1 << 63),
            ("DR7", |v| v.save.dr7 |= 1 << 32),
            ("of EFER", |v| v.save.efer |= 1 << 9),
            ("of EFER", |v| v.save.efer |= 1 << 32),
            ("CR4.CET", |v| v.save.cr4 |= 1 << 23),
            ("CR4.PAE is 0", |v| v.save.cr4 = 0),
            ("CR0.PE is 0", |v| v.save.cr0 = 1 << 31),
            ("CS.L and CS.D", |v| v.save.segments[1].attributes |= 0x400),
            ("VMRUN", |v| v.control.intercept_4 = 0x7e),
            ("MSRPM", |v| v.control.msrpm_base_pa = 1 << 52),
            ("IOPM", |v| v.control.iopm_base_pa = 1 << 63),
            ("EVENTINJ", |v| v.control.eventinj = 0x8000_0302),
            ("EVENTINJ", |v| v.control.eventinj = 0x8000_0120),
            ("ASID", |v| v.control.guest_asid = 0),
            ("N_CR3", |v| v.control.n_cr3 = 1 << 60),
            ("G_PAT", |v| v.save.g_pat = 2),
        ];
        for (part, spoil) in cases {
            let mut vmcb = long_mode_guest();
            spoil(&mut vmcb);
            let rule = check(&vmcb).expect_err(part);
            assert!(rule.contains(part), "{rule} does not say {part}");
        }
    }

    #[test]
    fn what_the_manual_allows_breaks_no_rule() {
        let allowed: [fn(&mut Vmcb); 5] = [
            // Real mode, also paged.
            |v| (v.save.efer, v.save.cr0) = (0x1000, 1 << 31),
            |v| v.save.cr0 |= 0b11 << 29,
            |v| v.control.eventinj = 0x8000_0b0e,
            |v| v.control.eventinj = 0x0000_0702,
            |v| (v.control.np_enable, v.save.g_pat) = (0, 2),
        ];
        for change in allowed {
            let mut vmcb = long_mode_guest();
            change(&mut vmcb);
            assert_eq!(check(&vmcb), Ok(()));
        }
    }
}
