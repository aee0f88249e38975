//! What it takes to look into what runs: gdb's stub for a guest, and where the hypervisor was when it failed.
//!
//! Pure. The edges move bytes and registers; what they mean is decided here. The way of a byte from gdb: [`frame`] makes
//! whole packets of bytes, [`session`] has the guest stop and hands them to the crate `gdbstub`, which calls [`target`];
//! that reads and writes what each CPU has left on its [`mailbox`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod backtrace;
pub mod breakpoints;
#[cfg(test)]
mod fake;
mod fpu;
pub mod frame;
pub mod mailbox;
mod monitor;
pub mod own;
pub mod pack;
mod patches;
pub mod registers;
pub mod session;
pub mod step;
mod target;
#[cfg(test)]
mod tests;

pub use fpu::Fxsave;
pub use mailbox::{DebugMailbox, Order, Stop};
pub use patches::Places;
pub use session::{Guest, Session};
