//! LLDT, LTR, SLDT, STR: VT-x cannot let LIDT exit without them. They do what the CPU would do
//! (SDM "LLDT—Load Local Descriptor Table Register", "LTR—Load Task Register").
//!
//! Invariant: whatever the guest's GDT holds, a segment that gets loaded here passes the checks of a
//! VM entry (SDM "Checks on Guest Segment Registers"); everything else is an exception for the
//! guest.

use arch::Gva;
use arch::machine::GuestMemory;
use arch::register::{Cr0, Cr4, Efer, Gpr, Rflags};
use arch::segment::{AccessRights, DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{Event, Vcpu, exception};
use insn::{Access, Instruction, MemoryFault, Mode, Operation, Register, canonical};

use super::access::{self, Refused};
use crate::vm::{Context, Platform};

/// Table indicator of a selector: LDT.
const TABLE_INDICATOR: u16 = 1 << 2;
/// Requested privilege level of a selector.
const RPL: u16 = 3;

/// The CPU reads descriptors with its own rights, at any privilege level.
const SUPERVISOR: Access = Access { write: false, fetch: false, user: false };

impl<P: Platform> Context<'_, P> {
    /// Carries out the LLDT, LTR, SLDT or STR at RIP and moves on, or says why not; nothing has changed
    /// then.
    pub(super) fn system_segment(&mut self, instruction: &Instruction) -> Result<(), Refused> {
        let protected =
            self.vcpu.cr0() & Cr0::PE.bits() != 0 && self.vcpu.rflags() & Rflags::VM.bits() == 0;
        let Operation::SystemSegment { register, store, operand } = instruction.operation else {
            return Err(Refused::Another);
        };
        if !protected {
            return Err(fault(exception::UD, None));
        }
        if store {
            self.check_umip()?;
            let selector = self.vcpu.segment(register).selector;
            if let Some(gpr) = operand {
                let register = Register { gpr, high: false };
                register.set(self.vcpu, instruction.width, selector.into());
            } else {
                access::store_bytes(self, instruction, &selector.to_le_bytes())?;
            }
        } else {
            if self.vcpu.cpl() != 0 {
                return Err(fault(exception::GP, Some(0)));
            }
            let selector = self.selector_operand(instruction, operand)?;
            let long = instruction.mode == Mode::Bits64;
            let segment = load(self.vcpu, self.memory, register, selector, long)?;
            self.vcpu.set_segment(register, segment);
        }
        self.vcpu.skip_instruction(instruction.length);
        Ok(())
    }

    fn selector_operand(
        &mut self,
        instruction: &Instruction,
        operand: Option<Gpr>,
    ) -> Result<u16, Refused> {
        if let Some(gpr) = operand {
            return Ok(self.vcpu.gpr(gpr) as u16);
        }
        let mut bytes = [0; 2];
        access::load_bytes(self, instruction, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }
}

/// What LDTR or TR holds after a load of `selector`. A TSS is marked busy in the GDT.
fn load<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &mut M,
    register: SegmentRegister,
    selector: u16,
    long: bool,
) -> Result<Segment, Refused> {
    let task = register == SegmentRegister::Tr;
    if selector & !RPL == 0 {
        let null = Segment { selector, ..Segment::NULL };
        return if task { Err(fault(exception::GP, Some(0))) } else { Ok(null) };
    }
    let error_code = Some(u32::from(selector & !RPL));
    let (at, descriptor) =
        read_descriptor(vcpu, memory, selector, long)?.ok_or(fault(exception::GP, error_code))?;
    let long_active = vcpu.efer() & Efer::LMA.bits() != 0;
    let loadable = match descriptor.kind() {
        kind::LDT => !task,
        kind::AVAILABLE_TSS => task,
        kind::AVAILABLE_TSS_16 => task && !long_active,
        _ => false,
    };
    if !loadable || descriptor.upper_kind() != 0 {
        return Err(fault(exception::GP, error_code));
    }
    if !descriptor.present() {
        return Err(fault(exception::NP, error_code));
    }
    if !canonical(descriptor.base(), vcpu.cr4() & Cr4::LA57.bits() != 0) {
        return Err(fault(exception::GP, error_code));
    }
    if !task {
        return Ok(descriptor.segment(selector));
    }
    let busy = descriptor.busy();
    let (at, byte) = (at.wrapping_add(Descriptor::ACCESS_BYTE), busy.access_byte());
    insn::write_linear(vcpu, memory, at, SUPERVISOR, &[byte])?;
    Ok(busy.segment(selector))
}

/// The descriptor in the GDT that `selector` names, and its linear address; `None` where it is not
/// one of the GDT.
fn read_descriptor<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &M,
    selector: u16,
    long: bool,
) -> Result<Option<(Gva, Descriptor)>, Refused> {
    let table = vcpu.descriptor_table(DescriptorTableRegister::Gdtr);
    let offset = selector & !(RPL | TABLE_INDICATOR);
    let length: u16 = if long { 16 } else { 8 };
    let last = offset.checked_add(length - 1);
    if selector & TABLE_INDICATOR != 0 || last.is_none_or(|last| last > table.limit) {
        return Ok(None);
    }
    let at = table.base.wrapping_add(offset.into());
    let mut bytes = [0; 16];
    let part = bytes.get_mut(..length.into()).unwrap_or_default();
    match insn::read_linear(vcpu, memory, at, SUPERVISOR, part) {
        // Nobody answers there.
        Err(MemoryFault::NotMemory(_)) => part.fill(0xff),
        read => read?,
    }
    Ok(Some((at, Descriptor(u128::from_le_bytes(bytes)))))
}

pub(super) const fn fault(vector: u8, error_code: Option<u32>) -> Refused {
    Refused::Fault(Event::exception(vector, error_code), None)
}

/// S and type fields of the descriptors that can be loaded (SDM "System Descriptor Types").
mod kind {
    /// 16-bit TSS, available; only without IA-32e mode.
    pub(super) const AVAILABLE_TSS_16: u8 = 1;
    pub(super) const LDT: u8 = 2;
    /// 32-bit TSS, in IA-32e mode 64-bit TSS; available.
    pub(super) const AVAILABLE_TSS: u8 = 9;
}

/// Descriptor of a system segment: 16 bytes in 64-bit mode, else 8 and zeros
/// (SDM "Segment Descriptors"; "Segment Descriptor Tables in IA-32e Mode").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Descriptor(u128);

impl Descriptor {
    /// Where in the descriptor the byte with P, DPL, S and type is.
    const ACCESS_BYTE: u64 = 5;
    const BUSY: u128 = 1 << 41;
    const GRANULARITY: u128 = 1 << 55;

    const fn bits(self, low: u32, count: u32) -> u64 {
        (self.0 >> low & ((1 << count) - 1)) as u64
    }

    /// S and type.
    const fn kind(self) -> u8 {
        self.bits(40, 5) as u8
    }

    /// What stands in the upper half where the lower one has S and type; zero in a valid one.
    const fn upper_kind(self) -> u8 {
        self.bits(64 + 40, 5) as u8
    }

    const fn present(self) -> bool {
        self.bits(47, 1) != 0
    }

    const fn base(self) -> u64 {
        self.bits(16, 24) | self.bits(56, 40) << 24
    }

    /// Offset of the last byte.
    const fn limit(self) -> u32 {
        let limit = (self.bits(0, 16) | self.bits(48, 4) << 16) as u32;
        if self.0 & Self::GRANULARITY != 0 { limit << 12 | 0xfff } else { limit }
    }

    const fn access_byte(self) -> u8 {
        self.bits(40, 8) as u8
    }

    const fn busy(self) -> Self {
        Self(self.0 | Self::BUSY)
    }

    const fn segment(self, selector: u16) -> Segment {
        let access = self.bits(40, 8) | self.bits(52, 4) << 12;
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            access: AccessRights(access as u32),
        }
    }
}

#[cfg(test)]
mod tests;
