//! Steps over a VMCB in ordinary memory: what the guest must never see of them.

use super::*;
use crate::vcpu::tests::vcpu;

const OTHER: Hpa = Hpa::new(0x7000);

/// A step that the CPU would end with `exitcode`.
fn stepped(rflags: u64, change: impl FnOnce(&mut Vmcb)) -> (SvmVcpu, Option<ExitReason>) {
    let mut vcpu = vcpu();
    vcpu.set_rflags(rflags);
    let step = vcpu.begin_step(OTHER, true);
    let Vmcb { control, save } = vcpu.vmcb();
    assert_eq!((control.n_cr3, save.rflags >> 8 & 1), (0x7000, 1));
    assert_ne!(control.intercept_3 & Intercepts3::INTR.bits(), 0);
    assert_eq!(control.tlb_control, 3);
    let before = vcpu.vmcb().clone();
    change(vcpu.vmcb_mut());
    vcpu.entered();
    let exit = vcpu.end_step(step);
    let Vmcb { control, .. } = vcpu.vmcb();
    assert_eq!((control.n_cr3, control.tlb_control), (0x1000, 3), "{before:?}");
    assert_eq!(control.intercept_exceptions, exception::ALWAYS_EXIT | 1 << exception::NP);
    assert_eq!(control.intercept_3 & Intercepts3::INTR.bits(), 0);
    (vcpu, exit)
}

#[test]
fn behind_the_instruction_the_trap_flag_is_gone_and_nothing_is_delivered() {
    let (vcpu, exit) = stepped(2, |vmcb| {
        (vmcb.control.exitcode, vmcb.save.dr6) = (0x41, 0xffff_4ff0);
    });
    assert_eq!(exit, Some(ExitReason::Step));
    assert_eq!((vcpu.rflags(), vcpu.vmcb().save.dr6), (2, 0xffff_0ff0));
    assert!(!vcpu.injecting());
}

#[test]
fn a_step_is_no_debug_exception_of_the_guest() {
    let mut vcpu = vcpu();
    let step = vcpu.begin_step(OTHER, true);
    let Vmcb { control, save } = vcpu.vmcb_mut();
    (control.exitcode, save.dr6) = (0x41, 0xffff_4ff0);
    assert_eq!(vcpu.end_step(step), Some(ExitReason::Step));
    assert!(!vcpu.injecting());
}

#[test]
fn a_guest_that_steps_by_itself_gets_its_trap() {
    let (vcpu, exit) = stepped(0x102, |vmcb| {
        (vmcb.control.exitcode, vmcb.save.dr6) = (0x41, 0xffff_4ff0);
    });
    assert_eq!(exit, Some(ExitReason::Step));
    let Vmcb { control, save } = vcpu.vmcb();
    assert_eq!((save.rflags, save.dr6, control.eventinj), (0x102, 0xffff_4ff0, 0x8000_0301));
}

#[test]
fn a_breakpoint_that_the_instruction_hits_is_the_guests() {
    let (vcpu, exit) = stepped(2, |vmcb| {
        (vmcb.control.exitcode, vmcb.save.dr6) = (0x41, 0xffff_4ff2);
    });
    assert_eq!(exit, Some(ExitReason::Step));
    let Vmcb { control, save } = vcpu.vmcb();
    assert_eq!((save.dr6, control.eventinj), (0xffff_0ff2, 0x8000_0301));
}

#[test]
fn a_fault_of_the_instruction_is_the_guests_without_the_flag() {
    let (vcpu, exit) = stepped(2, |vmcb| {
        let control = &mut vmcb.control;
        (control.exitcode, control.exitinfo1, control.exitinfo2) = (0x4e, 6, 0xdead_b000);
    });
    assert_eq!(exit, Some(ExitReason::Step));
    assert_eq!((vcpu.rflags(), vcpu.cr2()), (2, 0xdead_b000));
    assert_eq!(vcpu.vmcb().control.eventinj, 6 << 32 | 0x8000_0b0e);
}

#[test]
fn an_interrupt_waits_and_what_exits_anyway_is_told() {
    let (vcpu, exit) = stepped(2, |vmcb| vmcb.control.exitcode = VMEXIT_INTR);
    assert_eq!((exit, vcpu.injecting()), (Some(ExitReason::Step), false));
    let (_, exit) = stepped(2, |vmcb| vmcb.control.exitcode = 0x4b);
    assert_eq!(exit, None, "it is intercepted in any case");
    let (_, exit) = stepped(2, |vmcb| vmcb.control.exitcode = 0x72);
    assert_eq!(exit, None);
}

#[test]
fn without_one_instruction_only_the_table_changes() {
    let mut vcpu = vcpu();
    let step = vcpu.begin_step(OTHER, false);
    let Vmcb { control, save } = vcpu.vmcb();
    assert_eq!((control.n_cr3, save.rflags, control.tlb_control), (0x7000, 2, 3));
    assert_eq!(control.intercept_exceptions, exception::ALWAYS_EXIT | 1 << exception::NP);
    vcpu.vmcb_mut().control.exitcode = 0x72;
    assert_eq!(vcpu.end_step(step), None, "it is told as ever");
    assert_eq!(vcpu.vmcb().control.n_cr3, 0x1000);
}

/// A step of a program that can enter its kernel by INT n and by SYSCALL.
fn stepped_program(change: impl FnOnce(&mut Vmcb)) -> (SvmVcpu, Option<ExitReason>) {
    let mut vcpu = vcpu();
    vcpu.set_rflags(0x202);
    let save = &mut vcpu.vmcb_mut().save;
    (save.cpl, save.efer, save.segments[IDTR].limit) = (3, 0x1501, 0xfff);
    let step = vcpu.begin_step(OTHER, true);
    let save = &vcpu.vmcb().save;
    assert_eq!((save.segments[IDTR].limit, save.efer), (0, 0x1500), "shut");
    change(vcpu.vmcb_mut());
    vcpu.entered();
    let exit = vcpu.end_step(step);
    let save = &vcpu.vmcb().save;
    assert_eq!((save.segments[IDTR].limit, save.efer), (0xfff, 0x1501));
    assert_eq!(save.rflags, 0x202);
    (vcpu, exit)
}

#[test]
fn no_program_enters_its_kernel_with_the_flags_of_a_step() {
    // INT 0x80: its gate is not in the table.
    let (vcpu, exit) = stepped_program(|vmcb| {
        (vmcb.control.exitcode, vmcb.control.exitinfo1) = (0x4d, 0x80 << 3 | 2);
    });
    assert_eq!((exit, vcpu.injecting()), (Some(ExitReason::Step), false), "it is executed again");
    // SYSCALL.
    let (vcpu, exit) = stepped_program(|vmcb| vmcb.control.exitcode = 0x46);
    assert_eq!((exit, vcpu.vmcb().control.eventinj), (Some(ExitReason::Step), 0x8000_0306));
    // A fault of its own, and a call of a gate.
    let (vcpu, exit) = stepped_program(|vmcb| vmcb.control.exitcode = 0x4d);
    assert_eq!((exit, vcpu.vmcb().control.eventinj), (Some(ExitReason::Step), 0x8000_0b0d));
    let (vcpu, _) = stepped_program(|vmcb| {
        (vmcb.control.exitcode, vmcb.save.dr6, vmcb.save.cpl) = (0x41, 0xffff_4ff0, 0);
    });
    assert!(!vcpu.injecting());
}

#[test]
fn an_event_that_is_delivered_at_a_steps_begin_has_its_gate() {
    let mut vcpu = vcpu();
    let save = &mut vcpu.vmcb_mut().save;
    (save.cpl, save.segments[IDTR].limit) = (3, 0xfff);
    vcpu.inject(Event::exception(exception::UD, None));
    vcpu.begin_step(OTHER, true);
    assert_eq!(vcpu.vmcb().save.segments[IDTR].limit, 0xfff);
}
