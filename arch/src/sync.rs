//! Words that CPUs share without a lock. With `--cfg loom` these are a model's, which tries every order in which CPUs
//! can see each other's accesses (`make models`).

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
