//! PCI configuration space, capabilities, BARs, MSI/MSI-X, and a guest's view of them.
//!
//! Everything here is pure: physical configuration space is reached through
//! [`arch::machine::ConfigSpace`], device registers not at all but for those of [`usb`] controllers. What a guest's access means for the
//! machine comes back as an [`view::Effect`] or as a decoded [`message::GuestInterrupt`]; the
//! `guest` crate carries it out.
//!
//! * the machine: [`header`] (identity, scan), [`capability`], [`bar`], [`power`], [`reset`], [`acs`],
//!   [`usb`], [`serial`], [`groups`] (which functions go together),
//!   [`record`] and [`claims`] (what their BARs say, and whose that is)
//! * what a guest has of it, by name: [`owned`]
//! * a guest's view: [`view`] (configuration space of one function), [`msi`], [`msix`], [`message`]
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acs;
pub mod bar;
pub mod capability;
pub mod claims;
#[cfg(test)]
mod fake;
pub mod groups;
pub mod header;
pub mod message;
pub mod msi;
pub mod msix;
pub mod owned;
pub mod power;
mod quirks;
pub mod record;
pub mod reset;
pub mod serial;
pub mod usb;
pub mod view;
mod window;

pub use bar::{Bar, BarKind};
pub use claims::Claims;
pub use groups::{GroupError, Groups};
pub use header::{Command, Function, scan};
pub use message::GuestInterrupt;
pub use owned::Owned;
pub use record::Record;
pub use view::{Effect, VirtualFunction};
