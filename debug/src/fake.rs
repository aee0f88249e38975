//! A guest for tests: mailboxes, memory, and CPUs that do what a test says.

use std::cell::RefCell;
use std::rc::Rc;

use arch::Gpa;
use arch::machine::{GuestMemory, NotGuestMemory};
use insn::PagingRegisters;

use crate::mailbox::{DebugMailbox, Order, Stop};
use crate::registers::Registers;
use crate::session::{Guest, Line, Session};

/// Memory from address 0 on.
#[derive(Debug)]
pub(crate) struct Memory(pub(crate) Vec<u8>);

impl Memory {
    fn range(&self, gpa: Gpa, length: usize) -> Result<core::ops::Range<usize>, NotGuestMemory> {
        let start = gpa.as_u64() as usize;
        let end = start.checked_add(length).filter(|end| *end <= self.0.len());
        end.map(|end| start..end).ok_or(NotGuestMemory(gpa))
    }
}

/// The same, as a session and a test see it.
pub(crate) struct SharedMemory(Rc<RefCell<Memory>>);

impl GuestMemory for SharedMemory {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.0.borrow().read(gpa, bytes)
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        self.0.borrow_mut().write(gpa, bytes)
    }
}

impl GuestMemory for Memory {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        bytes.copy_from_slice(&self.0[self.range(gpa, bytes.len())?]);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let range = self.range(gpa, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// What a test and a session share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) mailboxes: Vec<DebugMailbox>,
    /// So often the CPUs were called.
    pub(crate) calls: usize,
    /// What went to gdb.
    pub(crate) sent: Vec<u8>,
    /// How often the RAM was loaded.
    pub(crate) generation: u32,
    pub(crate) memory: Rc<RefCell<Memory>>,
    /// The upper halves of AVX's registers that each CPU that stands has.
    pub(crate) upper: Option<[u8; 256]>,
}

pub(crate) type Shared = Rc<RefCell<World>>;

pub(crate) struct Occupant {
    world: Shared,
    memory: SharedMemory,
}

impl Guest for Occupant {
    type Memory = SharedMemory;

    fn cpus(&self) -> usize {
        self.world.borrow().mailboxes.len()
    }

    fn mailbox<T>(&mut self, cpu: usize, work: impl FnOnce(&mut DebugMailbox) -> T) -> Option<T> {
        self.world.borrow_mut().mailboxes.get_mut(cpu).map(work)
    }

    fn call(&mut self) {
        self.world.borrow_mut().calls += 1;
    }

    fn memory(&mut self) -> &mut SharedMemory {
        &mut self.memory
    }

    fn ram(&mut self) -> Vec<(Gpa, u64)> {
        vec![(Gpa::new(0), self.memory.0.borrow().0.len() as u64)]
    }

    fn generation(&self) -> u32 {
        self.world.borrow().generation
    }
}

#[derive(Clone)]
pub(crate) struct Wire(Shared);

impl Line for Wire {
    fn send(&mut self, byte: u8) {
        self.0.borrow_mut().sent.push(byte);
    }
}

/// A session of a guest of two CPUs that run, without paging, in 64 KiB.
pub(crate) fn session() -> (Session<Occupant, Wire>, Shared) {
    let mut mailboxes = vec![DebugMailbox::new(), DebugMailbox::new()];
    mailboxes.iter_mut().for_each(|mailbox| assert_eq!(mailbox.arrive(), Order::Leave));
    let memory = Memory((0..0x1_0000).map(|at| at as u8).collect());
    let memory = Rc::new(RefCell::new(memory));
    let sent = Vec::new();
    let world =
        World { mailboxes, calls: 0, sent, generation: 1, memory: memory.clone(), upper: None };
    let world = Rc::new(RefCell::new(world));
    let occupant = Occupant { world: world.clone(), memory: SharedMemory(memory) };
    (Session::new(occupant, Wire(world.clone())), world)
}

/// The registers of a CPU that has come to `rip`.
pub(crate) fn at(rip: u64) -> Registers {
    Registers {
        rip,
        paging: PagingRegisters { cr0: 0x11, ..PagingRegisters::default() },
        ..Registers::default()
    }
}

/// Each CPU that is wanted stands.
pub(crate) fn heed(world: &Shared) {
    let upper = world.borrow().upper;
    for (cpu, mailbox) in world.borrow_mut().mailboxes.iter_mut().enumerate() {
        if mailbox.wanted() {
            mailbox.stand(Stop::Asked, Registers { upper, ..at(0x1000 + cpu as u64) });
        }
    }
}
