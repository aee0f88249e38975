//! Carries out what is typed to the monitor. The parser and the keys are `mux`'s.

use alloc::vec::Vec;

use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::requests::Request;
use guest::vm::Outcome;
use mux::{Command, GuestRef};
use spin::Once;

use crate::console::{self, logln};
use crate::hardware::Hardware;
use crate::power;
use crate::vcpu_slot::VcpuSlot;
use crate::{faults, heap};

/// What the monitor can do with a guest, on either back end.
pub(crate) trait GuestControl: Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// Its virtual CPUs.
    fn slots(&self) -> &[VcpuSlot];
    /// How it ended, if it has.
    fn outcome(&self) -> Option<Outcome>;
    /// Starts it, if it has ended.
    fn start(&'static self);
    /// Ends it, as if its power was cut.
    fn stop(&self, own: LocalApic);
    /// Ends it likewise, and starts it again; or only starts it, if it has ended.
    fn restart(&'static self, own: LocalApic);
    /// Bytes of RAM; none when it has ended.
    fn ram_bytes(&self) -> u64;
    /// Logs its vectors and what raises them.
    fn irqs(&self);
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

/// Reads typed keys and carries out monitor commands.
pub(crate) fn poll_input(hardware: &Hardware, own: LocalApic) {
    while let Some(command) = console::poll_input() {
        carry_out(hardware, own, command);
        console::prompt();
    }
}

fn carry_out(hardware: &Hardware, own: LocalApic, command: Command) {
    match command {
        Command::Help => console::help(),
        Command::Guests => guests().iter().for_each(|guest| describe(*guest)),
        Command::Exits(Some(guest)) => with(guest, |guest| exits(hardware, guest)),
        Command::Exits(None) => guests().iter().for_each(|guest| exits(hardware, *guest)),
        Command::Irqs => guests().iter().for_each(|guest| guest.irqs()),
        Command::Devices => devices(hardware),
        Command::Iommu => match hardware.iommu {
            Some(iommu) => {
                let name = iommu.lock().name();
                faults::show(hardware, name);
            }
            None => logln!("the machine has no IOMMU"),
        },
        Command::Log => console::show_log(),
        Command::Memory => memory(hardware),
        Command::Regs { guest, cpu } => with(guest, |guest| registers(own, guest, cpu)),
        Command::Stop(guest) => with(guest, |guest| guest.stop(own)),
        Command::Reboot => power::reset(&hardware.resets),
        Command::Restart(guest) => with(guest, |guest| guest.restart(own)),
        Command::Start(guest) => with(guest, |guest| guest.start()),
    }
}

fn with(guest: GuestRef, work: impl FnOnce(&'static dyn GuestControl)) {
    if let Some(guest) = guests().get(guest.0) {
        work(*guest);
    }
}

fn describe(guest: &dyn GuestControl) {
    let state = guest.outcome().map_or("running", Outcome::key);
    let cpus: Vec<u32> = guest.slots().iter().map(|slot| slot.number).collect();
    logln!("{}: {state}, CPUs {cpus:?}, {} MiB", guest.name(), guest.ram_bytes() >> 20);
}

/// The counters as of each CPU's last call by the watchdog, and since the `exits` before.
fn exits(hardware: &Hardware, guest: &dyn GuestControl) {
    for (index, slot) in guest.slots().iter().enumerate() {
        let (name, now, exits) = (guest.name(), tsc(), *slot.counters.lock());
        let (before, shown) = core::mem::replace(&mut *slot.shown.lock(), (now, exits));
        let ms = now.wrapping_sub(before) / hardware.clock.tsc_khz.max(1);
        logln!("{name}: CPU {index}: {}", exits.since(&shown, ms));
    }
}

/// Has one CPU of a guest log its registers, or all.
fn registers(own: LocalApic, guest: &dyn GuestControl, cpu: Option<u32>) {
    let (name, slots) = (guest.name(), guest.slots());
    if let Some(outcome) = guest.outcome() {
        return logln!("{name} has ended ({}): its CPUs have no registers", outcome.key());
    }
    if cpu.is_some_and(|cpu| cpu as usize >= slots.len()) {
        return logln!("{name} has no such CPU: it has {}, counted from 0", slots.len());
    }
    for (index, slot) in slots.iter().enumerate() {
        if cpu.is_none_or(|cpu| cpu as usize == index) {
            slot.ask(own, Request::Registers);
        }
    }
}

pub(crate) fn devices(hardware: &Hardware) {
    for function in &hardware.functions {
        logln!(
            "{} {:04x}:{:04x} class {:06x} {}",
            function.bdf,
            function.vendor,
            function.device,
            function.class,
            hardware.owner(function.bdf)
        );
    }
}

fn memory(hardware: &Hardware) {
    logln!("hypervisor: {} bytes, of its heap {}", hardware.memory.own(), heap::used());
    for guest in guests() {
        logln!("{}: {} bytes", guest.name(), guest.ram_bytes());
    }
    logln!("free: {} bytes", hardware.memory.available());
    if let Some(iommu) = hardware.iommu {
        logln!("remapping entries in use: {}", iommu.lock().remaps_in_use());
    }
}
