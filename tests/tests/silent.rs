//! Machines without a serial line at COM1: the log is on the screen, on another UART, or in POST codes.

use nexit_tests::line::{Line, disc, firmware, image};
use nexit_tests::{Devices, Folder, Outcome, Payload, Silent};

const PROBE: &str = "probe = true\n";

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
        "nexit: error: nexit.toml: probe = true: the machine is described above",
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

/// QEMU caches nothing, but says what the page table asks for: `T` is PWT, entry 1 of the PAT, and `C` PCD.
#[test]
fn writes_to_the_screen_are_gathered_and_no_other_devices_are() {
    let folder = Folder::new("silent-gathered");
    let iso = disc(&image(&folder, PROBE, "native"));
    let firmware = firmware();
    let mut arguments: Vec<&str> = iso.iter().chain(&firmware).map(String::as_str).collect();
    arguments.extend(["-device", "VGA,addr=3"]);
    let mut machine = Silent::start(&folder, &arguments);
    machine.see("nexit: halted");
    let screen = machine.monitor("info pci");
    let bar = screen
        .split("VGA controller")
        .nth(1)
        .and_then(|it| it.split("prefetchable memory at ").nth(1));
    let address = bar.and_then(|it| it.split(' ').next()).map(|it| it.trim_start_matches("0x"));
    let address = address.and_then(|it| u64::from_str_radix(it, 16).ok()).unwrap();
    let pages = machine.monitor("info tlb");
    let flags = |at: u64| {
        let start = format!("{at:016x}: ");
        let line = pages.split("\\r\\n").find(|line| {
            line.trim_start_matches(|c: char| !c.is_ascii_hexdigit()).contains(&start)
        });
        line.and_then(|line| line.split(' ').next_back()).unwrap_or_default().to_owned()
    };
    let screen = flags(address);
    assert!(screen.contains('T') && !screen.contains('C'), "{screen} at {address:#x}");
    // The first I/O APIC's page, or the large page that it is in.
    let others = [flags(0xfec0_0000), flags(0xc000_0000)];
    assert!(others.iter().any(|it| it.contains('C') && it.contains('T')), "{others:?}");
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
    machine.see("nexit: the screen is guest ends's, with 00:03.0: the log continues elsewhere");
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
}

/// The port's last code of a machine that has neither a serial line nor a screen, once it has said `code`.
fn last_code(name: &str, code: u8, machine: &[&str]) -> Vec<u8> {
    let folder = Folder::new(name);
    let iso = disc(&image(&folder, PROBE, "native"));
    let firmware = firmware();
    let codes = folder.path("codes");
    let file = format!("file,id=post,path={}", codes.display());
    let port = "isa-debugcon,iobase=0x80,chardev=post";
    let mut arguments: Vec<&str> = iso.iter().chain(&firmware).map(String::as_str).collect();
    arguments.extend(["-chardev", &file, "-device", port]);
    arguments.extend(machine);
    let _machine = Silent::start(&folder, &arguments);
    let seen = || std::fs::read(&codes).unwrap_or_default();
    // The firmware has codes of its own, which end where the image begins.
    let said = |seen: &[u8]| seen.ends_with(&[code & 0xf, code]);
    let pause = |_| std::thread::sleep(std::time::Duration::from_millis(300));
    let tries = (0..300).take_while(|_| !said(&seen())).map(pause).count();
    assert!(tries < 300, "{:x?}", seen());
    seen()
}

#[test]
fn a_refusal_that_nobody_sees_shows_in_which_step_it_was() {
    let seen = last_code("silent-post-probe", 0x8a, &[]);
    let steps: Vec<u8> = (0x01..=0x0a).chain([0x8a]).collect();
    assert!(seen.ends_with(&steps), "{seen:x?}");
    let seen = last_code("silent-post-cpu", 0x83, &["-cpu", "EPYC-v4,-svm"]);
    assert!(seen.ends_with(&[1, 2, 3, 0x83]), "{seen:x?}");
}

/// Boots a machine that has no UART but COM2, with a payload that spins.
fn with_com2_alone(name: &str, further: &str) -> (Silent, Line) {
    let payload = Payload { command_line: "spin", further, ..Payload::new("ends") };
    let uart = "isa-serial,iobase=0x2f8,irq=3,chardev=line";
    Line::alone(&Folder::new(name), &payload.toml(), uart, &[])
}

#[test]
fn a_machine_with_com2_alone_speaks_and_listens_there_and_keeps_its_log() {
    let (_machine, mut line) = with_com2_alone("silent-com2-alone", "");
    line.hear("nexit: console: COM2 at port 0x2f8");
    line.hear("payload: ends by spin");
    line.keys("\x01mlog\r");
    line.hear("nexit: | nexit: Nexit ");
    line.hear("nexit: | nexit: guest ends: entering");
    assert!(!line.said().contains("| payload"), "{}", line.said());
}

#[test]
fn a_guest_that_wants_the_consoles_uart_is_refused() {
    let (_machine, mut line) = with_com2_alone("silent-com2-wanted", "uart = \"COM2\"");
    line.hear("nexit: error: nexit.toml: guest \"ends\" has the UART at port 0x2f8");
    line.hear("nexit: halted");
}
