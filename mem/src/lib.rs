//! Frames, and one radix-table walker for host, EPT, NPT and DMA tables.
#![cfg_attr(not(test), no_std)]
