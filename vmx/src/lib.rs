//! VT-x back end: one virtual CPU on one physical CPU.
//!
//! Invariant: nothing is asked of the CPU that its capability MSRs do not promise, so that a lack is
//! a sentence ([`VmxError`]) and never a fault. In the order of use:
//!
//! * [`capability`]: what the CPU says that it can do, and whether that is enough (pure)
//! * [`controls`]: the VM-execution, exit and entry controls, adjusted to that (pure)
//! * [`mod@enable`] (VMXON)
//! * [`bitmap`]: which MSRs and ports exit (pure)
//! * [`vcpu`]: the VMCS, and [`arch::vcpu::Vcpu`] on top of it; `contract` and `setup` are its halves
//! * `run`: the way into the guest and back, in assembly
//! * `debug_exception`: what the CPU leaves to the host of a #DB that exits
//! * `virtual_apic`, `posted`: a guest's interrupts where the CPU, or another CPU of the guest, helps with them
//! * `decode`, `event`, `control_register`: from a snapshot of the exit to [`arch::ExitReason`], events in and
//!   out, CR0 and CR4 (pure)
//!
//! The host runs with interrupts off, never touches SSE or x87 state, and uses none of the MSRs that
//! the CPU does not switch (STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX, XSS, XCR0) nor CR2
//! and DR0–DR6: those are the guest's all the time and cost nothing at an exit.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod bitmap;
pub mod capability;
mod contract;
mod control_register;
pub mod controls;
mod debug_exception;
mod decode;
pub mod enable;
mod error;
mod event;
mod field;
pub mod large_pages;
mod msr_lists;
mod posted;
mod run;
mod setup;
mod state;
mod step;
pub mod vcpu;
mod virtual_apic;
mod vmcs;

pub use bitmap::Bitmaps;
pub use capability::{Capabilities, Features, check};
pub use enable::{VmxOn, enable};
pub use error::VmxError;
pub use posted::Posting;
pub use vcpu::{CPU_BYTES, VmxVcpu};
