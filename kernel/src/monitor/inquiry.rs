//! A command that is answered once CPUs of a guest have said what they hold.
//!
//! Invariant: nobody waits for them. A CPU that does not come by in time is named in the answer.

use core::sync::atomic::Ordering;

use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::vm::Outcome;
use mux::GuestRef;
use spin::Mutex;
use view::Lines;

use super::{GuestControl, guests, places, report, say};
use crate::hardware::Hardware;
use crate::vcpu_slot::{Look, VcpuSlot};

/// Milliseconds in which a CPU comes by, if it does: twice as long as the watchdog takes.
const MAX_WAIT_MS: u64 = 2000;

/// What only a guest's CPU can say.
#[derive(Clone, Copy)]
pub(super) enum Question {
    Registers,
    /// So many bytes at a linear address.
    Linear(u64, u64),
    /// Where a linear address leads.
    Walk(u64),
    /// Its IDT.
    Gates,
    /// An MSR.
    Msr(u64),
    /// Where its Linux is.
    Kaslr,
    /// All, of all CPUs.
    Report,
}

/// What was asked, of whom.
#[derive(Clone, Copy)]
pub(super) struct Inquiry {
    question: Question,
    guest: &'static dyn GuestControl,
    /// Of this CPU, or of all.
    cpu: Option<u32>,
    /// TSC when it was asked.
    began: u64,
}

static INQUIRY: Mutex<Option<Inquiry>> = Mutex::new(None);

/// Asks the guest's CPU, or all of them. `true`: it is answered already, by a refusal.
pub(super) fn begin(own: LocalApic, question: Question, guest: GuestRef, cpu: Option<u32>) -> bool {
    let Some(guest) = guests().get(guest.0).copied() else { return true };
    let (name, count) = (guest.name(), guest.slots().len());
    if let Some(outcome) = guest.outcome()
        && !matches!(question, Question::Report)
    {
        let key = Outcome::key(outcome);
        say([alloc::format!("{name} has ended ({key}): its CPUs have no registers")].into());
        return true;
    }
    if cpu.is_some_and(|cpu| cpu as usize >= count) {
        say([alloc::format!("{name} has no such CPU: it has {count}, counted from 0")].into());
        return true;
    }
    let inquiry = Inquiry { question, guest, cpu, began: tsc() };
    // What they have said before is no answer to this; and one of them may answer at once.
    inquiry.asked().for_each(|(_, slot)| *slot.look.lock() = None);
    *INQUIRY.lock() = Some(inquiry);
    inquiry.asked().for_each(|(_, slot)| slot.ask_for_a_look(own));
    false
}

/// One that all have answered, or that has waited long enough.
pub(super) fn due(hardware: &Hardware) -> Option<Inquiry> {
    let mut place = INQUIRY.lock();
    let ready = |inquiry: &mut Inquiry| inquiry.is_due(hardware);
    place.take_if(ready)
}

/// One that waits, answered or not.
pub(super) fn take() -> Option<Inquiry> {
    INQUIRY.lock().take()
}

impl Inquiry {
    fn asked(&self) -> impl Iterator<Item = (usize, &'static VcpuSlot)> + use<> {
        let cpu = self.cpu;
        let slots = self.guest.slots().iter().enumerate();
        slots.filter(move |(index, _)| cpu.is_none_or(|cpu| cpu as usize == *index))
    }

    fn is_due(&self, hardware: &Hardware) -> bool {
        let ms = tsc().wrapping_sub(self.began) / hardware.clock.tsc_khz.max(1);
        ms >= MAX_WAIT_MS || self.asked().all(|(_, slot)| slot.look.lock().is_some())
    }

    /// Each CPU that was asked, and what it has said.
    pub(super) fn looks(&self) -> impl Iterator<Item = (usize, Option<Look>)> {
        self.asked().map(|(index, slot)| (index, slot.look.lock().clone()))
    }

    /// What the operator wanted to know.
    pub(super) fn answer(self, hardware: &Hardware) -> Lines {
        let guest = self.guest;
        if matches!(self.question, Question::Report) {
            return report::report(hardware, guest, self.looks());
        }
        self.looks().flat_map(|(cpu, look)| answer_of(self.question, guest, cpu, look)).collect()
    }
}

fn answer_of(
    question: Question,
    guest: &dyn GuestControl,
    cpu: usize,
    look: Option<Look>,
) -> Lines {
    let who = alloc::format!("{}, CPU {cpu}", guest.name());
    let Some(look) = look else {
        let counted = guest.slots().get(cpu).map_or(0, |it| it.counted_at.load(Ordering::Relaxed));
        return [alloc::format!(
            "{who}: no answer: it is not in the guest, or gdb holds it (TSC {counted:#x} at its last call)"
        )]
        .into();
    };
    match question {
        Question::Linear(address, bytes) => {
            places::linear(&who, guest, &look.registers, address, bytes)
        }
        Question::Walk(address) => places::walk(&who, guest, &look.registers, address),
        Question::Gates => places::gates(&who, guest, &look.registers),
        Question::Msr(address) => [look.registers.msr_line(&who, address)].into(),
        Question::Kaslr => [places::kaslr(&who, guest, &look.registers)].into(),
        Question::Registers | Question::Report => report::registers(&who, guest, &look),
    }
}
