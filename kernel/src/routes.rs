//! A guest's interrupt routes: which remapping entry or I/O APIC input each of its lines uses.
//!
//! Place in the interrupt's path: a device writes its message → the IOMMU's entry (set here) names
//! the guest's own vector and its physical CPU → the CPU. Nothing here runs when an interrupt comes.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use arch::interrupt::{InterruptTarget, MsiMessage, TriggerMode};
use arch::iommu::{InterruptSource, Iommu, RemapIndex};
use arch::machine::{InterruptLine, RouteRefused};
use arch::{ApicId, Bdf};
use cpu::io_apic::IoApic;
use guest::lines::{Line, Wired};
use spin::Mutex;

use crate::console::logln;
use crate::refusal::{Refusal, refuse};

/// The machine's IOMMU, shared by all CPUs; locked only where routes and domains change.
pub(crate) type SharedIommu = &'static Mutex<dyn Iommu + Send>;

/// The lines that one guest may use, and the entries behind them.
pub(crate) struct Routes {
    iommu: Option<SharedIommu>,
    io_apics: &'static [IoApic],
    messages: BTreeMap<Bdf, Messages>,
    /// By global system interrupt.
    lines: BTreeMap<u32, WiredLine>,
    cpus: Vec<ApicId>,
}

/// An I/O APIC's input, and what it is connected to.
#[derive(Clone, Copy)]
struct WiredLine {
    wired: (&'static IoApic, u32),
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

impl Routes {
    /// No lines yet; interrupts may go to `cpus`.
    pub(crate) fn new(
        iommu: Option<SharedIommu>,
        io_apics: &'static [IoApic],
        cpus: &[ApicId],
    ) -> Self {
        Self {
            iommu,
            io_apics,
            messages: BTreeMap::new(),
            lines: BTreeMap::new(),
            cpus: cpus.to_vec(),
        }
    }

    /// Gives the guest the messages of `function`, which reach the IOMMU in the name of `requester`.
    pub(crate) fn grant_messages(
        &mut self,
        function: Bdf,
        requester: Bdf,
        count: u16,
    ) -> Result<(), Refusal> {
        let source = InterruptSource::Device(requester);
        let first = self.iommu.map(|iommu| iommu.lock().allocate_remap(source, count)).transpose();
        let first = first.map_err(|error| refuse!("device {function}: {error}"))?;
        let targets = vec![None; count.into()];
        self.messages.insert(function, Messages { first, targets });
        Ok(())
    }

    /// Gives the guest a line, which is wired so in the machine.
    pub(crate) fn grant_line(&mut self, line: Line, wired: Wired) -> Result<(), Refusal> {
        let gsi = line.gsi;
        let Wired { gsi: of_machine, active_low, level } = wired;
        let input = |io_apic: &'static IoApic| Some((io_apic, io_apic.input(of_machine)?));
        let wired = self.io_apics.iter().find_map(input).ok_or_else(|| {
            refuse!("no I/O APIC has interrupt line {of_machine}: name another one in intx")
        })?;
        let source = InterruptSource::IoApic(wired.0.id);
        let entry = self.iommu.map(|iommu| iommu.lock().allocate_remap(source, 1)).transpose()?;
        self.lines.insert(gsi, WiredLine { wired, entry, active_low, level, target: None });
        Ok(())
    }

    /// Points a line at a vector of the guest, or cuts it off.
    pub(crate) fn set(
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
        match (self.iommu, messages.first) {
            (Some(iommu), Some(first)) => {
                let entry = RemapIndex(first.0 + index);
                let mut iommu = iommu.lock();
                iommu.set_remap(entry, target).map_err(|_| IOMMU_REFUSED)?;
                Ok(iommu.remap_message(entry))
            }
            _ => match target {
                Some(target) => target.message().ok_or(TOO_FAR),
                None => Ok(MsiMessage { address: MsiMessage::BASE, data: 0 }),
            },
        }
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
        let WiredLine { wired: (io_apic, input), entry, active_low, .. } = *line;
        if target.is_none() {
            // First of all: what is sent to an entry that is not present is never ended.
            io_apic.mask(input);
        }
        let remapped = self.iommu.zip(entry);
        if let Some((iommu, entry)) = remapped {
            iommu.lock().set_remap(entry, target).map_err(|_| IOMMU_REFUSED)?;
        }
        if let Some(target) = target {
            let value = match remapped {
                Some((iommu, entry)) => iommu.lock().remap_redirection(entry, target, active_low),
                None => target.redirection(active_low).ok_or(TOO_FAR)?,
            };
            io_apic.set_redirection(input, value);
        }
        Ok(MsiMessage { address: 0, data: 0 })
    }

    /// Cuts off the lines of the I/O APICs: one that is level-triggered and still up would raise its
    /// interrupt again as soon as that is ended.
    pub(crate) fn mask_lines(&mut self) {
        let lines: Vec<u32> = self.lines.keys().copied().collect();
        for gsi in lines {
            let _ = self.set_line(gsi, None);
        }
    }

    /// Calls `show` with every line that points at a vector, and its remapping entry.
    pub(crate) fn each(&self, mut show: impl FnMut(InterruptLine, InterruptTarget, Option<u16>)) {
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

impl Drop for Routes {
    /// Masks every line and releases the remapping entries.
    fn drop(&mut self) {
        self.mask_lines();
        let messages = core::mem::take(&mut self.messages).into_values();
        let messages = messages.map(|messages| (messages.first, messages.targets.len() as u16));
        let lines = core::mem::take(&mut self.lines).into_values();
        for (first, count) in messages.chain(lines.map(|line| (line.entry, 1))) {
            let (Some(iommu), Some(first)) = (self.iommu, first) else { continue };
            if let Err(error) = iommu.lock().free_remap(first, count) {
                logln!("{error}: its remapping entries stay taken");
            }
        }
    }
}

const IOMMU_REFUSED: RouteRefused = RouteRefused("the IOMMU did not take the remapping entry");
const TOO_FAR: RouteRefused =
    RouteRefused("an APIC identifier above 255 needs interrupt remapping");
