//! What commands do (NVM Express, "Admin Command Set" and "NVM Command Set").

use super::Controller;
use super::queues::{Answer, COMMAND_WORDS, Completion, MAX_QUEUES, Submission};
use crate::bus::Bus;
use crate::disk::SECTOR;
use crate::unit::translation::{PAGE, Transfer};

type Command = [u32; COMMAND_WORDS];

const SUCCESS: u16 = 0;
const INVALID_COMMAND: u16 = 0x01;
const INVALID_FIELD: u16 = 0x02;
const DATA_TRANSFER_ERROR: u16 = 0x04;
const LBA_OUT_OF_RANGE: u16 = 0x80;
const COMPLETION_QUEUE_INVALID: u16 = 0x100;
const INVALID_QUEUE: u16 = 0x101;
const INVALID_VECTOR: u16 = 0x108;

fn quad(command: &Command, word: usize) -> u64 {
    u64::from(command[word]) | u64::from(command[word + 1]) << 32
}

impl Controller {
    pub(super) fn admin(&mut self, bus: &mut Bus<'_>, command: &Command) -> Answer {
        const NUMBER_OF_QUEUES: u8 = 0x07;
        let status = match command[0] as u8 {
            0x00 => delete(&mut self.submissions, command),
            0x01 => self.create_submissions(command),
            // A log page: of zeroes.
            0x02 => {
                let length = ((command[10] >> 16) as usize + 1) * 4;
                self.give(bus, command, &vec![0; length.min(PAGE as usize)])
            }
            0x04 => delete(&mut self.completions, command),
            0x05 => self.create_completions(command),
            0x06 => self.identify(bus, command),
            // Abort: nothing was aborted.
            0x08 => return Answer::Now(SUCCESS, 1),
            0x09 | 0x0a if command[10] as u8 == NUMBER_OF_QUEUES => {
                let queues = MAX_QUEUES as u32 - 2;
                return Answer::Now(SUCCESS, queues << 16 | queues);
            }
            0x09 | 0x0a => SUCCESS,
            // A request for an event: none ever comes.
            0x0c => return Answer::Never,
            _ => INVALID_COMMAND,
        };
        Answer::Now(status, 0)
    }

    fn create_submissions(&mut self, command: &Command) -> u16 {
        let (id, answers) = (command[10] as u16 as usize, (command[11] >> 16) as usize);
        if self.completions.get(answers).is_none_or(Option::is_none) {
            return COMPLETION_QUEUE_INVALID;
        }
        let queue = Submission::new(quad(command, 6), (command[10] >> 16) + 1, answers);
        create(&mut self.submissions, id, queue)
    }

    fn create_completions(&mut self, command: &Command) -> u16 {
        const INTERRUPTS: u32 = 1 << 1;
        let (id, vector) = (command[10] as u16 as usize, (command[11] >> 16) as u16);
        if vector >= self.options.vectors {
            return INVALID_VECTOR;
        }
        let interrupts = command[11] & INTERRUPTS != 0;
        let size = (command[10] >> 16) + 1;
        create(
            &mut self.completions,
            id,
            Completion::new(quad(command, 6), size, vector, interrupts),
        )
    }

    fn identify(&mut self, bus: &mut Bus<'_>, command: &Command) -> u16 {
        let mut page = vec![0; PAGE as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            page.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = *byte);
        };
        let namespace = command[1];
        match command[10] as u8 {
            0 if namespace == 1 => {
                let sectors = self.disk.sectors().to_le_bytes();
                // Size, capacity, use; one format, of 2^9 bytes.
                [0, 8, 16].iter().for_each(|at| put(*at, &sectors));
                put(130, &[9]);
            }
            0 => {}
            1 => {
                // Vendor, serial number, model, revision.
                put(0, &[0x34, 0x12, 0x34, 0x12]);
                put(4, &[b' '; 68]);
                put(4, b"nexit");
                put(24, b"NVMe behind VT-d");
                put(64, b"1");
                // At most 32 pages at once; version 1.3; limits; entries of 64 and 16 bytes; one namespace.
                put(77, &[5]);
                put(80, &[0, 3, 1]);
                put(258, &[3, 3]);
                put(512, &[0x66, 0x44]);
                put(516, &[1]);
                put(768, b"nqn.2014-08.org.nvmexpress:uuid:4e657869-7400-4000-8000-000000000001");
            }
            2 if namespace == 0 => put(0, &[1]),
            2 => {}
            // The namespace's EUI-64.
            3 => put(0, &[1, 8, 0, 0, 0x4e, 0x65, 0x78, 0x69, 0x74, 0, 0, 1]),
            _ => return INVALID_FIELD,
        }
        self.give(bus, command, &page)
    }

    /// Read, write, flush.
    pub(super) fn access(&mut self, bus: &mut Bus<'_>, command: &Command) -> u16 {
        let (first, count) = (quad(command, 10), u64::from(command[12] & 0xffff) + 1);
        let length = count as usize * SECTOR;
        match command[0] as u8 {
            0x00 => SUCCESS,
            0x01 | 0x02 if !self.disk.has(first, count) => LBA_OUT_OF_RANGE,
            0x01 => {
                self.counters.writes += 1;
                let mut data = vec![0; length];
                let Some(pages) = self.pages(bus, command, length) else {
                    return DATA_TRANSFER_ERROR;
                };
                let mut rest = data.as_mut_slice();
                for (at, length) in pages {
                    let part = rest.split_off_mut(..length).unwrap_or_default();
                    if !self.dma(bus, at, Transfer::Read(part)) {
                        return DATA_TRANSFER_ERROR;
                    }
                }
                self.disk.write(first, &data);
                SUCCESS
            }
            0x02 => {
                self.counters.reads += 1;
                let mut data = vec![0; length];
                if !self.disk.read(first, &mut data) {
                    return DATA_TRANSFER_ERROR;
                }
                self.give(bus, command, &data)
            }
            _ => INVALID_COMMAND,
        }
    }

    /// Writes `data` to where the command says.
    fn give(&mut self, bus: &mut Bus<'_>, command: &Command, mut data: &[u8]) -> u16 {
        let Some(pages) = self.pages(bus, command, data.len()) else { return DATA_TRANSFER_ERROR };
        for (at, length) in pages {
            let part = data.split_off(..length).unwrap_or_default();
            if !self.dma(bus, at, Transfer::Write(part)) {
                return DATA_TRANSFER_ERROR;
            }
        }
        SUCCESS
    }

    /// The pages that a command's data lie in: two, or one and a list ("Physical Region Page Entry and
    /// List").
    fn pages(
        &mut self,
        bus: &mut Bus<'_>,
        command: &Command,
        length: usize,
    ) -> Option<Vec<(u64, usize)>> {
        let (first, mut second) = (quad(command, 6), quad(command, 8));
        let part = length.min((PAGE - first % PAGE) as usize);
        let mut pages = vec![(first, part)];
        let mut rest = length - part;
        if rest == 0 {
            return Some(pages);
        }
        if rest <= PAGE as usize {
            pages.push((second, rest));
            return Some(pages);
        }
        while rest != 0 {
            let mut entry = [0; 8];
            if !self.dma(bus, second, Transfer::Read(&mut entry)) {
                return None;
            }
            let entry = u64::from_le_bytes(entry);
            // The last entry of a page of the list leads to the next one.
            if second % PAGE == PAGE - 8 && rest > PAGE as usize {
                second = entry;
                continue;
            }
            let part = rest.min(PAGE as usize);
            pages.push((entry, part));
            rest -= part;
            second += 8;
        }
        Some(pages)
    }
}

fn create<Q>(queues: &mut [Option<Q>; MAX_QUEUES], id: usize, queue: Q) -> u16 {
    match queues.get_mut(id) {
        Some(place) if id != 0 && place.is_none() => {
            *place = Some(queue);
            SUCCESS
        }
        _ => INVALID_QUEUE,
    }
}

fn delete<Q>(queues: &mut [Option<Q>; MAX_QUEUES], command: &Command) -> u16 {
    let id = command[10] as u16 as usize;
    let queue = queues.get_mut(id).filter(|_| id != 0).and_then(Option::take);
    if queue.is_some() { SUCCESS } else { INVALID_QUEUE }
}
