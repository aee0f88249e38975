//! Carries out one guest instruction whose memory operand the CPU could not reach by itself: a
//! device register, or a page of the guest's RAM that a shadow page stands in for.
//!
//! Everything that an instruction names is translated by the guest's own page tables first; what it
//! reads and writes goes through an [`AddressSpace`].

use arch::machine::{GuestMemory, Machine};
use arch::vcpu::{Event, Vcpu, exception};

use arch::{Gpa, Gva, Width};
use insn::{Access, DecodeError, Instruction, MemoryFault, Operation};

use crate::vm::Platform;

/// The guest-physical address space as an instruction sees it: RAM and devices.
pub(crate) trait AddressSpace {
    /// The edge's types.
    type Platform: Platform;
    /// The CPU whose instruction it is.
    fn vcpu(&self) -> &<Self::Platform as Platform>::Vcpu;
    /// The same, to change.
    fn vcpu_mut(&mut self) -> &mut <Self::Platform as Platform>::Vcpu;
    /// The RAM, for page walks and instruction bytes.
    fn memory(&self) -> &<Self::Platform as Platform>::Memory;
    /// The machine, for vector registers.
    fn machine(&mut self) -> &mut <Self::Platform as Platform>::Machine;
    /// Reads; what nobody has reads as all ones.
    fn read(&mut self, gpa: Gpa, width: Width) -> u64;
    /// Writes; what nobody has swallows it.
    fn write(&mut self, gpa: Gpa, width: Width, value: u64);
}

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

/// String iterations carried out per exit: a bound on the time spent here.
const MOST_ITERATIONS: u64 = 256;

/// Fetches and decodes the instruction at RIP.
pub(crate) fn fetch<V: Vcpu>(vcpu: &V, memory: &impl GuestMemory) -> Result<Instruction, Refused> {
    let (bytes, length) = insn::fetch_instruction(vcpu, memory)?;
    let bytes = bytes.get(..length).unwrap_or(&bytes);
    insn::decode(bytes, insn::Mode::of(vcpu)).map_err(Refused::Unknown)
}

/// Carries out `instruction`, the one at RIP, and moves on, or says why not. Nothing has changed
/// then, but that a repeated one has done the iterations before the one that failed.
pub(crate) fn carry_out<S: AddressSpace>(
    space: &mut S,
    instruction: &Instruction,
) -> Result<(), Refused> {
    match instruction.operation {
        Operation::Movs | Operation::Stos => return string(space, instruction),
        // The port is one that passes: the CPU itself would have to do it.
        Operation::Ins | Operation::Outs => {
            return Err(Refused::Unknown(DecodeError::Unsupported { opcode: 0x6c }));
        }
        // Their operands are not numbers: `Context::table_instruction` is for them.
        Operation::DescriptorTable { .. } | Operation::SystemSegment { .. } => {
            return Err(Refused::Fault(Event::exception(exception::UD, None), None));
        }
        Operation::StoreVector { register, bytes } => {
            store_vector(space, instruction, register, bytes)?;
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
        | Operation::Bit { .. } => scalar(space, instruction)?,
    }
    space.vcpu_mut().skip_instruction(instruction.length);
    Ok(())
}

fn scalar<S: AddressSpace>(space: &mut S, instruction: &Instruction) -> Result<(), Refused> {
    let at = instruction.linear_address(space.vcpu());
    let writes = instruction.operation.writes_memory();
    let place = Place::find(space, at, instruction.width, writes)?;
    let old = if instruction.operation.reads_memory() { place.read(space) } else { 0 };
    let outcome = instruction.evaluate(space.vcpu(), old);
    if let Some(value) = outcome.memory {
        place.write(space, value);
    }
    outcome.commit(space.vcpu_mut());
    Ok(())
}

fn store_vector<S: AddressSpace>(
    space: &mut S,
    instruction: &Instruction,
    register: u8,
    bytes: u8,
) -> Result<(), Refused> {
    let value = space.machine().vector_register(register);
    let at = instruction.linear_address(space.vcpu());
    // A fault in the second page comes before a write to the first.
    Place::find(space, at.wrapping_add(u64::from(bytes.max(1)) - 1), Width::Byte, true)?;
    for (index, part) in value.chunks(4).take(usize::from(bytes.min(16)) / 4).enumerate() {
        let gva = at.wrapping_add(4 * index as u64);
        let place = Place::find(space, gva, Width::Dword, true)?;
        let word = part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        place.write(space, word);
    }
    Ok(())
}

/// Stores `bytes`, the memory operand of an instruction that has exited, to RAM or a device.
pub(crate) fn store_bytes<S: AddressSpace>(
    space: &mut S,
    instruction: &Instruction,
    bytes: &[u8],
) -> Result<(), Refused> {
    let check = instruction.check_segment(space.vcpu(), bytes.len() as u64, true);
    check.map_err(|event| Refused::Fault(event, None))?;
    let at = instruction.linear_address(space.vcpu());
    // A fault in the second page comes before a write to the first.
    for write in [false, true] {
        for (offset, part) in (0..).step_by(4).zip(bytes.chunks(4)) {
            let width = Width::from_bytes(part.len() as u8).unwrap_or(Width::Dword);
            let place = Place::find(space, at.wrapping_add(offset), width, true)?;
            if write {
                let word = part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                place.write(space, word);
            }
        }
    }
    Ok(())
}

/// Loads such an operand.
pub(crate) fn load_bytes<S: AddressSpace>(
    space: &mut S,
    instruction: &Instruction,
    bytes: &mut [u8],
) -> Result<(), Refused> {
    let check = instruction.check_segment(space.vcpu(), bytes.len() as u64, false);
    check.map_err(|event| Refused::Fault(event, None))?;
    let at = instruction.linear_address(space.vcpu());
    for (offset, part) in (0..).step_by(4).zip(bytes.chunks_mut(4)) {
        let width = Width::from_bytes(part.len() as u8).unwrap_or(Width::Dword);
        let value = Place::find(space, at.wrapping_add(offset), width, false)?.read(space);
        for (byte, from) in part.iter_mut().zip(value.to_le_bytes()) {
            *byte = from;
        }
    }
    Ok(())
}

fn string<S: AddressSpace>(space: &mut S, instruction: &Instruction) -> Result<(), Refused> {
    let width = instruction.width;
    let left = instruction.iterations(space.vcpu());
    let mut finished = left == 0;
    for _ in 0..left.min(MOST_ITERATIONS) {
        let to = instruction.destination(space.vcpu());
        let to = Place::find(space, to, width, true)?;
        let old = if instruction.operation == Operation::Movs {
            let from = instruction.source(space.vcpu());
            Place::find(space, from, width, false)?.read(space)
        } else {
            0
        };
        if let Some(value) = instruction.evaluate(space.vcpu(), old).memory {
            to.write(space, value);
        }
        finished = instruction.advance(space.vcpu_mut(), 1);
    }
    if finished {
        space.vcpu_mut().skip_instruction(instruction.length);
    }
    Ok(())
}

/// Where an operand is: in one page, or byte by byte in two.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    width: Width,
    first: Gpa,
    /// Bytes in the first page, and where the rest goes on.
    second: Option<(u8, Gpa)>,
}

impl Place {
    /// Translates the `width` bytes at `gva`, all of them, with the rights of the CPU's program.
    pub(crate) fn find<S: AddressSpace>(
        space: &S,
        gva: Gva,
        width: Width,
        write: bool,
    ) -> Result<Self, Refused> {
        let vcpu = space.vcpu();
        let access = if write { Access::write(vcpu) } else { Access::read(vcpu) };
        let first = insn::translate(vcpu, space.memory(), gva, access)?;
        let in_page = arch::address::PAGE_SIZE - gva.page_offset();
        let second = if in_page < u64::from(width.bytes()) {
            let next = gva.wrapping_add(in_page);
            Some((in_page as u8, insn::translate(vcpu, space.memory(), next, access)?))
        } else {
            None
        };
        Ok(Self { width, first, second })
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
    pub(crate) fn read<S: AddressSpace>(&self, space: &mut S) -> u64 {
        if self.second.is_none() {
            return space.read(self.first, self.width);
        }
        (0..self.width.bytes())
            .rev()
            .fold(0, |value, index| value << 8 | space.read(self.byte(index), Width::Byte) & 0xff)
    }

    /// Writes the operand.
    pub(crate) fn write<S: AddressSpace>(&self, space: &mut S, value: u64) {
        if self.second.is_none() {
            return space.write(self.first, self.width, value);
        }
        for index in 0..self.width.bytes() {
            space.write(self.byte(index), Width::Byte, value >> (8 * index) & 0xff);
        }
    }
}
