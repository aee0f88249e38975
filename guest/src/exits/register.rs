//! CPUID, MSRs and XSETBV.

use arch::Gpa;
use arch::machine::{GuestMemory, Machine};
use arch::msr::{IA32_APIC_BASE, IA32_X2APIC_APICID, IA32_X2APIC_SIVR, IA32_X2APIC_TPR};
use arch::register::Gpr;
use arch::vcpu::{InterruptMode, Vcpu};
use eli::apic::RESET_WRITES;
use eli::{ApicAction, ApicRead};

use crate::cpuid::Asker;
use crate::msr::MsrOutcome;
use crate::vm::{Context, Platform};

/// The x2APIC's MSRs.
const X2APIC: core::ops::RangeInclusive<u32> = 0x800..=0x8ff;
const _: () = assert!(IA32_X2APIC_APICID == 0x802);

/// CPUID's leaf with the width of physical addresses.
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// CPUID, RDMSR and WRMSR are two bytes long.
const SHORT: u8 = 2;

impl<P: Platform> Context<'_, P> {
    pub(super) fn cpuid(&mut self, length: Option<u8>) {
        let leaf = self.vcpu.gpr(Gpr::Rax) as u32;
        let subleaf = self.vcpu.gpr(Gpr::Rcx) as u32;
        let asker =
            Asker { vcpu: self.cpu.index, cr4: self.vcpu.cr4(), counters: &self.cpu.counters };
        let answer = self.vm.cpuid.answer(leaf, subleaf, asker, self.machine);
        self.vcpu.set_gpr(Gpr::Rax, answer.eax.into());
        self.vcpu.set_gpr(Gpr::Rbx, answer.ebx.into());
        self.vcpu.set_gpr(Gpr::Rcx, answer.ecx.into());
        self.vcpu.set_gpr(Gpr::Rdx, answer.edx.into());
        self.vcpu.skip_instruction(length.unwrap_or(SHORT));
    }

    pub(super) fn read_msr(&mut self, length: Option<u8>) {
        let msr = self.vcpu.gpr(Gpr::Rcx) as u32;
        let value = match msr {
            IA32_APIC_BASE => Some(self.cpu.apic.base()),
            msr if X2APIC.contains(&msr) => match self.cpu.apic.read(msr) {
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
                self.vcpu.skip_instruction(length.unwrap_or(SHORT));
            }
            None => self.raise_general_protection(),
        }
    }

    pub(super) fn write_msr(&mut self, length: Option<u8>) {
        let msr = self.vcpu.gpr(Gpr::Rcx) as u32;
        let value = self.vcpu.gpr(Gpr::Rdx) << 32 | self.vcpu.gpr(Gpr::Rax) & 0xffff_ffff;
        let written = match msr {
            IA32_APIC_BASE => self.write_apic_base(value),
            msr if X2APIC.contains(&msr) => match self.cpu.apic.write(msr, value) {
                Ok(action) => {
                    if msr == IA32_X2APIC_SIVR {
                        self.publish_addressing();
                    }
                    self.apic_action(action)
                }
                Err(_) => false,
            },
            msr => {
                let msrs = &mut self.cpu.msrs;
                let outcome = msrs.write(msr, value, self.vcpu, self.machine, self.memory);
                // The clock's MSRs write to the guest's memory.
                self.refresh_shadow();
                matches!(outcome, MsrOutcome::Done | MsrOutcome::Value(_))
            }
        };
        if written {
            self.vcpu.skip_instruction(length.unwrap_or(SHORT));
        } else {
            self.raise_general_protection();
        }
    }

    /// A guest that switches its APIC off leaves no timer running in the physical one and nothing in
    /// service; what else is requested waits there until it switches it on again. The physical priority
    /// is the host's in the exiting mode.
    fn write_apic_base(&mut self, value: u64) -> bool {
        const HOLDS_ALL: u64 = 0xff;
        let page = Gpa::new(value).page();
        if page != Gpa::new(self.cpu.apic.base()).page() && self.memory.read(page, &mut [0]).is_ok()
        {
            self.note(format_args!(
                "it wants its local APIC's page at {page}, where it has memory: #GP; move it to \
                 where it has none"
            ));
            return false;
        }
        let (was_on, bits) =
            (self.cpu.apic.globally_enabled(), self.machine.cpuid(ADDRESS_SIZES, 0));
        let allowed = self.cpu.apic.write_base(value, bits.eax as u8).is_ok();
        let is_on = self.cpu.apic.globally_enabled();
        self.publish_addressing();
        if is_on == was_on {
            return allowed;
        }
        let exitless = self.vm.mode == InterruptMode::Exitless;
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

    /// The guest's other CPUs, and its devices, find this CPU as its local APIC now says.
    pub(super) fn publish_addressing(&mut self) {
        if let Some(place) = self.vm.addressing.get_mut(self.cpu.index) {
            *place = self.cpu.apic.addressing();
        }
    }

    /// Does what a write to the local APIC comes to; `false` where the guest gets #GP.
    pub(super) fn apic_action(&mut self, action: ApicAction) -> bool {
        match action {
            ApicAction::None => true,
            ApicAction::WritePhysical { msr, value } => self.machine.write_msr(msr, value),
            ApicAction::Grant { vector, why, msr, value } => {
                self.grant(vector, why);
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

    /// XSETBV: XCR0 is the guest's; the CPU itself checks the value. Not every CPU looks at the
    /// privilege level before the exit.
    pub(super) fn xsetbv(&mut self, length: Option<u8>) {
        const XSETBV: u8 = 3;
        let value = self.vcpu.gpr(Gpr::Rdx) << 32 | self.vcpu.gpr(Gpr::Rax) & 0xffff_ffff;
        let allowed = self.vcpu.cpl() == 0 && self.vcpu.gpr(Gpr::Rcx) as u32 == 0;
        if allowed && self.machine.write_xcr0(value) {
            self.vcpu.skip_instruction(length.unwrap_or(XSETBV));
        } else {
            self.raise_general_protection();
        }
    }
}
