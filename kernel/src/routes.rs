//! The machine's interrupt hardware, in which the guests' routes ([`guest::routes`]) are made.

use core::fmt;

use arch::iommu::Iommu;
use cpu::io_apic::IoApic;
use guest::routes::InterruptHardware;
use spin::Mutex;

use crate::console::logln;

/// The machine's IOMMU, shared by all CPUs; locked only where routes and domains change.
pub(crate) type SharedIommu = &'static Mutex<dyn Iommu + Send>;

/// A guest's routes.
pub(crate) type Routes = guest::routes::Routes<Interrupts>;

/// The machine's I/O APICs, and its IOMMU if it has one.
#[derive(Clone, Copy)]
pub(crate) struct Interrupts {
    pub(crate) iommu: Option<SharedIommu>,
    pub(crate) io_apics: &'static [IoApic],
}

impl InterruptHardware for Interrupts {
    type Input = (&'static IoApic, u32);

    fn input(&self, gsi: u32) -> Option<(u8, Self::Input)> {
        let mut io_apics = self.io_apics.iter();
        io_apics.find_map(|io_apic| Some((io_apic.id, (io_apic, io_apic.input(gsi)?))))
    }

    fn mask(&self, (io_apic, input): Self::Input) {
        io_apic.mask(input);
    }

    fn set_redirection(&self, (io_apic, input): Self::Input, entry: u64) {
        io_apic.set_redirection(input, entry);
    }

    fn with_iommu<T>(&self, work: impl FnOnce(&mut dyn Iommu) -> T) -> Option<T> {
        self.iommu.map(|iommu| work(&mut *iommu.lock()))
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        logln!("{line}");
    }
}
