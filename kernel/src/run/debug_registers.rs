//! The debug registers of a virtual CPU whose guest gdb looks at: gdb's breakpoints are in the CPU, and the guest moves to and
//! from what it had there (`debug::own`).

use arch::register::Cr4;
use arch::vcpu::{DebugRegisters, Event, Vcpu, exception};
use debug::Stop;
use debug::own::{Kept, Move, Mover, Refused};

use super::Running;
use super::debugged::Step;
use crate::backend::Backend;
use crate::console::log_of;

impl<B: Backend> Running<'_, B> {
    /// Puts gdb's breakpoints in the debug registers, or the guest's own back.
    pub(super) fn place(&mut self, breakpoints: Option<DebugRegisters>) {
        let own = self.debugger.kept.map(|kept| kept.own);
        let next = breakpoints.or(own);
        self.debugger.kept = breakpoints.map(|placed| {
            let own = own.unwrap_or_else(|| self.vcpu.debug_registers());
            Kept { placed, own }
        });
        if let Some(registers) = next {
            self.vcpu.set_debug_registers(&registers);
            self.vcpu.watch_debug_registers(breakpoints.is_some());
        }
    }

    /// What the guest has there.
    pub(super) fn own_debug_registers(&self) -> DebugRegisters {
        self.debugger.kept.map_or_else(|| self.vcpu.debug_registers(), |kept| kept.own)
    }

    /// Why the CPU is to stand after a debug exception; `None` where that is the guest's.
    pub(super) fn met(&mut self, conditions: u64) -> Option<Stop> {
        let kept = self.debugger.kept.as_mut()?;
        match kept.met(conditions) {
            0 if Kept::stepped(conditions) => {}
            0 => {
                if let Some(rip) = self.met_patch() {
                    self.vcpu.set_rip(rip);
                    return Some(Stop::Patch);
                }
            }
            _ if matches!(self.debugger.step, Step::To(_)) => return Some(Stop::Step),
            met => return Some(Stop::Breakpoint(met)),
        }
        let kept = self.debugger.kept.as_mut()?;
        kept.take_status(conditions);
        self.vcpu.set_debug_registers(&kept.placed);
        None
    }

    /// Where the INT1 is that the CPU has executed, if gdb has put it there.
    fn met_patch(&self) -> Option<u64> {
        let rip = self.vcpu.rip().wrapping_sub(1);
        let gpa = self.paging().translate(&self.ram, self.linear_of(rip)).ok()?;
        self.debugger.patches.has(gpa).then_some(rip)
    }

    /// The guest stands at a move to or from a debug register.
    pub(super) fn access_debug_register(&mut self) {
        let bits64 = insn::Mode::of(&self.vcpu) == insn::Mode::Bits64;
        let Some(kept) = self.debugger.kept.as_mut() else { return };
        let Ok((code, length)) = insn::fetch_instruction(&self.vcpu, &self.ram) else { return };
        let it = Move::decode(code.get(..length).unwrap_or_default(), bits64);
        let Some(it) = it else { return };
        let extensions = self.vcpu.cr4() & Cr4::DE.bits() != 0;
        let who = Mover { bits64, cpl: self.vcpu.cpl(), extensions };
        let waited = kept.waits();
        match kept.carry_out(it, self.vcpu.gpr(it.general), who) {
            Ok(value) => {
                self.vcpu.set_gpr(it.general, value);
                self.vcpu.skip_instruction(it.length);
            }
            Err(Refused::InvalidOpcode) => self.vcpu.inject(Event::exception(exception::UD, None)),
            Err(Refused::GeneralProtection) => {
                self.vcpu.inject(Event::exception(exception::GP, Some(0)));
            }
            Err(Refused::Detected) => self.vcpu.inject(Event::exception(exception::DB, None)),
        }
        if kept.waits() && !waited && !self.debugger.said {
            self.debugger.said = true;
            let (name, cpu) = (&self.instance.policy.name, self.debugger.cpu);
            log_of(
                self.partition.index(),
                format_args!(
                    "guest {name}: CPU {cpu} sets breakpoints of its own: they wait until gdb has none"
                ),
            );
        }
    }
}
