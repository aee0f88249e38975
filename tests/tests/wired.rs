//! What is wired: interrupt lines of PCI, a UART of the machine; and functions behind bridges, several
//! of one device, and prefetchable BARs.

use nexit_tests::{Devices, Folder, Guest};

const TIMEOUT: &[&str] = &["--timeout", "240"];

/// Slot 5's INTA of the emulated q35.
const SLOT_5: &str = "intx = [\"00:05.0=21\"]\n";

/// A card without MSI, and the second UART, whose output must be complete.
#[test]
fn a_line_of_pci_and_a_uart_of_the_machine_interrupt_without_exits() {
    let folder = Folder::new("wired");
    let guest = Guest::on_qemu("e1000,uart", "[\"00:05.0\"]");
    let toml = format!("{}{SLOT_5}uart = \"COM2\"\n", guest.toml());
    let sent = folder.path("com2.txt");
    let serial = format!("file:{}", sent.display());
    let devices = Devices::arguments(&["-serial", &serial]).network("e1000", 5);
    let outcome = folder.run(&toml, TIMEOUT, &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    for part in ["e1000-ping", "e1000-tcp", "uart"] {
        let line = outcome.result(part);
        assert!(line.get("interrupts") >= 5, "{line:?}");
        assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    }
    let expected: String = (1..=100).map(|n| format!("demo: line {n}\n")).collect();
    let sent = std::fs::read_to_string(&sent).unwrap_or_default();
    assert_eq!(sent, expected, "{outcome}");
}
