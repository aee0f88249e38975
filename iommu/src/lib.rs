//! DMAR parsing and VT-d: DMA remapping, interrupt remapping, faults.
#![cfg_attr(not(test), no_std)]
