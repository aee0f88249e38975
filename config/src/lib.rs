//! The configuration file nexit.toml.
#![cfg_attr(not(test), no_std)]
