//! What the log says of the machine, for who helps from afar: the CPU by name and number, its
//! topology, and the words that say what its virtualization can do. And the form of the lines from which a
//! program reads the machine again.
//!
//! Pure: CPUID is a function that the caller gives; what is printed is a `Display`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod cpu;
mod kind;
mod leaves;
mod lines;
mod topology;
mod words;

pub use cpu::Cpu;
pub use kind::{Kinds, kind};
pub use leaves::leaves;
pub use lines::{BYTES_OF_LINE, Lines, sum};
pub use topology::{Counts, Topology};
pub use words::{SvmWords, Words};

use arch::machine::CpuidResult;

/// CPUID: leaf and subleaf in, registers out.
pub trait Cpuid: Fn(u32, u32) -> CpuidResult + Clone {}

impl<F: Fn(u32, u32) -> CpuidResult + Clone> Cpuid for F {}
