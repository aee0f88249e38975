//! The contract between the kernel and an IOMMU.

use core::fmt;

use crate::address::{Hpa, Iova};
use crate::bdf::Bdf;
use crate::interrupt::{InterruptTarget, MsiMessage};

/// Names a DMA address space. 0 is never handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainId(pub u16);

/// Names an interrupt-remapping entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RemapIndex(pub u16);

/// Who may raise the interrupt behind a remapping entry (the source-id check).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptSource {
    /// A PCI function, or the bridge that speaks for it.
    Device(Bdf),
    /// The I/O APIC with this identifier (its requester comes from the firmware's tables).
    IoApic(u8),
}

/// A DMA or interrupt request that the IOMMU refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Who asked.
    pub source: Bdf,
    /// The DMA address, or for an interrupt request the index of the remapping entry.
    pub address: u64,
    /// A DMA write (or an interrupt).
    pub write: bool,
    /// An interrupt request.
    pub interrupt: bool,
    /// The unit's own reason number.
    pub reason: u8,
    /// What the manual says that it means.
    pub meaning: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.interrupt, self.write) {
            (true, _) => "interrupt request with index",
            (false, true) => "DMA write to",
            (false, false) => "DMA read from",
        };
        write!(
            f,
            "{}: {what} {:#x} refused: {} (reason {:#04x})",
            self.source, self.address, self.meaning, self.reason
        )
    }
}

/// What an IOMMU can refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IommuError {
    /// No frame was left for a table.
    OutOfFrames,
    /// No domain identifier was left.
    OutOfDomains,
    /// No remapping entry was left.
    OutOfRemapEntries,
    /// No unit covers this function.
    NoUnit(Bdf),
    /// No such domain.
    UnknownDomain(DomainId),
    /// The firmware names no requester for this I/O APIC.
    UnknownIoApic(u8),
    /// The unit's address width is too small for this address.
    AddressTooWide(u64),
    /// The destination APIC identifier does not fit the unit's mode.
    DestinationTooWide(u32),
    /// The unit did not finish a command within its deadline; the text names the command.
    TimedOut(&'static str),
    /// The unit lacks something that Nexit needs; the text names it.
    Missing(&'static str),
    /// The range is already mapped elsewhere, or is not page-aligned.
    BadRange(u64),
}

impl fmt::Display for IommuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("no memory is left for the IOMMU's tables"),
            Self::OutOfDomains => f.write_str("the IOMMU has no domain identifier left"),
            Self::OutOfRemapEntries => {
                f.write_str("the IOMMU has no interrupt-remapping entry left")
            }
            Self::NoUnit(bdf) => write!(f, "no IOMMU unit covers {bdf}"),
            Self::UnknownDomain(id) => write!(f, "DMA domain {} does not exist", id.0),
            Self::UnknownIoApic(id) => {
                write!(f, "the firmware's DMAR table names no requester for I/O APIC {id}")
            }
            Self::AddressTooWide(address) => {
                write!(f, "address {address:#x} is beyond the IOMMU's address width")
            }
            Self::DestinationTooWide(id) => {
                write!(f, "APIC identifier {id} does not fit the IOMMU's interrupt mode")
            }
            Self::TimedOut(command) => write!(f, "the IOMMU did not finish: {command}"),
            Self::Missing(what) => write!(f, "the IOMMU lacks {what}"),
            Self::BadRange(address) => {
                write!(f, "the range at {address:#x} is mapped already or not page-aligned")
            }
        }
    }
}

impl core::error::Error for IommuError {}

/// DMA and interrupt remapping.
///
/// Invariant: from construction on, a function that is attached to no domain reaches no memory, and
/// an interrupt without an entry reaches no CPU.
pub trait Iommu {
    /// `"vt-d"` or `"amd-vi"`.
    fn name(&self) -> &'static str;

    /// Makes an empty DMA address space for these functions: its tables are such that their units can
    /// walk them.
    ///
    /// # Errors
    /// When identifiers or frames run out, or no unit covers one of the functions.
    fn create_domain(&mut self, functions: &[Bdf]) -> Result<DomainId, IommuError>;

    /// Gives a domain's tables and its identifier back. No function is attached to it any more.
    fn destroy_domain(&mut self, domain: DomainId);

    /// Lets a domain's devices read and write `length` bytes at `iova`, found at `hpa`. All three
    /// are multiples of 4 KiB; the largest pages that fit are used.
    ///
    /// # Errors
    /// When the domain is unknown, the range is bad or frames run out.
    fn map(
        &mut self,
        domain: DomainId,
        iova: Iova,
        hpa: Hpa,
        length: u64,
    ) -> Result<(), IommuError>;

    /// Puts `function` into `domain`. Bus mastering may be switched on only after this.
    ///
    /// # Errors
    /// When no unit covers the function or the unit does not answer.
    fn attach(&mut self, function: Bdf, domain: DomainId) -> Result<(), IommuError>;

    /// Takes `function` out of its domain: from the return on it reaches no memory.
    ///
    /// # Errors
    /// When the unit does not answer.
    fn detach(&mut self, function: Bdf) -> Result<(), IommuError>;

    /// Takes `count` consecutive remapping entries, not present yet, for interrupts of `source`.
    ///
    /// # Errors
    /// When entries run out or no unit covers the source.
    fn allocate_remap(
        &mut self,
        source: InterruptSource,
        count: u16,
    ) -> Result<RemapIndex, IommuError>;

    /// Gives entries back. They are not present and unknown to the units' caches when this returns.
    ///
    /// # Errors
    /// When the unit does not answer; the entries stay taken then.
    fn free_remap(&mut self, first: RemapIndex, count: u16) -> Result<(), IommuError>;

    /// How many entries are taken.
    fn remaps_in_use(&self) -> usize;

    /// Points an entry at `target`, or with `None` makes it not present. The old content is gone
    /// from the unit's cache when this returns.
    ///
    /// # Errors
    /// When the unit does not answer or the destination does not fit.
    fn set_remap(
        &mut self,
        index: RemapIndex,
        target: Option<InterruptTarget>,
    ) -> Result<(), IommuError>;

    /// The message (remappable format) that a device must send to use an entry.
    fn remap_message(&self, index: RemapIndex) -> MsiMessage;

    /// The I/O APIC redirection entry (remappable format) that uses an entry.
    fn remap_redirection(
        &self,
        index: RemapIndex,
        target: InterruptTarget,
        active_low: bool,
    ) -> u64;

    /// The context entry of `function` as it stands in memory, the low half first; `None` where its bus has none.
    fn context_entry(&self, function: Bdf) -> Option<[u64; 2]>;

    /// Gives `sink` each remapping entry that is taken for interrupts of `function`, by its index, as it stands in memory.
    fn remap_entries(&self, function: Bdf, sink: &mut dyn FnMut(RemapIndex, [u64; 2]));

    /// Gives every recorded fault to `sink` and clears the records. Returns how many were lost to
    /// overflow.
    fn poll_faults(&mut self, sink: &mut dyn FnMut(Fault)) -> u32;
}
