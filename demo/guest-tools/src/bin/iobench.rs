//! `iobench DEVICE COUNT INTERRUPT-NAME`: COUNT reads of 4 KiB at queue depth 1, past the page
//! cache, and what they cost in interrupts and exits.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::time::Instant;

use guest_tools::{Window, describe};

/// Linux `O_DIRECT` on x86-64.
const O_DIRECT: i32 = 0o40000;
const BLOCK: u64 = 4096;

/// `O_DIRECT` wants the buffer aligned as the device's blocks are.
#[repr(C, align(4096))]
struct Block([u8; BLOCK as usize]);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, count, name] = arguments.as_slice() else {
        eprintln!("usage: iobench DEVICE COUNT INTERRUPT-NAME");
        return ExitCode::from(2);
    };
    match bench(device, count, name) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("iobench: {device}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(device: &str, count: &str, name: &str) -> Result<String> {
    let count: u64 = count.parse().map_err(|_| invalid("COUNT is not a number"))?;
    let mut file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(device)?;
    let blocks = file.seek(SeekFrom::End(0))? / BLOCK;
    if blocks == 0 {
        return Err(invalid("the device is smaller than one block of 4 KiB"));
    }
    let window = Window::open(name)?;
    let start = Instant::now();
    read_blocks(&file, blocks, count)?;
    let elapsed_ms = start.elapsed().as_millis();
    Ok(format!("reads={count} ms={elapsed_ms} {}", describe(&window.close()?)))
}

/// Strides over the device so that no two neighbouring reads can be merged or guessed.
fn read_blocks(file: &File, blocks: u64, count: u64) -> Result<()> {
    let mut block = Block([0; BLOCK as usize]);
    (0..count).try_for_each(|read| {
        let index = read.wrapping_mul(7919) % blocks;
        file.read_exact_at(&mut block.0, index * BLOCK)
    })
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, text)
}
