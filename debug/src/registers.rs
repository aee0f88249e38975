//! A CPU's registers as gdb sees them.

use arch::vcpu::{DebugRegisters, SystemCallMsrs};
use gdbstub::arch::{Arch, Registers as GdbRegisters};
use insn::PagingRegisters;

use crate::fpu::Fxsave;

/// The architecture: x86-64 with its system registers.
#[derive(Debug)]
pub struct X86_64;

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// The registers that a CPU leaves on its mailbox, in the order of `target.xml`. Those before
/// `segments` can be changed, and `fpu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15: gdb's order.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u32,
    /// CS, SS, DS, ES, FS, GS.
    pub segments: [u32; 6],
    /// The FPU's and SSE's.
    pub fpu: Fxsave,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// What says how addresses are translated.
    pub paging: PagingRegisters,
    /// Where the last page fault was.
    pub cr2: u64,
    /// What system calls go by.
    pub calls: SystemCallMsrs,
    /// The guest's own debug registers, for `monitor own`.
    pub debug: DebugRegisters,
}

impl GdbRegisters for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        let words = self.general.iter().copied().chain([self.rip]).flat_map(u64::to_le_bytes);
        let flags_and_segments = [self.rflags].into_iter().chain(self.segments);
        let dwords = flags_and_segments.flat_map(u32::to_le_bytes);
        words.chain(dwords).for_each(|byte| write_byte(Some(byte)));
        self.fpu.stack().for_each(|byte| write_byte(Some(byte)));
        let control = self.fpu.control().into_iter().flat_map(u32::to_le_bytes);
        let vectors = self.fpu.vectors().iter().copied().chain(self.fpu.mxcsr().to_le_bytes());
        control.chain(vectors).for_each(|byte| write_byte(Some(byte)));
        let PagingRegisters { cr0, cr3, cr4, efer } = self.paging;
        let system = self.bases.into_iter().chain([cr0, self.cr2, cr3, cr4, efer]);
        let SystemCallMsrs { star, lstar, cstar, fmask, kernel_gs_base, sysenter } = self.calls;
        let calls = [kernel_gs_base, star, lstar, cstar, fmask].into_iter().chain(sysenter);
        let system = system.chain(calls);
        system.flat_map(u64::to_le_bytes).for_each(|byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        for (to, from) in self.general.iter_mut().chain([&mut self.rip]).zip(bytes.as_chunks().0) {
            *to = u64::from_le_bytes(*from);
        }
        let flags = bytes.get(17 * 8..17 * 8 + 4).and_then(|flags| flags.try_into().ok());
        self.rflags = u32::from_le_bytes(flags.ok_or(())?);
        // Behind the segments.
        bytes.get(164..).and_then(|bytes| self.fpu.set(bytes)).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The widths of `target.xml`, in its order.
    fn widths() -> Vec<usize> {
        let text = X86_64::target_description_xml().unwrap();
        let after = |line: &str| {
            let (_, rest) = line.split_once("bitsize=\"")?;
            rest.split('"').next()?.parse::<usize>().ok()
        };
        text.lines()
            .filter(|line| line.contains("<reg "))
            .map(|line| after(line).unwrap())
            .collect()
    }

    #[test]
    fn as_many_bytes_are_sent_as_the_description_has() {
        let mut sent = 0;
        Registers::default().gdb_serialize(|_| sent += 1);
        assert_eq!(sent * 8, widths().iter().sum::<usize>());
    }

    #[test]
    fn what_gdb_writes_back_is_what_it_read() {
        let before = Registers {
            general: core::array::from_fn(|index| index as u64 * 0x1111),
            rip: 0xffff_ffff_8100_0000,
            rflags: 0x246,
            segments: [0x10, 0x18, 0, 0, 0, 0],
            ..Registers::default()
        };
        let mut bytes = Vec::new();
        before.gdb_serialize(|byte| bytes.push(byte.unwrap_or(0)));
        let mut after = Registers { segments: before.segments, ..Registers::default() };
        after.gdb_deserialize(&bytes).unwrap();
        assert_eq!(after, before);
        assert_eq!(after.gdb_deserialize(&bytes[..100]), Err(()), "cut off");
    }
}
