//! Results and flags of integer arithmetic, as plain functions of numbers
//! (SDM "EFLAGS Register", "Status Flags"). Flags that the manual leaves undefined are cleared.

use arch::Width;
use arch::register::Rflags;

/// The two-operand functions, in encoding order (opcodes 00 to 3F; 80 to 83 /0 to /7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Function {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
}

impl Function {
    /// From the low three bits of an encoding.
    #[must_use]
    pub const fn from_encoding(encoding: u8) -> Self {
        match encoding & 7 {
            0 => Self::Add,
            1 => Self::Or,
            2 => Self::Adc,
            3 => Self::Sbb,
            4 => Self::And,
            5 => Self::Sub,
            6 => Self::Xor,
            _ => Self::Cmp,
        }
    }
}

/// The one-operand functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unary {
    Increment,
    Decrement,
    Not,
    Negate,
}

/// What BT, BTS, BTR and BTC do to the bit, in encoding order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitFunction {
    Test,
    Set,
    Reset,
    Complement,
}

impl BitFunction {
    /// From the low two bits of an encoding.
    #[must_use]
    pub const fn from_encoding(encoding: u8) -> Self {
        match encoding & 3 {
            0 => Self::Test,
            1 => Self::Set,
            2 => Self::Reset,
            _ => Self::Complement,
        }
    }
}

const CF: u64 = Rflags::CF.bits();
const STATUS: u64 = Rflags::CF
    .union(Rflags::PF)
    .union(Rflags::AF)
    .union(Rflags::ZF)
    .union(Rflags::SF)
    .union(Rflags::OF)
    .bits();

/// Result and new flags of `a function b`, operands `width` wide, with `flags` before. The result
/// of [`Function::Cmp`] is the difference; who calls does not store it.
#[must_use]
pub fn arithmetic(function: Function, width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    let (a, b) = (a & width.mask(), b & width.mask());
    let carry = flags & CF;
    // The carries (or borrows) out of each bit, by the full adder's equations.
    let (result, carries) = match function {
        Function::Add => add(a, b, 0),
        Function::Adc => add(a, b, carry),
        Function::Sub | Function::Cmp => subtract(a, b, 0),
        Function::Sbb => subtract(a, b, carry),
        Function::Or => (a | b, 0),
        Function::And => (a & b, 0),
        Function::Xor => (a ^ b, 0),
    };
    let top = u32::from(width.bytes()) * 8 - 1;
    let mut new = flags & !STATUS | result_flags(width, result);
    if carries >> top & 1 != 0 {
        new |= CF;
    }
    if carries >> 3 & 1 != 0 {
        new |= Rflags::AF.bits();
    }
    // Signed overflow: the carry into the sign bit differs from the carry out of it.
    if (carries >> top ^ carries >> (top - 1)) & 1 != 0 {
        new |= Rflags::OF.bits();
    }
    (result & width.mask(), new)
}

fn add(a: u64, b: u64, carry: u64) -> (u64, u64) {
    let sum = a.wrapping_add(b).wrapping_add(carry);
    (sum, a & b | (a | b) & !sum)
}

fn subtract(a: u64, b: u64, borrow: u64) -> (u64, u64) {
    let difference = a.wrapping_sub(b).wrapping_sub(borrow);
    (difference, !a & b | (!a | b) & difference)
}

/// ZF, SF and PF of a result.
fn result_flags(width: Width, result: u64) -> u64 {
    let mut flags = 0;
    if result & width.mask() == 0 {
        flags |= Rflags::ZF.bits();
    }
    if result >> (u32::from(width.bytes()) * 8 - 1) & 1 != 0 {
        flags |= Rflags::SF.bits();
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= Rflags::PF.bits();
    }
    flags
}

/// Result and new flags of a one-operand function. INC and DEC keep CF, NOT keeps all.
#[must_use]
pub fn unary(function: Unary, width: Width, value: u64, flags: u64) -> (u64, u64) {
    let keep_carry = |(result, new): (u64, u64)| (result, new & !CF | flags & CF);
    match function {
        Unary::Increment => keep_carry(arithmetic(Function::Add, width, value, 1, flags)),
        Unary::Decrement => keep_carry(arithmetic(Function::Sub, width, value, 1, flags)),
        Unary::Not => (!value & width.mask(), flags),
        Unary::Negate => arithmetic(Function::Sub, width, 0, value, flags),
    }
}

/// Result and new flags of a bit function; `offset` is taken modulo the width. Only CF changes.
#[must_use]
pub fn bit(function: BitFunction, width: Width, value: u64, offset: u64, flags: u64) -> (u64, u64) {
    let mask = 1 << (offset & (u64::from(width.bytes()) * 8 - 1));
    let carry = if value & mask != 0 { CF } else { 0 };
    let result = match function {
        BitFunction::Test => value,
        BitFunction::Set => value | mask,
        BitFunction::Reset => value & !mask,
        BitFunction::Complement => value ^ mask,
    };
    (result, flags & !CF | carry)
}
