//! DMAR parsing and VT-d: DMA remapping, interrupt remapping, faults.
//!
//! * [`dmar`]: which units, devices and reserved regions the firmware names (pure)
//! * [`faults`]: which of its faults are worth a line (pure)
//! * [`vtd`]: the units themselves, behind [`arch::iommu::Iommu`]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod dmar;
pub mod faults;
pub mod vtd;
