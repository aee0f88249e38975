//! A guest's interrupts: which vectors may reach it without the hypervisor, what its local APIC looks like to it, and a
//! local APIC in software for where interrupts exit.
//!
//! * [`grants`]: the vectors that are the guest's, and why.
//! * [`shadow`]: the IDT that the CPU really uses: the guest's own bytes, but gates of external
//!   vectors that are not granted are not present.
//! * [`gate_fault`]: classifies the #NP of a closed gate: whose fault it is, and what to do.
//! * [`apic`]: the x2APIC registers: what passes to the hardware, what is checked, what is virtual;
//!   where interrupts exit all of it, with what is [`pending`].
//! * [`xapic`]: the page of xAPIC mode, for guests that do not use x2APIC mode.
//!
//! Invariant: pure state machines. They say what is to be done; the `guest` crate has it done.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod apic;
pub mod gate_fault;
pub mod grants;
pub mod icr;
pub mod pending;
pub mod shadow;
pub mod xapic;

pub use apic::{ApicAction, ApicRead, GpFault, VirtualApic};
pub use gate_fault::{FaultAction, classify};
pub use grants::{Grants, Reason};
pub use icr::{Addressing, Destination, IcrRequest, IpiKind};
pub use shadow::ShadowIdt;
