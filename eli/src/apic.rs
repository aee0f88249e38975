//! The local APIC as the guest sees it through x2APIC MSRs: what passes to the hardware, what is
//! checked first, what is virtual (SDM "Extended XAPIC (x2APIC)", "x2APIC Register Address Space").
//!
//! Exitless: delivery, EOI, priorities, self-IPIs and the timer's count are the physical APIC's,
//! with no exit. Only what could reach beyond the guest is checked (ICR, the timer's LVT entry) or
//! virtual (SVR's enable bit, the other LVT entries, identifiers). Exiting: the whole APIC but the
//! timer is here in software.
//!
//! Invariant: the only physical registers that a guest's value ever reaches through here are those
//! of the timer, the spurious vector, TPR, EOI and self-IPI.

use core::fmt;

use arch::interrupt::TriggerMode;
use arch::msr::{
    IA32_TSC_DEADLINE, IA32_X2APIC_APICID, IA32_X2APIC_CUR_COUNT, IA32_X2APIC_DIV_CONF,
    IA32_X2APIC_EOI, IA32_X2APIC_ESR, IA32_X2APIC_ICR, IA32_X2APIC_INIT_COUNT, IA32_X2APIC_IRR0,
    IA32_X2APIC_ISR0, IA32_X2APIC_LDR, IA32_X2APIC_LVT_ERROR, IA32_X2APIC_LVT_LINT0,
    IA32_X2APIC_LVT_LINT1, IA32_X2APIC_LVT_PMI, IA32_X2APIC_LVT_THERMAL, IA32_X2APIC_LVT_TIMER,
    IA32_X2APIC_PPR, IA32_X2APIC_SELF_IPI, IA32_X2APIC_SIVR, IA32_X2APIC_TMR0, IA32_X2APIC_TPR,
    IA32_X2APIC_VERSION, MsrPass,
};
use arch::vcpu::InterruptMode;
use arch::{ApicId, Gpa, Vector};

use crate::grants::Reason;
use crate::icr::{Addressing, IcrRequest, logical_id};
use crate::pending::Pending;

/// The access raises #GP in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpFault;

impl fmt::Display for GpFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the local APIC does not allow this access: #GP for the guest")
    }
}

impl core::error::Error for GpFault {}

const fn pass(first: u32, last: u32, read: bool, write: bool) -> MsrPass {
    MsrPass { first, last, read, write }
}

/// The timer's registers without its LVT entry.
const TIMER: [MsrPass; 4] = [
    pass(IA32_TSC_DEADLINE, IA32_TSC_DEADLINE, true, true),
    pass(IA32_X2APIC_INIT_COUNT, IA32_X2APIC_INIT_COUNT, true, true),
    pass(IA32_X2APIC_CUR_COUNT, IA32_X2APIC_CUR_COUNT, true, false),
    pass(IA32_X2APIC_DIV_CONF, IA32_X2APIC_DIV_CONF, true, true),
];

const EXITLESS: [MsrPass; 9] = [
    pass(IA32_X2APIC_TPR, IA32_X2APIC_TPR, true, true),
    pass(IA32_X2APIC_PPR, IA32_X2APIC_PPR, true, false),
    pass(IA32_X2APIC_EOI, IA32_X2APIC_EOI, false, true),
    pass(IA32_X2APIC_ISR0, IA32_X2APIC_IRR0 + 7, true, false),
    pass(IA32_X2APIC_SELF_IPI, IA32_X2APIC_SELF_IPI, false, true),
    TIMER[0],
    TIMER[1],
    TIMER[2],
    TIMER[3],
];

static EXITING: [MsrPass; 4] = TIMER;

/// The CPU answers these from the guest's page: reads of the timer's registers, which it would answer from
/// there too, exit.
static POSTED: [MsrPass; 8] = [
    EXITLESS[0],
    EXITLESS[1],
    EXITLESS[2],
    EXITLESS[3],
    EXITLESS[4],
    TIMER[0],
    pass(IA32_X2APIC_INIT_COUNT, IA32_X2APIC_INIT_COUNT, false, true),
    pass(IA32_X2APIC_DIV_CONF, IA32_X2APIC_DIV_CONF, false, true),
];

/// What passes besides in the posted mode, and only while the CPU virtualizes IPIs: else a write would go to the
/// physical ICR.
pub const VIRTUAL_ICR: MsrPass = pass(IA32_X2APIC_ICR, IA32_X2APIC_ICR, true, true);

/// The local APIC's MSRs that pass without an exit. They are right for a guest in x2APIC mode; in
/// the other modes, where real hardware would raise #GP, they are harmless to anyone but the guest.
#[must_use]
pub const fn passes(mode: InterruptMode) -> &'static [MsrPass] {
    match mode {
        InterruptMode::Exitless => &EXITLESS,
        InterruptMode::Exiting => &EXITING,
        InterruptMode::Posted => &POSTED,
    }
}

/// The physical writes that silence the timer when a guest's CPU is reset or gets INIT.
pub const RESET_WRITES: [(u32, u64); 3] =
    [(IA32_X2APIC_LVT_TIMER, MASKED as u64), (IA32_X2APIC_INIT_COUNT, 0), (IA32_X2APIC_TPR, 0)];

/// What a write comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicAction {
    /// Nothing more.
    None,
    /// Write this to the physical APIC. Where that raises #GP, so does the guest's write.
    WritePhysical {
        /// MSR.
        msr: u32,
        /// Value.
        value: u64,
    },
    /// Grant the vector, then write the physical APIC.
    Grant {
        /// The vector.
        vector: Vector,
        /// Why.
        why: Reason,
        /// MSR.
        msr: u32,
        /// Value.
        value: u64,
    },
    /// Send this to the guest's CPUs that [`VirtualApic::accepts`] names.
    Ipi(IcrRequest),
    /// The guest has ended this interrupt (not in the exitless mode).
    Eoi {
        /// The vector.
        vector: Vector,
        /// Level: its line may interrupt again now.
        trigger: TriggerMode,
    },
}

/// Where a read finds its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicRead {
    /// Here.
    Value(u64),
    /// In the physical APIC's register with this MSR number.
    Physical(u32),
}

/// Mask bit of an LVT entry.
const MASKED: u32 = 1 << 16;
const LVT_COUNT: usize = 6;
/// Version 0x14, highest LVT entry 5, no suppression of EOI broadcasts.
const VERSION: u32 = 0x0005_0014;
/// Software enable of SVR.
const SOFTWARE_ENABLE: u32 = 1 << 8;
/// ESR: a vector below 16 was to be sent; one was received.
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;

const BASE_ADDRESS: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// The vector that a write of this register would send or set up: it needs a grant first.
#[must_use]
pub const fn vector_named(msr: u32, value: u64) -> Option<Vector> {
    const FIXED_OR_LOWEST_PRIORITY: u64 = 1;
    match msr {
        IA32_X2APIC_ICR if value >> 8 & 7 <= FIXED_OR_LOWEST_PRIORITY => Some(Vector(value as u8)),
        IA32_X2APIC_LVT_TIMER | IA32_X2APIC_SIVR => Some(Vector(value as u8)),
        _ => None,
    }
}

/// Which bits of a 32-bit register a write may change, and which it may hold without effect; the
/// rest is reserved. `None` for what cannot be written.
pub(crate) const fn writable(msr: u32) -> Option<(u32, u32)> {
    match msr {
        IA32_X2APIC_TPR | IA32_X2APIC_SELF_IPI => Some((0xff, 0)),
        IA32_X2APIC_EOI | IA32_X2APIC_ESR => Some((0, 0)),
        IA32_X2APIC_SIVR => Some((0x3ff, 0)),
        IA32_X2APIC_LVT_TIMER => Some((0x7_00ff, 1 << 12)),
        IA32_X2APIC_LVT_THERMAL | IA32_X2APIC_LVT_PMI => Some((0x1_07ff, 1 << 12)),
        IA32_X2APIC_LVT_LINT0 | IA32_X2APIC_LVT_LINT1 => Some((0x1_a7ff, 0x5000)),
        IA32_X2APIC_LVT_ERROR => Some((0x1_00ff, 1 << 12)),
        IA32_X2APIC_INIT_COUNT => Some((u32::MAX, 0)),
        IA32_X2APIC_DIV_CONF => Some((0xb, 0)),
        _ => None,
    }
}

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
            pending: Pending::default(),
        }
    }

    /// INIT: the registers are as after reset, mode and identifier stay. Do [`RESET_WRITES`] too.
    pub fn init(&mut self) {
        let bootstrap = self.base & BASE_BSP != 0;
        *self = Self { base: self.base, ..Self::new(self.mode, self.id, bootstrap) };
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

    /// The offset of `gpa` in the APIC's page; `None` elsewhere, and where the guest is not in xAPIC
    /// mode.
    #[must_use]
    pub fn page_offset(&self, gpa: Gpa) -> Option<u16> {
        let xapic = self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE;
        let here = gpa.page().as_u64() == self.base & !0xfff;
        (xapic && here).then_some(gpa.page_offset() as u16)
    }

    /// What the guest's other CPUs have to know of it.
    #[must_use]
    pub const fn addressing(&self) -> Addressing {
        let enabled = self.globally_enabled() && self.svr & SOFTWARE_ENABLE != 0;
        Addressing::new(self.id, enabled, self.in_x2apic_mode(), self.xapic_ldr, self.xapic_dfr)
    }

    /// Takes an interrupt in (exiting mode). Lost where the guest has switched its APIC off, as on
    /// hardware; `false` then.
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
    /// Where there is nothing to read, or the guest is not in x2APIC mode.
    pub fn read(&self, msr: u32) -> Result<ApicRead, GpFault> {
        if self.in_x2apic_mode() { self.read_register(msr) } else { Err(GpFault) }
    }

    /// WRMSR of a register between 0x800 and 0x8FF.
    ///
    /// # Errors
    /// Where nothing can be written, for reserved bits, or if the guest is not in x2APIC mode.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<ApicAction, GpFault> {
        if !self.in_x2apic_mode() {
            return Err(GpFault);
        }
        if msr == IA32_X2APIC_ICR {
            let request = IcrRequest::decode(value)?;
            self.remember_icr(value);
            return Ok(self.send(request));
        }
        let (bits, ignored) = writable(msr).ok_or(GpFault)?;
        if value & !u64::from(bits | ignored) != 0 {
            return Err(GpFault);
        }
        self.write_register(msr, value as u32 & bits)
    }

    /// Keeps what was written to ICR, which reads back.
    #[inline]
    pub fn remember_icr(&mut self, value: u64) {
        self.icr = value & !(1 << 12);
    }

    /// A register's value, whatever the mode.
    pub(crate) fn read_register(&self, msr: u32) -> Result<ApicRead, GpFault> {
        let exiting = !self.mode.is_exitless();
        let word = msr as usize & 7;
        let value = match msr {
            IA32_X2APIC_APICID => self.id.0,
            IA32_X2APIC_VERSION => VERSION,
            IA32_X2APIC_LDR => logical_id(self.id),
            IA32_X2APIC_SIVR => self.svr,
            IA32_X2APIC_ESR => self.esr,
            IA32_X2APIC_ICR => return Ok(ApicRead::Value(self.icr)),
            IA32_X2APIC_LVT_TIMER..=IA32_X2APIC_LVT_ERROR => *self.lvt_entry(msr)?,
            IA32_X2APIC_TPR if exiting => u32::from(self.pending.tpr),
            IA32_X2APIC_PPR if exiting => u32::from(self.pending.ppr()),
            IA32_X2APIC_ISR0..IA32_X2APIC_TMR0 if exiting => self.pending.isr.word(word),
            IA32_X2APIC_TMR0..IA32_X2APIC_IRR0 if exiting => self.pending.tmr.word(word),
            IA32_X2APIC_IRR0..IA32_X2APIC_ESR if exiting => self.pending.irr.word(word),
            IA32_X2APIC_TPR
            | IA32_X2APIC_PPR
            | IA32_X2APIC_ISR0..IA32_X2APIC_ESR
            | IA32_X2APIC_INIT_COUNT
            | IA32_X2APIC_CUR_COUNT
            | IA32_X2APIC_DIV_CONF => return Ok(ApicRead::Physical(msr)),
            _ => return Err(GpFault),
        };
        Ok(ApicRead::Value(u64::from(value)))
    }

    /// Writes a register but ICR, whatever the mode; reserved bits are clear.
    pub(crate) fn write_register(&mut self, msr: u32, value: u32) -> Result<ApicAction, GpFault> {
        let physical = ApicAction::WritePhysical { msr, value: u64::from(value) };
        let exitless = self.mode.is_exitless();
        match msr {
            IA32_X2APIC_SIVR => Ok(self.write_svr(value)),
            IA32_X2APIC_ESR => {
                self.esr = core::mem::take(&mut self.errors);
                Ok(ApicAction::None)
            }
            IA32_X2APIC_LVT_TIMER..=IA32_X2APIC_LVT_ERROR => self.write_lvt(msr, value),
            IA32_X2APIC_INIT_COUNT | IA32_X2APIC_DIV_CONF => Ok(physical),
            IA32_X2APIC_TPR | IA32_X2APIC_EOI | IA32_X2APIC_SELF_IPI if exitless => Ok(physical),
            IA32_X2APIC_TPR => {
                self.pending.tpr = value as u8;
                Ok(ApicAction::None)
            }
            IA32_X2APIC_EOI => Ok(match self.pending.eoi() {
                Some((vector, trigger)) => ApicAction::Eoi { vector, trigger },
                None => ApicAction::None,
            }),
            IA32_X2APIC_SELF_IPI => {
                let vector = Vector(value as u8);
                if vector.0 < 16 {
                    self.errors |= SEND_ILLEGAL_VECTOR | RECEIVE_ILLEGAL_VECTOR;
                } else {
                    self.accept(vector, TriggerMode::Edge);
                }
                Ok(ApicAction::None)
            }
            _ => Err(GpFault),
        }
    }

    /// Lets a decoded ICR write go out, or notes its error.
    pub(crate) fn send(&mut self, request: Option<IcrRequest>) -> ApicAction {
        match request {
            Some(request) if request.illegal_vector() => {
                self.errors |= SEND_ILLEGAL_VECTOR;
                ApicAction::None
            }
            Some(request) => ApicAction::Ipi(request),
            None => ApicAction::None,
        }
    }

    fn lvt_entry(&self, msr: u32) -> Result<&u32, GpFault> {
        self.lvt.get(msr.wrapping_sub(IA32_X2APIC_LVT_TIMER) as usize).ok_or(GpFault)
    }

    /// The physical APIC is never switched off: the guest's enable bit is virtual. Its spurious
    /// vector is physical, as the CPU delivers that one without any other sign.
    fn write_svr(&mut self, value: u32) -> ApicAction {
        let was_enabled = self.svr & SOFTWARE_ENABLE != 0;
        self.svr = value;
        if value & SOFTWARE_ENABLE == 0 {
            // SDM "Local APIC State After It Has Been Software Disabled".
            self.lvt = self.lvt.map(|entry| entry | MASKED);
            let [timer, ..] = self.lvt;
            let value = u64::from(timer);
            return match was_enabled {
                true => ApicAction::WritePhysical { msr: IA32_X2APIC_LVT_TIMER, value },
                false => ApicAction::None,
            };
        }
        if !self.mode.is_exitless() {
            return ApicAction::None;
        }
        let value = u64::from(SOFTWARE_ENABLE | value & 0xff);
        let vector = Vector(value as u8);
        ApicAction::Grant { vector, why: Reason::Lvt, msr: IA32_X2APIC_SIVR, value }
    }

    /// Only the timer's entry becomes physical; its delivery mode is fixed by its format. The
    /// others are remembered and stay masked physically, whatever mode they ask for.
    fn write_lvt(&mut self, msr: u32, value: u32) -> Result<ApicAction, GpFault> {
        let timer = msr == IA32_X2APIC_LVT_TIMER;
        if timer && value >> 17 == 3 {
            return Err(GpFault);
        }
        let forced = if self.svr & SOFTWARE_ENABLE == 0 { MASKED } else { 0 };
        let value = value | forced;
        let index = msr.wrapping_sub(IA32_X2APIC_LVT_TIMER) as usize;
        *self.lvt.get_mut(index).ok_or(GpFault)? = value;
        if !timer {
            return Ok(ApicAction::None);
        }
        let (vector, masked) = (Vector(value as u8), value & MASKED != 0);
        let value = u64::from(value);
        if masked || !self.mode.is_exitless() {
            return Ok(ApicAction::WritePhysical { msr, value });
        }
        Ok(ApicAction::Grant { vector, why: Reason::Lvt, msr, value })
    }
}

#[cfg(test)]
mod tests;
