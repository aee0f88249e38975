//! gdb's way to a guest: a port of the loopback, and behind it the machine's second serial line, or frames on the first
//! ([`serve`]).
//!
//! The emulator connects to this program once, and gdb as often as it likes. A gdb that goes without a word leaves the guest
//! as it is; the next one finds it so.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use config::{Config, Uart};

use crate::attach;
use crate::cable::Cable;
use crate::cli::GdbArgs;
use crate::failure::{Failure, Result};

/// The two ends, before anybody has come to either.
pub(crate) struct Relay {
    machine: TcpListener,
    machine_at: SocketAddr,
    gdb: TcpListener,
}

impl Relay {
    /// Listens for gdb at `port` of the loopback.
    ///
    /// # Errors
    /// No guest has a gdb, or the port is taken.
    pub(crate) fn open(port: u16, config: &Config) -> Result<Self> {
        let guest =
            config.guests.iter().find(|guest| guest.gdb == Some(config::Gdb::Uart(Uart::Com2)));
        let Some(guest) = guest else {
            let text = "--gdb: no guest of the configuration has gdb = \"COM2\": add it there; to a guest with \
                        gdb = \"console\" goes `nexit gdb GUEST`, while this runs";
            return Err(Failure::Usage(text.to_owned()));
        };
        let (gdb, gdb_at) = listen(port)?;
        let (machine, machine_at) = listen(0)?;
        println!("nexit: guest {}: gdb: target remote {gdb_at}", guest.name);
        Ok(Self { machine, machine_at, gdb })
    }

    /// Arguments of QEMU for the second serial line.
    pub(crate) fn for_qemu(&self) -> [String; 4] {
        let (host, port) = (self.machine_at.ip(), self.machine_at.port());
        let line = format!("socket,id=gdb,host={host},port={port}");
        ["-chardev".to_owned(), line, "-serial".to_owned(), "chardev:gdb".to_owned()]
    }

    /// A line of the configuration of Bochs for it.
    pub(crate) fn for_bochs(&self) -> String {
        format!("com2: enabled=1, mode=socket-client, dev={}", self.machine_at)
    }

    /// Carries bytes between the two, in the background, as long as this program runs.
    pub(crate) fn start(self) {
        thread::spawn(move || {
            let Ok((machine, _)) = self.machine.accept() else { return };
            let gdb = Gdb::default();
            let (from, to) = (machine.try_clone(), Arc::clone(&gdb));
            thread::spawn(move || from.map(|from| to_gdb(from, &to)));
            accept(&self.gdb, &gdb, machine);
        });
    }
}

/// The gdb that is there.
type Gdb = Arc<Mutex<Option<TcpStream>>>;

/// A port of the loopback, and which.
fn listen(port: u16) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let refused = |error| Failure::Failed(format!("cannot listen for gdb at port {port}: {error}"));
    listener.map(|(at, listener)| (listener, at)).map_err(refused)
}

/// One gdb after the other.
fn accept(listener: &TcpListener, gdb: &Gdb, mut machine: impl Write) {
    for stream in listener.incoming().flatten() {
        let _ = stream.set_nodelay(true);
        *lock(gdb) = stream.try_clone().ok();
        to_machine(stream, &mut machine);
    }
}

fn lock(gdb: &Gdb) -> MutexGuard<'_, Option<TcpStream>> {
    gdb.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `nexit gdb`: until the line ends, or the gdb that was started.
///
/// # Errors
/// There is no such line or guest, the line has ended, or gdb cannot be started.
pub(crate) fn serve(args: &GdbArgs) -> Result<()> {
    let cable = Cable::new(attach::open(&args.line)?);
    let guest = cable.find(&args.guest)?;
    let (listener, at) = listen(args.port)?;
    println!("nexit: guest {}: gdb: target remote {at}", args.guest);
    if !args.start {
        return Err(relay(&cable, guest, listener, io::sink()));
    }
    thread::spawn(move || relay(&cable, guest, listener, io::stderr()));
    // Ctrl-C is gdb's.
    ctrlc::set_handler(|| {})
        .map_err(|error| Failure::Failed(format!("cannot take signals: {error}")))?;
    let attach = format!("target remote {at}");
    // The line is slow, and the guest stops when its CPU comes by: gdb's own 2 s may be too few.
    let patience = ["-ex", "set remotetimeout 30"];
    let status =
        Command::new("gdb").args(patience).args(["-ex", &attach]).args(&args.gdb_args).status();
    let status = status.map_err(|error| Failure::Failed(format!("cannot start gdb: {error}")))?;
    if status.success() { Ok(()) } else { Err(Failure::Failed(format!("gdb ended: {status}"))) }
}

/// Carries bytes between gdb and a guest's stub, until the line fails; `said` is told why, before gdb sees it.
fn relay(cable: &Cable, guest: u8, listener: TcpListener, mut said: impl Write) -> Failure {
    let (gdb, writer) = (Gdb::default(), cable.writer(guest));
    let current = Arc::clone(&gdb);
    thread::spawn(move || accept(&listener, &current, writer));
    loop {
        match cable.next(guest, Duration::from_secs(3600)) {
            Ok(bytes) => {
                if let (Some(gdb), Some(bytes)) = (&mut *lock(&gdb), bytes) {
                    let _ = gdb.write_all(&bytes);
                }
            }
            Err(failure) => {
                // gdb may have begun a line.
                let _ = writeln!(said, "\nnexit: {failure}");
                if let Some(gdb) = &*lock(&gdb) {
                    let _ = gdb.shutdown(Shutdown::Both);
                }
                return failure;
            }
        }
    }
}

/// What nobody is there for is lost, as on any line.
fn to_gdb(mut from: TcpStream, gdb: &Gdb) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..length).unwrap_or_default();
        if let Some(gdb) = &mut *lock(gdb) {
            let _ = gdb.write_all(bytes);
        }
    }
}

fn to_machine(mut from: TcpStream, machine: &mut impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if machine.write_all(buffer.get(..length).unwrap_or_default()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(gdb: &str) -> Config {
        let guest = "[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"16M\"\nkernel = \"k\"\n";
        config::parse(&format!("{guest}{gdb}")).unwrap()
    }

    #[test]
    fn one_gdb_after_the_other_reaches_the_machine_and_hears_it() {
        let relay = Relay::open(0, &config("gdb = \"COM2\"\n")).unwrap();
        let (gdb_at, machine_at) = (relay.gdb.local_addr().unwrap(), relay.machine_at);
        assert!(relay.for_qemu()[1].ends_with(&format!("port={}", machine_at.port())));
        assert!(relay.for_bochs().ends_with(&format!("dev={machine_at}")));
        relay.start();
        let mut machine = TcpStream::connect(machine_at).unwrap();
        for _ in 0..2 {
            let mut gdb = TcpStream::connect(gdb_at).unwrap();
            gdb.write_all(b"$?#3f").unwrap();
            let mut bytes = [0; 5];
            machine.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"$?#3f");
            machine.write_all(b"+").unwrap();
            let mut answer = [0];
            gdb.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"+");
        }
    }

    #[test]
    fn a_guest_at_the_console_is_reached_by_frames() {
        let (cable, listener) = (Cable::new(crate::cable::tests::echo()), listen(0).unwrap());
        let at = listener.1;
        let relay = thread::spawn(move || relay(&cable, 1, listener.0, io::sink()));
        for _ in 0..2 {
            let mut gdb = TcpStream::connect(at).unwrap();
            gdb.write_all(b"$?#3f").unwrap();
            let mut bytes = [0; 5];
            gdb.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"$?#3f");
        }
        assert!(!relay.is_finished());
    }

    /// Takes what is said at once, and is looked at from elsewhere.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn why_the_line_has_ended_is_said_before_gdb_sees_it() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let line = attach::Line { from: Box::new(ours.try_clone().unwrap()), to: Box::new(ours) };
        let (cable, listener, said) = (Cable::new(line), listen(0).unwrap(), Said::default());
        let (at, hears) = (listener.1, said.clone());
        let relay = thread::spawn(move || relay(&cable, 1, listener.0, hears));
        let mut gdb = TcpStream::connect(at).unwrap();
        gdb.write_all(b"+").unwrap();
        // A frame: this gdb is the one that is there.
        (&theirs).read_exact(&mut [0]).unwrap();
        drop(theirs);
        assert_eq!(gdb.read(&mut [0]).unwrap(), 0);
        assert_eq!(*said.0.lock().unwrap(), b"\nnexit: the line has ended\n");
        assert_eq!(relay.join().unwrap().to_string(), "the line has ended");
    }

    #[test]
    fn without_a_guest_that_has_one_there_is_no_gdb() {
        let error = Relay::open(0, &config("")).err().unwrap();
        assert!(error.to_string().contains("gdb = \"COM2\""), "{error}");
    }
}
