//! The lines to gdb: bytes between a UART and the session of the guest that is debugged over it. What they mean is
//! `debug`'s.
//!
//! Any processor that looks after the host takes them, and does what they ask for; CPUs of the guest that stand do
//! nothing else.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arch::Gpa;
use arch::machine::{GuestMemory, NotGuestMemory};
use arch::uart::UartPlace;
use cpu::local_apic::LocalApic;
use debug::{DebugMailbox, Guest, Session};
use guest::requests::Request;
use mux::line::{Keys, Line};
use mux::uart;
use spin::{Mutex, Once};

use crate::console::Uart;
use crate::ram::GuestRam;
use crate::vcpu_slot::VcpuSlot;

/// 115,200 baud of a PC's clock.
const FASTEST: Option<u16> = Some(1);
/// So many guests can have a line: as many UARTs as can be named.
const MAX_LINES: usize = 2;
/// So many bytes are taken off a line at once.
const MAX_TAKEN: usize = 4096;

/// What a session and the CPUs of its guest share.
pub(crate) struct Room {
    guest: usize,
    slots: &'static [VcpuSlot],
    mailboxes: Vec<Mutex<DebugMailbox>>,
    /// The RAM of the guest's generation, from when a CPU first stands.
    ram: Mutex<Option<GuestRam>>,
    line: Mutex<Line<Uart>>,
    keys: Mutex<Keys<Uart>>,
}

/// The guest of a room, for its session.
struct Occupant {
    room: &'static Room,
    ram: Ram,
}

/// None, before the guest has stood.
struct Ram(Option<GuestRam>);

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.0.as_ref().map_or(Err(NotGuestMemory(gpa)), |ram| ram.read(gpa, bytes))
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        self.0.as_mut().map_or(Err(NotGuestMemory(gpa)), |ram| ram.write(gpa, bytes))
    }
}

impl Guest for Occupant {
    type Memory = Ram;

    fn cpus(&self) -> usize {
        self.room.mailboxes.len()
    }

    fn mailbox<T>(&mut self, cpu: usize, work: impl FnOnce(&mut DebugMailbox) -> T) -> Option<T> {
        self.room.mailboxes.get(cpu).map(|mailbox| work(&mut mailbox.lock()))
    }

    fn call(&mut self) {
        let own = LocalApic::current();
        self.room.slots.iter().for_each(|slot| slot.ask(own, Request::Debugger));
    }

    fn memory(&mut self) -> &mut Ram {
        self.ram = Ram(self.room.ram.lock().clone());
        &mut self.ram
    }
}

#[derive(Clone)]
struct Wire(&'static Room);

impl debug::session::Line for Wire {
    fn send(&mut self, byte: u8) {
        let mut line = self.0.line.lock();
        // A line that has stalled loses it: gdb asks again.
        if line.wait_for_room() > 0 {
            line.send(&[byte]);
        }
    }
}

struct Port {
    room: &'static Room,
    session: Mutex<Session<Occupant, Wire>>,
}

static PORTS: [Once<Port>; MAX_LINES] = [const { Once::new() }; MAX_LINES];

/// Lets a gdb of guest `guest` in at the UART at `base`; `false` where none answers.
pub(crate) fn open(guest: usize, slots: &'static [VcpuSlot], base: u16) -> bool {
    let place = UartPlace::port(base);
    let free = PORTS.iter().find(|port| !port.is_completed());
    let Some(free) = free.filter(|_| uart::answers(&mut Uart(place))) else { return false };
    free.call_once(|| {
        let room = &*Box::leak(Box::new(Room {
            guest,
            slots,
            mailboxes: slots.iter().map(|_| Mutex::default()).collect(),
            ram: Mutex::new(None),
            line: Mutex::new(Line::new(Uart(place), FASTEST)),
            keys: Mutex::new(Keys::new(Uart(place))),
        }));
        let occupant = Occupant { room, ram: Ram(None) };
        Port { room, session: Mutex::new(Session::new(occupant, Wire(room))) }
    });
    true
}

/// Has the UART that was opened last raise its line when a byte comes, if that `calls` anybody.
pub(crate) fn interrupt_on_receive(calls: bool) {
    let last = PORTS.iter().rev().find_map(Once::get);
    if let Some(port) = last.filter(|_| calls) {
        port.room.keys.lock().interrupt_on_receive();
    }
}

/// Takes what has come over the lines, and does what is to be done for those at their other ends.
pub(crate) fn poll_input() {
    for port in PORTS.iter().map_while(Once::get) {
        // Whoever has it does the same.
        let Some(mut session) = port.session.try_lock() else { continue };
        for _ in 0..MAX_TAKEN {
            let Some(byte) = port.room.keys.lock().receive() else { break };
            session.receive(byte);
        }
        session.work();
    }
}

/// The room of a guest that a gdb may come to.
pub(crate) fn room(guest: usize) -> Option<&'static Room> {
    let rooms = PORTS.iter().filter_map(Once::get).map(|port| port.room);
    rooms.into_iter().find(|room| room.guest == guest)
}

impl Room {
    /// Has `work` see the mailbox of a CPU.
    pub(crate) fn at_mailbox<T>(
        &self,
        cpu: usize,
        work: impl FnOnce(&mut DebugMailbox) -> T,
    ) -> Option<T> {
        self.mailboxes.get(cpu).map(|mailbox| work(&mut mailbox.lock()))
    }

    /// A CPU has left: the generation, and with it the RAM, may be over. Another that stands shows it again.
    pub(crate) fn forget_ram(&self) {
        *self.ram.lock() = None;
    }

    /// The guest's RAM is this.
    pub(crate) fn show(&self, ram: &GuestRam) {
        *self.ram.lock() = Some(ram.clone());
    }
}
