//! Carries out one guest instruction whose memory operand the CPU could not reach by itself: a
//! device register, or a page of the guest's RAM that a shadow page stands in for.
//!
//! Everything that an instruction names is translated by the guest's own page tables first; what it
//! reads and writes goes through [`Context::memory_read`] and [`Context::memory_write`].

use arch::machine::{GuestMemory, Machine};
use arch::register::{Cr0, Cr4, Rflags};
use arch::vcpu::{Event, Vcpu, exception};

use arch::{Gpa, Gva, Width};
use insn::{Access, DecodeError, Instruction, MemoryFault, Mode, Operation};

use crate::vm::{Context, Platform};

/// Why an instruction was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// The guest gets this exception (and CR2).
    Fault(Event, Option<Gva>),
    /// The decoder does not know the instruction.
    Unknown(DecodeError),
    /// Its bytes are not in the guest's memory.
    Unreachable(MemoryFault),
    /// It is none that exits so.
    Another,
}

impl From<MemoryFault> for Refused {
    fn from(fault: MemoryFault) -> Self {
        match fault.event() {
            Some((event, cr2)) => Self::Fault(event, cr2),
            None => Self::Unreachable(fault),
        }
    }
}

const fn refusal(event: Event) -> Refused {
    Refused::Fault(event, None)
}

/// String iterations carried out per exit: a bound on the time spent here.
const MAX_ITERATIONS: u64 = 256;

/// Fetches and decodes the instruction at RIP.
pub(crate) fn fetch<V: Vcpu>(vcpu: &V, memory: &impl GuestMemory) -> Result<Instruction, Refused> {
    let (bytes, length) = insn::fetch_instruction(vcpu, memory)?;
    let bytes = bytes.get(..length).unwrap_or(&bytes);
    insn::decode(bytes, insn::Mode::of(vcpu)).map_err(Refused::Unknown)
}

/// Carries out `instruction`, the one at RIP, and moves on, or says why not. Nothing has changed
/// then, but that a repeated one has done the iterations before the one that failed.
pub(crate) fn carry_out<P: Platform>(
    context: &mut Context<'_, P>,
    instruction: &Instruction,
) -> Result<(), Refused> {
    match instruction.operation {
        Operation::Movs | Operation::Stos => return string(context, instruction),
        // The port is one that passes: the CPU itself would have to do it.
        Operation::Ins | Operation::Outs => {
            return Err(Refused::Unknown(DecodeError::Unsupported { opcode: 0x6c }));
        }
        // Their operands are not numbers: `Context::table_instruction` is for them.
        Operation::DescriptorTable { .. } | Operation::SystemSegment { .. } => {
            return Err(Refused::Fault(Event::exception(exception::UD, None), None));
        }
        Operation::StoreVector { register, bytes } => {
            store_vector(context, instruction, register, bytes)?;
        }
        Operation::Load { .. }
        | Operation::Store(_)
        | Operation::Update { .. }
        | Operation::Compute { .. }
        | Operation::Test(_)
        | Operation::Exchange(_)
        | Operation::ExchangeAdd(_)
        | Operation::CompareExchange(_)
        | Operation::Unary(_)
        | Operation::Bit { .. } => scalar(context, instruction)?,
    }
    context.vcpu.skip_instruction(instruction.length);
    Ok(())
}

fn scalar<P: Platform>(
    context: &mut Context<'_, P>,
    instruction: &Instruction,
) -> Result<(), Refused> {
    let at = instruction.linear_address(context.vcpu);
    let writes = instruction.operation.writes_memory();
    // In 64-bit mode the tables are all that is asked, and canonical addresses with them. Elsewhere the CPU has asked the
    // segment, of what it was that exited: another CPU may have changed that since.
    if instruction.mode != Mode::Bits64 {
        let bytes = instruction.width.bytes().into();
        instruction.check_segment(context.vcpu, bytes, writes).map_err(refusal)?;
    }
    let place = Operand::find(context, at, instruction.width, writes)?;
    let old = if instruction.operation.reads_memory() { place.read(context) } else { 0 };
    let outcome = instruction.evaluate(context.vcpu, old);
    if let Some(value) = outcome.memory {
        place.write(context, value);
    }
    outcome.commit(context.vcpu);
    Ok(())
}

fn store_vector<P: Platform>(
    context: &mut Context<'_, P>,
    instruction: &Instruction,
    register: u8,
    bytes: u8,
) -> Result<(), Refused> {
    check_vectors(context.vcpu)?;
    let value = context.machine.vector_register(register);
    let value = value.get(..bytes.into()).unwrap_or(&value);
    store_bytes(context, instruction, value)
}

/// Whether the CPU would execute an SSE instruction. Where TS is set, its registers are those of another of the guest's
/// programs. The CPU has asked, of what it was that exited: another CPU may have changed that since.
fn check_vectors(vcpu: &impl Vcpu) -> Result<(), Refused> {
    let (cr0, cr4) = (Cr0::from_bits_retain(vcpu.cr0()), Cr4::from_bits_retain(vcpu.cr4()));
    let vector = if cr0.contains(Cr0::EM) || !cr4.contains(Cr4::OSFXSR) {
        exception::UD
    } else if cr0.contains(Cr0::TS) {
        exception::NM
    } else {
        return Ok(());
    };
    Err(refusal(Event::exception(vector, None)))
}

/// Stores `bytes`, the memory operand of an instruction that has exited, to RAM or a device.
pub(crate) fn store_bytes<P: Platform>(
    context: &mut Context<'_, P>,
    instruction: &Instruction,
    bytes: &[u8],
) -> Result<(), Refused> {
    instruction.check_segment(context.vcpu, bytes.len() as u64, true).map_err(refusal)?;
    store(context, instruction.linear_address(context.vcpu), bytes)
}

/// Stores by four bytes. A fault in the second page comes before a write to the first.
fn store<P: Platform>(context: &mut Context<'_, P>, at: Gva, bytes: &[u8]) -> Result<(), Refused> {
    for write in [false, true] {
        for (offset, part) in (0..).step_by(4).zip(bytes.chunks(4)) {
            let width = Width::from_bytes(part.len() as u8).unwrap_or(Width::Dword);
            let place = Operand::find(context, at.wrapping_add(offset), width, true)?;
            if write {
                let word = part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                place.write(context, word);
            }
        }
    }
    Ok(())
}

/// Loads such an operand.
pub(crate) fn load_bytes<P: Platform>(
    context: &mut Context<'_, P>,
    instruction: &Instruction,
    bytes: &mut [u8],
) -> Result<(), Refused> {
    instruction.check_segment(context.vcpu, bytes.len() as u64, false).map_err(refusal)?;
    let at = instruction.linear_address(context.vcpu);
    for (offset, part) in (0..).step_by(4).zip(bytes.chunks_mut(4)) {
        let width = Width::from_bytes(part.len() as u8).unwrap_or(Width::Dword);
        let value = Operand::find(context, at.wrapping_add(offset), width, false)?.read(context);
        for (byte, from) in part.iter_mut().zip(value.to_le_bytes()) {
            *byte = from;
        }
    }
    Ok(())
}

fn string<P: Platform>(
    context: &mut Context<'_, P>,
    instruction: &Instruction,
) -> Result<(), Refused> {
    let width = instruction.width;
    let left = instruction.iterations(context.vcpu);
    let mut finished = left == 0;
    let steps = context.vcpu.rflags() & Rflags::TF.bits() != 0;
    for _ in 0..left.min(if steps { 1 } else { MAX_ITERATIONS }) {
        let from = if instruction.operation == Operation::Movs {
            instruction.check_source(context.vcpu).map_err(refusal)?;
            Some(Operand::find(context, instruction.source(context.vcpu), width, false)?)
        } else {
            None
        };
        instruction.check_destination(context.vcpu).map_err(refusal)?;
        let to = Operand::find(context, instruction.destination(context.vcpu), width, true)?;
        let old = from.map_or(0, |from| from.read(context));
        if let Some(value) = instruction.evaluate(context.vcpu, old).memory {
            to.write(context, value);
        }
        finished = instruction.advance(context.vcpu, 1);
        if context.cpu.met != 0 {
            // The trap comes behind this one.
            break;
        }
    }
    leave_string(context.vcpu, instruction, finished);
    Ok(())
}

/// Moves on behind a string instruction that is finished. Between two iterations RIP stays, a single step is over, and
/// RFLAGS.RF is set: the instruction does not begin (SDM "Instruction-Breakpoint Exception Condition").
pub(super) fn leave_string(vcpu: &mut impl Vcpu, instruction: &Instruction, finished: bool) {
    vcpu.skip_instruction(if finished { instruction.length } else { 0 });
    if !finished {
        vcpu.set_rflags(vcpu.rflags() | Rflags::RF.bits());
    }
}

/// Where an operand is: in one page, or byte by byte in two.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    width: Width,
    at: Gva,
    first: Gpa,
    /// Bytes in the first page, and where the rest goes on.
    second: Option<(u8, Gpa)>,
}

impl Operand {
    /// Translates the `width` bytes at `gva`, all of them, with the rights of the CPU's program. The guest's tables say
    /// then that they were used.
    pub(crate) fn find<P: Platform>(
        context: &mut Context<'_, P>,
        gva: Gva,
        width: Width,
        write: bool,
    ) -> Result<Self, Refused> {
        let vcpu: &P::Vcpu = context.vcpu;
        let access = if write { Access::write(vcpu) } else { Access::read(vcpu) };
        let in_page = arch::address::PAGE_SIZE - gva.page_offset();
        let next = (in_page < u64::from(width.bytes())).then(|| insn::behind(vcpu, gva, in_page));
        if let Some(next) = next {
            // A fault in either comes before anything is noted.
            insn::translate(vcpu, context.memory, gva, access)?;
            insn::translate(vcpu, context.memory, next, access)?;
        }
        let first = insn::translate_used(vcpu, context.memory, gva, access)?;
        let second = match next {
            Some(next) => {
                Some((in_page as u8, insn::translate_used(vcpu, context.memory, next, access)?))
            }
            None => None,
        };
        Ok(Self { width, at: gva, first, second })
    }

    fn byte(&self, index: u8) -> Gpa {
        match self.second {
            Some((in_first, second)) if index >= in_first => {
                second.wrapping_add(u64::from(index - in_first))
            }
            _ => self.first.wrapping_add(u64::from(index)),
        }
    }

    /// Reads the operand.
    pub(crate) fn read<P: Platform>(&self, context: &mut Context<'_, P>) -> u64 {
        context.note_operand(self.at, self.width, false);
        if self.second.is_none() {
            return context.memory_read(self.first, self.width);
        }
        (0..self.width.bytes()).rev().fold(0, |value, index| {
            value << 8 | context.memory_read(self.byte(index), Width::Byte) & 0xff
        })
    }

    /// Writes the operand.
    pub(crate) fn write<P: Platform>(&self, context: &mut Context<'_, P>, value: u64) {
        context.note_operand(self.at, self.width, true);
        if self.second.is_none() {
            return context.memory_write(self.first, self.width, value);
        }
        for index in 0..self.width.bytes() {
            context.memory_write(self.byte(index), Width::Byte, value >> (8 * index) & 0xff);
        }
    }
}
