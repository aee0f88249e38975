//! Instruction bytes to an [`Instruction`] (SDM "Instruction Format", "Opcode Map").
//!
//! Invariant: an instruction outside the supported set is refused, never taken for another; the
//! length is right for whatever is accepted.

use core::fmt;

use arch::Width;
use arch::register::Gpr;
use arch::segment::{DescriptorTableRegister, SegmentRegister};

use crate::alu::{BitFunction, Function, Unary};
use crate::instruction::{
    Address, Instruction, MAX_LENGTH, Mode, Operation, PseudoDescriptor, Register, Source,
};
use crate::modrm::{ModRm, Operand};

/// Why bytes were not decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The instruction goes on behind the bytes that were given.
    NeedMoreBytes,
    /// Longer than 15 bytes: the CPU raises #GP.
    TooLong,
    /// Not one of the instructions that the hypervisor carries out.
    Unsupported {
        /// The opcode byte, or 0x0F00 plus the second byte.
        opcode: u16,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedMoreBytes => f.write_str("the instruction's last bytes could not be read"),
            Self::TooLong => f.write_str("the instruction is longer than 15 bytes"),
            Self::Unsupported { opcode } => {
                write!(f, "an instruction with opcode {opcode:#04x} cannot be carried out here")
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// Decodes the instruction at the start of `bytes`. All bytes up to the 15th that can be fetched
/// should be given; more are ignored.
///
/// # Errors
/// When the bytes end too early, or the instruction is not in the supported set.
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Instruction, DecodeError> {
    let mut decoder = Decoder { bytes, at: 0, mode, opcode: 0, prefixes: Prefixes::default() };
    let first = decoder.prefixes()?;
    let (operation, width, address) = if first == 0x0f {
        let second = decoder.byte()?;
        decoder.opcode = 0x0f00 | u16::from(second);
        decoder.two_byte(second)?
    } else {
        decoder.opcode = u16::from(first);
        decoder.one_byte(first)?
    };
    let repeat = decoder.prefixes.repeat.is_some() && operation.is_string();
    Ok(Instruction { mode, length: decoder.at as u8, operation, width, address, repeat })
}

type Decoded = Result<(Operation, Width, Address), DecodeError>;

/// Prefixes of one instruction.
#[derive(Clone, Copy, Default)]
pub(crate) struct Prefixes {
    /// REX, or 0.
    pub(crate) rex: u8,
    /// Segment override.
    pub(crate) segment: Option<SegmentRegister>,
    /// 66.
    operand: bool,
    /// 67.
    address: bool,
    /// The last of F2 and F3.
    repeat: Option<u8>,
}

/// The bytes and how far they are read.
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    opcode: u16,
    pub(crate) mode: Mode,
    pub(crate) prefixes: Prefixes,
}

impl Decoder<'_> {
    /// The next byte.
    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        if self.at >= MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::NeedMoreBytes)?;
        self.at += 1;
        Ok(byte)
    }

    /// The next little-endian number of `width`, sign-extended.
    pub(crate) fn signed(&mut self, width: Width) -> Result<i64, DecodeError> {
        let mut value = 0;
        for index in 0..width.bytes() {
            value |= u64::from(self.byte()?) << (8 * index);
        }
        Ok(width.sign_extend(value))
    }

    /// Reads all prefixes; answers with the first opcode byte.
    fn prefixes(&mut self) -> Result<u8, DecodeError> {
        let long = self.mode == Mode::Bits64;
        loop {
            let byte = self.byte()?;
            let rex = core::mem::take(&mut self.prefixes.rex);
            match byte {
                0x66 => self.prefixes.operand = true,
                0x67 => self.prefixes.address = true,
                0xf2 | 0xf3 => self.prefixes.repeat = Some(byte),
                0xf0 => {}
                0x64 => self.prefixes.segment = Some(SegmentRegister::Fs),
                0x65 => self.prefixes.segment = Some(SegmentRegister::Gs),
                // 64-bit mode ignores the other overrides.
                0x26 | 0x2e | 0x36 | 0x3e if long => {}
                0x26 => self.prefixes.segment = Some(SegmentRegister::Es),
                0x2e => self.prefixes.segment = Some(SegmentRegister::Cs),
                0x36 => self.prefixes.segment = Some(SegmentRegister::Ss),
                0x3e => self.prefixes.segment = Some(SegmentRegister::Ds),
                0x40..=0x4f if long => self.prefixes.rex = byte,
                _ => {
                    // REX counts only immediately before the opcode.
                    self.prefixes.rex = rex;
                    return Ok(byte);
                }
            }
        }
    }

    /// The address-size attribute.
    pub(crate) fn address_size(&self) -> Width {
        match (self.mode, self.prefixes.address) {
            (Mode::Bits64, false) => Width::Qword,
            (Mode::Bits32, true) | (Mode::Bits16, false) => Width::Word,
            (Mode::Bits64 | Mode::Bits16, true) | (Mode::Bits32, false) => Width::Dword,
        }
    }

    /// The operand-size attribute.
    fn operand_size(&self) -> Width {
        if self.prefixes.rex & 8 != 0 {
            Width::Qword
        } else if (self.mode == Mode::Bits16) == self.prefixes.operand {
            Width::Dword
        } else {
            Width::Word
        }
    }

    /// Byte for even opcodes, the operand size for odd ones.
    fn width_of(&self, opcode: u8) -> Width {
        if opcode & 1 == 0 { Width::Byte } else { self.operand_size() }
    }

    /// The register that a reg field of `width` names.
    fn register(&self, reg: u8, width: Width) -> Register {
        let high = width == Width::Byte && self.prefixes.rex == 0 && (4..8).contains(&reg);
        Register { gpr: Gpr::from_encoding(if high { reg & 3 } else { reg }), high }
    }

    fn unsupported(&self) -> DecodeError {
        DecodeError::Unsupported { opcode: self.opcode }
    }

    /// ModR/M with a memory operand.
    fn memory(&mut self) -> Result<ModRm, DecodeError> {
        match self.modrm()? {
            ModRm { reg, operand: Operand::Memory(operand) } => Ok(ModRm { reg, operand }),
            ModRm { operand: Operand::Register(_), .. } => Err(self.unsupported()),
        }
    }

    /// An immediate for an operand of `width`: at most 32 bits are encoded.
    fn immediate(&mut self, width: Width) -> Result<Source, DecodeError> {
        let value = self.signed(width.min(Width::Dword))?;
        Ok(Source::Immediate(value.cast_unsigned() & width.mask()))
    }

    fn one_byte(&mut self, opcode: u8) -> Decoded {
        let width = self.width_of(opcode);
        match opcode {
            0x00..=0x3f if opcode & 7 < 4 => {
                let function = Function::from_encoding(opcode >> 3);
                self.with_register(width, |register| {
                    if opcode & 2 == 0 {
                        Operation::Update { function, source: Source::Register(register) }
                    } else {
                        Operation::Compute { function, register }
                    }
                })
            }
            0x63 if self.mode == Mode::Bits64 => {
                let to = self.operand_size();
                self.extend(to.min(Width::Dword), true)
            }
            0x6c | 0x6d => self.string(Operation::Ins, width.min(Width::Dword)),
            0x6e | 0x6f => self.string(Operation::Outs, width.min(Width::Dword)),
            0x80 | 0x81 | 0x83 => {
                let ModRm { reg, operand: address } = self.memory()?;
                let source = if opcode == 0x83 {
                    Source::Immediate(self.signed(Width::Byte)?.cast_unsigned() & width.mask())
                } else {
                    self.immediate(width)?
                };
                let function = Function::from_encoding(reg);
                Ok((Operation::Update { function, source }, width, address))
            }
            0x84 | 0x85 => self.with_register(width, |r| Operation::Test(Source::Register(r))),
            0x86 | 0x87 => self.with_register(width, Operation::Exchange),
            0x88 | 0x89 => self.with_register(width, |r| Operation::Store(Source::Register(r))),
            0x8a | 0x8b => self.with_register(width, |register| Operation::Load {
                register,
                to: width,
                signed: false,
            }),
            0xa0..=0xa3 => self.offset_form(opcode, width),
            0xa4 | 0xa5 => self.string(Operation::Movs, width),
            0xaa | 0xab => self.string(Operation::Stos, width),
            0xc6 | 0xc7 | 0xf6 | 0xf7 | 0xfe | 0xff => self.group(opcode, width),
            _ => Err(self.unsupported()),
        }
    }

    /// The one-byte opcodes whose reg field selects the instruction.
    fn group(&mut self, opcode: u8, width: Width) -> Decoded {
        let ModRm { reg, operand: address } = self.memory()?;
        let operation = match (opcode & 0xfe, reg & 7) {
            (0xc6, 0) => Operation::Store(self.immediate(width)?),
            (0xf6, 0) => Operation::Test(self.immediate(width)?),
            (0xf6, 2) => Operation::Unary(Unary::Not),
            (0xf6, 3) => Operation::Unary(Unary::Negate),
            (0xfe, 0) => Operation::Unary(Unary::Increment),
            (0xfe, 1) => Operation::Unary(Unary::Decrement),
            _ => return Err(self.unsupported()),
        };
        Ok((operation, width, address))
    }

    fn two_byte(&mut self, opcode: u8) -> Decoded {
        let width = self.width_of(opcode);
        let size = self.operand_size();
        match opcode {
            0x00 => self.system_segment(),
            0x01 => self.descriptor_table(),
            0x11 | 0x13 | 0x29 | 0x2b | 0x7e | 0x7f | 0xd6 | 0xe7 => self.vector_store(opcode),
            0xa3 | 0xab | 0xb3 | 0xbb => {
                let function = BitFunction::from_encoding(opcode >> 3);
                self.with_register(size, |register| Operation::Bit {
                    function,
                    offset: Source::Register(register),
                })
            }
            0xb0 | 0xb1 => self.with_register(width, Operation::CompareExchange),
            0xb6 | 0xb7 | 0xbe | 0xbf => {
                let from = if opcode & 1 == 0 { Width::Byte } else { Width::Word };
                self.extend(from, opcode >= 0xbe)
            }
            0xba => {
                let ModRm { reg, operand: address } = self.memory()?;
                if reg & 7 < 4 {
                    return Err(self.unsupported());
                }
                let bits = u64::from(size.bytes()) * 8;
                let offset = self.signed(Width::Byte)?.cast_unsigned() & (bits - 1);
                let function = BitFunction::from_encoding(reg);
                let offset = Source::Immediate(offset);
                Ok((Operation::Bit { function, offset }, size, address))
            }
            0xc0 | 0xc1 => self.with_register(width, Operation::ExchangeAdd),
            0xc3 if self.mandatory_prefix() == 0 => self
                .with_register(size.max(Width::Dword), |r| Operation::Store(Source::Register(r))),
            _ => Err(self.unsupported()),
        }
    }

    /// SLDT, STR, LLDT and LTR: of an operand in a register its size counts, in memory it is a
    /// selector.
    fn system_segment(&mut self) -> Decoded {
        let ModRm { reg, operand } = self.modrm()?;
        let (register, store) = match reg & 7 {
            0 => (SegmentRegister::Ldtr, true),
            1 => (SegmentRegister::Tr, true),
            2 => (SegmentRegister::Ldtr, false),
            3 => (SegmentRegister::Tr, false),
            _ => return Err(self.unsupported()),
        };
        let (operand, width, address) = match operand {
            Operand::Register(gpr) => (Some(gpr), self.operand_size(), self.absolute(0)),
            Operand::Memory(address) => (None, Width::Word, address),
        };
        Ok((Operation::SystemSegment { register, store, operand }, width, address))
    }

    /// SGDT, SIDT, LGDT and LIDT.
    fn descriptor_table(&mut self) -> Decoded {
        let ModRm { reg, operand: address } = self.memory()?;
        let (register, store) = match reg & 7 {
            0 => (DescriptorTableRegister::Gdtr, true),
            1 => (DescriptorTableRegister::Idtr, true),
            2 => (DescriptorTableRegister::Gdtr, false),
            3 => (DescriptorTableRegister::Idtr, false),
            _ => return Err(self.unsupported()),
        };
        let form = match (self.mode, self.operand_size()) {
            (Mode::Bits64, _) => PseudoDescriptor::Base64,
            (Mode::Bits16 | Mode::Bits32, Width::Word) => PseudoDescriptor::Base24,
            (Mode::Bits16 | Mode::Bits32, _) => PseudoDescriptor::Base32,
        };
        Ok((Operation::DescriptorTable { register, store, form }, Width::Word, address))
    }

    /// The prefix that selects among SSE instructions: F2, F3, 66 or 0.
    fn mandatory_prefix(&self) -> u8 {
        self.prefixes.repeat.unwrap_or(if self.prefixes.operand { 0x66 } else { 0 })
    }

    /// Stores of an XMM register.
    fn vector_store(&mut self, opcode: u8) -> Decoded {
        let bytes = match (opcode, self.mandatory_prefix()) {
            (0x11, 0xf3) => 4,
            (0x11, 0xf2) | (0x13, 0 | 0x66) | (0xd6, 0x66) => 8,
            (0x7e, 0x66) => self.operand_size().max(Width::Dword).bytes(),
            (0x11 | 0x29 | 0x2b, 0 | 0x66) | (0x7f, 0x66 | 0xf3) | (0xe7, 0x66) => 16,
            _ => return Err(self.unsupported()),
        };
        let ModRm { reg, operand: address } = self.memory()?;
        Ok((Operation::StoreVector { register: reg, bytes }, Width::Qword, address))
    }

    /// ModR/M whose reg field is a register of the same width as memory.
    fn with_register(
        &mut self,
        width: Width,
        operation: impl FnOnce(Register) -> Operation,
    ) -> Decoded {
        let ModRm { reg, operand: address } = self.memory()?;
        Ok((operation(self.register(reg, width)), width, address))
    }

    /// MOVZX, MOVSX and MOVSXD.
    fn extend(&mut self, from: Width, signed: bool) -> Decoded {
        let ModRm { reg, operand: address } = self.memory()?;
        let to = self.operand_size();
        Ok((Operation::Load { register: self.register(reg, to), to, signed }, from, address))
    }

    /// MOV between the accumulator and an offset in the instruction.
    fn offset_form(&mut self, opcode: u8, width: Width) -> Decoded {
        let displacement = self.signed(self.address_size())?;
        let register = Register::ACCUMULATOR;
        let operation = if opcode & 2 == 0 {
            Operation::Load { register, to: width, signed: false }
        } else {
            Operation::Store(Source::Register(register))
        };
        Ok((operation, width, self.absolute(displacement)))
    }

    #[allow(clippy::unnecessary_wraps, reason = "one shape for all arms of the opcode map")]
    fn string(&self, operation: Operation, width: Width) -> Decoded {
        Ok((operation, width, self.absolute(0)))
    }
}
