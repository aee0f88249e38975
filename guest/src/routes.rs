//! A guest's interrupt routes: which remapping entry or I/O APIC input each of its lines uses.
//!
//! Place in the interrupt's path: a device writes its message → the IOMMU's entry (set here) names the guest's own
//! vector and its physical CPU → the CPU. Nothing here runs when an interrupt comes.
//!
//! Invariant: an interrupt of a line that is not the guest's goes nowhere, and none of its lines interrupts a CPU that is
//! not its own.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use arch::interrupt::{InterruptTarget, MsiMessage, TriggerMode};
use arch::iommu::{InterruptSource, Iommu, IommuError, RemapIndex};
use arch::machine::{InterruptLine, RouteRefused};
use arch::{ApicId, Bdf};

use crate::lines::{Line, Wired};

/// What routes are made in: the machine's I/O APICs, and its IOMMU if it has one.
pub trait InterruptHardware {
    /// An input of an I/O APIC.
    type Input: Copy;
    /// The input that a global system interrupt of the machine has, and its I/O APIC's identifier.
    fn input(&self, gsi: u32) -> Option<(u8, Self::Input)>;
    /// Nothing comes from an input any more.
    fn mask(&self, input: Self::Input);
    /// Writes an input's redirection entry.
    fn set_redirection(&self, input: Self::Input, entry: u64);
    /// Does `work` with the IOMMU.
    fn with_iommu<T>(&self, work: impl FnOnce(&mut dyn Iommu) -> T) -> Option<T>;
    /// Logs a line.
    fn log(&self, line: fmt::Arguments<'_>);
}

/// Why a line cannot be the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineRefused {
    /// No I/O APIC has it.
    NoInput(u32),
    /// The IOMMU has no entry for it.
    Iommu(IommuError),
}

impl fmt::Display for LineRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInput(gsi) => {
                write!(f, "no I/O APIC has interrupt line {gsi}: name another one in intx")
            }
            Self::Iommu(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LineRefused {}

/// The lines that one guest may use, and the entries behind them.
pub struct Routes<H: InterruptHardware> {
    hardware: H,
    messages: BTreeMap<Bdf, Messages>,
    /// By global system interrupt.
    lines: BTreeMap<u32, WiredLine<H::Input>>,
    cpus: Vec<ApicId>,
}

/// An I/O APIC's input, and what it is connected to.
#[derive(Clone, Copy)]
struct WiredLine<Input> {
    input: Input,
    entry: Option<RemapIndex>,
    active_low: bool,
    level: bool,
    target: Option<InterruptTarget>,
}

/// Consecutive remapping entries of a function's messages.
struct Messages {
    first: Option<RemapIndex>,
    targets: Vec<Option<InterruptTarget>>,
}

const IOMMU_REFUSED: RouteRefused = RouteRefused("the IOMMU did not take the remapping entry");
const TOO_FAR: RouteRefused =
    RouteRefused("an APIC identifier above 255 needs interrupt remapping");

impl<H: InterruptHardware> Routes<H> {
    /// No lines yet; interrupts may go to `cpus`.
    #[must_use]
    pub fn new(hardware: H, cpus: &[ApicId]) -> Self {
        let (messages, lines) = (BTreeMap::new(), BTreeMap::new());
        Self { hardware, messages, lines, cpus: cpus.to_vec() }
    }

    fn allocate(
        &self,
        source: InterruptSource,
        count: u16,
    ) -> Result<Option<RemapIndex>, IommuError> {
        self.hardware.with_iommu(|iommu| iommu.allocate_remap(source, count)).transpose()
    }

    /// Gives the guest the messages of `function`, which reach the IOMMU in the name of `requester`.
    ///
    /// # Errors
    /// The IOMMU's.
    pub fn grant_messages(
        &mut self,
        function: Bdf,
        requester: Bdf,
        count: u16,
    ) -> Result<(), IommuError> {
        let first = self.allocate(InterruptSource::Device(requester), count)?;
        let targets = vec![None; count.into()];
        self.messages.insert(function, Messages { first, targets });
        Ok(())
    }

    /// Gives the guest a line, which is wired so in the machine.
    ///
    /// # Errors
    /// If the machine has no such line, or the IOMMU no entry for it.
    pub fn grant_line(&mut self, line: Line, wired: Wired) -> Result<(), LineRefused> {
        let Wired { gsi, active_low, level } = wired;
        let (io_apic, input) = self.hardware.input(gsi).ok_or(LineRefused::NoInput(gsi))?;
        let entry =
            self.allocate(InterruptSource::IoApic(io_apic), 1).map_err(LineRefused::Iommu)?;
        self.lines.insert(line.gsi, WiredLine { input, entry, active_low, level, target: None });
        Ok(())
    }

    /// Points a line at a vector of the guest, or cuts it off.
    ///
    /// # Errors
    /// For what is not the guest's, and where the IOMMU refuses.
    pub fn set(
        &mut self,
        line: InterruptLine,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        if target.is_some_and(|target| !self.cpus.contains(&target.destination)) {
            return Err(RouteRefused("the destination is not one of the guest's CPUs"));
        }
        match line {
            InterruptLine::Message { function, index } => self.set_message(function, index, target),
            InterruptLine::Gsi(gsi) => self.set_line(gsi, target),
        }
    }

    fn set_message(
        &mut self,
        function: Bdf,
        index: u16,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        const NONE: RouteRefused = RouteRefused("the function has no such message");
        let messages = self.messages.get_mut(&function).ok_or(NONE)?;
        let known = messages.targets.get_mut(usize::from(index)).ok_or(NONE)?;
        *known = target;
        let Some(entry) = messages.first.map(|first| RemapIndex(first.0 + index)) else {
            return match target {
                Some(target) => target.message().ok_or(TOO_FAR),
                None => Ok(MsiMessage { address: MsiMessage::BASE, data: 0 }),
            };
        };
        let set = |iommu: &mut dyn Iommu| {
            iommu.set_remap(entry, target).map(|()| iommu.remap_message(entry))
        };
        self.hardware.with_iommu(set).and_then(Result::ok).ok_or(IOMMU_REFUSED)
    }

    fn set_line(
        &mut self,
        gsi: u32,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        let line = self.lines.get_mut(&gsi).ok_or(RouteRefused("the line is not the guest's"))?;
        // The guest's tables say that the ISA bus has edges; of a line that is held up until its device is
        // served, an edge would be lost while another device holds it.
        let target = target.map(|target| match line.level {
            true => InterruptTarget { trigger: TriggerMode::Level, ..target },
            false => target,
        });
        line.target = target;
        let WiredLine { input, entry, active_low, .. } = *line;
        if target.is_none() {
            // First of all: what is sent to an entry that is not present is never ended.
            self.hardware.mask(input);
        }
        let redirection = match entry {
            Some(entry) => {
                let set = |iommu: &mut dyn Iommu| {
                    iommu.set_remap(entry, target)?;
                    Ok(target.map(|target| iommu.remap_redirection(entry, target, active_low)))
                };
                let set = self.hardware.with_iommu(set);
                set.and_then(|set: Result<_, IommuError>| set.ok()).ok_or(IOMMU_REFUSED)?
            }
            None => {
                target.map(|target| target.redirection(active_low).ok_or(TOO_FAR)).transpose()?
            }
        };
        if let Some(redirection) = redirection {
            self.hardware.set_redirection(input, redirection);
        }
        Ok(MsiMessage { address: 0, data: 0 })
    }

    /// Cuts off the lines of the I/O APICs: one that is level-triggered and still up would raise its
    /// interrupt again as soon as that is ended.
    pub fn mask_lines(&mut self) {
        let lines: Vec<u32> = self.lines.keys().copied().collect();
        for gsi in lines {
            let _ = self.set_line(gsi, None);
        }
    }

    /// Calls `show` with every line that points at a vector, and its remapping entry.
    pub fn each(&self, mut show: impl FnMut(InterruptLine, InterruptTarget, Option<u16>)) {
        for (function, Messages { first, targets }) in &self.messages {
            for (index, target) in (0_u16..).zip(targets) {
                if let Some(target) = target {
                    let entry = first.map(|first| first.0 + index);
                    show(InterruptLine::Message { function: *function, index }, *target, entry);
                }
            }
        }
        for (gsi, WiredLine { entry, target, .. }) in &self.lines {
            if let Some(target) = target {
                show(InterruptLine::Gsi(*gsi), *target, entry.map(|entry| entry.0));
            }
        }
    }
}

impl<H: InterruptHardware> Drop for Routes<H> {
    /// Masks every line and releases the remapping entries.
    fn drop(&mut self) {
        self.mask_lines();
        let messages = core::mem::take(&mut self.messages).into_values();
        let messages = messages.map(|messages| (messages.first, messages.targets.len() as u16));
        let lines = core::mem::take(&mut self.lines).into_values();
        for (first, count) in messages.chain(lines.map(|line| (line.entry, 1))) {
            let Some(first) = first else { continue };
            let freed = self.hardware.with_iommu(|iommu| iommu.free_remap(first, count));
            if let Some(Err(error)) = freed {
                self.hardware.log(format_args!("{error}: its remapping entries stay taken"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
