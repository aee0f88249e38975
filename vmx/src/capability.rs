//! What the CPU's VT-x can do, and whether that is enough.
//!
//! Pure: [`Capabilities`] is a snapshot that `enable` takes; [`check`] judges it.

use arch::machine::CpuidResult;
use arch::msr::IA32_FEATURE_CONTROL;
use arch::vcpu::InterruptMode;
use arch::{Hpa, PageSize};

use crate::VmxError;
use crate::controls::{Controls, ExitControls, PinBased, Primary, Secondary};

/// Snapshot of the capability MSRs (SDM "VMX Capability Reporting Facility"). An MSR that does not
/// exist on this CPU is 0. The control MSRs are the TRUE ones where the CPU has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// CPUID.1:ECX.VMX.
    pub vmx: bool,
    /// Width of physical addresses in bits (CPUID.80000008H:EAX\[7:0\]).
    pub physical_address_bits: u8,
    /// IA32_FEATURE_CONTROL.
    pub feature_control: u64,
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// IA32_VMX_(TRUE_)PINBASED_CTLS.
    pub pin_based: u64,
    /// IA32_VMX_(TRUE_)PROCBASED_CTLS.
    pub primary: u64,
    /// IA32_VMX_PROCBASED_CTLS2.
    pub secondary: u64,
    /// IA32_VMX_PROCBASED_CTLS3: which controls may be 1.
    pub tertiary: u64,
    /// IA32_VMX_(TRUE_)EXIT_CTLS.
    pub exit: u64,
    /// IA32_VMX_(TRUE_)ENTRY_CTLS.
    pub entry: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// IA32_VMX_CR0_FIXED0: bits that must be 1.
    pub cr0_fixed0: u64,
    /// IA32_VMX_CR0_FIXED1: bits that may be 1.
    pub cr0_fixed1: u64,
    /// IA32_VMX_CR4_FIXED0: bits that must be 1.
    pub cr4_fixed0: u64,
    /// IA32_VMX_CR4_FIXED1: bits that may be 1.
    pub cr4_fixed1: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
}

/// SDM "VMX Capability Reporting Facility".
mod msr {
    pub(super) const IA32_VMX_BASIC: u32 = 0x480;
    pub(super) const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
    pub(super) const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
    pub(super) const IA32_VMX_EXIT_CTLS: u32 = 0x483;
    pub(super) const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
    pub(super) const IA32_VMX_MISC: u32 = 0x485;
    pub(super) const IA32_VMX_CR0_FIXED0: u32 = 0x486;
    pub(super) const IA32_VMX_CR0_FIXED1: u32 = 0x487;
    pub(super) const IA32_VMX_CR4_FIXED0: u32 = 0x488;
    pub(super) const IA32_VMX_CR4_FIXED1: u32 = 0x489;
    pub(super) const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
    pub(super) const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
    pub(super) const IA32_VMX_PROCBASED_CTLS3: u32 = 0x492;
    /// From a control MSR (0x481 to 0x484) to its TRUE form.
    pub(super) const TRUE_OFFSET: u32 = 0x48d - IA32_VMX_PINBASED_CTLS;
}

/// IA32_FEATURE_CONTROL: no more writes until the next reset.
pub(crate) const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: VMXON outside SMX operation.
pub(crate) const FEATURE_CONTROL_VMX: u64 = 1 << 2;
/// IA32_VMX_BASIC: the TRUE control MSRs exist.
pub(crate) const BASIC_TRUE_CONTROLS: u64 = 1 << 55;

/// IA32_VMX_EPT_VPID_CAP (SDM "VPID and EPT Capabilities").
mod ept_vpid {
    pub(super) const WALK_LENGTH_4: u64 = 1 << 6;
    pub(super) const WRITE_BACK: u64 = 1 << 14;
    pub(super) const PAGE_2M: u64 = 1 << 16;
    pub(super) const PAGE_1G: u64 = 1 << 17;
    pub(super) const INVEPT: u64 = 1 << 20;
    pub(super) const INVEPT_SINGLE: u64 = 1 << 25;
    pub(super) const INVEPT_ALL: u64 = 1 << 26;
    pub(super) const INVVPID: u64 = 1 << 32;
    pub(super) const INVVPID_SINGLE: u64 = 1 << 41;
    pub(super) const INVVPID_ALL: u64 = 1 << 42;
}

impl Capabilities {
    /// Takes the snapshot. `read_msr` is asked only for what CPUID or an earlier MSR says is there.
    #[must_use]
    pub fn gather(cpuid: impl Fn(u32, u32) -> CpuidResult, read_msr: impl Fn(u32) -> u64) -> Self {
        const CPUID_1_ECX_VMX: u32 = 1 << 5;
        if cpuid(1, 0).ecx & CPUID_1_ECX_VMX == 0 {
            return Self::default();
        }
        let existing = |number: u32, exists: bool| {
            if exists { read_msr(number) } else { 0 }
        };
        let basic = existing(msr::IA32_VMX_BASIC, true);
        let true_offset = true_offset(basic);
        let control = |number: u32| existing(number + true_offset, true);
        let primary = control(msr::IA32_VMX_PROCBASED_CTLS);
        let may = |capability: u64, bit: u32| (capability >> 32) as u32 & bit != 0;
        let secondary = existing(
            msr::IA32_VMX_PROCBASED_CTLS2,
            may(primary, Primary::ACTIVATE_SECONDARY_CONTROLS.bits()),
        );
        Self {
            vmx: true,
            physical_address_bits: cpuid(0x8000_0008, 0).eax as u8,
            feature_control: existing(IA32_FEATURE_CONTROL, true),
            basic,
            pin_based: control(msr::IA32_VMX_PINBASED_CTLS),
            primary,
            secondary,
            tertiary: existing(
                msr::IA32_VMX_PROCBASED_CTLS3,
                may(primary, Primary::ACTIVATE_TERTIARY_CONTROLS.bits()),
            ),
            exit: control(msr::IA32_VMX_EXIT_CTLS),
            entry: control(msr::IA32_VMX_ENTRY_CTLS),
            misc: existing(msr::IA32_VMX_MISC, true),
            cr0_fixed0: existing(msr::IA32_VMX_CR0_FIXED0, true),
            cr0_fixed1: existing(msr::IA32_VMX_CR0_FIXED1, true),
            cr4_fixed0: existing(msr::IA32_VMX_CR4_FIXED0, true),
            cr4_fixed1: existing(msr::IA32_VMX_CR4_FIXED1, true),
            ept_vpid: existing(
                msr::IA32_VMX_EPT_VPID_CAP,
                may(secondary, (Secondary::ENABLE_EPT | Secondary::ENABLE_VPID).bits()),
            ),
        }
    }

    /// How many [`Self::msrs`] there are.
    pub const MSRS: usize = 14;

    /// The MSRs that were read, each with its number. The control words are those of the TRUE MSRs where there are such.
    #[must_use]
    pub const fn msrs(&self) -> [(u32, u64); Self::MSRS] {
        let true_offset = true_offset(self.basic);
        [
            (IA32_FEATURE_CONTROL, self.feature_control),
            (msr::IA32_VMX_BASIC, self.basic),
            (msr::IA32_VMX_PINBASED_CTLS + true_offset, self.pin_based),
            (msr::IA32_VMX_PROCBASED_CTLS + true_offset, self.primary),
            (msr::IA32_VMX_PROCBASED_CTLS2, self.secondary),
            (msr::IA32_VMX_PROCBASED_CTLS3, self.tertiary),
            (msr::IA32_VMX_EXIT_CTLS + true_offset, self.exit),
            (msr::IA32_VMX_ENTRY_CTLS + true_offset, self.entry),
            (msr::IA32_VMX_MISC, self.misc),
            (msr::IA32_VMX_CR0_FIXED0, self.cr0_fixed0),
            (msr::IA32_VMX_CR0_FIXED1, self.cr0_fixed1),
            (msr::IA32_VMX_CR4_FIXED0, self.cr4_fixed0),
            (msr::IA32_VMX_CR4_FIXED1, self.cr4_fixed1),
            (msr::IA32_VMX_EPT_VPID_CAP, self.ept_vpid),
        ]
    }

    /// VMCS revision identifier.
    #[must_use]
    pub const fn revision(&self) -> u32 {
        self.basic as u32 & !(1 << 31)
    }

    /// The preemption timer's count can be saved at an exit.
    pub(crate) const fn saves_preemption_timer(&self) -> bool {
        self.exit >> 32 & ExitControls::SAVE_VMX_PREEMPTION_TIMER_VALUE.bits() as u64 != 0
    }

    /// INVEPT works on one EPT pointer; else it drops everything.
    pub(crate) const fn invept_single(&self) -> bool {
        self.ept_vpid & ept_vpid::INVEPT_SINGLE != 0
    }

    /// INVVPID works on one VPID; else it drops everything.
    pub(crate) const fn invvpid_single(&self) -> bool {
        self.ept_vpid & ept_vpid::INVVPID_SINGLE != 0
    }

    /// VPIDs can be used: there is a way to invalidate them.
    pub(crate) const fn invvpid(&self) -> bool {
        self.ept_vpid & ept_vpid::INVVPID != 0
            && self.ept_vpid & (ept_vpid::INVVPID_SINGLE | ept_vpid::INVVPID_ALL) != 0
    }
}

/// From the number of a control MSR to that of the one which is read in its place.
const fn true_offset(basic: u64) -> u32 {
    if basic & BASIC_TRUE_CONTROLS != 0 { msr::TRUE_OFFSET } else { 0 }
}

/// A CPU that can run guests, and what it offers beyond the least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// What it said.
    pub capabilities: Capabilities,
    /// Largest page that EPT has: 2 MiB or 1 GiB.
    pub largest_page: PageSize,
    /// Translations are tagged by VPID: an exit does not empty the TLB.
    pub vpid: bool,
    /// The preemption timer counts down once in 2^this TSC ticks; `None` without a timer.
    pub preemption_timer_shift: Option<u8>,
}

/// Judges a CPU.
///
/// # Errors
/// The first thing that Nexit cannot do without.
pub fn check(capabilities: &Capabilities) -> Result<Features, VmxError> {
    if !capabilities.vmx {
        return Err(VmxError::NoVmx);
    }
    let lock = capabilities.feature_control;
    if lock & FEATURE_CONTROL_LOCK != 0 && lock & FEATURE_CONTROL_VMX == 0 {
        return Err(VmxError::LockedOff(lock));
    }
    Controls::choose(capabilities, InterruptMode::Exiting)?;
    let controls = Controls::choose(capabilities, InterruptMode::Exitless)?;
    let capability = capabilities.ept_vpid;
    for (bits, what) in [
        (ept_vpid::WALK_LENGTH_4, "page walk of length 4"),
        (ept_vpid::WRITE_BACK, "write-back paging structures"),
        (ept_vpid::PAGE_2M, "2 MiB pages"),
        (ept_vpid::INVEPT, "INVEPT"),
        (ept_vpid::INVEPT_SINGLE | ept_vpid::INVEPT_ALL, "INVEPT type"),
    ] {
        if capability & bits == 0 {
            return Err(VmxError::MissingEptFeature { what, capability });
        }
    }
    let timer =
        capabilities.pin_based >> 32 & PinBased::ACTIVATE_VMX_PREEMPTION_TIMER.bits() as u64;
    Ok(Features {
        capabilities: *capabilities,
        largest_page: if capability & ept_vpid::PAGE_1G != 0 {
            PageSize::Size1G
        } else {
            PageSize::Size2M
        },
        vpid: controls.secondary.contains(Secondary::ENABLE_VPID),
        preemption_timer_shift: (timer != 0).then_some(capabilities.misc as u8 & 0x1f),
    })
}

/// The EPT pointer for a table of four levels at `root`: write-back, accessed and dirty flags off
/// (they would turn the guest's table walks into writes; nobody reads them)
/// (SDM "Extended-Page-Table Pointer (EPTP)").
pub(crate) const fn ept_pointer(root: Hpa) -> u64 {
    const WRITE_BACK: u64 = 6;
    const WALK_LENGTH_MINUS_1: u64 = 3;
    root.as_u64() | WALK_LENGTH_MINUS_1 << 3 | WRITE_BACK
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    /// A Skylake server core.
    pub(crate) const SKYLAKE: Capabilities = Capabilities {
        vmx: true,
        physical_address_bits: 46,
        feature_control: 5,
        basic: 0x00da_0400_0000_0004,
        pin_based: 0x0000_007f_0000_0016,
        primary: 0xfff9_fffe_0400_6172,
        secondary: 0x0015_3cff_0000_0000,
        tertiary: 0,
        exit: 0x01ff_ffff_0003_6dfb,
        entry: 0x0000_ffff_0000_11fb,
        misc: 0x0000_0000_7004_c1e7,
        cr0_fixed0: 0x8000_0021,
        cr0_fixed1: 0xffff_ffff,
        cr4_fixed0: 0x2000,
        cr4_fixed1: 0x0037_67ff,
        ept_vpid: 0x0000_0f01_0633_4141,
    };

    #[test]
    fn a_skylake_has_all_it_takes() {
        let features = check(&SKYLAKE).unwrap();
        assert!(features.vpid);
        assert_eq!(features.largest_page, PageSize::Size1G);
        assert_eq!(features.preemption_timer_shift, Some(7));
        assert_eq!(features.capabilities.revision(), 4);
    }

    #[test]
    fn what_is_missing_is_named() {
        let no_vmx = Capabilities { vmx: false, ..SKYLAKE };
        assert_eq!(check(&no_vmx), Err(VmxError::NoVmx));
        let locked = Capabilities { feature_control: 3, ..SKYLAKE };
        assert_eq!(check(&locked), Err(VmxError::LockedOff(3)));
        let unlocked = Capabilities { feature_control: 0, ..SKYLAKE };
        assert!(check(&unlocked).is_ok(), "enable() locks it on");
        for (bit, name) in
            [(1, "ENABLE_EPT"), (7, "UNRESTRICTED_GUEST"), (2, "DESCRIPTOR_TABLE_EXITING")]
        {
            let secondary = SKYLAKE.secondary & !(1 << (32 + bit));
            let sentence = check(&Capabilities { secondary, ..SKYLAKE }).unwrap_err().to_string();
            assert!(sentence.contains(name), "{sentence}");
            assert!(sentence.contains("IA32_VMX_PROCBASED_CTLS2"), "{sentence}");
        }
        let walk = Capabilities { ept_vpid: SKYLAKE.ept_vpid & !(1 << 6), ..SKYLAKE };
        assert!(check(&walk).unwrap_err().to_string().contains("page walk of length 4"));
    }

    #[test]
    fn cr3_exits_that_cannot_be_switched_off_are_refused() {
        let primary = SKYLAKE.primary | 1 << 15;
        let error = check(&Capabilities { primary, ..SKYLAKE }).unwrap_err();
        assert!(matches!(error, VmxError::ForcedControl(c) if c.control == "CR3_LOAD_EXITING"));
    }

    #[test]
    fn a_timer_and_vpids_are_welcome_but_not_needed() {
        let pin_based = SKYLAKE.pin_based & !(1 << 38);
        let ept_vpid = SKYLAKE.ept_vpid & 0xffff_ffff;
        let features = check(&Capabilities { pin_based, ept_vpid, ..SKYLAKE }).unwrap();
        assert_eq!((features.preemption_timer_shift, features.vpid), (None, false));
    }

    #[test]
    fn the_msrs_that_are_told_are_those_that_were_read() {
        let cpuid = |_: u32, _: u32| CpuidResult { ecx: 1 << 5, ..CpuidResult::default() };
        for of_true in [0, BASIC_TRUE_CONTROLS] {
            let read = std::cell::RefCell::new(Vec::new());
            // Each its own value, and every secondary and tertiary control may be 1.
            let value = |number: u32| match number {
                0x480 => of_true,
                number => 0xffff_ffff_0000_0000 | u64::from(number),
            };
            let gathered = Capabilities::gather(cpuid, |number| {
                read.borrow_mut().push((number, value(number)));
                value(number)
            });
            let (mut read, mut told) = (read.into_inner(), gathered.msrs().to_vec());
            read.sort_unstable();
            told.sort_unstable();
            assert_eq!(told, read);
        }
    }

    proptest! {
        #[test]
        fn one_capability_less_is_accepted_or_named(msr in 0_usize..5, bit in 32_u32..64) {
            let mut caps = SKYLAKE;
            let register = [
                &mut caps.pin_based, &mut caps.primary, &mut caps.secondary, &mut caps.exit,
                &mut caps.entry,
            ].into_iter().nth(msr).unwrap();
            *register &= !(1 << bit);
            if let Err(error) = check(&caps) {
                prop_assert!(error.to_string().contains("has no "));
            }
        }
    }

    #[test]
    fn the_ept_pointer_says_write_back_and_four_levels() {
        assert_eq!(ept_pointer(Hpa::new(0x12_3000)), 0x12_301e);
    }
}
