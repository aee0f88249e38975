//! What a virtual machine is, and what to do on each exit.
#![cfg_attr(not(test), no_std)]
