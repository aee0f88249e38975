//! Every instruction of 64-bit mode with an operand at [RBX]: all encodings are tried, and a library decoder says which are one.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// `mod` = 0, `r/m` = 3.
const AT_RBX: u8 = 3;
const IMMEDIATE: [u8; 8] = [5, 0, 0, 0, 0, 0, 0, 0];

/// These load what the payload runs by from the operand, or have none there but its address.
const LEFT_OUT: [Mnemonic; 6] =
    [Mnemonic::Lgdt, Mnemonic::Lidt, Mnemonic::Lldt, Mnemonic::Ltr, Mnemonic::Lmsw, Mnemonic::Lea];
/// With a register as the number of the bit, their operand is elsewhere.
const BIT_STRINGS: [Mnemonic; 4] = [Mnemonic::Bt, Mnemonic::Btc, Mnemonic::Btr, Mnemonic::Bts];
/// VZEROUPPER: what an instruction has left in the upper half of YMM0 is gone for the next.
const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

/// A Rust array of the instructions that need no vector extension, and one of those encoded by VEX.
pub(crate) fn list() -> String {
    let mut seen = BTreeSet::new();
    let mut text = array("LEGACY", &[], legacy(), &mut seen);
    text += &array("VEX", &VZEROUPPER, vex(), &mut seen);
    text
}

fn array(
    name: &str,
    before: &[u8],
    encodings: impl Iterator<Item = Vec<u8>>,
    seen: &mut BTreeSet<Code>,
) -> String {
    let mut text = format!("const {name}: &[Instruction] = &[\n");
    for bytes in encodings {
        let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        let code = instruction.code();
        if has_its_operand_at_rbx(&instruction) && seen.insert(code) {
            let bytes = bytes.get(..instruction.len()).unwrap_or_default();
            let _ = writeln!(text, "(\"{code:?}\", &{:?}),", [before, bytes].concat());
        }
    }
    text + "];\n"
}

fn has_its_operand_at_rbx(instruction: &Instruction) -> bool {
    let mnemonic = instruction.mnemonic();
    let is_elsewhere =
        BIT_STRINGS.contains(&mnemonic) && instruction.op_kind(1) == OpKind::Register;
    !instruction.is_invalid()
        && !is_elsewhere
        && !LEFT_OUT.contains(&mnemonic)
        && instruction.memory_base() == Register::RBX
        && instruction.memory_index() == Register::None
        && (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory)
}

/// Every opcode of the maps without a prefix of its own, with each of the prefixes that make another of it.
fn legacy() -> impl Iterator<Item = Vec<u8>> {
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];
    let wide: [&[u8]; 2] = [&[], &[0x48]];
    let heads = maps.into_iter().flat_map(move |map| {
        let prefixes = prefixes.into_iter();
        prefixes.flat_map(move |prefix| wide.map(|wide| [prefix, wide, map].concat()))
    });
    heads.flat_map(operations)
}

/// Every opcode of VEX's maps: of both lengths and widths, with XMM0 or RAX as the further source.
fn vex() -> impl Iterator<Item = Vec<u8>> {
    const ALL_REGISTERS_LOW: u8 = 0xe0;
    const FIRST_SOURCE: u8 = 0x78;
    let last = (0..8_u8).flat_map(|low| [0, 0x80].map(|wide| wide | FIRST_SOURCE | low));
    let heads =
        last.flat_map(|last| (1..4).map(move |map| vec![0xc4, ALL_REGISTERS_LOW | map, last]));
    heads.flat_map(operations)
}

/// A head with each opcode, and with each further part of it in ModR/M.
fn operations(head: Vec<u8>) -> impl Iterator<Item = Vec<u8>> {
    (0..=255).flat_map(move |opcode| {
        let head = head.clone();
        (0..8).map(move |part| [&head[..], &[opcode, part << 3 | AT_RBX], &IMMEDIATE].concat())
    })
}
