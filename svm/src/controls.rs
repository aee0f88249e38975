//! What exits: the intercept words and the bits of the VMCB's control fields
//! (APM volume 2, "Layout of VMCB", "Event Injection", "Interrupt and Local APIC Support").
//!
//! Pure. Invariant: in the exitless mode nothing that an interrupt, its EOI or an idle CPU does is
//! intercepted.

use arch::vcpu::{Event, EventKind, InterruptMode, exception};
use bitflags::bitflags;

use crate::vmcb::ControlArea;

bitflags! {
    /// Intercept vector 3 (VMCB offset 0x00C).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Intercepts3: u32 {
        /// Physical maskable interrupt.
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const INIT = 1 << 3;
        /// Virtual interrupt about to be delivered.
        const VINTR = 1 << 4;
        /// Writes of CR0 that change more than TS or MP.
        const CR0_SEL_WRITE = 1 << 5;
        /// SIDT.
        const IDTR_READ = 1 << 6;
        /// LIDT.
        const IDTR_WRITE = 1 << 10;
        const CPUID = 1 << 18;
        /// IRET, while the guest serves an NMI.
        const IRET = 1 << 20;
        /// INVD: would throw away what other guests have in the cache.
        const INVD = 1 << 22;
        const HLT = 1 << 24;
        const INVLPGA = 1 << 26;
        /// IN and OUT, as the I/O permission map says.
        const IOIO_PROT = 1 << 27;
        /// RDMSR and WRMSR, as the MSR permission map says.
        const MSR_PROT = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// The CPU freezes on a legacy floating-point error.
        const FERR_FREEZE = 1 << 30;
        /// Shutdown (triple fault).
        const SHUTDOWN = 1 << 31;
    }

    /// Intercept vector 4 (VMCB offset 0x010).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Intercepts4: u32 {
        /// VMRUN, which the CPU requires to be intercepted.
        const VMRUN = 1 << 0;
        const VMMCALL = 1 << 1;
        const VMLOAD = 1 << 2;
        const VMSAVE = 1 << 3;
        const STGI = 1 << 4;
        const CLGI = 1 << 5;
        const SKINIT = 1 << 6;
        /// INT1, whose #DB that exception's intercept does not see.
        const ICEBP = 1 << 8;
        /// WBINVD and WBNOINVD: would empty the caches for other guests, too.
        const WBINVD = 1 << 9;
        const XSETBV = 1 << 13;
    }
}

/// Intercept vector 5 (VMCB offset 0x014): a bus lock for which the counter has none left.
pub const INTERCEPT_BUSLOCK: u32 = 1 << 5;

/// V_IRQ: a virtual interrupt is pending.
pub const V_IRQ: u64 = 1 << 8;
/// V_INTR_PRIO, the highest.
const V_INTR_PRIO: u64 = 0xf << 16;
/// V_IGN_TPR: the virtual interrupt ignores V_TPR.
const V_IGN_TPR: u64 = 1 << 20;
/// V_INTR_MASKING: the guest's RFLAGS.IF masks virtual interrupts only; physical ones obey the
/// host's.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// What opens an interrupt window, with [`Intercepts3::VINTR`].
const WINDOW: u64 = V_IRQ | V_INTR_PRIO | V_IGN_TPR;
/// Bit 31 of EVENTINJ and EXITINTINFO: the rest means something.
pub const EVENT_VALID: u64 = 1 << 31;
/// Bit 11 of EVENTINJ and EXITINTINFO: bits 63:32 are an error code.
pub const EVENT_ERROR_CODE_VALID: u64 = 1 << 11;
/// TLB_CONTROL: flush everything, whatever the ASID.
const FLUSH_ALL: u32 = 1;
/// TLB_CONTROL: flush what belongs to this guest's ASID.
const FLUSH_THIS_GUEST: u32 = 3;

/// What is switched on and off while the guest runs.
const SWITCHED: Intercepts3 = Intercepts3::VINTR.union(Intercepts3::HLT).union(Intercepts3::IRET);

/// What passes: with nested paging the CPU makes a guest's task switch by itself, and nothing that it loads is the host's
/// (APM "Task Switch Intercept").
const PASSES: Intercepts3 = Intercepts3::TASK_SWITCH;

/// Sets what exits, and how physical interrupts meet the guest.
pub fn set_intercepts(control: &mut ControlArea, mode: InterruptMode) {
    let mut misc = Intercepts3::all() - SWITCHED - PASSES - Intercepts3::INTR;
    match mode {
        InterruptMode::Exitless => {
            control.intercept_exceptions = exception::ALWAYS_EXIT | 1 << exception::NP;
            control.virtual_interrupt = 0;
        }
        InterruptMode::Exiting | InterruptMode::Posted => {
            misc |= Intercepts3::INTR;
            control.intercept_exceptions = exception::ALWAYS_EXIT;
            control.virtual_interrupt = V_INTR_MASKING;
        }
    }
    control.intercept_3 = misc.bits();
    control.intercept_4 = (Intercepts4::all() - Intercepts4::ICEBP).bits();
}

/// Has moves to and from debug registers exit, whose reads are the low half of the word and whose writes the high one (APM
/// "Layout of VMCB"), and INT1.
pub const fn watch_debug_registers(control: &mut ControlArea, wanted: bool) {
    if wanted {
        control.intercept_dr = !0;
        control.intercept_4 |= Intercepts4::ICEBP.bits();
    } else {
        control.intercept_dr = 0;
        control.intercept_4 &= !Intercepts4::ICEBP.bits();
    }
}

/// Opens or closes the interrupt window: a virtual interrupt is made pending whose delivery is
/// intercepted, so the exit comes as soon as the guest could take an interrupt. HLT exits meanwhile: see
/// [`arch::vcpu::Vcpu::set_interrupt_window`].
///
/// With V_INTR_MASKING = 0 QEMU loses the pending V_IRQ when the guest takes a physical interrupt
/// directly; it is back with the next VMRUN. Exitless mode raises interrupts by self-IPI instead.
pub fn set_interrupt_window(control: &mut ControlArea, wanted: bool) {
    if wanted {
        control.intercept_3 |= (Intercepts3::VINTR | Intercepts3::HLT).bits();
        control.virtual_interrupt |= WINDOW;
    } else {
        control.intercept_3 &= !(Intercepts3::VINTR | Intercepts3::HLT).bits();
        control.virtual_interrupt &= !WINDOW;
    }
}

/// Lets the guest halt, until the window is next opened or closed.
pub fn let_halt(control: &mut ControlArea) {
    control.intercept_3 &= !Intercepts3::HLT.bits();
}

/// TLB_CONTROL that drops this guest's translations, nested ones included
/// (APM "TLB Flush").
#[must_use]
pub const fn flush(flush_by_asid: bool) -> u32 {
    if flush_by_asid { FLUSH_THIS_GUEST } else { FLUSH_ALL }
}

/// EVENTINJ for `event`.
#[must_use]
pub fn eventinj(event: &Event) -> u64 {
    let kind = match event.kind {
        EventKind::ExternalInterrupt => 0,
        EventKind::Nmi => 2,
        EventKind::HardwareException
        | EventKind::SoftwareException
        | EventKind::PrivilegedSoftwareException => 3,
        EventKind::SoftwareInterrupt => 4,
    };
    let error = event.error_code.map_or(0, |code| u64::from(code) << 32 | EVENT_ERROR_CODE_VALID);
    u64::from(event.vector.0) | kind << 8 | error | EVENT_VALID
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmcb::Vmcb;
    use arch::Vector;

    fn intercepts(mode: InterruptMode) -> ControlArea {
        let mut control = Vmcb::zeroed().control;
        set_intercepts(&mut control, mode);
        control
    }

    #[test]
    fn exitless_mode_intercepts_the_words_that_worked_on_the_emulator_and_no_interrupt() {
        let control = intercepts(InterruptMode::Exitless);
        let quiet = Intercepts3::INTR | Intercepts3::VINTR | Intercepts3::HLT;
        assert_eq!(control.intercept_3 & quiet.bits(), 0);
        assert_eq!(control.intercept_3 & Intercepts3::TASK_SWITCH.bits(), 0);
        let reach_further = [1, 3, 6, 10, 18, 22, 26, 27, 28, 30, 31].map(|bit| 1 << bit);
        let reach_further = reach_further.into_iter().fold(0, |all, bit: u32| all | bit);
        assert_eq!(control.intercept_3 & reach_further, reach_further);
        // RDTSC, RDPMC, PUSHF, POPF, IRET, INTn, PAUSE and INVLPG never exit.
        assert_eq!(control.intercept_3 & 0x02bb_c380, 0);
        assert_eq!(control.intercept_4, 0x227f);
        assert_eq!((control.intercept_cr, control.intercept_dr), (0, 0));
        assert_eq!(control.intercept_exceptions, 1 << 1 | 1 << 11 | 1 << 17 | 1 << 18);
        assert_eq!(control.virtual_interrupt, 0);
    }

    #[test]
    fn exiting_mode_differs_by_interrupts_alone() {
        let (less, more) =
            (intercepts(InterruptMode::Exitless), intercepts(InterruptMode::Exiting));
        assert_eq!(more.intercept_3, less.intercept_3 | 1);
        assert_eq!(more.virtual_interrupt, V_INTR_MASKING);
        assert_eq!(more.intercept_exceptions, 1 << 1 | 1 << 17 | 1 << 18);
    }

    #[test]
    fn an_interrupt_window_leaves_nothing_behind() {
        for mode in [InterruptMode::Exitless, InterruptMode::Exiting] {
            let before = intercepts(mode);
            let mut control = before.clone();
            set_interrupt_window(&mut control, true);
            assert_ne!(control.intercept_3 & Intercepts3::VINTR.bits(), 0);
            assert_ne!(
                control.intercept_3 & Intercepts3::HLT.bits(),
                0,
                "while an interrupt waits"
            );
            assert_ne!(control.virtual_interrupt & V_IRQ, 0);
            let_halt(&mut control);
            assert_eq!(control.intercept_3, before.intercept_3 | Intercepts3::VINTR.bits());
            set_interrupt_window(&mut control, false);
            assert_eq!(control.intercept_3, before.intercept_3);
            assert_eq!(control.virtual_interrupt, before.virtual_interrupt);
        }
    }

    #[test]
    fn watching_debug_registers_leaves_nothing_behind() {
        let before = intercepts(InterruptMode::Exitless);
        let mut control = before.clone();
        watch_debug_registers(&mut control, true);
        assert_eq!(control.intercept_dr, u32::MAX);
        assert_eq!(control.intercept_4, before.intercept_4 | 1 << 8);
        watch_debug_registers(&mut control, false);
        assert_eq!((control.intercept_dr, control.intercept_4), (0, before.intercept_4));
    }

    #[test]
    fn events_are_encoded_as_the_manual_lays_them_out() {
        let gp = Event::exception(13, Some(0x58));
        assert_eq!(eventinj(&gp), 0x58_8000_0b0d);
        assert_eq!(eventinj(&Event::exception(6, None)), 0x8000_0306);
        assert_eq!(eventinj(&Event::interrupt(Vector(0xec))), 0x8000_00ec);
        let nmi = Event { kind: EventKind::Nmi, ..Event::interrupt(Vector(2)) };
        assert_eq!(eventinj(&nmi), 0x8000_0202);
        let int80 = Event { kind: EventKind::SoftwareInterrupt, ..Event::interrupt(Vector(0x80)) };
        assert_eq!(eventinj(&int80), 0x8000_0480);
    }
}
