//! `make endurance`: what must still hold after a million interrupts, a thousand restarts, an hour beside an attacker.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::emulator::Emulator;
use crate::folder::Folder;
use crate::generations::{self, memory, restart};
use crate::guest::{Devices, Guest, Kernel, Payload};
use crate::outcome::{Outcome, ResultLine};
use crate::terminal::Session;

/// How much of the whole is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Amount {
    /// Interrupts of a device, on each back end.
    pub interrupts: u64,
    /// Restarts of a guest with a device, on each back end.
    pub restarts: usize,
    /// Minutes of guests beside an attacker.
    pub minutes: u64,
}

impl Amount {
    /// So many hundredths of the whole: 1,000,000 interrupts, 1,000 restarts, 60 minutes.
    #[must_use]
    pub const fn percent(percent: u64) -> Self {
        Self {
            interrupts: 10_000 * percent,
            restarts: 10 * percent as usize,
            minutes: if percent < 5 { 1 } else { percent * 3 / 5 },
        }
    }
}

/// One part: its name, what it claims, and the run, which returns figures.
pub type Part = (&'static str, &'static str, fn(Amount) -> String);

/// All parts.
pub const PARTS: &[Part] = &[
    (
        "interrupts-amd-v",
        "Linux reads its NVMe disk in QEMU; every read is one interrupt without an exit",
        |amount| interrupts(Emulator::Qemu, amount.interrupts),
    ),
    ("interrupts-vt-x", "the same in Bochs 3 with VT-x and VT-d", |amount| {
        interrupts(Emulator::BochsVtd, amount.interrupts)
    }),
    (
        "restarts-amd-v",
        "a guest with an NVMe controller begins again in QEMU; nothing is lost",
        |amount| restarts(Emulator::Qemu, amount.restarts),
    ),
    ("restarts-vt-x", "the same in Bochs 3 with VT-x and VT-d", |amount| {
        restarts(Emulator::BochsVtd, amount.restarts)
    }),
    (
        "attack",
        "timer, network and disk in three guests, while a fourth attacks, in QEMU; nothing is lost",
        |amount| attack(amount.minutes, "hostile", "all two"),
    ),
    (
        "fuzz",
        "the same while the fourth does anything, from a seed of the clock, which its log names",
        |amount| attack(amount.minutes, "fuzz", "any 20000"),
    ),
];

/// Runs a part; what went wrong, if anything.
///
/// # Errors
/// The words of the check that failed.
pub fn run(part: &Part, amount: Amount) -> Result<String, String> {
    catch_unwind(AssertUnwindSafe(|| part.2(amount))).map_err(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
        words.unwrap_or_else(|| "a check failed".to_owned())
    })
}

/// Seconds for what may take as long as it needs: the emulator is ended only if it hangs for good.
const PATIENCE: &str = "20000";

fn interrupts(emulator: Emulator, wanted: u64) -> String {
    let folder = Folder::new(&format!("endurance-interrupts-{emulator}"));
    let demo = format!("nvme,timer reads={wanted} quiet");
    let (guest, devices) = match emulator {
        Emulator::BochsVtd => {
            let guest = Guest {
                kernel: Kernel::Cloud,
                memory: "256M",
                ..Guest::on_qemu("", "[\"00:04.0\"]")
            };
            (guest, Devices::disk_behind_vtd(&folder, ""))
        }
        Emulator::Qemu | Emulator::Bochs | Emulator::Nested => {
            (Guest::on_qemu("", "[\"00:04.0\"]"), Devices::none().nvme())
        }
    };
    let toml = guest.toml().replace("demo=\"", &format!("demo={demo}\""));
    let options = [emulator.options(), &["--timeout", PATIENCE]].concat();
    let outcome = folder.run(&toml, &options, &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let _ = outcome.result("nvme-files");
    let line = outcome.result("nvme");
    let (reads, interrupts) = (line.get("reads"), line.get("interrupts"));
    assert_eq!((reads, interrupts), (wanted, wanted), "one interrupt for each read: {line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert_eq!(outcome.result("timer").interrupt_exits(), 0, "{outcome}");
    let others = line.exits_but_the_watchdogs();
    format!(
        "{reads} reads, {interrupts} interrupts, 0 exits by interrupts or their ends, {others} other exits but the watchdog's"
    )
}

fn restarts(emulator: Emulator, wanted: usize) -> String {
    let folder = Folder::new(&format!("endurance-restarts-{emulator}"));
    let mut session = generations::start(&folder, emulator, PATIENCE);
    restart(&mut session);
    let first = memory(&mut session);
    for _ in 0..wanted {
        restart(&mut session);
    }
    let last = memory(&mut session);
    session.keys("stop generations\rstop other\r");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(last.0, first.0);
    assert!(!screen.contains("FAILED"), "{screen}");
    let arrived = screen.lines().filter(|line| line.contains("interrupt arrives")).count();
    assert!(arrived > wanted, "{arrived} interrupts\n{screen}");
    format!(
        "{wanted} restarts, {arrived} interrupts; pool, tables and entries the same, heap {} and {} bytes",
        first.1, last.1
    )
}

/// The guests of [`attack`], the attacker last.
fn guests(folder: &Folder, program: &str, command_line: &str) -> String {
    let mut net = Guest::on_qemu("igb transfers=key", "[\"00:06.0\"]");
    (net.name, net.cpus) = ("net", "[0, 1]");
    let mut disk = Guest::on_qemu("nvme,reboot reads=5000 quiet", "[\"00:04.0\"]");
    (disk.name, disk.cpus, disk.kernel, disk.on_reboot) =
        ("disk", "[2, 3]", Kernel::Cloud, "restart");
    let mut disk = disk.toml();
    // An image holds each name once.
    for name in ["vmlinuz", "initrd.img"] {
        let (file, link) =
            (Kernel::Cloud.folder().join(name), folder.path(&format!("disk-{name}")));
        let linked = fs::canonicalize(&file).and_then(|file| symlink(file, &link));
        assert!(linked.is_ok(), "{name}: {linked:?}");
        disk = disk.replace(&file.display().to_string(), &link.display().to_string());
    }
    let small = |program: &str, name: &str, cpus: &str, command_line: &str| {
        let payload = Payload { command_line, cpus, memory: "16M", ..Payload::new(program) };
        let own = format!("name = \"{program}\"");
        payload.toml().replace(&own, &format!("name = \"{name}\""))
    };
    net.toml()
        + &disk
        + &small("hostile", "victim", "[4]", "victim 2000")
        + &small(program, "attacker", "[5, 6]", command_line)
}

/// Those that are stopped and started to compare what is taken.
const STOPPED: [&str; 3] = ["disk", "victim", "attacker"];

/// The answer to `memory` while only the network's guest is there.
fn memory_of_one(session: &mut Session) -> (String, u64) {
    for name in STOPPED {
        let _ = session.ask(&format!("stop {name}"));
        while !gone(&session.ask("guests"), name) {}
    }
    memory(session)
}

/// What the answer to `guests` says of this one: its state, and its memory in MiB.
fn row<'a>(guests: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    guests.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        Some((words.nth(1)?, words.nth(1)?))
    })
}

/// Whether it has ended.
fn ended(guests: &str, name: &str) -> bool {
    row(guests, name).is_some_and(|(state, _)| state != "running")
}

/// Whether it has ended and given its memory back, which takes a moment.
fn gone(guests: &str, name: &str) -> bool {
    row(guests, name).is_some_and(|(state, memory)| state != "running" && memory == "0")
}

fn attack(minutes: u64, program: &str, command_line: &str) -> String {
    let folder = Folder::new(&format!("endurance-{program}"));
    let config = folder.write("nexit.toml", guests(&folder, program, command_line));
    let devices = Devices::none().nvme().network("igb", 6);
    let mut arguments = vec!["run", "--config", &config, "--timeout", PATIENCE, "--"];
    arguments.extend(devices.iter());
    let mut session = Session::start(&arguments);
    session.see("disk: demo: kernel");
    // Its prompt is for the first question to see.
    session.keys("\u{1}m");
    let first = memory_of_one(&mut session);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    for name in STOPPED {
        let _ = session.ask(&format!("start {name}"));
    }
    let mut attacks = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(1));
        let guests = session.ask("guests");
        // A guest's line may come between the question and its answer, and the prompt again behind it: no row, then.
        let Some((attacker, _)) = row(&guests, "attacker") else { continue };
        let lives = matches!(attacker, "running" | "poweroff")
            && row(&guests, "net").is_none_or(|(state, _)| state == "running");
        // Its own words, and Nexit's about it, are in no later generation.
        if !lives {
            folder.write("run.log", session.screen());
        }
        assert!(lives, "a guest is dead: {guests}{}", folder.path("run.log").display());
        attacks += usize::from(attacker == "poweroff");
        for name in STOPPED {
            if ended(&guests, name) {
                let _ = session.ask(&format!("start {name}"));
            }
        }
    }
    let last = memory_of_one(&mut session);
    let faults = session.ask("iommu");
    session.keys("\u{1}1");
    session.see("typing to guest 1, net");
    session.keys("\r");
    session.see("nexit: guest net: poweroff");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    assert!(faults.contains("nexit: vt-d: 0 faults\n"), "{faults}");
    assert_eq!(last.0, first.0);
    assert!(!screen.contains("FAILED"), "{}", folder.path("run.log").display());
    let figures = figures(&screen);
    format!(
        "{minutes} minutes, {attacks} attacks, {figures}; pool, tables and entries the same, heap {} and {} bytes",
        first.1, last.1
    )
}

/// What the guests of [`attack`] have done, each checked by itself.
fn figures(screen: &str) -> String {
    let screen = Outcome { output: screen.to_owned(), ..Outcome::default() };
    let of = |guest: &str| screen.of_guest(guest).output;
    let results = |guest: &str, part: &str| -> Vec<ResultLine> {
        let start = format!("demo: {part}: ok");
        of(guest)
            .lines()
            .filter_map(|line| line.strip_prefix(&start))
            .map(ResultLine::parse)
            .collect()
    };
    let (reads, transfers) = (results("disk", "nvme"), results("net", "igb-tcp"));
    for line in reads.iter().chain(&transfers) {
        assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    }
    let watched = of("victim");
    let watched =
        watched.lines().filter(|line| line.contains("its memory is as it wrote it: ok")).count();
    assert!(watched > 0, "the victim came to no end: {reads:?} {transfers:?}");
    assert!(!reads.is_empty() && !transfers.is_empty(), "no work: {reads:?} {transfers:?}");
    let sum = |lines: &[ResultLine], key: &str| lines.iter().map(|line| line.get(key)).sum::<u64>();
    format!(
        "{} boots with {} reads and {} interrupts of the disk, {} checked transfers with {} interrupts, {watched} \
         watches by the victim",
        reads.len(),
        sum(&reads, "reads"),
        sum(&reads, "interrupts"),
        sum(&transfers, "transfers"),
        sum(&transfers, "interrupts"),
    )
}
