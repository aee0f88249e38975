use super::*;
use crate::check::find;
use crate::check::tests::machines::{
    amd, pc, ram, with_dmar, with_reserved, with_tables, without_dmar,
};

const FILE: &str = "machine.toml";

fn proposal(machine: &Capture) -> String {
    propose(machine, Path::new(FILE)).unwrap()
}

/// The machines that were captured.
fn captured() -> Vec<(String, Capture)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/data/machines");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|it| it == "toml"));
    let machines: Vec<_> =
        files.map(|path| (path.display().to_string(), Capture::read(&path).unwrap())).collect();
    assert!(machines.len() >= 3, "the captured machines are gone");
    machines
}

/// Machines of all kinds that can run a guest.
fn machines() -> Vec<(&'static str, Capture)> {
    let mut small = pc();
    small.memory = vec![ram(0, 0x9_f000), ram(1 << 20, 511 << 20)];
    let mut pieces = pc();
    pieces.memory = (8..80).map(|n| ram(n << 26, 33 << 20)).collect();
    let mut unknown = pc();
    unknown.memory.clear();
    unknown.cpu_kinds.clear();
    unknown.functions.iter_mut().for_each(|it| it.config.0.truncate(64));
    let mut svm = pc();
    svm.cpu_kinds = vec![amd()];
    let single = "table APIC\nd fee00000 1\nlapic 0 0 1\nioapic 2 fec00000 0\n";
    let many: String = (0..90).map(|id| format!("x2apic {id:x} {id:x} 1\n")).collect();
    vec![
        ("a PC", pc()),
        ("no IOMMU", without_dmar()),
        ("VT-d off", with_dmar("vtd-off-leftover.dmar")),
        ("reserved for one of a pair", with_reserved(&[(6, 1), (4, 0)])),
        ("reserved for what may go all the same", with_reserved(&[(2, 0), (5, 0)])),
        ("little memory", small),
        ("memory in pieces", pieces),
        ("much not known", unknown),
        ("AMD-V", svm),
        ("one CPU", with_tables(single)),
        ("ninety CPUs", with_tables(&format!("table APIC\nd fee00000 1\n{many}"))),
    ]
}

#[test]
fn what_is_proposed_passes_the_check_but_for_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nexit.toml");
    let made = machines().into_iter().map(|(what, machine)| (what.to_owned(), machine));
    for (what, machine) in made.chain(captured()) {
        let text = proposal(&machine);
        let findings = find(&path, &text, Some((&machine, Path::new(FILE))));
        let wrong: Vec<String> = findings.refusals.iter().map(ToString::to_string).collect();
        let files = |it: &&String| it.contains("there is no such file");
        assert!(
            wrong.len() == 2 && wrong.iter().filter(files).count() == 2,
            "{what}: {wrong:#?}\n{text}"
        );
        // So it does with its second guest.
        let second = text.split("# A second guest").nth(1).unwrap_or_default();
        let second: String =
            second.lines().skip(1).map(|line| line.replacen("# ", "", 1) + "\n").collect();
        let findings = find(&path, &(text.clone() + &second), Some((&machine, Path::new(FILE))));
        let others = findings
            .refusals
            .iter()
            .map(ToString::to_string)
            .filter(|it| !it.contains("no such file"));
        let taken = |it: &String| it.contains("memory = 64 MiB is not there");
        let others: Vec<String> = others.filter(|it| !taken(it)).collect();
        assert_eq!(others, [] as [&str; 0], "{what}: {second}");
    }
}

#[test]
fn what_is_left_out_is_said_with_the_reason() {
    let text = proposal(&with_reserved(&[(6, 1), (5, 0)]));
    assert!(text.contains("except = [\"00:06.0\", \"00:06.1\"]"), "{text}");
    for words in [
        "#   00:06.0 Ethernet controller: 00:06.1 cannot be assigned: the firmware keeps using it",
        "#   00:1f.3: SMBus and SPI controllers (the board's sensors, its firmware), left out by default",
        "#   00:04.0 NVMe controller: interrupts MSI-X, 17 messages, exitless; reset by Function Level Reset",
        "# intx = [\"00:03.0=LINE\"]",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = proposal(&without_dmar());
    assert!(text.contains("# No IOMMU can be used: the firmware has no DMAR table"), "{text}");
    assert!(
        text.contains("\n# unsafe_no_iommu = true\n") && text.contains("\ndevices = []\n"),
        "{text}"
    );
}

#[test]
fn threads_of_one_core_stay_together_and_the_last_core_is_for_a_second_guest() {
    let text = proposal(&pc());
    assert!(text.contains("\ncpus = [0, 1, 2, 3, 4, 5]\n"), "{text}");
    assert!(text.contains("\n# cpus = [6, 7]\n"), "{text}");
    assert!(text.contains("threads of one core are together, 2 are left\n"), "{text}");
    let two = "table APIC\nd fee00000 1\nlapic 0 0 1\nlapic 1 2 1\nioapic 2 fec00000 0\n";
    let text = proposal(&with_tables(two));
    assert!(text.contains("threads of one core are together, 1 is left\n"), "{text}");
    let text = proposal(&machines().pop().unwrap().1);
    let first = config::parse(&text).unwrap().guests[0].cpus.len();
    assert_eq!(first, MAX_CPUS, "no more than a guest can have");
}

#[test]
fn memory_is_what_fits_beside_the_hypervisor_and_the_files() {
    let memory =
        |machine: &Capture| config::parse(&proposal(machine)).unwrap().guests[0].memory >> 20;
    let all = memory(&pc());
    // 4091 MiB, of which 256 are for another guest and 256 for files.
    assert!((3456..3584).contains(&all), "{all}");
    let mut small = pc();
    small.memory = vec![ram(1 << 20, 511 << 20)];
    assert!((192..256).contains(&memory(&small)), "{}", memory(&small));
}

#[test]
fn a_machine_that_can_run_no_guest_is_no_machine_to_propose_for() {
    let mut machine = pc();
    machine.cpu_kinds[0].msrs.0.insert(0x3a, 1);
    let failure = propose(&machine, Path::new(FILE)).unwrap_err();
    assert_eq!(failure.status(), 1);
    assert!(
        failure.to_string().starts_with("machine.toml: no guest can run there: VT-x is locked off")
    );
}

#[test]
fn a_name_with_a_line_break_stays_in_its_remark() {
    let mut machine = pc();
    machine.system = Some("evil\n[[guest]]".into());
    machine.functions[3].name = Some("NVMe\nunsafe_no_iommu = true\n".into());
    machine.missing = vec!["much\nprobe = true".into()];
    let config = config::parse(&proposal(&machine)).unwrap();
    assert_eq!((config.guests.len(), config.unsafe_no_iommu, config.probe), (1, false, false));
}
