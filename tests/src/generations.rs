//! A guest that the monitor restarts again and again, and what the hypervisor has left each time.

use crate::emulator::Emulator;
use crate::folder::Folder;
use crate::guest::{Devices, Payload};
use crate::terminal::Session;

/// Starts the payload `generations` with an NVMe controller, which it uses by DMA and by an MSI-X message in each
/// generation, beside a guest that goes on when it is stopped. The monitor is open.
///
/// # Panics
/// It does not start.
#[must_use]
pub fn start(folder: &Folder, emulator: Emulator, seconds: &str) -> Session {
    let further = "devices = [\"00:04.0\"]";
    let payload = Payload { further, ..Payload::new("generations") }.toml().replace("64M", "16M");
    let other = "[[guest]]\nname = \"other\"\ncpus = [1]\nmemory = \"64M\"\ncmdline = \"spin\"\n";
    let other = format!("{other}kernel = \"{}\"\n", Payload::new("ends").path().display());
    let config = folder.write("nexit.toml", payload + &other);
    let devices = match emulator {
        Emulator::BochsVtd => Devices::disk_behind_vtd(folder, ""),
        Emulator::Qemu | Emulator::Bochs | Emulator::Nested => Devices::none().nvme(),
    };
    let run = ["run", "--config", &config, "--timeout", seconds];
    let mut arguments = [&run, emulator.options(), &["--"]].concat();
    arguments.extend(devices.iter());
    let mut session = Session::start(&arguments);
    session.see("other: payload: ends by spin");
    session.keys("\u{1}m");
    session.see("nexit> ");
    session
}

/// Another generation, until it has done what it is there for.
///
/// # Panics
/// It does not come.
pub fn restart(session: &mut Session) {
    session.keys("restart generations\r");
    // What stands before this may be the last generation's.
    session.see("guest generations: stopped: restarting");
    session.see("generations: payload: lived");
}

/// The monitor's answer to `memory` without what of the heap is in use, and that in bytes.
///
/// # Panics
/// The answer has no such figures.
pub fn memory(session: &mut Session) -> (String, u64) {
    let answer = session.ask("memory");
    let (heap, others): (Vec<&str>, Vec<&str>) =
        answer.lines().partition(|line| line.contains("its heap"));
    // Blanks depend on how wide the columns are.
    let others = others.join("\n").split_whitespace().collect::<Vec<_>>().join(" ");
    let bytes = heap.first().and_then(|line| line.split_whitespace().last()?.parse().ok());
    assert!(bytes.is_some(), "no figures: {answer}");
    (others, bytes.unwrap_or_default())
}
