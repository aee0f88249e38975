//! Privileged instructions, descriptor tables, MMIO, and the drivers of the blocks that the
//! hypervisor itself uses: local APIC, I/O APIC, 8259, HPET, clocks, serial line.
//!
//! An edge crate: it touches the machine and decides nothing. One file is one hardware block.
#![cfg_attr(not(test), no_std)]

pub mod clock;
pub mod config_space;
pub mod exceptions;
pub mod host_state;
pub mod hpet;
pub mod instructions;
pub mod io_apic;
pub mod local_apic;
pub mod machine_check;
pub mod mitigations;
pub mod physical;
pub mod pic;
pub mod segments;
pub mod serial;
pub mod sleep;
pub mod speculation;
pub mod start;
