//! What a virtual machine is, and what to do on each exit.
//!
//! Pure policy: what the guest finds at power-on ([`memory_map`], [`acpi`], [`load`]), the devices
//! that every PC has ([`devices`]), what the CPU tells about itself ([`cpuid`], [`msr`]). The
//! machine is reached through the contracts of `arch` only, so all of it runs on the host too.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
mod aml;
mod bus_locks;
pub mod counters;
pub mod cpuid;
pub mod devices;
pub mod exits;
pub mod job;
pub mod lifecycle;
pub mod lines;
pub mod load;
pub mod memory_map;
pub mod msr;
mod mtrr;
pub mod pci;
pub mod recent;
pub mod requests;
pub mod restart_backoff;
pub mod routes;
mod shadows;
pub mod vm;

#[cfg(any(test, feature = "fake"))]
pub mod fake;
