//! Memory that guests share, and its doorbells.

use nexit_tests::{Devices, Emulator, Folder, Outcome, Payload};

const CLAIMS: &[&str] = &[
    "the other guest is there: ok (life 2",
    "each ring is heard once, and the other's pattern is there: ok (1000 of 1000 in life 1",
    "each ring is heard once, and the other's pattern is there: ok (1000 of 1000 in life 2",
];
const REASONS: [&str; 3] = ["external_interrupt", "eoi", "shadow_gate"];

/// Two guests of one CPU each, 1000 round trips in each of the second one's two lives.
fn ring(emulator: Emulator, interrupts_of_the_second: &str) -> [Outcome; 2] {
    let kernel = Payload::new("ring").path();
    let guest = |name: &str, cpu: u8, further: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\ncpus = [{cpu}]\nmemory = \"16M\"\nkernel = \"{}\"\n\
             on_reboot = \"restart\"\n{further}\n",
            kernel.display()
        )
    };
    let interrupts = format!("interrupts = \"{interrupts_of_the_second}\"");
    let toml = format!(
        "[[shared]]\nname = \"pipe\"\nsize = \"1M\"\nguests = [\"one\", \"two\"]\n{}{}",
        guest("one", 0, ""),
        guest("two", 1, &interrupts)
    );
    let options = ["--emulator", &emulator.to_string(), "--timeout", "240"];
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
    for life in [1, 2] {
        assert_eq!(guest.number(&format!("exits for 1000 rounds, life {life}")), 1000, "{guest}");
        for reason in REASONS {
            assert_eq!(guest.number(&format!("exits by {reason}, life {life}")), 0, "{guest}");
        }
    }
}

#[test]
fn a_doorbell_costs_its_ringer_one_exit_and_its_hearer_none_on_amd_v() {
    ring(Emulator::Qemu, "exitless").iter().for_each(only_its_own_ringing_exits);
}

#[test]
fn a_doorbell_costs_its_ringer_one_exit_and_its_hearer_none_on_vt_x() {
    ring(Emulator::Bochs, "exitless").iter().for_each(only_its_own_ringing_exits);
}

#[test]
fn a_hearer_in_the_exiting_mode_pays_for_each_doorbell() {
    let [one, two] = ring(Emulator::Qemu, "exiting");
    only_its_own_ringing_exits(&one);
    for reason in ["external_interrupt", "eoi"] {
        assert_eq!(two.number(&format!("exits by {reason}, life 2")), 1000, "{two}");
    }
}
