//! Devices whose BARs are not where they were: what a device says is a claim.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use nexit_tests::{Devices, Folder, Payload, Session, config_write};

const NVME: u8 = 4;
const BAR0: u8 = 0x10;
/// In the first guest's RAM, and the hypervisor's.
const RAM: u32 = 0x20_0000;

fn payload() -> String {
    Payload { further: "devices = [\"00:04.0\"]", ..Payload::new("generations") }.toml()
}

#[test]
fn a_bar_that_lies_on_memory_at_the_boot_is_refused() {
    let folder = Folder::new("bar-on-memory");
    let options = &["--timeout", "60", "--memory", "1G"];
    let outcome = folder.run_with_tables(&payload(), options, &Devices::none().nvme(), |machine| {
        machine.write_device(NVME, BAR0, RAM);
    });
    let refusal = outcome.refusal();
    assert!(
        refusal.contains(
            "00:04.0 cannot be assigned: its BAR 0 (memory 0x200000 to 0x203fff) overlaps"
        ),
        "{refusal}"
    );
}

#[test]
fn a_device_that_the_firmware_left_asleep_is_woken_and_used() {
    const PMCSR: u8 = 0x64;
    let folder = Folder::new("asleep");
    let options = &["--timeout", "60"];
    let toml = payload().replace("generations", "dma");
    let outcome = folder.run_with_tables(&toml, options, &Devices::none().nvme(), |machine| {
        machine.write_device(NVME, PMCSR, 3);
    });
    let woken = "00:04.0: the firmware left it asleep: woken";
    assert!(outcome.output.contains(woken), "{outcome}");
    assert!(outcome.output.contains("DMA into the guest's own memory works: ok"), "{outcome}");
}

/// QEMU's monitor.
struct Monitor(UnixStream);

impl Monitor {
    #[expect(clippy::expect_used, reason = "only a test calls it")]
    fn connect(path: &std::path::Path) -> Self {
        let mut monitor = Self(UnixStream::connect(path).expect("QEMU was told to listen there"));
        monitor.answer();
        monitor
    }

    /// What it says before it asks for the next command.
    fn answer(&mut self) -> String {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(b"(qemu) ") {
            let read = self.0.read_exact(&mut byte);
            assert!(read.is_ok(), "the monitor: {read:?}");
            seen.extend(byte);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    fn ask(&mut self, command: &str) -> String {
        let sent = self.0.write_all(format!("{command}\n").as_bytes());
        assert!(sent.is_ok(), "{command}: {sent:?}");
        self.answer()
    }

    /// Moves the controller's BAR behind everybody's back.
    fn move_bar(&mut self, to: u32) {
        for command in config_write(NVME, BAR0, to) {
            self.ask(&command);
        }
    }

    /// Where the controller says that it is.
    fn bar(&mut self) -> u32 {
        let text = self.ask("info pci");
        let device = text.split("device   4, function 0").nth(1).unwrap_or_default();
        let bar = device.split("BAR0: 64 bit memory at 0x").nth(1).unwrap_or_default();
        let digits = bar.split_whitespace().next().unwrap_or_default();
        u32::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{text}"))
    }
}

#[test]
fn a_bar_that_moves_in_a_life_comes_back_and_one_that_moves_between_two_is_refused() {
    let folder = Folder::new("bar-moves");
    let socket = folder.path("monitor");
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    // One that stays, so that the machine goes on.
    let other = "[[guest]]\nname = \"other\"\ncpus = [1]\nmemory = \"64M\"\ncmdline = \"spin\"\n";
    let other = format!("{other}kernel = \"{}\"\n", Payload::new("ends").path().display());
    let config = folder.write("nexit.toml", payload() + &other);
    let devices = Devices::none().nvme().and(&["-monitor", &monitor]);
    let mut arguments = vec!["run", "--config", &config, "--timeout", "90", "--"];
    arguments.extend(devices.iter());
    let mut session = Session::start(&arguments);
    session.see("generations: payload: lived");
    let mut monitor = Monitor::connect(&socket);
    let place = monitor.bar();
    session.keys("\u{1}m");
    session.see("nexit> ");
    monitor.move_bar(RAM);
    session.keys("restart generations\r");
    session.see("guest generations: stopped: restarting");
    session.see("generations: payload: lived");
    assert_eq!(monitor.bar(), place, "it came back");
    session.keys("stop generations\r");
    session.see("guest generations: stopped after");
    monitor.move_bar(RAM);
    session.keys("start generations\r");
    session.see("guest generations: not started: 00:04.0: BAR register 0 is 0x00200004");
    monitor.move_bar(place);
    session.keys("start generations\r");
    session.see("guest generations: started");
    session.see("generations: payload: lived");
    session.keys("stop generations\rstop other\r");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(status.code(), Some(1), "they were stopped\n{screen}");
    assert!(!screen.contains("FAILED") && !screen.contains("IOMMU fault"), "{screen}");
}
