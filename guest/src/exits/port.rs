//! Port accesses: the PCI bus, then the devices that every PC has, else nothing.

use arch::Width;
use arch::exit::IoAccess;
use arch::machine::Machine;
use arch::register::Gpr;
use arch::vcpu::Vcpu;
use insn::Operation;

use super::access::{self, Operand, Refused};
use crate::devices::{Devices, PortEffect, pic, uart};
use crate::vm::{Context, Next, Outcome, Platform};

impl<P: Platform> Context<'_, P> {
    pub(super) fn port(&mut self, access: IoAccess) -> Next {
        if access.string {
            return self.port_string(access).unwrap_or_else(|refused| self.refused(refused));
        }
        let mut effect = PortEffect::None;
        if access.input {
            let value = self.port_in(access.port, access.width);
            let accumulator = insn::Register { gpr: Gpr::Rax, high: false };
            accumulator.set(self.vcpu, access.width, u64::from(value));
        } else {
            let value = self.vcpu.gpr(Gpr::Rax) & access.width.mask();
            effect = self.port_out(access.port, access.width, value as u32);
        }
        self.vcpu.skip_instruction(access.instruction_length);
        if self.vcpu.breakpoints_on() {
            self.begin_instruction();
            self.note_port(access.port, access.width);
            self.trap_behind();
        }
        self.after_port(access.port);
        // The frequent ports have none.
        if effect == PortEffect::None { Next::Resume } else { self.port_effect(effect) }
    }

    /// INS and OUTS, one element per exit: REP leaves RIP where it is until the last. Memory is
    /// looked at first: a port that was read before a page fault would have lost its byte.
    fn port_string(&mut self, access: IoAccess) -> Result<Next, Refused> {
        let instruction = access::fetch(self.vcpu, self.memory)?;
        self.begin_instruction();
        let own = if access.input { Operation::Ins } else { Operation::Outs };
        if instruction.operation != own {
            return Err(Refused::Another);
        }
        let mut effect = PortEffect::None;
        let elements = instruction.iterations(self.vcpu).min(1);
        if elements > 0 {
            // The exit came before the CPU has looked at the segment.
            let check = if access.input {
                instruction.check_destination(self.vcpu)
            } else {
                instruction.check_source(self.vcpu)
            };
            check.map_err(|event| Refused::Fault(event, None))?;
        }
        if elements > 0 && access.input {
            let at = instruction.destination(self.vcpu);
            let place = Operand::find(self, at, access.width, true)?;
            let value = self.port_in(access.port, access.width);
            place.write(self, value.into());
        } else if elements > 0 {
            let at = instruction.source(self.vcpu);
            let place = Operand::find(self, at, access.width, false)?;
            let value = place.read(self);
            effect = self.port_out(access.port, access.width, value as u32);
        }
        let finished = elements == 0 || instruction.advance(self.vcpu, elements);
        access::leave_string(self.vcpu, &instruction, finished);
        if elements > 0 {
            self.note_port(access.port, access.width);
        }
        self.trap_behind();
        self.after_port(access.port);
        Ok(self.port_effect(effect))
    }

    fn port_in(&mut self, port: u16, width: Width) -> u32 {
        match self.vm.bus.port_read(self.config, port, width) {
            Some(value) => value,
            None => self.vm.devices.read(port, width, self.machine),
        }
    }

    fn port_out(&mut self, port: u16, width: Width, value: u32) -> PortEffect {
        if self.with_bus(|bus, host| bus.port_write(host, port, width, value)) {
            PortEffect::None
        } else if Devices::registers(port, width) == 1 {
            self.vm.devices.write(port, width, value, self.machine)
        } else {
            self.wide_out(port, width, value)
        }
    }

    /// Registers one behind the other, each with what it comes to: so the machine's PIT takes the bytes that the guest's has
    /// taken. What ends the guest is left to the caller.
    #[cold]
    #[inline(never)]
    fn wide_out(&mut self, port: u16, width: Width, value: u32) -> PortEffect {
        for (index, byte) in (0..Devices::registers(port, width)).zip(value.to_le_bytes()) {
            let port = port.wrapping_add(index);
            let effect = self.vm.devices.write(port, Width::Byte, byte.into(), self.machine);
            if let PortEffect::PowerOff | PortEffect::Reboot = effect {
                return effect;
            }
            let next = self.port_effect(effect);
            debug_assert_eq!(next, Next::Resume);
        }
        PortEffect::None
    }

    fn port_effect(&mut self, effect: PortEffect) -> Next {
        match effect {
            PortEffect::None => {}
            PortEffect::Transmit(byte) => self.machine.console_write(byte),
            PortEffect::Timer(register, value) => {
                if self.has_pit() {
                    // Before the machine's PIT ticks too often, or after it is loaded.
                    self.stop_frequent_ticks();
                    self.machine.pit_write(register, value);
                    self.serve_8259s();
                }
            }
            PortEffect::PowerOff => return Next::End(Outcome::PowerOff),
            PortEffect::Reboot => return Next::End(Outcome::Reboot),
        }
        Next::Resume
    }

    fn after_port(&mut self, port: u16) {
        if uart::PORTS.contains(port) {
            self.feed_console();
            self.update_uart_line();
        } else if pic::is_port(port) {
            self.serve_8259s();
        }
    }

    /// Gives the console what was typed.
    pub(super) fn feed_console(&mut self) {
        while self.vm.devices.uart.can_receive() {
            match self.machine.console_read() {
                Some(byte) => self.vm.devices.uart.receive(byte),
                None => break,
            }
        }
    }

    /// Passes a change of the console's interrupt line on to the I/O APIC and the 8259s: it is an edge-triggered
    /// ISA line.
    pub(super) fn update_uart_line(&mut self) {
        let line = self.vm.devices.uart.interrupt();
        let before = core::mem::replace(&mut self.vm.uart_line, line);
        if line && !before {
            self.raise_line(uart::GSI);
        }
        if line != before {
            self.vm.devices.set_line(uart::GSI as u8, line);
            self.serve_8259s();
        }
    }
}
