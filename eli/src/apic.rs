//! The guest's local APIC through x2APIC MSRs: which registers pass to the hardware, which are
//! checked first, and which are virtual (SDM "Extended XAPIC (x2APIC)", "x2APIC Register Address Space").
//!
//! Exitless: delivery, EOI, priorities, self-IPIs and the timer's count are the physical APIC's,
//! with no exit. Only what could reach beyond the guest is checked (ICR, the timer's LVT entry) or
//! virtual (SVR's enable bit, the other LVT entries, identifiers). Exiting: the whole APIC but the
//! timer is here in software.
//!
//! Invariant: the only physical registers that a guest's value ever reaches through here are those
//! of the timer, the spurious vector, TPR, EOI and self-IPI.

mod passes;
mod registers;

use core::fmt;

use arch::interrupt::TriggerMode;
use arch::msr::IA32_X2APIC_ICR;
use arch::vcpu::InterruptMode;
use arch::{ApicId, Gpa, Vector};

use crate::grants::Reason;
use crate::icr::{Addressing, DEFINED, Destination, IcrRequest, LOGICAL};
use crate::pending::Pending;
pub use passes::{VIRTUAL_ICR, passes};
pub use registers::RESET_WRITES;
pub(crate) use registers::{DEADLINE, writable};
use registers::{LVT_COUNT, MASKED, SOFTWARE_ENABLE};

/// The access raises #GP in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpFault;

impl fmt::Display for GpFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the local APIC does not allow this access: #GP for the guest")
    }
}

impl core::error::Error for GpFault {}

/// The result of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicAction {
    /// Nothing more.
    None,
    /// Write this to the physical APIC. If that raises #GP, so does the guest's write.
    WritePhysical { msr: u32, value: u64 },
    /// Grant the vector, then write the physical APIC.
    Grant { vector: Vector, why: Reason, msr: u32, value: u64 },
    /// Send this to the guest's CPUs that [`crate::icr::Addressing::accepts`] names.
    Ipi(IcrRequest),
    /// The guest has ended this interrupt (not in the exitless mode).
    Eoi {
        vector: Vector,
        /// Level: its line may interrupt again now.
        trigger: TriggerMode,
    },
}

impl ApicAction {
    /// The vector that it sends or sets up, which must be granted first, and why.
    #[inline]
    #[must_use]
    pub const fn vector(&self) -> Option<(Vector, Reason)> {
        match *self {
            Self::Grant { vector, why, .. } => Some((vector, why)),
            Self::Ipi(request) if request.has_vector() => Some((request.vector, Reason::Ipi)),
            Self::None | Self::WritePhysical { .. } | Self::Ipi(_) | Self::Eoi { .. } => None,
        }
    }
}

/// Where a read finds its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicRead {
    /// Here.
    Value(u64),
    /// In the physical APIC's register with this MSR number.
    Physical(u32),
}

const BASE_ADDRESS: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// Delivery mode of an LVT entry, and that of an external interrupt controller.
const DELIVERY_MODE: u32 = 7 << 8;
const EXTERNAL: u32 = 7 << 8;

/// The local APIC of one virtual CPU.
#[derive(Clone, Copy, Debug)]
pub struct VirtualApic {
    mode: InterruptMode,
    id: ApicId,
    base: u64,
    svr: u32,
    lvt: [u32; LVT_COUNT],
    /// ESR as it reads, and the errors since its last write.
    esr: u32,
    errors: u32,
    pub(crate) icr: u64,
    /// Logical destination and destination format registers of xAPIC mode.
    pub(crate) xapic_ldr: u32,
    pub(crate) xapic_dfr: u32,
    /// The CPU has the timer's mode with a deadline.
    pub(crate) deadlines: bool,
    /// Pending interrupts; not used in the exitless mode.
    pub pending: Pending,
}

impl VirtualApic {
    /// The APIC of the CPU with identifier `id` after reset, already in x2APIC mode: a guest that
    /// starts like that never touches the xAPIC page.
    #[must_use]
    pub fn new(mode: InterruptMode, id: ApicId, bootstrap: bool) -> Self {
        let bsp = if bootstrap { BASE_BSP } else { 0 };
        Self {
            mode,
            id,
            base: BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | bsp,
            svr: 0xff,
            lvt: [MASKED; LVT_COUNT],
            esr: 0,
            errors: 0,
            icr: 0,
            xapic_ldr: 0,
            xapic_dfr: u32::MAX,
            deadlines: true,
            pending: Pending::default(),
        }
    }

    /// The same on a CPU without the timer's mode with a deadline (CPUID leaf 1 ECX 24).
    #[must_use]
    pub const fn without_deadlines(self) -> Self {
        Self { deadlines: false, ..self }
    }

    /// The same as the firmware of a CPU without x2APIC mode leaves it.
    #[must_use]
    pub const fn in_xapic_mode(self) -> Self {
        Self { base: self.base & !BASE_X2APIC, ..self }
    }

    /// The same as firmware leaves that of the boot processor of a PC with 8259s ("virtual wire mode via local APIC",
    /// MultiProcessor Specification): they interrupt the CPU through LINT0. The enable bit of SVR, which firmware sets
    /// for it, is left to the guest.
    #[must_use]
    pub fn in_virtual_wire_mode(mut self) -> Self {
        let [_, _, _, lint0, ..] = &mut self.lvt;
        *lint0 = EXTERNAL;
        self
    }

    /// Whether the 8259s interrupt the CPU: it is off, or LINT0 says so (SDM "Local Vector Table").
    #[must_use]
    pub const fn takes_external_interrupts(&self) -> bool {
        let [_, _, _, lint0, ..] = self.lvt;
        !self.globally_enabled() || lint0 & (MASKED | DELIVERY_MODE) == EXTERNAL
    }

    /// Whether its timer may interrupt: it is on, and its entry is not masked.
    #[must_use]
    pub const fn timer_may_interrupt(&self) -> bool {
        let [timer, ..] = self.lvt;
        self.globally_enabled() && timer & MASKED == 0
    }

    /// INIT: the registers are as after reset, mode and identifier stay. Do [`RESET_WRITES`] too, or drain the physical one.
    pub fn init(&mut self) {
        let bootstrap = self.base & BASE_BSP != 0;
        let (base, deadlines) = (self.base, self.deadlines);
        *self = Self { base, deadlines, ..Self::new(self.mode, self.id, bootstrap) };
    }

    /// Its identifier.
    #[must_use]
    pub const fn id(&self) -> ApicId {
        self.id
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE, where physical addresses have `address_bits` bits. The physical APIC
    /// stays in x2APIC mode whatever the guest does.
    ///
    /// # Errors
    /// For a transition that is not allowed (SDM "x2APIC State Transitions") and for reserved bits.
    pub fn write_base(&mut self, value: u64, address_bits: u8) -> Result<(), GpFault> {
        let modes = BASE_ENABLE | BASE_X2APIC;
        let page = value & !0xfff;
        if value & 0xfff & !(modes | BASE_BSP) != 0 || page >> address_bits.min(63) != 0 {
            return Err(GpFault);
        }
        let (old, new) = (self.base & modes, value & modes);
        let allowed = match new {
            0 => true,
            BASE_ENABLE => old != modes,
            BASE_X2APIC => false,
            _ => old != 0,
        };
        if !allowed {
            return Err(GpFault);
        }
        self.base = page | self.base & BASE_BSP | new;
        if new == 0 {
            self.init();
        }
        Ok(())
    }

    /// The bootstrap processor's bit of an allowed value: Intel's CPUs keep what is written (SDM "IA32_APIC_BASE").
    pub const fn write_bootstrap(&mut self, value: u64) {
        self.base = self.base & !BASE_BSP | value & BASE_BSP;
    }

    /// Whether the guest is in x2APIC mode.
    #[must_use]
    pub const fn in_x2apic_mode(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// Whether the guest has it switched on in IA32_APIC_BASE, in whatever mode.
    #[must_use]
    pub const fn globally_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    /// The offset of `gpa` in the APIC's page; `None` elsewhere, and if the guest is not in xAPIC
    /// mode.
    #[must_use]
    pub fn page_offset(&self, gpa: Gpa) -> Option<u16> {
        let xapic = self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE;
        let here = gpa.page().as_u64() == self.base & !0xfff;
        (xapic && here).then_some(gpa.page_offset() as u16)
    }

    /// The state that the guest's other CPUs need.
    #[must_use]
    pub const fn addressing(&self) -> Addressing {
        let enabled = self.globally_enabled() && self.svr & SOFTWARE_ENABLE != 0;
        Addressing::new(self.id, enabled, self.in_x2apic_mode(), self.xapic_ldr, self.xapic_dfr)
    }

    /// Accepts an interrupt (exiting mode). `false`: it is lost because the guest's APIC is off, as on
    /// hardware.
    #[inline(never)]
    pub fn accept(&mut self, vector: Vector, trigger: TriggerMode) -> bool {
        let enabled = self.addressing().enabled();
        if enabled {
            self.pending.accept(vector, trigger);
        }
        enabled
    }

    /// RDMSR of a register between 0x800 and 0x8FF.
    ///
    /// # Errors
    /// If there is no such register, or the guest is not in x2APIC mode.
    pub fn read(&self, msr: u32) -> Result<ApicRead, GpFault> {
        if self.in_x2apic_mode() { self.read_register(msr) } else { Err(GpFault) }
    }

    /// WRMSR of a register between 0x800 and 0x8FF.
    ///
    /// # Errors
    /// Where nothing can be written, for reserved bits, or if the guest is not in x2APIC mode.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<ApicAction, GpFault> {
        if msr == IA32_X2APIC_ICR {
            return self.write_icr(value);
        }
        if !self.in_x2apic_mode() {
            return Err(GpFault);
        }
        let (bits, ignored) = writable(msr).ok_or(GpFault)?;
        if value & !u64::from(bits | ignored) != 0 {
            return Err(GpFault);
        }
        self.write_register(msr, value as u32 & bits)
    }

    /// [`Self::write`] of ICR.
    ///
    /// # Errors
    /// For reserved bits, or if the guest is not in x2APIC mode.
    #[inline(always)]
    pub fn write_icr(&mut self, value: u64) -> Result<ApicAction, GpFault> {
        let low = value as u32;
        if !self.in_x2apic_mode() || low & !DEFINED != 0 {
            return Err(GpFault);
        }
        // It reads back.
        self.icr = value & !(1 << 12);
        let destination = Destination::of_word((value >> 32) as u32, low & LOGICAL != 0);
        Ok(self.send(IcrRequest::decode(low, destination)))
    }
}

#[cfg(test)]
mod tests;
