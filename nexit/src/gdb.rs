//! gdb's way to a guest: a port of the loopback, and the machine's second serial line behind it.
//!
//! The emulator connects to this program once, and gdb as often as it likes. A gdb that goes without a word leaves the guest
//! as it is; the next one finds it so.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use config::{Config, Uart};

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
        let guest = config.guests.iter().find(|guest| guest.gdb == Some(Uart::Com2));
        let Some(guest) = guest else {
            let text = "--gdb: no guest of the configuration has gdb = \"COM2\": add it there";
            return Err(Failure::Usage(text.to_owned()));
        };
        let listen = |port| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            listener.and_then(|listener| Ok((listener.local_addr()?, listener)))
        };
        let refused =
            |error| Failure::Failed(format!("cannot listen for gdb at port {port}: {error}"));
        let (gdb_at, gdb) = listen(port).map_err(refused)?;
        let (machine_at, machine) = listen(0).map_err(refused)?;
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
            let gdb = Arc::new(Mutex::new(None::<TcpStream>));
            let (from, to) = (machine.try_clone(), Arc::clone(&gdb));
            thread::spawn(move || from.map(|from| to_gdb(from, &to)));
            for stream in self.gdb.incoming().flatten() {
                let _ = stream.set_nodelay(true);
                *gdb.lock().unwrap_or_else(PoisonError::into_inner) = stream.try_clone().ok();
                to_machine(stream, &machine);
            }
        });
    }
}

/// What nobody is there for is lost, as on any line.
fn to_gdb(mut from: TcpStream, gdb: &Mutex<Option<TcpStream>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..length).unwrap_or_default();
        if let Some(gdb) = &mut *gdb.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = gdb.write_all(bytes);
        }
    }
}

fn to_machine(mut from: TcpStream, mut machine: &TcpStream) {
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
    fn without_a_guest_that_has_one_there_is_no_gdb() {
        let error = Relay::open(0, &config("")).err().unwrap();
        assert!(error.to_string().contains("gdb = \"COM2\""), "{error}");
    }
}
