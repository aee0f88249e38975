//! One remapping unit: what it must be able to do, and the order in which it is brought up.

use arch::Hpa;
use arch::iommu::{Fault, IommuError};
use mem::TableMemory;

use super::fault;
use super::invalidation::{Descriptor, Queue};
use super::registers::{
    CAP, CLEARED_BY_ONES, Capability, ECAP, ExtendedCapability, FECTL, FSTS, GCMD, GSTS,
    INTERRUPT_MASK, INVALIDATION_ERRORS, IQH, IQT, IRTA, PMEN, PRIMARY_FAULT_OVERFLOW,
    PROTECTED_REGION_STATUS, RTADDR, Registers, command, poll,
};

/// A unit. Translation and interrupt remapping are on from [`Unit::bring_up`] to the end.
#[derive(Debug)]
pub(super) struct Unit<R, P> {
    registers: R,
    /// Where the firmware says that its registers are: its name.
    pub(super) base: Hpa,
    pub(super) segment: u16,
    pub(super) capability: Capability,
    pub(super) extended: ExtendedCapability,
    queue: Option<Queue<P>>,
}

/// Whether a unit that says this in CAP and ECAP has what Nexit needs.
///
/// # Errors
/// What it lacks.
pub fn check(capability: u64, extended: u64) -> Result<(), IommuError> {
    let words = (capability, extended);
    let extended = ExtendedCapability(extended);
    let missing = if [(0, 0), (u64::MAX, u64::MAX)].contains(&words) {
        "registers: they read as all ones or all zeroes, so the firmware's DMAR table names a wrong \
         address"
    } else if !extended.queued_invalidation() {
        "queued invalidation"
    } else if !extended.interrupt_remapping() {
        "interrupt remapping: enable VT-d in the firmware's setup"
    } else if !extended.extended_interrupt_mode() {
        "extended interrupt mode, which x2APIC needs"
    } else {
        return Ok(());
    };
    Err(IommuError::Missing(missing))
}

impl<R: Registers, P> Unit<R, P> {
    /// Reads what the unit can do and touches nothing.
    ///
    /// # Errors
    /// When it lacks something that Nexit needs.
    pub(super) fn probe(registers: R, base: Hpa, segment: u16) -> Result<Self, IommuError> {
        let capability = Capability(registers.read_u64(CAP));
        let extended = ExtendedCapability(registers.read_u64(ECAP));
        check(capability.0, extended.0)?;
        Ok(Self { registers, base, segment, capability, extended, queue: None })
    }

    /// Switches translation (with the root table at `root`) and interrupt remapping (with the value
    /// `interrupt_table` for IRTA) on. What the firmware left on is switched off before: bus masters
    /// must be off.
    ///
    /// # Errors
    /// When the unit does not answer or no frame is left for its queue.
    pub(super) fn bring_up(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
        root: Hpa,
        interrupt_table: u64,
    ) -> Result<(), IommuError> {
        self.registers.write_u32(FECTL, INTERRUPT_MASK);
        self.switch_off_leftovers()?;
        // An error of the firmware's queue would stop ours.
        self.registers.write_u32(FSTS, CLEARED_BY_ONES);
        self.registers.write_u64(RTADDR, root.as_u64());
        self.command(command::SRTP, true, "setting the root table pointer")?;
        self.queue = Some(Queue::new(&mut self.registers, memory)?);
        self.command(command::QIE, true, "enabling queued invalidation")?;
        self.flush_translations(memory)?;
        self.registers.write_u64(IRTA, interrupt_table);
        self.command(command::SIRTP, true, "setting the interrupt remapping table pointer")?;
        self.invalidate(memory, &[Descriptor::INTERRUPT_GLOBAL])?;
        self.command(command::TE, true, "enabling translation")?;
        self.open_protected_regions()?;
        // CFI is off: whatever is not in the remappable format is blocked.
        self.command(command::IRE, true, "enabling interrupt remapping")
    }

    /// Makes the unit forget all context entries and translations.
    ///
    /// # Errors
    /// When the unit does not answer.
    pub(super) fn flush_translations(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
    ) -> Result<(), IommuError> {
        let iotlb = Descriptor::iotlb_global(self.capability.drains());
        self.invalidate(memory, &[Descriptor::CONTEXT_GLOBAL, iotlb])
    }

    /// Makes the unit see entries that were not present before.
    ///
    /// # Errors
    /// When the unit does not answer.
    pub(super) fn publish(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
    ) -> Result<(), IommuError> {
        if self.capability.caching_mode() {
            self.flush_translations(memory)
        } else {
            self.flush_write_buffer()
        }
    }

    /// Carries out `descriptors`, after all writes to tables so far.
    ///
    /// # Errors
    /// When the unit does not answer.
    pub(super) fn invalidate(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
        descriptors: &[Descriptor],
    ) -> Result<(), IommuError> {
        self.flush_write_buffer()?;
        let queue = self.queue.as_mut().ok_or(IommuError::Missing("its invalidation queue"))?;
        queue.run(&mut self.registers, memory, descriptors)
    }

    /// Hands every recorded fault to `sink` and frees the records. Whether records overflowed.
    pub(super) fn poll_faults(&mut self, sink: &mut dyn FnMut(Fault)) -> bool {
        let first = self.capability.fault_recording_offset();
        for record in (0..self.capability.fault_records()).map(|index| first + index * 16) {
            let high = self.registers.read_u64(record + 8);
            if let Some(fault) = fault::decode(self.registers.read_u64(record), high) {
                sink(Fault { source: fault.source.in_segment(self.segment), ..fault });
                // F is in the uppermost of the record's four words.
                self.registers.write_u32(record + 12, (fault::FAULT >> 32) as u32);
            }
        }
        let overflow = self.registers.read_u32(FSTS) & PRIMARY_FAULT_OVERFLOW != 0;
        if overflow {
            self.registers.write_u32(FSTS, PRIMARY_FAULT_OVERFLOW);
        }
        overflow
    }

    fn flush_write_buffer(&mut self) -> Result<(), IommuError> {
        if !self.capability.required_write_buffer_flushing() {
            return Ok(());
        }
        let lasting = self.registers.read_u32(GSTS) & command::LASTING;
        self.registers.write_u32(GCMD, lasting | command::WBF);
        poll("flushing its write buffer", || self.registers.read_u32(GSTS) & command::WBF == 0)
    }

    /// Sets or clears one bit of GCMD, all others as they are, and waits for the same bit of GSTS.
    fn command(&mut self, bit: u32, on: bool, what: &'static str) -> Result<(), IommuError> {
        let lasting = self.registers.read_u32(GSTS) & command::LASTING & !bit;
        self.registers.write_u32(GCMD, lasting | if on { bit } else { 0 });
        poll(what, || (self.registers.read_u32(GSTS) & bit != 0) == on)
    }

    fn switch_off_leftovers(&mut self) -> Result<(), IommuError> {
        if self.registers.read_u32(GSTS) & command::QIE != 0 {
            poll("emptying the firmware's invalidation queue", || {
                let stopped = self.registers.read_u32(FSTS) & INVALIDATION_ERRORS != 0;
                stopped || self.registers.read_u64(IQH) == self.registers.read_u64(IQT)
            })?;
        }
        let bits = [command::IRE, command::CFI, command::EAFL, command::TE, command::QIE];
        for bit in bits {
            if self.registers.read_u32(GSTS) & bit != 0 {
                self.command(bit, false, "switching off what the firmware left on")?;
            }
        }
        Ok(())
    }

    /// Switches everything off again, as far as the unit answers.
    pub(super) fn switch_off(&mut self) {
        let _ = self.switch_off_leftovers();
        self.queue = None;
    }

    /// Switches off the regions that the firmware kept from DMA until translation is on; they would
    /// stand in the way of mapped memory as well.
    fn open_protected_regions(&mut self) -> Result<(), IommuError> {
        if !self.capability.protected_memory_regions() {
            return Ok(());
        }
        self.registers.write_u32(PMEN, 0);
        poll("opening protected memory regions", || {
            self.registers.read_u32(PMEN) & PROTECTED_REGION_STATUS == 0
        })
    }
}
