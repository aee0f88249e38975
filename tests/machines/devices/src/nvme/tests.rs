use super::*;
use crate::host::{Host as _, Interrupt};
use crate::workbench::Workbench;

const SUBMISSIONS: u64 = 0x1_0000;
const COMPLETIONS: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;

struct Machine {
    host: Workbench,
    nvme: Controller,
    given: u32,
}

/// A controller at 00:04.0 that masters the bus, with its admin queue and an MSI-X entry for vector 0x51.
fn machine(options: NvmeOptions) -> Machine {
    let nvme = Controller::new(NvmeOptions { device: 4, ..options }, 0, Disk::empty());
    let mut machine = Machine { host: Workbench::default(), nvme, given: 0 };
    machine.with(|nvme, bus| {
        nvme.reset(bus);
        nvme.reset_by_firmware();
        nvme.config_write(bus, 4, &[6, 0]);
        nvme.config_write(bus, 0x72, &[0, 0x80]);
        for (offset, value) in [(0, 0xfee0_1000), (4, 0), (8, 0x51), (12, 0)] {
            nvme.write(bus, TABLE + offset, value);
        }
        for (offset, value) in [
            (0x24, 15 << 16 | 15),
            (0x28, SUBMISSIONS as u32),
            (0x30, COMPLETIONS as u32),
            (0x14, 4 << 20 | 6 << 16 | 1),
        ] {
            nvme.write(bus, offset, value);
        }
    });
    assert_eq!(machine.nvme.read(0x1c), READY);
    machine
}

impl Machine {
    fn with<T>(&mut self, work: impl FnOnce(&mut Controller, &mut Bus<'_>) -> T) -> T {
        work(&mut self.nvme, &mut Bus { host: &mut self.host, unit: None })
    }

    /// Gives the admin command of these words and lets it be carried out; the status.
    fn command(&mut self, words: &[(usize, u64)]) -> u64 {
        let slot = u64::from(self.given % 16);
        self.host.put(SUBMISSIONS + 64 * slot, &[0; 8]);
        for (word, value) in words {
            let at = SUBMISSIONS + 64 * slot + 4 * *word as u64;
            self.host
                .write(at, &value.to_le_bytes()[..if *word == 6 || *word == 8 { 8 } else { 4 }]);
        }
        self.given += 1;
        let tail = self.given % 16;
        self.with(|nvme, bus| nvme.write(bus, DOORBELLS, tail));
        while let Some(timer) = self.host.next() {
            assert_eq!(timer, Timer::Queues(0));
            self.with(|nvme, bus| nvme.work(bus));
        }
        let head = self.given % 16;
        self.with(|nvme, bus| nvme.write(bus, DOORBELLS + 4, head));
        self.host.pending.clear();
        self.host.get(COMPLETIONS + 16 * slot + 8) >> 49
    }

    fn vectors(&mut self) -> Vec<u8> {
        self.host.delivered.drain(..).map(|interrupt| interrupt.vector).collect()
    }
}

#[test]
fn a_command_is_answered_and_told_by_its_message() {
    let mut machine = machine(NvmeOptions::default());
    assert_eq!(machine.command(&[(0, 6), (6, DATA), (10, 1)]), 0);
    assert_eq!(machine.host.get(DATA) & 0xffff, 0x1234);
    let to = Interrupt { vector: 0x51, destination: 1, mode: 0, logical: false, level: false };
    assert_eq!(machine.host.delivered, [to]);
    assert_eq!(machine.command(&[(0, 0x7f)]), 1, "no such command");
}

#[test]
fn what_is_written_is_read_through_a_list_of_pages() {
    let mut machine = machine(NvmeOptions::default());
    let queues = [(5, 0x4_0000, 0), (1, 0x5_0000, 1 << 16)];
    for (opcode, at, word) in queues {
        assert_eq!(machine.command(&[(0, opcode), (6, at), (10, 15 << 16 | 1), (11, word)]), 0);
    }
    // 12 KiB from the middle of a page: four parts, three of them in a list.
    machine.host.put(0x6_0000, &[0x7_1000, 0x7_3000, 0x7_2000]);
    let parts =
        [(0x7_0800, 0x800_usize), (0x7_1000, 0x1000), (0x7_3000, 0x1000), (0x7_2000, 0x800)];
    for (number, (at, length)) in parts.into_iter().enumerate() {
        machine.host.write(at, &vec![number as u8 + 1; length]);
    }
    for (slot, opcode) in [(0, 1_u64), (1, 2)] {
        let command = [opcode, 0, 0, 0x7_0800, 0x6_0000, 8, 23, 0];
        machine.host.put(0x5_0000 + 64 * slot, &command);
        machine.with(|nvme, bus| nvme.write(bus, DOORBELLS + 8, slot as u32 + 1));
        machine.with(|nvme, bus| nvme.work(bus));
        assert_eq!(machine.host.get(0x4_0000 + 16 * slot + 8) >> 49, 0);
        for (number, (at, length)) in parts.into_iter().enumerate() {
            let mut data = vec![0; length];
            machine.host.read(at, &mut data);
            assert!(data.iter().all(|byte| usize::from(*byte) == number + 1), "part {number}");
            machine.host.write(at, &vec![0; length]);
        }
    }
    assert_eq!((machine.nvme.counters.writes, machine.nvme.counters.reads), (1, 1));
}

#[test]
fn a_masked_message_waits_and_is_sent_once() {
    let mut machine = machine(NvmeOptions::default());
    machine.with(|nvme, bus| {
        nvme.write(bus, TABLE + 12, 1);
        nvme.raise(bus, 0);
        nvme.raise(bus, 0);
    });
    assert_eq!((machine.nvme.read(PENDING_BITS), machine.vectors().len()), (1, 0));
    machine.with(|nvme, bus| {
        nvme.write(bus, TABLE + 8, 0x61);
        nvme.write(bus, TABLE + 12, 0);
    });
    assert_eq!((machine.nvme.read(PENDING_BITS), machine.vectors()), (0, vec![0x61]));
}

#[test]
fn without_bus_mastering_nothing_leaves_it() {
    let mut machine = machine(NvmeOptions::default());
    machine.with(|nvme, bus| {
        nvme.config_write(bus, 4, &[2]);
        nvme.raise(bus, 0);
    });
    assert!(machine.vectors().is_empty());
    assert_eq!(machine.command(&[(0, 6), (6, DATA), (10, 1)]), 0);
    assert_eq!((machine.nvme.read(0x1c), machine.host.get(DATA)), (READY | FATAL, 0));
}

#[test]
fn the_engine_acts_when_its_time_has_come() {
    let mut machine = machine(NvmeOptions::default());
    machine.with(|nvme, bus| nvme.write(bus, engine::OFFSET, 1500));
    assert_eq!(
        (machine.host.pending.clone(), machine.vectors().len()),
        (vec![(Timer::Engine(0), 1500)], 0)
    );
    assert_eq!(machine.host.next(), Some(Timer::Engine(0)));
    machine.with(|nvme, bus| nvme.act(bus));
    assert_eq!(machine.vectors(), [0x51]);
    assert_eq!([4, 0x20, 0x28].map(|at| machine.nvme.read(engine::OFFSET + at)), [0, 1500, 1]);
    machine.host.put(DATA, &[77]);
    machine.with(|nvme, bus| {
        for (at, value) in
            [(8, DATA as u32), (0x10, DATA as u32 + 0x100), (0x18, 8), (0, 1 << 28 | 1)]
        {
            nvme.write(bus, engine::OFFSET + at, value);
        }
        nvme.act(bus);
    });
    assert_eq!(machine.host.get(DATA + 0x100), 77);
}

#[test]
fn a_function_level_reset_takes_everything_back_and_hides_it_for_a_while() {
    let mut machine = machine(NvmeOptions::default());
    machine.with(|nvme, bus| {
        nvme.write(bus, engine::OFFSET, 1500);
        nvme.raise(bus, 1);
        nvme.config_write(bus, 0x88, &[0x10, 0xa8]);
    });
    assert_eq!(machine.host.next(), None, "the engine's wish is forgotten");
    let now = machine.host.now;
    assert_eq!([now, now + 50_000].map(|now| machine.nvme.config_read(now, 0)), [0xff, 0x34]);
    assert_eq!((machine.nvme.config_read(now + 50_000, 4), machine.nvme.bar()), (0, None));
    assert_eq!((machine.nvme.read(0x1c), machine.nvme.read(PENDING_BITS)), (0, 0));
    assert_eq!(machine.nvme.read(TABLE + 12), 1, "masked");
    assert_eq!(machine.nvme.counters.resets, 1);
}

#[test]
fn the_pin_is_up_while_an_answer_is_not_taken() {
    let mut machine = machine(NvmeOptions { pin: true, ..NvmeOptions::default() });
    assert_eq!(machine.command(&[(0, 6), (6, DATA), (10, 1)]), 0);
    assert_eq!(machine.host.pins, [(4, 1, true), (4, 1, false)]);
    assert!(machine.vectors().is_empty());
}

#[test]
fn msi_messages_are_masked_each_by_itself() {
    let mut machine = machine(NvmeOptions { msi_x: false, ..NvmeOptions::default() });
    machine.with(|nvme, bus| {
        nvme.config_write(bus, 0x54, &[0, 0x10, 0xe0, 0xfe]);
        nvme.config_write(bus, 0x5c, &[0x60, 0]);
        nvme.config_write(bus, 0x60, &[2, 0, 0, 0]);
        // Four messages, and on.
        nvme.config_write(bus, 0x52, &[2 << 4 | 1]);
        (0..4).for_each(|number| nvme.raise(bus, number));
    });
    assert_eq!(machine.vectors(), [0x60, 0x62, 0x63]);
    assert_eq!(machine.nvme.config_read(0, 0x64), 2, "pending");
    machine.with(|nvme, bus| nvme.config_write(bus, 0x60, &[0, 0, 0, 0]));
    assert_eq!(machine.vectors(), [0x61]);
}
