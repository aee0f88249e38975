//! Effective and linear addresses of an instruction's operands
//! (SDM "Operand Addressing"; 16-, 32- and 64-bit forms).

use arch::register::{Cr0, Cr4, Gpr, Rflags};
use arch::segment::SegmentRegister;
use arch::vcpu::{Event, Vcpu, exception};
use arch::{Gva, Width};

use crate::instruction::{Base, Instruction, Mode, Operation, Source};

impl Instruction {
    /// Linear address of the memory operand, with the registers as they are before the
    /// instruction. For string instructions take [`Self::source`] and [`Self::destination`].
    #[must_use]
    pub fn linear_address<V: Vcpu>(&self, vcpu: &V) -> Gva {
        self.linear(vcpu, self.address.segment, self.offset(vcpu))
    }

    fn offset<V: Vcpu>(&self, vcpu: &V) -> u64 {
        let address = &self.address;
        let base = match address.base {
            Base::None => 0,
            Base::Register(register) => vcpu.gpr(register),
            Base::NextInstruction => vcpu.rip().wrapping_add(u64::from(self.length)),
        };
        let index = address.index.map_or(0, |register| vcpu.gpr(register));
        base.wrapping_add(index.wrapping_mul(u64::from(address.scale)))
            .wrapping_add(address.displacement.cast_unsigned())
            .wrapping_add(self.bit_displacement(vcpu))
    }

    /// Whether the segment of the memory operand has its `bytes` bytes, and lets them be read or written; else the
    /// exception (SDM "Segment Limit Checking", "Type Checking", "Canonical Addressing"). The CPU has asked itself
    /// before an access that exits, but not before an instruction that does, as INS and OUTS, and of a repeated one only
    /// for the element that exited. Behind it the alignment is looked at, for which the same holds.
    ///
    /// # Errors
    /// The exception.
    pub fn check_segment<V: Vcpu>(&self, vcpu: &V, bytes: u64, write: bool) -> Result<(), Event> {
        self.check(vcpu, self.address.segment, self.offset(vcpu), bytes, write)
    }

    /// [`Self::check_segment`] for the next element that MOVS or OUTS reads.
    ///
    /// # Errors
    /// The exception.
    pub fn check_source<V: Vcpu>(&self, vcpu: &V) -> Result<(), Event> {
        let bytes = self.width.bytes().into();
        self.check(vcpu, self.address.segment, vcpu.gpr(Gpr::Rsi), bytes, false)
    }

    /// The same for the one that MOVS, STOS or INS writes.
    ///
    /// # Errors
    /// The exception.
    pub fn check_destination<V: Vcpu>(&self, vcpu: &V) -> Result<(), Event> {
        let bytes = self.width.bytes().into();
        self.check(vcpu, SegmentRegister::Es, vcpu.gpr(Gpr::Rdi), bytes, true)
    }

    fn check<V: Vcpu>(
        &self,
        vcpu: &V,
        register: SegmentRegister,
        offset: u64,
        bytes: u64,
        write: bool,
    ) -> Result<(), Event> {
        const NOT_USABLE: u32 = 1 << 16;
        const PRESENT: u32 = 1 << 7;
        const CODE: u32 = 1 << 3;
        const EXPAND_DOWN: u32 = 1 << 2;
        const WRITABLE_OR_READABLE: u32 = 1 << 1;
        let stack = register == SegmentRegister::Ss;
        let refused = if stack { exception::SS } else { exception::GP };
        let refused = Err(Event::exception(refused, Some(0)));
        let last = bytes.saturating_sub(1);
        let may_be = if self.mode == Mode::Bits64 {
            let five_levels = vcpu.cr4() & Cr4::LA57.bits() != 0;
            let first = self.linear(vcpu, register, offset).as_u64();
            let both = [first, first.wrapping_add(last)];
            both.into_iter().all(|at| crate::canonical(at, five_levels))
        } else {
            let segment = vcpu.segment(register);
            let access = segment.access.0;
            if access & NOT_USABLE != 0 || access & PRESENT == 0 {
                return refused;
            }
            let code = access & CODE != 0;
            let real = vcpu.cr0() & Cr0::PE.bits() == 0 || vcpu.rflags() & Rflags::VM.bits() != 0;
            let may = if write {
                !code && access & WRITABLE_OR_READABLE != 0
            } else {
                !code || access & WRITABLE_OR_READABLE != 0
            };
            let first = offset & self.address.size.mask();
            let (last, limit) = (first + last, u64::from(segment.limit));
            let within = if !code && access & EXPAND_DOWN != 0 {
                let top = if segment.access.default_32() { Width::Dword } else { Width::Word };
                first > limit && last <= top.mask()
            } else {
                last <= limit
            };
            (may || real) && within
        };
        if !may_be {
            return refused;
        }
        // A pseudo-descriptor is a word and an address behind it; vector registers are the CPU's to look at (SDM
        // "Alignment Checking").
        let (offset, bytes) = match bytes {
            6 | 10 => (offset.wrapping_add(2), bytes - 2),
            _ => (offset, bytes),
        };
        let checked = vcpu.cpl() == 3
            && vcpu.cr0() & Cr0::AM.bits() != 0
            && vcpu.rflags() & Rflags::AC.bits() != 0;
        let at = self.linear(vcpu, register, offset).as_u64();
        if checked && bytes <= 8 && !at.is_multiple_of(bytes) {
            return Err(Event::exception(exception::AC, Some(0)));
        }
        Ok(())
    }

    /// BT and its kin with a register reach beyond the operand: the signed bit number selects
    /// another operand-sized word (SDM "Bit(BitBase, BitOffset)").
    fn bit_displacement<V: Vcpu>(&self, vcpu: &V) -> u64 {
        let Operation::Bit { offset: Source::Register(register), .. } = self.operation else {
            return 0;
        };
        let bytes = u32::from(self.width.bytes());
        let number = self.width.sign_extend(register.get(vcpu, self.width));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;
    use crate::fake::FakeVcpu;
    use arch::segment::Segment;

    fn vcpu(mode: Mode) -> FakeVcpu {
        let mut vcpu = FakeVcpu::new(mode);
        vcpu.segments[SegmentRegister::Ds as usize].base = 0x1_0000;
        vcpu.segments[SegmentRegister::Ss as usize].base = 0x2_0000;
        vcpu.segments[SegmentRegister::Es as usize].base = 0x3_0000;
        vcpu.segments[SegmentRegister::Gs as usize].base = 0xffff_8000_0000_0000;
        vcpu
    }

    fn linear(vcpu: &FakeVcpu, mode: Mode, bytes: &[u8]) -> u64 {
        decode(bytes, mode).unwrap().linear_address(vcpu).as_u64()
    }

    #[test]
    fn sixteen_bit_offsets_wrap_within_their_segment() {
        let mut vcpu = vcpu(Mode::Bits16);
        vcpu.gpr[Gpr::Rbp as usize] = 0xffff_fff0;
        vcpu.gpr[Gpr::Rsi as usize] = 0x20;
        // mov [bp+si+1], al
        assert_eq!(linear(&vcpu, Mode::Bits16, &[0x88, 0x42, 0x01]), 0x2_0011);
        // lidt [0x1234], as a trampoline does
        assert_eq!(linear(&vcpu, Mode::Bits16, &[0x0f, 0x01, 0x1e, 0x34, 0x12]), 0x1_1234);
    }

    #[test]
    fn outside_64_bit_mode_linear_addresses_are_32_bits_wide() {
        let mut vcpu = vcpu(Mode::Bits32);
        vcpu.gpr[Gpr::Rax as usize] = 0xffff_ffff;
        // mov [eax], al
        assert_eq!(linear(&vcpu, Mode::Bits32, &[0x88, 0x00]), 0xffff);
    }

    #[test]
    fn only_fs_and_gs_have_a_base_in_64_bit_mode() {
        let mut vcpu = vcpu(Mode::Bits64);
        vcpu.gpr[Gpr::Rax as usize] = 0x10;
        assert_eq!(linear(&vcpu, Mode::Bits64, &[0x36, 0x88, 0x00]), 0x10);
        assert_eq!(linear(&vcpu, Mode::Bits64, &[0x65, 0x88, 0x00]), 0xffff_8000_0000_0010);
    }

    #[test]
    fn rip_relative_counts_from_behind_the_immediate() {
        let mut vcpu = vcpu(Mode::Bits64);
        vcpu.rip = 0x1000;
        // mov dword [rip-1], 0x44332211
        let bytes = [0xc7, 0x05, 0xff, 0xff, 0xff, 0xff, 0x11, 0x22, 0x33, 0x44];
        assert_eq!(linear(&vcpu, Mode::Bits64, &bytes), 0x1009);
    }

    #[test]
    fn bit_numbers_in_registers_reach_other_words() {
        let mut vcpu = vcpu(Mode::Bits64);
        vcpu.gpr[Gpr::Rax as usize] = 0x1000;
        // bts [rax], ecx
        for (number, at) in [(0, 0x1000), (31, 0x1000), (32, 0x1004), (-1, 0xffc), (-33, 0xff8)] {
            vcpu.gpr[Gpr::Rcx as usize] = i64::cast_unsigned(number);
            assert_eq!(linear(&vcpu, Mode::Bits64, &[0x0f, 0xab, 0x08]), at, "bit {number}");
        }
    }

    #[test]
    fn a_segment_refuses_what_it_does_not_hold() {
        let mut vcpu = vcpu(Mode::Bits32);
        let check = |vcpu: &FakeVcpu, bytes: &[u8], write| {
            let instruction = decode(bytes, Mode::Bits32).unwrap();
            instruction.check_segment(vcpu, 6, write).map_err(|event| event.vector.0)
        };
        let (sidt, on_stack, in_code): (&[u8], &[u8], &[u8]) =
            (&[0x0f, 0x01, 0x08], &[0x0f, 0x01, 0x0c, 0x24], &[0x2e, 0x0f, 0x01, 0x08]);
        vcpu.gpr[Gpr::Rax as usize] = 0xffff_fffa;
        assert_eq!(check(&vcpu, sidt, true), Ok(()));
        vcpu.gpr[Gpr::Rax as usize] += 1;
        assert_eq!(check(&vcpu, sidt, true), Err(13), "it would wrap");
        vcpu.gpr[Gpr::Rax as usize] = 0x10;
        let ds = SegmentRegister::Ds as usize;
        vcpu.segments[ds].limit = 0x15;
        assert_eq!(check(&vcpu, sidt, true), Ok(()));
        vcpu.segments[ds].limit = 0x14;
        assert_eq!(check(&vcpu, sidt, true), Err(13));
        vcpu.segments[ds].access.0 |= 1 << 2; // expand-down
        assert_eq!(check(&vcpu, sidt, true), Err(13));
        vcpu.segments[ds].limit = 0xf;
        assert_eq!(check(&vcpu, sidt, true), Ok(()));
        vcpu.segments[ds].access.0 &= !2; // read-only
        assert_eq!((check(&vcpu, sidt, true), check(&vcpu, sidt, false)), (Err(13), Ok(())));
        vcpu.segments[ds] = Segment::NULL;
        assert_eq!(check(&vcpu, sidt, false), Err(13));
        assert_eq!((check(&vcpu, in_code, true), check(&vcpu, in_code, false)), (Err(13), Ok(())));
        vcpu.gpr[Gpr::Rsp as usize] = 0x100;
        assert_eq!(check(&vcpu, on_stack, true), Ok(()));
        vcpu.segments[SegmentRegister::Ss as usize].limit = 0x104;
        assert_eq!(check(&vcpu, on_stack, true), Err(12));
    }

    /// What INS or OUTS is refused with.
    fn check_ports(vcpu: &FakeVcpu, bytes: &[u8], mode: Mode) -> Result<(), u8> {
        let instruction = decode(bytes, mode).unwrap();
        let ins = instruction.operation == Operation::Ins;
        let checked =
            if ins { instruction.check_destination(vcpu) } else { instruction.check_source(vcpu) };
        checked.map_err(|event| event.vector.0)
    }

    #[test]
    fn ports_strings_are_written_through_es_and_read_through_any_segment() {
        let mut vcpu = vcpu(Mode::Bits32);
        let check = |vcpu: &FakeVcpu, bytes: &[u8]| check_ports(vcpu, bytes, Mode::Bits32);
        let (insw, outsw, outsw_es): (&[u8], &[u8], &[u8]) =
            (&[0x66, 0x6d], &[0x66, 0x6f], &[0x26, 0x66, 0x6f]);
        let es = SegmentRegister::Es as usize;
        vcpu.segments[es].limit = 0xf;
        for (at, refused) in [(0xe, false), (0xf, true)] {
            (vcpu.gpr[Gpr::Rdi as usize], vcpu.gpr[Gpr::Rsi as usize]) = (at, at);
            let of_es = if refused { Err(13) } else { Ok(()) };
            assert_eq!((check(&vcpu, insw), check(&vcpu, outsw_es)), (of_es, of_es), "{at:#x}");
            assert_eq!(check(&vcpu, outsw), Ok(()));
        }
        vcpu.gpr[Gpr::Rdi as usize] = 0;
        vcpu.segments[es].access.0 &= !2; // read-only
        assert_eq!((check(&vcpu, insw), check(&vcpu, outsw)), (Err(13), Ok(())));
    }

    #[test]
    fn a_string_has_its_element_where_its_index_register_points() {
        let mut vcpu = vcpu(Mode::Bits16);
        let check = |vcpu: &FakeVcpu, bytes: &[u8]| check_ports(vcpu, bytes, Mode::Bits16);
        let (insw, outsw, of_stack): (&[u8], &[u8], &[u8]) =
            (&[0x6d], &[0x67, 0x6f], &[0x36, 0x6f]);
        for segment in [SegmentRegister::Es, SegmentRegister::Ds, SegmentRegister::Ss] {
            vcpu.segments[segment as usize].limit = 0xffff;
        }
        vcpu.gpr[Gpr::Rdi as usize] = 0xfffe;
        assert_eq!(check(&vcpu, insw), Ok(()));
        vcpu.gpr[Gpr::Rdi as usize] = 0xffff;
        assert_eq!(check(&vcpu, insw), Err(13));
        vcpu.gpr[Gpr::Rsi as usize] = 0x1_0000;
        assert_eq!(check(&vcpu, outsw), Err(13));
        assert_eq!(check(&vcpu, of_stack), Ok(()), "16 bits of it count");
        vcpu.gpr[Gpr::Rsi as usize] = 0xffff;
        assert_eq!(check(&vcpu, of_stack), Err(12));
    }

    #[test]
    fn programs_that_have_it_checked_access_what_is_aligned() {
        let mut vcpu = vcpu(Mode::Bits32);
        for segment in [SegmentRegister::Ds, SegmentRegister::Es] {
            vcpu.segments[segment as usize].base = 0x1_0002;
        }
        vcpu.cr[0] |= Cr0::AM.bits();
        (vcpu.rflags, vcpu.cpl) = (vcpu.rflags | Rflags::AC.bits(), 3);
        // At linear addresses 0, 1, 2 and 3 behind a multiple of 4.
        let refused = |vcpu: &mut FakeVcpu, bytes: &[u8], operand| {
            [2, 3, 4, 5].map(|at| {
                for gpr in [Gpr::Rsi, Gpr::Rdi, Gpr::Rax] {
                    vcpu.gpr[gpr as usize] = at;
                }
                let checked = match operand {
                    0 => check_ports(vcpu, bytes, Mode::Bits32),
                    bytes_of_operand => {
                        let instruction = decode(bytes, Mode::Bits32).unwrap();
                        let checked = instruction.check_segment(vcpu, bytes_of_operand, true);
                        checked.map_err(|event| event.vector.0)
                    }
                };
                assert!(matches!(checked, Ok(()) | Err(17)), "{checked:?}");
                checked.is_err()
            })
        };
        let (outsb, insw, outsd): (&[u8], &[u8], &[u8]) = (&[0x6e], &[0xf3, 0x66, 0x6d], &[0x6f]);
        let (sidt, movups): (&[u8], &[u8]) = (&[0x0f, 0x01, 0x08], &[0x0f, 0x11, 0x10]);
        assert_eq!(refused(&mut vcpu, outsb, 0), [false; 4]);
        assert_eq!(refused(&mut vcpu, insw, 0), [false, true, false, true]);
        assert_eq!(refused(&mut vcpu, outsd, 0), [false, true, true, true]);
        assert_eq!(refused(&mut vcpu, sidt, 6), [true, true, false, true], "behind a word");
        assert_eq!(refused(&mut vcpu, movups, 16), [false; 4]);
        vcpu.cpl = 2;
        assert_eq!(refused(&mut vcpu, insw, 0), [false; 4]);
        (vcpu.cpl, vcpu.rflags) = (3, 2);
        assert_eq!(refused(&mut vcpu, insw, 0), [false; 4]);
        (vcpu.cr[0], vcpu.rflags) = (0x11, 2 | Rflags::AC.bits());
        assert_eq!(refused(&mut vcpu, insw, 0), [false; 4]);
    }

    #[test]
    fn in_64_bit_mode_only_canonical_addresses_are_refused() {
        let mut vcpu = vcpu(Mode::Bits64);
        vcpu.segments[SegmentRegister::Ds as usize] = Segment::NULL;
        let check = |vcpu: &FakeVcpu, bytes: &[u8]| {
            let instruction = decode(bytes, Mode::Bits64).unwrap();
            instruction.check_segment(vcpu, 10, true).map_err(|event| event.vector.0)
        };
        let (sidt, on_stack): (&[u8], &[u8]) = (&[0x0f, 0x01, 0x08], &[0x0f, 0x01, 0x0c, 0x24]);
        for (at, refused) in [(0x7fff_ffff_fff6, false), (0x7fff_ffff_fff7, true), (1 << 63, true)]
        {
            vcpu.gpr[Gpr::Rax as usize] = at;
            vcpu.gpr[Gpr::Rsp as usize] = at;
            assert_eq!(check(&vcpu, sidt), if refused { Err(13) } else { Ok(()) }, "{at:#x}");
            assert_eq!(check(&vcpu, on_stack), if refused { Err(12) } else { Ok(()) }, "{at:#x}");
        }
    }

    #[test]
    fn string_instructions_advance_by_iterations_and_direction() {
        let mut vcpu = vcpu(Mode::Bits32);
        vcpu.segments[SegmentRegister::Fs as usize] =
            Segment { base: 0x5_0000, ..vcpu.segments[SegmentRegister::Fs as usize] };
        vcpu.gpr[Gpr::Rcx as usize] = 3;
        vcpu.gpr[Gpr::Rsi as usize] = 0x100;
        vcpu.gpr[Gpr::Rdi as usize] = 0x200;
        // rep movsd from fs
        let movs = decode(&[0x64, 0xf3, 0xa5], Mode::Bits32).unwrap();
        assert_eq!(movs.source(&vcpu).as_u64(), 0x5_0100);
        assert_eq!(movs.destination(&vcpu).as_u64(), 0x3_0200);
        assert!(!movs.advance(&mut vcpu, 2));
        assert_eq!((vcpu.gpr[1], vcpu.gpr[6], vcpu.gpr[7]), (1, 0x108, 0x208));
        vcpu.rflags |= Rflags::DF.bits();
        assert!(movs.advance(&mut vcpu, 1));
        assert_eq!((vcpu.gpr[1], vcpu.gpr[6], vcpu.gpr[7]), (0, 0x104, 0x204));
        assert_eq!(movs.iterations(&vcpu), 0);
    }

    #[test]
    fn sixteen_bit_index_registers_keep_their_upper_halves() {
        let mut vcpu = vcpu(Mode::Bits16);
        vcpu.gpr[Gpr::Rdi as usize] = 0xabcd_ffff;
        let stos = decode(&[0xaa], Mode::Bits16).unwrap();
        assert_eq!(stos.destination(&vcpu).as_u64(), 0x3_ffff);
        assert!(stos.advance(&mut vcpu, 1));
        assert_eq!(vcpu.gpr[Gpr::Rdi as usize], 0xabcd_0000);
    }
}
