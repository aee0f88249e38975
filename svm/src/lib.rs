//! AMD-V back end: one virtual CPU on SVM with nested paging.
//!
//! The path of an exit: [`vcpu`] enters the guest through `run` (the only assembly), [`decode`]
//! turns the record in the [`vmcb`] into a neutral [`arch::ExitReason`], policy answers through the
//! [`arch::vcpu::Vcpu`] trait (`contract`). [`mod@enable`] comes before (once on each CPU), with [`controls`] and
//! [`bitmap`] deciding what exits at all.
//!
//! Pure, host-tested: [`bitmap`], [`controls`], [`decode`], [`segment`], and what
//! the setters do to the VMCB. Only `enable`, `run` and `vcpu` touch the machine.
//!
//! What the host gives up while a guest owns the CPU:
//! * GIF stays 0 in the host from the first entry on. An NMI or, in the exiting mode, an interrupt
//!   waits until `run` opens GIF for one instruction at a place where nothing is half done.
//! * VMRUN switches neither FS, GS, TR, LDTR nor the MSRs of SYSCALL, SYSENTER and KernelGSBase, and
//!   this crate does not switch them at frequent exits either: they stay the guest's. So the host uses no FS or GS base and
//!   no SYSCALL, and **no gate of its IDT uses an IST stack** then: TR, and with it the TSS that an IST index or a change
//!   of ring would read, is the guest's. At all other exits the host takes its own TR back, and with it an IDT where
//!   double faults and machine checks have stacks of their own. NMIs never have one.
//! * All physical memory is identity-mapped: a host-physical address is the host's pointer to it.
#![cfg_attr(not(test), no_std)]

pub mod bitmap;
mod contract;
mod control_register;
pub mod controls;
pub mod decode;
pub mod enable;
mod nmi;
mod priority;
mod run;
pub mod segment;
mod step;
pub mod vcpu;
pub mod vmcb;

pub use bitmap::PermissionMaps;
pub use enable::{Capabilities, Features, SvmError, SvmOn, check, enable};
pub use vcpu::{CPU_BYTES, SvmVcpu};
