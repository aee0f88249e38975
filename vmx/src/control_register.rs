//! CR0, CR4 and IA32_EFER: which bits are the guest's and which the host keeps.
//!
//! Invariant: what the CPU holds in VMX non-root operation satisfies its fixed bits, whatever the
//! guest writes; the guest reads back what it wrote. Host-owned are the fixed bits, CR0.CD and
//! CR0.NW (a guest must not switch the caches of the core off), CR4.VMXE and CR4.MCE, and every bit of CR4 whose feature the
//! guest is not shown. Pure.

use arch::register::{Cr0, Cr4, Efer, Gpr, GuestCr4};

use crate::capability::Capabilities;

/// CR0 or CR4: its guest/host mask and what the host-owned bits are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnedBits {
    /// Guest/host mask: set where the host owns.
    pub(crate) mask: u64,
    /// Host-owned bits that are 1.
    ones: u64,
    /// Host-owned bits that the guest must not even try to set: #GP.
    reserved: u64,
}

impl OwnedBits {
    /// For CR0. With "unrestricted guest", PE and PG are free (SDM "Restrictions on VMX Operation").
    pub(crate) const fn cr0(capabilities: &Capabilities) -> Self {
        let ones = capabilities.cr0_fixed0 & !Cr0::PE.union(Cr0::PG).bits();
        let reserved = !capabilities.cr0_fixed1;
        Self { mask: ones | reserved | Cr0::CD.union(Cr0::NW).bits(), ones, reserved }
    }

    /// For CR4. A bit that is not the guest's is refused as one that the CPU does not have.
    pub(crate) const fn cr4(capabilities: &Capabilities, of_guest: GuestCr4) -> Self {
        // A machine check with CR4.MCE clear would shut the CPU down.
        let machine_checks = capabilities.cr4_fixed1 & Cr4::MCE.bits();
        let ones = capabilities.cr4_fixed0 | Cr4::VMXE.bits() | machine_checks;
        let reserved = !(capabilities.cr4_fixed1 & of_guest.allowed) | Cr4::VMXE.bits();
        Self { mask: ones | reserved, ones, reserved }
    }

    /// What the register must hold for the guest to see `wanted`.
    pub(crate) const fn real(self, wanted: u64) -> u64 {
        wanted & !self.mask | self.ones
    }

    /// What the guest sees.
    pub(crate) const fn seen(self, real: u64, shadow: u64) -> u64 {
        real & !self.mask | shadow & self.mask
    }

    /// Whether the guest may put `value` there; else it gets #GP(0). NW without CD is one of CR0's invalid combinations
    /// (SDM "MOV—Move to/from Control Registers"), and the CPU does not look at what the host owns. CR4 has neither bit.
    pub(crate) const fn allows(self, value: u64) -> bool {
        const CACHING: u64 = Cr0::CD.union(Cr0::NW).bits();
        value & self.reserved == 0 && value & CACHING != Cr0::NW.bits()
    }
}

/// The register and the source of a MOV to CR0 or CR4; `None` for any other control-register access,
/// none of which exits (SDM "Exit Qualification for Control-Register Accesses").
pub(crate) const fn mov_to(qualification: u64) -> Option<(u8, Gpr)> {
    const MOV_TO_CR: u64 = 0;
    let register = qualification as u8 & 15;
    if qualification >> 4 & 3 != MOV_TO_CR || register != 0 && register != 4 {
        return None;
    }
    Some((register, Gpr::from_encoding((qualification >> 8) as u8)))
}

/// IA32_EFER with LMA as CR0.PG and LME make it.
pub(crate) const fn efer_with_lma(efer: u64, cr0: u64) -> u64 {
    if efer & Efer::LME.bits() != 0 && cr0 & Cr0::PG.bits() != 0 {
        efer | Efer::LMA.bits()
    } else {
        efer & !Efer::LMA.bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::SKYLAKE;
    use proptest::prelude::*;

    /// All that Skylake has, and FRED not.
    const OF_GUEST: GuestCr4 = GuestCr4 { allowed: 0x0037_0fff, hidden: 0x6000 };

    fn cr4() -> OwnedBits {
        OwnedBits::cr4(&SKYLAKE, OF_GUEST)
    }

    proptest! {
        #[test]
        fn the_cpu_never_sees_a_value_that_it_forbids(wanted: u64) {
            let real = OwnedBits::cr0(&SKYLAKE).real(wanted);
            let free = (Cr0::PE | Cr0::PG).bits();
            prop_assert_eq!(real & SKYLAKE.cr0_fixed0 & !free, SKYLAKE.cr0_fixed0 & !free);
            prop_assert_eq!(real & !SKYLAKE.cr0_fixed1, 0);
            let real = cr4().real(wanted);
            prop_assert_eq!(real & SKYLAKE.cr4_fixed0, SKYLAKE.cr4_fixed0);
            prop_assert_eq!(real & !SKYLAKE.cr4_fixed1, 0);
        }

        #[test]
        fn the_guest_reads_what_it_wrote(wanted: u64) {
            for owned in [OwnedBits::cr0(&SKYLAKE), cr4()] {
                prop_assert_eq!(owned.seen(owned.real(wanted), wanted), wanted);
            }
        }
    }

    #[test]
    fn the_host_owns_what_it_must_and_no_more() {
        assert_eq!(OwnedBits::cr0(&SKYLAKE).mask, 0xffff_ffff_6000_0020);
        let cr4 = cr4();
        assert_eq!(cr4.mask, !SKYLAKE.cr4_fixed1 | 0x6040);
        assert_eq!(cr4.real(0) & 0x40, 0x40, "MCE is on whatever the guest writes");
        assert!(cr4.allows(0x40) && cr4.seen(cr4.real(0), 0) & 0x40 == 0);
        assert!(!cr4.allows(0x2000), "VMXE");
        assert!(!cr4.allows(1 << 63));
        assert!(OwnedBits::cr0(&SKYLAKE).allows(0x6000_0010), "CD, NW, no NE");
        assert!(!OwnedBits::cr0(&SKYLAKE).allows(1 << 32));
    }

    #[test]
    fn caches_that_do_not_write_through_are_refused_unless_they_are_off() {
        let cr0 = OwnedBits::cr0(&SKYLAKE);
        let [cd, nw] = [Cr0::CD, Cr0::NW].map(|bit| bit.bits());
        for (bits, allowed) in [(0, true), (cd, true), (cd | nw, true), (nw, false)] {
            assert_eq!(cr0.allows(0x8000_0011 | bits), allowed, "{bits:#x}");
        }
    }

    #[test]
    fn a_feature_that_the_guest_is_not_shown_cannot_be_switched_on_where_the_cpu_has_it() {
        const FRED: u64 = 1 << 32;
        const CET: u64 = 1 << 23;
        let newest = Capabilities { cr4_fixed1: SKYLAKE.cr4_fixed1 | FRED | CET, ..SKYLAKE };
        let cr4 = OwnedBits::cr4(&newest, OF_GUEST);
        for bit in [FRED, CET] {
            assert!(!cr4.allows(bit), "#GP");
            assert_ne!(cr4.mask & bit, 0, "a write of it exits");
            assert_eq!(cr4.real(bit) & bit, 0);
        }
        assert!(cr4.allows(OF_GUEST.allowed & SKYLAKE.cr4_fixed1));
    }

    #[test]
    fn only_moves_to_cr0_and_cr4_are_ours() {
        assert_eq!(mov_to(0x0300), Some((0, Gpr::Rbx)));
        assert_eq!(mov_to(0x0f04), Some((4, Gpr::R15)));
        assert_eq!(mov_to(0x0003), None, "CR3");
        assert_eq!(mov_to(0x0010), None, "MOV from CR");
        assert_eq!(mov_to(0x0020), None, "CLTS");
    }

    #[test]
    fn long_mode_is_active_with_paging_only() {
        assert_eq!(efer_with_lma(0x100, 0x8000_0001), 0x500);
        assert_eq!(efer_with_lma(0x500, 1), 0x100);
        assert_eq!(efer_with_lma(0x400, 0x8000_0001), 0);
    }
}
