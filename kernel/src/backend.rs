//! The seam between the vendors: what the kernel asks of VT-x and of AMD-V. No other file of `kernel` names their crates.
//!
//! Both are compiled into every image. The choice is made once, at boot, by what the CPU has; from there on everything
//! is generic over [`Backend`], and no call on the run path is indirect. What only works while virtualization is on is
//! a method of the value that [`Backend::enable`] returns.

use alloc::vec::Vec;

use arch::machine::CpuidResult;
use arch::msr::{MsrPass, PortRange, VM_CR};
use arch::vcpu::{InterruptMode, Vcpu, Withheld};
use arch::{ApicId, Hpa, VcpuSetup, Vector};
use cpu::instructions::cpuid;
use cpu::local_apic::LocalApic;
use mem::table::Format;
use mem::{EptFormat, NptFormat};
use plan::Vendor;
use vmx::controls::Controls;
use vmx::large_pages::largest_executable_page;

use crate::memory::{self, Memory};
use crate::owned::{Owned, Pages};
use crate::refusal::Refusal;

/// What a CPU has for a guest in some interrupt mode.
pub(crate) struct Support<F> {
    /// Format of the nested page table.
    pub(crate) format: F,
    /// It sends the guest's IPIs by itself.
    pub(crate) virtual_ipis: bool,
    /// The instructions that no guest of it can execute.
    pub(crate) withheld: Withheld,
}

/// One vendor's virtualization, switched on on this CPU until this is dropped.
pub(crate) trait Backend: Sized + 'static {
    /// `"vmx"` or `"svm"`, as in reports.
    const NAME: &'static str;
    const VENDOR: Vendor;
    /// Format of the nested page table.
    type Format: Format + Send;
    /// The virtual CPU.
    type Cpu: Vcpu;

    /// Bytes of memory that virtualization on a CPU and the virtual CPU on it take.
    const CPU_BYTES: u64;

    /// What this CPU has for `mode`, or what it lacks.
    fn support(mode: InterruptMode) -> Result<Support<Self::Format>, Refusal>;
    /// The bitmaps that all virtual CPUs of a guest share: these MSRs and ports do not exit, all others do.
    fn bitmaps(memory: Memory, msrs: &[MsrPass], ports: &[PortRange]) -> Result<Pages, Refusal>;

    /// Switches it on on the CPU that calls.
    ///
    /// # Safety
    /// It is off on this CPU. The first page of [`VcpuSetup::memory`] is at `memory`, and this CPU's alone until what
    /// this returns is dropped.
    unsafe fn enable(memory: Hpa) -> Result<Self, Refusal>;
    /// Makes a virtual CPU on this CPU, interrupted by others through `inbox`.
    ///
    /// # Safety
    /// The virtual CPU is dropped before `self` is, and there is one at a time. `setup` is what [`VcpuSetup`] says: its
    /// memory has [`Self::CPU_BYTES`] bytes, zero but for what [`Self::enable`] was given; its bitmaps are of
    /// [`Self::bitmaps`]; the nested table maps the guest's own memory only; the TSS is this CPU's.
    unsafe fn vcpu(&self, setup: &VcpuSetup, inbox: &Inbox) -> Result<Self::Cpu, Refusal>;

    /// From here to the next exit no NMI is lost: it stays pending for the guest and exits there.
    /// VT-x needs nothing: there the NMI's handler makes the next entry exit.
    fn hold_nmis(&self) {}
    /// Delivers the NMIs held since [`Backend::hold_nmis`] or an exit.
    fn release_nmis(&self) {}
    /// Sleeps for a moment.
    fn idle(&self, apic: LocalApic) {
        self.release_nmis();
        // SAFETY: the handlers are installed, no guest runs here now, and interrupts get through.
        unsafe { apic.idle() };
    }
    /// Empties the local APIC of a guest's interrupts.
    fn drain(&self, apic: LocalApic) {
        self.release_nmis();
        // SAFETY: as for `idle`.
        unsafe { apic.drain() };
    }
}

/// How the other CPUs of a guest interrupt one of its virtual CPUs.
pub(crate) struct Inbox(Option<vmx::Posting>);

impl Inbox {
    /// Those of a guest's virtual CPUs, on these processors.
    pub(crate) fn of_guest(mode: InterruptMode, processors: &[ApicId]) -> Vec<Self> {
        if mode == InterruptMode::Posted {
            return vmx::Posting::of_guest(processors).map(|posting| Self(Some(posting))).collect();
        }
        processors.iter().map(|_| Self(None)).collect()
    }

    /// Interrupts the virtual CPU, which is on `processor`, from the processor with `own`.
    pub(crate) fn deliver(&self, own: LocalApic, processor: ApicId, vector: Vector) {
        let sent = self.0.map_or(Some(vector), |posting| posting.post(vector));
        if let Some(sent) = sent {
            own.send(processor, sent);
        }
    }
}

/// Which vendor's virtualization this CPU claims to have.
pub(crate) fn vendor() -> Result<Vendor, Refusal> {
    Ok(plan::platform::vendor(|leaf| cpuid(leaf, 0))?)
}

/// The capability MSRs of VT-x, each with its number.
pub(crate) fn capability_msrs() -> [(u32, u64); vmx::Capabilities::MSRS] {
    // SAFETY: ring 0.
    unsafe { vmx::Capabilities::read() }.msrs()
}

/// Reads through `read` each MSR that tells what virtualization can do, of those that the CPU has.
pub(crate) fn read_capabilities(cpuid: fn(u32, u32) -> CpuidResult, read: impl Fn(u32) -> u64) {
    let _ = vmx::Capabilities::gather(cpuid, &read);
    let _ = svm::Capabilities::gather(cpuid, || read(VM_CR));
}

pub(crate) struct VtX(vmx::VmxOn);

impl Backend for VtX {
    const NAME: &'static str = "vmx";
    const VENDOR: Vendor = Vendor::VtX;
    type Format = EptFormat;
    type Cpu = vmx::VmxVcpu;
    const CPU_BYTES: u64 = vmx::CPU_BYTES;

    fn support(mode: InterruptMode) -> Result<Support<EptFormat>, Refusal> {
        // SAFETY: ring 0.
        let capabilities = unsafe { vmx::Capabilities::read() };
        let controls = Controls::choose(&capabilities, mode)?;
        let largest = vmx::check(&capabilities)?.largest_page;
        // SAFETY: ring 0.
        let arch_capabilities = unsafe { vmx::large_pages::arch_capabilities() };
        let largest_executable = largest_executable_page(largest, arch_capabilities);
        Ok(Support {
            format: EptFormat { largest, largest_executable },
            virtual_ipis: controls.virtualizes_ipis(),
            withheld: controls.withheld(),
        })
    }

    fn bitmaps(memory: Memory, msrs: &[MsrPass], ports: &[PortRange]) -> Result<Pages, Refusal> {
        let pages = Owned::new(memory.frames(size_of::<vmx::Bitmaps>() as u64)?);
        let bitmaps = cpu::physical::pointer::<vmx::Bitmaps>(pages.start());
        // SAFETY: there is room for them, nobody else has the pages, and all zeros are bitmaps.
        unsafe { &mut *bitmaps }.set(msrs, ports);
        Ok(pages)
    }

    unsafe fn enable(memory: Hpa) -> Result<Self, Refusal> {
        // SAFETY: ring 0; the rest as the caller promises.
        Ok(Self(unsafe { vmx::enable(memory) }?))
    }

    unsafe fn vcpu(&self, setup: &VcpuSetup, inbox: &Inbox) -> Result<vmx::VmxVcpu, Refusal> {
        // SAFETY: as the caller promises; the IDT of every CPU handles NMIs.
        Ok(unsafe { vmx::VmxVcpu::new(&self.0, setup, inbox.0) }?)
    }
}

pub(crate) struct AmdV(svm::SvmOn);

impl Backend for AmdV {
    const NAME: &'static str = "svm";
    const VENDOR: Vendor = Vendor::AmdV;
    type Format = NptFormat;
    type Cpu = svm::SvmVcpu;
    const CPU_BYTES: u64 = svm::CPU_BYTES;

    fn support(_: InterruptMode) -> Result<Support<NptFormat>, Refusal> {
        // SAFETY: ring 0.
        svm::check(&unsafe { svm::Capabilities::read() })?;
        Ok(Support {
            format: NptFormat { largest: memory::largest_host_page() },
            virtual_ipis: false,
            withheld: Withheld::default(),
        })
    }

    fn bitmaps(memory: Memory, msrs: &[MsrPass], ports: &[PortRange]) -> Result<Pages, Refusal> {
        let pages = Owned::new(memory.frames(size_of::<svm::PermissionMaps>() as u64)?);
        let maps = cpu::physical::pointer::<svm::PermissionMaps>(pages.start());
        // SAFETY: there is room for them, nobody else has the pages, and all zeros are maps.
        unsafe { &mut *maps }.set(msrs, ports);
        Ok(pages)
    }

    unsafe fn enable(memory: Hpa) -> Result<Self, Refusal> {
        // SAFETY: ring 0 with interrupts off, and the IDT of every CPU handles NMIs; the rest as the caller promises.
        Ok(Self(unsafe { svm::enable(memory) }?))
    }

    unsafe fn vcpu(&self, setup: &VcpuSetup, _: &Inbox) -> Result<svm::SvmVcpu, Refusal> {
        // SAFETY: as the caller promises; the host uses no FS, GS or SYSCALL register and no interrupt stack.
        Ok(unsafe { svm::SvmVcpu::new(&self.0, setup) })
    }

    fn hold_nmis(&self) {
        self.0.hold_nmis();
    }

    fn release_nmis(&self) {
        self.0.release_nmis();
    }
}
