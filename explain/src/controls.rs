//! VT-x: the rule of the SDM's "Checks on VMX Controls" that a VMCS breaks, on the CPU whose capability MSRs stand
//! beside it. The rules of fields that Nexit never uses (APIC-access page, PML, VM functions, MSR areas …) ask that
//! the control is off.

use crate::{Rule, State, first_broken};

/// The controls by their fields, and what goes with them.
#[derive(Debug)]
pub(super) struct Controls<'a>(pub(super) &'a State);

/// A control word, and the capability MSR that rules over it.
struct Word {
    field: u32,
    capability: u32,
    must: &'static str,
    may: &'static str,
}

const PIN_BASED: u32 = 0x4000;
const PRIMARY: u32 = 0x4002;
const SECONDARY: u32 = 0x401e;
const TERTIARY: u32 = 0x2034;
const EXIT: u32 = 0x400c;
const ENTRY: u32 = 0x4012;

/// The capability MSRs are the TRUE ones; where the CPU has none the others stand in their place.
const WORDS: [Word; 4] = [
    Word {
        field: PIN_BASED,
        capability: 0x48d,
        must: "the pin-based controls lack a bit that IA32_VMX_PINBASED_CTLS fixes to 1",
        may: "the pin-based controls have a bit that IA32_VMX_PINBASED_CTLS fixes to 0",
    },
    Word {
        field: PRIMARY,
        capability: 0x48e,
        must: "the primary controls lack a bit that IA32_VMX_PROCBASED_CTLS fixes to 1",
        may: "the primary controls have a bit that IA32_VMX_PROCBASED_CTLS fixes to 0",
    },
    Word {
        field: EXIT,
        capability: 0x48f,
        must: "the VM-exit controls lack a bit that IA32_VMX_EXIT_CTLS fixes to 1",
        may: "the VM-exit controls have a bit that IA32_VMX_EXIT_CTLS fixes to 0",
    },
    Word {
        field: ENTRY,
        capability: 0x490,
        must: "the VM-entry controls lack a bit that IA32_VMX_ENTRY_CTLS fixes to 1",
        may: "the VM-entry controls have a bit that IA32_VMX_ENTRY_CTLS fixes to 0",
    },
];

impl Controls<'_> {
    /// The first rule that they break.
    pub(super) fn broken(&self) -> Option<&'static str> {
        self.check().err()
    }

    fn check(&self) -> Result<(), &'static str> {
        self.reserved_bits()?;
        self.execution()?;
        self.virtual_apic()?;
        self.memory()?;
        self.exit_and_entry()?;
        self.injection()
    }

    fn bit(&self, field: u32, bit: u32) -> bool {
        self.0.at(field) >> bit & 1 != 0
    }

    fn pin(&self, bit: u32) -> bool {
        self.bit(PIN_BASED, bit)
    }

    fn primary(&self, bit: u32) -> bool {
        self.bit(PRIMARY, bit)
    }

    /// 0 without "activate secondary controls".
    fn secondary(&self, bit: u32) -> bool {
        self.primary(31) && self.bit(SECONDARY, bit)
    }

    /// 0 without "activate tertiary controls".
    fn tertiary(&self, bit: u32) -> bool {
        self.primary(17) && self.bit(TERTIARY, bit)
    }

    /// A physical address: no bits beyond the CPU's width, and aligned to 2^`zeros`.
    fn address(&self, field: u32, zeros: u32) -> bool {
        const WIDTH: u32 = 0x8000_0008;
        let value = self.0.at(field);
        let beyond = value.checked_shr(self.0.at(WIDTH) as u32).unwrap_or(0);
        beyond == 0 && value.trailing_zeros() >= zeros
    }

    fn reserved_bits(&self) -> Result<(), &'static str> {
        for word in WORDS {
            let (value, capability) = (self.0.at(word.field), self.0.at(word.capability));
            let (must, may) = (capability & 0xffff_ffff, capability >> 32);
            first_broken(&[(value & must == must, word.must), (value & !may == 0, word.may)])?;
        }
        let secondary = self.0.at(SECONDARY);
        let tertiary = self.0.at(TERTIARY);
        first_broken(&[
            (
                !self.primary(31) || secondary & !(self.0.at(0x48b) >> 32) == 0,
                "the secondary controls have a bit that IA32_VMX_PROCBASED_CTLS2 fixes to 0",
            ),
            (
                !self.primary(17) || tertiary & !self.0.at(0x492) == 0,
                "the tertiary controls have a bit that IA32_VMX_PROCBASED_CTLS3 fixes to 0",
            ),
        ])
    }

    /// SDM "VM-Execution Control Fields", without the virtual APIC's and memory's.
    fn execution(&self) -> Result<(), &'static str> {
        const MAX_CR3_TARGETS: u64 = 4;
        let io = !self.primary(25) || self.address(0x2000, 12) && self.address(0x2002, 12);
        first_broken(&[
            (self.0.at(0x400a) <= MAX_CR3_TARGETS, "there are more than 4 CR3 targets"),
            (io, "an I/O bitmap's address is not a page's, or beyond the address width"),
            (
                !self.primary(28) || self.address(0x2004, 12),
                "the MSR bitmap's address is not a page's, or beyond the address width",
            ),
            (self.pin(3) || !self.pin(5), "\"virtual NMIs\" without \"NMI exiting\""),
            (self.pin(5) || !self.primary(22), "\"NMI-window exiting\" without \"virtual NMIs\""),
            (!self.secondary(13), "\"enable VM functions\", of which the rules are not known here"),
            (!self.secondary(14), "\"VMCS shadowing\", of which the rules are not known here"),
            (!self.secondary(18), "\"EPT-violation #VE\", of which the rules are not known here"),
        ])
    }

    /// SDM "VM-Execution Control Fields": TPR shadow, APIC virtualization, posted interrupts, IPI virtualization.
    fn virtual_apic(&self) -> Result<(), &'static str> {
        let (shadow, x2apic, delivery) = (self.primary(21), self.secondary(4), self.secondary(9));
        let any = x2apic || self.secondary(8) || delivery || self.tertiary(4);
        let posts = self.pin(7);
        let last_entry = self.0.at(0x2042).saturating_add(self.0.at(8).saturating_mul(8));
        first_broken(&[
            (
                !shadow || self.address(0x2012, 12),
                "the virtual-APIC address is not a page's, or beyond the address width",
            ),
            (
                !shadow || delivery || self.0.at(0x401c) >> 4 == 0,
                "the TPR threshold has bits 31:4 set",
            ),
            (shadow || !any, "the virtual APIC without \"use TPR shadow\""),
            (
                !self.secondary(0),
                "\"virtualize APIC accesses\", of which the rules are not known here",
            ),
            (
                !delivery || self.pin(0),
                "\"virtual-interrupt delivery\" without \"external-interrupt exiting\"",
            ),
            (
                !posts || delivery,
                "\"process posted interrupts\" without \"virtual-interrupt delivery\"",
            ),
            (
                !posts || self.bit(EXIT, 15),
                "\"process posted interrupts\" without \"acknowledge interrupt on exit\"",
            ),
            (
                !posts || self.0.at(2) >> 8 == 0,
                "the posted-interrupt notification vector is beyond 255",
            ),
            (
                !posts || self.address(0x2016, 6),
                "the posted-interrupt descriptor's address is not aligned to 64, or beyond the address width",
            ),
            (
                !self.tertiary(4)
                    || self.address(0x2042, 3)
                        && last_entry.checked_shr(self.0.at(0x8000_0008) as u32).unwrap_or(0) == 0,
                "the PID-pointer table is not aligned to 8, or ends beyond the address width",
            ),
        ])
    }

    /// SDM "VM-Execution Control Fields": VPID and EPT; "VPID and EPT Capabilities".
    fn memory(&self) -> Result<(), &'static str> {
        const CAPABILITY: u32 = 0x48c;
        const POINTER: u32 = 0x201a;
        let ept = self.secondary(1);
        let pointer = self.0.at(POINTER);
        let supported = |bit| self.bit(CAPABILITY, bit);
        let type_known = match pointer & 7 {
            0 => supported(8),
            6 => supported(14),
            _ => false,
        };
        let length_known = match pointer >> 3 & 7 {
            3 => supported(6),
            4 => supported(7),
            _ => false,
        };
        let needs_ept = [7, 17, 22, 23].into_iter().any(|bit| self.secondary(bit));
        let needs_ept = needs_ept || [1, 2, 3].into_iter().any(|bit| self.tertiary(bit));
        first_broken(&[
            (!self.secondary(5) || self.0.at(0) != 0, "\"enable VPID\" with VPID 0"),
            (!ept || type_known, "the EPT pointer's memory type is not supported"),
            (!ept || length_known, "the EPT pointer's page-walk length is not supported"),
            (
                !ept || supported(21) || !self.bit(POINTER, 6),
                "EPT accessed and dirty flags without support",
            ),
            (!ept || pointer & 0xf80 == 0, "the EPT pointer has reserved bits set"),
            (
                !ept || pointer.checked_shr(self.0.at(0x8000_0008) as u32).unwrap_or(0) == 0,
                "the EPT pointer is beyond the address width",
            ),
            (
                ept || !needs_ept,
                "\"unrestricted guest\" or another control that needs EPT without \"enable EPT\"",
            ),
        ])
    }

    /// SDM "VM-Exit Control Fields", "VM-Entry Control Fields", and of "Checks on Host Control Registers, MSRs, and
    /// SSP" what a host in 64-bit mode must have.
    fn exit_and_entry(&self) -> Result<(), &'static str> {
        let areas = [0x400e, 0x4010, 0x4014].into_iter().all(|count| self.0.at(count) == 0);
        first_broken(&[
            (
                self.pin(6) || !self.bit(EXIT, 22),
                "\"save VMX-preemption timer value\" without \"activate VMX-preemption timer\"",
            ),
            (areas, "an area of MSRs to load or store, of which the rules are not known here"),
            (self.bit(EXIT, 9), "a 64-bit host without \"host address-space size\""),
            (
                !self.bit(EXIT, 31),
                "secondary VM-exit controls, of which the rules are not known here",
            ),
            (!self.bit(ENTRY, 10) && !self.bit(ENTRY, 11), "an entry to SMM outside SMM"),
            (
                !self.secondary(24) || self.bit(ENTRY, 18) && self.bit(EXIT, 25),
                "Intel PT uses guest-physical addresses, but IA32_RTIT_CTL is not switched",
            ),
        ])
    }

    /// SDM "VM-Entry Control Fields": the event to inject.
    fn injection(&self) -> Result<(), &'static str> {
        let field = self.0.at(0x4016);
        if field >> 31 & 1 == 0 {
            return Ok(());
        }
        let (kind, vector, has_code) = (field >> 8 & 7, field & 0xff, field >> 11 & 1 != 0);
        let protected = self.bit(0x6800, 0);
        let pushes = matches!(vector, 8 | 10..=14 | 17);
        let code_fits = match (kind, has_code) {
            (3, true) => protected && (pushes || vector == 21),
            (3, false) => !(protected && pushes),
            (_, has_code) => !has_code,
        };
        let length = self.0.at(0x401a);
        let rules: [Rule; 6] = [
            (kind != 1, "an event of the reserved type 1 is injected"),
            (field & 0x7fff_f000 == 0, "the event to inject has reserved bits set"),
            (kind != 2 || vector == 2, "an NMI is injected with a vector other than 2"),
            (kind != 3 || vector < 32, "an exception is injected with a vector beyond 31"),
            (
                code_fits,
                "an exception is injected with an error code that it has not, or without its own",
            ),
            (
                !matches!(kind, 4..=6) || (1..=15).contains(&length),
                "a software event is injected without the length of its instruction",
            ),
        ];
        first_broken(&rules)
    }
}

#[cfg(test)]
mod tests;
