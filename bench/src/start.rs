//! How many exits a quiet Linux without devices takes until `init`: Nexit's own counters, read by the kernel's first
//! program (`demo/guest-tools/src/bin/exits.rs`).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nexit::failure::{Failure, OrFailed, Result};

use crate::bochs::PREFIX;
use crate::mode::{Mode, absolute};
use crate::question::Technology;
use crate::results::{EXITS_TO_INIT, Figure, How};

/// For `--works`.
pub(crate) const WORK: &str = "start";
/// Work, and what the configuration says more.
const STARTS: [(&str, &str); 2] = [("start", ""), ("start-without-pit", "pit = false\n")];
/// By time, not by work.
const WATCHDOGS: [&str; 2] = ["nmi", "preemption_timer"];

/// Both starts in one mode.
///
/// # Errors
/// The guest does not come to `init`.
pub(crate) fn measure(
    technology: Technology,
    mode: Mode,
    kernel: &Path,
    initrd: &Path,
    folder: &Path,
) -> Result<Vec<Figure>> {
    let figure = |(work, further): (&str, &str)| {
        let (kernel, initrd) = (absolute(kernel)?, absolute(initrd)?);
        let exits = boot(technology, &toml(mode, &kernel, &initrd, further), folder)?;
        let prefix = if technology == Technology::VtX { PREFIX } else { "" };
        let (work, figure) = (format!("{prefix}{work}"), EXITS_TO_INIT.to_owned());
        let (how, n) = (How::Counted, 1);
        Ok(Figure { work, mode, figure, how, n, min: exits, median: exits, max: exits })
    };
    STARTS.into_iter().map(figure).collect()
}

fn toml(mode: Mode, kernel: &Path, initrd: &Path, further: &str) -> String {
    let mode = mode.name();
    let (kernel, initrd) = (kernel.display(), initrd.display());
    format!(
        "[[guest]]\nname = \"guest\"\ncpus = [0]\nmemory = \"256M\"\nkernel = \"{kernel}\"\n\
         initrd = \"{initrd}\"\ncmdline = \"console=ttyS0 panic=-1 quiet rdinit=/bin/exits\"\n\
         interrupts = \"{mode}\"\non_reboot = \"stop\"\n{further}"
    )
}

fn boot(technology: Technology, toml: &str, folder: &Path) -> Result<f64> {
    let config = folder.join("start.toml");
    fs::write(&config, toml).or_failed("write", &config)?;
    let program = std::env::current_exe().unwrap_or_default().with_file_name("nexit");
    let machine: &[&str] = match technology {
        Technology::AmdV => &["--emulator", "qemu"],
        Technology::VtX => &["--emulator", "bochs", "--iommu", "none"],
    };
    let mut command = Command::new(program);
    command.args(["run", "--timeout", "600"]).args(machine).arg("--config").arg(&config);
    // Its first program ends, so the kernel panics and the run fails: the line was said before.
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure::Failed(format!("cannot start nexit: {error}")))?;
    let console = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = folder.join(format!("start-{}.log", technology.file()));
    fs::write(&log, &console).or_failed("write", &log)?;
    let missing =
        || Failure::Failed(format!("the guest did not come to init: see {}", log.display()));
    exits(&console).ok_or_else(missing)
}

/// From the program's line, but the watchdog's.
fn exits(console: &str) -> Option<f64> {
    let (_, line) = console.split_once("demo: start: ok ")?;
    let words = line.lines().next()?.split_whitespace();
    let numbers: Vec<(&str, f64)> = words
        .filter_map(|word| word.split_once('='))
        .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
        .collect();
    let of = |name: &str| numbers.iter().find(|(key, _)| *key == name).map(|(_, n)| *n);
    Some(of("exits")? - WATCHDOGS.iter().filter_map(|name| of(name)).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdogs_calls_are_no_work_of_the_start() {
        let console =
            "nexit: x\ndemo: start: ok interrupts=3 exits=1431 io=768 nmi=7\r\nnexit: end\n";
        assert_eq!(exits(console), Some(1424.0));
        assert_eq!(exits("Kernel panic"), None);
    }
}
