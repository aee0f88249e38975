//! One run of an emulator: its process, its serial line, its end.
//!
//! Invariant: whatever happens (timeout, Ctrl-C, an error here), the process that was started is
//! gone, and the user's terminal as it was, when [`run`] returns.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use mux::frame::Splitter;
use rustix::process::{Pid, Signal, kill_process};

use crate::attach::Offer;
use crate::console::{Console, MARK};
use crate::failure::{Failure, Result};
use crate::terminal::{self, Terminal};
use crate::turn;
use crate::verdict::{Phase, Verdict};

/// An emulator, ready to start.
#[derive(Debug)]
pub(crate) struct Emulation {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    /// Where its serial line is.
    pub(crate) output: Output,
}

/// The machine's serial line on the host.
#[derive(Debug)]
pub(crate) enum Output {
    /// The process's standard output and input.
    Pipe,
    /// A connection that the process makes.
    Socket {
        /// Accepts its connection.
        listener: TcpListener,
        /// The emulator's own log, shown if the run fails.
        log: PathBuf,
        /// Its standard error: there a plugin complains that Bochs does not take.
        errors: PathBuf,
        /// Files that an earlier run that was killed has left, and that this one may leave.
        locks: Vec<PathBuf>,
    },
}

/// What standard input is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Input {
    /// A terminal that belongs to another process.
    None,
    /// The user's terminal, where Ctrl-A x ends the run.
    Terminal,
    /// A file or a pipe: the machine gets every byte of it.
    Pipe,
}

/// How long the machine may take to power itself off after the last guest has ended.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How long an emulator may take to leave when it is asked to.
const LEAVE: Duration = Duration::from_secs(3);
/// How long an emulator's last words may take once its line is closed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often things that cannot be waited for are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Lines of the emulator's own log that are shown after a failure.
const LOG_LINES: usize = 5;

enum Event {
    Output(Vec<u8>),
    /// The emulator's own words, on its standard error.
    Said(Vec<u8>),
    Closed,
    /// The user ends the run: how.
    Interrupted(&'static str),
}

/// Runs the machine to its end, with its console on standard output, and passes every line to `verdict`. Meanwhile others
/// can [`attach`](crate::attach).
///
/// # Errors
/// `TimedOut`, or `Failed` if it cannot be started or was interrupted. `verdict` judges the guests.
pub(crate) fn run(
    emulation: Emulation,
    timeout: Option<Duration>,
    verdict: &mut Verdict,
) -> Result<()> {
    remove_locks(&emulation.output);
    let (sender, receiver) = mpsc::channel();
    // Before the terminal is taken, so that no signal leaves it so.
    catch_signals(sender.clone())?;
    let terminal = Terminal::take(io::stdin())?;
    let offer = Offer::open().map_err(|why| eprintln!("nexit: nobody can attach: {why}")).ok();
    let offer = offer.map(Arc::new);
    let mut child = start(&emulation)?;
    let dead = Arc::new(AtomicBool::new(false));
    let input = match &terminal {
        Some(_) => Input::Terminal,
        None if io::stdin().is_terminal() => Input::None,
        None => Input::Pipe,
    };
    let result = watch(&emulation, &mut child, sender, &dead, input, offer.clone())
        .and_then(|()| follow(&receiver, &mut child, &dead, timeout, verdict, offer.as_deref()));
    stop(&mut child);
    remove_locks(&emulation.output);
    if verdict.phase == Phase::Running {
        show_log(&emulation.output);
    }
    result
}

/// Signals that end the run.
fn catch_signals(sender: Sender<Event>) -> Result<()> {
    ctrlc::set_handler(move || drop(sender.send(Event::Interrupted("interrupted"))))
        .map_err(|error| Failure::Failed(format!("cannot take signals: {error}")))
}

/// Starts the process. One Bochs starts at a time, and again if it found no free port.
fn start(emulation: &Emulation) -> Result<Child> {
    let Output::Socket { listener, log, .. } = &emulation.output else {
        return spawn(emulation);
    };
    let refused = |error| Failure::Failed(format!("cannot take Bochs' line: {error}"));
    listener.set_nonblocking(true).map_err(refused)?;
    let turn = turn::take();
    let mut tries = 1;
    loop {
        let mut child = spawn(emulation)?;
        if turn.has_port(log, &mut child) || tries == turn::TRIES {
            return Ok(child);
        }
        // Connections that the ended process has left.
        while listener.accept().is_ok() {}
        remove_locks(&emulation.output);
        thread::sleep(turn::PAUSE);
        tries += 1;
    }
}

fn spawn(emulation: &Emulation) -> Result<Child> {
    let mut command = Command::new(&emulation.program);
    command.args(&emulation.arguments);
    match &emulation.output {
        // Standard input is what this program passes on.
        Output::Pipe => command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()),
        Output::Socket { errors, .. } => {
            let errors = fs::File::create(errors).map_or_else(|_| Stdio::null(), Stdio::from);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors)
        }
    };
    command.spawn().map_err(|error| {
        let advice = "`make setup` installs it";
        Failure::Failed(format!("cannot start {}: {error} ({advice})", emulation.program))
    })
}

/// Starts whatever brings events: the reader of the serial line, and, where standard input is ours
/// to read (`typed`) and not the emulator's, the reader of that.
fn watch(
    emulation: &Emulation,
    child: &mut Child,
    sender: Sender<Event>,
    dead: &Arc<AtomicBool>,
    input: Input,
    offer: Option<Arc<Offer>>,
) -> Result<()> {
    match (&emulation.output, child.stdout.take()) {
        (Output::Socket { listener, .. }, _) => {
            let refused = |error| Failure::Failed(format!("cannot take Bochs' line: {error}"));
            let (listener, dead) = (listener.try_clone().map_err(refused)?, Arc::clone(dead));
            thread::spawn(move || {
                let line = accept(&listener, &dead).map(|line| (line.try_clone(), line));
                if let Some((written, line)) = line {
                    if let Ok(written) = written {
                        pass_on(written, &sender, input, offer.as_deref());
                    }
                    read(line, &sender, Event::Output);
                }
                let _ = sender.send(Event::Closed);
            });
        }
        (Output::Pipe, Some(pipe)) => {
            if let Some(line) = child.stdin.take() {
                pass_on(line, &sender, input, offer.as_deref());
            }
            let said = child.stderr.take();
            let hears = sender.clone();
            let hears = thread::spawn(move || {
                if let Some(said) = said {
                    read(said, &hears, Event::Said);
                }
            });
            thread::spawn(move || {
                read(pipe, &sender, Event::Output);
                // What ended it is said before, but a program that it has started may hold that pipe open for longer.
                let patience = Instant::now() + LAST_WORDS;
                while !hears.is_finished() && Instant::now() < patience {
                    thread::sleep(TICK);
                }
                let _ = sender.send(Event::Closed);
            });
        }
        (Output::Pipe, None) => return Err(Failure::Failed("the emulator has no output".into())),
    }
    Ok(())
}

/// Passes on `input`, and what those send who attach, to the machine's serial line.
fn pass_on(
    line: impl Write + Send + 'static,
    sender: &Sender<Event>,
    input: Input,
    offer: Option<&Offer>,
) {
    let machine = terminal::carry(line);
    if let Some(offer) = offer {
        offer.start(machine.clone());
    }
    match input {
        Input::None => {}
        Input::Terminal => {
            eprintln!("nexit: Ctrl-A x ends the run, Ctrl-A h lists the other keys");
            let quit = sender.clone();
            let quit = move || drop(quit.send(Event::Interrupted("ended by Ctrl-A x")));
            terminal::forward(io::stdin(), machine, Some(quit));
        }
        Input::Pipe => terminal::forward(io::stdin(), machine, None::<fn()>),
    }
}

/// The emulator's connection, unless it is `dead` before it makes one.
fn accept(listener: &TcpListener, dead: &AtomicBool) -> Option<TcpStream> {
    while !dead.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((line, _)) => return line.set_nonblocking(false).is_ok().then_some(line),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TICK),
            Err(_) => break,
        }
    }
    None
}

/// Sends all bytes of `source` as such events.
fn read(mut source: impl Read, sender: &Sender<Event>, event: fn(Vec<u8>) -> Event) {
    let mut buffer = [0; 4096];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                if sender.send(event(bytes)).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The lines that end in `bytes`; what is behind them stays in `words`.
fn complete_lines(words: &mut Vec<u8>, bytes: &[u8]) -> Vec<String> {
    words.extend(bytes);
    let end = words.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let whole: Vec<u8> = words.drain(..end).collect();
    String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
}

/// The run itself: until the line closes, the verdict is clear, or time is up.
fn follow(
    receiver: &Receiver<Event>,
    child: &mut Child,
    dead: &AtomicBool,
    timeout: Option<Duration>,
    verdict: &mut Verdict,
    offer: Option<&Offer>,
) -> Result<()> {
    let start = Instant::now();
    let mut ended: Option<Instant> = None;
    let mut console = Console::default();
    let mut splitter = Splitter::new(MARK);
    let mut words = Vec::new();
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(Event::Output(bytes)) => {
                if let Some(offer) = offer {
                    offer.show(&bytes);
                }
                let mut rest = Vec::with_capacity(bytes.len());
                // Frames are for those who attach.
                for byte in bytes {
                    splitter.push(byte, &mut |byte| rest.push(byte), &mut |_, _| {});
                }
                show(&console.feed(&rest, |line| verdict.line(line)));
            }
            Ok(Event::Said(bytes)) => {
                let _ = io::stderr().write_all(&bytes);
                for line in complete_lines(&mut words, &bytes) {
                    verdict.line(&line);
                }
            }
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => {
                show(&console.finish());
                return Ok(());
            }
            Ok(Event::Interrupted(how)) => return Err(Failure::Failed(how.into())),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if matches!(child.try_wait(), Ok(Some(_))) {
            dead.store(true, Ordering::Release);
        }
        if verdict.phase == Phase::Halted {
            return Ok(());
        }
        if verdict.phase == Phase::Ended
            && ended.get_or_insert_with(Instant::now).elapsed() >= POWER_OFF
        {
            return Ok(());
        }
        if let Some(limit) = timeout.filter(|limit| start.elapsed() >= *limit) {
            let seconds = limit.as_secs();
            return Err(Failure::TimedOut(format!(
                "the run was ended after {seconds} s (timeout)"
            )));
        }
    }
}

/// A closed pipe on standard output does not stop the run.
fn show(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

/// Asks the process to leave, and makes it.
fn stop(child: &mut Child) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let asked = Instant::now();
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
    while asked.elapsed() < LEAVE {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        thread::sleep(TICK);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn remove_locks(output: &Output) {
    if let Output::Socket { locks, .. } = output {
        for lock in locks {
            let _ = fs::remove_file(lock);
        }
    }
}

/// The last complaints of the emulator's own log, and those of the plugin.
fn show_log(output: &Output) {
    if let Output::Socket { log, errors, .. } = output {
        let own = fs::read(errors).unwrap_or_default();
        let own = String::from_utf8_lossy(&own).into_owned();
        own.lines()
            .filter(|line| line.starts_with("vtd: "))
            .for_each(|line| eprintln!("bochs: {line}"));
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| is_complaint(line)).collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LOG_LINES));
        last.for_each(|line| eprintln!("bochs: {line}"));
    }
}

/// Bochs writes `TIMESTAMP`, a letter, `[DEVICE] text`; the letter is `e` for an error and `p` for a
/// panic.
fn is_complaint(line: &str) -> bool {
    let rest = line.trim_start_matches(|letter: char| letter.is_ascii_digit());
    rest.starts_with("e[") || rest.starts_with("p[")
}

/// Whether `program OPTION` prints `word`.
pub(crate) fn says(program: &str, option: &str, word: &str) -> Result<bool> {
    let output = Command::new(program).arg(option).stdin(Stdio::null()).output();
    let output = output.map_err(|error| {
        let advice = "`make setup` installs it";
        Failure::Failed(format!("cannot start {program}: {error} ({advice})"))
    })?;
    let contains = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(word);
    Ok(contains(&output.stdout) || contains(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_emulator_says_is_heard_line_by_line() {
        let mut words = Vec::new();
        assert_eq!(complete_lines(&mut words, b"KVM: en"), [""; 0]);
        assert_eq!(complete_lines(&mut words, b"try\r\nfailed\nCo"), ["KVM: entry", "failed"]);
        assert_eq!(complete_lines(&mut words, b"de=\n"), ["Code="]);
    }

    #[test]
    fn only_complaints_of_bochs_are_shown() {
        assert!(is_complaint("00573331732p[CPU0  ] >>PANIC<< exception"));
        assert!(is_complaint("00000000000e[PLUGIN] error"));
        assert!(!is_complaint("00573331732i[CPU0  ] | RIP=0000"));
        assert!(!is_complaint(""));
    }
}
