//! A machine that nobody hears: no serial line, a screen. What stands on the screen is read off its
//! pixels.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use screen::{CELL_HEIGHT, CELL_WIDTH, INK, is_set};

use crate::folder::{Folder, Turn};

/// The emulated CPU and machine of `nexit run`, without a serial line.
const MACHINE: &str = "-nodefaults -display none -no-reboot -machine q35 -accel tcg,thread=multi \
                       -smp 2 -m 512M -device intel-iommu,intremap=on,eim=on,aw-bits=48";
const CPU: &str = "EPYC-v4,+x2apic,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-perfctr-core,\
                   -clzero,-ibpb,-nrip-save,-xsavec,-xsaves";
/// Pictures taken before a text counts as missing, and the pause between two.
const MAX_PICTURES: u32 = 300;
const PAUSE: Duration = Duration::from_millis(400);

/// Such a machine, running.
#[derive(Debug)]
pub struct Silent {
    qemu: Child,
    control: UnixStream,
    picture: std::path::PathBuf,
    _place: Turn,
}

impl Silent {
    /// Starts QEMU with these further arguments.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    #[expect(clippy::expect_used, reason = "only tests call it")]
    pub fn start(folder: &Folder, arguments: &[&str]) -> Self {
        let place = Turn::take();
        let socket = folder.path("qmp");
        let control = format!("unix:{},server=on,wait=off", socket.display());
        let qemu = Command::new("qemu-system-x86_64")
            .args(MACHINE.split_whitespace())
            .args(["-cpu", CPU, "-qmp", &control])
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        let mut tries = 0..MAX_PICTURES;
        let control = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(tries.next().is_some(), "QEMU does not answer: {error}"),
            }
            std::thread::sleep(PAUSE);
        };
        let mut machine = Self { qemu, control, picture: folder.path("screen.ppm"), _place: place };
        machine.command("{\"execute\":\"qmp_capabilities\"}");
        machine
    }

    /// Waits until a row of the screen begins with `text`; all rows.
    ///
    /// # Panics
    /// No row does.
    pub fn see(&mut self, text: &str) -> Vec<String> {
        let mut rows = Vec::new();
        for _ in 0..MAX_PICTURES {
            rows = self.rows();
            if rows.iter().any(|row| row.starts_with(text)) {
                return rows;
            }
            std::thread::sleep(PAUSE);
        }
        panic!("{text:?} does not appear\n{}", rows.join("\n"));
    }

    /// The text on the screen.
    #[must_use]
    pub fn rows(&mut self) -> Vec<String> {
        let path = self.picture.display();
        self.command(&format!(
            "{{\"execute\":\"screendump\",\"arguments\":{{\"filename\":\"{path}\"}}}}"
        ));
        read(&self.picture)
    }

    /// What a command of QEMU's monitor answers.
    pub fn monitor(&mut self, command: &str) -> String {
        self.command(&format!(
            "{{\"execute\":\"human-monitor-command\",\"arguments\":{{\"command-line\":\"{command}\"}}}}"
        ))
    }

    /// Sends a command of QEMU's machine protocol and waits for its answer.
    #[expect(clippy::expect_used, reason = "only tests call it")]
    fn command(&mut self, json: &str) -> String {
        writeln!(self.control, "{json}").expect("QEMU takes commands");
        let mut lines = BufReader::new(self.control.try_clone().expect("a socket")).lines();
        let answer = lines.find_map(|line| line.ok().filter(|line| line.contains("\"return\"")));
        answer.expect("QEMU answers")
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Reads the text off a picture (PPM, binary): each cell is compared with every character's pixels.
fn read(picture: &Path) -> Vec<String> {
    let bytes = std::fs::read(picture).unwrap_or_default();
    let mut fields = bytes.splitn(4, |byte| matches!(byte, b'\n'));
    let (kind, size) = (fields.next(), fields.next().and_then(|it| std::str::from_utf8(it).ok()));
    let (Some(b"P6"), Some(size)) = (kind, size) else { return Vec::new() };
    let pixels = fields.nth(1).unwrap_or_default();
    let mut size = size.split(' ').map_while(|number| number.parse::<u32>().ok());
    let (width, height) = (size.next().unwrap_or(0), size.next().unwrap_or(0));
    let ink = |x: u32, y: u32| pixels.get((y * width + x) as usize * 3) == Some(&INK);
    let cell = |column: u32, row: u32| {
        let looks_like = |character: &u8| {
            (0..CELL_WIDTH * CELL_HEIGHT).all(|at| {
                let (x, y) = (at % CELL_WIDTH, at / CELL_WIDTH);
                let there = ink(column * CELL_WIDTH + x, row * CELL_HEIGHT + y);
                there == is_set(*character, x, y)
            })
        };
        (b' '..=b'~').find(looks_like).map_or('\u{fffd}', char::from)
    };
    let row = |row| (0..width / CELL_WIDTH).map(|column| cell(column, row)).collect::<String>();
    (0..height / CELL_HEIGHT).map(|it| row(it).trim_end().to_owned()).collect()
}
