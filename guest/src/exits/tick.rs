//! The watchdog's call: once a second the host gets the CPU, whatever the guest does.

use core::sync::atomic::Ordering;

use arch::Gva;
use arch::machine::Machine;
use arch::register::Rflags;
use arch::segment::SegmentRegister;
use arch::vcpu::Vcpu;
use insn::Access;

use crate::vm::{Context, Next, Outcome, Platform};

/// So many calls in a row must find a CPU halted with interrupts off before it counts as done.
const CALLS_TO_BE_SURE: u8 = 2;

/// What the last calls saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standstill {
    rip: u64,
    calls: u8,
}

impl<P: Platform, V> Context<'_, P, V> {
    /// HLT exits while an interrupt waits for its window. With IF set that one ends the halt at once. Else the
    /// CPU itself halts: nothing but an NMI, which exits, can wake it.
    pub(super) fn halt(&mut self) {
        const HLT: u8 = 1;
        if self.interrupts_enabled() && self.cpu.apic.pending.next().is_some() {
            self.vcpu.skip_instruction(self.vcpu.instruction_length(HLT));
        } else {
            self.cpu.halting = true;
        }
    }

    fn interrupts_enabled(&self) -> bool {
        self.vcpu.rflags() & Rflags::IF.bits() != 0
    }
}

impl<P: Platform> Context<'_, P> {
    pub(super) fn tick(&mut self) -> Next {
        self.feed_console();
        self.update_uart_line();
        if self.halted_for_good() { self.halted() } else { Next::Resume }
    }

    fn halted(&mut self) -> Next {
        self.vm.standing |= 1 << (self.cpu.index & 63);
        if self.guest.started.load(Ordering::Acquire) & !self.vm.standing != 0 {
            // Another CPU goes on: this one was taken offline.
            return Next::Resume;
        }
        let name = &self.guest.name;
        self.machine.log(format_args!("guest {name}: it halted with interrupts off: it is done"));
        Next::End(Outcome::Halted)
    }

    /// `cli; hlt` is a guest's last word: nothing but an NMI could wake it, and nobody sends one.
    fn halted_for_good(&mut self) -> bool {
        let rip = self.vcpu.rip();
        if self.interrupts_enabled() || !(self.vcpu.halted() || self.behind_hlt()) {
            self.cpu.standstill = Standstill::default();
            self.vm.standing &= !(1 << (self.cpu.index & 63));
            return false;
        }
        let same = self.cpu.standstill.rip == rip;
        let calls = if same { self.cpu.standstill.calls.saturating_add(1) } else { 1 };
        self.cpu.standstill = Standstill { rip, calls };
        calls > CALLS_TO_BE_SURE
    }

    /// Whether the instruction before RIP is HLT: AMD-V has no activity state to ask.
    fn behind_hlt(&self) -> bool {
        const HLT: u8 = 0xf4;
        let base = match insn::Mode::of(self.vcpu) {
            insn::Mode::Bits64 => 0,
            insn::Mode::Bits16 | insn::Mode::Bits32 => self.vcpu.segment(SegmentRegister::Cs).base,
        };
        let before = Gva::new(base.wrapping_add(self.vcpu.rip()).wrapping_sub(1));
        let mut byte = [0];
        let access = Access { write: false, fetch: true, user: self.vcpu.cpl() == 3 };
        let read = insn::read_linear(self.vcpu, self.memory, before, access, &mut byte);
        read.is_ok() && byte == [HLT]
    }
}
