//! Interrupts of the 8259s: the PIT's ticks by NMIs, and the console's.

use arch::Width;
use arch::exit::IoAccess;
use arch::interrupt::DeliveryMode;
use arch::machine::{InterruptLine, PitRegister};
use arch::msr::IA32_X2APIC_LVT_LINT0;
use arch::vcpu::EventKind;

use super::*;
use crate::devices::{Devices, pit};

const TICK: u8 = 0x30;

/// A guest that has the PIT's line and 8259s, on `cpus` CPUs, in this mode.
fn world(mode: InterruptMode) -> World {
    let mut world = World::new(mode);
    world.vm.interrupted = true;
    world.make_idt(IDT);
    world.lidt(IDT, 0xfff);
    world.machine.owned.add_pit();
    world.vm.lines.push(Line { input: 2, gsi: pit::GSI, active_low: false });
    world.vm.devices = Devices::new(true);
    let apic = VirtualApic::new(mode, ApicId(0), true).in_virtual_wire_mode();
    world.cpu.apic = apic;
    world
}

fn out(world: &mut World, port: u16, value: u8) {
    wide_out(world, port, Width::Byte, value.into());
}

fn wide_out(world: &mut World, port: u16, width: Width, value: u32) {
    *world.gpr(Gpr::Rax) = value.into();
    let instruction_length = 1;
    let access =
        IoAccess { port, width, input: false, string: false, repeat: false, instruction_length };
    world.handle(ExitReason::Io(access), None);
}

/// As a kernel without a driver for its local APIC: vectors from 0x30 on, a tick each 10 ms, IRQ 0 and 4.
fn start(world: &mut World) {
    for value in [0x34, 0x9c, 0x2e] {
        out(world, if value == 0x34 { 0x43 } else { 0x40 }, value);
    }
    for (port, value) in [(0x20, 0x11), (0x21, TICK), (0x21, 4), (0x21, 1), (0x21, 0xee)] {
        out(world, port, value);
    }
}

fn pass_ms(world: &mut World, ms: u64) {
    world.machine.tsc += ms * world.machine.tsc_khz;
}

fn injected(world: &World) -> Option<(u8, EventKind)> {
    world.vcpu.injected.map(|event| (event.vector.0, event.kind))
}

const TAKEN: Option<(u8, EventKind)> = Some((TICK, EventKind::ExternalInterrupt));

fn tick(world: &mut World) -> Option<(u8, EventKind)> {
    pass_ms(world, 10);
    world.handle(ExitReason::Nmi, None);
    injected(world)
}

/// Where the PIT's line went last: by NMI, and to which CPU.
fn routed(world: &World) -> Option<(bool, ApicId)> {
    let line = InterruptLine::Gsi(pit::GSI);
    let (_, target) = world.machine.routes.iter().rfind(|(of, _)| *of == line)?;
    target.map(|target| (target.delivery == DeliveryMode::Nmi, target.destination))
}

const MODES: [InterruptMode; 3] =
    [InterruptMode::Exitless, InterruptMode::Exiting, InterruptMode::Posted];

#[test]
fn a_guest_that_unmasks_the_tick_gets_it_in_every_mode() {
    for mode in MODES {
        let mut world = world(mode);
        assert_eq!(routed(&world), None);
        start(&mut world);
        assert_eq!(routed(&world), Some((true, CPU)));
        assert_eq!(tick(&mut world), TAKEN, "{mode:?}");
        world.handle(ExitReason::Nmi, None);
        assert_eq!(injected(&world), None, "an NMI that was not the PIT's");
        assert_eq!(tick(&mut world), None, "in service");
        out(&mut world, 0x20, 0x20);
        assert_eq!(injected(&world), TAKEN, "it has waited for the end of the one before");
        assert!(!world.vcpu.window);
    }
}

#[test]
fn the_machines_pit_begins_anew_with_the_guests() {
    let mut world = world(InterruptMode::Exitless);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        out(&mut world, port, value);
    }
    pass_ms(&mut world, 7);
    world.order();
    start(&mut world);
    let written: Vec<Done> = world.order();
    let anew = [
        Done::Route(InterruptLine::Gsi(pit::GSI), true),
        Done::Pit(PitRegister::Control, 0x34),
        Done::Pit(PitRegister::Channel0, 0x9c),
        Done::Pit(PitRegister::Channel0, 0x2e),
    ];
    assert!(written.ends_with(&anew), "{written:?}");
    pass_ms(&mut world, 2);
    world.handle(ExitReason::Nmi, None);
    assert_eq!(injected(&world), None, "its period has begun anew");
}

#[test]
fn a_tick_waits_until_the_guest_can_take_it() {
    for mode in MODES {
        let mut world = world(mode);
        start(&mut world);
        world.vcpu.state.rflags = 2;
        assert_eq!(tick(&mut world), None);
        assert!(world.vcpu.window, "{mode:?}");
        world.handle(ExitReason::Halt, None);
        assert!(!world.vcpu.halt_exits, "cli; hlt: the CPU halts, and no exit comes of it");
        world.vcpu.state.rflags = 0x202;
        world.handle(ExitReason::InterruptWindow, None);
        assert_eq!(injected(&world), TAKEN, "{mode:?}");
        assert!(!world.vcpu.window);
    }
}

#[test]
fn a_tick_ends_the_halt_that_it_meets() {
    for mode in MODES {
        let mut world = world(mode);
        start(&mut world);
        world.vcpu.interrupt_shadow = true;
        assert_eq!(tick(&mut world), None, "behind STI");
        let rip = world.vcpu.state.rip;
        world.handle(ExitReason::Halt, None);
        assert_eq!((injected(&world), world.vcpu.state.rip), (TAKEN, rip + 1), "{mode:?}");
    }
}

#[test]
fn what_the_exit_has_cut_short_comes_first() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    pass_ms(&mut world, 10);
    let (vector, kind) = (Vector(0x41), EventKind::ExternalInterrupt);
    world.handle(ExitReason::Nmi, Some(Vectoring { vector, kind, error_code: None }));
    assert_eq!(injected(&world), Some((0x41, kind)));
    assert!(world.vcpu.window);
    world.handle(ExitReason::InterruptWindow, None);
    assert_eq!(injected(&world), TAKEN);
}

#[test]
fn its_gate_is_open_when_it_comes() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    assert!(!world.guest.grants.allows(Vector(TICK)));
    assert_eq!(tick(&mut world), TAKEN);
    assert!(world.guest.grants.allows(Vector(TICK)));
}

#[test]
fn a_vector_of_real_mode_comes_as_it_is() {
    let mut world = world(InterruptMode::Exitless);
    for (port, value) in [(0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        out(&mut world, port, value);
    }
    pass_ms(&mut world, 55);
    world.handle(ExitReason::Nmi, None);
    assert_eq!(injected(&world), Some((8, EventKind::ExternalInterrupt)), "firmware's 18.2 Hz");
}

#[test]
fn a_masked_tick_costs_nothing_and_neither_does_one_of_the_io_apic() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    out(&mut world, 0x21, 0xff);
    assert_eq!(routed(&world), None);
    out(&mut world, 0x21, 0xfe);
    assert_eq!(routed(&world), Some((true, CPU)));
    let mut redirect = |entry: u32| {
        for (offset, value) in [(0, 0x14), (0x10, entry)] {
            *world.gpr(Gpr::Rax) = value.into();
            world.touch(&[0x89, 0x03], 0xfec0_0000 + offset, true);
        }
        routed(&world)
    };
    assert_eq!(redirect(0x31), Some((false, CPU)), "by its vector");
    assert_eq!(redirect(0x1_0031), Some((true, CPU)), "back to the 8259s");
}

#[test]
fn lint0_closes_the_way_and_opens_it() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    world.machine.msrs.insert(IA32_X2APIC_SIVR, 0);
    let mut open = |msr, value| {
        world.wrmsr(msr, value);
        routed(&world).is_some()
    };
    assert!(!open(IA32_X2APIC_LVT_LINT0, 0x1_0700), "masked, as after reset");
    assert!(!open(IA32_X2APIC_LVT_LINT0, 0x700), "as long as SVR disables the local APIC");
    assert!(!open(IA32_X2APIC_SIVR, 0x1ff));
    assert!(open(IA32_X2APIC_LVT_LINT0, 0x700));
    assert!(!open(IA32_X2APIC_LVT_LINT0, 0x31), "fixed");
}

#[test]
fn a_tick_more_often_than_20_khz_goes_nowhere() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    world.order();
    for value in [50, 0] {
        out(&mut world, 0x40, value);
    }
    let order = world.order();
    let stopped = order.iter().position(|done| matches!(done, Done::Route(_, false)));
    let loaded = order.iter().rposition(|done| matches!(done, Done::Pit(_, 0)));
    assert!(stopped.unwrap() < loaded.unwrap(), "before it begins: {order:?}");
    for value in [0x9c, 0x2e] {
        out(&mut world, 0x40, value);
    }
    assert_eq!(routed(&world), Some((true, CPU)));
}

#[test]
fn a_request_is_seen_where_no_nmi_says_it() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    out(&mut world, 0x21, 0xff);
    pass_ms(&mut world, 6);
    let request = |world: &mut World| {
        let port = Devices::read(&mut world.vm.devices, 0x20, Width::Byte, &world.machine);
        port & 1
    };
    assert_eq!(request(&mut world), 0, "not before it is due");
    pass_ms(&mut world, 5);
    assert_eq!(request(&mut world), 1);
    out(&mut world, 0x21, 0xfe);
    assert_eq!(injected(&world), TAKEN);
}

#[test]
fn another_cpu_that_lets_the_tick_come_has_the_first_exit() {
    let mut world = world(InterruptMode::Exitless);
    world.switch_apics_on(2);
    start(&mut world);
    assert_eq!(tick(&mut world), TAKEN);
    assert_eq!(tick(&mut world), None, "in service");
    world.cpu.index = 1;
    out(&mut world, 0x20, 0x20);
    assert_eq!((injected(&world), &world.machine.called[..]), (None, &[0][..]));
    world.cpu.index = 0;
    world.handle(ExitReason::Nmi, None);
    assert_eq!(injected(&world), TAKEN);
}

#[test]
fn the_consoles_line_is_irq_4() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    for (register, value) in [(4, 8), (1, 1)] {
        out(&mut world, 0x3f8 + register, value);
    }
    assert_eq!(injected(&world), None);
    world.machine.typed.push_back(b'x');
    world.handle(ExitReason::Nmi, None);
    assert_eq!(injected(&world), Some((TICK + 4, EventKind::ExternalInterrupt)));
}

#[test]
fn the_log_says_once_that_a_guest_lives_on_these_ticks() {
    let mut world = world(InterruptMode::Exitless);
    start(&mut world);
    let said = |world: &World| {
        world.machine.log.iter().filter(|line| line.contains("through the 8259s")).count()
    };
    for ticks in 0..600 {
        assert_eq!(said(&world), usize::from(ticks >= 250));
        assert_eq!(tick(&mut world), TAKEN);
        out(&mut world, 0x20, 0x20);
    }
}

/// A wide OUT reaches the control register behind channel 0: the machine's PIT gets all that the guest's gets, or the two count
/// other bytes.
#[test]
fn a_wide_out_reaches_the_machines_pit_byte_by_byte() {
    let mut world = world(InterruptMode::Exiting);
    start(&mut world);
    let _ = world.order();
    out(&mut world, 0x43, 0x34);
    wide_out(&mut world, 0x40, Width::Dword, 0xff);
    out(&mut world, 0x40, 2);
    out(&mut world, 0x40, 0);
    let written: Vec<Done> = world.order();
    let (control, first) = (PitRegister::Control, PitRegister::Channel0);
    let bytes = [(control, 0x34), (first, 0xff), (control, 0), (first, 2), (first, 0)];
    let bytes = bytes.map(|(register, value)| Done::Pit(register, value));
    let pits = |done: &&Done| matches!(done, Done::Pit(..));
    assert_eq!(written.iter().filter(pits).collect::<Vec<_>>(), bytes.iter().collect::<Vec<_>>());
}
