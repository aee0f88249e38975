//! Carries out what is typed to the monitor. The parser and the keys are `mux`'s, the words of the answers `view`'s.
//!
//! Nothing here is on the way of a guest's exit: the host attends to the operator through a pointer (`housekeeping`). What a
//! guest's CPU holds it says itself, when it comes by; nobody waits for it, it is answered later ([`inquiry`]).

use alloc::vec::Vec;

use arch::machine::NotGuestMemory;
use arch::{Bdf, Gpa, Vector};
use cpu::local_apic::LocalApic;
use guest::requests::Request;
use guest::vm::Outcome;
use mem::table::Mapping;
use mux::{Command, GuestRef};
use spin::Once;
use view::Lines;

use self::inquiry::Question;
use crate::console;
use crate::hardware::Hardware;
use crate::power;
use crate::vcpu_slot::VcpuSlot;

mod answers;
mod inquiry;
mod places;
mod report;
mod top;

/// What the monitor can do with a guest, on either back end.
pub(crate) trait GuestControl: Sync {
    fn name(&self) -> &str;
    /// Its virtual CPUs.
    fn slots(&self) -> &[VcpuSlot];
    /// Its PCI functions.
    fn functions(&self) -> &[Bdf];
    /// How it ended, if it has.
    fn outcome(&self) -> Option<Outcome>;
    /// How long it has run since it last began.
    fn run_ms(&self) -> u64;
    /// Starts it, if it has ended.
    fn start(&'static self);
    /// Ends it, as if its power was cut.
    fn stop(&self, own: LocalApic);
    /// Ends it likewise, and starts it again; or only starts it, if it has ended.
    fn restart(&'static self, own: LocalApic);
    /// Bytes of RAM; none when it has ended.
    fn ram_bytes(&self) -> u64;
    /// Its vectors and what raises them.
    fn irqs(&self) -> Lines;
    /// Reads its RAM.
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory>;
    /// What its nested table has there, and whether that is the RAM of the address.
    fn nested(&self, gpa: Gpa) -> Option<(Mapping, bool)>;
    /// Reads what its CPUs find there, if that is memory; `false` where it is not.
    fn seen(&self, gpa: Gpa, bytes: &mut [u8]) -> bool;
    /// The file with the names of its functions.
    fn symbols(&self) -> Option<&'static [u8]>;
    /// Why a vector may reach it directly; empty where it may not.
    fn granted(&self, vector: Vector) -> alloc::string::String;
}

static GUESTS: Once<Vec<&'static dyn GuestControl>> = Once::new();

/// Sets the guests that the monitor controls, in the order of the configuration.
pub(crate) fn set_guests(guests: Vec<&'static dyn GuestControl>) {
    GUESTS.call_once(|| guests);
    console::call_by(call_to_send);
}

/// Has a CPU of a guest see out what the guest has said.
fn call_to_send(guest: usize) {
    if let Some(slot) = guests().get(guest).and_then(|guest| guest.slots().first()) {
        slot.ask(LocalApic::current(), Request::Send);
    }
}

fn guests() -> &'static [&'static dyn GuestControl] {
    GUESTS.get().map_or(&[], Vec::as_slice)
}

/// Reads typed keys, carries out monitor commands, and answers those that waited for a guest's CPU.
pub(crate) fn poll_input(hardware: &Hardware, own: LocalApic) {
    if let Some(complete) = inquiry::due(hardware) {
        say(complete.answer(hardware));
        console::prompt();
    }
    while let Some(command) = console::poll_input() {
        if carry_out(hardware, own, command) {
            console::prompt();
        }
    }
    top::refresh(hardware);
}

/// The lines of an answer, one after the other: who asked waits for them, and no guest.
#[inline(never)]
fn say(lines: Lines) {
    lines.iter().for_each(|line| console::answer(line));
}

/// `false`: the answer comes later.
fn carry_out(hardware: &Hardware, own: LocalApic, command: Command) -> bool {
    // Who asks something else does not wait for the last answer.
    if let Some(unfinished) = inquiry::take() {
        say(unfinished.answer(hardware));
    }
    let every = |lines: fn(&dyn GuestControl) -> Lines| {
        guests().iter().for_each(|guest| say(lines(*guest)));
    };
    match command {
        Command::Help(of) => say(mux::help(of)),
        Command::Guests => say(answers::guests_table()),
        Command::Exits(Some(guest)) => with(guest, |guest| say(answers::exits(hardware, guest))),
        Command::Exits(None) => {
            guests().iter().for_each(|guest| say(answers::exits(hardware, *guest)));
        }
        Command::Top => top::begin(hardware),
        Command::EndTop => top::end(),
        Command::Irqs => every(|guest| guest.irqs()),
        Command::Devices => say(answers::devices(hardware)),
        Command::Iommu => say(answers::iommu(hardware)),
        Command::Vtd(function) => say(answers::vtd(hardware, function)),
        Command::Log => console::show_log(),
        Command::Sizes => say(answers::sizes(hardware)),
        Command::Memory { place, bytes } => {
            with(place.guest, |guest| say(places::memory(guest, Gpa::new(place.address), bytes)));
        }
        Command::Regs { guest, cpu } => {
            return inquiry::begin(own, Question::Registers, guest, cpu);
        }
        Command::Virtual { place, bytes } => {
            let question = Question::Linear(place.address, bytes);
            return inquiry::begin(own, question, place.guest, Some(0));
        }
        Command::Walk(place) => {
            let (question, cpu) = (Question::Walk(place.address), place.cpu.unwrap_or(0));
            return inquiry::begin(own, question, place.guest, Some(cpu));
        }
        Command::Gates { guest, cpu } => {
            return inquiry::begin(own, Question::Gates, guest, cpu.or(Some(0)));
        }
        Command::Msr(place) => {
            let (question, cpu) = (Question::Msr(place.address), place.cpu.unwrap_or(0));
            return inquiry::begin(own, question, place.guest, Some(cpu));
        }
        Command::Kaslr(guest) => return inquiry::begin(own, Question::Kaslr, guest, Some(0)),
        Command::Report(guest) => return inquiry::begin(own, Question::Report, guest, None),
        Command::Stop(guest) => with(guest, |guest| guest.stop(own)),
        Command::Reboot => power::reset(&hardware.resets),
        Command::Restart(guest) => with(guest, |guest| guest.restart(own)),
        Command::Start(guest) => with(guest, |guest| guest.start()),
    }
    true
}

fn with(guest: GuestRef, work: impl FnOnce(&'static dyn GuestControl)) {
    if let Some(guest) = guests().get(guest.0) {
        work(*guest);
    }
}
