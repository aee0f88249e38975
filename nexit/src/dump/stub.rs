//! Talks to a guest's gdb stub as gdb does (GDB's manual, "Remote Protocol").
//!
//! A question that was not answered, or whose answer is damaged, is asked again: all that are asked here can be. Whether an
//! answer was lost or is late cannot be told: a machine is slow if it is an emulator on a busy host. So each further time waits
//! longer, and before another question is asked the late answers go by.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use debug::Fxsave;
use debug::registers::UpperHalves;

use crate::cable::Cable;
use crate::failure::{Failure, Result};

/// How long the stub may be silent, at first and at most, and how long it is when there is nothing more to come. Tests have no
/// slow machines.
const SILENT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
const MAX_SILENT: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_millis(500);
const TRIES: usize = 4;
/// How often it is looked whether the user has interrupted the dump.
const LOOK: Duration = Duration::from_millis(250);
/// No answer of the stub's is longer.
const MAX_ANSWER: usize = 1 << 20;

/// The stub of one guest.
pub(super) struct Stub<'a> {
    cable: &'a Cable,
    guest: u8,
    /// What has come and was not looked at yet.
    came: Vec<u8>,
    /// How long it may be silent.
    patience: Duration,
    /// The last question was asked more than once: more than one answer may come.
    repeated: bool,
    /// The user has interrupted the dump.
    interrupted: &'a AtomicBool,
    /// The guest is let go on, which nothing interrupts.
    leaving: bool,
    /// A question was asked [`TRIES`] times, and nobody has answered.
    silent: bool,
    /// The guest does not run: nobody has stopped it.
    ended: bool,
}

/// A CPU's registers, those that a core file has and those by which addresses are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Registers {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
    pub(super) general: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u32,
    /// CS, SS, DS, ES, FS, GS.
    pub(super) segments: [u32; 6],
    /// Of FS and GS.
    pub(super) bases: [u64; 2],
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    /// The FPU's and SSE's, as FXSAVE stores them, and the upper halves of AVX's where the guest has these.
    pub(super) fpu: Fxsave,
    pub(super) upper: Option<UpperHalves>,
}

/// So long is what the stub says of a CPU with AVX's registers.
const WITH_UPPER: usize = 656 + size_of::<UpperHalves>();

impl Registers {
    /// In the order of the stub's target description.
    fn of(bytes: &[u8]) -> Option<Self> {
        let quad = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let double = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let mut registers = Self { rip: quad(128)?, rflags: double(136)?, ..Self::default() };
        for (index, register) in registers.general.iter_mut().enumerate() {
            *register = quad(8 * index)?;
        }
        for (index, segment) in registers.segments.iter_mut().enumerate() {
            *segment = double(140 + 4 * index)?;
        }
        let mut fpu = Fxsave::of_any_cpu();
        fpu.set(bytes.get(164..)?)?;
        // Behind the registers of the FPU and of SSE.
        let upper = bytes.get(536..)?.first_chunk().filter(|_| bytes.len() >= WITH_UPPER).copied();
        let at = if upper.is_some() { 536 + size_of::<UpperHalves>() } else { 536 };
        let bases = [quad(at)?, quad(at + 8)?];
        let [cr0, cr3] = [quad(at + 16)?, quad(at + 32)?];
        let [cr4, efer] = [quad(at + 40)?, quad(at + 48)?];
        Some(Self { bases, cr0, cr3, cr4, efer, fpu, upper, ..registers })
    }
}

impl<'a> Stub<'a> {
    pub(super) const fn new(cable: &'a Cable, guest: u8, interrupted: &'a AtomicBool) -> Self {
        let came = Vec::new();
        let (patience, repeated, leaving) = (SILENT, false, false);
        let (silent, ended) = (false, false);
        Self { cable, guest, came, patience, repeated, interrupted, leaving, silent, ended }
    }

    /// Has the guest stop.
    pub(super) fn stop(&mut self) -> Result<()> {
        match self.ask("?")?.first() {
            Some(b'S' | b'T') => Ok(()),
            Some(b'W' | b'X') => {
                self.ended = true;
                Err(Failure::Failed("the guest has ended".to_owned()))
            }
            _ => Err(nonsense()),
        }
    }

    /// Has it go on, also if the user has interrupted what was before.
    pub(super) fn leave(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.leaving = true;
        // The rest of an answer that nobody waited for is not the answer to this.
        if self.is_interrupted() {
            self.settle(QUIET)?;
            self.repeated = false;
        }
        for _ in 0..TRIES {
            match self.ask("D;1") {
                Err(_) if self.ended => return Ok(()),
                Err(failure) => return Err(failure),
                Ok(answer) if answer == b"OK" => return Ok(()),
                // It came late, of an earlier question.
                Ok(_) => self.settle(QUIET)?,
            }
        }
        Err(nonsense())
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// # Errors
    /// The user has interrupted the dump, and it is not about letting the guest go on.
    fn go_on(&self) -> Result<()> {
        if self.leaving || !self.is_interrupted() {
            return Ok(());
        }
        Err(Failure::Failed("interrupted: no dump was written".to_owned()))
    }

    /// What comes from the stub; `None` where nothing came in that time.
    fn next(&self, wait: Duration) -> Result<Option<Vec<u8>>> {
        let until = Instant::now() + wait;
        loop {
            self.go_on()?;
            let left = until.saturating_duration_since(Instant::now());
            let came = self.cable.next(self.guest, left.min(LOOK))?;
            if came.is_some() || left <= LOOK {
                return Ok(came);
            }
        }
    }

    pub(super) fn cpus(&mut self) -> Result<Vec<Registers>> {
        let list = self.ask("qfThreadInfo")?;
        let list = String::from_utf8_lossy(&list).into_owned();
        let mut cpus = Vec::new();
        for thread in list.trim_start_matches('m').split(',') {
            self.ask(&format!("Hg{thread}"))?;
            let registers = bytes_of(&self.ask("g")?);
            cpus.push(registers.and_then(|bytes| Registers::of(&bytes)).ok_or_else(nonsense)?);
        }
        Ok(cpus)
    }

    /// Where the RAM is, and how much.
    pub(super) fn ram(&mut self) -> Result<Vec<(u64, u64)>> {
        let said = self.monitor("ram")?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
        let range = |line: &str| line.split_once(' ').and_then(|(a, b)| number(a).zip(number(b)));
        said.lines().map(|line| range(line).ok_or_else(nonsense)).collect()
    }

    /// Packed pages from this one on.
    pub(super) fn pages(&mut self, first: u64) -> Result<Vec<u8>> {
        self.monitor(&format!("pages {first}"))
    }

    fn monitor(&mut self, command: &str) -> Result<Vec<u8>> {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        let answer = self.ask(&format!("qRcmd,{hex}"))?;
        answer.strip_prefix(b"O").and_then(bytes_of).ok_or_else(nonsense)
    }

    /// The first packet of the answer.
    fn ask(&mut self, question: &str) -> Result<Vec<u8>> {
        let sum = question.bytes().fold(0_u8, u8::wrapping_add);
        let packet = format!("${question}#{sum:02x}");
        if std::mem::take(&mut self.repeated) {
            self.settle(self.patience)?;
        }
        // Who has not answered before is asked once: most likely there is nobody.
        for _ in 0..if self.silent { 1 } else { TRIES } {
            self.go_on()?;
            self.came.clear();
            self.send(packet.as_bytes())?;
            let first = self.packet()?;
            let Some(first) = first else {
                self.before_again()?;
                continue;
            };
            // To whatever is asked of a guest that does not run.
            if let Some(why) = first.strip_prefix(b"E.") {
                self.ended = true;
                return Err(Failure::Failed(String::from_utf8_lossy(why).into_owned()));
            }
            let is_text = first.first() == Some(&b'O') && first != b"OK";
            if !is_text {
                return Ok(first);
            }
            // The text of a monitor command, behind which the stub says that it is done.
            if self.packet()?.is_some_and(|end| end == b"OK") {
                return Ok(first);
            }
            self.before_again()?;
        }
        self.silent = true;
        let text = "the guest's gdb stub does not answer: has the guest ended, or is the line bad?";
        Err(Failure::Failed(text.to_owned()))
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        use std::io::Write as _;
        let sent = self.cable.writer(self.guest).write_all(bytes);
        sent.map_err(|error| Failure::Failed(format!("cannot send to the guest's stub: {error}")))
    }

    /// The next packet, acknowledged; `None` where none comes, or a damaged one.
    fn packet(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some((length, packet)) = find(&self.came) {
                self.came.drain(..length);
                self.send(b"+")?;
                return Ok(packet);
            }
            match self.next(self.patience)? {
                Some(bytes) if self.came.len() < MAX_ANSWER => self.came.extend(bytes),
                _ => return Ok(None),
            }
        }
    }

    /// There was no answer, or a damaged one.
    fn before_again(&mut self) -> Result<()> {
        self.repeated = true;
        self.patience = (2 * self.patience).min(MAX_SILENT);
        self.settle(QUIET)
    }

    /// Waits until nothing more comes for so long.
    fn settle(&mut self, quiet: Duration) -> Result<()> {
        while self.next(quiet)?.is_some() {}
        Ok(())
    }
}

fn nonsense() -> Failure {
    Failure::Failed("the guest's gdb stub says what makes no sense: is it this version's?".into())
}

/// The first packet of what has come: how far it reaches, and what is in it if it is not damaged.
fn find(came: &[u8]) -> Option<(usize, Option<Vec<u8>>)> {
    let start = came.iter().position(|byte| *byte == b'$')? + 1;
    let within = came.get(start..)?;
    let length = within.iter().position(|byte| *byte == b'#')?;
    let (within, rest) = within.split_at(length);
    let sum = rest.get(1..3)?;
    let said = std::str::from_utf8(sum).ok().and_then(|sum| u8::from_str_radix(sum, 16).ok());
    let right = said == Some(within.iter().copied().fold(0, u8::wrapping_add));
    Some((start + length + 3, right.then(|| expanded(within))))
}

/// Without run-length encoding: a byte, `*`, and how often it comes again, plus 29.
fn expanded(packet: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(packet.len());
    let mut bytes = packet.iter();
    while let Some(byte) = bytes.next() {
        match (byte, plain.last().copied()) {
            (b'*', Some(last)) => {
                let more = bytes.next().map_or(0, |count| count.saturating_sub(29));
                plain.extend(std::iter::repeat_n(last, more.into()));
            }
            _ => plain.push(*byte),
        }
    }
    plain
}

/// Hexadecimal digits as bytes; what the stub does not know, `xx`, is zero.
fn bytes_of(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| if byte == b'x' { Some(0) } else { char::from(byte).to_digit(16) };
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_found_behind_acknowledgements_and_a_damaged_one_is_known() {
        assert_eq!(find(b"+$OK#9a$"), Some((7, Some(b"OK".to_vec()))));
        assert_eq!(find(b"$OK#9b"), Some((6, None)));
        assert_eq!(find(b"+$OK#9"), None, "more comes");
        assert_eq!(find(b"$0*\"#7c"), Some((7, Some(b"000000".to_vec()))));
    }

    #[test]
    fn registers_are_where_the_target_description_has_them() {
        let bytes: Vec<u8> = (0..700_usize).map(|at| (at / 8) as u8).collect();
        let registers = Registers::of(&bytes).unwrap();
        assert_eq!(registers.general[15], 0x0f0f_0f0f_0f0f_0f0f);
        assert_eq!(registers.rip, 0x1010_1010_1010_1010);
        assert_eq!(registers.bases[0], 0x4343_4343_4343_4343);
        assert_eq!(registers.efer, 0x4949_4949_4949_4949);
        assert_eq!(registers.fpu.0[32..42], [20, 20, 20, 20, 21, 21, 21, 21, 21, 21], "ST0");
        assert_eq!(registers.upper, None);
        let bytes: Vec<u8> = (0..WITH_UPPER).map(|at| (at / 8) as u8).collect();
        let with = Registers::of(&bytes).unwrap();
        assert_eq!(with.upper.unwrap()[0], 0x43);
        assert_eq!((with.bases[0], with.efer), (0x6363_6363_6363_6363, 0x6969_6969_6969_6969));
        assert_eq!(Registers::of(&bytes[..500]), None);
        assert_eq!(bytes_of(b"0aFfxx"), Some(vec![10, 255, 0]));
        assert_eq!(bytes_of(b"0"), None);
    }
}
