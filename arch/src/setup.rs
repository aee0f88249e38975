//! What a virtual CPU is made of, on either vendor.

use crate::address::Hpa;
use crate::register::GuestCr4;
use crate::vcpu::InterruptMode;

/// What a virtual CPU is made of. The addresses are those of identity-mapped pages.
#[derive(Clone, Copy, Debug)]
pub struct VcpuSetup {
    /// How physical interrupts meet the guest.
    pub mode: InterruptMode,
    /// Root of the nested page table (four levels).
    pub nested_root: Hpa,
    /// The guest's bitmaps, in the back end's format: which MSRs and ports do not exit.
    pub bitmaps: Hpa,
    /// In the bitmaps writes of ICR pass: the CPU must send the guest's IPIs by itself.
    pub virtual_ipis: bool,
    /// Memory that is this virtual CPU's alone. The back end says how much, and divides it.
    pub memory: Hpa,
    /// Linear address of this CPU's TSS.
    pub host_tss_base: u64,
    /// What the guest may set in CR4.
    pub cr4: GuestCr4,
}
