//! What is wired: interrupt lines of PCI, a UART of the machine; and functions behind bridges and other
//! root buses, several of one device, and prefetchable BARs.

use nexit_tests::{Devices, Folder, Guest, Kernel, Payload};

const TIMEOUT: &[&str] = &["--timeout", "240"];

/// A card without MSI on a line that the HPET could drive too, and would if it were nobody's; and the
/// second UART, whose output must be complete.
#[test]
fn a_line_of_pci_and_a_uart_of_the_machine_interrupt_without_exits() {
    let folder = Folder::new("wired");
    let guest = Guest::on_qemu("e1000,uart", "[\"00:07.0\"]");
    let toml = format!("{}intx = [\"00:07.0=23\"]\nuart = \"COM2\"\n", guest.toml());
    let sent = folder.path("com2.txt");
    let serial = format!("file:{}", sent.display());
    let devices = Devices::arguments(&["-serial", &serial]).network("e1000", 7);
    let outcome = folder.run(&toml, TIMEOUT, &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    for part in ["e1000-ping", "e1000-tcp", "uart"] {
        let line = outcome.result(part);
        assert!(line.get("interrupts") >= 5, "{line:?}");
        assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    }
    assert!(outcome.result("e1000-ping").exits("nmi") > 0, "the watchdog\n{outcome}");
    let expected: String = (1..=100).map(|n| format!("demo: line {n}\n")).collect();
    let sent = std::fs::read_to_string(&sent).unwrap_or_default();
    assert_eq!(sent, expected, "{outcome}");
}

/// Firmware that puts prefetchable BARs above 4 GiB. Behind a bridge: an NVMe controller. Two functions of
/// one device: a card and a disk. And 16 MiB of memory behind a BAR, which the guest writes to.
#[test]
fn functions_behind_bridges_of_one_device_and_with_high_bars_work() {
    let folder = Folder::new("bridges");
    let guest = Guest::on_qemu(
        "pci,bar,nvme,virtio,e1000e reads=1000",
        "[\"01:00.0\", \"00:06.0\", \"00:06.1\", \"00:07.0\"]",
    );
    let disk = Kernel::Stock.folder().join("disk.img");
    let disk =
        |name| format!("driver=file,node-name={name},read-only=on,filename={}", disk.display());
    let shared = folder.path("shared.bin");
    let memory = "memory-backend-file,id=shared,share=on,size=16M";
    let memory = format!("{memory},mem-path={}", shared.display());
    let payload = Kernel::Stock.folder().join("payload.bin");
    let network = format!("user,id=net,guestfwd=tcp:10.0.2.100:80-cmd:cat {}", payload.display());
    let (nvme, virtio) = (disk("d1"), disk("d2"));
    let devices = Devices::arguments(&[
        "-device",
        "pcie-root-port,id=rp,chassis=1,addr=8",
        "-blockdev",
        &nvme,
        "-device",
        "nvme,drive=d1,serial=nexit,bus=rp",
        "-netdev",
        &network,
        "-device",
        "e1000e,netdev=net,addr=6.0,multifunction=on",
        "-blockdev",
        &virtio,
        "-device",
        "virtio-blk-pci,drive=d2,disable-legacy=on,iommu_platform=on,addr=6.1",
        "-object",
        &memory,
        "-device",
        "ivshmem-plain,memdev=shared,addr=7",
    ]);
    let outcome = folder.run(&guest.toml(), &["--timeout", "300", "--boot", "uefi"], &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    for function in ["00:01.0 0x010802", "00:06.0 0x020000", "00:06.1 0x010000", "00:07.0 0x05"] {
        assert!(outcome.output.contains(&format!("pci: 0000:{function}")), "{function}\n{outcome}");
    }
    for part in ["nvme", "virtio", "e1000e-tcp"] {
        let line = outcome.result(part);
        assert!(line.get("interrupts") >= 100, "{line:?}");
        assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    }
    let bar = outcome.output.lines().find_map(|line| line.trim().strip_prefix("demo: bar: ok 0x"));
    let bar = bar.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    assert!(bar.is_some_and(|at| at >= 1 << 32), "{bar:?}\n{outcome}");
    let written = std::fs::read(&shared).unwrap_or_default();
    assert_eq!(written.get(..4), Some(&b"NEXT"[..]), "{outcome}");
}

/// The guest `micro` counts a thousand messages of `edu` (QEMU, "EDU device"), each with its handler.
fn messages_arrive(name: &str, function: &str, bridges: &[&str]) {
    let folder = Folder::new(name);
    let further = format!("devices = [\"{function}\"]");
    let payload = Payload { further: &further, ..Payload::new("micro") };
    let devices: Vec<&str> = bridges.iter().flat_map(|bridge| ["-device", bridge]).collect();
    let options = ["--timeout", "90", "--memory", "1G"];
    let outcome = folder.run(&payload.toml(), &options, &Devices::arguments(&devices));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let all = "bench: micro-message-to-handler operations 1000";
    assert!(outcome.output.contains(all), "{outcome}");
    assert!(!outcome.output.contains("IOMMU fault"), "{outcome}");
    assert_eq!(outcome.exits("external_interrupt"), Some(0), "{outcome}");
}

#[test]
fn messages_arrive_from_behind_another_root_bus() {
    messages_arrive(
        "root-bus",
        "41:00.0",
        &[
            "pxb-pcie,id=far,bus_nr=64,bus=pcie.0",
            "pcie-root-port,id=below,bus=far,chassis=2",
            "edu,bus=below",
        ],
    );
}

/// The unit sees them come from 02:00.0.
#[test]
fn messages_arrive_from_behind_a_bridge_to_conventional_pci() {
    messages_arrive(
        "conventional",
        "02:01.0",
        &[
            "pcie-root-port,id=above,chassis=1,addr=8",
            "pcie-pci-bridge,id=below,bus=above",
            "edu,bus=below,addr=1",
        ],
    );
}

/// The unit sees them come from the upper bridge, 00:1e.0.
#[test]
fn messages_arrive_from_behind_two_bridges_of_conventional_pci() {
    messages_arrive(
        "two-bridges",
        "02:01.0",
        &[
            "i82801b11-bridge,id=above,addr=1e.0",
            "pci-bridge,id=below,bus=above,chassis_nr=2,addr=2",
            "edu,bus=below,addr=1",
        ],
    );
}
