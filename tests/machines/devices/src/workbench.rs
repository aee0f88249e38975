//! An emulator for the tests: RAM, a clock that stands until it is moved, and a record of what came.

use std::collections::BTreeMap;

use crate::host::{Host, Interrupt, Timer};

/// It has RAM from 0 to here.
pub(crate) const RAM: u64 = 1 << 24;

#[derive(Default)]
pub(crate) struct Workbench {
    pages: BTreeMap<u64, Vec<u8>>,
    pub(crate) now: u64,
    pub(crate) pending: Vec<(Timer, u64)>,
    pub(crate) delivered: Vec<Interrupt>,
    pub(crate) pins: Vec<(u8, u8, bool)>,
    pub(crate) lines: Vec<String>,
}

impl Workbench {
    pub(crate) fn put(&mut self, at: u64, words: &[u64]) {
        for (at, word) in (at..).step_by(8).zip(words) {
            assert!(self.write(at, &word.to_le_bytes()));
        }
    }

    pub(crate) fn get(&mut self, at: u64) -> u64 {
        self.read_u64(at).unwrap()
    }

    /// Takes the request that falls due first, and moves the clock there.
    pub(crate) fn next(&mut self) -> Option<Timer> {
        let first = self.pending.iter().map(|(_, at)| *at).min()?;
        let place = self.pending.iter().position(|(_, at)| *at == first)?;
        self.now = first;
        Some(self.pending.remove(place).0)
    }

    pub(crate) fn says(&self, start: &str) -> usize {
        self.lines.iter().filter(|line| line.starts_with(start)).count()
    }
}

impl Host for Workbench {
    fn read(&mut self, at: u64, data: &mut [u8]) -> bool {
        for (at, byte) in (at..).zip(data) {
            if at >= RAM {
                return false;
            }
            let page = self.pages.get(&(at >> 12));
            *byte = page.map_or(0, |page| page[at as usize & 0xfff]);
        }
        true
    }
    fn write(&mut self, at: u64, data: &[u8]) -> bool {
        for (at, byte) in (at..).zip(data) {
            if at >= RAM {
                return false;
            }
            let page = self.pages.entry(at >> 12).or_insert_with(|| vec![0; 4096]);
            page[at as usize & 0xfff] = *byte;
        }
        true
    }
    fn deliver(&mut self, interrupt: Interrupt) {
        self.delivered.push(interrupt);
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn wake(&mut self, timer: Timer, ticks: u64) {
        self.cancel(timer);
        self.pending.push((timer, self.now + ticks));
    }
    fn cancel(&mut self, timer: Timer) {
        self.pending.retain(|(other, _)| *other != timer);
    }
    fn move_pin(&mut self, device: u8, pin: u8, up: bool) {
        self.pins.push((device, pin, up));
    }
    fn legacy_vector(&mut self) -> u8 {
        8
    }
    fn log(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }
}
