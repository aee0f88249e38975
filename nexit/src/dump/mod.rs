//! `nexit dump`: a guest's RAM and registers as an ELF core, over the machine's one serial line.
//!
//! Path: [`stub`] asks the guest's gdb stub, which stops the guest, for registers and packed pages; [`core`] writes them into a
//! file; [`tables`] says which linear addresses lead where.

mod core;
mod stub;
mod tables;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use debug::pack::{PAGE, unpack};

use crate::attach;
use crate::cable::Cable;
use crate::cli::DumpArgs;
use crate::failure::{Failure, Result};

use self::core::Core;
use self::stub::{Registers, Stub};

/// How often the user is told.
const TOLD: Duration = Duration::from_millis(500);

/// Dumps a guest. It is stopped meanwhile, and goes on behind.
///
/// # Errors
/// There is no such line or guest, the line is too bad, or the file cannot be written.
pub(crate) fn dump(args: &DumpArgs) -> Result<()> {
    let cable = Cable::new(attach::open(&args.line)?);
    let guest = cable.find(&args.guest)?;
    let mut stub = Stub::new(&cable, guest);
    stub.stop()?;
    let done = take(&mut stub, &args.file);
    // Whatever has happened, the guest goes on.
    stub.leave().and(done)
}

fn take(stub: &mut Stub<'_>, path: &Path) -> Result<()> {
    let cpus = stub.cpus()?;
    let ranges = stub.ram()?;
    let all: u64 = ranges.iter().map(|(_, length)| length).sum();
    let mut core = Core::create(path, &ranges)?;
    let (mut seen, mut came, mut told) = (0, 0, Instant::now());
    for (start, length) in &ranges {
        let (mut next, end) = (start / PAGE as u64, (start + length) / PAGE as u64);
        while next < end {
            let answer = stub.pages(next)?;
            came += answer.len();
            let until = pages(&answer, |number, page| core.write(number * PAGE as u64, page))?;
            // Nothing that a stub says makes this go round for ever.
            let until = until.clamp(next + 1, end);
            seen += (until - next) * PAGE as u64;
            next = until;
            if told.elapsed() >= TOLD {
                told = Instant::now();
                eprint!("\rnexit: {} of {} MiB", seen >> 20, all >> 20);
                let _ = std::io::stderr().flush();
            }
        }
    }
    let (mappings, complete) = mappings(&core, cpus.first());
    if !(core.finish(&cpus, &mappings)? & complete) {
        eprintln!(
            "\nnexit: the guest's tables map more than the file can say: some addresses are missing"
        );
    }
    let (mib, kib) = (all >> 20, came >> 10);
    println!("\rnexit: wrote {}: {mib} MiB of RAM, {kib} KiB over the line", path.display());
    Ok(())
}

/// Gives each page of an answer to `write`; the page to ask for next.
fn pages(mut answer: &[u8], mut write: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
    let bad = || Failure::Failed("the stub's answer makes no sense: is it this version's?".into());
    loop {
        let (number, rest) = answer.split_first_chunk().ok_or_else(bad)?;
        let (length, rest) = rest.split_first_chunk().ok_or_else(bad)?;
        let (number, length) = (u32::from_le_bytes(*number), u16::from_le_bytes(*length).into());
        if length == 0 {
            return Ok(number.into());
        }
        let page = rest.get(..length).and_then(unpack).ok_or_else(bad)?;
        write(number.into(), &page)?;
        answer = rest.get(length..).unwrap_or_default();
    }
}

/// Which linear addresses lead where by a CPU's tables, and whether that is all; those of a CPU without paging are
/// the physical ones.
fn mappings(core: &Core, cpu: Option<&Registers>) -> (Vec<tables::Mapping>, bool) {
    const PAGING: u64 = 1 << 31;
    const LONG_MODE: u64 = 1 << 10;
    const FIVE_LEVELS: u64 = 1 << 12;
    match cpu {
        Some(cpu) if cpu.cr0 & PAGING != 0 && cpu.efer & LONG_MODE != 0 => {
            let levels = if cpu.cr4 & FIVE_LEVELS != 0 { 5 } else { 4 };
            tables::mappings(&|gpa| core.read(gpa), cpu.cr3, levels)
        }
        _ => (tables::identity(core.ranges()), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_pages_and_where_to_go_on() {
        let mut packed = Vec::new();
        debug::pack::pack(&[5; PAGE], &mut packed);
        let length = (packed.len() as u16).to_le_bytes();
        let answer = [&7_u32.to_le_bytes()[..], &length, &packed, &9_u32.to_le_bytes(), &[0; 2]];
        let answer = answer.concat();
        let mut got = Vec::new();
        let write = |number, page: &[u8]| {
            got.push((number, page.to_vec()));
            Ok(())
        };
        assert_eq!(pages(&answer, write), Ok(9));
        assert_eq!(got, [(7, vec![5; PAGE])]);
        for length in 0..answer.len() {
            assert!(pages(&answer[..length], |_, _| Ok(())).is_err(), "cut at {length}");
        }
    }
}
