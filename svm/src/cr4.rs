//! CR4 where the CPU has bits in it whose features the guest is not shown. AMD-V has no mask as VT-x: each write exits
//! then, and what it comes to is decided here. Pure, but for the way to the VMCB.
//!
//! Only with decode assists, which every CPU has that has such a feature: without them the exit does not tell what
//! is written. (QEMU has none and offers 57-bit addresses in some models: there a guest may set LA57.)

use arch::register::{Cr4, Efer, Gpr, GuestCr4};
use arch::segment::SegmentRegister;
use arch::vcpu::{Event, Vcpu, exception};

use crate::enable::Features;
use crate::vcpu::SvmVcpu;

/// In the word of control-register intercepts: writes of CR4 (APM "Layout of VMCB").
pub(crate) const INTERCEPT_WRITE: u32 = 1 << (16 + 4);
/// EXITINFO1: the instruction is a MOV, whose general register is in bits 3:0 (APM "Decode Assists").
const MOV: u64 = 1 << 63;
/// Length of MOV to a control register.
const MOV_TO_CR: u8 = 3;

/// Whether writes of CR4 are to exit.
pub(crate) const fn intercepted(features: Features, cr4: GuestCr4) -> bool {
    features.decode_assists && cr4.hidden != 0
}

/// Whether the CPU would take `new` in place of `old` (APM "CR4 Register"), were it one without the hidden features.
/// The privilege level it has checked before the exit.
const fn allows(of_guest: GuestCr4, old: u64, new: u64, efer: u64, cr3: u64) -> bool {
    const PCID: u64 = 0xfff;
    let long = efer & Efer::LMA.bits() != 0;
    let sets_pcide = new & !old & Cr4::PCIDE.bits() != 0;
    new & !of_guest.allowed == 0
        && !(long && new & Cr4::PAE.bits() == 0)
        && !(sets_pcide && (!long || cr3 & PCID != 0))
}

impl SvmVcpu {
    /// Carries out an intercepted write of CR4; `false` where the exit does not tell what is written.
    pub(crate) fn move_to_cr4(&mut self) -> bool {
        let (control, save) = (&self.vmcb().control, &self.vmcb().save);
        if control.exitinfo1 & MOV == 0 {
            return false;
        }
        let (old, efer, cr3) = (save.cr4, save.efer, save.cr3);
        let source = Gpr::from_encoding(control.exitinfo1 as u8 & 15);
        let long = efer & Efer::LMA.bits() != 0 && self.segment(SegmentRegister::Cs).access.long();
        let new = self.gpr(source) & if long { !0 } else { 0xffff_ffff };
        if allows(self.cr4, old, new, efer, cr3) {
            let bytes = self.instruction_length(MOV_TO_CR);
            self.set_cr4(new);
            self.skip_instruction(bytes);
        } else {
            self.inject(Event::exception(exception::GP, Some(0)));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_GUEST: GuestCr4 = GuestCr4 { allowed: 0x0077_0fff, hidden: 1 << 32 | 1 << 23 };
    const LONG: u64 = 0x500;

    #[test]
    fn writes_exit_where_something_is_hidden_and_the_cpu_tells_what_is_written() {
        let with = Features { nrip_save: true, flush_by_asid: true, decode_assists: true };
        assert!(intercepted(with, OF_GUEST));
        assert!(!intercepted(with, GuestCr4 { hidden: 0, ..OF_GUEST }), "no exit for nothing");
        assert!(!intercepted(Features { decode_assists: false, ..with }, OF_GUEST));
    }

    #[test]
    fn a_guest_sets_what_it_is_shown_and_gets_a_fault_for_the_rest() {
        let long = |old, new| allows(OF_GUEST, old, new, LONG, 0x1000);
        assert!(long(0x20, 0x0077_0fff & !(1 << 17)));
        assert!(!long(0x20, 1 << 32 | 0x20), "FRED");
        assert!(!long(0x20, 1 << 23 | 0x20), "CET");
        assert!(!long(0x20, 1 << 40 | 0x20), "a bit that no CPU has");
        assert!(!long(0x20, 0), "long mode without PAE");
        assert!(allows(OF_GUEST, 0x20, 0, 0, 0), "PAE goes outside long mode");
    }

    #[test]
    fn pcide_is_set_in_long_mode_with_no_pcid_only() {
        const PCIDE: u64 = 1 << 17 | 0x20;
        assert!(allows(OF_GUEST, 0x20, PCIDE, LONG, 0x1000));
        assert!(!allows(OF_GUEST, 0x20, PCIDE, LONG, 0x1001));
        assert!(!allows(OF_GUEST, 0x20, PCIDE, 0, 0x1000));
        assert!(allows(OF_GUEST, PCIDE, PCIDE, LONG, 0x1001), "it is set already");
    }
}
