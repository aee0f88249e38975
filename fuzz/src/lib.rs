//! One target for each parser and state machine that takes what somebody else made, and one for the whole exit policy.
//!
//! A target takes any bytes and panics where a claim of the code does not hold: that it never panics, stays within what
//! it was given, and touches nothing that is not the guest's. The bytes come from the corpus ([`corpus`]), from mutations
//! of it by a seed ([`mutate`]), or from libFuzzer (`guided.rs`). `docs/fuzzing.md` has the table of targets.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is the finding

pub mod corpus;
pub mod count;
pub mod input;
pub mod mutate;
pub mod targets;

pub use targets::{TARGETS, Target};
