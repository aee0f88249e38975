//! The machine's serial line, for more than one: `nexit run` offers it at a Unix socket, and other programs attach there.
//!
//! What the machine sends goes to each of them as it comes, unfiltered: the hypervisor's marks, its reports and all. What
//! they send goes to the machine, as if it was typed. Who attaches late gets the last lines first ([`heard`]), and who does not
//! read is cut off: the run waits for nobody.
//!
//! The socket is in a folder of the user's own ([`folder`]), its name is the process number of `nexit run`.

use std::cell::RefCell;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use mux::ESCAPE;
use mux::frame::{Splitter, encode};
use rustix::fs::{Mode, OFlags};
use rustix::process::getuid;
use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};

use self::heard::Heard;
use crate::cli::LineArgs;
use crate::failure::{Failure, OrFailed as _, Result};

mod heard;

/// So many bytes of output wait at most for one who does not read. Bytes and not pieces, which may be as small as a UART's
/// FIFO: on a busy host they come faster than a program that reads.
const MAX_WAITING: usize = 4 << 20;
/// The rate of the hypervisor's console.
pub(crate) const BAUD: u32 = 115_200;

/// Who is attached, and what they have heard.
#[derive(Default)]
struct Attached {
    to: Vec<Way>,
    heard: Heard,
}

/// To one who is attached: pieces of output, and how many bytes of them it has not yet taken.
struct Way {
    pieces: Sender<Arc<[u8]>>,
    waiting: Arc<AtomicUsize>,
}

impl Way {
    /// `false`: it is gone, or does not read.
    fn send(&self, piece: Arc<[u8]>) -> bool {
        let before = self.waiting.fetch_add(piece.len(), Ordering::Relaxed);
        before < MAX_WAITING && self.pieces.send(piece).is_ok()
    }
}

impl Attached {
    /// One more, who gets what was before and nothing twice.
    fn add(&mut self) -> (Receiver<Arc<[u8]>>, Arc<AtomicUsize>) {
        let ((pieces, receiver), waiting) = (mpsc::channel(), Arc::default());
        let way = Way { pieces, waiting: Arc::clone(&waiting) };
        way.send(self.heard.lines().into());
        self.to.push(way);
        (receiver, waiting)
    }
}

/// The line of a run, offered until this goes.
pub struct Offer {
    place: PathBuf,
    listener: UnixListener,
    attached: Arc<Mutex<Attached>>,
}

impl Offer {
    /// Listens where [`open`] looks. Who comes is served from [`Offer::start`] on.
    ///
    /// # Errors
    /// There is no place for the socket.
    pub fn open() -> Result<Self> {
        Self::at(&folder()?.join(std::process::id().to_string()))
    }

    fn at(place: &Path) -> Result<Self> {
        // Of an earlier process of that number.
        let _ = fs::remove_file(place);
        let listener = UnixListener::bind(place).or_failed("listen at", place)?;
        Ok(Self { place: place.to_owned(), listener, attached: Arc::default() })
    }

    /// Lets others attach, in the background; what they send goes to `machine`.
    pub fn start(&self, machine: Sender<Vec<u8>>) {
        let Ok(listener) = self.listener.try_clone() else { return };
        let attached = Arc::clone(&self.attached);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(to) = stream.try_clone() else { continue };
                let (pieces, waiting) = lock(&attached).add();
                thread::spawn(move || carry_to(to, pieces, &waiting));
                let machine = machine.clone();
                thread::spawn(move || carry_from(stream, &machine));
            }
        });
    }

    /// Gives all who are attached what the machine has sent.
    pub fn show(&self, bytes: &[u8]) {
        let mut attached = lock(&self.attached);
        attached.heard.keep(bytes);
        let bytes: Arc<[u8]> = bytes.into();
        attached.to.retain(|to| to.send(Arc::clone(&bytes)));
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.place);
    }
}

fn lock(attached: &Mutex<Attached>) -> MutexGuard<'_, Attached> {
    attached.lock().unwrap_or_else(PoisonError::into_inner)
}

/// To one who is attached, until it goes or is cut off.
fn carry_to(mut to: UnixStream, pieces: Receiver<Arc<[u8]>>, waiting: &AtomicUsize) {
    for bytes in pieces {
        if to.write_all(&bytes).is_err() {
            break;
        }
        waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
    }
    // It sees that it was cut off, even if it only reads.
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Frames go on in one piece, so that nobody cuts into another's.
fn carry_from(mut from: UnixStream, machine: &Sender<Vec<u8>>) {
    let (mut splitter, mut buffer) = (Splitter::new(ESCAPE), [0; 4096]);
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = RefCell::new(Vec::with_capacity(length));
        for byte in buffer.get(..length).unwrap_or_default() {
            let mut push = |byte| bytes.borrow_mut().push(byte);
            splitter.push(*byte, &mut push, &mut |channel, payload| {
                let mut whole = bytes.borrow_mut();
                encode(ESCAPE, channel, payload, &mut |byte| whole.push(byte));
            });
        }
        if machine.send(bytes.into_inner()).is_err() {
            return;
        }
    }
}

/// Where sockets of runs are: a folder that only this user can enter, as whoever reaches a socket has the machine.
///
/// # Errors
/// It cannot be made, or is another user's.
pub fn folder() -> Result<PathBuf> {
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(own) if Path::new(&own).is_dir() => PathBuf::from(own).join("nexit"),
        _ => std::env::temp_dir().join(format!("nexit-{}", getuid().as_raw())),
    };
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
    .or_failed("make", &folder)?;
    let found = fs::symlink_metadata(&folder).or_failed("look at", &folder)?;
    if !found.is_dir() || found.uid() != getuid().as_raw() || found.mode() & 0o077 != 0 {
        let text = "is not a folder that only you can enter: remove it";
        return Err(Failure::Failed(format!("{} {text}", folder.display())));
    }
    Ok(folder)
}

/// A machine's serial line, from outside: two ends of one thing, so that two threads can have them.
pub struct Line {
    /// What the machine sends.
    pub from: Box<dyn Read + Send>,
    /// To the machine.
    pub to: Box<dyn Write + Send>,
}

/// The line of the one `nexit run` of this user; or `named`: a serial device (at `baud`) or the socket of a run by its
/// path, or a TCP socket as `HOST:PORT`.
///
/// # Errors
/// There is none, or there are several, or it cannot be opened.
pub(crate) fn open(args: &LineArgs) -> Result<Line> {
    match &args.line {
        Some(name) => open_named(name, args.baud),
        None => the_one(&running(&folder()?)),
    }
}

fn open_named(name: &str, baud: u32) -> Result<Line> {
    let path = Path::new(name);
    if let Ok(found) = fs::metadata(path) {
        return if found.file_type().is_socket() { socket(path) } else { device(path, baud) };
    }
    let is_address = name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !is_address {
        let text = "neither a serial device or socket that exists, nor HOST:PORT";
        return Err(Failure::Usage(format!("--line {name}: that is {text}")));
    }
    let stream = TcpStream::connect(name).or_failed("connect to", path)?;
    let _ = stream.set_nodelay(true);
    Ok(Line { from: Box::new(stream.try_clone().or_failed("use", path)?), to: Box::new(stream) })
}

fn socket(path: &Path) -> Result<Line> {
    let stream = UnixStream::connect(path).or_failed("connect to", path)?;
    Ok(Line { from: Box::new(stream.try_clone().or_failed("use", path)?), to: Box::new(stream) })
}

/// A serial device at this rate, with nothing done to its bytes.
fn device(path: &Path, baud: u32) -> Result<Line> {
    // NONBLOCK: the opening does not wait for a carrier. Three wires have none.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
    let file = File::from(file.or_failed("open", path)?);
    let set = || -> rustix::io::Result<()> {
        let mut modes = tcgetattr(&file)?;
        modes.make_raw();
        modes.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        modes.set_speed(baud)?;
        tcsetattr(&file, OptionalActions::Now, &modes)?;
        rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? - OFlags::NONBLOCK)
    };
    set().map_err(io::Error::from).or_failed("set the rate of", path)?;
    Ok(Line { from: Box::new(file.try_clone().or_failed("use", path)?), to: Box::new(file) })
}

/// The sockets at which runs answer. Those of runs that were killed go.
fn running(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.retain(|path| match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                let _ = fs::remove_file(path);
            }
            false
        }
    });
    paths
}

fn the_one(paths: &[PathBuf]) -> Result<Line> {
    match paths {
        [] => Err(Failure::Usage(
            "no `nexit run` of yours is running: start one, or name a line by --line".to_owned(),
        )),
        [path] => socket(path),
        several => {
            let list: Vec<String> = several.iter().map(|it| it.display().to_string()).collect();
            let list = list.join(" ");
            Err(Failure::Usage(format!("several runs are there: name one by --line: {list}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(line: &str) -> LineArgs {
        LineArgs { line: Some(line.to_owned()), baud: BAUD }
    }

    fn offer(place: &Path) -> (Offer, Receiver<Vec<u8>>) {
        let offer = Offer::at(place).unwrap();
        let (sender, receiver) = mpsc::channel();
        offer.start(sender);
        (offer, receiver)
    }

    /// Attaches, and has typed a byte: from then on it hears.
    fn attach(place: &Path, typed: &Receiver<Vec<u8>>) -> Line {
        let mut line = open(&named(place.to_str().unwrap())).unwrap();
        line.to.write_all(b"x").unwrap();
        assert_eq!(typed.recv().unwrap(), b"x");
        line
    }

    #[test]
    fn all_who_attach_hear_the_machine_and_can_type() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("1");
        let (offer, typed) = offer(&place);
        let mut lines = [attach(&place, &typed), attach(&place, &typed)];
        offer.show(b"\x1enexit: a\r\n");
        for line in &mut lines {
            let mut heard = [0; 11];
            line.from.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"\x1enexit: a\r\n");
        }
    }

    #[test]
    fn one_who_attaches_late_hears_what_was_before() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("1");
        let (offer, typed) = offer(&place);
        offer.show(b"\x1enexit: a\r\nfirst:");
        let mut late = attach(&place, &typed);
        offer.show(b" b\r\n");
        let mut heard = [0; 21];
        late.from.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"\x1enexit: a\r\nfirst: b\r\n");
    }

    #[test]
    fn one_who_does_not_read_is_cut_off_and_the_others_hear_all() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("1");
        let (offer, typed) = offer(&place);
        let mut deaf = attach(&place, &typed);
        let mut other = attach(&place, &typed);
        let piece = [b'x'; 4096];
        // Far more than a socket and the queue hold.
        let pieces = 4 * MAX_WAITING / piece.len();
        for _ in 0..pieces {
            offer.show(&piece);
            other.from.read_exact(&mut piece.clone()).unwrap();
        }
        assert_eq!(lock(&offer.attached).to.len(), 1);
        let mut heard = Vec::new();
        deaf.from.read_to_end(&mut heard).unwrap();
        assert!(heard.len() < pieces * piece.len(), "it was told the end");
    }

    #[test]
    fn one_who_reads_slowly_loses_nothing_of_many_small_pieces() {
        const PIECES: usize = 200_000;
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("1");
        let (offer, typed) = offer(&place);
        let mut slow = attach(&place, &typed);
        (0..PIECES).for_each(|_| offer.show(b"0123456789abcdef"));
        let mut heard = vec![0; 16 * PIECES];
        slow.from.read_exact(&mut heard).unwrap();
        assert!(heard.chunks(16).all(|piece| piece == b"0123456789abcdef"));
    }

    #[test]
    fn the_run_that_is_alone_is_found_and_what_a_killed_one_left_goes() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name| folder.path().join(name);
        assert!(running(folder.path()).is_empty());
        assert!(the_one(&[]).err().unwrap().to_string().contains("no `nexit run`"));
        drop(UnixListener::bind(place("7")).unwrap());
        let first = Offer::at(&place("8")).unwrap();
        assert_eq!(running(folder.path()), [place("8")]);
        assert!(!place("7").exists());
        assert!(the_one(&running(folder.path())).is_ok());
        let _second = Offer::at(&place("9")).unwrap();
        let error = the_one(&running(folder.path())).err().unwrap().to_string();
        assert!(error.contains(place("9").to_str().unwrap()), "{error}");
        drop(first);
        assert_eq!(running(folder.path()), [place("9")]);
    }

    /// A pseudo-terminal is a serial device but for its wires: what a terminal would change comes through as it is.
    #[test]
    fn a_serial_device_carries_every_byte_both_ways_at_its_rate() {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let far = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&far).and_then(|()| unlockpt(&far)).unwrap();
        let name = ptsname(&far, Vec::new()).unwrap().into_string().unwrap();
        let mut far = File::from(far);
        let mut line = open(&LineArgs { line: Some(name), baud: 57_600 }).unwrap();
        assert_eq!(tcgetattr(&far).unwrap().output_speed(), 57_600);
        let all: Vec<u8> = (0..=255).collect();
        let mut heard = [0; 256];
        line.to.write_all(&all).unwrap();
        far.read_exact(&mut heard).unwrap();
        assert_eq!(heard[..], all);
        far.write_all(&all).unwrap();
        heard.fill(0);
        line.from.read_exact(&mut heard).unwrap();
        assert_eq!(heard[..], all);
    }

    #[test]
    fn a_line_is_a_device_a_socket_or_an_address() {
        let error = |name| open(&named(name)).err().unwrap().to_string();
        assert!(error("/nowhere").contains("neither a serial device"));
        assert!(error("somewhere:port").contains("nor HOST:PORT"));
        assert!(error("127.0.0.1:1").contains("cannot connect to 127.0.0.1:1"));
        assert!(error("/dev/null").contains("cannot set the rate of /dev/null"));
    }
}
