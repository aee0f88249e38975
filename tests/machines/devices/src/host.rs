//! What the models need of the emulator around them.

/// A message on its way to the local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    pub vector: u8,
    /// An APIC ID, or a logical destination.
    pub destination: u32,
    /// The delivery mode, as in an MSI's data.
    pub mode: u8,
    /// Whether the destination is a logical one.
    pub logical: bool,
    /// Whether it is level-triggered.
    pub level: bool,
}

/// Whose work falls due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// The unit's queue.
    Unit,
    /// The queues of the function at this place.
    Queues(usize),
    /// The engine of the function at this place.
    Engine(usize),
}

/// The emulator.
pub trait Host {
    /// Reads RAM. False where a part of it is none.
    fn read(&mut self, at: u64, data: &mut [u8]) -> bool;
    /// Writes RAM. False where a part of it is none.
    fn write(&mut self, at: u64, data: &[u8]) -> bool;
    /// Sends a message to the local APICs.
    fn deliver(&mut self, interrupt: Interrupt);
    /// Ticks since power-on.
    fn now(&self) -> u64;
    /// Calls [`crate::Machine::timer`] after so many ticks, and forgets an earlier request for this one.
    fn wake(&mut self, timer: Timer, ticks: u64);
    /// Forgets the request.
    fn cancel(&mut self, timer: Timer);
    /// Moves the interrupt pin (1 is INTA) of the function `device` of bus 0.
    fn move_pin(&mut self, device: u8, pin: u8, up: bool);
    /// The vector that the 8259s have for an interrupt of delivery mode ExtINT.
    fn legacy_vector(&mut self) -> u8;
    /// Writes a line to the emulator's log.
    fn log(&mut self, line: &str);

    /// Reads a quadword of RAM.
    fn read_u64(&mut self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// Reads two quadwords of RAM: an entry of most of the unit's tables.
    fn read_entry(&mut self, at: u64) -> Option<[u64; 2]> {
        Some([self.read_u64(at)?, self.read_u64(at + 8)?])
    }
}
