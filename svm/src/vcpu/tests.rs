//! The virtual CPU over a VMCB in ordinary memory; nothing here enters a guest.

use super::*;
use crate::contract::{PAT_RESET, unswitched};
use arch::Gva;
use arch::register::Gpr;
use arch::segment::{
    AccessRights, DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister,
};
use arch::vcpu::{Event, EventKind, InterruptMode, SystemCallMsrs, exception};

const PLAIN: Features = Features {
    nrip_save: false,
    flush_by_asid: true,
    decode_assists: false,
    bus_lock_threshold: false,
};
/// A CPU that has FRED beside what the guest is shown.
const CR4: GuestCr4 = GuestCr4 { allowed: 0x0077_0fff, hidden: 1 << 32 };
const FRAME: Hpa = Hpa::new(0x1000);

fn setup(mode: InterruptMode) -> VcpuSetup {
    let pages = Box::leak(Box::new([const { Vmcb::zeroed() }; 3]));
    const { assert!(size_of::<[Vmcb; 3]>() as u64 == CPU_BYTES) };
    VcpuSetup {
        mode,
        nested_root: FRAME,
        bitmaps: Hpa::new(0x2000),
        virtual_ipis: false,
        memory: Hpa::new((&raw mut *pages).expose_provenance() as u64),
        host_tss_base: 0,
        cr4: CR4,
    }
}

fn vcpu_with(features: Features) -> SvmVcpu {
    // SAFETY: the VMCB is leaked memory of its own, and no test enters the guest.
    unsafe { SvmVcpu::with(features, FRAME, &setup(InterruptMode::Exitless)) }
}

/// A CPU of today, all of which have decode assists.
pub(crate) fn modern_vcpu() -> SvmVcpu {
    vcpu_with(Features { nrip_save: true, decode_assists: true, ..PLAIN })
}

pub(crate) fn vcpu() -> SvmVcpu {
    vcpu_with(PLAIN)
}

#[test]
fn a_new_virtual_cpu_is_one_that_vmrun_accepts_at_the_reset_state() {
    let vcpu = vcpu();
    let state = core::fmt::from_fn(|f| vcpu.write_state(f)).to_string();
    assert!(state.starts_with("vmcb ") && state.contains(" 90=1 "), "{state}");
    assert_eq!(explain::vmcb(&state), None);
    let Vmcb { control, save } = vcpu.vmcb();
    assert_eq!((control.np_enable, control.n_cr3), (1, 0x1000));
    assert_eq!((control.msrpm_base_pa, control.iopm_base_pa), (0x2000, 0x6000));
    assert_eq!((control.tsc_offset, control.vmcb_clean_bits, control.guest_asid), (0, 0, 1));
    assert_eq!((save.g_pat, save.dr6, save.dr7), (PAT_RESET, 0xffff_0ff0, 0x400));
    assert_eq!((vcpu.cr0(), vcpu.cr4(), vcpu.efer(), vcpu.cpl()), (0x10, 0, 0, 0));
}

#[test]
fn the_msrs_of_x2apic_mode_are_in_one_of_two_maps() {
    let mut vcpu = vcpu();
    let mut map = |pass| {
        vcpu.pass_x2apic(pass);
        (vcpu.vmcb().control.msrpm_base_pa, vcpu.vmcb().control.iopm_base_pa)
    };
    assert_eq!(
        [false, false, true].map(&mut map),
        [(0x4000, 0x6000), (0x4000, 0x6000), (0x2000, 0x6000)]
    );
}

#[test]
fn in_qemu_a_reserved_bit_of_a_control_register_is_no_refusal_to_enter() {
    let refused = |mut vcpu: SvmVcpu, base: u64| {
        vcpu.vmcb_mut().control.exitcode = 0xffff_ffff;
        let table = DescriptorTable { base: Gva::new(base), limit: 0xff };
        vcpu.set_descriptor_table(DescriptorTableRegister::Gdtr, table);
        vcpu.last_exit()
    };
    let protection = ExitReason::Exception {
        vector: Vector(exception::GP),
        error_code: Some(0),
        qualification: 0,
    };
    let hosts = cpu::segments::gdtr().base.as_u64();
    assert_eq!(refused(vcpu(), hosts ^ 0x1000), protection);
    for (vcpu, base) in [(vcpu(), hosts), (modern_vcpu(), hosts ^ 0x1000)] {
        assert!(matches!(refused(vcpu, base), ExitReason::EntryFailure(_)), "{base:#x}");
    }
}

#[test]
fn a_single_step_traps_behind_an_instruction_that_was_carried_out() {
    let mut vcpu = vcpu();
    vcpu.skip_instruction(2);
    assert!(!vcpu.injecting());
    vcpu.set_rflags(2 | 1 << 8);
    vcpu.skip_instruction(2);
    let Vmcb { control, save } = vcpu.vmcb();
    assert_eq!((control.eventinj, save.dr6 >> 14 & 1, save.rip), (0x8000_0301, 1, 4));
}

#[test]
fn breakpoints_that_were_met_trap_behind_the_instruction_with_its_single_step() {
    for (flags, status) in [(2, 0xffff_2ff5), (2 | 1 << 8, 0xffff_6ff5)] {
        let mut vcpu = vcpu();
        vcpu.set_rflags(flags);
        vcpu.vmcb_mut().save.dr6 = 0xffff_2ff8;
        vcpu.skip_instruction(2);
        vcpu.meet_breakpoints(5);
        let Vmcb { control, save } = vcpu.vmcb();
        assert_eq!((control.eventinj, save.dr6), (0x8000_0301, status));
    }
}

#[test]
fn a_guest_has_no_breakpoints_where_none_is_on_or_gdbs_are_in_their_place() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.breakpoints(), None);
    vcpu.vmcb_mut().save.dr7 = 0x401;
    vcpu.watch_debug_registers(true);
    assert_eq!(vcpu.breakpoints(), None);
}

#[test]
fn an_instruction_that_was_carried_out_leaves_no_resume_flag() {
    let mut vcpu = vcpu();
    for trap in [0, 1 << 8] {
        vcpu.set_rflags(2 | 1 << 16 | trap);
        vcpu.skip_instruction(2);
        assert_eq!((vcpu.rflags(), vcpu.injecting()), (2 | trap, trap != 0));
    }
}

#[test]
fn load_replaces_everything_and_forgets_the_event() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::exception(13, Some(0)));
    vcpu.set_interrupt_window(true);
    vcpu.vmcb_mut().control.interrupt_shadow = 1;
    vcpu.vmcb_mut().save.lstar = 7;
    let mut state = StartState::after_sipi(0x9a);
    state.gpr = core::array::from_fn(|i| 100 + i as u64);
    (state.cr0, state.cr3, state.cr4, state.efer) = (0x8000_0011, 0x7000, 0x20, 0x100);
    state.gdtr = DescriptorTable { base: Gva::new(0x6000), limit: 31 };
    vcpu.load(&state);
    for register in Gpr::ALL {
        assert_eq!(vcpu.gpr(register), 100 + register as u64);
    }
    for (register, segment) in SegmentRegister::ALL.into_iter().zip(state.segments) {
        assert_eq!(vcpu.segment(register), segment, "{register:?}");
    }
    assert_eq!(vcpu.segment(SegmentRegister::Cs).base, 0x9_a000);
    assert_eq!(vcpu.descriptor_table(DescriptorTableRegister::Gdtr), state.gdtr);
    assert_eq!(vcpu.descriptor_table(DescriptorTableRegister::Idtr), state.idtr);
    assert_eq!((vcpu.cr3(), vcpu.efer(), vcpu.vmcb().save.lstar), (0x7000, 0x500, 0));
    assert!(!vcpu.injecting());
    assert_eq!(vcpu.vmcb().control.interrupt_shadow, 0);
    assert_eq!(vcpu.vmcb().control.virtual_interrupt, 0);
}

#[test]
fn a_start_behind_init_keeps_pat_and_the_msrs_of_system_calls() {
    let mut vcpu = vcpu();
    let calls = SystemCallMsrs {
        star: 1,
        lstar: 2,
        cstar: 3,
        fmask: 4,
        kernel_gs_base: 5,
        sysenter: [6, 7, 8],
    };
    vcpu.set_system_call_msrs(&calls);
    vcpu.set_pat(0x0406);
    vcpu.vmcb_mut().save.dbgctl = 1;
    vcpu.start_again(&StartState::after_sipi(0x9a));
    assert_eq!((vcpu.system_call_msrs(), vcpu.pat()), (calls, 0x0406));
    assert_eq!(vcpu.unswitched.get(), Unswitched::NewestInVmcb);
    assert_eq!((vcpu.segment(SegmentRegister::Cs).selector, vcpu.vmcb().save.dbgctl), (0x9a00, 0));
    vcpu.load(&StartState::after_sipi(0));
    assert_eq!(vcpu.system_call_msrs(), SystemCallMsrs::default());
}

#[test]
fn registers_and_segments_do_not_share_their_places() {
    let mut vcpu = vcpu();
    for register in Gpr::ALL {
        vcpu.set_gpr(register, register as u64 + 1);
    }
    for register in Gpr::ALL {
        assert_eq!(vcpu.gpr(register), register as u64 + 1);
    }
    let of = |i: usize| Segment {
        selector: i as u16,
        base: 10 + i as u64,
        limit: 20 + i as u32,
        access: AccessRights::DATA32,
    };
    for (i, register) in SegmentRegister::ALL.into_iter().enumerate() {
        vcpu.set_segment(register, of(i));
    }
    for (i, register) in SegmentRegister::ALL.into_iter().enumerate() {
        assert_eq!(vcpu.segment(register), of(i));
    }
    assert_eq!((vcpu.vmcb().save.rax, vcpu.vmcb().save.rsp), (1, 5));
}

#[test]
fn svme_is_the_hosts_and_lma_follows_paging() {
    let mut vcpu = vcpu();
    vcpu.set_efer(Efer::LME.bits() | Efer::LMA.bits());
    assert_eq!(vcpu.efer(), Efer::LME.bits());
    assert_eq!(vcpu.vmcb().save.efer & Efer::SVME.bits(), Efer::SVME.bits());
    vcpu.vmcb_mut().save.cr0 = 0x8000_0011;
    vcpu.set_efer(Efer::LME.bits());
    assert_eq!(vcpu.efer(), (Efer::LME | Efer::LMA).bits());
    vcpu.vmcb_mut().save.cr0 = 0x11;
    vcpu.set_efer(Efer::LME.bits());
    assert_eq!(vcpu.efer(), Efer::LME.bits());
    vcpu.set_efer(0);
    assert_eq!(vcpu.vmcb().save.efer, Efer::SVME.bits());
}

#[test]
fn the_stack_segment_carries_the_privilege_level() {
    let mut vcpu = vcpu();
    let user = Segment { access: AccessRights(0xc0f3), ..Segment::NULL };
    vcpu.set_segment(SegmentRegister::Ds, user);
    assert_eq!(vcpu.cpl(), 0);
    vcpu.set_segment(SegmentRegister::Ss, user);
    assert_eq!(vcpu.cpl(), 3);
}

#[test]
fn translations_are_dropped_once_for_each_change_that_needs_it() {
    let changes: [fn(&mut SvmVcpu); 5] = [
        SvmVcpu::flush_nested,
        |v| v.set_cr4(0x20),
        |v| v.set_efer(0x800),
        |v| v.set_pat(0),
        |v| v.load(&StartState::after_sipi(1)),
    ];
    for (flush_by_asid, expected) in [(true, 3), (false, 1)] {
        let mut vcpu = vcpu_with(Features { flush_by_asid, ..PLAIN });
        assert_eq!(vcpu.vmcb().control.tlb_control, expected, "the ASID may have had an owner");
        for change in changes {
            vcpu.entered();
            assert_eq!(vcpu.vmcb().control.tlb_control, 0);
            change(&mut vcpu);
            assert_eq!(vcpu.vmcb().control.tlb_control, expected);
        }
    }
}

#[test]
fn only_unswitched_registers_ask_for_a_vmload() {
    let mut vcpu = vcpu();
    for register in SegmentRegister::ALL {
        vcpu.unswitched.set(Unswitched::Same);
        vcpu.set_segment(register, Segment::NULL);
        let dirty = vcpu.unswitched.get() == Unswitched::NewestInVmcb;
        assert_eq!(dirty, unswitched(register), "{register:?}");
    }
}

#[test]
fn a_skipped_instruction_ends_the_interrupt_shadow_and_a_set_rip_does_not() {
    let mut vcpu = vcpu();
    vcpu.set_rflags(0x202);
    vcpu.vmcb_mut().control.interrupt_shadow = 1;
    vcpu.set_rip(0x1000);
    assert!(!vcpu.interruptible());
    vcpu.skip_instruction(2);
    assert_eq!(vcpu.rip(), 0x1002);
    assert!(vcpu.interruptible());
    vcpu.set_rflags(2);
    assert!(!vcpu.interruptible());
}

#[test]
fn software_events_return_behind_their_instruction() {
    let int80 = Event {
        kind: EventKind::SoftwareInterrupt,
        instruction_length: 2,
        ..Event::interrupt(Vector(0x80))
    };
    for (nrip_save, expected) in [(true, (0x1000, 0x1002)), (false, (0x1002, 0))] {
        let mut vcpu = vcpu_with(Features { nrip_save, ..PLAIN });
        vcpu.set_rip(0x1000);
        vcpu.inject(int80);
        assert!(vcpu.injecting());
        assert_eq!((vcpu.rip(), vcpu.vmcb().control.nrip), expected);
        vcpu.set_rip(0x1000);
        vcpu.inject(Event::exception(6, None));
        assert_eq!(vcpu.rip(), 0x1000);
    }
}

#[test]
fn a_bus_lock_exits_once_and_is_then_made() {
    let mut vcpu = vcpu_with(Features { bus_lock_threshold: true, ..PLAIN });
    let control = &mut vcpu.vmcb_mut().control;
    assert_eq!((control.intercept_5, control.bus_lock_counter), (1 << 5, 0), "the first exits");
    control.exitcode = 0xa5;
    assert_eq!(vcpu.last_exit(), ExitReason::BusLock);
    assert_eq!(vcpu.vmcb().control.bus_lock_counter, 1);
    assert_eq!(self::vcpu().vmcb().control.intercept_5, 0, "not where the CPU has not got it");
}

#[test]
fn int1_is_a_debug_exception_with_no_condition_and_rip_behind_it() {
    let mut vcpu = vcpu();
    vcpu.set_rip(0x1000);
    vcpu.vmcb_mut().save.dr6 = 0xffff_4ff1;
    vcpu.vmcb_mut().control.exitcode = 0x88;
    let debug =
        ExitReason::Exception { vector: arch::Vector(1), error_code: None, qualification: 0 };
    assert_eq!((vcpu.last_exit(), vcpu.rip()), (debug, 0x1001));
}
