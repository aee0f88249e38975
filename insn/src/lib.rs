//! Decodes the few guest instructions that the hypervisor must carry out, and says what they do.
//!
//! The way of an emulated access: [`fetch_instruction`] (guest bytes at RIP) → [`decode()`] →
//! [`Instruction::linear_address`] → [`translate`] → read the old value →
//! [`Instruction::evaluate`] → write the new value → [`Evaluation::commit`].
//!
//! * [`decode`](decode()): bytes to [`Instruction`]; everything outside the supported set is
//!   refused, never guessed.
//! * [`linear`]: the guest's own page tables, read as its CPU would read them.
//! * [`alu`]: results and flags of the arithmetic, as plain functions of numbers.
//!
//! Invariant: nothing here changes guest state but [`Evaluation::commit`],
//! [`Instruction::advance`] and [`linear::write_linear`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod address;
pub mod alu;
mod decode;
mod execute;
#[cfg(test)]
mod fake;
pub mod flags;
mod instruction;
pub mod linear;
pub mod linux;
mod modrm;

pub use decode::{DecodeError, decode};
pub use execute::Evaluation;
pub use instruction::{
    Address, Base, Instruction, MAX_LENGTH, Mode, Operation, PseudoDescriptor, Register, Source,
};
pub use linear::{
    Access, MemoryFault, PagingRegisters, Visited, behind, canonical, fetch_instruction,
    read_linear, translate, translate_used, write_linear,
};
