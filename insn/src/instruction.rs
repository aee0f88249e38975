//! A decoded instruction: operation, operands, address form.

use arch::register::{Efer, Gpr};
use arch::segment::{DescriptorTable, DescriptorTableRegister, SegmentRegister};
use arch::vcpu::Vcpu;
use arch::{Gva, Width};

use crate::alu::{BitFunction, Function, Unary};

/// Longest instruction in bytes (SDM "Instruction Format").
pub const MAX_LENGTH: usize = 15;

/// Default operand and address size, from the code segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Real mode, virtual-8086 mode, or a 16-bit code segment.
    Bits16,
    /// A 32-bit code segment, in protected or compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl Mode {
    /// The mode that `vcpu` decodes in (SDM "Operand-Size and Address-Size Attributes").
    #[must_use]
    pub fn of<V: Vcpu>(vcpu: &V) -> Self {
        let access = vcpu.segment(SegmentRegister::Cs).access;
        if vcpu.efer() & Efer::LMA.bits() != 0 && access.long() {
            Self::Bits64
        } else if access.default_32() {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }
}

/// A general register as an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// The register.
    pub gpr: Gpr,
    /// Bits 15:8 of it: AH, CH, DH or BH.
    pub high: bool,
}

impl Register {
    /// RAX, EAX, AX or AL.
    pub const ACCUMULATOR: Self = Self { gpr: Gpr::Rax, high: false };

    /// Its value, `width` wide.
    #[must_use]
    pub fn get<V: Vcpu>(self, vcpu: &V, width: Width) -> u64 {
        vcpu.gpr(self.gpr) >> if self.high { 8 } else { 0 } & width.mask()
    }

    /// Writes it as an instruction of this operand size does: 32 bits clear the upper half, 8 and
    /// 16 bits keep the rest (SDM "General-Purpose Registers in 64-Bit Mode").
    pub fn set<V: Vcpu>(self, vcpu: &mut V, width: Width, value: u64) {
        let shift = if self.high { 8 } else { 0 };
        let kept = match width {
            Width::Byte | Width::Word => vcpu.gpr(self.gpr) & !(width.mask() << shift),
            Width::Dword | Width::Qword => 0,
        };
        vcpu.set_gpr(self.gpr, kept | (value & width.mask()) << shift);
    }
}

/// The operand that is not in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    Register(Register),
    /// A constant, sign-extended by the instruction's rules and cut to the operand's width.
    Immediate(u64),
}

impl Source {
    /// Its value, `width` wide.
    #[must_use]
    pub fn get<V: Vcpu>(self, vcpu: &V, width: Width) -> u64 {
        match self {
            Self::Register(register) => register.get(vcpu, width),
            Self::Immediate(value) => value & width.mask(),
        }
    }
}

/// Form of the memory operand of LGDT, LIDT, SGDT and SIDT
/// (SDM "LGDT/LIDT—Load Global/Interrupt Descriptor Table Register").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PseudoDescriptor {
    /// 6 bytes; a load takes 24 bits of the base.
    Base24,
    /// 6 bytes.
    Base32,
    /// 10 bytes.
    Base64,
}

impl PseudoDescriptor {
    /// Bytes in memory.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Base24 | Self::Base32 => 6,
            Self::Base64 => 10,
        }
    }

    /// The register value that a load takes from memory. Of `bytes`, the first [`Self::bytes`]
    /// count.
    #[must_use]
    pub fn parse(self, bytes: [u8; 10]) -> DescriptorTable {
        let [l0, l1, base @ ..] = bytes;
        let mask = match self {
            Self::Base24 => 0xff_ffff,
            Self::Base32 => 0xffff_ffff,
            Self::Base64 => u64::MAX,
        };
        DescriptorTable {
            base: Gva::new(u64::from_le_bytes(base) & mask),
            limit: u16::from_le_bytes([l0, l1]),
        }
    }

    /// The value that a store writes to memory: the first [`Self::bytes`] of the result.
    #[must_use]
    pub fn encode(self, table: DescriptorTable) -> [u8; 10] {
        let [l0, l1] = table.limit.to_le_bytes();
        let [b0, b1, b2, b3, b4, b5, b6, b7] = table.base.as_u64().to_le_bytes();
        [l0, l1, b0, b1, b2, b3, b4, b5, b6, b7]
    }
}

/// What an instruction does. "Memory" is its one memory operand, of [`Instruction::width`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// LGDT, LIDT, SGDT or SIDT.
    DescriptorTable {
        /// GDTR or IDTR.
        register: DescriptorTableRegister,
        /// SGDT or SIDT.
        store: bool,
        /// Form of the memory operand.
        form: PseudoDescriptor,
    },
    /// LLDT, LTR, SLDT or STR.
    SystemSegment {
        /// LDTR or TR.
        register: SegmentRegister,
        /// SLDT or STR.
        store: bool,
        /// The general register that is the operand instead of memory; a store writes
        /// [`Instruction::width`] of it.
        operand: Option<Gpr>,
    },
    /// MOV, MOVZX, MOVSX, MOVSXD from memory.
    Load {
        /// Destination.
        register: Register,
        /// Width of the destination.
        to: Width,
        /// Whether the value is sign-extended to it.
        signed: bool,
    },
    /// MOV or MOVNTI to memory.
    Store(Source),
    /// The low `bytes` bytes of an XMM register to memory (MOVUPS, MOVDQA, MOVQ, MOVNTPS …).
    StoreVector {
        /// XMM0 to XMM15.
        register: u8,
        /// 4, 8 or 16.
        bytes: u8,
    },
    /// Memory = memory `function` source.
    Update {
        /// What is computed.
        function: Function,
        /// Second operand.
        source: Source,
    },
    /// Register = register `function` memory.
    Compute {
        /// What is computed.
        function: Function,
        /// First operand and destination.
        register: Register,
    },
    /// TEST: flags of memory AND source.
    Test(Source),
    /// XCHG.
    Exchange(Register),
    /// XADD.
    ExchangeAdd(Register),
    /// CMPXCHG with the accumulator.
    CompareExchange(Register),
    /// INC, DEC, NOT or NEG.
    Unary(Unary),
    /// BT, BTS, BTR or BTC.
    Bit {
        /// The operation on the bit.
        function: BitFunction,
        /// Number of the bit. A register reaches beyond the operand, see
        /// [`Instruction::linear_address`].
        offset: Source,
    },
    /// MOVS: memory at [`Instruction::destination`] = memory at [`Instruction::source`].
    Movs,
    /// STOS: memory at [`Instruction::destination`] = accumulator.
    Stos,
    /// INS: memory at [`Instruction::destination`] = port DX.
    Ins,
    /// OUTS: port DX = memory at [`Instruction::source`].
    Outs,
}

impl Operation {
    /// Whether the memory operand is read (for MOVS: the source is).
    #[must_use]
    pub const fn reads_memory(&self) -> bool {
        !matches!(
            self,
            Self::DescriptorTable { store: true, .. }
                | Self::SystemSegment { store: true, .. }
                | Self::SystemSegment { operand: Some(_), .. }
                | Self::Store(_)
                | Self::StoreVector { .. }
                | Self::Stos
                | Self::Ins
        )
    }

    /// Whether the memory operand is written.
    #[must_use]
    pub const fn writes_memory(&self) -> bool {
        !matches!(
            self,
            Self::DescriptorTable { store: false, .. }
                | Self::SystemSegment { store: false, .. }
                | Self::SystemSegment { operand: Some(_), .. }
                | Self::Load { .. }
                | Self::Update { function: Function::Cmp, .. }
                | Self::Compute { .. }
                | Self::Test(_)
                | Self::Bit { function: BitFunction::Test, .. }
                | Self::Outs
        )
    }

    /// LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT or STR.
    #[must_use]
    pub const fn is_of_table(&self) -> bool {
        matches!(self, Self::DescriptorTable { .. } | Self::SystemSegment { .. })
    }

    /// MOVS, STOS, INS or OUTS.
    #[must_use]
    pub const fn is_string(&self) -> bool {
        matches!(self, Self::Movs | Self::Stos | Self::Ins | Self::Outs)
    }
}

/// The base of a memory operand's offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// Zero.
    None,
    Register(Gpr),
    /// The address of the next instruction (RIP-relative).
    NextInstruction,
}

/// Address form of a memory operand (SDM "Addressing-Mode Encoding of ModR/M and SIB Bytes").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Segment, with prefixes applied. For MOVS and OUTS, the source's.
    pub segment: SegmentRegister,
    pub base: Base,
    /// Index register.
    pub index: Option<Gpr>,
    /// Factor of the index: 1, 2, 4 or 8.
    pub scale: u8,
    pub displacement: i64,
    /// Address size: word, dword or qword. For string instructions also the counter's size.
    pub size: Width,
}

/// A decoded instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// The mode it was decoded in.
    pub mode: Mode,
    /// Its length in bytes, 1 to 15.
    pub length: u8,
    /// What it does.
    pub operation: Operation,
    /// Width of the memory operand; says nothing for [`Operation::DescriptorTable`] and
    /// [`Operation::StoreVector`], which have their own sizes.
    pub width: Width,
    /// Address of the memory operand; meaningless if [`Operation::SystemSegment`] has none.
    pub address: Address,
    /// Whether a REP prefix repeats it (string instructions only).
    pub repeat: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;

    fn memory_of(bytes: &[u8]) -> (bool, bool) {
        let operation = decode(bytes, Mode::Bits64).unwrap().operation;
        (operation.reads_memory(), operation.writes_memory())
    }

    #[test]
    fn a_system_segment_instruction_touches_memory_only_where_its_operand_is() {
        // lldt [rax]; ltr [rax]; sldt [rax]; str [rax]
        assert_eq!(memory_of(&[0x0f, 0x00, 0x10]), (true, false));
        assert_eq!(memory_of(&[0x0f, 0x00, 0x18]), (true, false));
        assert_eq!(memory_of(&[0x0f, 0x00, 0x00]), (false, true));
        assert_eq!(memory_of(&[0x0f, 0x00, 0x08]), (false, true));
        for modrm in (0xc0..=0xdf).step_by(8) {
            assert_eq!(memory_of(&[0x0f, 0x00, modrm]), (false, false), "{modrm:#x}");
        }
    }

    #[test]
    fn the_size_of_a_system_segment_operand_counts_only_in_a_register() {
        let of = |bytes: &[u8], mode| decode(bytes, mode).unwrap().width;
        // str r8; str eax; str ax
        assert_eq!(of(&[0x49, 0x0f, 0x00, 0xc8], Mode::Bits64), Width::Qword);
        assert_eq!(of(&[0x0f, 0x00, 0xc8], Mode::Bits32), Width::Dword);
        assert_eq!(of(&[0x0f, 0x00, 0xc8], Mode::Bits16), Width::Word);
        assert_eq!(of(&[0x48, 0x0f, 0x00, 0x08], Mode::Bits64), Width::Word);
    }
}
