//! What the monitor shows: facts in, lines of text out. The facts are the kernel's to gather; the lines go out one by one.
//!
//! Invariant: nothing here waits for anybody or changes anything. A line that shows a guest's bytes shows them as numbers or
//! as printable ASCII.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod exits;
mod flags;
pub mod gates;
pub mod hex;
pub mod paging;
pub mod registers;
pub mod remapping;
mod size;
pub mod symbols;
mod table;

pub use size::Size;
pub use table::{Column, Table};

use alloc::string::String;
use alloc::vec::Vec;

/// An answer, line by line.
pub type Lines = Vec<String>;
