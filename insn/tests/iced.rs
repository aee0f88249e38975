//! The decoder against an independent one, on random bytes and on every opcode.
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_enum_match_arm,
    reason = "one arm for each operation, against a foreign enum of thousands"
)]

use arch::register::Gpr;
use arch::segment::SegmentRegister;
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind};
use insn::{Base, Instruction, Mode, Operation, decode};
use proptest::prelude::*;

const MODES: [(Mode, u32); 3] = [(Mode::Bits16, 16), (Mode::Bits32, 32), (Mode::Bits64, 64)];

fn other(bytes: &[u8], bits: u32) -> iced_x86::Instruction {
    // LOCK where it is not allowed never reaches the hypervisor: both are to ignore it.
    Decoder::new(bits, bytes, DecoderOptions::NO_INVALID_CHECK).decode()
}

/// 64-bit register number of an iced register of any width.
fn number(register: iced_x86::Register) -> Option<Gpr> {
    if register == iced_x86::Register::None {
        return None;
    }
    Some(Gpr::from_encoding(register.full_register().number() as u8))
}

fn segment(register: iced_x86::Register) -> SegmentRegister {
    SegmentRegister::ALL[register.number()]
}

/// Compares everything that both say about one instruction.
fn compare(ours: &Instruction, theirs: &iced_x86::Instruction, bytes: &[u8]) {
    let context = format!("{bytes:02x?}: {ours:?} and {theirs} ({:?})", theirs.code());
    assert_ne!(theirs.code(), Code::INVALID, "{context}");
    assert_eq!(usize::from(ours.length), theirs.len(), "{context}");
    if let Operation::SystemSegment { operand: Some(gpr), .. } = ours.operation {
        assert_eq!(usize::from(ours.width.bytes()), theirs.op_register(0).size(), "{context}");
        assert_eq!(number(theirs.op_register(0)), Some(gpr), "{context}");
        return compare_operands(ours, theirs, &context);
    }
    let size = match ours.operation {
        Operation::DescriptorTable { form, .. } => form.bytes(),
        Operation::StoreVector { bytes, .. } => usize::from(bytes),
        _ => usize::from(ours.width.bytes()),
    };
    assert_eq!(size, theirs.memory_size().size(), "{context}");
    assert_eq!(
        ours.repeat,
        ours.operation.is_string() && (theirs.has_rep_prefix() || theirs.has_repne_prefix()),
        "{context}"
    );
    let long = ours.mode == Mode::Bits64;
    let flat = |s: SegmentRegister| long && !matches!(s, SegmentRegister::Fs | SegmentRegister::Gs);
    if !matches!(ours.operation, Operation::Stos | Operation::Ins) {
        let theirs = segment(theirs.memory_segment());
        assert!(
            ours.address.segment == theirs || flat(ours.address.segment) && flat(theirs),
            "{context}"
        );
    }
    if ours.operation.is_string() {
        return;
    }
    let address = &ours.address;
    let mut displacement = theirs.memory_displacement64();
    match address.base {
        Base::NextInstruction => {
            assert!(theirs.is_ip_rel_memory_operand(), "{context}");
            displacement = displacement.wrapping_sub(theirs.len() as u64);
        }
        Base::None => assert_eq!(number(theirs.memory_base()), None, "{context}"),
        Base::Register(base) => assert_eq!(number(theirs.memory_base()), Some(base), "{context}"),
    }
    assert_eq!(address.index, number(theirs.memory_index()), "{context}");
    if address.index.is_some() {
        assert_eq!(u32::from(address.scale), theirs.memory_index_scale(), "{context}");
    }
    let mask = address.size.mask();
    assert_eq!(address.displacement as u64 & mask, displacement & mask, "{context}");
    compare_operands(ours, theirs, &context);
}

/// Registers, immediates and mnemonics.
fn compare_operands(ours: &Instruction, theirs: &iced_x86::Instruction, context: &str) {
    use insn::alu::{BitFunction, Function, Unary};
    let of_function = |function| match function {
        Function::Add => Mnemonic::Add,
        Function::Or => Mnemonic::Or,
        Function::Adc => Mnemonic::Adc,
        Function::Sbb => Mnemonic::Sbb,
        Function::And => Mnemonic::And,
        Function::Sub => Mnemonic::Sub,
        Function::Xor => Mnemonic::Xor,
        Function::Cmp => Mnemonic::Cmp,
    };
    let register = |register: insn::Register, at: u32| {
        let theirs = theirs.op_register(at);
        let high = matches!(
            theirs,
            iced_x86::Register::AH
                | iced_x86::Register::BH
                | iced_x86::Register::CH
                | iced_x86::Register::DH
        );
        assert_eq!((Some(register.gpr), register.high), (number(theirs), high), "{context}");
    };
    let source = |source, at: u32| match source {
        insn::Source::Register(r) => register(r, at),
        insn::Source::Immediate(value) => {
            assert_ne!(theirs.op_kind(at), OpKind::Register, "{context}");
            assert_eq!(value, theirs.immediate(at) & ours.width.mask(), "{context}");
        }
    };
    let mnemonic = theirs.mnemonic();
    match ours.operation {
        Operation::Load { register: r, to, signed } => {
            register(r, 0);
            assert_eq!(usize::from(to.bytes()), theirs.op_register(0).size(), "{context}");
            assert_eq!(signed, matches!(mnemonic, Mnemonic::Movsx | Mnemonic::Movsxd), "{context}");
        }
        Operation::Store(s) => {
            assert!(matches!(mnemonic, Mnemonic::Mov | Mnemonic::Movnti), "{context}");
            source(s, 1);
        }
        Operation::StoreVector { register, .. } => {
            assert_eq!(usize::from(register), theirs.op_register(1).number(), "{context}");
            assert!(theirs.op_register(1).is_xmm(), "{context}");
        }
        Operation::Update { function, source: s } => {
            assert_eq!(mnemonic, of_function(function), "{context}");
            source(s, 1);
        }
        Operation::Compute { function, register: r } => {
            assert_eq!(mnemonic, of_function(function), "{context}");
            register(r, 0);
        }
        Operation::Test(s) => {
            assert_eq!(mnemonic, Mnemonic::Test, "{context}");
            source(s, 1);
        }
        Operation::Exchange(r) => {
            assert_eq!(mnemonic, Mnemonic::Xchg, "{context}");
            register(r, 1);
        }
        Operation::ExchangeAdd(r) => {
            assert_eq!(mnemonic, Mnemonic::Xadd, "{context}");
            register(r, 1);
        }
        Operation::CompareExchange(r) => {
            assert_eq!(mnemonic, Mnemonic::Cmpxchg, "{context}");
            register(r, 1);
        }
        Operation::Unary(function) => {
            let expected = match function {
                Unary::Increment => Mnemonic::Inc,
                Unary::Decrement => Mnemonic::Dec,
                Unary::Not => Mnemonic::Not,
                Unary::Negate => Mnemonic::Neg,
            };
            assert_eq!(mnemonic, expected, "{context}");
        }
        Operation::Bit { function, offset } => {
            let expected = match function {
                BitFunction::Test => Mnemonic::Bt,
                BitFunction::Set => Mnemonic::Bts,
                BitFunction::Reset => Mnemonic::Btr,
                BitFunction::Complement => Mnemonic::Btc,
            };
            assert_eq!(mnemonic, expected, "{context}");
            let bits = u64::from(ours.width.bytes()) * 8;
            match offset {
                insn::Source::Register(r) => register(r, 1),
                insn::Source::Immediate(n) => {
                    assert_eq!(n, theirs.immediate(1) % bits, "{context}");
                }
            }
        }
        Operation::DescriptorTable { register, store, .. } => {
            use arch::segment::DescriptorTableRegister::{Gdtr, Idtr};
            let expected = match (register, store) {
                (Gdtr, false) => Mnemonic::Lgdt,
                (Gdtr, true) => Mnemonic::Sgdt,
                (Idtr, false) => Mnemonic::Lidt,
                (Idtr, true) => Mnemonic::Sidt,
            };
            assert_eq!(mnemonic, expected, "{context}");
        }
        Operation::SystemSegment { register, store, operand } => {
            let expected = match (register, store) {
                (SegmentRegister::Ldtr, false) => Mnemonic::Lldt,
                (SegmentRegister::Ldtr, true) => Mnemonic::Sldt,
                (SegmentRegister::Tr, false) => Mnemonic::Ltr,
                (SegmentRegister::Tr, true) => Mnemonic::Str,
                _ => panic!("{context}"),
            };
            assert_eq!(mnemonic, expected, "{context}");
            assert_eq!(operand.is_some(), theirs.op_kind(0) == OpKind::Register, "{context}");
        }
        Operation::Movs | Operation::Stos | Operation::Ins | Operation::Outs => {}
    }
}

/// What the decoder promises to know.
fn promised(theirs: &iced_x86::Instruction) -> bool {
    let memory = (0..theirs.op_count()).any(|i| theirs.op_kind(i) == OpKind::Memory);
    let general = matches!(
        theirs.mnemonic(),
        Mnemonic::Add
            | Mnemonic::Or
            | Mnemonic::Adc
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Sub
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test
            | Mnemonic::Xchg
            | Mnemonic::Xadd
            | Mnemonic::Cmpxchg
            | Mnemonic::Inc
            | Mnemonic::Dec
            | Mnemonic::Not
            | Mnemonic::Neg
            | Mnemonic::Bt
            | Mnemonic::Bts
            | Mnemonic::Btr
            | Mnemonic::Btc
            | Mnemonic::Mov
            | Mnemonic::Movnti
            | Mnemonic::Movzx
            | Mnemonic::Movsx
            | Mnemonic::Movsxd
            | Mnemonic::Lgdt
            | Mnemonic::Lidt
            | Mnemonic::Sgdt
            | Mnemonic::Sidt
    );
    let system = matches!(
        theirs.mnemonic(),
        Mnemonic::Lldt | Mnemonic::Ltr | Mnemonic::Sldt | Mnemonic::Str
    );
    let string = matches!(
        theirs.code(),
        Code::Movsb_m8_m8
            | Code::Movsw_m16_m16
            | Code::Movsd_m32_m32
            | Code::Movsq_m64_m64
            | Code::Stosb_m8_AL
            | Code::Stosw_m16_AX
            | Code::Stosd_m32_EAX
            | Code::Stosq_m64_RAX
            | Code::Insb_m8_DX
            | Code::Insw_m16_DX
            | Code::Insd_m32_DX
            | Code::Outsb_DX_m8
            | Code::Outsw_DX_m16
            | Code::Outsd_DX_m32
    );
    // Left out: moves of segment registers, the second encodings of 80 (82, 32-bit only) and of
    // TEST (F6 /1, F7 /1).
    let segment = (0..theirs.op_count()).any(|i| {
        theirs.op_kind(i) == OpKind::Register && theirs.op_register(i).is_segment_register()
    });
    let alias = format!("{:?}", theirs.code()).contains("_82")
        || matches!(
            theirs.code(),
            Code::Test_rm8_imm8_F6r1
                | Code::Test_rm16_imm16_F7r1
                | Code::Test_rm32_imm32_F7r1
                | Code::Test_rm64_imm32_F7r1
        );
    memory && general && !segment && !alias || string || system
}

fn check(bytes: &[u8]) {
    for (mode, bits) in MODES {
        let theirs = other(bytes, bits);
        match decode(bytes, mode) {
            Ok(ours) => compare(&ours, &theirs, bytes),
            Err(error) => assert!(
                !promised(&theirs),
                "{mode:?} {bytes:02x?}: {theirs} ({:?}) must be known, not {error}",
                theirs.code()
            ),
        }
    }
}

#[test]
fn every_opcode_and_modrm_decodes_as_an_independent_decoder_says() {
    let tail = [0x24, 0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7, 0xf8, 0x19];
    let prefixes: [&[u8]; 10] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf3],
        &[0xf2],
        &[0x48],
        &[0x4d],
        &[0x66, 0x67],
        &[0x65, 0x44],
        &[0x3e, 0x41],
    ];
    for prefix in prefixes {
        for opcode in 0..=0x1ff_u16 {
            for modrm in 0..=255 {
                let mut bytes = prefix.to_vec();
                if opcode > 0xff {
                    bytes.push(0x0f);
                }
                bytes.extend([opcode as u8, modrm]);
                bytes.extend(tail);
                check(&bytes);
            }
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_decode_as_an_independent_decoder_says(
        prefixes in proptest::collection::vec(
            prop::sample::select(vec![
                0x26, 0x2e, 0x36, 0x3e, 0x40, 0x41, 0x44, 0x48, 0x4f, 0x64, 0x65, 0x66, 0x67, 0xf0,
                0xf2, 0xf3,
            ]), 0..4),
        rest in proptest::array::uniform11(0_u8..),
    ) {
        let mut bytes = prefixes;
        bytes.extend(rest);
        check(&bytes);
    }

    #[test]
    fn bytes_that_are_cut_short_ask_for_more(rest in proptest::array::uniform15(0_u8..)) {
        for (mode, _) in MODES {
            if let Ok(whole) = decode(&rest, mode) {
                for length in 0..usize::from(whole.length) {
                    prop_assert_eq!(
                        decode(&rest[..length], mode), Err(insn::DecodeError::NeedMoreBytes));
                }
            }
        }
    }
}

#[test]
fn a_sixteenth_byte_is_too_long() {
    let bytes = [0x3e; 20];
    assert_eq!(decode(&bytes, Mode::Bits64), Err(insn::DecodeError::TooLong));
}
