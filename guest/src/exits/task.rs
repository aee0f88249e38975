//! Hardware task switches. VT-x makes none in a guest: a CALL or JMP to a TSS, IRET with the nested-task flag, and a task
//! gate in the IDT exit, and what the CPU would have done is done here (SDM "Task Switching", "Treatment of Task Switches";
//! decision 0064). On AMD-V the CPU does it.
//!
//! The way: [`Context::task_switch`] → the checks and the old task's state ([`Context::leave`]: until its end nothing has
//! changed, and what is wrong is an exception in the old task) → the new task's state ([`Context::enter`]: what is wrong is
//! an exception in the new one).

mod segments;
mod tss;

use arch::exit::{TaskSwitch, TaskSwitchSource, Vectoring};
use arch::machine::{GuestMemory, Machine};
use arch::register::{Cr0, Cr4, Gpr, Rflags};
use arch::segment::{DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{Event, EventKind, Vcpu, exception};
use arch::{Gpa, Gva};
use eli::FaultAction;
use insn::{Access, MemoryFault};

use super::access::Refused;
use super::register::ADDRESS_SIZES;
use super::segment_descriptor::{Descriptor, kind};
use super::system_segment::{RPL, SUPERVISOR, TABLE_INDICATOR, descriptor_at};
use crate::vm::{Context, Next, Platform};
use segments::fault;
use tss::{Bytes, Form, GENERAL, SELECTORS, State};

/// The nested-task flag.
const NESTED_TASK: u32 = 1 << 14;
/// The flags that a TSS can set (SDM "EFLAGS Register").
const FLAGS: u32 = 0x003f_7fd5;

/// What makes a switch.
#[derive(Clone, Copy)]
struct Cause {
    source: TaskSwitchSource,
    /// What was being delivered, where the gate is one of the IDT.
    event: Option<Vectoring>,
}

impl Cause {
    /// The EXT bit of error codes: the event is none of the program's own (SDM "Error Code").
    const fn external(self) -> u32 {
        match self.event {
            Some(Vectoring {
                kind: EventKind::ExternalInterrupt | EventKind::Nmi | EventKind::HardwareException,
                ..
            }) => 1,
            _ => 0,
        }
    }

    /// The old task stands at the instruction that asked for the switch, and goes on behind it.
    const fn by_instruction(self) -> bool {
        self.external() == 0
    }

    const fn returns(self) -> bool {
        matches!(self.source, TaskSwitchSource::Iret)
    }

    /// The new task is to return to the old one, which stays busy.
    const fn nests(self) -> bool {
        matches!(self.source, TaskSwitchSource::Call | TaskSwitchSource::IdtGate)
    }
}

impl<P: Platform> Context<'_, P> {
    /// The CPU has made the checks up to the new TSS's limit, but other CPUs may have changed the tables since.
    pub(super) fn task_switch(&mut self, switch: TaskSwitch) -> Next {
        let gate = switch.source == TaskSwitchSource::IdtGate;
        let event = if gate { self.vcpu.vectoring() } else { None };
        let cause = Cause { source: switch.source, event };
        let selector = switch.selector.map_or_else(|| self.link(), Ok);
        let switched = selector
            .and_then(|selector| self.leave(selector, cause))
            .and_then(|form| self.enter(form, cause));
        // A TSS or a descriptor may share the IDT's page.
        self.refresh_shadow();
        match switched {
            Ok(()) => Next::Resume,
            Err(Refused::Fault(fault, cr2)) => {
                if let Some(address) = cr2 {
                    self.vcpu.set_cr2(address.as_u64());
                }
                let FaultAction::Reflect(event) = eli::gate_fault::reflect(event, fault) else {
                    return self.triple_fault();
                };
                self.raise(event);
                Next::Resume
            }
            Err(refused) => self.refused(refused),
        }
    }

    /// The task that the current one returns to.
    fn link(&self) -> Result<u16, Refused> {
        let mut link = [0; 2];
        self.read(Gva::new(self.vcpu.segment(SegmentRegister::Tr).base), &mut link)?;
        Ok(u16::from_le_bytes(link))
    }

    /// Checks that the switch can be made, saves the old task and makes the new one the current one.
    fn leave(&mut self, selector: u16, cause: Cause) -> Result<Form, Refused> {
        let (at, descriptor) = self.new_task(selector, cause)?;
        let new = descriptor.with_kind(kind::BUSY).segment(selector);
        let old = self.vcpu.segment(SegmentRegister::Tr);
        let form = Form::of(old.access.0 as u8);
        let saved = form.saved();
        if (old.limit as usize) < saved.end {
            return Err(fault(exception::TS, old.selector, cause.external()));
        }
        // From here on nothing may fail that has begun: first whether each byte can be reached.
        let table = self.vcpu.descriptor_table(DescriptorTableRegister::Gdtr).base;
        let old_at = table.wrapping_add((old.selector & !(RPL | TABLE_INDICATOR)).into());
        let (old_base, new_base) = (Gva::new(old.base), Gva::new(new.base));
        for descriptor in [old_at, at] {
            self.reach(descriptor.wrapping_add(Descriptor::ACCESS_BYTE), 1, true)?;
        }
        self.reach(new_base, Form::of(descriptor.kind()).last() as usize + 1, cause.nests())?;
        self.reach(old_base.wrapping_add(saved.start as u64), saved.len(), true)?;
        if cause.nests() {
            self.write(new_base, SUPERVISOR, &old.selector.to_le_bytes())?;
        } else {
            self.set_busy(old_at, false)?;
        }
        if !cause.returns() {
            self.set_busy(at, true)?;
        }
        let mut bytes: Bytes = [0; 104];
        form.save(&self.old_state(cause), &mut bytes);
        let part = bytes.get(saved.clone()).unwrap_or_default();
        self.write(old_base.wrapping_add(saved.start as u64), SUPERVISOR, part)?;
        self.vcpu.set_segment(SegmentRegister::Tr, new);
        self.vcpu.set_cr0(self.vcpu.cr0() | Cr0::TS.bits());
        Ok(Form::of(descriptor.kind()))
    }

    /// The descriptor of the new task's TSS, and where it is.
    fn new_task(&self, selector: u16, cause: Cause) -> Result<(Gva, Descriptor), Refused> {
        let external = cause.external();
        let wrong = if cause.returns() { exception::TS } else { exception::GP };
        let wrong = fault(wrong, selector, external);
        let table = self.vcpu.descriptor_table(DescriptorTableRegister::Gdtr);
        let offset = selector & !(RPL | TABLE_INDICATOR);
        let beyond = u32::from(offset) + 7 > table.limit.into();
        if selector & TABLE_INDICATOR != 0 || offset == 0 || beyond {
            return Err(wrong);
        }
        let at = table.base.wrapping_add(offset.into());
        let descriptor = descriptor_at(self.vcpu, self.memory, at, 8)?;
        let busy = if cause.returns() { kind::BUSY } else { 0 };
        let free = descriptor.kind() ^ busy;
        if free != kind::AVAILABLE_TSS && free != kind::AVAILABLE_TSS_16 {
            return Err(wrong);
        }
        if !descriptor.present() {
            return Err(fault(exception::NP, selector, external));
        }
        if descriptor.limit() < Form::of(descriptor.kind()).last() {
            return Err(fault(exception::TS, selector, external));
        }
        Ok((at, descriptor))
    }

    /// What the old task goes on with.
    fn old_state(&self, cause: Cause) -> State {
        let vcpu = &*self.vcpu;
        const IRET: u8 = 1;
        let length = if cause.by_instruction() { vcpu.instruction_length(IRET) } else { 0 };
        let mut rflags = vcpu.rflags() as u32;
        if cause.returns() {
            rflags &= !NESTED_TASK;
        }
        State {
            rip: (vcpu.rip() as u32).wrapping_add(length.into()),
            rflags,
            general: GENERAL.map(|register| vcpu.gpr(register) as u32),
            selectors: SELECTORS.map(|register| vcpu.segment(register).selector),
            ..State::default()
        }
    }

    /// Loads the state of the task whose TSS is in TR now.
    fn enter(&mut self, form: Form, cause: Cause) -> Result<(), Refused> {
        let external = cause.external();
        let mut bytes: Bytes = [0; 104];
        let base = Gva::new(self.vcpu.segment(SegmentRegister::Tr).base);
        self.read(base, bytes.get_mut(..=form.last() as usize).unwrap_or_default())?;
        let state = form.load(&bytes);
        if cause.source == TaskSwitchSource::IdtGate {
            // No single step comes behind a delivery.
            self.vcpu.set_rflags(self.vcpu.rflags() & !Rflags::TF.bits());
        }
        // Ends the interrupt shadow.
        self.vcpu.skip_instruction(0);
        let nested = if cause.nests() { NESTED_TASK } else { 0 };
        let rflags = state.rflags & FLAGS | Rflags::RESERVED_1.bits() as u32 | nested;
        self.vcpu.set_rflags(rflags.into());
        self.vcpu.set_rip(state.rip.into());
        for (register, value) in GENERAL.into_iter().zip(state.general) {
            self.vcpu.set_gpr(register, value.into());
        }
        self.end_local_breakpoints();
        let virtual_8086 = rflags & Rflags::VM.bits() as u32 != 0;
        if virtual_8086 {
            self.load_paragraphs(state.selectors);
        } else {
            self.load_selectors(state.selectors);
        }
        if let Some(cr3) = state.cr3.filter(|_| self.vcpu.cr0() & Cr0::PG.bits() != 0) {
            self.load_cr3(cr3)?;
        }
        self.load_ldt(state.ldt, external)?;
        if !virtual_8086 {
            self.load_segments(state.selectors, external)?;
        }
        if let Some(Vectoring { error_code: Some(code), .. }) = cause.event {
            self.push_error_code(code, form, external)?;
        }
        let code = self.vcpu.segment(SegmentRegister::Cs);
        if state.rip > code.limit {
            return Err(fault(exception::GP, 0, external));
        }
        if state.trap {
            const TASK_SWITCH: u64 = 1 << 15;
            let mut registers = self.vcpu.debug_registers();
            registers.status |= TASK_SWITCH;
            self.vcpu.set_debug_registers(&registers);
            self.raise(Event::exception(exception::DB, None));
        }
        Ok(())
    }

    /// Breakpoints that are one task's end with it (SDM "Debug Control Register (DR7)").
    fn end_local_breakpoints(&mut self) {
        const LOCAL: u64 = 0x155;
        let mut registers = self.vcpu.debug_registers();
        if registers.control & LOCAL != 0 {
            registers.control &= !LOCAL;
            self.vcpu.set_debug_registers(&registers);
        }
    }

    /// Loads CR3, in PAE mode with the four pointers behind it (SDM "PDPTE Registers").
    fn load_cr3(&mut self, cr3: u32) -> Result<(), Refused> {
        const PRESENT: u64 = 1;
        const RESERVED: u64 = 0x1e6;
        let width = self.machine.cpuid(ADDRESS_SIZES, 0).eax as u8;
        let reserved = u64::MAX.checked_shl(width.into()).unwrap_or(0) | RESERVED;
        let pae = self.vcpu.cr4() & Cr4::PAE.bits() != 0;
        let table = u64::from(cr3) & !0x1f;
        let read = |at| self.memory.read_u64(Gpa::new(table + at)).unwrap_or(u64::MAX);
        let pointers = pae.then(|| [0, 8, 16, 24].map(read));
        let wrong = |pointer: u64| pointer & PRESENT != 0 && pointer & reserved != 0;
        if pointers.into_iter().flatten().any(wrong) {
            return Err(fault(exception::GP, 0, 0));
        }
        self.vcpu.set_cr3(cr3.into(), pointers);
        Ok(())
    }

    /// The handler's error code, on its own stack; 4 bytes in a 32-bit task, 2 in a 16-bit one.
    fn push_error_code(&mut self, code: u32, form: Form, external: u32) -> Result<(), Refused> {
        let stack = self.vcpu.segment(SegmentRegister::Ss);
        let size: u32 = if form == Form::Bits32 { 4 } else { 2 };
        let mask = if stack.access.default_32() { u32::MAX } else { 0xffff };
        let pointer = self.vcpu.gpr(Gpr::Rsp) as u32;
        let top = pointer.wrapping_sub(size) & mask;
        if !holds(stack, top, size, mask) {
            return Err(fault(exception::SS, 0, external));
        }
        let at = Gva::new(stack.base.wrapping_add(top.into()) & 0xffff_ffff);
        let code = code.to_le_bytes();
        self.write(at, Access::write(self.vcpu), code.get(..size as usize).unwrap_or(&code))?;
        self.vcpu.set_gpr(Gpr::Rsp, u64::from(pointer & !mask | top));
        Ok(())
    }

    fn set_busy(&mut self, descriptor: Gva, busy: bool) -> Result<(), Refused> {
        let at = descriptor.wrapping_add(Descriptor::ACCESS_BYTE);
        let mut byte = [0];
        self.read(at, &mut byte)?;
        let [byte] = byte;
        let byte = if busy { byte | kind::BUSY } else { byte & !kind::BUSY };
        self.write(at, SUPERVISOR, &[byte])
    }

    /// Whether the CPU could read, or write, each of these bytes, which lie in two pages at most.
    fn reach(&self, at: Gva, length: usize, write: bool) -> Result<(), Refused> {
        let access = Access { write, ..SUPERVISOR };
        for at in [at, at.wrapping_add(length.saturating_sub(1) as u64)] {
            insn::translate(self.vcpu, self.memory, at, access)?;
        }
        Ok(())
    }

    fn read(&self, at: Gva, bytes: &mut [u8]) -> Result<(), Refused> {
        match insn::read_linear(self.vcpu, self.memory, at, SUPERVISOR, bytes) {
            // Nobody answers there.
            Err(MemoryFault::NotMemory(_)) => bytes.fill(0xff),
            read => read?,
        }
        Ok(())
    }

    fn write(&mut self, at: Gva, access: Access, bytes: &[u8]) -> Result<(), Refused> {
        match insn::write_linear(self.vcpu, self.memory, at, access, bytes) {
            // Nobody takes it.
            Err(MemoryFault::NotMemory(_)) => Ok(()),
            written => Ok(written?),
        }
    }
}

/// Whether a stack holds the `size` bytes from `top` on.
const fn holds(stack: Segment, top: u32, size: u32, mask: u32) -> bool {
    const EXPAND_DOWN: u32 = 1 << 2;
    let Some(last) = top.checked_add(size - 1) else { return false };
    if stack.access.unusable() {
        false
    } else if stack.access.0 & EXPAND_DOWN != 0 {
        top > stack.limit && last <= mask
    } else {
        last <= stack.limit
    }
}
