//! From the loader's first instruction to one BootInfo.
#![cfg_attr(not(test), no_std)]
