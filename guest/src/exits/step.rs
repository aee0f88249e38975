//! What cannot be carried out by [`super::access`]: the CPU does it itself, and for that one instruction sees a page
//! of its own where nothing is, or where a device's registers are that exit.
//!
//! The way: an access that the nested table stopped → [`Context::begin_step`] puts a page in its place, full of ones,
//! as a bus reads that nobody answers, with the registers around the address in it → the run loop makes the step
//! (`kernel/src/run.rs`) → [`Context::stepped`] writes to the device what has changed and takes the page away. The
//! decision is 0044.

use arch::ExitReason;
use arch::exit::NestedPageFault;
use arch::machine::{GuestMemory, MAX_STAND_INS, Machine, NotGuestMemory};
use arch::vcpu::{Event, Vcpu, exception};
use arch::{Gpa, Width};
use insn::Mode;
use insn::flags::{Effect, effect};

use crate::vm::{Context, Next, Platform};

/// Bytes of a device's registers that are read for a step and written back after it: the widest operand of an instruction
/// that is not a save area.
const WINDOW: usize = 64;
/// Where a window begins: the first byte of an instruction that faults may be the last of its operand's first half.
const WINDOW_ALIGNMENT: u64 = 16;

/// A page that stands in for another.
#[derive(Clone, Copy, Debug)]
struct StandIn {
    page: Gpa,
    /// Device registers in it, as they read before.
    registers: Option<(u64, [u8; WINDOW])>,
}

/// The guest's RAM, and where a page stands in, that.
struct Seen<'a, M> {
    memory: &'a M,
    pages: &'a [Option<StandIn>; MAX_STAND_INS],
}

impl<M: GuestMemory> GuestMemory for Seen<'_, M> {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        let mut pages = self.pages.iter().flatten();
        let Some(stand_in) = pages.find(|stand_in| stand_in.page == gpa.page()) else {
            return self.memory.read(gpa, bytes);
        };
        bytes.fill(0xff);
        if let Some((start, window)) = stand_in.registers {
            let places = (gpa.page_offset()..).zip(bytes);
            for (offset, byte) in places {
                let at = offset.checked_sub(start).and_then(|at| usize::try_from(at).ok());
                *byte = at.and_then(|at| window.get(at).copied()).unwrap_or(*byte);
            }
        }
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, _: &[u8]) -> Result<(), NotGuestMemory> {
        Err(NotGuestMemory(gpa))
    }
}

/// The step that one CPU makes.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pages: [Option<StandIn>; MAX_STAND_INS],
    /// The slot that is used next; an instruction with more operands than slots gets on by its own restarts.
    next: usize,
    /// The instruction that the pages are for.
    rip: u64,
    /// It is not an instruction but the delivery of an event.
    delivering: bool,
}

impl Step {
    /// Whether to exit after one instruction.
    #[must_use]
    pub const fn one(&self) -> bool {
        !self.delivering
    }
}

impl<P: Platform> Context<'_, P> {
    /// Has the CPU do by itself what was stopped. `delivering`: it was delivering an event, which is delivered again.
    ///
    /// Behind what holds the trap back another instruction comes, and code that was fetched there may push, save or load
    /// RFLAGS, and would do so with the step's, and enter the kernel in the midst of it: none of these is an instruction.
    #[cold]
    #[inline(never)]
    pub(super) fn begin_step(&mut self, fault: NestedPageFault, delivering: bool) -> Next {
        let NestedPageFault { gpa, fetch, .. } = fault;
        let page = gpa.page();
        if self.cpu.step.rip != self.vcpu.rip() {
            self.end_steps();
            self.cpu.step.rip = self.vcpu.rip();
        }
        let has = |stand_in: &Option<StandIn>| stand_in.is_some_and(|own| own.page == page);
        let slot = self.cpu.step.pages.iter().position(has).unwrap_or(self.cpu.step.next);
        if !self.machine.set_stand_in(slot, Some(page)) {
            // No CPU with this table's width has such addresses.
            self.raise_general_protection();
            return Next::Resume;
        }
        let registers = self.fill(slot, gpa);
        if registers.is_none() {
            self.log_limited(format_args!("it executed {gpa}, which is unused"));
        }
        let step = &mut self.cpu.step;
        if let Some(place) = step.pages.get_mut(slot) {
            *place = Some(StandIn { page, registers });
        }
        step.next = (slot + 1) % MAX_STAND_INS;
        step.delivering = delivering;
        let seen = Seen { memory: &*self.memory, pages: &self.cpu.step.pages };
        let bits64 = Mode::of(self.vcpu) == Mode::Bits64;
        let effect = insn::fetch_instruction(self.vcpu, &seen)
            .map(|(code, length)| effect(code.get(..length).unwrap_or_default(), bits64));
        let refused =
            if fetch { effect != Ok(Effect::Plain) } else { effect == Ok(Effect::HoldsTraps) };
        if delivering || !refused {
            return Next::Step;
        }
        self.end_steps();
        self.raise(Event::exception(exception::UD, None));
        Next::Resume
    }

    /// Puts what the registers around `gpa` read as into a stand-in; `None` where there are none.
    fn fill(&mut self, slot: usize, gpa: Gpa) -> Option<(u64, [u8; WINDOW])> {
        let start = gpa.page_offset() & !(WINDOW_ALIGNMENT - 1);
        let mut bytes = [0xff; WINDOW];
        let mut found = false;
        for (offset, part) in (start..4096).step_by(4).zip(bytes.chunks_mut(4)) {
            let at = gpa.page().wrapping_add(offset);
            if let Some(value) = self.device_read(at, Width::Dword) {
                part.copy_from_slice(&(value as u32).to_le_bytes());
                found = true;
            }
        }
        if !found {
            return None;
        }
        self.machine.with_stand_in(slot, |page| {
            for (to, from) in page.iter_mut().skip(start as usize).zip(bytes) {
                *to = from;
            }
        });
        Some((start, bytes))
    }

    /// A step has ended so. Where that is another page that the instruction needs, or the same delivery, all waits for it.
    pub fn stepped(&mut self, reason: &ExitReason) {
        let same = || self.vcpu.vectoring().is_some() && self.vcpu.rip() == self.cpu.step.rip;
        if matches!(reason, ExitReason::NestedPageFault(_)) && (self.cpu.step.one() || same()) {
            return;
        }
        for slot in 0..MAX_STAND_INS {
            let stand_in = self.cpu.step.pages.get_mut(slot).and_then(Option::take);
            if let Some(StandIn { page, registers: Some((start, before)) }) = stand_in {
                self.write_back(slot, page.wrapping_add(start), before);
            }
        }
        self.end_steps();
    }

    /// Writes to a device what an instruction has changed in its stand-in.
    fn write_back(&mut self, slot: usize, at: Gpa, before: [u8; WINDOW]) {
        let mut after = before;
        self.machine.with_stand_in(slot, |page| {
            for (to, from) in after.iter_mut().zip(page.iter().skip(at.page_offset() as usize)) {
                *to = *from;
            }
        });
        let dwords = after.as_chunks::<4>().0.iter().zip(before.as_chunks::<4>().0);
        for (offset, (new, _)) in (0..).step_by(4).zip(dwords).filter(|(_, (new, old))| new != old)
        {
            let value = u32::from_le_bytes(*new).into();
            self.memory_write(at.wrapping_add(offset), Width::Dword, value);
        }
    }

    /// No page stands in for another any more.
    pub fn end_steps(&mut self) {
        self.cpu.step = Step::default();
        for slot in 0..MAX_STAND_INS {
            self.machine.set_stand_in(slot, None);
        }
    }
}
