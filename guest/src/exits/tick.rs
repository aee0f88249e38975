//! The watchdog's tick: once a second the host gets the CPU, whatever the guest does.

use core::sync::atomic::Ordering;

use arch::Gva;
use arch::machine::Machine;
use arch::register::{Gpr, Rflags};
use arch::segment::SegmentRegister;
use arch::vcpu::Vcpu;
use insn::Access;

use crate::vm::{Context, Next, Outcome, Platform};

/// Ticks in a row that must find a CPU halted with interrupts off before it counts as halted for good.
const MIN_HALTED_TICKS: u8 = 2;
/// Milliseconds between two that count. A key and the monitor call the host, too, and between two calls that are close the
/// guest may not have moved.
const MIN_BETWEEN: u64 = 500;

/// What the last ticks saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HaltDetector {
    rip: u64,
    registers: [u64; 16],
    calls: u8,
    /// The TSC at the last that counted.
    counted: u64,
}

impl<P: Platform, V> Context<'_, P, V> {
    /// HLT exits while an interrupt waits for its window. With IF set that one ends the halt at once. Else the
    /// CPU itself halts: nothing but an NMI, which exits, can wake it.
    pub(super) fn halt(&mut self) {
        const HLT: u8 = 1;
        let waits = self.cpu.legacy_waits || self.cpu.apic.pending.next().is_some();
        if self.interrupts_enabled() && waits {
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
        self.legacy_tick();
        self.look_for_waits();
        if self.halted_for_good() { self.halted() } else { Next::Resume }
    }

    fn halted(&mut self) -> Next {
        self.vm.halted_cpus |= 1 << (self.cpu.index & 63);
        if self.guest.started.load(Ordering::Acquire) & !self.vm.halted_cpus != 0 {
            // Another CPU goes on: this one was taken offline.
            return Next::Resume;
        }
        let name = &self.guest.name;
        self.machine
            .log(format_args!("guest {name}: it halted with interrupts off on all its CPUs"));
        Next::End(Outcome::Halted)
    }

    /// `cli; hlt` ends a guest: only an NMI could wake it, and nobody sends one.
    fn halted_for_good(&mut self) -> bool {
        let (rip, registers) = (self.vcpu.rip(), Gpr::ALL.map(|register| self.vcpu.gpr(register)));
        let halted = self.vcpu.halted().unwrap_or_else(|| self.behind_hlt());
        if self.interrupts_enabled() || !halted {
            self.cpu.halt_detector = HaltDetector::default();
            self.vm.halted_cpus &= !(1 << (self.cpu.index & 63));
            return false;
        }
        let (now, khz) = (self.machine.tsc(), self.machine.tsc_khz().max(1));
        let last = self.cpu.halt_detector;
        // Who only runs behind a HLT is elsewhere sooner or later, or computes.
        let again = last.calls > 0 && (last.rip, last.registers) == (rip, registers);
        if again && now.wrapping_sub(last.counted) / khz < MIN_BETWEEN {
            return false;
        }
        let calls = if again { last.calls.saturating_add(1) } else { 1 };
        self.cpu.halt_detector = HaltDetector { rip, registers, calls, counted: now };
        calls > MIN_HALTED_TICKS
    }

    /// Whether the instruction before RIP may be HLT, which no program can execute.
    fn behind_hlt(&self) -> bool {
        const HLT: u8 = 0xf4;
        let mut byte = [0];
        self.vcpu.cpl() == 0
            && self.code_from(self.vcpu.rip().wrapping_sub(1), &mut byte)
            && byte == [HLT]
    }

    /// Reads what is in the code segment at `offset`; `false` where nothing can be read.
    pub(super) fn code_from(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let base = match insn::Mode::of(self.vcpu) {
            insn::Mode::Bits64 => 0,
            insn::Mode::Bits16 | insn::Mode::Bits32 => self.vcpu.segment(SegmentRegister::Cs).base,
        };
        let at = Gva::new(base.wrapping_add(offset));
        let access = Access { write: false, fetch: true, user: self.vcpu.cpl() == 3 };
        insn::read_linear(self.vcpu, self.memory, at, access, bytes).is_ok()
    }
}
