//! Exitless interrupts: the shadow IDT, vector grants and local-APIC policy.
#![cfg_attr(not(test), no_std)]
