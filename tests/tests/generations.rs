//! A guest's generations: what each takes is given back at its end, to the byte.

use nexit_tests::generations::{self, memory, restart};
use nexit_tests::{Devices, Emulator, Folder, Payload, Session};

const GENERATIONS: usize = 100;

/// Each generation uses the controller by DMA and by an MSI-X message.
#[test]
fn a_guest_with_a_device_begins_a_hundred_times_and_nothing_is_lost() {
    let folder = Folder::new("generations");
    let mut session = generations::start(&folder, Emulator::Qemu, "600");
    restart(&mut session);
    let (first, heap) = memory(&mut session);
    for _ in 1..GENERATIONS {
        restart(&mut session);
    }
    let (last, last_heap) = memory(&mut session);
    assert_eq!(last, first);
    // The allocator rounds up where a hole would be too small to keep.
    assert!(last_heap.abs_diff(heap) <= 64, "{heap} bytes of heap, then {last_heap}");
    for (end, begin) in [("stop", "start"), ("stop", "restart")] {
        session.keys(&format!("{end} generations\r"));
        session.see("guest generations: stopped after");
        let freed = |line: &str| line.starts_with("nexit: generations ") && line.ends_with(" 0");
        assert!(session.ask("memory").lines().any(freed));
        session.keys(&format!("{begin} generations\r"));
        session.see("guest generations: started");
        session.see("generations: payload: lived");
    }
    assert_eq!(memory(&mut session).0, first);
    assert!(session.ask("start generations").contains("generations has not ended"));
    session.keys("stop generations\rstop other\r");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(status.code(), Some(1), "they were stopped\n{screen}");
    assert!(!screen.contains("FAILED"), "{screen}");
    for claim in ["its controller is fresh", "answers by DMA", "interrupt arrives"] {
        let shown = screen.lines().filter(|line| line.contains(claim)).count();
        assert!(shown > GENERATIONS, "{claim}: {shown} times\n{screen}");
    }
}

/// The figure before ` MiB free` in a refusal.
fn free_mib(sentence: &str) -> u64 {
    let before = sentence.split(" MiB free").next().unwrap_or_default();
    let figure = before.split_whitespace().last().and_then(|word| word.parse().ok());
    figure.unwrap_or_else(|| panic!("no figure: {sentence}"))
}

/// No larger guest fits into what is left of the memory, and a neighbour's BAR wanders: what a generation needs
/// is the guest's own from its building on.
#[test]
fn with_no_memory_left_any_guest_restarts_beside_one_that_moves_its_bar() {
    let folder = Folder::new("full");
    let further = "devices = [\"00:04.0\"]";
    let moves =
        Payload { command_line: "moves", memory: "16M", further, ..Payload::new("generations") };
    let fills = |name: &str, cpu: u32, mib: u64| {
        let kernel = Payload::new("ends").path();
        format!(
            "[[guest]]\nname = \"{name}\"\ncpus = [{cpu}]\nmemory = \"{mib}M\"\ncmdline = \"spin\"\nkernel = \"{}\"\n",
            kernel.display()
        )
    };
    let with = |mib| moves.toml() + &fills("small", 1, 64) + &fills("large", 2, mib);
    let options = &["--memory", "1G", "--timeout", "150"];
    // The refusal says what the machine has; tables of the largest guest are not counted yet.
    let devices = Devices::none().nvme();
    let mut mib = free_mib(folder.run(&with(4096), options, &devices).refusal()) & !1;
    let mut refused = 0;
    let mut session = loop {
        let config = folder.write("nexit.toml", with(mib));
        let mut arguments = vec!["run", "--unchecked", "--config", &config];
        arguments.extend(options);
        arguments.push("--");
        arguments.extend(devices.iter());
        let mut session = Session::start(&arguments);
        let (seen, _) = session.see_one_of(&["nexit: halted", "guest large: entering"]);
        if seen == 1 {
            break session;
        }
        let _ = session.end();
        (mib, refused) = (mib - 2, refused + 1);
        assert!(refused < 8, "{mib} MiB are refused, too");
    };
    assert!(refused > 0, "there was room for more");
    session.see("generations: payload: moved 0 times");
    session.keys("\u{1}m");
    session.see("nexit> ");
    restart_any(&mut session, "large");
    let first = memory(&mut session).0;
    for name in ["large", "small", "generations", "large", "small", "generations", "large"] {
        restart_any(&mut session, name);
    }
    session.see("generations: payload: moved ");
    assert_eq!(memory(&mut session).0, first);
    session.keys("stop generations\rstop small\rstop large\r");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    assert!(!screen.contains("FAILED") && !screen.contains("not started"), "{screen}");
    assert!(!screen.contains("mapping a BAR"), "no table is missing\n{screen}");
}

/// Restarts a guest, whichever it is, and waits for its first words.
fn restart_any(session: &mut Session, name: &str) {
    let words = if name == "generations" { "moved 0 times" } else { "ends by spin" };
    session.keys(&format!("restart {name}\r"));
    session.see(&format!("guest {name}: stopped: restarting"));
    session.see(&format!("{name}: payload: {words}"));
}

/// The boot processor, and one that nothing but its next job can wake.
fn a_processor_without_a_job_wakes_for_one(emulator: Emulator) {
    let folder = Folder::new(&format!("wakes-{emulator}"));
    let guest = |name: &str, cpu: &str| {
        let payload = Payload { command_line: "spin", ..Payload::new("ends") }.toml();
        payload.replace("\"ends\"", &format!("\"{name}\"")).replace("[0]", cpu)
    };
    let config = folder.write("nexit.toml", guest("boot", "[0]") + &guest("other", "[1]"));
    let run = [&["run", "--config", &config, "--timeout", "150"], emulator.options()].concat();
    let mut session = Session::start(&run);
    session.see("guest other: entering");
    session.keys("\u{1}m");
    session.see("nexit> ");
    session.keys("stop other\r");
    session.see("guest other: stopped after");
    // What two guests say at once stands in pieces; now there is one.
    session.keys("restart boot\r");
    session.see("guest boot: stopped: restarting");
    session.see("boot: payload: ends by spin");
    for (stopped, next) in [("other", "boot"), ("boot", "other"), ("other", "boot")] {
        // Keys find their way while it sleeps.
        let row = |line: &str| line.contains(&format!(" {stopped} ")) && line.contains(" stopped ");
        assert!(session.ask("guests").lines().any(row));
        session.keys(&format!("start {stopped}\r"));
        session.see(&format!("guest {stopped}: started"));
        session.see(&format!("{stopped}: payload: ends by spin"));
        session.keys(&format!("stop {next}\r"));
        session.see(&format!("guest {next}: stopped after"));
    }
    // Before its CPU has left, or while that gives back what the generation had, or behind it: the last word counts.
    for _ in 0..5 {
        session.keys("stop other\rrestart other\r");
        session.see("other: payload: ends by spin");
    }
    session.keys("restart other\rstop other\r");
    session.see("guest other: stopped after");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(status.code(), Some(1), "they were stopped\n{screen}");
    assert!(screen.contains("nexit: all guests have ended"), "{screen}");
}

#[test]
fn a_processor_without_a_job_wakes_for_one_on_amd_v() {
    a_processor_without_a_job_wakes_for_one(Emulator::Qemu);
}

#[test]
fn a_processor_without_a_job_wakes_for_one_on_vt_x() {
    a_processor_without_a_job_wakes_for_one(Emulator::Bochs);
}

/// Short generations of a guest that end in `way`: the waits grow. What the screen shows.
fn restart_backoff(emulator: Emulator, way: &str, outcome: &str) -> String {
    let folder = Folder::new(&format!("short-generations-{outcome}-{emulator}"));
    let further = "on_crash = \"restart\"";
    let payload =
        Payload { command_line: way, on_reboot: "restart", further, ..Payload::new("ends") };
    let config = folder.write("nexit.toml", payload.toml());
    let run = [&["run", "--config", &config, "--timeout", "300"], emulator.options()].concat();
    let mut session = Session::start(&run);
    session.see("guest ends: entering");
    session.keys("\u{1}m");
    for wait in ["", " in 1 ms", " in 2 ms", " in 4 ms", " in 8 ms", " in 16 ms"] {
        session.see(&format!("guest ends: {outcome}: restarting{wait}\n"));
    }
    session.keys("stop ends\r");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    assert!(screen.contains("guest ends: stopped after"), "{screen}");
    screen
}

#[test]
fn a_guest_that_reboots_in_a_row_waits_longer_each_time() {
    restart_backoff(Emulator::Qemu, "reset-register", "reboot");
}

#[test]
#[ignore = "the same policy as in QEMU, on VT-x"]
fn a_guest_that_reboots_in_a_row_waits_longer_each_time_on_vt_x() {
    restart_backoff(Emulator::Bochs, "reset-register", "reboot");
}

#[test]
fn a_guest_that_crashes_in_a_row_waits_longer_each_time() {
    crashes_in_a_row(Emulator::Qemu);
}

#[test]
#[ignore = "the same policy as in QEMU, on VT-x"]
fn a_guest_that_crashes_in_a_row_waits_longer_each_time_on_vt_x() {
    crashes_in_a_row(Emulator::Bochs);
}

/// Only the first crash of a row is told in full.
fn crashes_in_a_row(emulator: Emulator) {
    let screen = restart_backoff(emulator, "triple-fault", "triple_fault");
    for part in ["rax ", "last exits: ", "code at rip: "] {
        assert_eq!(screen.matches(part).count(), 1, "{part}\n{screen}");
    }
}
