//! What an instruction makes of its operands: the new memory value, register and flags.

use arch::Width;
use arch::vcpu::Vcpu;

use crate::alu::{self, Function};
use crate::instruction::{Instruction, Operation, Register, Source};

/// Effects of an instruction, computed but not yet made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Evaluation {
    /// The value to write to memory, [`Instruction::width`] wide.
    pub memory: Option<u64>,
    /// The register to write.
    pub register: Option<(Register, Width, u64)>,
    /// RFLAGS after it.
    pub flags: u64,
}

impl Evaluation {
    /// Writes the register and the flags. Call it after memory has been written, so that a fault
    /// there leaves the instruction undone.
    pub fn commit<V: Vcpu>(self, vcpu: &mut V) {
        if let Some((register, width, value)) = self.register {
            register.set(vcpu, width, value);
        }
        if self.flags != vcpu.rflags() {
            vcpu.set_rflags(self.flags);
        }
    }
}

impl Instruction {
    /// The effects of this instruction, with `memory` the old value of its memory operand (any
    /// number where it does not read it). For MOVS and STOS the effects of one iteration, without
    /// the index registers ([`Self::advance`]).
    ///
    /// [`Operation::DescriptorTable`], [`Operation::SystemSegment`], [`Operation::StoreVector`],
    /// INS and OUTS have no effect here: their operands are not numbers in general registers, who
    /// calls carries them out.
    pub fn evaluate<V: Vcpu>(&self, vcpu: &V, memory: u64) -> Evaluation {
        let width = self.width;
        let memory = memory & width.mask();
        let flags = vcpu.rflags();
        let value = |source: Source| source.get(vcpu, width);
        let to_memory = |value, flags| Evaluation { memory: Some(value), register: None, flags };
        let nothing = Evaluation { memory: None, register: None, flags };
        match self.operation {
            Operation::DescriptorTable { .. }
            | Operation::SystemSegment { .. }
            | Operation::StoreVector { .. }
            | Operation::Ins
            | Operation::Outs => nothing,
            Operation::Load { register, to, signed } => {
                let value = if signed { width.sign_extend(memory).cast_unsigned() } else { memory };
                Evaluation { register: Some((register, to, value & to.mask())), ..nothing }
            }
            Operation::Store(source) => to_memory(value(source), flags),
            Operation::Stos => to_memory(Register::ACCUMULATOR.get(vcpu, width), flags),
            Operation::Movs => to_memory(memory, flags),
            Operation::Update { function, source } => {
                let (result, flags) =
                    alu::arithmetic(function, width, memory, value(source), flags);
                let memory = (function != Function::Cmp).then_some(result);
                Evaluation { memory, register: None, flags }
            }
            Operation::Compute { function, register } => {
                let first = register.get(vcpu, width);
                let (result, flags) = alu::arithmetic(function, width, first, memory, flags);
                let register = (function != Function::Cmp).then_some((register, width, result));
                Evaluation { memory: None, register, flags }
            }
            Operation::Test(source) => {
                let (_, flags) =
                    alu::arithmetic(Function::And, width, memory, value(source), flags);
                Evaluation { flags, ..nothing }
            }
            Operation::Exchange(register) => Evaluation {
                memory: Some(register.get(vcpu, width)),
                register: Some((register, width, memory)),
                flags,
            },
            Operation::ExchangeAdd(register) => {
                let second = register.get(vcpu, width);
                let (sum, flags) = alu::arithmetic(Function::Add, width, memory, second, flags);
                Evaluation { memory: Some(sum), register: Some((register, width, memory)), flags }
            }
            Operation::CompareExchange(register) => {
                self.compare_exchange(vcpu, memory, register.get(vcpu, width))
            }
            Operation::Unary(function) => {
                let (result, flags) = alu::unary(function, width, memory, flags);
                to_memory(result, flags)
            }
            Operation::Bit { function, offset } => {
                let (result, flags) = alu::bit(function, width, memory, value(offset), flags);
                let memory = (function != alu::BitFunction::Test).then_some(result);
                Evaluation { memory, register: None, flags }
            }
        }
    }

    /// CMPXCHG; memory is written back even where it differs (SDM "CMPXCHG—Compare and Exchange").
    fn compare_exchange<V: Vcpu>(&self, vcpu: &V, memory: u64, new: u64) -> Evaluation {
        let accumulator = Register::ACCUMULATOR.get(vcpu, self.width);
        let (difference, flags) =
            alu::arithmetic(Function::Cmp, self.width, accumulator, memory, vcpu.rflags());
        if difference == 0 {
            Evaluation { memory: Some(new), register: None, flags }
        } else {
            let register = Some((Register::ACCUMULATOR, self.width, memory));
            Evaluation { memory: Some(memory), register, flags }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fake::FakeVcpu;
    use crate::{Mode, decode};
    use arch::register::Rflags;

    fn vcpu() -> FakeVcpu {
        let mut vcpu = FakeVcpu::new(Mode::Bits64);
        vcpu.gpr[0] = 0x1111_2222_3333_4444;
        vcpu.gpr[1] = 0xaaaa_bbbb_cccc_dddd;
        vcpu
    }

    /// Runs one instruction; answers with the new memory and the registers after it.
    fn run(bytes: &[u8], memory: u64) -> (Option<u64>, FakeVcpu) {
        let mut vcpu = vcpu();
        let outcome = decode(bytes, Mode::Bits64).unwrap().evaluate(&vcpu, memory);
        outcome.commit(&mut vcpu);
        (outcome.memory, vcpu)
    }

    #[test]
    fn loads_extend_as_their_opcodes_say() {
        let rcx = |bytes: &[u8]| run(bytes, 0xffff_ffff_8000_8180).1.gpr[1];
        assert_eq!(rcx(&[0x8a, 0x08]), 0xaaaa_bbbb_cccc_dd80, "mov cl, [rax]");
        assert_eq!(rcx(&[0x8a, 0x28]), 0xaaaa_bbbb_cccc_80dd, "mov ch, [rax]");
        assert_eq!(rcx(&[0x66, 0x8b, 0x08]), 0xaaaa_bbbb_cccc_8180, "mov cx, [rax]");
        assert_eq!(rcx(&[0x8b, 0x08]), 0x8000_8180, "mov ecx, [rax]");
        assert_eq!(rcx(&[0x48, 0x8b, 0x08]), 0xffff_ffff_8000_8180, "mov rcx, [rax]");
        assert_eq!(rcx(&[0x0f, 0xb6, 0x08]), 0x80, "movzx ecx, byte [rax]");
        assert_eq!(rcx(&[0x0f, 0xbe, 0x08]), 0xffff_ff80, "movsx ecx, byte [rax]");
        assert_eq!(rcx(&[0x66, 0x0f, 0xbe, 0x08]), 0xaaaa_bbbb_cccc_ff80, "movsx cx, byte [rax]");
        assert_eq!(rcx(&[0x48, 0x63, 0x08]), 0xffff_ffff_8000_8180, "movsxd rcx, [rax]");
    }

    #[test]
    fn stores_write_the_operand_and_no_register() {
        assert_eq!(run(&[0x88, 0x28], 0).0, Some(0xdd), "mov [rax], ch");
        assert_eq!(run(&[0x48, 0x89, 0x08], 0).0, Some(0xaaaa_bbbb_cccc_dddd), "mov [rax], rcx");
        assert_eq!(run(&[0x48, 0xc7, 0x00, 0xff, 0xff, 0xff, 0xff], 0).0, Some(u64::MAX));
        assert_eq!(run(&[0xaa], 0).0, Some(0x44), "stosb");
        assert_eq!(run(&[0x88, 0x28], 0).1.gpr, vcpu().gpr);
    }

    #[test]
    fn comparisons_write_flags_only() {
        let (memory, after) = run(&[0x39, 0x08], 0xcccc_dddd);
        assert_eq!((memory, after.gpr), (None, vcpu().gpr));
        assert_ne!(after.rflags & Rflags::ZF.bits(), 0);
        let (memory, after) = run(&[0x85, 0x08], 0x3333_2222);
        assert_eq!((memory, after.gpr), (None, vcpu().gpr));
        assert_ne!(after.rflags & Rflags::ZF.bits(), 0);
    }

    #[test]
    fn exchanges_swap_both_sides() {
        let (memory, after) = run(&[0x87, 0x08], 0x1234_5678);
        assert_eq!((memory, after.gpr[1]), (Some(0xcccc_dddd), 0x1234_5678));
        let (memory, after) = run(&[0x0f, 0xc1, 0x08], 1);
        assert_eq!((memory, after.gpr[1]), (Some(0xcccc_ddde), 1));
    }

    #[test]
    fn compare_exchange_stores_on_equality_and_loads_otherwise() {
        let (memory, after) = run(&[0x0f, 0xb1, 0x08], 0x3333_4444);
        assert_eq!((memory, after.gpr[0]), (Some(0xcccc_dddd), vcpu().gpr[0]));
        assert_ne!(after.rflags & Rflags::ZF.bits(), 0);
        let (memory, after) = run(&[0x0f, 0xb1, 0x08], 7);
        assert_eq!((memory, after.gpr[0]), (Some(7), 7));
        assert_eq!(after.rflags & Rflags::ZF.bits(), 0);
    }

    #[test]
    fn descriptor_tables_survive_the_way_through_memory() {
        use crate::PseudoDescriptor;
        use arch::Gva;
        use arch::segment::DescriptorTable;
        let table = DescriptorTable { base: Gva::new(0xffff_fe00_1234_5678), limit: 0xfff };
        let bytes = PseudoDescriptor::Base64.encode(table);
        assert_eq!(PseudoDescriptor::Base64.parse(bytes), table);
        assert_eq!(PseudoDescriptor::Base32.parse(bytes).base, Gva::new(0x1234_5678));
        assert_eq!(PseudoDescriptor::Base24.parse(bytes).base, Gva::new(0x34_5678));
    }
}
