//! NMIs over a VMCB in ordinary memory.

use super::*;
use crate::vcpu::tests::{modern_vcpu, vcpu};
use arch::Vector;
use arch::vcpu::Vcpu;

const NMI: u64 = 0x8000_0202;

std::thread_local! {
    /// Exits right behind a delivery.
    pub(super) static ASKED_FOR: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

fn iret_exits(vcpu: &SvmVcpu) -> bool {
    vcpu.vmcb().control.intercept_3 & Intercepts3::IRET.bits() != 0
}

/// The CPU has entered and comes back with `exitcode` at `rip`.
fn exit(vcpu: &mut SvmVcpu, exitcode: u64, rip: u64, exitintinfo: u64) {
    vcpu.entered();
    let vmcb = vcpu.vmcb_mut();
    (vmcb.control.exitcode, vmcb.save.rip) = (exitcode, rip);
    vmcb.control.exitintinfo = exitintinfo;
    let _ = vcpu.last_exit();
}

/// An exit that is not frequent and says nothing of NMIs.
const OTHER: u64 = crate::decode::VMEXIT_HLT;

#[test]
fn one_nmi_is_served_until_iret_and_one_more_waits() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::nmi());
    assert_eq!((vcpu.vmcb().control.eventinj, iret_exits(&vcpu)), (NMI, true));
    exit(&mut vcpu, OTHER, 0x100, 0);
    for _ in 0..10 {
        vcpu.inject(Event::nmi());
        assert!(!vcpu.injecting());
    }
    assert!(vcpu.nmis.pending);
    // The IRET has been executed alone.
    vcpu.block_nmis(Blocking::Iret(0x200));
    exit(&mut vcpu, OTHER, 0x50, 0);
    assert_eq!((vcpu.vmcb().control.eventinj, iret_exits(&vcpu)), (NMI, true));
    exit(&mut vcpu, OTHER, 0x100, 0);
    assert!(!vcpu.injecting() && !vcpu.nmis.pending, "two in all");
}

#[test]
fn an_nmi_that_comes_between_the_exit_of_iret_and_iret_itself_waits_for_it() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::nmi());
    exit(&mut vcpu, VMEXIT_IRET, 0x200, 0);
    assert_eq!(vcpu.nmis.blocking, Blocking::Iret(0x200));
    assert!(!iret_exits(&vcpu), "it is executed");
    vcpu.inject(Event::nmi());
    assert!(!vcpu.injecting() && iret_exits(&vcpu), "and exits once more, to be executed alone");
}

#[test]
fn an_injected_interrupt_exits_behind_its_delivery_where_it_may_be_repeated() {
    let interrupt = Event { kind: EventKind::ExternalInterrupt, ..Event::nmi() };
    let interrupt = Event { vector: Vector(0x41), ..interrupt };
    for (mut vcpu, exits) in [(vcpu(), 1), (modern_vcpu(), 0)] {
        ASKED_FOR.set(0);
        vcpu.inject(Event::exception(13, Some(0)));
        assert_eq!(ASKED_FOR.get(), 0, "an exception is not repeated");
        vcpu.inject(interrupt);
        assert_eq!(ASKED_FOR.get(), exits);
        assert_eq!(vcpu.vmcb().control.eventinj, 0x8000_0041);
    }
}

#[test]
fn behind_iret_the_next_is_served_at_once() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::nmi());
    exit(&mut vcpu, VMEXIT_IRET, 0x200, 0);
    exit(&mut vcpu, OTHER, 0x50, 0);
    vcpu.inject(Event::nmi());
    assert_eq!((vcpu.vmcb().control.eventinj, iret_exits(&vcpu)), (NMI, true));
}

#[test]
fn an_nmi_and_another_event_never_replace_each_other() {
    let interrupt = 0x8000_0061;
    for nmi_first in [true, false] {
        let mut vcpu = vcpu();
        let events = [Event::nmi(), Event::interrupt(Vector(0x61))];
        let [first, second] = if nmi_first { events } else { [events[1], events[0]] };
        vcpu.inject(first);
        vcpu.inject(second);
        assert_eq!(vcpu.vmcb().control.eventinj, interrupt, "{nmi_first}");
        assert!(!iret_exits(&vcpu), "no NMI is served yet");
        exit(&mut vcpu, OTHER, 0x300, 0);
        assert_eq!((vcpu.vmcb().control.eventinj, iret_exits(&vcpu)), (NMI, true), "{nmi_first}");
    }
}

#[test]
fn an_nmi_whose_delivery_was_cut_short_is_delivered_again() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::nmi());
    exit(&mut vcpu, OTHER, 0x100, NMI);
    assert!(!iret_exits(&vcpu));
    vcpu.inject(Event::nmi());
    assert_eq!((vcpu.vmcb().control.eventinj, iret_exits(&vcpu)), (NMI, true));
}

#[test]
fn a_reset_forgets_the_nmis() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::nmi());
    vcpu.inject(Event::interrupt(Vector(0x61)));
    vcpu.load(&arch::vcpu::StartState::after_sipi(0));
    exit(&mut vcpu, OTHER, 0, 0);
    assert!(!vcpu.injecting() && !iret_exits(&vcpu));
}

#[test]
fn an_iret_that_is_a_task_switch_is_the_hypervisors_and_the_one_that_waits_comes_behind_it() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::nmi());
    let save = &mut vcpu.vmcb_mut().save;
    (save.cr0, save.efer, save.rflags) = (0x11, 0x1000, 0x4002);
    exit(&mut vcpu, OTHER, 0x100, 0);
    vcpu.inject(Event::nmi());
    vcpu.entered();
    let vmcb = vcpu.vmcb_mut();
    (vmcb.control.exitcode, vmcb.save.rip) = (VMEXIT_IRET, 0x200);
    let by_link = TaskSwitch { selector: None, source: TaskSwitchSource::Iret };
    assert_eq!(vcpu.last_exit(), ExitReason::TaskSwitch(by_link));
    assert_eq!((vcpu.vmcb().control.eventinj, vcpu.nmis.pending), (NMI, false));
    assert_eq!(vcpu.vmcb().save.rflags, 0x4002, "and no trap flag");
}
