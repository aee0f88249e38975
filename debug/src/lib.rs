//! What it takes to look into what runs: where the hypervisor was when it failed.
//!
//! Pure. The edges read stacks and registers; what they mean is decided here.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod backtrace;
