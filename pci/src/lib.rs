//! PCI configuration space, capabilities, BARs, MSI/MSI-X, and a guest's view of them.
#![cfg_attr(not(test), no_std)]
