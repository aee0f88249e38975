//! `probe = true` and `nexit probe`: what is read from a log is the machine that was booted.

use std::fs;

use capture::{Capture, View};
use nexit_tests::{Folder, project_folder};
use pci::BarKind;

/// Boots a machine that only looks at itself, and reads its log.
fn probe(name: &str, options: &[&str], devices: &[&str]) -> Capture {
    let folder = Folder::new(name);
    let config = folder.write("nexit.toml", "probe = true\n");
    let run =
        [&["run", "--config", &config, "--timeout", "90"], options, &["--"], devices].concat();
    let outcome = folder.nexit("boot", &run);
    let refusal = "probe = true: the machine is described above; no guest is started";
    assert!(outcome.output.contains(refusal), "{outcome}");
    let bytes: usize =
        outcome.output.lines().filter(|it| it.contains("probe ")).map(str::len).sum();
    assert!(bytes < 200 << 10, "{bytes} bytes on a slow line");
    let (log, file) = (folder.path("boot.log"), folder.path("machine.toml"));
    let (log, file) = (log.display().to_string(), file.display().to_string());
    let outcome = folder.nexit("probe", &["probe", "--from-log", &log, "--output", &file]);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(outcome.output.contains("would Nexit run on it? yes, with "), "{outcome}");
    Capture::read(file.as_ref()).unwrap_or_else(|error| panic!("{error}"))
}

/// The machine of this name that was captured before.
fn known(name: &str) -> Capture {
    let path = project_folder().join(format!("tests/cases/data/machines/{name}.toml"));
    Capture::read(&path).unwrap_or_else(|error| panic!("{error}"))
}

/// Index, kind and size.
type Bars = Vec<(u8, BarKind, u64)>;

/// Address, vendor, device, class and BARs of every function.
fn functions(view: &View) -> Vec<(String, u16, u16, u32, Bars)> {
    let bars = |it: &pci::Function| {
        let bars = view.bars(it);
        bars.iter().flatten().map(|bar| (bar.index, bar.kind, bar.size)).collect()
    };
    let one = |it: &pci::Function| (it.bdf.to_string(), it.vendor, it.device, it.class, bars(it));
    view.functions.iter().map(one).collect()
}

/// The log has every table, whole, and the functions that the machine has.
fn is_as_known(found: &Capture, name: &str) {
    assert_eq!(found.missing, Vec::<String>::new());
    for table in
        found.tables.iter().filter(|it| !["FACS", "RSD PTR"].contains(&it.signature.as_str()))
    {
        let bytes = &table.bytes.0;
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "{}", table.signature);
        assert_eq!(bytes[4..8], (bytes.len() as u32).to_le_bytes(), "{}", table.signature);
    }
    let known = known(name);
    assert_eq!(found.cpus, known.cpus);
    for table in &known.tables {
        let has = found.tables.iter().any(|it| it.signature == table.signature);
        assert!(has, "no {}", table.signature);
    }
    let (found_view, known_view) = (found.view(), known.view());
    assert_eq!(functions(&found_view), functions(&known_view));
    assert_eq!(found_view.unreached, []);
    assert_eq!(found.iommu_units, known.iommu_units);
    let platform = found_view.platform.as_ref();
    let platform = platform.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(platform.notes, Vec::<String>::new());
    assert!(platform.soft_off.is_some(), "the DSDT is there");
}

#[test]
fn a_log_from_qemu_has_the_machine_with_what_is_behind_another_root_bus() {
    let devices = [
        "-device",
        "pxb-pcie,id=far,bus_nr=64,bus=pcie.0",
        "-device",
        "pcie-root-port,id=fp,bus=far,chassis=9",
        "-blockdev",
        "driver=null-co,node-name=d,size=1048576",
        "-device",
        "nvme,id=n0,serial=1,drive=d,bus=fp",
    ];
    let found = probe("probe-qemu-pxb", &[], &devices);
    is_as_known(&found, "qemu-q35-pxb");
    let view = found.view();
    let nvme = view.functions.iter().find(|it| it.class == 0x01_0802);
    let nvme = nvme.unwrap_or_else(|| panic!("no NVMe"));
    assert_eq!(nvme.bdf.to_string(), "41:00.0");
    // As `-device nvme` makes it.
    assert_eq!(view.bars(nvme)[0].map(|bar| bar.size), Some(0x4000));
    assert!(view.dmar().is_ok_and(|dmar| dmar.interrupt_remapping()));
}

#[test]
fn a_log_from_qemu_without_an_iommu_has_none() {
    let found = probe("probe-qemu-no-iommu", &["--iommu", "none"], &[]);
    is_as_known(&found, "qemu-q35-no-iommu");
    assert!(found.view().dmar().is_err());
}

#[test]
fn a_log_from_bochs_has_the_words_of_vt_x_and_vt_d() {
    let found = probe("probe-bochs", &["--emulator", "bochs", "--iommu", "vt-d"], &[]);
    is_as_known(&found, "bochs-vtd");
    let vmx = found.cpu_kinds[0].vmx();
    assert_eq!(vmx, known("bochs-vtd").cpu_kinds[0].vmx());
    assert!(vmx.is_some_and(|vmx| vmx.vmx));
}

/// Whoever runs this, on whatever: what cannot be read is a sentence, and no failure.
#[test]
fn this_machine_is_probed() {
    let folder = Folder::new("probe-here");
    for name in ["machine.toml", "machine.json"] {
        let file = folder.path(name).display().to_string();
        let outcome = folder.nexit("probe", &["probe", "--output", &file]);
        assert_eq!(outcome.status, Some(0), "{outcome}");
        for words in ["machine: ", "read from this Linux", "would Nexit run on it? ", "PCI: "] {
            assert!(outcome.output.contains(words), "{words}: {outcome}");
        }
        let capture = Capture::read(file.as_ref()).unwrap_or_else(|error| panic!("{error}"));
        let devices = fs::read_dir("/sys/bus/pci/devices").map_or(0, Iterator::count);
        assert!(capture.functions.len() <= devices);
        assert!(capture.functions.len() == devices || !capture.missing.is_empty(), "{outcome}");
        assert_eq!(
            capture.tables.is_empty(),
            outcome.output.contains("ACPI tables (/sys/"),
            "{outcome}"
        );
    }
}

#[test]
fn a_probe_that_cannot_be_ends_in_a_sentence_and_status_2_before_the_work() {
    let folder = Folder::new("probe-refused");
    let there = folder.write("there.txt", "x\n");
    for (arguments, words) in [
        (["--output", "/"], "cannot write /: it is a folder"),
        (["--output", "/proc/machine.toml"], "cannot write /proc/machine.toml: "),
        (["--from", "/nowhere"], "there is no folder /nowhere"),
        (["--from", &there], "is a file, and --from wants a folder"),
        (["--from-log", "/"], "/ is a folder, and --from-log wants the log"),
    ] {
        let outcome = folder.nexit("probe", &[&["probe"], &arguments[..]].concat());
        assert_eq!(outcome.status, Some(2), "{outcome}");
        assert!(outcome.errors.contains(words), "{outcome}");
        assert_eq!(outcome.output.trim(), "", "{outcome}");
    }
}
