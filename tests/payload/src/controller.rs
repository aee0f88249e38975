//! The controller of `tests/machines`: its MSI-X entries, and the engine behind its registers, which sends a
//! message, copies or writes so many ticks later.

use crate::pci::{bar, capability, config_read, config_write};
use arch::Hpa;
use arch::machine::Width;
use cpu::physical::{mmio_read, mmio_write};

const NVME_CLASS: u32 = 0x01_0802;
const MSIX: u32 = 0x11;

const ENGINE: u64 = 0x8000;
const START: u64 = 0;
const STATE: u64 = 4;
const SOURCE: u64 = 0x08;
const DESTINATION: u64 = 0x10;
const LENGTH: u64 = 0x18;
const DATA: u64 = 0x1c;

const COPY: u32 = 1 << 28;
const WRITE: u32 = 2 << 28;
const FAULT: u32 = 3 << 28;

/// What became of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is done, or none was begun.
    Done,
    /// Not yet.
    UnderWay,
    /// The unit, or the machine, refused it.
    Refused,
}

#[derive(Clone, Copy)]
pub struct Controller {
    registers: u64,
    table: u64,
}

impl Controller {
    /// Finds it and switches MSI-X and bus mastering on.
    #[must_use]
    pub fn find() -> Option<Self> {
        let device = (0..32).find(|device| config_read(*device, 8) >> 8 == NVME_CLASS)?;
        let capability = capability(device, MSIX)?;
        let place = config_read(device, capability + 4);
        config_write(device, 4, config_read(device, 4) | 6);
        config_write(device, capability, 1 << 31);
        let table = bar(device, place & 7) + u64::from(place & !7);
        Some(Self { registers: bar(device, 0), table })
    }

    fn write(self, at: u64, value: u32) {
        // SAFETY: registers of the guest's own device.
        unsafe { mmio_write(Hpa::new(at), Width::Dword, value.into()) };
    }

    /// Has the message of this number raise `vector` on `cpu`.
    pub fn route(self, number: u64, cpu: u32, vector: u8) {
        let entry = self.table + 16 * number;
        self.write(entry + 12, 1);
        self.write(entry, 0xfee0_0000 | cpu << 12);
        self.write(entry + 4, 0);
        self.write(entry + 8, vector.into());
        self.write(entry + 12, 0);
    }

    /// Changes message 0 while it is not masked: a word at a time, as it must be.
    pub fn change_vector_in_place(self, vector: u8) {
        self.write(self.table + 8, vector.into());
    }

    /// The same for its CPU.
    pub fn change_cpu_in_place(self, cpu: u32) {
        self.write(self.table, 0xfee0_0000 | cpu << 12);
    }

    fn start(self, operation: u32, ticks: u32) {
        self.write(self.registers + ENGINE + START, operation | ticks);
    }

    /// Sends a message so many ticks later.
    pub fn send_in(self, ticks: u32, number: u32) {
        self.write(self.registers + ENGINE + LENGTH, number);
        self.start(0, ticks);
    }

    /// The last message once more: one write.
    pub fn send_again_in(self, ticks: u32) {
        self.start(0, ticks);
    }

    /// Writes four bytes, as a message is written.
    pub fn write_in(self, ticks: u32, address: u64, data: u32) {
        self.write(self.registers + ENGINE + DESTINATION, address as u32);
        self.write(self.registers + ENGINE + DESTINATION + 4, (address >> 32) as u32);
        self.write(self.registers + ENGINE + DATA, data);
        self.start(WRITE, ticks);
    }

    /// Copies.
    pub fn copy_in(self, ticks: u32, source: u64, destination: u64, length: u32) {
        for (at, address) in [(SOURCE, source), (DESTINATION, destination)] {
            self.write(self.registers + ENGINE + at, address as u32);
            self.write(self.registers + ENGINE + at + 4, (address >> 32) as u32);
        }
        self.write(self.registers + ENGINE + LENGTH, length);
        self.start(COPY, ticks);
    }

    /// Has the unit record a fault that nobody caused: of this requester and reason, at this page.
    pub fn fault_in(self, ticks: u32, requester: u32, reason: u32, page: u32) {
        self.write(self.registers + ENGINE + DESTINATION, page);
        self.write(self.registers + ENGINE + DESTINATION + 4, 0);
        self.write(self.registers + ENGINE + LENGTH, reason);
        self.write(self.registers + ENGINE + DATA, requester);
        self.start(FAULT, ticks);
    }

    /// What became of it so far. Reading it costs no exit.
    #[must_use]
    pub fn state(self) -> State {
        // SAFETY: a register of the guest's own device.
        let state = unsafe { mmio_read(Hpa::new(self.registers + ENGINE + STATE), Width::Dword) };
        match state {
            0 => State::Done,
            1 => State::UnderWay,
            _ => State::Refused,
        }
    }

    /// Waits for its end.
    pub fn finish(self) -> State {
        loop {
            match self.state() {
                State::UnderWay => core::hint::spin_loop(),
                end @ (State::Done | State::Refused) => return end,
            }
        }
    }
}
