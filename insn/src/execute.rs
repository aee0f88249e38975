//! What an instruction makes of its operands: the new memory value, register and flags.

use arch::Width;
use arch::vcpu::Vcpu;

use crate::alu::{self, Function};
use crate::instruction::{Instruction, Operation, Register, Source};

/// Effects of an instruction, computed but not yet made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Outcome {
    /// The value to write to memory, [`Instruction::width`] wide.
    pub memory: Option<u64>,
    /// The register to write.
    pub register: Option<(Register, Width, u64)>,
    /// RFLAGS after it.
    pub flags: u64,
}

impl Outcome {
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
    /// [`Operation::DescriptorTable`], [`Operation::StoreVector`], INS and OUTS have no effect
    /// here: their operands are not numbers in registers, who calls carries them out.
    pub fn evaluate<V: Vcpu>(&self, vcpu: &V, memory: u64) -> Outcome {
        let width = self.width;
        let memory = memory & width.mask();
        let flags = vcpu.rflags();
        let value = |source: Source| source.get(vcpu, width);
        let to_memory = |value, flags| Outcome { memory: Some(value), register: None, flags };
        let nothing = Outcome { memory: None, register: None, flags };
        match self.operation {
            Operation::DescriptorTable { .. }
            | Operation::StoreVector { .. }
            | Operation::Ins
            | Operation::Outs => nothing,
            Operation::Load { register, to, signed } => {
                let value = if signed { sign_extend(width, memory) } else { memory };
                Outcome { register: Some((register, to, value & to.mask())), ..nothing }
            }
            Operation::Store(source) => to_memory(value(source), flags),
            Operation::Stos => to_memory(Register::ACCUMULATOR.get(vcpu, width), flags),
            Operation::Movs => to_memory(memory, flags),
            Operation::Update { function, source } => {
                let (result, flags) =
                    alu::arithmetic(function, width, memory, value(source), flags);
                let memory = (function != Function::Cmp).then_some(result);
                Outcome { memory, register: None, flags }
            }
            Operation::Compute { function, register } => {
                let first = register.get(vcpu, width);
                let (result, flags) = alu::arithmetic(function, width, first, memory, flags);
                let register = (function != Function::Cmp).then_some((register, width, result));
                Outcome { memory: None, register, flags }
            }
            Operation::Test(source) => {
                let (_, flags) =
                    alu::arithmetic(Function::And, width, memory, value(source), flags);
                Outcome { flags, ..nothing }
            }
            Operation::Exchange(register) => Outcome {
                memory: Some(register.get(vcpu, width)),
                register: Some((register, width, memory)),
                flags,
            },
            Operation::ExchangeAdd(register) => {
                let second = register.get(vcpu, width);
                let (sum, flags) = alu::arithmetic(Function::Add, width, memory, second, flags);
                Outcome { memory: Some(sum), register: Some((register, width, memory)), flags }
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
                Outcome { memory, register: None, flags }
            }
        }
    }

    /// CMPXCHG; memory is written back even where it differs (SDM "CMPXCHG—Compare and Exchange").
    fn compare_exchange<V: Vcpu>(&self, vcpu: &V, memory: u64, new: u64) -> Outcome {
        let accumulator = Register::ACCUMULATOR.get(vcpu, self.width);
        let (difference, flags) =
            alu::arithmetic(Function::Cmp, self.width, accumulator, memory, vcpu.rflags());
        if difference == 0 {
            Outcome { memory: Some(new), register: None, flags }
        } else {
            let register = Some((Register::ACCUMULATOR, self.width, memory));
            Outcome { memory: Some(memory), register, flags }
        }
    }
}

fn sign_extend(width: Width, value: u64) -> u64 {
    let unused = 64 - u32::from(width.bytes()) * 8;
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}
