//! Breakpoints on ports and on operands that are accessed here.

use arch::Width;
use arch::exit::IoAccess;

use super::*;

/// DR7: L0, and what DR0 is for.
const PORT: u64 = 1 | 0b0010 << 16;
const PORT_OF_TWO: u64 = 1 | 0b0110 << 16;
const WRITE: u64 = 1 | 0b0001 << 16;
const ACCESS_OF_FOUR: u64 = 1 | 0b1111 << 16;
const DEBUG: Option<Event> = Some(Event::exception(exception::DB, None));

fn io(port: u16, width: Width, string: bool) -> ExitReason {
    let (repeat, instruction_length) = (string, 2);
    ExitReason::Io(IoAccess { port, width, input: true, string, repeat, instruction_length })
}

/// The guest has DR0 and DR7 so, with CR4.DE.
fn with(address: u64, control: u64) -> World {
    let mut world = World::with_idt();
    world.vcpu.state.cr4 |= Cr4::DE.bits();
    (world.vcpu.debug.addresses[0], world.vcpu.debug.control) = (address, control);
    world.vcpu.debug.status = 0xffff_0ff8;
    world
}

/// Whether the trap has come, with B0 alone of the four.
fn met(world: &World) -> bool {
    let trap = world.vcpu.injected == DEBUG;
    assert_eq!(world.vcpu.debug.status, if trap { 0xffff_0ff1 } else { 0xffff_0ff8 });
    assert!(trap || world.vcpu.injected.is_none());
    trap
}

#[test]
fn a_port_with_a_breakpoint_traps_behind_the_instruction() {
    for (what, address, control, port, width, traps) in [
        ("the port", 0x80, PORT, 0x80, Width::Byte, true),
        ("another", 0x80, PORT, 0x81, Width::Byte, false),
        ("the last of a wide access", 0x83, PORT, 0x80, Width::Dword, true),
        ("two ports, of which one is meant", 0x81, PORT_OF_TWO, 0x80, Width::Byte, true),
        ("two ports, and the one behind them", 0x81, PORT_OF_TWO, 0x82, Width::Byte, false),
        ("it is not on", 0x80, PORT & !1, 0x80, Width::Byte, false),
        ("it is on for all tasks", 0x80, PORT & !1 | 2, 0x80, Width::Byte, true),
        ("it is for memory", 0x80, ACCESS_OF_FOUR, 0x80, Width::Byte, false),
        ("the address is none of a port", 0x1_0080, PORT, 0x80, Width::Byte, false),
    ] {
        let mut world = with(address, control);
        let rip = world.vcpu.state.rip;
        world.handle(io(port, width, false), None);
        assert_eq!((met(&world), world.vcpu.state.rip), (traps, rip + 2), "{what}");
    }
}

#[test]
fn a_port_has_no_breakpoint_without_debugging_extensions() {
    let mut world = with(0x80, PORT);
    world.vcpu.state.cr4 &= !Cr4::DE.bits();
    world.handle(io(0x80, Width::Byte, false), None);
    assert!(!met(&world));
}

#[test]
fn an_operand_with_a_breakpoint_traps_behind_the_iteration() {
    const REP_INSB: [u8; 2] = [0xf3, 0x6c];
    for (what, address, control, traps) in [
        ("the port", 0x80, PORT, [true, true]),
        ("the first byte, written", OPERAND, WRITE, [true, false]),
        ("the second", OPERAND + 1, WRITE, [false, true]),
        ("the dword around both", OPERAND + 3, ACCESS_OF_FOUR, [true, true]),
        ("the byte behind", OPERAND + 2, WRITE, [false, false]),
    ] {
        let mut world = with(address, control);
        (*world.gpr(Gpr::Rdi), *world.gpr(Gpr::Rcx)) = (OPERAND, 2);
        for traps in traps {
            world.vcpu.debug.status = 0xffff_0ff8;
            world.execute(&REP_INSB, io(0x80, Width::Byte, true));
            assert_eq!(met(&world), traps, "{what}");
        }
    }
}

#[test]
fn no_iteration_meets_no_breakpoint() {
    let mut world = with(0x80, PORT);
    *world.gpr(Gpr::Rcx) = 0;
    world.execute(&[0xf3, 0x6c], io(0x80, Width::Byte, true));
    assert!(!met(&world));
}

#[test]
fn a_read_of_a_devices_register_meets_breakpoints_on_accesses_and_a_write_those_on_writes_too() {
    const AT: u64 = 0xfec0_0010;
    let store: &[u8] = &[0x89, 0x03]; // mov [rbx], eax
    let load: &[u8] = &[0x8b, 0x03]; // mov eax, [rbx]
    for (code, write, control, traps) in [
        (store, true, WRITE, true),
        (load, false, WRITE, false),
        (store, true, ACCESS_OF_FOUR, true),
        (load, false, ACCESS_OF_FOUR, true),
    ] {
        let mut world = with(AT, control);
        world.touch(code, AT, write);
        assert_eq!(met(&world), traps, "{code:x?}, {control:#x}");
    }
}

#[test]
fn a_repeated_store_stops_behind_the_iteration_that_meets_a_breakpoint() {
    let at = IDT + 0x10;
    let mut world = with(at + 2, WRITE);
    *world.gpr(Gpr::Rcx) = 8;
    let rip = world.vcpu.state.rip;
    world.touch(&[0xf3, 0xaa], at, true); // rep stosb
    assert!(met(&world));
    assert_eq!((*world.gpr(Gpr::Rcx), world.vcpu.state.rip), (5, rip));
    assert_ne!(world.vcpu.state.rflags & Rflags::RF.bits(), 0, "it goes on there");
}

#[test]
fn the_operand_of_a_table_instruction_has_breakpoints() {
    let mut world = with(OPERAND, ACCESS_OF_FOUR);
    world.lidt(IDT, 0xfff);
    assert!(met(&world));
}

#[test]
fn a_fault_of_the_instruction_is_no_trap_nor_is_it_one_later() {
    let mut world = with(OPERAND, ACCESS_OF_FOUR);
    world.put(OPERAND, &[0xff, 0x0f, 0, 0, 0, 0, 0, 0, 0x80, 0]);
    *world.gpr(Gpr::Rbx) = OPERAND;
    world.execute(&[0x0f, 0x01, 0x1b], ExitReason::DescriptorTable);
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::GP, Some(0))));
    world.handle(io(0x80, Width::Byte, false), None);
    assert!(!met(&world));
}
