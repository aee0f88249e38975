//! VT-x back end.
#![cfg_attr(not(test), no_std)]
