//! Port accesses: the console and its line, the PCI bus, power, strings.

use arch::Width;
use arch::exit::IoAccess;
use arch::machine::PitRegister;

use super::*;
use crate::devices::pit;

const COM1: u16 = 0x3f8;
const IN: IoAccess = IoAccess {
    port: COM1,
    width: Width::Byte,
    input: true,
    string: false,
    repeat: false,
    instruction_length: 1,
};

fn out(world: &mut World, port: u16, width: Width, value: u32) {
    assert_eq!(output(world, port, width, value), Next::Resume);
}

fn output(world: &mut World, port: u16, width: Width, value: u32) -> Next {
    *world.gpr(Gpr::Rax) = value.into();
    world.exit(ExitReason::Io(IoAccess { port, width, input: false, ..IN }), None)
}

fn input(world: &mut World, port: u16, width: Width) -> u64 {
    *world.gpr(Gpr::Rax) = 0x1111_2222_3333_4444;
    world.handle(ExitReason::Io(IoAccess { port, width, ..IN }), None);
    *world.gpr(Gpr::Rax)
}

/// The console's line goes to vector 0x34; its receive and transmit interrupts are on.
fn with_console() -> World {
    let mut world = World::with_idt();
    world.vm.io_apic.write(0, 0x18);
    world.vm.io_apic.write(0x10, 0x34);
    world.grant(0x34);
    out(&mut world, COM1 + 4, Width::Byte, 8);
    out(&mut world, COM1 + 1, Width::Byte, 1);
    world
}

#[test]
fn a_narrow_input_keeps_the_rest_of_rax_and_a_wide_one_clears_it() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    assert_eq!(input(&mut world, 0x80, Width::Byte), 0x1111_2222_3333_44ff);
    assert_eq!(input(&mut world, 0x80, Width::Word), 0x1111_2222_3333_ffff);
    assert_eq!(input(&mut world, 0x80, Width::Dword), 0xffff_ffff);
    assert_eq!(world.vcpu.state.rip, rip + 3);
}

#[test]
fn what_is_written_to_channel_0_of_the_pit_reaches_the_machines_only_from_the_guest_that_has_its_line()
 {
    for has_line in [false, true] {
        let mut world = World::with_idt();
        if has_line {
            world.machine.owned.add_pit();
            world.vm.lines.push(Line { input: 2, gsi: pit::GSI, active_low: false });
        }
        world.order();
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x43, 0xb4), (0x42, 1)] {
            out(&mut world, port, Width::Byte, value);
        }
        let own = [(PitRegister::Control, 0x34), (PitRegister::Channel0, 0x9c)];
        let own = own.map(|(register, value)| Done::Pit(register, value));
        assert_eq!(world.order(), own.iter().filter(|_| has_line).copied().collect::<Vec<_>>());
    }
}

#[test]
fn what_the_guest_prints_comes_out() {
    let mut world = with_console();
    for byte in b"hi" {
        out(&mut world, COM1, Width::Byte, u32::from(*byte) | 0xaa00);
    }
    assert_eq!(world.machine.printed, b"hi");
}

#[test]
fn each_rise_of_the_consoles_line_is_one_interrupt() {
    let mut world = with_console();
    world.machine.typed.extend(b"ab");
    world.handle(ExitReason::Nmi, None);
    assert_eq!(world.machine.self_ipis, [Vector(0x34)]);
    world.handle(ExitReason::Nmi, None);
    assert_eq!(world.machine.self_ipis.len(), 1, "it is still up");
    assert_eq!(input(&mut world, COM1, Width::Byte) & 0xff, b'a'.into());
    assert_eq!(world.machine.self_ipis.len(), 1, "the next byte keeps it up");
    assert_eq!(input(&mut world, COM1, Width::Byte) & 0xff, b'b'.into());
    world.machine.typed.push_back(b'c');
    world.handle(ExitReason::Nmi, None);
    assert_eq!(world.machine.self_ipis.len(), 2, "it fell and rose again");
}

#[test]
fn a_rise_while_the_entry_is_masked_is_delivered_when_it_is_unmasked() {
    let mut world = with_console();
    world.vm.io_apic.write(0x10, 0x1_0034);
    world.machine.typed.push_back(b'a');
    world.handle(ExitReason::Nmi, None);
    assert_eq!(world.machine.self_ipis, []);
    *world.gpr(Gpr::Rax) = 0x34;
    world.touch(&[0x89, 0x03], 0xfec0_0010, true); // mov [rbx], eax: the data register
    assert_eq!(world.machine.self_ipis, [Vector(0x34)]);
}

#[test]
fn the_bus_is_reached_through_its_two_ports() {
    let mut world = World::with_idt();
    out(&mut world, 0xcf8, Width::Dword, 0x8000_2000);
    assert_eq!(input(&mut world, 0xcfc, Width::Dword), 0x1234_8086);
    assert_eq!(input(&mut world, 0xcfe, Width::Word) & 0xffff, 0x1234);
    out(&mut world, 0xcf8, Width::Dword, 0x8000_2800);
    assert_eq!(input(&mut world, 0xcfc, Width::Dword), 0xffff_ffff);
}

#[test]
fn power_ports_end_the_guest() {
    for (port, width, value, outcome) in [
        (0x604, Width::Word, 0x3400, Outcome::PowerOff),
        (0xcf9, Width::Byte, 6, Outcome::Reboot),
        (0x64, Width::Byte, 0xfe, Outcome::Reboot),
        (0x92, Width::Byte, 1, Outcome::Reboot),
    ] {
        let mut world = World::with_idt();
        assert_eq!(output(&mut world, port, width, value), Next::End(outcome), "{port:#x}");
    }
}

mod strings {
    use super::*;

    const REP_INSB: [u8; 2] = [0xf3, 0x6c];
    const REP_OUTSB: [u8; 2] = [0xf3, 0x6e];

    fn string(world: &mut World, code: &[u8], input: bool) {
        let access = IoAccess { input, string: true, repeat: true, instruction_length: 2, ..IN };
        world.execute(code, ExitReason::Io(access));
    }

    #[test]
    fn rep_outs_prints_one_byte_an_exit_until_the_count_is_gone() {
        let mut world = World::with_idt();
        world.put(OPERAND, b"hello");
        (*world.gpr(Gpr::Rsi), *world.gpr(Gpr::Rcx)) = (OPERAND, 5);
        let rip = world.vcpu.state.rip;
        for left in (0..5).rev() {
            string(&mut world, &REP_OUTSB, false);
            assert_eq!(*world.gpr(Gpr::Rcx), left);
            assert_eq!(world.vcpu.state.rip, if left == 0 { rip + 2 } else { rip });
        }
        assert_eq!(world.machine.printed, b"hello");
        assert_eq!(*world.gpr(Gpr::Rsi), OPERAND + 5);
    }

    #[test]
    fn each_iteration_ends_a_step_and_only_the_first_is_a_beginning() {
        let mut world = World::with_idt();
        world.put(OPERAND, b"ab");
        (*world.gpr(Gpr::Rsi), *world.gpr(Gpr::Rcx)) = (OPERAND, 2);
        let rip = world.vcpu.state.rip;
        for (last, after) in [(false, rip), (true, rip + 2)] {
            world.vcpu.interrupt_shadow = true;
            string(&mut world, &REP_OUTSB, false);
            assert!(!world.vcpu.interrupt_shadow, "passed over, by nothing or by all of it");
            let resumes = world.vcpu.state.rflags & Rflags::RF.bits() != 0;
            assert_eq!((world.vcpu.state.rip, resumes), (after, !last));
        }
    }

    #[test]
    fn the_segment_is_looked_at_before_the_port() {
        const LONG: u32 = 1 << 13;
        const DEFAULT_32: u32 = 1 << 14;
        let mut world = World::with_idt();
        let segments = &mut world.vcpu.state.segments;
        let access = &mut segments[SegmentRegister::Cs as usize].access.0;
        *access = *access & !LONG | DEFAULT_32;
        segments[SegmentRegister::Es as usize].limit = OPERAND as u32 - 1;
        world.put(OPERAND, &[7]);
        (*world.gpr(Gpr::Rdi), *world.gpr(Gpr::Rcx)) = (OPERAND, 1);
        string(&mut world, &REP_INSB, true);
        assert_eq!(world.vcpu.injected, Some(Event::exception(exception::GP, Some(0))));
        assert_eq!((*world.gpr(Gpr::Rcx), world.get::<1>(OPERAND)), (1, [7]));
    }

    #[test]
    fn a_program_that_has_the_alignment_checked_loses_no_word_of_a_port() {
        const REP_INSW: [u8; 3] = [0xf3, 0x66, 0x6d];
        const REP_OUTSW: [u8; 3] = [0xf3, 0x66, 0x6f];
        for (code, input) in [(REP_INSW, true), (REP_OUTSW, false)] {
            for (at, fault) in [(OPERAND + 1, true), (OPERAND, false)] {
                let mut world = World::with_idt();
                let state = &mut world.vcpu.state;
                state.cr0 |= Cr0::AM.bits();
                state.rflags |= Rflags::AC.bits();
                world.at_cpl(3);
                world.put(OPERAND, b"abcd");
                (*world.gpr(Gpr::Rsi), *world.gpr(Gpr::Rdi), *world.gpr(Gpr::Rcx)) = (at, at, 1);
                let access = IoAccess { input, width: Width::Word, port: 0x80, ..IN };
                let access = IoAccess { string: true, repeat: true, ..access };
                world.execute(&code, ExitReason::Io(access));
                let expected = fault.then_some(Event::exception(exception::AC, Some(0)));
                assert_eq!(world.vcpu.injected, expected);
                assert_eq!(*world.gpr(Gpr::Rcx), u64::from(fault));
                let read = input && !fault;
                assert_eq!(world.get(OPERAND), if read { *b"\xff\xffcd" } else { *b"abcd" });
            }
        }
    }

    #[test]
    fn nothing_to_repeat_is_skipped() {
        let mut world = World::with_idt();
        (*world.gpr(Gpr::Rsi), *world.gpr(Gpr::Rcx)) = (OPERAND, 0);
        let rip = world.vcpu.state.rip;
        string(&mut world, &REP_OUTSB, false);
        assert_eq!((world.vcpu.state.rip, world.machine.printed.len()), (rip + 2, 0));
        assert_eq!(*world.gpr(Gpr::Rsi), OPERAND);
    }

    #[test]
    fn a_page_fault_loses_no_byte_of_the_port() {
        let mut world = with_console();
        world.machine.typed.extend(b"x");
        world.handle(ExitReason::Nmi, None);
        world.map(0xd000, 0);
        (*world.gpr(Gpr::Rdi), *world.gpr(Gpr::Rcx)) = (0xd000, 1);
        let rip = world.vcpu.state.rip;
        string(&mut world, &REP_INSB, true);
        assert_eq!(world.vcpu.injected, Some(Event::exception(exception::PF, Some(2))));
        assert_eq!((world.vcpu.state.rip, *world.gpr(Gpr::Rcx)), (rip, 1));
        world.map(0xd000, 0xd007);
        string(&mut world, &REP_INSB, true);
        assert_eq!((world.get::<1>(0xd000), *world.gpr(Gpr::Rdi)), (*b"x", 0xd001));
        assert_eq!(world.vcpu.state.rip, rip + 2);
        let entry = u64::from_le_bytes(world.get(TABLE + 0xd * 8));
        assert_eq!(entry, 0xd067, "accessed and dirty");
    }

    #[test]
    fn an_element_beyond_its_segment_is_a_fault_before_its_port_is_accessed() {
        let mut world = with_console();
        let state = &mut world.vcpu.state;
        // 32-bit code in long mode: there segments have limits.
        state.segments[SegmentRegister::Cs as usize].access = AccessRights::CODE32;
        state.segments[SegmentRegister::Ds as usize].limit = OPERAND as u32 - 1;
        (*world.gpr(Gpr::Rsi), *world.gpr(Gpr::Rcx)) = (OPERAND, 1);
        let rip = world.vcpu.state.rip;
        string(&mut world, &REP_OUTSB, false);
        assert_eq!(world.vcpu.injected, Some(Event::exception(exception::GP, Some(0))));
        assert_eq!((world.vcpu.state.rip, *world.gpr(Gpr::Rcx)), (rip, 1));
        assert_eq!(world.machine.printed.len(), 0);
    }

    #[test]
    fn input_into_the_page_of_the_idt_is_seen() {
        let mut world = with_console();
        world.machine.typed.extend(b"\x8e");
        world.handle(ExitReason::Nmi, None);
        let at = IDT + 16 * 0x40 + 5;
        world.put(at, &[0]);
        (*world.gpr(Gpr::Rdi), *world.gpr(Gpr::Rcx)) = (at, 1);
        string(&mut world, &REP_INSB, true);
        assert_eq!((world.get::<1>(at), world.seen(at)), ([OPEN], CLOSED));
    }

    #[test]
    fn a_port_that_passes_into_the_page_of_the_idt_is_the_cpus_to_read() {
        let mut world = World::with_idt();
        world.touch(&REP_INSB, IDT, true);
        assert_eq!((&world.machine.shadow_at[..], world.vcpu.injected), (&[None, None][..], None));
    }
}
