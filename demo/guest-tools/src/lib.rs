//! What the programs inside the demo's guest share: reading the guest's own exit counters and its
//! interrupt counts, before and after a piece of work.
//!
//! Invariant: a measurement never hides what it cost. The CPUID instructions that read the counters
//! exit themselves; they are counted here and shown apart.

pub mod busy;
pub mod counters;
pub mod interrupts;
pub mod marker;
pub mod window;

pub use window::{Window, describe};
