//! The lines to gdb: bytes between a UART, or frames on the console's line, and the session of the guest that is debugged
//! over it. What they mean is `debug`'s.
//!
//! Any processor that looks after the host takes them, and does what they ask for; CPUs of the guest that stand do
//! nothing else.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use arch::Gpa;
use arch::machine::{GuestMemory, NotGuestMemory};
use arch::uart::UartPlace;
use cpu::local_apic::LocalApic;
use debug::{DebugMailbox, Guest, Session};
use guest::requests::Request;
use mux::frame::{MAX_GUESTS, MAX_PAYLOAD};
use mux::line::{Keys, Line};
use mux::uart;
use spin::{Mutex, Once};

use crate::console::{self, Uart};
use crate::ram::GuestRam;
use crate::vcpu_slot::VcpuSlot;

/// 115,200 baud of a PC's clock.
const FASTEST: Option<u16> = Some(1);
/// So many guests can have a line.
const MAX_LINES: usize = MAX_GUESTS;
/// So many bytes are taken off a line at once.
const MAX_TAKEN: usize = 4096;
/// So often a session is looked after for those who come meanwhile. CPUs that stand come all the time, and keep nobody.
const MAX_ROUNDS: usize = 4;
/// So many bytes wait for the console's line. What is beyond is lost: gdb asks again.
const MAX_WAITING: usize = 128 << 10;

/// What a line is.
enum Cable {
    /// A UART of its own.
    Uart { line: Mutex<Line<Uart>>, keys: Mutex<Keys<Uart>> },
    /// Frames on the console's line, and the bytes that have not gone yet.
    Console(Mutex<Vec<u8>>),
}

/// What a session and the CPUs of its guest share.
pub(crate) struct Room {
    guest: usize,
    slots: &'static [VcpuSlot],
    mailboxes: Vec<Mutex<DebugMailbox>>,
    /// The RAM of the guest's generation, from when a CPU first stands.
    ram: Mutex<Option<GuestRam>>,
    /// How often the guest has begun: its RAM is another each time.
    generation: AtomicU32,
    cable: Cable,
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

    fn ram(&mut self) -> Vec<(Gpa, u64)> {
        let ram = self.room.ram.lock();
        let blocks = ram.iter().flat_map(GuestRam::blocks);
        blocks.map(|block| (block.gpa, block.length)).collect()
    }

    fn generation(&self) -> u32 {
        self.room.generation.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Wire(&'static Room);

impl debug::session::Line for Wire {
    fn send(&mut self, byte: u8) {
        match &self.0.cable {
            Cable::Uart { line, .. } => {
                let mut line = line.lock();
                // A line that has stalled loses it: gdb asks again.
                if line.wait_for_room() > 0 {
                    line.send(&[byte]);
                }
            }
            Cable::Console(waiting) => {
                let mut waiting = waiting.lock();
                if waiting.len() < MAX_WAITING {
                    waiting.push(byte);
                }
            }
        }
    }
}

struct Port {
    room: &'static Room,
    session: Mutex<Session<Occupant, Wire>>,
    /// Somebody has come since the session was last looked after.
    come: AtomicBool,
}

impl Port {
    /// Takes what has come, and does what is to be done. Whoever has the session does it for all who come meanwhile: nothing
    /// waits for the next call, which may be the watchdog's.
    fn attend(&self) {
        self.come.store(true, Ordering::SeqCst);
        for _ in 0..MAX_ROUNDS {
            if !self.come.load(Ordering::SeqCst) {
                return;
            }
            let Some(mut session) = self.session.try_lock() else { return };
            self.come.store(false, Ordering::SeqCst);
            for _ in 0..MAX_TAKEN {
                let Some(byte) = self.room.receive() else { break };
                session.receive(byte);
            }
            session.work();
            self.room.send_frames();
            drop(session);
            // First the lock is free, and then it is looked who has found it taken.
            fence(Ordering::SeqCst);
        }
    }
}

static PORTS: [Once<Port>; MAX_LINES] = [const { Once::new() }; MAX_LINES];

/// Lets a gdb of guest `guest` in, at the UART at `base` or on the console's line.
///
/// # Errors
/// Why not.
pub(crate) fn open(
    guest: usize,
    slots: &'static [VcpuSlot],
    base: Option<u16>,
) -> Result<(), &'static str> {
    let free = PORTS.iter().find(|port| !port.is_completed());
    let free = free.ok_or("16 others have one")?;
    let cable = match base.map(UartPlace::port) {
        Some(place) if !uart::answers(&mut Uart(place)) => return Err("no UART answers there"),
        Some(place) => Cable::Uart {
            line: Mutex::new(Line::new(Uart(place), FASTEST)),
            keys: Mutex::new(Keys::new(Uart(place))),
        },
        None if guest >= MAX_GUESTS => return Err("only the first 16 guests can have one there"),
        None => Cable::Console(Mutex::default()),
    };
    if base.is_none() {
        console::add_debugger(guest);
    }
    free.call_once(|| {
        let mailboxes = slots.iter().map(|_| Mutex::default()).collect();
        let ram = Mutex::new(None);
        let room = Room { guest, slots, mailboxes, ram, generation: AtomicU32::new(0), cable };
        let room = &*Box::leak(Box::new(room));
        let occupant = Occupant { room, ram: Ram(None) };
        let session = Mutex::new(Session::new(occupant, Wire(room)));
        Port { room, session, come: AtomicBool::new(false) }
    });
    Ok(())
}

/// Has the UART that was opened last raise its line when a byte comes, if that `calls` anybody.
pub(crate) fn interrupt_on_receive(calls: bool) {
    let last = PORTS.iter().rev().find_map(Once::get);
    if let Some(Cable::Uart { keys, .. }) = last.filter(|_| calls).map(|port| &port.room.cable) {
        keys.lock().interrupt_on_receive();
    }
}

/// Takes what has come over the lines, and does what is to be done for those at their other ends.
pub(crate) fn poll_input() {
    PORTS.iter().map_while(Once::get).for_each(Port::attend);
}

/// The room of a guest that a gdb may come to.
pub(crate) fn room(guest: usize) -> Option<&'static Room> {
    let rooms = PORTS.iter().filter_map(Once::get).map(|port| port.room);
    rooms.into_iter().find(|room| room.guest == guest)
}

impl Room {
    /// A byte that has come over the line.
    fn receive(&self) -> Option<u8> {
        match &self.cable {
            Cable::Uart { keys, .. } => keys.lock().receive(),
            Cable::Console(_) => console::from_debugger(self.guest),
        }
    }

    /// Puts what waits on the console's line, as far as there is room.
    fn send_frames(&self) {
        let Cable::Console(waiting) = &self.cable else { return };
        let mut waiting = waiting.lock();
        while !waiting.is_empty() {
            let length = waiting.len().min(MAX_PAYLOAD);
            if !console::to_debugger(self.guest, waiting.get(..length).unwrap_or_default()) {
                break;
            }
            waiting.drain(..length);
        }
    }

    /// Has `work` see the mailbox of a CPU.
    pub(crate) fn at_mailbox<T>(
        &self,
        cpu: usize,
        work: impl FnOnce(&mut DebugMailbox) -> T,
    ) -> Option<T> {
        self.mailboxes.get(cpu).map(|mailbox| work(&mut mailbox.lock()))
    }

    /// The guest begins, in RAM that has been loaded anew.
    pub(crate) fn begin(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
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
