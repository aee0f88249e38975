//! The seam between the vendors: what the kernel asks of VT-x and of AMD-V.
//!
//! Both are compiled into every image. The choice is made once, at boot, by what the CPU has; from
//! there on everything is generic over [`Backend`], and no call on the run path is indirect.

use arch::Hpa;
use arch::address::PAGE_SIZE;
use arch::msr::{MsrPass, PortRange};
use arch::register::GuestCr4;
use arch::vcpu::{InterruptMode, Vcpu, Withheld};
use cpu::instructions::cpuid;
use cpu::local_apic::LocalApic;
use mem::table::Format;
use mem::{EptFormat, NptFormat};
use plan::Vendor;
use vmx::Posting;
use vmx::controls::Controls;

use crate::memory;
use crate::refusal::{Refusal, refuse};

/// What a virtual CPU is made of, on either vendor.
pub(crate) struct VcpuParts {
    pub(crate) mode: InterruptMode,
    pub(crate) nested_root: Hpa,
    /// ICR writes pass in the bitmaps.
    pub(crate) virtual_ipis: bool,
    /// The guest's, as [`Backend::set_bitmaps`] made them.
    pub(crate) bitmaps: Hpa,
    /// [`Backend::CPU_BYTES`] bytes of zeros that are this virtual CPU's alone.
    pub(crate) memory: Hpa,
    pub(crate) host_tss_base: u64,
    /// In the posted mode: how other CPUs post interrupts.
    pub(crate) posted: Option<Posting>,
    pub(crate) cr4: GuestCr4,
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
    /// Bytes of the bitmaps that all virtual CPUs of a guest share.
    const BITMAP_BYTES: u64;

    /// Switches it on on the CPU that calls, in the first page of the virtual CPU's memory.
    fn enable(memory: Hpa) -> Result<Self, Refusal>;
    /// Whether this CPU has all that `mode` needs, and the format of its nested page table.
    fn check(mode: InterruptMode) -> Result<Self::Format, Refusal>;
    /// Whether this CPU sends a guest's IPIs by itself in `mode`.
    fn virtualizes_ipis(_mode: InterruptMode) -> bool {
        false
    }
    /// The instructions of this CPU that no guest of it can execute.
    fn withheld(_mode: InterruptMode) -> Withheld {
        Withheld::default()
    }
    /// From here to the next exit no NMI is lost: it stays pending for the guest and exits there.
    /// VT-x needs nothing: there the NMI's handler makes the next entry exit.
    fn hold_nmis() {}
    /// Delivers the NMIs held since [`Backend::hold_nmis`] or an exit.
    fn release_nmis() {}
    /// Sleeps for a moment, on a CPU where it is on.
    fn idle(apic: LocalApic) {
        Self::release_nmis();
        // SAFETY: the handlers are installed, no guest runs here now, and interrupts get through.
        unsafe { apic.idle() };
    }
    /// Empties the local APIC of a CPU where it is on of a guest's interrupts.
    fn drain(apic: LocalApic) {
        Self::release_nmis();
        // SAFETY: as for `idle`.
        unsafe { apic.drain() };
    }
    /// Prepares a CPU's local APIC for a guest that takes its interrupts in `mode`.
    fn pass_interrupts(apic: LocalApic, mode: InterruptMode);
    /// Writes the bitmaps of a guest: these MSRs and ports do not exit, all others do.
    fn set_bitmaps(at: Hpa, msrs: &[MsrPass], ports: &[PortRange]);
    /// Makes a virtual CPU on this CPU.
    fn vcpu(&self, parts: &VcpuParts) -> Result<Self::Cpu, Refusal>;
}

/// Which vendor's virtualization this CPU claims to have.
pub(crate) fn vendor() -> Result<Vendor, Refusal> {
    Ok(plan::platform::vendor(|leaf| cpuid(leaf, 0))?)
}

/// Where the I/O bitmaps lie in a guest's bitmaps: behind the MSR bitmap.
const IO_BITMAPS: u64 = size_of::<vmx::MsrBitmap>() as u64;
/// The same of the I/O permission map, behind the MSR permission map.
const IO_PERMISSION_MAP: u64 = size_of::<svm::MsrPermissionMap>() as u64;

/// VT-x.
pub(crate) struct VtX(vmx::VmxOn);

impl Backend for VtX {
    const NAME: &'static str = "vmx";
    const VENDOR: Vendor = Vendor::VtX;
    type Format = EptFormat;
    type Cpu = vmx::VmxVcpu;
    /// VMXON region, VMCS, virtual-APIC page.
    const CPU_BYTES: u64 = 3 * PAGE_SIZE;
    const BITMAP_BYTES: u64 = IO_BITMAPS + size_of::<vmx::IoBitmaps>() as u64;

    fn enable(memory: Hpa) -> Result<Self, Refusal> {
        // SAFETY: ring 0, and it is off on this CPU; the page is this CPU's.
        Ok(Self(unsafe { vmx::enable(memory) }?))
    }

    fn check(mode: InterruptMode) -> Result<EptFormat, Refusal> {
        // SAFETY: ring 0.
        let capabilities = unsafe { vmx::Capabilities::read() };
        Controls::choose(&capabilities, mode)?;
        Ok(EptFormat { largest: vmx::check(&capabilities)?.largest_page })
    }

    fn virtualizes_ipis(mode: InterruptMode) -> bool {
        // SAFETY: ring 0.
        let capabilities = unsafe { vmx::Capabilities::read() };
        Controls::choose(&capabilities, mode).is_ok_and(|controls| controls.virtualizes_ipis())
    }

    fn withheld(mode: InterruptMode) -> Withheld {
        // SAFETY: ring 0.
        let capabilities = unsafe { vmx::Capabilities::read() };
        let controls = Controls::choose(&capabilities, mode);
        controls.map_or(Withheld::default(), |controls| controls.withheld())
    }

    fn pass_interrupts(apic: LocalApic, _: InterruptMode) {
        apic.accept_all();
    }

    fn set_bitmaps(at: Hpa, msrs: &[MsrPass], ports: &[PortRange]) {
        // SAFETY: room for it, says [`Self::BITMAP_BYTES`].
        unsafe { table::<vmx::MsrBitmap>(at) }.set(msrs);
        // SAFETY: as before.
        unsafe { table::<vmx::IoBitmaps>(at.wrapping_add(IO_BITMAPS)) }.set(ports);
    }

    fn vcpu(&self, parts: &VcpuParts) -> Result<vmx::VmxVcpu, Refusal> {
        // Else the guest would write the ICR of the machine.
        if parts.virtual_ipis && !Self::virtualizes_ipis(parts.mode) {
            return Err(refuse!(
                "this CPU has no IPI virtualization and another of the guest's has: choose CPUs of one \
                 kind for it"
            ));
        }
        let page = parts.memory.wrapping_add(2 * PAGE_SIZE);
        let virtual_apic = vmx::VirtualApic { page, posting: parts.posted };
        let virtual_apic = (!parts.mode.is_exitless()).then_some(virtual_apic);
        let setup = vmx::VcpuSetup {
            mode: parts.mode,
            nested_root: parts.nested_root,
            msr_bitmap: parts.bitmaps,
            io_bitmaps: parts.bitmaps.wrapping_add(IO_BITMAPS),
            vmcs: parts.memory.wrapping_add(PAGE_SIZE),
            virtual_apic,
            host_tss_base: parts.host_tss_base,
            cr4: parts.cr4,
        };
        // SAFETY: the pages are this virtual CPU's alone; the nested table maps the guest's own
        // memory only; the TSS is this CPU's, and its IDT handles NMIs.
        Ok(unsafe { vmx::VmxVcpu::new(&self.0, &setup) }?)
    }
}

/// AMD-V.
pub(crate) struct AmdV(svm::Features);

impl Drop for AmdV {
    fn drop(&mut self) {
        // SAFETY: ring 0; `enable` has succeeded, and the virtual CPU is dropped before this is.
        unsafe { svm::disable() };
    }
}

impl Backend for AmdV {
    const NAME: &'static str = "svm";
    const VENDOR: Vendor = Vendor::AmdV;
    type Format = NptFormat;
    type Cpu = svm::SvmVcpu;
    /// Host save area, VMCB.
    const CPU_BYTES: u64 = 2 * PAGE_SIZE;
    const BITMAP_BYTES: u64 = IO_PERMISSION_MAP + size_of::<svm::IoPermissionMap>() as u64;

    fn enable(memory: Hpa) -> Result<Self, Refusal> {
        // SAFETY: ring 0; the page is this CPU's.
        Ok(Self(unsafe { svm::enable(memory) }?))
    }

    fn check(_: InterruptMode) -> Result<NptFormat, Refusal> {
        // SAFETY: ring 0.
        svm::check(&unsafe { svm::Capabilities::read() })?;
        Ok(NptFormat { largest: memory::largest_host_page() })
    }

    fn hold_nmis() {
        // SAFETY: AMD-V is on; VMRUN sets GIF for the guest, and `idle` and `drain` for the host.
        unsafe { core::arch::asm!("clgi", options(nostack)) };
    }

    /// GIF is clear from the first exit on.
    fn release_nmis() {
        // SAFETY: AMD-V is on; the host's handlers take whatever was held back, and IF is clear.
        unsafe { core::arch::asm!("stgi", options(nostack)) };
    }

    /// In the exiting mode the host takes the interrupts through its own IDT, and the guest's
    /// priority is virtual (V_TPR).
    fn pass_interrupts(apic: LocalApic, mode: InterruptMode) {
        if mode == InterruptMode::Exitless {
            apic.accept_all();
        }
    }

    fn set_bitmaps(at: Hpa, msrs: &[MsrPass], ports: &[PortRange]) {
        // SAFETY: room for it, says [`Self::BITMAP_BYTES`].
        unsafe { table::<svm::MsrPermissionMap>(at) }.set(msrs);
        // SAFETY: as before.
        unsafe { table::<svm::IoPermissionMap>(at.wrapping_add(IO_PERMISSION_MAP)) }.set(ports);
    }

    fn vcpu(&self, parts: &VcpuParts) -> Result<svm::SvmVcpu, Refusal> {
        let setup = svm::VcpuSetup {
            mode: parts.mode,
            features: self.0,
            nested_root: parts.nested_root,
            msr_permission_map: parts.bitmaps,
            io_permission_map: parts.bitmaps.wrapping_add(IO_PERMISSION_MAP),
            vmcb: parts.memory.wrapping_add(PAGE_SIZE),
            cr4: parts.cr4,
        };
        // SAFETY: AMD-V is on; the pages are this virtual CPU's alone; the nested table maps the guest's own
        // memory only; the host uses no FS, GS or SYSCALL register and no interrupt stack.
        Ok(unsafe { svm::SvmVcpu::new(&setup) })
    }
}

/// A hardware table in a guest's bitmaps.
///
/// # Safety
/// `at` is page-aligned and has room for it, nobody else uses it, and whatever bytes lie there are a `T`.
unsafe fn table<'a, T>(at: Hpa) -> &'a mut T {
    // SAFETY: the caller vouches for the place.
    unsafe { &mut *cpu::physical::pointer::<T>(at) }
}
