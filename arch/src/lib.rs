//! The x86 vocabulary, and the contracts between policy and hardware.
//!
//! Policy crates (`eli`, `pci`, `insn`, `guest` …) reach the machine through this crate's traits only. Edge
//! crates (`cpu`, `vmx`, `svm`, `iommu`) implement them. Neither side ever names the other; the `kernel`
//! crate joins them.
//!
//! * words: [`address`], [`interrupt`], [`vectors`], [`bdf`], [`msr`], [`register`], [`segment`], [`gate`], [`bytes`], [`sync`]
//! * contracts: [`vcpu::Vcpu`] (a virtual CPU on VT-x or AMD-V), [`VcpuSetup`] (what it is made of), [`ExitReason`] (why it stopped),
//!   [`iommu::Iommu`] (DMA and interrupt remapping), [`machine::Machine`] (the physical machine as
//!   one guest's policy may use it), [`machine::GuestMemory`] (the guest's RAM)
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod address;
pub mod bdf;
pub mod bytes;
pub mod clock;
pub mod exit;
pub mod gate;
pub mod interrupt;
pub mod iommu;
pub mod machine;
pub mod machine_check;
pub mod msr;
pub mod register;
pub mod segment;
pub mod setup;
pub mod sync;
pub mod uart;
pub mod vcpu;
pub mod vectors;

pub use address::{Gpa, Gva, Hpa, Iova, PageSize};
pub use bdf::Bdf;
pub use exit::ExitReason;
pub use interrupt::{ApicId, Vector};
pub use machine::Width;
pub use setup::VcpuSetup;
pub use vectors::VectorSet;
