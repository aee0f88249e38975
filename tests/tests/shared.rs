//! Memory that guests share, and its doorbells.

use nexit_tests::{Devices, Emulator, Folder, Guest, Outcome, Payload};

const CLAIMS: &[&str] = &[
    "the other guest is there: ok (generation 2",
    "each ring is heard once, and the other's pattern is there: ok (1000 of 1000 in generation 1",
    "each ring is heard once, and the other's pattern is there: ok (1000 of 1000 in generation 2",
];
const REASONS: [&str; 3] = ["external_interrupt", "eoi", "shadow_gate"];

const PIPE: &str = "[[shared]]\nname = \"pipe\"\nsize = \"1M\"\nguests = [\"one\", \"two\"]\n";

fn player(name: &str, cpu: u8, interrupts: &str) -> String {
    let kernel = Payload::new("ring").path();
    // Bochs does not wake a CPU that halts with a virtual interrupt pending.
    let awake = if interrupts == "posted" { "awake" } else { "" };
    format!(
        "[[guest]]\nname = \"{name}\"\ncpus = [{cpu}]\nmemory = \"16M\"\nkernel = \"{}\"\n\
         cmdline = \"{awake}\"\non_reboot = \"restart\"\ninterrupts = \"{interrupts}\"\n",
        kernel.display()
    )
}

/// Two guests of one CPU each, 1000 round trips in each of the second one's two generations.
fn ring(emulator: Emulator, interrupts_of_the_second: &str) -> [Outcome; 2] {
    let first = player("one", 0, "exitless");
    let toml = format!("{PIPE}{first}{}", player("two", 1, interrupts_of_the_second));
    let options = [emulator.options(), &["--timeout", "240"]].concat();
    let folder = Folder::new(&format!("ring-{interrupts_of_the_second}-{emulator}"));
    let outcome = folder.run(&toml, &options, &Devices::none());
    assert_eq!(outcome.report["backend"], emulator.backend(), "{outcome}");
    ["one", "two"].map(|name| {
        let own = outcome.of_guest(name);
        own.assert_verdicts(&[]);
        for claim in CLAIMS {
            assert!(own.payload(claim).is_some(), "{name}: {claim}\n{outcome}");
        }
        own
    })
}

/// As many exits as doorbells that the guest rang itself: those of the other cost it nothing.
fn only_its_own_ringing_exits(guest: &Outcome) {
    for generation in [1, 2] {
        assert_eq!(
            guest.number(&format!("exits for 1000 rounds, generation {generation}")),
            1000,
            "{guest}"
        );
        for reason in REASONS {
            assert_eq!(
                guest.number(&format!("exits by {reason}, generation {generation}")),
                0,
                "{guest}"
            );
        }
    }
}

#[test]
fn a_doorbell_costs_its_sender_one_exit_and_its_receiver_none_on_amd_v() {
    ring(Emulator::Qemu, "exitless").iter().for_each(only_its_own_ringing_exits);
}

#[test]
fn a_doorbell_costs_its_sender_one_exit_and_its_receiver_none_on_vt_x() {
    ring(Emulator::Bochs, "exitless").iter().for_each(only_its_own_ringing_exits);
}

#[test]
fn a_receiver_in_the_exiting_mode_pays_for_each_doorbell() {
    let [one, two] = ring(Emulator::Qemu, "exiting");
    only_its_own_ringing_exits(&one);
    for reason in ["external_interrupt", "eoi"] {
        assert_eq!(two.number(&format!("exits by {reason}, generation 2")), 1000, "{two}");
    }
}

#[test]
fn a_receiver_in_the_posted_mode_pays_for_each_doorbell_but_not_for_its_end() {
    let [one, two] = ring(Emulator::Bochs, "posted");
    only_its_own_ringing_exits(&one);
    for generation in [1, 2] {
        let exits = |reason| two.number(&format!("exits by {reason}, generation {generation}"));
        assert_eq!((exits("external_interrupt"), exits("eoi")), (1000, 0), "{two}");
    }
}

/// Linux has no stock driver that would hand the interrupts on: it rings, and looks for the answer.
#[test]
fn stock_linux_finds_the_memory_binds_it_and_rings_from_user_space() {
    let linux = Guest { name: "one", ..Guest::on_qemu("shared", "[]") };
    let toml = format!("{PIPE}{}{}", linux.toml(), player("two", 1, "exitless"));
    let options = ["--timeout", "240"];
    let outcome = Folder::new("ring-linux").run(&toml, &options, &Devices::none());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let (linux, two) = (outcome.of_guest("one"), outcome.of_guest("two"));
    let _ = linux.result("shared-uio");
    let line = linux.result("shared");
    assert_eq!((line.get("rounds"), line.exits("nested_page_fault")), (2000, 2000), "{line:?}");
    assert_eq!(line.exits_but_the_watchdogs(), 2000, "{line:?}");
    // Prefetchable memory of 64 bits.
    let bar = "0x0000000080100000 0x00000000801fffff 0x000000000014220c";
    assert!(linux.output.contains(&format!("shared: 0000:00:1f.0 {bar}")), "{linux}");
    two.assert_verdicts(&[]);
    only_its_own_ringing_exits(&two);
}
