//! A captured machine as `plan` asks for it.

use arch::address::HpaRange;
use arch::iommu::IommuError;
use arch::vcpu::InterruptMode;
use arch::{Bdf, Hpa};
use banner::Topology;
use capture::{Capture, CpuKind, View};
use config::Config;
use guest::lines::Wired;
use guest::memory_map::GpaRange;
use iommu::dmar::{Dmar, UNIT_REGISTERS};
use mem::FrameAllocator;
use pci::Claims;
use plan::owners::Others;
use plan::{Cpu, Machine, Plan, Refusal, Vendor, interrupts, memory, platform};
use vmx::controls::Controls;

use crate::files::Files;

const MIB: u64 = 1 << 20;
/// The image's place in memory; it takes 2 MiB (`nexit stats`).
const IMAGE: HpaRange = HpaRange { start: Hpa::new(2 * MIB), length: 2 * MIB };

/// Facts about a machine that do not depend on the configuration.
pub(crate) struct Facts {
    pub(crate) view: View,
    /// The vendor of the virtualization; `None` if no CPU is known to have any.
    vendor: Option<Vendor>,
    pub(crate) cpus: Vec<Cpu>,
    /// The BARs of all functions.
    claims: Claims,
    /// Why there is no usable IOMMU.
    pub(crate) no_iommu: Option<String>,
    /// Usable memory, sorted.
    usable: Vec<HpaRange>,
    /// Problems of the machine with every configuration.
    pub(crate) refusals: Vec<Refusal>,
    /// What could not be checked, because the machine file lacks it.
    pub(crate) unknown: Vec<String>,
}

impl Facts {
    /// What `capture` comes to.
    pub(crate) fn new(capture: &Capture) -> Self {
        let view = capture.view();
        let mut refusals: Vec<Refusal> =
            view.platform.as_ref().err().map(Refusal::machine).into_iter().collect();
        let mut unknown = Vec::new();
        let kind = view.kind.clone().filter(|kind| !kind.cpuid.0.is_empty());
        let vendor = match &kind {
            None => {
                unknown.push("the CPUs' features: the machine file has no CPUID".to_owned());
                None
            }
            Some(kind) => {
                let cpuid = |leaf| kind.cpuid(leaf, 0);
                refusals.extend(platform::lacks(cpuid));
                platform::vendor(cpuid).inspect_err(|refusal| refusals.push(refusal.clone())).ok()
            }
        };
        let usable = usable(capture);
        if usable.is_empty() {
            unknown
                .push("whether the memory is there: the machine file has no memory map".to_owned());
        }
        // Without tables nothing is known of it.
        let no_iommu = view.platform.is_ok().then(|| usable_iommu(capture, &view, &usable));
        let no_iommu = no_iommu.and_then(Result::err);
        let cpus = cpus(capture, &view, kind.as_ref());
        let claims = claims(&view, &usable);
        let facts = Self { view, vendor, cpus, claims, no_iommu, usable, refusals, unknown };
        facts.judge_processor(kind.as_ref())
    }

    /// Refuses a CPU whose virtualization is insufficient, once; modes are checked for each guest.
    fn judge_processor(mut self, kind: Option<&CpuKind>) -> Self {
        let Some(kind) = kind else { return self };
        if self.vendor == Some(Vendor::VtX) && kind.vmx().is_none() {
            let what = "whether VT-x has the required features: the machine file has no VMX MSRs (`modprobe \
                        msr`, then probe again as root)";
            self.unknown.push(what.to_owned());
        }
        let lacks = self.lacks(InterruptMode::Exitless);
        self.refusals.extend(lacks.map(Refusal::machine));
        self
    }

    /// The feature that the CPUs lack for a mode, as far as that is known.
    fn lacks(&self, mode: InterruptMode) -> Option<String> {
        let kind = self.view.kind.as_ref().filter(|kind| !kind.cpuid.0.is_empty())?;
        match self.vendor? {
            Vendor::AmdV => svm::check(&kind.svm()).err().map(|error| error.to_string()),
            Vendor::VtX => {
                let capabilities = kind.vmx()?;
                let checked = vmx::check(&capabilities).map(drop);
                let checked =
                    checked.and_then(|()| Controls::choose(&capabilities, mode).map(drop));
                checked.err().map(|error| error.to_string())
            }
        }
    }

    /// Memory that is left for guests beside files of these sizes, if `guests` bytes go to guests.
    pub(crate) fn free(&self, files: impl Iterator<Item = u64>, guests: u64) -> FrameAllocator {
        let low = HpaRange { start: Hpa::new(0), length: MIB };
        let mut free = FrameAllocator::new(&self.usable, &[low, IMAGE]);
        // As loaders do: below 4 GiB.
        for size in files.filter(|size| *size > 0) {
            let _ = free.allocate(size, 1, Some(Hpa::new(4 << 30)));
        }
        let _ = free.allocate(self.own_need(guests), 1, None);
        free
    }

    /// The hypervisor's memory without its image: at most 64 KiB for each CPU, an entry of 8 bytes for
    /// each 2 MiB in its own tables and in a guest's two, and half a MiB for the rest.
    fn own_need(&self, guests: u64) -> u64 {
        let total: u64 = self.usable.iter().map(|range| range.length).sum();
        let tables = (total + 2 * guests) / (2 * MIB) * 8;
        (MIB / 2 + 64 * 1024 * self.cpus.len() as u64 + tables).next_multiple_of(4096)
    }

    /// What `config` comes to here.
    pub(crate) fn plan(&self, config: &Config, files: &Files) -> Plan {
        let identity = memory::identity(config, self.usable.iter().copied(), IMAGE);
        let identity = identity.filter(|_| self.no_iommu.is_some());
        let mut refusals = self.refusals.clone();
        let identity_ram: Option<Vec<GpaRange>> = match identity {
            Some(Ok(runs)) => Some(runs),
            Some(Err(refusal)) => {
                refusals.push(refusal);
                None
            }
            None => None,
        };
        let guests =
            config.guests.iter().fold(0, |sum: u64, guest| sum.saturating_add(guest.memory));
        let platform = self.view.platform.as_ref().ok();
        let windows = platform.into_iter().flat_map(|platform| &platform.ecam);
        let windows = windows.map(|it| (it.segment, it.first_bus, it.last_bus, it.base));
        let isa_line = |irq: u8| {
            let straight = Wired { gsi: irq.into(), active_low: false, level: false };
            platform.map_or(straight, |platform| interrupts::wired(platform.isa_line(irq)))
        };
        let machine = Machine {
            vendor: self.vendor.unwrap_or(Vendor::VtX),
            lacks: &|mode| self.lacks(mode),
            cpus: &self.cpus,
            free: self.free(files.sizes(), guests),
            identity_ram: identity_ram.as_deref(),
            ecam: memory::low_window(windows),
            space: &self.view.space,
            functions: &self.view.functions,
            groups: &self.view.groups,
            reserved: &|function| self.view.reserved_memory(function),
            covered: &|function| self.is_covered(function),
            no_iommu: self.no_iommu.as_deref(),
            has_line: &|gsi| self.has_line(gsi),
            claims: &self.claims,
            isa_line: &isa_line,
            // The first UART that the console search finds.
            console_irq: Some(4),
            files: &|_, path| files.get(path),
        };
        let mut plan = plan::check(config, &machine);
        let known = |refusal: &Refusal| refusals.contains(refusal) || self.is_unknown(refusal);
        plan.refusals.retain(|refusal| !known(refusal));
        refusals.append(&mut plan.refusals);
        Plan { refusals, ..plan }
    }

    /// Whether a refusal is only for want of something in the machine file.
    fn is_unknown(&self, refusal: &Refusal) -> bool {
        match refusal.key {
            "cpus" => self.cpus.is_empty(),
            "memory" | "size" => self.usable.is_empty(),
            _ => false,
        }
    }

    fn is_covered(&self, function: Bdf) -> bool {
        let Ok(dmar) = self.view.dmar() else { return true };
        dmar.drhd_for(function, &|bridge| self.view.buses_behind(bridge)).is_some()
    }

    /// The tables give the first line of an I/O APIC, not the last.
    fn has_line(&self, gsi: u32) -> bool {
        const MAX_INPUTS: u32 = 240;
        let Ok(platform) = &self.view.platform else { return true };
        platform.io_apics.iter().any(|it| (it.first_gsi..it.first_gsi + MAX_INPUTS).contains(&gsi))
    }

    /// The function that the file has and the boot does not reach.
    pub(crate) fn unreached(&self) -> &[Bdf] {
        &self.view.unreached
    }
}

/// As the boot's memory map has them.
fn usable(capture: &Capture) -> Vec<HpaRange> {
    let usable = capture.memory.iter().filter(|it| it.kind == capture::MemoryKind::Usable);
    let mut ranges: Vec<HpaRange> =
        usable.map(|it| HpaRange { start: Hpa::new(it.start), length: it.length }).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges
}

fn claims(view: &View, usable: &[HpaRange]) -> Claims {
    let platform = view.platform.as_ref().ok();
    let dmar = view.dmar().ok();
    let units = dmar.iter().flat_map(Dmar::units);
    let others = Others {
        image: IMAGE,
        ram: usable.iter().copied(),
        ecam: platform.into_iter().flat_map(|it| &it.ecam).map(|window| {
            let (first, last) =
                (u64::from(window.first_bus) << 20, u64::from(window.last_bus) << 20);
            HpaRange { start: window.base.wrapping_add(first), length: last - first + MIB }
        }),
        units: units.map(|unit| HpaRange { start: unit.registers, length: UNIT_REGISTERS }),
        console: None,
    };
    Claims::record(&mut view.space.clone(), &view.functions, plan::owners::of(platform, others))
}

/// In the order of the MADT; without tables, in the file's.
fn cpus(capture: &Capture, view: &View, kind: Option<&CpuKind>) -> Vec<Cpu> {
    let topology = kind.and_then(|kind| Topology::read(|leaf, sub| kind.cpuid(leaf, sub)));
    let known = |id: u32| {
        let cpu = capture.cpus.iter().find(|cpu| cpu.apic_id == id)?;
        Some(cpu.package.unwrap_or(0) << 16 | cpu.core?)
    };
    let core = |id: u32| topology.map(|topology| topology.core(id)).or_else(|| known(id));
    let cpu = |id: u32| Cpu { id: arch::ApicId(id), started: true, core: core(id) };
    if view.cpus().is_empty() {
        return capture.cpus.iter().map(|it| cpu(it.apic_id)).collect();
    }
    view.cpus().iter().map(|id| cpu(id.0)).collect()
}

/// Whether the IOMMU can be used, as far as tables and registers tell.
fn usable_iommu(capture: &Capture, view: &View, usable: &[HpaRange]) -> Result<(), String> {
    let dmar = view.dmar()?;
    let is_ram = |range: HpaRange| usable.iter().any(|ram| ram.overlaps(range));
    if let Some(why) = dmar.unit_in_ram(is_ram) {
        return Err(why);
    }
    let said = |error: IommuError| error.to_string();
    dmar.check_remapping().map_err(said)?;
    let units = dmar.units().filter_map(|unit| {
        capture.iommu_units.iter().find(|known| known.address == unit.registers.as_u64())
    });
    for unit in units {
        iommu::vtd::check(unit.capability, unit.extended).map_err(said)?;
    }
    Ok(())
}
