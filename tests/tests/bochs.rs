//! Linux on VT-x in Bochs, started by BIOS and GRUB from the hybrid image.

use nexit_tests::{Devices, Folder, Guest, Outcome, Payload};

const OPTIONS: &[&str] = &["--emulator", "bochs", "--iommu", "none", "--timeout", "600"];

fn run(name: &str, guest: &Guest) -> Outcome {
    let toml = format!("unsafe_no_iommu = true\n{}", guest.toml());
    let folder = Folder::new(name);
    let outcome = folder.run(&toml, OPTIONS, &Devices::ide(&folder));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.report["backend"], "vmx");
    outcome
}

#[test]
fn ide_and_timer_interrupts_cost_no_exit() {
    let outcome = run("ide-exitless", &Guest::on_bochs("ide,timer reads=3000"));
    let _ = outcome.result("ide-files");
    let line = outcome.result("ide");
    assert!(line.get("interrupts") >= 3000, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert_eq!(line.exits_but_the_watchdogs(), 0, "{line:?}");
    let timer = outcome.result("timer");
    assert!(timer.get("interrupts") > 0, "{timer:?}");
    assert_eq!(timer.interrupt_exits(), 0, "{timer:?}");
}

#[test]
#[ignore = "44 s, and `vtx_vtd` has it, too: `make test-all`"]
fn the_classic_way_works_and_shows_in_the_counters() {
    let mut guest = Guest::on_bochs("ide reads=500");
    guest.interrupts = "exiting";
    let outcome = run("ide-exiting", &guest);
    let line = outcome.result("ide");
    assert!(line.get("external_interrupt") >= 500, "{line:?}");
    assert!(line.get("eoi") >= 500, "{line:?}");
}

/// Bochs' display wants a port, and gives up where the machine has none for it at the moment.
#[test]
fn bochs_is_started_again_where_it_found_no_port() {
    let folder = Folder::new("bochs-port");
    let once = folder.path("once").display().to_string();
    let program = format!(
        "#!/bin/sh\n[ \"$1\" = -q ] && mkdir '{once}' 2> /dev/null || exec bochs \"$@\"\n\
         for rc in \"$@\"; do :; done\n\
         echo '0p[RFB   ] >>PANIC<< RFB could not bind any port between 5900 and 5949' \
         > \"$(sed -n 's/^log: \"\\(.*\\)\"/\\1/p' \"$rc\")\"\nexit 1\n"
    );
    let program = folder.program("bochs", &program);
    let options =
        ["--emulator", "bochs", "--iommu", "none", "--timeout", "240", "--bochs", &program];
    let outcome = folder.run(&Payload::new("ends").toml(), &options, &Devices::none());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(folder.path("once").is_dir(), "it was not asked the first time");
}
