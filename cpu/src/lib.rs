//! Privileged instructions, descriptor tables, MMIO, local APIC and I/O APIC drivers.
#![cfg_attr(not(test), no_std)]
