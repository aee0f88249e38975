//! The local APIC in all its modes, and IPIs between a guest's CPUs, on both emulators.

use nexit_tests::{Devices, Emulator, Folder, Guest, Outcome, Payload, project_folder};

const CLAIMS: &[&str] = &[
    "there is no page in x2APIC mode",
    "modes change as the manual allows",
    "there are no MSRs in xAPIC mode",
    "IPIs to itself arrive in xAPIC mode",
    "every form of store writes",
    "every form of load reads",
    "the timer wakes a halted CPU, and not while it is masked",
    "TPR holds its class back and lets higher ones pass",
    "what is in service holds lower classes back until its EOI",
    "nothing is left in service",
    "the page moves, and IPIs and EOIs with it",
    "a software-disabled APIC takes no IPI and keeps its timer masked",
    "a disabled APIC is silent, and as after reset when it comes back",
    "it works again",
    "in x2APIC mode the page is gone and interrupts arrive",
    "IPIs reach the CPUs that they name and no other",
    "one CPU takes a lowest-priority IPI",
    "a vector below 32 reaches the CPUs that the IPI names",
    "NMIs reach the CPU that they name",
    "a CPU whose APIC is software-disabled takes NMIs only",
    "an NMI at any moment of an exit arrives",
    "INIT stops a CPU and a start-up IPI starts it anew, three times",
];

const SAID: &str = "it uses its local APIC in xAPIC mode";

fn said(outcome: &Outcome) -> usize {
    outcome.own_lines().filter(|line| line.contains(SAID)).count()
}

fn apic(emulator: Emulator, interrupts: &str) -> Outcome {
    apic_by(interrupts, |payload| emulator.run(&format!("apic-{interrupts}"), payload))
}

fn apic_by(interrupts: &str, run: impl FnOnce(&Payload<'_>) -> Outcome) -> Outcome {
    let further = format!("interrupts = \"{interrupts}\"");
    let outcome = run(&Payload { cpus: "[0, 1]", further: &further, ..Payload::new("apic") });
    outcome.assert_verdicts(CLAIMS);
    // A claim stands in several lines.
    assert!(!outcome.output.contains("FAILED"), "{outcome}");
    assert_eq!(outcome.guest_outcome("apic"), Some("poweroff"), "{outcome}");
    assert_eq!(said(&outcome), usize::from(interrupts == "exitless"), "{outcome}");
    outcome
}

fn every_mode_works(emulator: Emulator) -> Outcome {
    let outcome = apic(emulator, "exitless");
    assert_eq!(outcome.number("exits for 100 IPIs by three writes to the page"), 300, "{outcome}");
    assert_eq!(outcome.number("exits for 100 self-IPIs and EOIs after it"), 0, "{outcome}");
    for reason in ["external_interrupt", "eoi"] {
        assert_eq!(outcome.exits(reason), Some(0), "{outcome}");
    }
    outcome
}

#[test]
fn every_apic_mode_and_ipi_works_on_amd_v() {
    let _ = every_mode_works(Emulator::Qemu);
}

#[test]
fn every_apic_mode_and_ipi_works_on_vt_x_and_no_nmi_goes_unheard() {
    const NMIS: u64 = 600;
    let outcome = every_mode_works(Emulator::Bochs);
    // Each of the NMIs came in the guest and exited, or in the host, which made the next entry exit.
    let second = &outcome.report["guests"][0]["vcpus"][1]["exits"];
    let of = |reason: &str| second[reason].as_u64().unwrap_or_default();
    assert!(of("preemption_timer") > 0, "some came in the host\n{outcome}");
    assert!(of("nmi") + of("preemption_timer") >= NMIS, "{outcome}");
    assert_no_nmi_waits(Emulator::Bochs, &outcome);
}

#[test]
fn every_apic_mode_and_ipi_works_on_vt_x_with_vt_d() {
    let _ = every_mode_works(Emulator::BochsVtd);
}

/// None waits for the watchdog's next call.
fn assert_no_nmi_waits(emulator: Emulator, outcome: &Outcome) {
    let longest = outcome.number("longest time to such an NMI");
    assert!(emulator.longest_nmi().is_none_or(|most| longest < most), "{outcome}");
}

#[test]
fn every_apic_mode_works_in_the_exiting_mode_too() {
    let outcome = apic(Emulator::Bochs, "exiting");
    assert!(outcome.exits("external_interrupt") > Some(0), "{outcome}");
}

#[test]
fn every_apic_mode_works_in_the_posted_mode_too() {
    let outcome = apic(Emulator::Bochs, "posted");
    assert_eq!(outcome.number("exits for 100 self-IPIs and EOIs after it"), 0, "{outcome}");
    assert_eq!(outcome.exits("eoi"), Some(0), "{outcome}");
}

/// Bochs 3 can post; the first CPU sends the second all sorts of IPIs.
#[test]
fn ipis_between_cpus_that_post_cost_their_receiver_no_exit() {
    let program = project_folder().join("target/bochs3/bochs").display().to_string();
    let bochs = [
        "--emulator",
        "bochs",
        "--iommu",
        "none",
        "--bochs",
        &program,
        "--bochs-model",
        "corei7_skylake_x",
    ];
    let options = [&bochs[..], &["--timeout", "90"]].concat();
    let outcome = apic_by("posted", |payload| {
        Folder::new("apic-posting").run(&payload.toml(), &options, &Devices::none())
    });
    let second = &outcome.report["guests"][0]["vcpus"][1]["exits"];
    for reason in ["external_interrupt", "eoi"] {
        assert_eq!(second[reason].as_u64(), Some(0), "{outcome}");
    }
}

#[test]
fn linux_that_refuses_x2apic_mode_reads_its_disk_on_amd_v() {
    let mut guest = Guest::on_qemu("nvme reads=1000 nox2apic no_timer_check", "[\"00:04.0\"]");
    guest.cpus = "[0, 1]";
    let folder = Folder::new("nox2apic-qemu");
    let outcome = folder.run(&guest.toml(), &["--timeout", "240"], &Devices::none().nvme());
    reads_through_the_page(&outcome, "nvme");
}

#[test]
fn linux_that_refuses_x2apic_mode_reads_its_disk_on_vt_x() {
    let folder = Folder::new("nox2apic-bochs");
    let guest = Guest::on_bochs("ide reads=500 nox2apic");
    let toml = format!("unsafe_no_iommu = true\n{}", guest.toml());
    let options = ["--emulator", "bochs", "--iommu", "none", "--timeout", "600"];
    let outcome = folder.run(&toml, &options, &Devices::ide(&folder));
    reads_through_the_page(&outcome, "ide");
}

/// Each interrupt costs its EOI, a write to the page, and nothing else.
fn reads_through_the_page(outcome: &Outcome, disk: &str) {
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let _ = outcome.result(&format!("{disk}-files"));
    let line = outcome.result(disk);
    assert!(line.exits("nested_page_fault") >= line.get("interrupts"), "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert_eq!(said(outcome), 1, "{outcome}");
}

/// With one CPU Bochs' TSC counts instructions, the hypervisor's too: from the exit to the entry.
#[test]
fn an_ipi_costs_a_bounded_number_of_instructions_on_vt_x() {
    const MAX: u64 = 170;
    let outcome = Emulator::Bochs.run("apic-alone", &Payload::new("apic"));
    let seen = outcome.number("ticks for an IPI beyond a write that passes");
    assert!((20..=MAX).contains(&seen), "{outcome}");
}
