//! Breakpoints on what is accessed here for the guest: a port, or the memory operand of an instruction that has exited.
//! The CPU meets those of an instruction that it executes itself; of one that exits it has met none (SDM "Debug
//! Registers", "I/O Breakpoint"; APM "Breakpoints").
//!
//! The way: [`Context::begin_instruction`] → each access notes what it meets → the instruction is carried out and passed
//! over → [`Context::trap_behind`] has the trap come. What the CPU does by itself, [`super::step`], it meets itself; what it
//! reads and writes of a TSS or a descriptor table is no operand.

use arch::register::Cr4;
use arch::vcpu::{DebugRegisters, Vcpu};
use arch::{Gva, Width};

use crate::vm::{Context, Platform};

/// What a breakpoint of DR7 is for, bit n for R/W = n.
const WRITE: u8 = 1 << 1 | 1 << 3;
const READ: u8 = 1 << 3;
const PORT: u8 = 1 << 2;

impl<P: Platform, V> Context<'_, P, V> {
    /// An instruction is carried out here from its beginning.
    pub(super) fn begin_instruction(&mut self) {
        self.cpu.met = 0;
    }

    /// A port was accessed. Only with CR4.DE are there breakpoints for them.
    #[cold]
    #[inline(never)]
    pub(super) fn note_port(&mut self, port: u16, width: Width) {
        if let Some(registers) = self.vcpu.breakpoints()
            && self.vcpu.cr4() & Cr4::DE.bits() != 0
        {
            self.cpu.met |= met(&registers, PORT, port.into(), width);
        }
    }

    /// An operand in memory was accessed.
    #[inline(always)]
    pub(super) fn note_operand(&mut self, at: Gva, width: Width, write: bool) {
        if let Some(registers) = self.vcpu.breakpoints() {
            let kinds = if write { WRITE } else { READ };
            self.cpu.met |= met(&registers, kinds, at.as_u64(), width);
        }
    }

    /// The instruction is passed over, or one of its iterations: a trap comes behind it for what it has met.
    #[inline(always)]
    pub(super) fn trap_behind(&mut self) {
        if self.cpu.met != 0 {
            self.vcpu.meet_breakpoints(core::mem::take(&mut self.cpu.met));
        }
    }
}

/// Which breakpoints an access of `width` bytes from `first` on meets, bit n for DRn. They are for aligned places (SDM
/// "Breakpoint Field Recognition").
#[cold]
#[inline(never)]
fn met(registers: &DebugRegisters, kinds: u8, first: u64, width: Width) -> u8 {
    const LENGTHS: [u64; 4] = [1, 2, 8, 4];
    let met = |(index, address): (usize, &u64)| {
        let enabled = registers.control >> (2 * index) & 3 != 0;
        let field = registers.control >> (16 + 4 * index);
        let [kind, length] = [field & 3, field >> 2 & 3];
        let length = LENGTHS.get(length as usize).copied().unwrap_or(1);
        let start = address & !(length - 1);
        let overlaps = first.wrapping_sub(start) < length
            || start.wrapping_sub(first) < u64::from(width.bytes());
        u8::from(enabled && kinds >> kind & 1 != 0 && overlaps) << index
    };
    registers.addresses.iter().enumerate().map(met).fold(0, |all, one| all | one)
}
