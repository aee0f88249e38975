//! The registers: what reads back, what a write may hold, and what it comes to, in the x2APIC's numbers whatever the
//! guest's mode.

use arch::Vector;
use arch::interrupt::TriggerMode;
use arch::msr::{
    IA32_X2APIC_APICID, IA32_X2APIC_CUR_COUNT, IA32_X2APIC_DIV_CONF, IA32_X2APIC_EOI,
    IA32_X2APIC_ESR, IA32_X2APIC_ICR, IA32_X2APIC_INIT_COUNT, IA32_X2APIC_IRR0, IA32_X2APIC_ISR0,
    IA32_X2APIC_LDR, IA32_X2APIC_LVT_ERROR, IA32_X2APIC_LVT_LINT0, IA32_X2APIC_LVT_LINT1,
    IA32_X2APIC_LVT_PMI, IA32_X2APIC_LVT_THERMAL, IA32_X2APIC_LVT_TIMER, IA32_X2APIC_PPR,
    IA32_X2APIC_SELF_IPI, IA32_X2APIC_SIVR, IA32_X2APIC_TMR0, IA32_X2APIC_TPR, IA32_X2APIC_VERSION,
};

use super::{ApicAction, ApicRead, GpFault, VirtualApic};
use crate::grants::Reason;
use crate::icr::{Destination, IcrRequest, IpiKind, logical_id};

/// Mask bit of an LVT entry.
pub(super) const MASKED: u32 = 1 << 16;
pub(super) const LVT_COUNT: usize = 6;
/// Version 0x14, highest LVT entry 5, no suppression of EOI broadcasts.
const VERSION: u32 = 0x0005_0014;
/// Software enable of SVR.
pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;
/// ESR: a vector below 16 was to be sent; one was received.
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: a register was named that is not there (xAPIC mode).
const ILLEGAL_REGISTER: u32 = 1 << 7;
/// LVT timer: the mode in which IA32_TSC_DEADLINE arms it.
pub(crate) const DEADLINE: u32 = 1 << 18;

/// The physical writes after which the timer is as after a reset, when a guest switches its local APIC off.
pub const RESET_WRITES: [(u32, u64); 4] = [
    (IA32_X2APIC_LVT_TIMER, MASKED as u64),
    (IA32_X2APIC_INIT_COUNT, 0),
    (IA32_X2APIC_DIV_CONF, 0),
    (IA32_X2APIC_TPR, 0),
];

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

impl VirtualApic {
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
            IA32_X2APIC_TPR if exiting => u32::from(self.pending.registers.tpr),
            IA32_X2APIC_PPR if exiting => u32::from(self.pending.ppr()),
            IA32_X2APIC_ISR0..IA32_X2APIC_TMR0 if exiting => self.pending.registers.isr.word(word),
            IA32_X2APIC_TMR0..IA32_X2APIC_IRR0 if exiting => self.pending.registers.tmr.word(word),
            IA32_X2APIC_IRR0..IA32_X2APIC_ESR if exiting => self.pending.registers.irr.word(word),
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
                self.pending.registers.tpr = value as u8;
                Ok(ApicAction::None)
            }
            IA32_X2APIC_EOI => Ok(match self.pending.eoi() {
                Some((vector, trigger)) => ApicAction::Eoi { vector, trigger },
                None => ApicAction::None,
            }),
            IA32_X2APIC_SELF_IPI => {
                let vector = Vector(value as u8);
                if vector.0 < 16 {
                    let errors = SEND_ILLEGAL_VECTOR | RECEIVE_ILLEGAL_VECTOR;
                    return Ok(to_itself(self.note_error(errors)));
                }
                self.accept(vector, TriggerMode::Edge);
                Ok(ApicAction::None)
            }
            _ => Err(GpFault),
        }
    }

    /// Lets a decoded ICR write go out, or notes its error.
    #[inline(always)]
    pub(crate) fn send(&mut self, request: Option<IcrRequest>) -> ApicAction {
        match request {
            Some(request) if request.illegal_vector() => {
                to_itself(self.note_error(SEND_ILLEGAL_VECTOR))
            }
            Some(request) => ApicAction::Ipi(request),
            None => ApicAction::None,
        }
    }

    /// The page has no such register: an error.
    #[cold]
    #[must_use]
    pub fn note_illegal_register(&mut self) -> ApicAction {
        to_itself(self.note_error(ILLEGAL_REGISTER))
    }

    /// An error: the first since the last write of ESR interrupts, where its LVT entry is not masked (SDM "Error Handling").
    #[cold]
    #[inline(never)]
    fn note_error(&mut self, errors: u32) -> Option<Vector> {
        let first = self.errors == 0;
        self.errors |= errors;
        let [.., entry] = self.lvt;
        let vector = Vector(entry as u8);
        if !first || entry & MASKED != 0 {
            return None;
        }
        if vector.0 < 16 {
            self.errors |= RECEIVE_ILLEGAL_VECTOR;
            return None;
        }
        Some(vector)
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
        let without = value & DEADLINE != 0 && !self.deadlines;
        if timer && (value >> 17 == 3 || without) {
            return Err(GpFault);
        }
        let forced = if self.svr & SOFTWARE_ENABLE == 0 { MASKED } else { 0 };
        let value = value | forced;
        let index = msr.wrapping_sub(IA32_X2APIC_LVT_TIMER) as usize;
        *self.lvt.get_mut(index).ok_or(GpFault)? = value;
        if !timer {
            return Ok(ApicAction::None);
        }
        let vector = Vector(value as u8);
        // No such interrupt is delivered (SDM "Valid Interrupt Vectors"); QEMU's APIC would.
        let illegal = if vector.0 < 16 { MASKED } else { 0 };
        let (value, masked) = (u64::from(value | illegal), (value | illegal) & MASKED != 0);
        if masked || !self.mode.is_exitless() {
            return Ok(ApicAction::WritePhysical { msr, value });
        }
        Ok(ApicAction::Grant { vector, why: Reason::Lvt, msr, value })
    }
}

/// An interrupt to the own CPU.
#[inline(always)]
const fn to_itself(vector: Option<Vector>) -> ApicAction {
    let (kind, destination) = (IpiKind::Fixed, Destination::Own);
    match vector {
        Some(vector) => ApicAction::Ipi(IcrRequest { kind, vector, destination }),
        None => ApicAction::None,
    }
}
