//! Gives an emulated machine other firmware tables: stops QEMU at the image's first instruction by its
//! gdb port, changes memory, and lets it go on ("gdb Remote Serial Protocol").

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::folder::{Folder, build_folder};
use crate::guest::Devices;
use crate::outcome::Outcome;
use crate::terminal::Session;

/// The memory of a machine that stands at the image's entry.
#[derive(Debug)]
pub struct Stopped {
    stream: TcpStream,
}

impl Folder {
    /// As [`Folder::run`], in QEMU and with its tables changed.
    ///
    /// # Panics
    /// When the machine cannot be stopped or its memory cannot be changed.
    #[must_use]
    pub fn run_with_tables(
        &self,
        toml: &str,
        options: &[&str],
        devices: &Devices,
        change: impl FnOnce(&mut Stopped),
    ) -> Outcome {
        let port = free_port();
        let listen = format!("tcp:127.0.0.1:{port}");
        let devices = devices.clone().and(&["-S", "-gdb", &listen]);
        thread::scope(|scope| {
            let run = scope.spawn(|| self.run(toml, options, &devices));
            let mut machine = Stopped::at_entry(port);
            change(&mut machine);
            machine.go_on();
            let outcome = run.join();
            assert!(outcome.is_ok(), "the run panicked");
            outcome.unwrap_or_default()
        })
    }
}

impl Session {
    /// As [`Session::start`], of a machine in QEMU and with its tables changed.
    ///
    /// # Panics
    /// As [`Session::start`], or when the machine cannot be stopped or its memory cannot be changed.
    #[must_use]
    pub fn start_with_tables(arguments: &[&str], change: impl FnOnce(&mut Stopped)) -> Self {
        let port = free_port();
        let listen = format!("tcp:127.0.0.1:{port}");
        let session = Self::start(&[arguments, &["-S", "-gdb", &listen]].concat());
        let mut machine = Stopped::at_entry(port);
        change(&mut machine);
        machine.go_on();
        session
    }
}

/// Commands of QEMU's monitor that write a register in configuration space, of a device on bus 0.
#[must_use]
pub fn config_write(device: u8, offset: u8, value: u32) -> [String; 2] {
    let address = 1 << 31 | u32::from(device) << 11 | u32::from(offset);
    [(0xcf8, address), (0xcfc, value)].map(|(port, value)| format!("o /w {port:#x} {value:#x}"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    assert!(address.is_ok(), "no port: {address:?}");
    address.map(|address| address.port()).unwrap_or_default()
}

/// The image's entry, from its ELF header.
fn entry() -> u64 {
    let path = build_folder().join("x86_64-hypervisor/release/kernel");
    let image = std::fs::read(&path).unwrap_or_default();
    let entry = image.get(24..32).and_then(|bytes| bytes.first_chunk().copied());
    assert!(entry.is_some(), "{} is no image", path.display());
    u64::from_le_bytes(entry.unwrap_or_default())
}

impl Stopped {
    fn at_entry(port: u16) -> Self {
        const TRIES: u32 = 600;
        let connect = || {
            thread::sleep(Duration::from_millis(100));
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
        };
        let stream = (0..TRIES).find_map(|_| connect());
        assert!(stream.is_some(), "QEMU does not listen at port {port}");
        let mut machine = stream.map(|stream| Self { stream }).unwrap_or_else(|| unreachable!());
        let entry = entry();
        assert_eq!(machine.ask(&format!("Z1,{entry:x},1")), "OK", "a breakpoint at {entry:#x}");
        let stopped = machine.ask("c");
        assert!(stopped.starts_with('T'), "{stopped}");
        assert_eq!(machine.ask(&format!("z1,{entry:x},1")), "OK");
        machine
    }

    fn go_on(mut self) {
        self.send("D");
    }

    /// All tables that the RSDP of the BIOS area leads to: name and address.
    ///
    /// # Panics
    /// When there is no such RSDP.
    pub fn tables(&mut self) -> Vec<(String, u64)> {
        let root = self.root();
        let length = u64::from(self.word(root + 4));
        let entries = (root + 36..root + length).step_by(4);
        entries
            .map(|entry| {
                let at = u64::from(self.word(entry));
                (String::from_utf8_lossy(&self.read(at, 4)).into_owned(), at)
            })
            .collect()
    }

    /// The RSDT: SeaBIOS has no XSDT.
    fn root(&mut self) -> u64 {
        let rsdp = self.rsdp();
        u64::from(self.word(rsdp + 16))
    }

    fn rsdp(&mut self) -> u64 {
        const BIOS: u64 = 0xe_0000;
        let area = self.read(BIOS, 0x2_0000);
        let rsdp = area.chunks_exact(16).position(|chunk| chunk.starts_with(b"RSD PTR "));
        assert!(rsdp.is_some(), "no RSDP");
        BIOS + 16 * rsdp.unwrap_or_default() as u64
    }

    /// Makes the root table's entry for this table a null pointer.
    pub fn forget(&mut self, name: &str) {
        self.point(name, 0);
    }

    /// Makes the table longer by these bytes. It moves to a page that nobody uses.
    ///
    /// # Panics
    /// When the machine has no such table.
    pub fn append(&mut self, name: &str, bytes: &[u8]) {
        const FREE_PAGE: u64 = 0x8000;
        let at = self.find(name);
        let length = self.word(at + 4);
        let mut table = self.read(at, length as usize);
        table.extend(bytes);
        if let Some(field) = table.get_mut(4..8) {
            field.copy_from_slice(&(length + bytes.len() as u32).to_le_bytes());
        }
        self.write(FREE_PAGE, &table);
        self.point(name, FREE_PAGE as u32);
        self.change(name, Sum::Right, |_| {});
    }

    /// Adds a table of this name, with this body behind its header, in the place of one that nobody reads.
    ///
    /// # Panics
    /// When the machine has none to spare.
    pub fn add(&mut self, name: &str, revision: u8, body: &[u8]) {
        const FREE_PAGE: u64 = 0x7000;
        let length = (36 + body.len() as u32).to_le_bytes();
        let mut table = name.as_bytes().to_vec();
        table.extend(length);
        table.extend([revision, 0]);
        table.resize(36, b' ');
        table.extend(body);
        seal(&mut table, 9);
        self.write(FREE_PAGE, &table);
        self.point("WAET", FREE_PAGE as u32);
        self.find(name);
    }

    /// Copies all tables to `to`, which may be above 4 GiB, and leads there by an XSDT alone.
    ///
    /// # Panics
    /// When the machine's RSDP cannot be changed.
    pub fn move_tables(&mut self, to: u64) {
        let tables: Vec<Vec<u8>> = self
            .tables()
            .into_iter()
            .map(|(_, at)| {
                let length = self.word(at + 4) as usize;
                self.read(at, length)
            })
            .collect();
        let root = self.root();
        let mut xsdt = self.read(root, 36);
        let rsdp = self.rsdp();
        // Addresses are physical from here on, and may have more than 32 bits.
        assert_eq!(self.ask("Qqemu.PhyMemMode:1"), "OK");
        let mut next = to + 0x1000;
        for table in &tables {
            self.write(next, table);
            xsdt.extend(next.to_le_bytes());
            next = (next + table.len() as u64).next_multiple_of(16);
        }
        let length = (xsdt.len() as u32).to_le_bytes();
        xsdt.splice(..8, b"XSDT".iter().copied().chain(length));
        seal(&mut xsdt, 9);
        self.write(to, &xsdt);
        let mut pointer = b"RSD PTR \0NEXIT \x02\0\0\0\0\x24\0\0\0".to_vec();
        pointer.extend(to.to_le_bytes());
        seal(&mut pointer[..20], 8);
        pointer.extend([0; 4]);
        seal(&mut pointer, 32);
        self.write(rsdp, &pointer);
        assert_eq!(self.read(rsdp, pointer.len()), pointer, "the BIOS area is write-protected");
        assert_eq!(self.ask("Qqemu.PhyMemMode:0"), "OK");
    }

    fn point(&mut self, name: &str, to: u32) {
        let index = self.tables().iter().position(|table| table.0 == name);
        let root = self.root();
        self.write(root + 36 + 4 * index.unwrap_or_default() as u64, &to.to_le_bytes());
    }

    fn find(&mut self, name: &str) -> u64 {
        let tables = self.tables();
        let at = tables.iter().find(|table| table.0 == name).map(|table| table.1);
        assert!(at.is_some(), "no table {name} among {tables:?}");
        at.unwrap_or_default()
    }

    /// Changes a table of this name; its checksum is made right before the change is written, unless
    /// `sum` is wrong on purpose.
    ///
    /// # Panics
    /// When the machine has no such table.
    pub fn change(&mut self, name: &str, sum: Sum, change: impl FnOnce(&mut Vec<u8>)) {
        let at = self.find(name);
        let length = self.word(at + 4) as usize;
        let mut bytes = self.read(at, length);
        change(&mut bytes);
        seal(&mut bytes, 9);
        if let Some(byte) = bytes.get_mut(9).filter(|_| sum == Sum::Wrong) {
            *byte = byte.wrapping_add(1);
        }
        self.write(at, &bytes);
    }

    /// Writes a register of a device on bus 0 (0: the host bridge), by commands of QEMU's monitor.
    ///
    /// # Panics
    /// When the monitor does not know a command.
    pub fn write_device(&mut self, device: u8, offset: u8, value: u32) {
        for command in config_write(device, offset, value) {
            let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
            // What it prints comes first, in packets of its own.
            let mut answer = self.ask(&format!("qRcmd,{hex}"));
            while answer.starts_with('O') && answer != "OK" {
                answer = self.answer("qRcmd");
            }
            assert_eq!(answer, "OK", "{command}");
        }
    }

    fn word(&mut self, at: u64) -> u32 {
        let bytes = self.read(at, 4).first_chunk().copied();
        u32::from_le_bytes(bytes.unwrap_or_default())
    }

    fn read(&mut self, at: u64, length: usize) -> Vec<u8> {
        const PIECE: usize = 1024;
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let piece = PIECE.min(length - bytes.len());
            let answer = self.ask(&format!("m{:x},{piece:x}", at + bytes.len() as u64));
            let digits = answer.as_bytes().chunks_exact(2);
            let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).ok();
            let read: Vec<u8> = digits.filter_map(byte).collect();
            assert_eq!(read.len(), piece, "reading {at:#x}: {answer}");
            bytes.extend(read);
        }
        bytes
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut command = format!("M{at:x},{:x}:", bytes.len());
        for byte in bytes {
            let _ = write!(command, "{byte:02x}");
        }
        assert_eq!(self.ask(&command), "OK", "writing {at:#x}");
    }

    fn send(&mut self, text: &str) {
        let sum = text.bytes().fold(0_u8, |sum, byte| sum.wrapping_add(byte));
        let sent = self.stream.write_all(format!("${text}#{sum:02x}").as_bytes());
        assert!(sent.is_ok(), "{text}: {sent:?}");
    }

    fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.answer(text)
    }

    fn answer(&mut self, text: &str) -> String {
        let mut answer: Vec<u8> = Vec::new();
        let mut byte = [0];
        // An answer is `$…#` and two digits; acknowledgements come before it.
        loop {
            let read = self.stream.read_exact(&mut byte);
            assert!(read.is_ok(), "{text}: {read:?}");
            answer.push(byte[0]);
            let end = answer.len().checked_sub(3).and_then(|end| answer.get(end));
            if answer.contains(&b'$') && end == Some(&b'#') {
                break;
            }
        }
        let acknowledged = self.stream.write_all(b"+");
        assert!(acknowledged.is_ok(), "{text}: {acknowledged:?}");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let body = answer.split_once('$').and_then(|(_, rest)| rest.rsplit_once('#'));
        body.map(|(body, _)| body.to_owned()).unwrap_or_default()
    }
}

/// Makes the bytes add up to 0, by the one at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

/// A changed table's checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sum {
    /// Made right again.
    Right,
    /// Made wrong.
    Wrong,
}
