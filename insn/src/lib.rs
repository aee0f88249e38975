//! Decodes the few guest instructions that the hypervisor must carry out.
#![cfg_attr(not(test), no_std)]
