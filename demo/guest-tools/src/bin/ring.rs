//! `ring FUNCTION`: plays peer 0 of the test program `ring` through the memory that this guest
//! shares with it, PCI function FUNCTION, from user space.
//!
//! Stock Linux has no driver that hands MSI-X of such a function to programs, so this peer rings
//! and looks into the memory for the answer.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest_tools::{Window, describe};
use rustix::mm::{MapFlags, ProtFlags, mmap};

// As in tests/payload/src/bin/ring.rs.
const ROUNDS: u64 = 1000;
const LIVES: u64 = 2;
const INDEX: u32 = 3;
const WORDS: u64 = 64;
/// Offset of the register Doorbell, and of IVPosition.
const DOORBELL: usize = 12;
const IV_POSITION: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

/// A BAR in this program's address space.
struct Bar(*mut u8);

impl Bar {
    fn map(function: &str, index: u8, length: usize) -> Result<Self> {
        let path = format!("/sys/bus/pci/devices/{function}/resource{index}");
        let file: File = OpenOptions::new().read(true).write(true).open(path)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, file, 0) };
        Ok(Self(at?.cast()))
    }

    fn read<T>(&self, offset: usize) -> T {
        // SAFETY: callers stay inside the BAR, naturally aligned.
        unsafe { self.0.wrapping_add(offset).cast::<T>().read_volatile() }
    }

    fn write<T>(&self, offset: usize, value: T) {
        // SAFETY: as for `read`.
        unsafe { self.0.wrapping_add(offset).cast::<T>().write_volatile(value) };
    }
}

/// Offset and value of each word that `writer` leaves in `round`.
fn pattern(writer: u64, round: u64) -> impl Iterator<Item = (usize, u64)> {
    let value = move |i: u64| (round << 32 | writer << 16 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..WORDS).map(move |i| (4096 * (1 + writer as usize) + 8 * i as usize, value(i)))
}

fn wait_for(what: &str, mut reached: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !reached() {
        if start.elapsed() > PATIENCE {
            return Err(Error::other(format!("the other guest: {what}")));
        }
        std::hint::spin_loop();
    }
    Ok(())
}

fn play(function: &str) -> Result<String> {
    let registers = Bar::map(function, 0, 4096)?;
    let memory = Bar::map(function, 2, 4096 * 3)?;
    let position: u32 = registers.read(IV_POSITION);
    if position != 0 {
        return Err(Error::other(format!("this guest is peer {position}, not 0")));
    }
    memory.write::<u64>(0, 1);
    let window = Window::open("ivshmem")?;
    for round in 1..=LIVES * ROUNDS {
        if round % ROUNDS == 1 {
            let generation = round / ROUNDS + 1;
            wait_for("it is not there", || memory.read::<u64>(8) >= generation)?;
        }
        for (offset, value) in pattern(0, round) {
            memory.write(offset, value);
        }
        registers.write::<u32>(DOORBELL, 1 << 16 | INDEX);
        let there = || pattern(1, round).all(|(offset, value)| memory.read::<u64>(offset) == value);
        wait_for("its pattern is not there", there)?;
    }
    Ok(format!("rounds={} {}", LIVES * ROUNDS, describe(&window.close()?)))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [function] = arguments.as_slice() else {
        eprintln!("usage: ring FUNCTION");
        return ExitCode::from(2);
    };
    match play(function) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("ring: {function}: {error}");
            ExitCode::FAILURE
        }
    }
}
