//! ModR/M and SIB bytes to an address form
//! (SDM "Addressing-Mode Encoding of ModR/M and SIB Bytes").

use arch::Width;
use arch::register::Gpr;
use arch::segment::SegmentRegister;

use crate::decode::{DecodeError, Decoder};
use crate::instruction::{Address, Base, Mode};

/// A ModR/M byte and what follows it.
#[derive(Clone, Copy)]
pub(crate) struct ModRm<O = Address> {
    /// The reg field, with REX.R.
    pub(crate) reg: u8,
    pub(crate) operand: O,
}

/// What mod and r/m fields name.
#[derive(Clone, Copy)]
pub(crate) enum Operand {
    Register(Gpr),
    Memory(Address),
}

impl Decoder<'_> {
    /// Reads ModR/M, SIB and displacement.
    pub(crate) fn modrm(&mut self) -> Result<ModRm<Operand>, DecodeError> {
        let byte = self.byte()?;
        let (mode, rm) = (byte >> 6, byte & 7);
        let reg = byte >> 3 & 7 | (self.prefixes.rex & 4) << 1;
        let size = self.address_size();
        let operand = if mode == 3 {
            Operand::Register(Gpr::from_encoding(rm | (self.prefixes.rex & 1) << 3))
        } else if size == Width::Word {
            Operand::Memory(self.form_16(mode, rm)?)
        } else {
            Operand::Memory(self.form_32(mode, rm, size)?)
        };
        Ok(ModRm { reg, operand })
    }

    /// An address that is a plain offset in DS or the prefixed segment.
    pub(crate) fn absolute(&self, displacement: i64) -> Address {
        self.address(SegmentRegister::Ds, Base::None, None, 1, displacement)
    }

    fn address(
        &self,
        default: SegmentRegister,
        base: Base,
        index: Option<Gpr>,
        scale: u8,
        displacement: i64,
    ) -> Address {
        let segment = self.prefixes.segment.unwrap_or(default);
        Address { segment, base, index, scale, displacement, size: self.address_size() }
    }

    fn form_16(&mut self, mode: u8, rm: u8) -> Result<Address, DecodeError> {
        let (base, index) = match rm {
            0 => (Gpr::Rbx, Some(Gpr::Rsi)),
            1 => (Gpr::Rbx, Some(Gpr::Rdi)),
            2 => (Gpr::Rbp, Some(Gpr::Rsi)),
            3 => (Gpr::Rbp, Some(Gpr::Rdi)),
            4 => (Gpr::Rsi, None),
            5 => (Gpr::Rdi, None),
            6 => (Gpr::Rbp, None),
            _ => (Gpr::Rbx, None),
        };
        if mode == 0 && rm == 6 {
            let displacement = self.signed(Width::Word)?;
            return Ok(self.absolute(displacement));
        }
        let displacement = self.displacement(mode, Width::Word)?;
        let default = if base == Gpr::Rbp { SegmentRegister::Ss } else { SegmentRegister::Ds };
        Ok(self.address(default, Base::Register(base), index, 1, displacement))
    }

    fn form_32(&mut self, mode: u8, rm: u8, size: Width) -> Result<Address, DecodeError> {
        let rex = self.prefixes.rex;
        let (mut base, mut index, mut scale) = (rm, None, 1);
        if rm == 4 {
            let sib = self.byte()?;
            base = sib & 7;
            scale = 1 << (sib >> 6);
            let number = sib >> 3 & 7 | (rex & 2) << 2;
            index = (number != 4).then(|| Gpr::from_encoding(number));
        }
        if mode == 0 && base == 5 {
            let displacement = self.signed(Width::Dword)?;
            // Without a SIB byte 64-bit mode takes this form for RIP-relative.
            let relative = rm == 5 && self.mode == Mode::Bits64;
            let base = if relative { Base::NextInstruction } else { Base::None };
            return Ok(self.address(SegmentRegister::Ds, base, index, scale, displacement));
        }
        let displacement = self.displacement(mode, size.min(Width::Dword))?;
        let base = Gpr::from_encoding(base | (rex & 1) << 3);
        let stack = matches!(base, Gpr::Rsp | Gpr::Rbp);
        let default = if stack { SegmentRegister::Ss } else { SegmentRegister::Ds };
        Ok(self.address(default, Base::Register(base), index, scale, displacement))
    }

    fn displacement(&mut self, mode: u8, full: Width) -> Result<i64, DecodeError> {
        match mode {
            0 => Ok(0),
            1 => self.signed(Width::Byte),
            _ => self.signed(full),
        }
    }
}
