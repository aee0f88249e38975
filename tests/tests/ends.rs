//! How a guest ends, and what becomes of the run.

use nexit_tests::{Devices, Emulator, Folder, Guest, Outcome, Payload, Session};

fn run(emulator: Emulator, way: &str) -> Outcome {
    run_with(emulator, way, "exitless")
}

fn run_with(emulator: Emulator, way: &str, interrupts: &str) -> Outcome {
    let further = format!("interrupts = \"{interrupts}\"");
    let payload = Payload { command_line: way, further: &further, ..Payload::new("ends") };
    let outcome = emulator.run(&format!("ends-{way}-{interrupts}"), &payload);
    assert_eq!(outcome.payload("ends by "), Some(way), "{outcome}");
    assert!(!outcome.output.contains("FAILED"), "{outcome}");
    outcome
}

/// The guest's end fails the run: it has this name, and the hypervisor itself comes to its own end.
fn assert_fails_as(outcome: &Outcome, key: &str) {
    assert_eq!(outcome.status, Some(1), "{outcome}");
    assert_eq!(outcome.guest_outcome("ends"), Some(key), "{outcome}");
    assert!(outcome.own_lines().any(|line| line == "nexit: all guests have ended"), "{outcome}");
    assert!(outcome.errors.contains(&format!("guest ends did not power off: {key}")), "{outcome}");
}

fn every_way_to_restart_is_a_reboot(emulator: Emulator) {
    for way in ["reset-register", "keyboard-controller", "system-control-port"] {
        assert_fails_as(&run(emulator, way), "reboot");
    }
}

fn a_triple_fault_ends_the_guest_alone(emulator: Emulator) {
    // While the shadow watches a table that is too short, the exits tell of the faults one by one.
    assert_fails_as(&run(emulator, "triple-fault"), "triple_fault");
    let outcome = run_with(emulator, "triple-fault", "exiting");
    assert_fails_as(&outcome, "triple_fault");
    assert_eq!(outcome.exits("triple_fault"), Some(1), "{outcome}");
}

/// FF FF is no instruction, and the payload has no handler of the exception.
fn code_where_nothing_is_is_no_instruction(emulator: Emulator) {
    let outcome = run(emulator, "nowhere");
    assert_fails_as(&outcome, "triple_fault");
    let sentence = "nexit: guest ends: it executed 0xd0000000, which is unused";
    assert!(outcome.own_lines().any(|line| line == sentence), "{outcome}");
}

fn a_halt_with_interrupts_off_is_an_end(emulator: Emulator) {
    assert_fails_as(&run(emulator, "halt"), "halted");
}

#[test]
fn power_off_is_success_and_the_report_says_so() {
    for emulator in [Emulator::Qemu, Emulator::Bochs] {
        let outcome = run(emulator, "poweroff");
        assert_eq!(outcome.status, Some(0), "{outcome}");
        assert_eq!(outcome.guest_outcome("ends"), Some("poweroff"), "{outcome}");
        let report = &outcome.report;
        assert_eq!(report["backend"], emulator.backend(), "{report}");
        for key in ["boot_tsc", "memory_bytes"] {
            assert!(report[key].as_u64().is_some_and(|number| number > 0), "{key}: {report}");
        }
        assert!(outcome.exits("io").is_some_and(|exits| exits > 0), "{report}");
        for key in ["external_interrupt", "eoi"] {
            assert_eq!(report["guests"][0]["vcpus"][0]["exits"][key], 0, "always there: {report}");
        }
    }
}

#[test]
fn every_way_to_restart_is_a_reboot_on_amd_v() {
    every_way_to_restart_is_a_reboot(Emulator::Qemu);
}

#[test]
fn every_way_to_restart_is_a_reboot_on_vt_x() {
    every_way_to_restart_is_a_reboot(Emulator::Bochs);
}

#[test]
fn a_triple_fault_ends_the_guest_alone_on_amd_v() {
    a_triple_fault_ends_the_guest_alone(Emulator::Qemu);
}

#[test]
fn a_triple_fault_ends_the_guest_alone_on_vt_x() {
    a_triple_fault_ends_the_guest_alone(Emulator::Bochs);
}

#[test]
fn code_where_nothing_is_is_no_instruction_on_amd_v() {
    code_where_nothing_is_is_no_instruction(Emulator::Qemu);
}

#[test]
fn code_where_nothing_is_is_no_instruction_on_vt_x() {
    code_where_nothing_is_is_no_instruction(Emulator::Bochs);
}

#[test]
fn a_halt_with_interrupts_off_is_an_end_on_amd_v() {
    a_halt_with_interrupts_off_is_an_end(Emulator::Qemu);
}

#[test]
fn a_halt_with_interrupts_off_is_an_end_on_vt_x() {
    a_halt_with_interrupts_off_is_an_end(Emulator::Bochs);
}

#[test]
fn a_guest_that_never_ends_times_out() {
    let payload = Payload { command_line: "spin", ..Payload::new("ends") };
    let options = ["--timeout", "15"];
    let outcome = Folder::new("ends-spin").run(&payload.toml(), &options, &Devices::none());
    assert_eq!(outcome.status, Some(124), "{outcome}");
    assert_eq!(outcome.payload("ends by "), Some("spin"), "it ran: {outcome}");
    assert_eq!(outcome.guest_outcome("ends"), None, "{outcome}");
}

/// The guest ends and restarts again and again, each time in fresh memory, until the user has seen enough.
fn restarts(emulator: Emulator, way: &str, further: &str) {
    restarts_on(emulator, way, "[0]", further);
}

fn restarts_on(emulator: Emulator, way: &str, cpus: &str, further: &str) {
    let payload =
        Payload { command_line: way, on_reboot: "restart", cpus, further, ..Payload::new("ends") };
    let folder = Folder::new(&format!("anew-{way}-{emulator}"));
    let config = folder.write("nexit.toml", payload.toml());
    let run = [&["run", "--config", &config, "--timeout", "240"], emulator.options()].concat();
    let mut session = Session::start(&run);
    for _life in 0..3 {
        session.see("payload: its memory is fresh: ok");
        if way == "second-cpu" {
            session.see("payload: its second CPU is fresh: ok");
        }
    }
    session.keys("\u{1}x");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(status.code(), Some(1), "{screen}");
    assert!(!screen.contains("FAILED"), "{screen}");
}

#[test]
fn a_guest_that_reboots_restarts_in_fresh_memory() {
    restarts(Emulator::Qemu, "reset-register", "");
    restarts(Emulator::Bochs, "reset-register", "");
}

/// It leaves interrupts of the vectors 16 to 31 pending, which the hypervisor's own exceptions have, too.
#[test]
fn no_interrupt_that_a_generation_left_pending_reaches_the_next_one_on_amd_v() {
    restarts(Emulator::Qemu, "low-vectors", "");
}

#[test]
fn no_interrupt_that_a_generation_left_pending_reaches_the_next_one_on_vt_x() {
    restarts(Emulator::Bochs, "low-vectors", "");
}

/// A start-up IPI keeps what INIT does, and nothing of whoever had the CPU before.
#[test]
fn what_a_second_cpu_keeps_is_no_earlier_generations_on_amd_v() {
    restarts_on(Emulator::Qemu, "second-cpu", "[0, 1]", "");
}

#[test]
fn what_a_second_cpu_keeps_is_no_earlier_generations_on_vt_x() {
    restarts_on(Emulator::Bochs, "second-cpu", "[0, 1]", "");
}

#[test]
fn a_guest_that_crashes_restarts_where_on_crash_says_so() {
    restarts(Emulator::Qemu, "triple-fault", "on_crash = \"restart\"");
    restarts(Emulator::Bochs, "nowhere", "on_crash = \"restart\"");
}

#[test]
fn no_guest_can_speak_in_the_hypervisors_name() {
    let outcome = run(Emulator::Qemu, "lie");
    // It said that the hypervisor has halted, and that it crashed itself.
    assert!(outcome.output.contains("\nnexit: halted\n"), "{outcome}");
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.report["guests"].as_array().map(Vec::len), Some(1), "{outcome}");
    assert_eq!(outcome.guest_outcome("ends"), Some("poweroff"), "{outcome}");
}

fn linux(part: &'static str, key: &str) -> Outcome {
    let name = format!("linux-{part}");
    let options = ["--timeout", "240"];
    let guest = Guest::on_qemu(part, "[]");
    let outcome = Folder::new(&name).run(&guest.toml(), &options, &Devices::none());
    assert_eq!(outcome.status, Some(1), "{outcome}");
    assert_eq!(outcome.guest_outcome("linux"), Some(key), "{outcome}");
    outcome
}

#[test]
fn linux_that_panics_asks_for_a_restart() {
    let outcome = linux("crash", "reboot");
    assert!(outcome.output.contains("Kernel panic"), "{outcome}");
}

#[test]
fn linux_that_reboots_asks_for_a_restart() {
    linux("reboot", "reboot");
}

/// Executes zeros for three seconds, then waits five for a tick that cannot come.
fn a_guest_that_waits_for_what_cannot_come_is_named(emulator: Emulator) {
    let outcome = run(emulator, "waits");
    assert_eq!(outcome.status, Some(0), "{outcome}");
    for what in ["CPU 0 executes zeros at 0x", "CPU 0 waits at 0x"] {
        let said = outcome.own_lines().filter(|line| line.contains(what)).count();
        assert_eq!(said, 1, "{what}: {outcome}");
    }
}

#[test]
fn a_guest_that_waits_for_what_cannot_come_is_named_on_amd_v() {
    a_guest_that_waits_for_what_cannot_come_is_named(Emulator::Qemu);
}

#[test]
fn a_guest_that_waits_for_what_cannot_come_is_named_on_vt_x() {
    a_guest_that_waits_for_what_cannot_come_is_named(Emulator::Bochs);
}
