//! CPUID, MSRs and XSETBV.

use arch::Gpa;
use arch::machine::{CpuidResult, GuestMemory, Machine};
use arch::msr::{
    IA32_APIC_BASE, IA32_X2APIC_APICID, IA32_X2APIC_ICR, IA32_X2APIC_LVT_LINT0, IA32_X2APIC_SIVR,
    IA32_X2APIC_TPR, X2APIC_MSRS,
};
use arch::register::{Cr4, Gpr};
use arch::vcpu::{Event, InterruptMode, Vcpu, exception};
use eli::apic::{GpFault, RESET_WRITES};
use eli::{ApicAction, ApicRead};
use insn::Mode;

use crate::cpuid::{
    EXTENDED_STATE, FEATURES, NEXIT_COUNTERS, SYSCALL, Vendor, exit_count, may_be_in_xcr0,
};
use crate::msr::{MsrOutcome, Msrs};
use crate::vm::{Context, CpuState, Guest, Platform, VmLock};

const _: () = assert!(IA32_X2APIC_APICID == 0x802);

/// CPUID's leaf with the width of physical addresses.
pub(super) const ADDRESS_SIZES: u32 = 0x8000_0008;

/// CPUID, RDMSR and WRMSR are two bytes long.
const SHORT: u8 = 2;

impl<P: Platform, L: VmLock> Context<'_, P, &L> {
    /// WRMSR. The guest's lock is needed for what concerns more than this CPU: the local APIC's base, a vector's first
    /// use, whose gate must be opened, and the clock's MSRs, which write to the guest's memory.
    #[inline(always)]
    pub(super) fn write_msr(&mut self) {
        let (msr, value) = self.msr_and_value();
        let written = match msr {
            // The compiler makes a short way of the most frequent one.
            IA32_X2APIC_ICR => match self.cpu.apic.write_icr(value) {
                Ok(action) => self.granted_apic_action(action),
                Err(GpFault) => false,
            },
            msr if X2APIC_MSRS.contains(&msr) => self.again().write_apic(msr, value),
            msr => self.again().write_other_msr(msr, value),
        };
        if written {
            self.vcpu.skip_instruction(self.vcpu.instruction_length(SHORT));
        } else {
            self.again().raise_general_protection();
        }
    }

    #[inline(never)]
    fn write_other_msr(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            IA32_APIC_BASE => self.locked(|context| context.write_apic_base(value)),
            msr if Msrs::writes_memory(msr) => self.locked(|context| {
                let written = context.write_own_msr(msr, value);
                context.refresh_shadow();
                written
            }),
            msr => self.write_own_msr(msr, value),
        }
    }

    /// Writes one of the x2APIC's registers.
    #[inline(never)]
    pub(super) fn write_apic(&mut self, msr: u32, value: u64) -> bool {
        let action = self.cpu.apic.write(msr, value);
        if matches!(msr, IA32_X2APIC_SIVR | IA32_X2APIC_LVT_LINT0) {
            self.publish_addressing();
            self.locked(|context| context.serve_8259s());
        }
        action.is_ok_and(|action| self.granted_apic_action(action))
    }

    /// [`Self::apic_action`], the vector that it sends or sets up granted, if it is the first use of it.
    #[inline(always)]
    fn granted_apic_action(&mut self, action: ApicAction) -> bool {
        if let Some((vector, why)) = action.vector()
            && self.guest.mode.is_exitless()
            && !self.guest.grants.allows(vector)
        {
            self.locked(|context| context.grant(vector, why));
        }
        self.apic_action(action)
    }
}

/// What CPUID says where no answer is ready.
#[inline(never)]
fn work_out(
    guest: &Guest,
    cpu: &CpuState,
    vcpu: &impl Vcpu,
    machine: &impl Machine,
    leaf: u32,
    subleaf: u32,
) -> CpuidResult {
    if leaf == NEXIT_COUNTERS {
        return exit_count(subleaf, &cpu.counters);
    }
    let mut answer = guest.cpuid.answer(leaf, subleaf, cpu.index, machine);
    if leaf == FEATURES && guest.cpuid.vendor() == Vendor::Intel && Mode::of(vcpu) != Mode::Bits64 {
        answer.edx &= !SYSCALL;
    }
    answer
}

impl<P: Platform, V> Context<'_, P, V> {
    #[inline(always)]
    pub(super) fn cpuid(&mut self) {
        let leaf = self.vcpu.gpr(Gpr::Rax) as u32;
        let subleaf = || self.vcpu.gpr(Gpr::Rcx) as u32;
        let answer = match self.cpu.cpuid.get(leaf, subleaf, || self.vcpu.own_cr4()) {
            Some((answer, ecx)) => CpuidResult { ecx: answer.ecx | ecx, ..*answer },
            None => work_out(self.guest, self.cpu, self.vcpu, self.machine, leaf, subleaf()),
        };
        self.vcpu.set_gpr(Gpr::Rax, answer.eax.into());
        self.vcpu.set_gpr(Gpr::Rbx, answer.ebx.into());
        self.vcpu.set_gpr(Gpr::Rcx, answer.ecx.into());
        self.vcpu.set_gpr(Gpr::Rdx, answer.edx.into());
        self.vcpu.skip_instruction(self.vcpu.instruction_length(SHORT));
    }

    pub(super) fn read_msr(&mut self) {
        let msr = self.vcpu.gpr(Gpr::Rcx) as u32;
        let value = match msr {
            IA32_APIC_BASE => Some(self.cpu.apic.base()),
            msr if X2APIC_MSRS.contains(&msr) => match self.cpu.apic.read(msr) {
                Ok(ApicRead::Value(value)) => Some(value),
                Ok(ApicRead::Physical(msr)) => self.machine.read_msr(msr),
                Err(_) => None,
            },
            msr => match self.cpu.msrs.read(msr, self.vcpu, self.machine) {
                MsrOutcome::Value(value) => Some(value),
                MsrOutcome::Done => Some(0),
                MsrOutcome::GeneralProtection | MsrOutcome::Unknown => None,
            },
        };
        match value {
            Some(value) => {
                self.vcpu.set_gpr(Gpr::Rax, value & 0xffff_ffff);
                self.vcpu.set_gpr(Gpr::Rdx, value >> 32);
                self.vcpu.skip_instruction(self.vcpu.instruction_length(SHORT));
            }
            None => self.raise_general_protection(),
        }
    }

    /// The MSR that WRMSR names, and what it writes.
    #[inline(always)]
    fn msr_and_value(&self) -> (u32, u64) {
        let msr = self.vcpu.gpr(Gpr::Rcx) as u32;
        (msr, self.vcpu.gpr(Gpr::Rdx) << 32 | self.vcpu.gpr(Gpr::Rax) & 0xffff_ffff)
    }

    /// Writes an MSR that is none of the local APIC's.
    fn write_own_msr(&mut self, msr: u32, value: u64) -> bool {
        let msrs = &mut self.cpu.msrs;
        let outcome = msrs.write(msr, value, self.vcpu, self.machine, self.memory);
        matches!(outcome, MsrOutcome::Done | MsrOutcome::Value(_))
    }

    /// The guest's other CPUs, and its devices, find this CPU as its local APIC now says.
    pub(super) fn publish_addressing(&mut self) {
        let addressing = self.cpu.apic.addressing();
        self.guest.set_addressing(self.cpu.index, addressing);
        self.vcpu.accept_interrupts(addressing.enabled());
        self.vcpu.pass_x2apic(self.cpu.apic.in_x2apic_mode());
    }

    /// Does what a write to the local APIC comes to, its vector granted; `false` where the guest gets
    /// #GP.
    #[inline(always)]
    pub(super) fn apic_action(&mut self, action: ApicAction) -> bool {
        match action {
            ApicAction::None => true,
            ApicAction::WritePhysical { msr, value } | ApicAction::Grant { msr, value, .. } => {
                self.machine.write_msr(msr, value)
            }
            ApicAction::Ipi(request) => {
                self.send_ipi(request);
                true
            }
            ApicAction::Eoi { vector, trigger } => {
                self.ended(vector, trigger);
                true
            }
        }
    }

    /// XSETBV: XCR0 is the guest's, but for components that it is not shown; the CPU itself checks the value. Not every CPU
    /// looks at the privilege level before the exit.
    pub(super) fn xsetbv(&mut self) {
        const XSETBV: u8 = 3;
        let (register, value) = self.msr_and_value();
        if self.vcpu.cr4() & Cr4::OSXSAVE.bits() == 0 {
            return self.raise(Event::exception(exception::UD, None));
        }
        let allowed = self.vcpu.cpl() == 0 && register == 0 && may_be_in_xcr0(value);
        if allowed && self.machine.write_xcr0(value) {
            let policy = &self.guest.cpuid;
            self.cpu.cpuid.prepare(EXTENDED_STATE, policy, self.cpu.index, self.machine);
            self.vcpu.skip_instruction(self.vcpu.instruction_length(XSETBV));
        } else {
            self.raise_general_protection();
        }
    }
}

impl<P: Platform> Context<'_, P> {
    /// A guest that switches its APIC off leaves no timer running in the physical one and nothing in
    /// service; what else is requested waits there until it switches it on again. The physical priority
    /// is the host's in the exiting mode.
    fn write_apic_base(&mut self, value: u64) -> bool {
        const HOLDS_ALL: u64 = 0xff;
        let page = Gpa::new(value).page();
        if page != Gpa::new(self.cpu.apic.base()).page() && self.memory.read(page, &mut [0]).is_ok()
        {
            self.log_limited(format_args!(
                "it wants its local APIC's page at {page}, where it has memory: #GP; move it to \
                 where it has none"
            ));
            return false;
        }
        let (was_on, bits) =
            (self.cpu.apic.globally_enabled(), self.machine.cpuid(ADDRESS_SIZES, 0));
        let allowed = self.cpu.apic.write_base(value, bits.eax as u8).is_ok();
        // AMD's CPUs keep the bootstrap processor's bit as it is.
        if allowed && self.guest.cpuid.vendor() == Vendor::Intel {
            self.cpu.apic.write_bootstrap(value);
        }
        let is_on = self.cpu.apic.globally_enabled();
        self.publish_addressing();
        self.cpu.cpuid.show_apic(is_on);
        if is_on == was_on {
            return allowed;
        }
        self.serve_8259s();
        let exitless = self.guest.mode == InterruptMode::Exitless;
        for (msr, value) in RESET_WRITES {
            if exitless || msr != IA32_X2APIC_TPR {
                self.machine.write_msr(msr, value);
            }
        }
        if !is_on {
            if exitless {
                self.machine.write_msr(IA32_X2APIC_TPR, HOLDS_ALL);
            }
            self.end_all_in_service();
        }
        allowed
    }
}
