//! VT-x: the rule of the SDM's "Checks on the Guest State Area" that a state breaks, and what the numbers of other
//! failures mean. PDPTEs, SMM, Intel PT, CET and the rarer MSRs are left out.

use arch::Gva;
use arch::register::{Cr0, Cr4, Efer, Rflags};
use arch::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};
use arch::vcpu::{StartState, exception};

use crate::{State, first_broken};

/// The guest-state area, with the controls that its rules depend on. "Unrestricted guest" is 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GuestState {
    /// The registers as they are in the VMCS.
    pub(super) registers: StartState,
    pub(super) fixed: Fixed,
    /// VM-entry control "IA-32e mode guest".
    pub(super) ia32e: bool,
    pub(super) dr7: u64,
    pub(super) debugctl: u64,
    pub(super) pat: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) activity: u32,
    pub(super) interruptibility: u32,
    pub(super) pending_debug: u64,
    /// The event to inject.
    pub(super) injection: u32,
    pub(super) link_pointer: u64,
}

/// What IA32_VMX_CR0_FIXED0, 1 and CR4's say of this CPU, and its physical-address width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fixed {
    pub(super) cr0_fixed0: u64,
    pub(super) cr0_fixed1: u64,
    pub(super) cr4_fixed0: u64,
    pub(super) cr4_fixed1: u64,
    pub(super) physical_address_bits: u8,
}

impl GuestState {
    /// The state by the encodings of the fields (SDM "Field Encoding in VMCS"); IA32_VMX_CR0_FIXED0 and the
    /// three behind it by number, the address width by its CPUID leaf.
    pub(super) fn read(state: &State) -> Self {
        let at = |key| state.at(key);
        let table =
            |base, limit| DescriptorTable { base: Gva::new(at(base)), limit: at(limit) as u16 };
        let segment = |index: u32| Segment {
            selector: at(0x800 + 2 * index) as u16,
            base: at(0x6806 + 2 * index),
            limit: at(0x4800 + 2 * index) as u32,
            access: AccessRights(at(0x4814 + 2 * index) as u32),
        };
        Self {
            registers: StartState {
                rip: at(0x681e),
                rflags: at(0x6820),
                cr0: at(0x6800),
                cr3: at(0x6802),
                cr4: at(0x6804),
                efer: at(0x2806),
                segments: SegmentRegister::ALL.map(|register| segment(register as u32)),
                gdtr: table(0x6816, 0x4810),
                idtr: table(0x6818, 0x4812),
                ..StartState::after_sipi(0)
            },
            fixed: Fixed {
                cr0_fixed0: at(0x486),
                cr0_fixed1: at(0x487),
                cr4_fixed0: at(0x488),
                cr4_fixed1: at(0x489),
                physical_address_bits: at(0x8000_0008) as u8,
            },
            ia32e: at(0x4012) & 1 << 9 != 0,
            dr7: at(0x681a),
            debugctl: at(0x2802),
            pat: at(0x2804),
            sysenter_esp: at(0x6824),
            sysenter_eip: at(0x6826),
            activity: at(0x4826) as u32,
            interruptibility: at(0x4824) as u32,
            pending_debug: at(0x6822),
            injection: at(0x4016) as u32,
            link_pointer: at(0x2800),
        }
    }

    /// The first rule that keeps the CPU from entering with this state.
    pub(super) fn broken(&self) -> Option<&'static str> {
        check(self).err()
    }

    /// Type of the event to inject (SDM "Format of the VM-Entry Interruption-Information Field").
    fn injected(&self) -> Option<u32> {
        (self.injection >> 31 != 0).then_some(self.injection >> 8 & 7)
    }
}

const EXTERNAL_INTERRUPT: u32 = 0;
const NMI: u32 = 2;
const HARDWARE_EXCEPTION: u32 = 3;

fn check(state: &GuestState) -> Result<(), &'static str> {
    control_registers(state)?;
    debug_and_msrs(state)?;
    segment_bases(state)?;
    code_and_stack(state)?;
    data_segments(state)?;
    system_segments(state)?;
    rip_and_rflags(state)?;
    non_register_state(state)
}

const fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

fn control_registers(state: &GuestState) -> Result<(), &'static str> {
    let StartState { cr0, cr3, cr4, .. } = state.registers;
    let fixed = &state.fixed;
    let (has0, has4) = (Cr0::from_bits_retain(cr0), Cr4::from_bits_retain(cr4));
    let must0 = fixed.cr0_fixed0 & !(Cr0::PE | Cr0::PG).bits();
    first_broken(&[
        (cr0 & must0 == must0, "CR0 lacks a bit that IA32_VMX_CR0_FIXED0 fixes to 1"),
        (cr0 & !fixed.cr0_fixed1 == 0, "CR0 has a bit that IA32_VMX_CR0_FIXED1 fixes to 0"),
        (!has0.contains(Cr0::PG) || has0.contains(Cr0::PE), "CR0.PG is 1 and CR0.PE is 0"),
        (
            cr4 & fixed.cr4_fixed0 == fixed.cr4_fixed0,
            "CR4 lacks a bit that IA32_VMX_CR4_FIXED0 fixes to 1",
        ),
        (cr4 & !fixed.cr4_fixed1 == 0, "CR4 has a bit that IA32_VMX_CR4_FIXED1 fixes to 0"),
        (!state.ia32e || has0.contains(Cr0::PG), "IA-32e mode guest with CR0.PG = 0"),
        (!state.ia32e || has4.contains(Cr4::PAE), "IA-32e mode guest with CR4.PAE = 0"),
        (state.ia32e || !has4.contains(Cr4::PCIDE), "CR4.PCIDE is 1 outside IA-32e mode"),
        (
            cr3.checked_shr(u32::from(fixed.physical_address_bits)).unwrap_or(0) == 0,
            "CR3 has bits beyond the physical-address width",
        ),
    ])
}

fn debug_and_msrs(state: &GuestState) -> Result<(), &'static str> {
    const DEBUGCTL_DEFINED: u64 = 0xdfc3;
    const EFER_DEFINED: u64 = 0xd01;
    let efer = state.registers.efer;
    let has = Efer::from_bits_retain(efer);
    let paging = state.registers.cr0 & Cr0::PG.bits() != 0;
    let memory_types = state.pat.to_le_bytes();
    first_broken(&[
        (state.debugctl & !DEBUGCTL_DEFINED == 0, "IA32_DEBUGCTL has reserved bits set"),
        (state.dr7 >> 32 == 0, "DR7 has bits 63:32 set"),
        (canonical(state.sysenter_esp), "IA32_SYSENTER_ESP is not canonical"),
        (canonical(state.sysenter_eip), "IA32_SYSENTER_EIP is not canonical"),
        (
            memory_types.iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
            "IA32_PAT has a byte that is no memory type",
        ),
        (efer & !EFER_DEFINED == 0, "IA32_EFER has reserved bits set"),
        (
            has.contains(Efer::LMA) == state.ia32e,
            "IA32_EFER.LMA is not what IA-32e mode guest says",
        ),
        (
            !paging || has.contains(Efer::LMA) == has.contains(Efer::LME),
            "IA32_EFER.LMA and LME differ with paging on",
        ),
    ])
}

fn segment(state: &GuestState, register: SegmentRegister) -> Segment {
    state.registers.segments.get(register as usize).copied().unwrap_or(Segment::NULL)
}

const fn kind(segment: Segment) -> u32 {
    segment.access.0 & 15
}
const fn is_code_or_data(segment: Segment) -> bool {
    segment.access.0 & 1 << 4 != 0
}
const fn is_present(segment: Segment) -> bool {
    segment.access.0 & 1 << 7 != 0
}
const fn has_reserved_bits(segment: Segment) -> bool {
    segment.access.0 & 0xfffe_0f00 != 0
}

/// Limit and granularity bit agree.
const fn is_granular(segment: Segment) -> bool {
    let pages = segment.access.0 & 1 << 15 != 0;
    if pages { segment.limit & 0xfff == 0xfff } else { segment.limit >> 20 == 0 }
}

fn segment_bases(state: &GuestState) -> Result<(), &'static str> {
    let of = |register| segment(state, register);
    let low = |register| of(register).access.unusable() || of(register).base >> 32 == 0;
    let ldtr = of(SegmentRegister::Ldtr);
    first_broken(&[
        (canonical(of(SegmentRegister::Tr).base), "TR's base is not canonical"),
        (canonical(of(SegmentRegister::Fs).base), "FS's base is not canonical"),
        (canonical(of(SegmentRegister::Gs).base), "GS's base is not canonical"),
        (ldtr.access.unusable() || canonical(ldtr.base), "LDTR's base is not canonical"),
        (of(SegmentRegister::Cs).base >> 32 == 0, "CS's base is beyond 4 GiB"),
        (low(SegmentRegister::Ss), "SS's base is beyond 4 GiB"),
        (low(SegmentRegister::Ds), "DS's base is beyond 4 GiB"),
        (low(SegmentRegister::Es), "ES's base is beyond 4 GiB"),
    ])
}

fn code_and_stack(state: &GuestState) -> Result<(), &'static str> {
    let cs = segment(state, SegmentRegister::Cs);
    let ss = segment(state, SegmentRegister::Ss);
    let (cs_dpl, ss_dpl) = (cs.access.dpl(), ss.access.dpl());
    let dpl_agrees = match kind(cs) {
        3 => cs_dpl == 0,
        9 | 11 => cs_dpl == ss_dpl,
        _ => cs_dpl <= ss_dpl,
    };
    let real_mode = state.registers.cr0 & Cr0::PE.bits() == 0;
    let long_default = state.ia32e && cs.access.long() && cs.access.default_32();
    let ss_off = ss.access.unusable();
    first_broken(&[
        (!cs.access.unusable(), "CS is unusable"),
        (matches!(kind(cs), 3 | 9 | 11 | 13 | 15), "CS's type is not accessed code (or 3)"),
        (is_code_or_data(cs), "CS's S bit is 0"),
        (dpl_agrees, "CS's DPL does not go with SS's"),
        (is_present(cs), "CS's P bit is 0"),
        (!has_reserved_bits(cs), "CS's access rights have reserved bits set"),
        (!long_default, "CS has both L and D set"),
        (is_granular(cs), "CS's limit and granularity differ"),
        (ss_off || matches!(kind(ss), 3 | 7), "SS's type is not accessed, writable data"),
        (ss_off || is_code_or_data(ss), "SS's S bit is 0"),
        (ss_dpl == 0 || kind(cs) != 3 && !real_mode, "SS's DPL is not 0 in real mode"),
        (ss_off || is_present(ss), "SS's P bit is 0"),
        (ss_off || !has_reserved_bits(ss), "SS's access rights have reserved bits set"),
        (ss_off || is_granular(ss), "SS's limit and granularity differ"),
    ])
}

fn data_segments(state: &GuestState) -> Result<(), &'static str> {
    use SegmentRegister::{Ds, Es, Fs, Gs};
    for register in [Ds, Es, Fs, Gs] {
        let data = segment(state, register);
        if data.access.unusable() {
            continue;
        }
        let (code, readable) = (kind(data) & 8 != 0, kind(data) & 2 != 0);
        first_broken(&[
            (kind(data) & 1 != 0, "DS, ES, FS or GS is not marked accessed"),
            (!code || readable, "DS, ES, FS or GS is code that cannot be read"),
            (is_code_or_data(data), "DS, ES, FS or GS has an S bit of 0"),
            (is_present(data), "DS, ES, FS or GS has a P bit of 0"),
            (!has_reserved_bits(data), "DS, ES, FS or GS has reserved access rights set"),
            (is_granular(data), "the limit and granularity of DS, ES, FS or GS differ"),
        ])?;
    }
    Ok(())
}

fn system_segments(state: &GuestState) -> Result<(), &'static str> {
    const TABLE_INDICATOR: u16 = 4;
    let tr = segment(state, SegmentRegister::Tr);
    let ldtr = segment(state, SegmentRegister::Ldtr);
    let tr_busy = kind(tr) == 11 || kind(tr) == 3 && !state.ia32e;
    let ldtr_kept = !has_reserved_bits(ldtr)
        && is_granular(ldtr)
        && ldtr.selector & TABLE_INDICATOR == 0
        && !is_code_or_data(ldtr)
        && is_present(ldtr)
        && kind(ldtr) == 2;
    first_broken(&[
        (!tr.access.unusable(), "TR is unusable"),
        (tr.selector & TABLE_INDICATOR == 0, "TR's selector points into the LDT"),
        (tr_busy, "TR is not a busy TSS of the mode's kind"),
        (!is_code_or_data(tr) && is_present(tr), "TR's S bit is 1 or its P bit 0"),
        (!has_reserved_bits(tr), "TR's access rights have reserved bits set"),
        (is_granular(tr), "TR's limit and granularity differ"),
        (ldtr.access.unusable() || ldtr_kept, "LDTR is usable but no present LDT"),
        (canonical(state.registers.gdtr.base.as_u64()), "GDTR's base is not canonical"),
        (canonical(state.registers.idtr.base.as_u64()), "IDTR's base is not canonical"),
    ])
}

fn rip_and_rflags(state: &GuestState) -> Result<(), &'static str> {
    const RESERVED: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;
    let StartState { rip, rflags, cr0, .. } = state.registers;
    let has = Rflags::from_bits_retain(rflags);
    let long = state.ia32e && segment(state, SegmentRegister::Cs).access.long();
    let protected = cr0 & Cr0::PE.bits() != 0;
    let interrupt = state.injected() == Some(EXTERNAL_INTERRUPT);
    first_broken(&[
        (long || rip >> 32 == 0, "RIP has bits 63:32 set outside 64-bit mode"),
        (!long || canonical(rip), "RIP is not canonical"),
        (rflags & RESERVED == 0, "RFLAGS has reserved bits set"),
        (has.contains(Rflags::RESERVED_1), "RFLAGS bit 1 is 0"),
        (
            !has.contains(Rflags::VM) || protected && !state.ia32e,
            "RFLAGS.VM is 1 in IA-32e or real mode",
        ),
        (!interrupt || has.contains(Rflags::IF), "an interrupt is injected with RFLAGS.IF = 0"),
    ])
}

fn non_register_state(state: &GuestState) -> Result<(), &'static str> {
    const STI: u32 = 1;
    const MOV_SS: u32 = 2;
    const HLT: u32 = 1;
    const PENDING_DEFINED: u64 = 0x1_500f | 1 << 11;
    let shadow = state.interruptibility;
    let injected = state.injected();
    let wakes = match injected {
        Some(EXTERNAL_INTERRUPT | NMI) | None => true,
        Some(HARDWARE_EXCEPTION) => {
            matches!(state.injection as u8, exception::DB | exception::MC)
        }
        Some(_) => false,
    };
    let blocked = shadow & (STI | MOV_SS) != 0;
    let ring_0 = segment(state, SegmentRegister::Ss).access.dpl() == 0;
    let interrupts = state.registers.rflags & Rflags::IF.bits() != 0;
    first_broken(&[
        (state.activity <= 3, "the activity state does not exist"),
        (state.activity != HLT || ring_0, "the guest is halted outside ring 0"),
        (state.activity == 0 || !blocked, "an inactive guest blocks events by STI or MOV SS"),
        (state.activity != HLT || wakes, "an event is injected that cannot wake a halted guest"),
        (shadow & !0x1f == 0, "the interruptibility state has reserved bits set"),
        (shadow & (STI | MOV_SS) != STI | MOV_SS, "events are blocked by both STI and MOV SS"),
        (shadow & STI == 0 || interrupts, "events are blocked by STI with RFLAGS.IF = 0"),
        (
            injected != Some(EXTERNAL_INTERRUPT) || !blocked,
            "an interrupt is injected while STI or MOV SS blocks events",
        ),
        (
            injected != Some(NMI) || shadow & MOV_SS == 0,
            "an NMI is injected while MOV SS blocks events",
        ),
        (
            injected != Some(NMI) || shadow & STI == 0,
            "an NMI is injected while STI blocks events, which some CPUs refuse",
        ),
        (state.pending_debug & !PENDING_DEFINED == 0, "the pending debug exceptions are reserved"),
        (state.link_pointer == !0, "the VMCS link pointer is not all ones"),
    ])
}

/// What a VM-instruction error means (SDM "VM-Instruction Error Numbers").
pub(super) const fn instruction_error(number: u64) -> &'static str {
    match number {
        1 => "VMCALL executed in VMX root operation",
        2 => "VMCLEAR with invalid physical address",
        3 => "VMCLEAR with VMXON pointer",
        4 => "VMLAUNCH with non-clear VMCS",
        5 => "VMRESUME with non-launched VMCS",
        6 => "VMRESUME after VMXOFF",
        7 => "VM entry with invalid control fields",
        8 => "VM entry with invalid host-state fields",
        9 => "VMPTRLD with invalid physical address",
        10 => "VMPTRLD with VMXON pointer",
        11 => "VMPTRLD with incorrect VMCS revision identifier",
        12 => "VMREAD or VMWRITE from or to an unsupported VMCS component",
        13 => "VMWRITE to a read-only VMCS component",
        15 => "VMXON executed in VMX root operation",
        16 => "VM entry with invalid executive-VMCS pointer",
        17 => "VM entry with non-launched executive VMCS",
        18 => "VM entry with executive-VMCS pointer that is not the VMXON pointer",
        19 => "VMCALL with non-clear VMCS",
        20 => "VMCALL with invalid VM-exit control fields",
        22 => "VMCALL with incorrect MSEG revision identifier",
        23 => "VMXOFF under dual-monitor treatment of SMIs and SMM",
        24 => "VMCALL with invalid SMM-monitor features",
        25 => "VM entry with invalid VM-execution control fields in executive VMCS",
        26 => "VM entry with events blocked by MOV SS",
        28 => "invalid operand to INVEPT or INVVPID",
        _ => "a VM-instruction error that the manual does not list",
    }
}

/// What a VM-entry failure that is reported as an exit means, by basic exit reason and exit
/// qualification (SDM "VM-Entry Failures During or After Loading Guest State"); `None` for invalid
/// guest state that the qualification does not explain.
pub(super) const fn entry_failure(reason: u16, qualification: u64) -> Option<&'static str> {
    match (reason, qualification) {
        (33, 2) => Some("invalid guest state: a PDPTE has reserved bits set"),
        (33, 3) => Some("invalid guest state: an NMI is injected while MOV SS blocks events"),
        (33, 4) => Some("invalid guest state: the VMCS link pointer"),
        (33, _) => None,
        (34, _) => Some("an entry of the VM-entry MSR-load area could not be loaded"),
        (41, _) => Some("a machine-check event during VM entry"),
        _ => Some("a VM-entry failure that the manual does not list"),
    }
}

#[cfg(test)]
mod tests;
