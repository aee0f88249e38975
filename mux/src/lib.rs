//! The one serial line: the hypervisor's log, the guests' consoles, and the monitor share it.
//!
//! Bytes in, bytes out; this crate touches no machine. Invariants, whatever the guests send:
//!
//! - every line has one speaker, and its beginning says which ([`wire`]);
//! - only the hypervisor's own lines begin with [`MARK`];
//! - the bytes of one guest come out complete and in order (its [`MARK`]s as `?`).
//!
//! [`mod@frame`]s of debuggers go between any two bytes of these, to be taken out before anybody reads the rest.
//!
//! Path: a guest's UART → [`Mux::guest_output`] → [`queue`] → the [`mod@line`]; the line → [`Mux::typed`] → a guest's
//! UART, or a [`Command`] that the kernel carries out. What the user sees of it:
//! `docs/console.md`. Only [`Mux::add_guest`], [`Mux::add_debugger`],
//! [`Mux::add_function`] and [`help`] allocate.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod commands;
mod complete;
mod debuggers;
mod editor;
pub mod frame;
pub mod line;
mod monitor;
mod mux;
pub mod queue;
mod ring;
#[cfg(test)]
mod tests;
mod typed;
pub mod uart;
mod wire;

pub use commands::help;
pub use monitor::{Command, CommandError, GuestAddress, GuestRef, parse};
pub use mux::{Input, Mux};
pub use ring::{RING_BYTES, Ring, RingLine};
pub use typed::{Typed, Waiting};
pub use wire::own_text;

/// The first byte of every line of the hypervisor's own: ASCII's record separator, which terminals
/// do not show. No guest can send it.
pub const MARK: u8 = 0x1e;
/// What a line of the log begins with, behind the mark.
pub const LOG: &str = "nexit: ";
/// The escape key, Ctrl-A: what is typed next is for the line itself.
pub const ESCAPE: u8 = 0x01;
/// How many bytes of a guest without the focus wait for the end of their line.
pub const HELD: usize = 256;
/// The longest command of the monitor, in bytes.
pub const LONGEST_COMMAND: usize = 128;

/// Where bytes for the line go.
pub(crate) type Sink<'a> = dyn FnMut(u8) + 'a;
