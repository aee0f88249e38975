//! Queues: a command is fetched, carried out, answered (NVM Express, "Submission Queue & Completion Queue
//! Definition").

use super::{Controller, FATAL, READY};
use crate::bus::Bus;
use crate::host::Timer;
use crate::unit::translation::Transfer;

/// Queues of either kind, the admin queues among them.
pub(super) const MAX_QUEUES: usize = 8;
pub(super) const COMMAND_WORDS: usize = 16;

/// Commands.
#[derive(Clone, Debug)]
pub(super) struct Submission {
    base: u64,
    size: u32,
    head: u32,
    tail: u32,
    /// The queue of its answers.
    pub(super) answers: usize,
}

impl Submission {
    pub(super) const fn new(base: u64, size: u32, answers: usize) -> Self {
        Self { base, size, head: 0, tail: 0, answers }
    }
}

/// Answers.
#[derive(Clone, Debug)]
pub(super) struct Completion {
    base: u64,
    size: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
    /// Turns with each round.
    phase: bool,
    pub(super) vector: u16,
    pub(super) interrupts: bool,
}

impl Completion {
    pub(super) const fn new(base: u64, size: u32, vector: u16, interrupts: bool) -> Self {
        Self { base, size, head: 0, tail: 0, phase: true, vector, interrupts }
    }

    const fn is_full(&self) -> bool {
        (self.tail + 1) % self.size == self.head
    }
}

/// What became of a command.
pub(super) enum Answer {
    /// The status, 0 for success, and the first word of the answer.
    Now(u16, u32),
    /// None, ever.
    Never,
}

impl Controller {
    /// A doorbell, at this offset from the first.
    pub(super) fn ring(&mut self, bus: &mut Bus<'_>, offset: u32, value: u32) {
        let queue = offset as usize / 8;
        let place = if offset & 4 == 0 {
            let queue = self.submissions.get_mut(queue).and_then(Option::as_mut);
            queue.map(|queue| (queue.size, &mut queue.tail))
        } else {
            let queue = self.completions.get_mut(queue).and_then(Option::as_mut);
            queue.map(|queue| (queue.size, &mut queue.head))
        };
        match place {
            Some((size, place)) if value < size => *place = value,
            _ => {
                bus.host.log(&format!("NVMe: doorbell {offset:#x} = {value:#x}: no such place"));
                return;
            }
        }
        self.send_pending(bus);
        bus.host.wake(Timer::Queues(self.place), self.options.latency);
    }

    /// Carries out what is there.
    pub fn work(&mut self, bus: &mut Bus<'_>) {
        for queue in 0..MAX_QUEUES {
            while self.csts == READY && self.one(bus, queue) {}
        }
    }

    /// The next command of a queue, if there is one and room for its answer.
    fn one(&mut self, bus: &mut Bus<'_>, queue: usize) -> bool {
        let Some(commands) = self.submissions[queue].clone() else { return false };
        let answers = self.completions.get(commands.answers).and_then(Option::as_ref);
        if commands.head == commands.tail || answers.is_none_or(Completion::is_full) {
            return false;
        }
        let Some(command) = self.fetch(bus, commands.base, commands.head) else { return false };
        let head = (commands.head + 1) % commands.size;
        if let Some(commands) = &mut self.submissions[queue] {
            commands.head = head;
        }
        self.counters.commands += 1;
        let answer = if queue == 0 {
            self.admin(bus, &command)
        } else {
            Answer::Now(self.access(bus, &command), 0)
        };
        match answer {
            Answer::Now(status, result) => {
                let identifier = command[0] >> 16;
                let words =
                    [result, 0, head | (queue as u32) << 16, identifier | u32::from(status) << 17];
                self.answer(bus, commands.answers, words)
            }
            Answer::Never => true,
        }
    }

    fn fetch(&mut self, bus: &mut Bus<'_>, base: u64, head: u32) -> Option<[u32; COMMAND_WORDS]> {
        let mut bytes = [0; 4 * COMMAND_WORDS];
        let at = base.wrapping_add(bytes.len() as u64 * u64::from(head));
        if !self.dma(bus, at, Transfer::Read(&mut bytes)) {
            self.csts |= FATAL;
            bus.host.log(&format!("NVMe: no command can be fetched at {at:#x}"));
            return None;
        }
        let mut words = [0; COMMAND_WORDS];
        let (chunks, _) = bytes.as_chunks::<4>();
        words.iter_mut().zip(chunks).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
        Some(words)
    }

    /// Writes an answer, and says so. False where it cannot.
    fn answer(&mut self, bus: &mut Bus<'_>, queue: usize, mut words: [u32; 4]) -> bool {
        let Some(answers) = self.completions[queue].clone() else { return true };
        words[3] |= u32::from(answers.phase) << 16;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = answers.base.wrapping_add(bytes.len() as u64 * u64::from(answers.tail));
        if !self.dma(bus, at, Transfer::Write(&bytes)) {
            self.csts |= FATAL;
            bus.host.log(&format!("NVMe: no answer can be written at {at:#x}"));
            return false;
        }
        if let Some(queue) = &mut self.completions[queue] {
            queue.tail = (queue.tail + 1) % queue.size;
            queue.phase ^= queue.tail == 0;
        }
        if answers.interrupts {
            self.raise(bus, answers.vector);
        }
        true
    }
}
