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
}

/// The target description, with AVX's registers or without, in pieces.
pub(crate) const fn description(avx: bool) -> [&'static str; 3] {
    let avx = if avx { include_str!("description/avx.xml") } else { "" };
    [include_str!("description/core.xml"), avx, include_str!("description/system.xml")]
}

/// The upper halves of YMM0 to YMM15.
pub type UpperHalves = [u8; 256];

/// Where the FPU's registers are in what gdb gets, where the upper halves are behind them, and where all ends without those.
const FPU_AT: usize = 164;
const UPPER_AT: usize = FPU_AT + 372;
const END: usize = UPPER_AT + 15 * 8;

/// The registers that a CPU leaves on its mailbox, in the order of the description. Those before
/// `segments` can be changed, and `fpu` and `upper`.
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
    /// Those of AVX; `None` where the guest has not switched them on.
    pub upper: Option<UpperHalves>,
    /// The description has these.
    pub shows_upper: bool,
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
        if self.shows_upper {
            let upper = self.upper.map_or([None; 256], |upper| upper.map(Some));
            upper.into_iter().for_each(&mut write_byte);
        }
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
        let upper = bytes.get(UPPER_AT..).and_then(|upper| upper.first_chunk());
        self.upper = upper.copied().filter(|_| bytes.len() >= END + size_of::<UpperHalves>());
        bytes.get(FPU_AT..).and_then(|bytes| self.fpu.set(bytes)).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The widths of the description, in its order.
    fn widths(avx: bool) -> Vec<usize> {
        let text = description(avx).concat();
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
        for (shows_upper, end) in [(false, END), (true, END + 256)] {
            let mut sent = 0;
            Registers { shows_upper, ..Registers::default() }.gdb_serialize(|_| sent += 1);
            assert_eq!(sent * 8, widths(shows_upper).iter().sum::<usize>());
            assert_eq!(sent, end);
        }
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
        let upper = Some(core::array::from_fn(|index| index as u8));
        let before = Registers { upper, shows_upper: true, ..before };
        bytes.clear();
        before.gdb_serialize(|byte| bytes.push(byte.unwrap_or(0)));
        after.gdb_deserialize(&bytes).unwrap();
        assert_eq!(after.upper, upper);
        assert_eq!(after.gdb_deserialize(&bytes[..100]), Err(()), "cut off");
    }
}
