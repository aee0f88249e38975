//! A device's message at every moment, on VT-x with VT-d: while the guest exits, sleeps, changes the message's vector
//! or CPU, and ends with one in service. The device of `tests/machines` sends exactly so many ticks later.

use nexit_tests::{Counters, Devices, Emulator, Folder, Outcome, Payload, Session};

/// A CPU that posts interrupts; the same in every mode.
const OPTIONS: &[&str] = &["--bochs-model", "corei7_skylake_x", "--timeout", "300"];

fn sweep(what: &str, cpus: &str, interrupts: &str) -> Outcome {
    let folder = Folder::new(&format!("sweep-{what}-{interrupts}"));
    let further = format!("devices = [\"00:04.0\"]\ninterrupts = \"{interrupts}\"");
    let payload = Payload { cpus, command_line: what, further: &further, ..Payload::new("sweep") };
    let options = [Emulator::BochsVtd.options(), OPTIONS].concat();
    let outcome = folder.run(&payload.toml(), &options, &Devices::behind_vtd(&folder, "nvme=4:"));
    outcome.assert_verdicts(&[]);
    Counters::of(&folder).assert_clean(&outcome);
    outcome
}

/// What the guest does while messages come, and how many do.
const WHILES: &[(&str, u64)] =
    &[("asks CPUID", 1500), ("reads a port", 1500), ("does nothing", 1500), ("sleeps", 215)];

/// `each`: exits that a message and its EOI may cost, at least and at most.
fn alone(interrupts: &str, each: (u64, u64)) {
    let outcome = sweep("alone", "[0]", interrupts);
    let claims = [
        ("a message comes once at every delay: ok", 3),
        ("a message wakes a halted CPU at every delay: ok", 1),
        ("a message comes once while its vector changes: ok", 2),
        ("a forged message passes by the device's own entries alone: ok", 1),
        ("no message in compatibility format passes: ok", 1),
    ];
    for (claim, times) in claims {
        assert_eq!(outcome.output.matches(claim).count(), times, "{claim}\n{outcome}");
    }
    let fault = "IOMMU fault: 00:1e.7: DMA write to 0xdeadb000 refused";
    assert!(outcome.own_lines().any(|line| line.contains(fault)), "{outcome}");
    for (what, messages) in WHILES {
        let spent = outcome.number(&format!("exits by {messages} messages while it {what}"));
        let (least, most) = (messages * each.0, messages * each.1);
        assert!((least..=most).contains(&spent), "{what}: {spent}\n{outcome}");
    }
}

#[test]
fn a_message_at_any_moment_comes_once_and_costs_no_exit() {
    alone("exitless", (0, 0));
}

#[test]
fn a_message_at_any_moment_comes_once_in_the_exiting_mode() {
    alone("exiting", (2, 2));
}

#[test]
fn a_message_at_any_moment_comes_once_and_exits_once_in_the_posted_mode() {
    alone("posted", (1, 1));
}

/// While CPU 1 spins, exits and halts, by masked changes and in place.
fn pair(interrupts: &str) -> u64 {
    const MOVES: u64 = 259;
    let outcome = sweep("pair", "[0, 1]", interrupts);
    let claim = "a message comes once while it moves to the other CPU: ok";
    assert_eq!(outcome.output.matches(claim).count(), 6, "{outcome}");
    for work in ["spins", "exits", "halts"] {
        for how in ["masked", "in place"] {
            let moves = outcome.number(&format!("moves while CPU 1 {work}, {how}"));
            assert_eq!(moves, MOVES, "{outcome}");
        }
    }
    let second = &outcome.report["guests"][0]["vcpus"][1]["exits"];
    assert!(second["cpuid"].as_u64() > Some(2 * MOVES), "it did exit\n{outcome}");
    outcome.number("exits by all moves")
}

#[test]
fn a_message_that_moves_to_another_cpu_comes_once_and_costs_no_exit() {
    assert_eq!(pair("exitless"), 0);
}

#[test]
fn a_message_that_moves_to_another_cpu_comes_once_in_the_exiting_mode() {
    assert!(pair("exiting") >= 2 * 6 * 259);
}

#[test]
fn a_message_that_moves_to_another_cpu_comes_once_in_the_posted_mode() {
    assert!(pair("posted") >= 6 * 259);
}

const LIFE: &[&str] = &[
    "nothing is in service or requested at the start",
    "the device's interrupt comes once",
    "the device copies",
    "one is in service and one requested at the end",
];

fn each_generation_was_whole(screen: &str, generations: usize, folder: &Folder) {
    assert!(!screen.contains("FAILED"), "{screen}");
    for claim in LIFE {
        let shown = screen.matches(&format!("payload: {claim}: ok (")).count();
        assert!(shown >= generations, "{claim}: {shown} of {generations}\n{screen}");
    }
    let outcome = Outcome { output: screen.to_owned(), ..Outcome::default() };
    Counters::of(folder).assert_clean(&outcome);
}

fn session(folder: &Folder, toml: &str, plugin: &str) -> Session {
    let config = folder.write("nexit.toml", toml);
    let devices = Devices::behind_vtd(folder, plugin);
    let start = ["run", "--config", &config];
    let mut arguments = [&start[..], Emulator::BochsVtd.options(), OPTIONS, &["--"]].concat();
    arguments.extend(devices.iter());
    Session::start(&arguments)
}

/// With a vector in service, one requested and a copy under way a guest resets itself, again and again.
fn dies_at_work(interrupts: &str, plugin: &str) {
    const GENERATIONS: usize = 10;
    let folder = Folder::new(&format!("sweep-dies-{interrupts}-{}", plugin.len()));
    let further = format!("devices = [\"00:04.0\"]\ninterrupts = \"{interrupts}\"");
    let payload = Payload {
        command_line: "die=reset",
        on_reboot: "restart",
        further: &further,
        ..Payload::new("sweep")
    };
    let mut session = session(&folder, &payload.toml().replace("64M", "16M"), plugin);
    for _ in 0..GENERATIONS {
        session.see("payload: lived");
        session.see("restarting");
    }
    session.see("payload: lived");
    session.keys("\u{1}x");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    each_generation_was_whole(&screen, GENERATIONS, &folder);
}

#[test]
fn a_guest_that_dies_at_work_leaves_nothing_to_its_next_generation() {
    dies_at_work("exitless", "nvme=4:");
}

#[test]
fn nor_does_it_in_the_exiting_mode() {
    dies_at_work("exiting", "nvme=4:");
}

#[test]
fn nor_does_it_in_the_posted_mode() {
    dies_at_work("posted", "nvme=4:");
}

#[test]
fn nor_does_it_with_a_device_that_cannot_be_reset() {
    dies_at_work("exitless", "nvme=4:, flr=0");
}

/// Two guests with a controller each, stopped at work. After each round each has the domain, the remapping entries and
/// the memory that the other had: whatever the unit was not told to forget is the other's now.
#[test]
fn guests_that_swap_places_find_nothing_of_each_other() {
    const ROUNDS: usize = 4;
    let folder = Folder::new("sweep-swapped");
    let guest = |name: &str, cpu: u8, device: u8| {
        let further = format!("devices = [\"00:{device:02x}.0\"]");
        let payload =
            Payload { command_line: "die=wait", further: &further, ..Payload::new("sweep") };
        let toml = payload.toml().replace("name = \"sweep\"", &format!("name = \"{name}\""));
        toml.replace("[0]", &format!("[{cpu}]")).replace("64M", "16M")
    };
    // The machine goes on while this one runs.
    let other = Payload { cpus: "[2]", command_line: "spin", ..Payload::new("ends") }.toml();
    let toml = guest("a", 0, 4) + &guest("b", 1, 5) + &other;
    let mut session = session(&folder, &toml, "nvme=4:, nvme=5:");
    session.see("ends: payload: ends by spin");
    session.keys("\u{1}m");
    session.see("nexit> ");
    for round in 0..=ROUNDS {
        let order = if round % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
        for name in order {
            if round == 0 {
                session.keys(&format!("restart {name}\r"));
            } else {
                // What its generation took may not be given back yet when its end is on the screen.
                while session.ask(&format!("start {name}")).contains("has not ended") {}
            }
            session.see(&format!("{name}: payload: lived"));
        }
        for name in ["a", "b"] {
            session.keys(&format!("stop {name}\r"));
            session.see(&format!("guest {name}: stopped after"));
        }
    }
    session.keys("stop ends\r");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    each_generation_was_whole(&screen, 2 * (ROUNDS + 1), &folder);
}
