//! Serial lines that are not a PC's COM1: named by the firmware, or on a PCI card.

use nexit_tests::line::Line;
use nexit_tests::{Devices, Folder, Outcome, Payload};

/// An address as ACPI writes it: space, bits of a register, width of an access.
fn address(space: u8, bits: u8, access: u8, at: u64) -> Vec<u8> {
    [&[space, bits, 0, access], at.to_le_bytes().as_slice()].concat()
}

/// Runs a payload with an SPCR that names this port; what the machine said at COM1, and at COM2.
fn with_spcr(name: &str, kind: u8, address: &[u8], rate: u8) -> (Outcome, String) {
    let folder = Folder::new(name);
    let payload = Payload { command_line: "poweroff", ..Payload::new("ends") };
    let other = folder.path("com2.log");
    let serial = format!("file:{}", other.display());
    let devices = Devices::arguments(&["-serial", &serial]);
    let mut body = vec![0; 44];
    body[0] = kind;
    body[4..16].copy_from_slice(address);
    body[22] = rate;
    let outcome =
        folder.run_with_tables(&payload.toml(), &["--timeout", "90"], &devices, |machine| {
            machine.add("SPCR", 2, &body);
        });
    (outcome, std::fs::read_to_string(other).unwrap_or_default())
}

const COM1: u64 = 0x3f8;
const COM2: u64 = 0x2f8;

#[test]
fn the_console_goes_on_where_the_firmware_has_its_own() {
    let (outcome, said) = with_spcr("serial-spcr", 0, &address(1, 8, 1, COM2), 7);
    let goes = "nexit: console: continues at COM2, port 0x2f8, which the SPCR names";
    assert!(outcome.own_lines().any(|line| line == goes), "{outcome}");
    assert!(said.contains("| nexit: Nexit "), "what was said before\n{said}");
    assert!(said.contains("nexit: console: COM2 at port 0x2f8, which the SPCR names"), "{said}");
    assert!(said.contains("nexit: all guests have ended"), "{said}");
    assert!(!outcome.output.contains("entering"), "{outcome}");
}

#[test]
fn a_port_that_the_firmware_names_and_that_cannot_be_is_said_and_not_taken() {
    for (name, kind, address, why) in [
        (
            "ram",
            0x12,
            address(0, 32, 3, 0x100_0000),
            "names a serial port at memory 0x1000000, where RAM is",
        ),
        (
            "nobody",
            0,
            address(1, 8, 1, 0x2e8),
            "names a serial port at port 0x2e8, where no UART answers",
        ),
        // The IOMMU's registers keep nothing that is written.
        (
            "registers",
            0x12,
            address(0, 32, 3, 0xfed9_0000),
            "names a serial port at memory 0xfed90000, where no",
        ),
        ("zero", 0, address(1, 8, 1, 0), "serial port is left out: its address is 0"),
        ("pl011", 3, address(0, 32, 3, 0xfe03_4000), "is left out: it is an Arm PL011 (type 0x3)"),
        ("known", 0, address(1, 8, 1, COM1), "console: the SPCR names it, too"),
    ] {
        let (outcome, _) = with_spcr(&format!("serial-{name}"), kind, &address, 0);
        assert!(outcome.own_lines().any(|line| line.contains(why)), "{why}\n{outcome}");
        assert_eq!(outcome.guest_outcome("ends"), Some("poweroff"), "{outcome}");
    }
}

fn spins(further: &str) -> String {
    Payload { command_line: "spin", further, ..Payload::new("ends") }.toml()
}

#[test]
fn a_serial_card_is_the_console_where_nothing_else_is() {
    let card = "pci-serial,chardev=line,addr=5";
    let (_machine, mut line) = Line::alone(&Folder::new("serial-card"), &spins(""), card, &[]);
    line.hear("| nexit: Nexit ");
    line.hear("nexit: console: a serial card at 00:05.0");
    line.hear("payload: ends by spin");
    // Its interrupt is not known: keys are looked for.
    line.keys("\x01mguests\r");
    line.hear("ends   running");
}

#[test]
fn the_first_port_of_a_card_with_four_serves_where_the_configuration_names_it() {
    let folder = Folder::new("serial-card-four");
    let payload = Payload { command_line: "poweroff", ..Payload::new("ends") };
    let text = format!("console = \"pci:00:05.0\"\n{}", payload.toml());
    let log = folder.path("card.log");
    let first = format!("file,id=first,path={}", log.display());
    let card = "pci-serial-4x,chardev1=first,chardev2=b,chardev3=c,chardev4=d,addr=5";
    let others = ["null,id=b", "null,id=c", "null,id=d"];
    let mut arguments = vec!["-chardev", &first];
    arguments.extend(others.iter().flat_map(|other| ["-chardev", other]));
    arguments.extend(["-device", card]);
    let outcome = folder.run(&text, &["--timeout", "90"], &Devices::arguments(&arguments));
    let said = std::fs::read_to_string(log).unwrap_or_default();
    assert!(said.contains("| nexit: Nexit "), "what was said before\n{said}\n{outcome}");
    assert!(said.contains("nexit: all guests have ended"), "{said}\n{outcome}");
    assert!(!outcome.output.contains("entering"), "{outcome}");
}

#[test]
fn a_card_that_is_not_there_is_said_and_the_console_stays() {
    let folder = Folder::new("serial-card-absent");
    let payload = Payload { command_line: "poweroff", ..Payload::new("ends") };
    let text = format!("console = \"pci:00:05.0\"\n{}", payload.toml());
    let outcome = folder.run(&text, &["--timeout", "90"], &Devices::none());
    let words = "nexit: nexit.toml: console: no serial card with a 16550 answers at 00:05.0";
    assert!(outcome.own_lines().any(|line| line == words), "{outcome}");
    assert_eq!(outcome.guest_outcome("ends"), Some("poweroff"), "{outcome}");
}

#[test]
fn a_card_that_a_guest_owns_is_not_the_console_once_the_guest_is_built() {
    let toml = spins("devices = [\"00:05.0\"]");
    let card = "pci-serial,chardev=line,addr=5";
    let (mut machine, mut line) =
        Line::alone(&Folder::new("serial-card-owned"), &toml, card, &["-device", "VGA,addr=3"]);
    line.hear("nexit: the serial card 00:05.0 is guest ends's: its line ends here");
    machine.see("nexit: guest ends: entering");
    assert!(!line.said().contains("entering"), "{}", line.said());
}
