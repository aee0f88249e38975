//! `nexit dump`: a guest's RAM and registers as an ELF core, over the machine's one serial line.
//!
//! Path: [`stub`] asks the guest's gdb stub, which stops the guest, for registers and packed pages; [`core`] writes them into a
//! file; [`tables`] says which linear addresses lead where.

mod core;
mod stub;
mod tables;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use debug::pack::{PAGE, unpack};

use crate::attach;
use crate::cable::Cable;
use crate::cli::DumpArgs;
use crate::failure::{Failure, Result};
use crate::output::Whole;

use self::core::Core;
use self::stub::{Registers, Stub};

/// How often the user is told.
const TOLD: Duration = Duration::from_millis(500);

/// Dumps a guest. It is stopped meanwhile, and goes on behind, even if the user interrupts the dump.
///
/// # Errors
/// There is no such line or guest, the guest does not run, the line is too bad, the file cannot be written, or the user has
/// interrupted it.
pub(crate) fn dump(args: &DumpArgs) -> Result<()> {
    Whole::check(&args.file)?;
    let cable = Cable::new(attach::open(&args.line)?);
    let guest = cable.find(&args.guest)?;
    // Up to here a signal ends this program, and the guest has noticed nothing.
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .map_err(|error| Failure::Failed(format!("cannot take signals: {error}")))?;
    println!("{}", of_guest(&cable, guest, &args.file, &interrupted)?);
    Ok(())
}

/// Dumps the guest of this index; what there is to say of it.
fn of_guest(cable: &Cable, guest: u8, path: &Path, interrupted: &AtomicBool) -> Result<String> {
    let file = Whole::begin(path)?;
    let mut stub = Stub::new(cable, guest, interrupted);
    let taken = stub.stop().and_then(|()| take(&mut stub, file));
    // Whatever has happened, the guest goes on, and does not wait for the rest.
    let left = stub.leave();
    let done = taken.and_then(|taken| taken.finish(path));
    let Err(why) = left else { return done };
    let stands = format!("the guest may still be stopped: {why}");
    Err(Failure::Failed(match done {
        Ok(_) => format!("wrote {}, but {stands}", path.display()),
        Err(first) => format!("{first}; {stands}"),
    }))
}

/// All that comes from the guest.
struct Taken {
    core: Core,
    cpus: Vec<Registers>,
    /// Bytes of RAM, and of the line.
    all: u64,
    came: usize,
}

fn take(stub: &mut Stub<'_>, file: Whole) -> Result<Taken> {
    let cpus = stub.cpus()?;
    let ranges = stub.ram()?;
    let all: u64 = ranges.iter().map(|(_, length)| length).sum();
    let mut core = Core::new(file, &ranges)?;
    let mut progress = Progress::new(std::io::stderr(), TOLD, all);
    let (mut seen, mut came) = (0, 0);
    for (start, length) in &ranges {
        let (mut next, end) = (start / PAGE as u64, (start + length) / PAGE as u64);
        while next < end {
            let answer = stub.pages(next)?;
            came += answer.len();
            let until = pages(&answer, |number, page| core.write(number * PAGE as u64, page))?;
            // An answer to an earlier question, which would leave pages out, or nothing that a stub says.
            if until <= next {
                return Err(bad_answer());
            }
            let until = until.min(end);
            seen += (until - next) * PAGE as u64;
            next = until;
            progress.at(seen);
        }
    }
    Ok(Taken { core, cpus, all, came })
}

impl Taken {
    /// Completes the file; what there is to say of it.
    fn finish(self, path: &Path) -> Result<String> {
        let Self { core, cpus, all, came } = self;
        let (mappings, complete) = mappings(&core, cpus.first());
        if !(core.finish(&cpus, &mappings)? & complete) {
            eprintln!(
                "nexit: the guest's tables map more than the file can say: some addresses are missing"
            );
        }
        let (path, mib, kib) = (path.display(), all >> 20, came >> 10);
        Ok(format!("nexit: wrote {path}: {mib} MiB of RAM, {kib} KiB over the line"))
    }
}

/// A line that says how far it is, and is ended when this goes, so that what comes behind has a line of its own.
struct Progress<W: Write> {
    to: W,
    every: Duration,
    told: Instant,
    all: u64,
    is_begun: bool,
}

impl<W: Write> Progress<W> {
    fn new(to: W, every: Duration, all: u64) -> Self {
        Self { to, every, told: Instant::now(), all, is_begun: false }
    }

    fn at(&mut self, seen: u64) {
        if self.told.elapsed() < self.every {
            return;
        }
        (self.told, self.is_begun) = (Instant::now(), true);
        // A terminal that has gone is no reason to leave the guest stopped.
        let _ = write!(self.to, "\rnexit: {} of {} MiB", seen >> 20, self.all >> 20);
        let _ = self.to.flush();
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        if self.is_begun {
            let _ = writeln!(self.to);
        }
    }
}

fn bad_answer() -> Failure {
    Failure::Failed("the stub's answer makes no sense: is it this version's?".into())
}

/// Gives each page of an answer to `write`; the page to ask for next.
fn pages(mut answer: &[u8], mut write: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
    let bad = bad_answer;
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
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::sync::mpsc::{self, Receiver};

    use mux::frame::{Channel, Kind, Splitter, encode};
    use mux::{ESCAPE, MARK};

    use super::*;

    /// What a stub says to a packet: nothing, or packets.
    type Answers = Box<dyn FnMut(&str) -> Vec<String> + Send>;

    /// A line with the stub of guest 1 at its end, and the packets that it has got.
    fn stub(mut answers: Answers) -> (Cable, Receiver<String>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (asked, questions) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut splitter, mut buffer) = (Splitter::new(ESCAPE), [0; 512]);
            let mut came = String::new();
            while let Ok(length @ 1..) = theirs.read(&mut buffer) {
                for byte in &buffer[..length] {
                    splitter.push(*byte, &mut |_| {}, &mut |_, payload| {
                        came.push_str(std::str::from_utf8(payload).unwrap());
                    });
                }
                while let Some((packet, rest)) =
                    came.split_once('#').filter(|(_, sum)| sum.len() > 1)
                {
                    let packet = packet.split_once('$').unwrap().1.to_owned();
                    came = rest[2..].to_owned();
                    let _ = asked.send(packet.clone());
                    let mut out = Vec::new();
                    for answer in answers(&packet) {
                        let sum = answer.bytes().fold(0_u8, u8::wrapping_add);
                        for piece in format!("+${answer}#{sum:02x}").as_bytes().chunks(200) {
                            let channel = Channel { kind: Kind::Gdb, guest: 1 };
                            encode(MARK, channel, piece, &mut |byte| out.push(byte));
                        }
                    }
                    if theirs.write_all(&out).is_err() {
                        return;
                    }
                }
            }
        });
        let from = Box::new(ours.try_clone().unwrap());
        (Cable::new(attach::Line { from, to: Box::new(ours) }), questions)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn text(bytes: &[u8]) -> Vec<String> {
        vec![format!("O{}", hex(bytes)), "OK".to_owned()]
    }

    /// What a guest's stub says: one CPU, two pages of RAM.
    fn usual(question: &str) -> Vec<String> {
        let one = |answer: &str| vec![answer.to_owned()];
        match question {
            "?" => one("T05thread:01;"),
            "qfThreadInfo" => one("m01"),
            "g" => one(&hex(&[0; 700])),
            "Hg01" | "D;1" => one("OK"),
            _ if question == monitor("ram") => text(b"0x0 0x2000\n"),
            _ if question == monitor("pages 0") => page(0, 5),
            _ if question == monitor("pages 1") => text(&[2, 0, 0, 0, 0, 0]),
            _ => panic!("{question}"),
        }
    }

    /// A page of the same bytes.
    fn page(number: u32, byte: u8) -> Vec<String> {
        let mut packed = Vec::new();
        debug::pack::pack(&[byte; PAGE], &mut packed);
        let length = (packed.len() as u16).to_le_bytes();
        let page = [&number.to_le_bytes()[..], &length, &packed].concat();
        text(&[&page[..], &(number + 1).to_le_bytes(), &[0; 2]].concat())
    }

    fn monitor(command: &str) -> String {
        format!("qRcmd,{}", hex(command.as_bytes()))
    }

    /// A folder with an older dump.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        std::fs::write(&path, "older").unwrap();
        (folder, path)
    }

    /// What a dump came to that did not come about, and what the stub was asked: the older one is there, and nothing else.
    fn failed(answers: Answers, interrupted: &AtomicBool) -> (String, Vec<String>) {
        let (folder, path) = folder();
        let (cable, questions) = stub(answers);
        let error = of_guest(&cable, 1, &path, interrupted).unwrap_err();
        assert_eq!(error.status(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), b"older", "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "{error}");
        (error.to_string(), questions.try_iter().collect())
    }

    #[test]
    fn a_dump_takes_the_place_of_an_older_one_when_the_guest_goes_on() {
        let (folder, path) = folder();
        let (cable, questions) = stub(Box::new(usual));
        let said = of_guest(&cable, 1, &path, &AtomicBool::new(false)).unwrap();
        assert!(said.contains("0 MiB of RAM"), "{said}");
        assert_eq!(questions.try_iter().last().unwrap(), "D;1");
        let core = std::fs::read(&path).unwrap();
        assert!(core.starts_with(b"\x7fELF"));
        assert_eq!(core[core.len() - 2 * PAGE..], [[5; PAGE], [0; PAGE]].concat());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// What a stub says to an earlier question is no answer to the next.
    #[test]
    fn a_dump_without_a_page_is_none() {
        let (folder, path) = folder();
        let mut late = Vec::new();
        let answer = move |question: &str| {
            if question == monitor("pages 1") {
                return [std::mem::take(&mut late), page(1, 6)].concat();
            }
            let answer = usual(question);
            if question == monitor("pages 0") && late.is_empty() {
                late.clone_from(&answer);
                return Vec::new();
            }
            answer
        };
        let (cable, _) = stub(Box::new(answer));
        let dumped = of_guest(&cable, 1, &path, &AtomicBool::new(false));
        let error = dumped.unwrap_err().to_string();
        assert!(error.starts_with("the stub's answer makes no sense"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn answers_that_come_twice_are_taken_once() {
        let (_folder, path) = folder();
        let mut asked = 0;
        let answer = move |question: &str| {
            if question == monitor("pages 1") {
                return page(1, 6);
            }
            let answer = usual(question);
            asked += usize::from(question == monitor("pages 0"));
            match asked {
                1 if question == monitor("pages 0") => Vec::new(),
                2 if question == monitor("pages 0") => [answer.clone(), answer].concat(),
                _ => answer,
            }
        };
        let (cable, _) = stub(Box::new(answer));
        of_guest(&cable, 1, &path, &AtomicBool::new(false)).unwrap();
        let core = std::fs::read(&path).unwrap();
        assert_eq!(core[core.len() - 2 * PAGE..], [[5; PAGE], [6; PAGE]].concat());
    }

    #[test]
    fn a_dump_that_is_interrupted_lets_the_guest_go_on() {
        // The stub answers what it was asked meanwhile, or does not.
        for (at, answers) in [("?", false), ("?", true), ("pages 0", false), ("pages 0", true)] {
            let interrupted = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&interrupted);
            let answer = move |question: &str| {
                let now = question == at || question == monitor(at);
                if now {
                    flag.store(true, Ordering::Relaxed);
                }
                if now && !answers { Vec::new() } else { usual(question) }
            };
            let (error, questions) = failed(Box::new(answer), &interrupted);
            assert_eq!(error, "interrupted: no dump was written");
            let [.., before, last] = questions.as_slice() else { panic!("{questions:?}") };
            assert!(
                *before == at || *before == monitor(at),
                "nothing more is asked: {questions:?}"
            );
            assert_eq!(last, "D;1");
        }
    }

    #[test]
    fn a_failure_is_not_hidden_by_a_guest_that_cannot_be_left() {
        let answer = |question: &str| match question {
            "qfThreadInfo" => vec!["m01".to_owned()],
            "g" => vec!["nonsense".to_owned()],
            "D;1" => vec!["E01".to_owned()],
            _ => usual(question),
        };
        let (error, _) = failed(Box::new(answer), &AtomicBool::new(false));
        assert!(error.starts_with("the guest's gdb stub says what makes no sense"), "{error}");
        assert!(error.contains("; the guest may still be stopped: "), "{error}");
    }

    #[test]
    fn a_guest_that_does_not_run_has_no_dump_and_is_not_left() {
        let refused = "E.the guest does not run: start it first";
        for (answer, expected) in [(refused, &refused[2..]), ("W00", "the guest has ended")] {
            let answers = Box::new(move |_: &str| vec![answer.to_owned()]);
            let (error, questions) = failed(answers, &AtomicBool::new(false));
            assert_eq!((error.as_str(), questions), (expected, vec!["?".to_owned()]));
        }
        // It ends while it is left.
        let answer = move |question: &str| match question {
            "D;1" => vec![refused.to_owned()],
            _ => usual(question),
        };
        let (_folder, path) = folder();
        let (cable, _) = stub(Box::new(answer));
        assert!(of_guest(&cable, 1, &path, &AtomicBool::new(false)).is_ok());
    }

    #[test]
    fn what_is_behind_the_progress_has_a_line_of_its_own() {
        let mut said = Vec::new();
        let mut progress = Progress::new(&mut said, Duration::ZERO, 4 << 20);
        progress.at(1 << 20);
        progress.at(2 << 20);
        drop(progress);
        assert_eq!(said, b"\rnexit: 1 of 4 MiB\rnexit: 2 of 4 MiB\n");
        let mut said = Vec::new();
        Progress::new(&mut said, TOLD, 0).at(0);
        assert_eq!(said, b"", "a short one needs no progress");
    }

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
