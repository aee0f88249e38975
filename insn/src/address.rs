//! Effective and linear addresses of an instruction's operands
//! (SDM "Operand Addressing"; 16-, 32- and 64-bit forms).

use arch::register::{Gpr, Rflags};
use arch::segment::SegmentRegister;
use arch::vcpu::Vcpu;
use arch::{Gva, Width};

use crate::instruction::{Base, Instruction, Mode, Operation, Source};

impl Instruction {
    /// Linear address of the memory operand, with the registers as they are before the
    /// instruction. For string instructions take [`Self::source`] and [`Self::destination`].
    #[must_use]
    pub fn linear_address<V: Vcpu>(&self, vcpu: &V) -> Gva {
        let address = &self.address;
        let base = match address.base {
            Base::None => 0,
            Base::Register(register) => vcpu.gpr(register),
            Base::NextInstruction => vcpu.rip().wrapping_add(u64::from(self.length)),
        };
        let index = address.index.map_or(0, |register| vcpu.gpr(register));
        let offset = base
            .wrapping_add(index.wrapping_mul(u64::from(address.scale)))
            .wrapping_add(address.displacement.cast_unsigned())
            .wrapping_add(self.bit_displacement(vcpu));
        self.linear(vcpu, address.segment, offset)
    }

    /// BT and its kin with a register reach beyond the operand: the signed bit number selects
    /// another operand-sized word (SDM "Bit(BitBase, BitOffset)").
    fn bit_displacement<V: Vcpu>(&self, vcpu: &V) -> u64 {
        let Operation::Bit { offset: Source::Register(register), .. } = self.operation else {
            return 0;
        };
        let bytes = u32::from(self.width.bytes());
        let unused = 64 - bytes * 8;
        let number = (register.get(vcpu, self.width) << unused).cast_signed() >> unused;
        let words = number >> (bytes * 8).ilog2();
        (words << bytes.ilog2()).cast_unsigned()
    }

    /// Linear address of the source of MOVS and OUTS.
    #[must_use]
    pub fn source<V: Vcpu>(&self, vcpu: &V) -> Gva {
        self.linear(vcpu, self.address.segment, vcpu.gpr(Gpr::Rsi))
    }

    /// Linear address of the destination of MOVS, STOS and INS.
    #[must_use]
    pub fn destination<V: Vcpu>(&self, vcpu: &V) -> Gva {
        self.linear(vcpu, SegmentRegister::Es, vcpu.gpr(Gpr::Rdi))
    }

    /// Segment base plus `offset`, the latter cut to the address size.
    fn linear<V: Vcpu>(&self, vcpu: &V, segment: SegmentRegister, offset: u64) -> Gva {
        let offset = offset & self.address.size.mask();
        let has_base = matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs);
        if self.mode == Mode::Bits64 {
            let base = if has_base { vcpu.segment(segment).base } else { 0 };
            Gva::new(base.wrapping_add(offset))
        } else {
            let linear = vcpu.segment(segment).base.wrapping_add(offset);
            Gva::new(linear & Width::Dword.mask())
        }
    }

    /// How often a string instruction is still to run: 1 without REP, else the counter.
    #[must_use]
    pub fn iterations<V: Vcpu>(&self, vcpu: &V) -> u64 {
        if self.repeat { vcpu.gpr(Gpr::Rcx) & self.address.size.mask() } else { 1 }
    }

    /// Moves the index registers and the counter of a string instruction over `done` iterations
    /// (no more than [`Self::iterations`]). `true` when the instruction is finished and may be
    /// skipped; otherwise it is to be run again where it stands.
    pub fn advance<V: Vcpu>(&self, vcpu: &mut V, done: u64) -> bool {
        let distance = done.wrapping_mul(u64::from(self.width.bytes()));
        let down = vcpu.rflags() & Rflags::DF.bits() != 0;
        let distance = if down { distance.wrapping_neg() } else { distance };
        if matches!(self.operation, Operation::Movs | Operation::Outs) {
            self.add_index(vcpu, Gpr::Rsi, distance);
        }
        if matches!(self.operation, Operation::Movs | Operation::Stos | Operation::Ins) {
            self.add_index(vcpu, Gpr::Rdi, distance);
        }
        if self.repeat {
            self.add_index(vcpu, Gpr::Rcx, done.wrapping_neg());
        }
        !self.repeat || self.iterations(vcpu) == 0
    }

    fn add_index<V: Vcpu>(&self, vcpu: &mut V, gpr: Gpr, distance: u64) {
        let register = crate::Register { gpr, high: false };
        let sum = vcpu.gpr(gpr).wrapping_add(distance);
        register.set(vcpu, self.address.size, sum);
    }
}
