//! LLDT, LTR, SLDT, STR: VT-x cannot let LIDT exit without them. They do what the CPU would do
//! (SDM "LLDT—Load Local Descriptor Table Register", "LTR—Load Task Register").
//!
//! Invariant: whatever the guest's GDT holds, a segment that gets loaded here passes the checks of a
//! VM entry (SDM "Checks on Guest Segment Registers"); everything else is an exception for the
//! guest.

use arch::Gva;
use arch::machine::GuestMemory;
use arch::register::{Cr0, Cr4, Efer, Gpr, Rflags};
use arch::segment::{DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{Event, Vcpu, exception};
use insn::{Access, Instruction, MemoryFault, Mode, Operation, Register, canonical};

use super::access::{self, Refused};
use super::segment_descriptor::{Descriptor, kind};
use crate::vm::{Context, Platform};

/// Table indicator of a selector: LDT.
pub(super) const TABLE_INDICATOR: u16 = 1 << 2;
/// Requested privilege level of a selector.
pub(super) const RPL: u16 = 3;

/// The CPU reads descriptors with its own rights, at any privilege level.
pub(super) const SUPERVISOR: Access = Access { write: false, fetch: false, user: false };

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
    let busy = descriptor.with_kind(kind::BUSY);
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
    Ok(Some((at, descriptor_at(vcpu, memory, at, length)?)))
}

/// The descriptor of `length` bytes, 8 or 16, at a linear address.
pub(super) fn descriptor_at<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &M,
    at: Gva,
    length: u16,
) -> Result<Descriptor, Refused> {
    let mut bytes = [0; 16];
    let part = bytes.get_mut(..length.into()).unwrap_or_default();
    match insn::read_linear(vcpu, memory, at, SUPERVISOR, part) {
        // Nobody answers there.
        Err(MemoryFault::NotMemory(_)) => part.fill(0xff),
        read => read?,
    }
    Ok(Descriptor(u128::from_le_bytes(bytes)))
}

pub(super) const fn fault(vector: u8, error_code: Option<u32>) -> Refused {
    Refused::Fault(Event::exception(vector, error_code), None)
}

#[cfg(test)]
mod tests;
