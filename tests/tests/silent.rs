//! Machines without a serial line at COM1: the log is on the screen, on another UART, or in POST codes.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nexit_tests::{Devices, Folder, Outcome, Payload, Silent};

const PROBE: &str = "probe = true\n";

/// Builds a bootable image of this configuration.
fn image(folder: &Folder, toml: &str, loader: &str) -> String {
    let config = folder.write("nexit.toml", toml);
    let output = folder.path("nexit.iso").display().to_string();
    let options = ["image", "--config", &config, "--loader", loader, "--output", &output];
    let outcome = folder.nexit("image", &options);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    output
}

fn disc(iso: &str) -> [String; 4] {
    [
        "-drive".into(),
        format!("if=none,id=cd,media=cdrom,format=raw,readonly=on,file={iso}"),
        "-device".into(),
        "ide-cd,drive=cd,bus=ide.0,bootindex=0".into(),
    ]
}

fn firmware() -> [String; 2] {
    [
        "-drive".into(),
        "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
    ]
}

/// Boots an image that only looks at the machine; what stands on the screen at the end.
fn probe(name: &str, loader: &str, uefi: bool) -> Vec<String> {
    let folder = Folder::new(name);
    let iso = disc(&image(&folder, PROBE, loader));
    let firmware = firmware();
    let mut arguments: Vec<&str> = iso.iter().map(String::as_str).collect();
    if uefi {
        arguments.extend(firmware.iter().map(String::as_str));
    }
    arguments.extend(["-device", "VGA,addr=3"]);
    Silent::start(&folder, &arguments).see("nexit: halted")
}

fn has(rows: &[String], text: &str) -> bool {
    rows.iter().any(|row| row.contains(text))
}

/// The whole log is there, from its first line to the refusal.
fn is_whole(rows: &[String]) {
    for text in [
        concat!("nexit: Nexit ", env!("CARGO_PKG_VERSION")),
        "nexit: CPU: AMD EPYC",
        "nexit: console: no UART",
        "nexit: CPUs: 2 found, 2 started",
        "00:03.0 1234:1111 class 030000",
        "nexit: error: nexit.toml: probe = true: this is what the machine is",
    ] {
        assert!(has(rows, text), "{text:?} is missing\n{}", rows.join("\n"));
    }
}

#[test]
fn without_a_serial_line_uefis_screen_shows_the_log() {
    let rows = probe("silent-uefi-native", "native", true);
    is_whole(&rows);
    assert!(has(&rows, "nexit: firmware: UEFI"), "{}", rows.join("\n"));
}

#[test]
fn without_a_serial_line_the_screen_that_grub_sets_shows_the_log() {
    is_whole(&probe("silent-uefi-grub", "grub", true));
    let rows = probe("silent-bios-grub", "grub", false);
    is_whole(&rows);
    assert!(has(&rows, "nexit: firmware: BIOS"), "{}", rows.join("\n"));
}

#[test]
fn a_guest_that_owns_the_display_gets_the_screen() {
    let folder = Folder::new("silent-display");
    let payload = Payload {
        command_line: "spin",
        further: "devices = [\"00:03.0\"]",
        ..Payload::new("ends")
    };
    let iso = disc(&image(&folder, &payload.toml(), "native"));
    let firmware = firmware();
    let mut arguments: Vec<&str> = iso.iter().chain(&firmware).map(String::as_str).collect();
    arguments.extend(["-device", "VGA,addr=3"]);
    let codes = folder.path("codes");
    let post = format!("file,id=post,path={}", codes.display());
    let port = "isa-debugcon,iobase=0x80,chardev=post";
    arguments.extend(["-chardev", &post, "-device", port]);
    let mut machine = Silent::start(&folder, &arguments);
    machine.see("nexit: the screen is guest ends's, with 00:03.0: the log goes on elsewhere");
    // The last step's code: what the hypervisor says from there on must not be shown.
    let runs = || std::fs::read(&codes).is_ok_and(|codes| codes.ends_with(&[0x0b, 0x0c]));
    let tries = (0..200).take_while(|_| !runs()).map(|_| machine.rows()).count();
    assert!(tries < 200, "the guest does not start");
    let rows = (0..20).map(|_| machine.rows()).last().unwrap_or_default();
    assert!(!has(&rows, "entering"), "{}", rows.join("\n"));
}

/// Runs a payload in `nexit run` with further arguments for QEMU.
fn run(name: &str, top: &str, further: &str, qemu: &[&str]) -> (Folder, Outcome) {
    let folder = Folder::new(name);
    let payload = Payload { command_line: "poweroff", further, ..Payload::new("ends") };
    let text = format!("{top}{}", payload.toml());
    let outcome = folder.run(&text, &["--timeout", "90"], &Devices::arguments(qemu));
    (folder, outcome)
}

#[test]
fn the_console_goes_on_where_the_configuration_says_with_all_that_was_said() {
    let folder = Folder::new("silent-com2");
    let other = folder.path("com2.log");
    let serial = format!("file:{}", other.display());
    let (_, outcome) = run("silent-com2-run", "console = \"COM2\"\n", "", &["-serial", &serial]);
    let said = std::fs::read_to_string(other).unwrap_or_default();
    assert!(said.contains("| nexit: Nexit "), "what was said before\n{said}");
    assert!(said.contains("nexit: console: COM2 at port 0x2f8"), "{said}");
    assert!(said.contains("nexit: all guests have ended"), "{said}");
    assert!(!outcome.output.contains("entering"), "{outcome}");
}

#[test]
fn a_console_that_is_not_there_is_said_and_not_taken() {
    let (_, outcome) = run("silent-absent", "console = \"0x3e8\"\n", "", &[]);
    let text = "nexit.toml: console: no UART answers at port 0x3e8: the console stays";
    assert!(outcome.output.contains(text), "{outcome}");
    assert_eq!(outcome.guest_outcome("ends"), Some("poweroff"), "{outcome}");
}

#[test]
fn each_step_of_the_boot_shows_its_post_code() {
    let folder = Folder::new("silent-post");
    let codes = folder.path("codes");
    let file = format!("file,id=post,path={}", codes.display());
    let port = "isa-debugcon,iobase=0x80,chardev=post";
    let qemu = ["-chardev", &file, "-device", port];
    let (_, outcome) = run("silent-post-run", "", "", &qemu);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let seen = std::fs::read(&codes).unwrap_or_default();
    // The firmware's own come first.
    let steps: Vec<u8> = (0x01..=0x0c).collect();
    assert!(seen.ends_with(&steps), "{seen:x?}");
    // A refusal says in which step.
    let (_, outcome) = run("silent-post-refused", "unsafe_no_iommu = 1\n", "", &qemu);
    assert_ne!(outcome.status, Some(0), "{outcome}");
}

/// The other end of a serial line.
struct Line {
    stream: UnixStream,
    said: String,
}

impl Line {
    /// Reads until `text` has come.
    fn hear(&mut self, text: &str) {
        while !self.said.contains(text) {
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).unwrap_or_default();
            assert!(read > 0, "{text:?} does not come\n{}", self.said);
            self.said.push_str(&String::from_utf8_lossy(bytes.get(..read).unwrap_or_default()));
        }
    }
}

/// Boots a machine that has no UART but COM2, with a payload that spins.
#[expect(clippy::unwrap_used, reason = "only tests call it")]
fn with_com2_alone(name: &str, further: &str) -> (Silent, Line) {
    let folder = Folder::new(name);
    let payload = Payload { command_line: "spin", further, ..Payload::new("ends") };
    let iso = disc(&image(&folder, &payload.toml(), "grub"));
    let socket = folder.path("com2");
    let listener = UnixListener::bind(&socket).unwrap();
    let line = format!("socket,id=line,path={}", socket.display());
    let mut arguments: Vec<&str> = iso.iter().map(String::as_str).collect();
    let uart = "isa-serial,iobase=0x2f8,irq=3,chardev=line";
    arguments.extend(["-chardev", &line, "-device", uart]);
    let machine = Silent::start(&folder, &arguments);
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
    (machine, Line { stream, said: String::new() })
}

#[test]
fn a_machine_with_com2_alone_speaks_and_listens_there_and_keeps_its_log() {
    let (_machine, mut line) = with_com2_alone("silent-com2-alone", "");
    line.hear("nexit: console: COM2 at port 0x2f8");
    line.hear("payload: ends by spin");
    line.stream.write_all(b"\x01mlog\r").unwrap();
    line.hear("nexit: | nexit: Nexit ");
    line.hear("nexit: | nexit: guest ends: entering");
    assert!(!line.said.contains("| payload"), "{}", line.said);
}

#[test]
fn a_guest_that_wants_the_consoles_uart_is_refused() {
    let (_machine, mut line) = with_com2_alone("silent-com2-wanted", "uart = \"COM2\"");
    line.hear("nexit: error: nexit.toml: guest \"ends\" has the UART at port 0x2f8");
    line.hear("nexit: halted");
}
