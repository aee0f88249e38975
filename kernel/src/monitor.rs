//! Carries out what is typed to the monitor. The parser and the keys are `mux`'s.

use alloc::vec::Vec;

use arch::machine::Width;
use cpu::local_apic::LocalApic;
use guest::vm::Outcome;
use mux::{Command, GuestRef};
use spin::Once;

use crate::bring_up::Hardware;
use crate::console::{self, logln};
use crate::seat::Seat;
use crate::watchdog;

/// A guest as the monitor sees it, whatever its back end.
pub(crate) trait Watched: Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// Its virtual CPUs.
    fn seats(&self) -> &[Seat];
    /// How it ended, if it has.
    fn outcome(&self) -> Option<Outcome>;
    /// Ends it, as if its power was cut.
    fn stop(&self, own: LocalApic);
    /// Ends it likewise, and starts it anew.
    fn restart(&self, own: LocalApic);
    /// Bytes of RAM.
    fn ram_bytes(&self) -> u64;
    /// The PCI functions that it owns.
    fn functions(&self) -> &[arch::Bdf];
}

static GUESTS: Once<Vec<&'static dyn Watched>> = Once::new();

/// Shows the monitor the guests, in the order of the configuration.
pub(crate) fn watch(guests: Vec<&'static dyn Watched>) {
    GUESTS.call_once(|| guests);
}

fn guests() -> &'static [&'static dyn Watched] {
    GUESTS.get().map_or(&[], Vec::as_slice)
}

/// Takes what was typed off the line and carries out what is for the monitor.
pub(crate) fn listen(hardware: &Hardware, own: LocalApic) {
    while let Some(command) = console::listen() {
        carry_out(hardware, own, command);
        console::prompt();
    }
}

fn carry_out(hardware: &Hardware, own: LocalApic, command: Command) {
    match command {
        Command::Help => console::help(),
        Command::Guests => guests().iter().for_each(|guest| describe(*guest)),
        Command::Exits(Some(guest)) => with(guest, exits),
        Command::Exits(None) => guests().iter().for_each(|guest| exits(*guest)),
        Command::Devices => devices(hardware),
        Command::Iommu => match hardware.iommu {
            Some(iommu) => {
                let name = iommu.lock().name();
                logln!("{name}: {} faults", watchdog::faults());
            }
            None => logln!("the machine has no IOMMU"),
        },
        Command::Memory => memory(hardware),
        Command::Regs { guest, cpu } => with(guest, |guest| {
            for (index, seat) in guest.seats().iter().enumerate() {
                if cpu.is_none_or(|cpu| cpu as usize == index) {
                    seat.ask_for_registers(own);
                }
            }
        }),
        Command::Stop(guest) => with(guest, |guest| guest.stop(own)),
        Command::Reboot => reboot(),
        Command::Restart(guest) => with(guest, |guest| match guest.outcome() {
            None => guest.restart(own),
            Some(_) => logln!("{} has ended: this version cannot start it again", guest.name()),
        }),
        Command::Irqs | Command::Start(_) => {
            logln!("this version cannot do that");
        }
    }
}

fn with(guest: GuestRef, work: impl FnOnce(&'static dyn Watched)) {
    if let Some(guest) = guests().get(guest.0) {
        work(*guest);
    }
}

fn describe(guest: &dyn Watched) {
    let state = guest.outcome().map_or("running", Outcome::key);
    let cpus: Vec<u32> = guest.seats().iter().map(|seat| seat.number).collect();
    logln!("{}: {state}, CPUs {cpus:?}, {} MiB", guest.name(), guest.ram_bytes() >> 20);
}

/// The counters as of each CPU's last call by the watchdog, and since the `exits` before.
fn exits(guest: &dyn Watched) {
    for seat in guest.seats() {
        let now = *seat.counters.lock();
        let since =
            now.total() - seat.shown.swap(now.total(), core::sync::atomic::Ordering::Relaxed);
        logln!("{}: {} ({since} since asked before)", guest.name(), now.report(seat.number));
    }
}

fn devices(hardware: &Hardware) {
    for function in &hardware.functions {
        let owner = guests().iter().find(|guest| guest.functions().contains(&function.bdf));
        let owner = owner.map_or("-", |guest| guest.name());
        logln!(
            "{} {:04x}:{:04x} class {:06x} {owner}",
            function.bdf,
            function.vendor,
            function.device,
            function.class
        );
    }
}

fn memory(hardware: &Hardware) {
    let guests_have: u64 = guests().iter().map(|guest| guest.ram_bytes()).sum();
    logln!("hypervisor: {} KiB", hardware.own_memory(guests_have) >> 10);
    for guest in guests() {
        logln!("{}: {} MiB", guest.name(), guest.ram_bytes() >> 20);
    }
    logln!("free: {} MiB", hardware.memory.available() >> 20);
}

/// Resets the machine by the chipset's reset control register (port 0xCF9).
fn reboot() {
    const RESET_CONTROL: u16 = 0xcf9;
    logln!("resetting the machine");
    console::drain();
    for value in [2, 6] {
        // SAFETY: the end of everything is what was asked for.
        unsafe { cpu::instructions::port_write(RESET_CONTROL, Width::Byte, value) };
    }
}
