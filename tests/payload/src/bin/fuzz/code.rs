//! An instruction from chance: any that a CPU has or has not, but those that take the payload's own ground away from
//! under it (descriptor tables and CR3 from anywhere), which `changes` does with care.

use crate::random::Random;

/// What was made of it so far. Behind it stands INT3, as the immediate of whoever has one.
#[derive(Clone, Copy)]
pub(crate) struct Code {
    bytes: [u8; 24],
    length: usize,
}

impl Code {
    const fn new() -> Self {
        Self { bytes: [0; 24], length: 0 }
    }

    /// This instruction.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut code = Self::new();
        code.extend(bytes);
        code
    }

    fn push(&mut self, byte: u8) {
        if let Some(to) = self.bytes.get_mut(self.length) {
            *to = byte;
            self.length += 1;
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.push(*byte));
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];

/// Opcodes of one byte with a ModR/M byte (SDM, "One-byte Opcode Map"): a bit each.
const ONE_BYTE: [u64; 4] =
    [0x0f0f_0f0f_0f0f_0f0f, 0x0000_0a08_0000_0000, 0x0000_0000_0000_ffff, 0xc0c0_0000_ff0f_00c3];
/// Those of two bytes without one (SDM, "Two-byte Opcode Map").
const TWO_BYTES_WITHOUT: [u64; 4] =
    [0x00ff_0000_0000_0bf0, 0x0080_0000_0000_0000, 0x0000_0707_0000_ffff, 0x0000_0000_0000_ff00];

fn has(map: [u64; 4], opcode: u8) -> bool {
    map[usize::from(opcode >> 6)] >> (opcode & 63) & 1 != 0
}

/// What the hypervisor has most to do with: strings, ports, tables, control registers, CPUID, MSRs, HLT, far transfers.
const LIKELY_ONE: [u8; 33] = [
    0x6c, 0x6d, 0x6e, 0x6f, 0xec, 0xed, 0xee, 0xef, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad,
    0xae, 0xaf, 0xf4, 0xff, 0x8f, 0x88, 0x89, 0x8a, 0x8b, 0xc6, 0xc7, 0x86, 0x87, 0xf6, 0xf7, 0x9d,
    0xfb,
];
const LIKELY_TWO: [u8; 32] = [
    0x00, 0x01, 0x01, 0x01, 0x05, 0x06, 0x07, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23, 0x31, 0x32, 0x33,
    0x34, 0x35, 0xa2, 0xae, 0xc7, 0xb0, 0xb1, 0xc0, 0xc1, 0xbe, 0xb6, 0x10, 0x11, 0x28, 0x29, 0xd6,
];

/// An instruction.
pub(crate) fn instruction(random: &mut Random) -> Code {
    let mut code = Code::new();
    while random.once_in(4) {
        code.push(random.one_of(&PREFIXES, 0x66));
    }
    if random.once_in(2) {
        code.push(0x40 | random.byte() & 0xf);
    }
    match random.below(10) {
        0..=2 => one_byte(random.one_of(&LIKELY_ONE, 0x8b), random, &mut code),
        3..=5 => two_bytes(random.one_of(&LIKELY_TWO, 0x01), random, &mut code),
        6 => one_byte(random.byte(), random, &mut code),
        7 => two_bytes(random.byte(), random, &mut code),
        8 => {
            let map = random.one_of(&[0x38, 0x3a], 0x38);
            code.extend(&[0x0f, map, random.byte()]);
            operand(modrm(random), random, &mut code);
        }
        _ => {
            code.extend(&[0xc5, random.byte(), random.byte()]);
            operand(modrm(random), random, &mut code);
        }
    }
    code
}

fn one_byte(opcode: u8, random: &mut Random, code: &mut Code) {
    code.push(opcode);
    match opcode {
        // The two-byte map, VEX and EVEX: here without more.
        0x0f | 0xc4 | 0xc5 | 0x62 => {}
        // INT n; ports up to 255 that end nothing.
        0xcd => code.push(random.byte()),
        0xe4..=0xe7 => {
            code.push(random.one_of(&[0x20, 0x21, 0x40, 0x43, 0x70, 0x71, 0x80, 0xa1], 0x80))
        }
        _ if has(ONE_BYTE, opcode) => operand(modrm(random), random, code),
        _ => {}
    }
}

fn two_bytes(opcode: u8, random: &mut Random, code: &mut Code) {
    let operation = |modrm: u8| modrm >> 3 & 7;
    let mut modrm = modrm(random);
    match opcode {
        // WRMSR, and the start of longer opcodes.
        0x30 | 0x38 | 0x3a => return,
        // LGDT and LIDT: SGDT and SIDT.
        0x01 if modrm < 0xc0 && matches!(operation(modrm), 2 | 3) => modrm &= !0x10,
        // STR in place of LTR: QEMU takes a null selector, and ends itself at the next exception.
        0x00 if operation(modrm) == 3 => modrm &= !0x10,
        // CR2 alone.
        0x22 => modrm = modrm & 0xc7 | 0x10,
        _ => {}
    }
    code.extend(&[0x0f, opcode]);
    if !has(TWO_BYTES_WITHOUT, opcode) {
        operand(modrm, random, code);
    }
}

/// A ModR/M byte; an operand in memory is more frequent than chance has it.
fn modrm(random: &mut Random) -> u8 {
    let any = random.byte();
    if random.once_in(3) { any & 0x3f } else { any }
}

/// ModR/M with what follows it, never an address without a register.
fn operand(modrm: u8, random: &mut Random, code: &mut Code) {
    let (mode, base) = (modrm >> 6, modrm & 7);
    code.push(modrm);
    if mode == 3 {
        return;
    }
    if base == 4 {
        let sib = random.byte();
        let none = mode == 0 && sib & 7 == 5;
        code.push(if none { sib & !1 } else { sib });
    }
    let by_place = mode == 0 && base == 5;
    match mode {
        1 => code.push(random.byte()),
        _ if mode == 2 || by_place => {
            let far = (random.below(0x4000) as i32 - 0x2000).to_le_bytes();
            code.extend(&far);
        }
        _ => {}
    }
}
