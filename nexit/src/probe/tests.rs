//! Machines that were captured from emulators (`tests/cases/data/machines`), as logs, as texts of programs and
//! as copies of trees, whole and damaged.

use std::fmt::Write as _;
use std::path::PathBuf;

use banner::Lines;
use capture::{Capture, Table};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const MACHINES: &[&str] = &["bochs-vtd", "qemu-q35-no-iommu", "qemu-q35-pxb"];

fn machine(name: &str) -> Capture {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/data/machines");
    Capture::read(&folder.join(format!("{name}.toml"))).unwrap()
}

/// A machine whose tables have addresses, as those of a log have.
fn placed(name: &str) -> Capture {
    let mut capture = machine(name);
    capture.source = String::from("a test (Nexit 9)");
    capture.missing.clear();
    for (index, table) in capture.tables.iter_mut().enumerate() {
        table.address = Some(0x7ff0_0000 + 0x1_0000 * index as u64);
    }
    capture
}

/// What `probe = true` prints of a machine.
fn lines(capture: &Capture) -> Vec<String> {
    let mut written = Vec::new();
    let mut lines = Lines::new(|line| written.push(format!("nexit: {line}")));
    lines.line(format_args!("begin 1 9"));
    lines.line(format_args!("uefi {}", u8::from(capture.uefi == Some(true))));
    for cpu in &capture.cpus {
        lines.line(format_args!("cpu {:x} 1", cpu.apic_id));
    }
    let kind = &capture.cpu_kinds[0];
    lines.line(format_args!("microcode {:x}", kind.microcode.unwrap()));
    for ((leaf, subleaf), [a, b, c, d]) in &kind.cpuid.0 {
        lines.line(format_args!("cpuid {leaf:x} {subleaf:x} {a:x} {b:x} {c:x} {d:x}"));
    }
    for (number, value) in &kind.msrs.0 {
        lines.line(format_args!("msr {number:x} {value:x}"));
    }
    for unit in &capture.iommu_units {
        let (capability, extended) = (unit.capability, unit.extended);
        lines.line(format_args!("unit {:x} {capability:x} {extended:x}", unit.address));
    }
    for range in &capture.memory {
        let kind = serde_json::to_value(range.kind).unwrap();
        let kind = kind.as_str().unwrap();
        lines.line(format_args!("memory {:x} {:x} {kind}", range.start, range.length));
    }
    for table in &capture.tables {
        let at = table.address.unwrap();
        lines.line(format_args!("table {at:x} {:x} {}", table.bytes.0.len(), table.signature));
        lines.bytes(format_args!("t {at:x}"), &table.bytes.0);
    }
    for function in &capture.functions {
        let sizes: Vec<String> =
            function.bar_sizes.iter().map(|size| format!("{:x}", size.unwrap())).collect();
        let sizes = if sizes.is_empty() { String::from("?") } else { sizes.join(" ") };
        lines.line(format_args!("pci {} {:x} {sizes}", function.at, function.config.0.len()));
        lines.bytes(format_args!("c {}", function.at), &function.config.0);
    }
    lines.end();
    written
}

fn read(log: &str) -> Capture {
    log::read(log, "a test").unwrap()
}

#[test]
fn a_log_gives_the_machine_that_it_was_made_of() {
    for name in MACHINES {
        let whole = placed(name);
        assert_eq!(read(&lines(&whole).join("\n")), whole, "{name}");
    }
}

#[test]
fn other_lines_and_carriage_returns_around_a_probe_do_no_harm() {
    let whole = placed("qemu-q35-pxb");
    let mut log = String::from("SeaBIOS (version 1)\r\nnexit: probe = true\nprobe 1 zzzz: x\r");
    for line in lines(&whole) {
        let _ = write!(log, "nexit: CPU 0\r\n[12:00:01] {line}\r\r\nguest: probe me 1 2\n\0\r\n");
    }
    assert_eq!(read(&log), whole);
}

#[test]
fn a_machine_that_was_started_twice_is_read_once() {
    let (whole, other) = (placed("qemu-q35-pxb"), placed("bochs-vtd"));
    let (whole_lines, other_lines) = (lines(&whole), lines(&other));
    let both = [other_lines.clone(), whole_lines.clone()].concat();
    assert_eq!(read(&both.join("\n")), whole);
    // The second did not come to its end.
    let cut = [whole_lines, other_lines[..9].to_vec()].concat();
    assert_eq!(read(&cut.join("\n")), whole);
}

#[test]
fn a_log_that_is_cut_says_so_and_keeps_what_it_has() {
    let whole = placed("qemu-q35-pxb");
    let lines = lines(&whole);
    let cut = read(&lines[..lines.len() - 1].join("\n"));
    assert_eq!(cut.functions, whole.functions);
    let [sentence] = cut.missing.as_slice() else { panic!("{:?}", cut.missing) };
    let last = lines.len() - 1;
    assert!(sentence.contains(&format!("the log is cut: its last line is {last}")), "{sentence}");
    for length in 1..lines.len() {
        assert!(!read(&lines[..length].join("\n")).missing.is_empty(), "{length} lines");
    }
}

#[test]
fn a_line_that_is_garbled_or_lost_is_missed() {
    let whole = placed("qemu-q35-pxb");
    let lines = lines(&whole);
    for index in 1..lines.len() - 1 {
        let mut lost = lines.clone();
        let line = lost.remove(index);
        let mut garbled = lines.clone();
        // One letter of its text.
        let last = line.chars().last().unwrap();
        let other = if last == '0' { "1" } else { "0" };
        garbled[index].replace_range(line.len() - 1.., other);
        let sentence = format!(
            "1 of {} lines of the log are garbled or lost, the first is line {}",
            lines.len(),
            index + 1
        );
        for log in [lost, garbled] {
            let capture = read(&log.join("\n"));
            assert!(capture.missing[0].starts_with(&sentence), "{line}: {:?}", capture.missing);
            let _ = summary::summary(&capture);
        }
    }
}

#[test]
fn what_the_image_left_out_is_said() {
    let mut log = String::new();
    let mut lines = Lines::new(|line| log.push_str(&format!("{line}\n")));
    lines.line(format_args!("begin 1 9"));
    lines.line(format_args!("cpu 4 0"));
    lines.line(format_args!("cpuid 7 0 0 0 0 8000"));
    lines.line(format_args!("table 7ff00000 10000 DSDT left out"));
    lines.line(format_args!("pci 00:04.0 100 ?"));
    lines.line(format_args!("short 00:04.0"));
    lines.line(format_args!("news 1"));
    lines.end();
    let missing = read(&log).missing.join("\n");
    for words in [
        "1 lines of the log say what this version of nexit does not know",
        "the CPUs are of several kinds",
        "CPUs that did not start (APIC identifiers): 4",
        "tables that Nexit left out of the log: DSDT (65536 bytes)",
        "extended configuration space (ACS, SR-IOV) of 1 PCI functions",
    ] {
        assert!(missing.contains(words), "{words}\n{missing}");
    }
}

#[test]
fn a_log_without_a_probe_is_refused() {
    let error = log::read("nexit: Nexit 0.1.0\n", "x").unwrap_err();
    assert!(error.contains("boot the image with `probe = true`"), "{error}");
    let error = log::read("probe 1 0000: begin 1 9", "x").unwrap_err();
    assert!(error.starts_with("all 1 lines of the probe in it are garbled"), "{error}");
}

proptest! {
    #[test]
    fn a_damaged_log_is_read_or_refused(
        at in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let mut log = lines(&placed("bochs-vtd")).join("\n").into_bytes();
        for (index, byte) in at {
            let index = index.index(log.len());
            log[index] = byte;
        }
        if let Ok(capture) = log::read(&String::from_utf8_lossy(&log), "x") {
            let _ = summary::summary(&capture);
        }
    }

    /// Tables with right sums and any contents, functions with any bytes.
    #[test]
    fn a_machine_that_says_anything_has_a_summary(
        name in prop::sample::select(MACHINES),
        at in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let mut capture = machine(name);
        for (index, offset, byte) in at {
            let tables = capture.tables.iter_mut().map(|it| &mut it.bytes.0);
            let functions = capture.functions.iter_mut().map(|it| &mut it.config.0);
            let mut pieces: Vec<&mut Vec<u8>> = tables.chain(functions).collect();
            let count = pieces.len();
            let piece = &mut pieces[index.index(count)];
            let offset = offset.index(piece.len());
            piece[offset] = byte;
        }
        for table in &mut capture.tables {
            let sum = table.bytes.0.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            table.bytes.0[9] = table.bytes.0[9].wrapping_sub(sum);
        }
        let _ = summary::summary(&capture);
    }

    #[test]
    fn lines_that_say_anything_are_read(words in proptest::collection::vec("(cpu|cpuid|msr|unit|memory|table|t|pci|c|end)( [0-9a-f]{1,17}| 00:04.0| usable){0,7}", 1..20)) {
        let mut log = String::new();
        let mut lines = Lines::new(|line| { let _ = writeln!(log, "{line}"); });
        words.iter().for_each(|text| lines.line(format_args!("{text}")));
        if let Ok(capture) = log::read(&log, "x") {
            let _ = summary::summary(&capture);
        }
    }

    #[test]
    fn any_text_is_a_dump_or_none(text in "(APIC @ 0x0\n|  [0-9a-f]{1,4}: ([0-9a-f]{2} ){0,20}\n|00:0[0-9].0 x\n|[0-9a-f]{2}: ([0-9a-f]{2} ){0,20}\n|\tRegion [0-9]: Memory at [0-9a-f]{0,8} .size=[0-9]{0,9}[KMGT]?.\n){0,20}") {
        let _ = acpidump::read(&text);
        let _ = lspci::read(&text);
    }
}

/// The text of `acpidump`.
fn acpidump_text(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables {
        let _ = writeln!(text, "{} @ {:#018x}", table.signature, table.address.unwrap_or(0));
        for (row, bytes) in table.bytes.0.chunks(16).enumerate() {
            let hex: String =
                bytes.iter().map(|byte| format!("{byte:02x} ").to_uppercase()).collect();
            // Letters that look like digits stand where the text shows the bytes as letters.
            let _ = writeln!(
                text,
                "    {:04X}: {hex:<48} 41 42 ..{}",
                row * 16,
                "x".repeat(bytes.len() - 1)
            );
        }
        text.push('\n');
    }
    text
}

/// The text of `lspci -vvv` with `-x`, `-xxx` or `-xxxx`, as many bytes as wanted.
fn lspci_text(capture: &Capture, most: usize, verbose: bool, domain: &str) -> String {
    let mut text = String::new();
    let mut space = capture.config_space();
    for function in &capture.functions {
        let _ = writeln!(text, "{domain}{} Some class: Some device (rev 02)", function.at);
        if verbose {
            text.push_str("\tControl: I/O+ Mem+ BusMaster+\n\tKernel driver in use: thing\n\tIOMMU group: 7\n\tNUMA node: 0\n");
            for bar in pci::bar::size_bars(&mut space, function.at, 6).iter().flatten() {
                let what = if bar.is_memory() { "Memory" } else { "I/O ports" };
                let size = if bar.size >= 1024 {
                    format!("{}K", bar.size >> 10)
                } else {
                    bar.size.to_string()
                };
                let _ = writeln!(
                    text,
                    "\tRegion {}: {what} at {:x} [size={size}]",
                    bar.index, bar.base
                );
            }
        }
        let bytes = &function.config.0[..most.min(function.config.0.len())];
        for (row, bytes) in bytes.chunks(16).enumerate() {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(text, "{:02x}: {}", row * 16, hex.join(" "));
        }
        text.push('\n');
    }
    text
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

#[test]
fn texts_of_acpidump_and_lspci_give_the_same_machine() {
    for name in MACHINES {
        let whole = machine(name);
        for domain in ["", "0000:"] {
            let lspci = lspci_text(&whole, 4096, true, domain);
            let folder = folder(&[("acpi.txt", &acpidump_text(&whole.tables)), ("pci", &lspci)]);
            let found = from_folder(folder.path()).unwrap();
            assert_eq!(found.tables, whole.tables, "{name}");
            for (found, whole) in found.functions.iter().zip(&whole.functions) {
                assert_eq!((found.at, &found.config), (whole.at, &whole.config));
                assert_eq!(found.driver.as_deref(), Some("thing"));
                assert_eq!((found.iommu_group, found.numa), (Some(7), Some(0)));
            }
            let (found, whole) = (found.view(), whole.view());
            assert_eq!(found.functions, whole.functions);
            assert_eq!(found.groups, whole.groups);
            let bars = |view: &capture::View| {
                view.functions.iter().map(|it| view.bars(it)).collect::<Vec<_>>()
            };
            // Bridges' BARs are not in a log of Nexit.
            let devices = whole.functions.iter().filter(|it| !it.is_infrastructure());
            for function in devices {
                assert_eq!(found.bars(function), whole.bars(function), "{name}: {}", function.bdf);
            }
            assert_eq!(bars(&found).len(), whole.functions.len());
        }
    }
}

#[test]
fn plain_lspci_says_less_and_that_is_said() {
    let whole = machine("qemu-q35-pxb");
    for (most, words) in
        [(64, "its capabilities are not known"), (256, "the sizes of its BARs are not known")]
    {
        let folder = folder(&[("pci.txt", &lspci_text(&whole, most, false, ""))]);
        let capture = from_folder(folder.path()).unwrap();
        assert_eq!(capture.functions[0].config.0.len(), most);
        let text = summary::summary(&capture);
        for words in [
            words,
            "lspci's text has them with -vvv only",
            "there is no text of `acpidump`",
            "memory: not known",
            "IOMMU: not known",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
    }
}

#[test]
fn texts_that_break_off_say_where() {
    let whole = machine("qemu-q35-pxb");
    let lspci = lspci_text(&whole, 256, true, "");
    let acpi = acpidump_text(&whole.tables);
    // In the middle of the last function, and of the last table.
    let lspci = &lspci[..lspci.len() - 600];
    let acpi = &acpi[..acpi.len() - 100];
    let folder = folder(&[("pci", lspci), ("acpi", acpi)]);
    let capture = from_folder(folder.path()).unwrap();
    let missing = capture.missing.join("\n");
    for words in ["41:00.0: lspci's text breaks off after ", "is left out: acpidump's text has "] {
        assert!(missing.contains(words), "{missing}");
    }
    assert_eq!(capture.functions.len(), whole.functions.len());
    assert_eq!(capture.tables.len(), whole.tables.len() - 1);
}

#[test]
fn a_copy_of_the_trees_gives_the_machine() {
    let whole = machine("qemu-q35-pxb");
    let folder = tempfile::tempdir().unwrap();
    let (sys, proc) = (folder.path().join("sys"), folder.path().join("proc"));
    for function in &whole.functions {
        let device = sys.join(format!("bus/pci/devices/0000:{}", function.at));
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("config"), &function.config.0).unwrap();
        std::fs::write(device.join("uevent"), "DRIVER=thing\nPCI_CLASS=1\n").unwrap();
        std::os::unix::fs::symlink("../../../kernel/iommu_groups/7", device.join("iommu_group"))
            .unwrap();
        let line = |size: &Option<u64>| match size.unwrap_or(0) {
            0 => String::from("0x0 0x0 0x0\n"),
            size => format!("0x100000 {:#x} 0x40200\n", 0x10_0000 + size - 1),
        };
        let resource: String = function.bar_sizes.iter().map(line).collect();
        std::fs::write(device.join("resource"), resource).unwrap();
    }
    let tables = sys.join("firmware/acpi/tables");
    std::fs::create_dir_all(tables.join("dynamic")).unwrap();
    for table in &whole.tables {
        std::fs::write(tables.join(&table.signature), &table.bytes.0).unwrap();
    }
    let mut key = b"MSDM\x25\0\0\0".to_vec();
    key.resize(37, 7);
    std::fs::write(tables.join("MSDM"), key).unwrap();
    std::fs::create_dir_all(&proc).unwrap();
    std::fs::write(
        proc.join("cpuinfo"),
        "processor\t: 0\nmodel name\t: A CPU\nmicrocode\t: 0x12\nphysical id\t: 0\ncore id\t: 1\n\
         apicid\t\t: 2\nflags\t\t: fpu vmx x2apic\n\nprocessor\t: 1\nmodel name\t: A CPU\n\
         microcode\t: 0x12\napicid\t\t: 3\nflags\t\t: fpu vmx x2apic\n",
    )
    .unwrap();
    std::fs::write(proc.join("iomem"), "00001000-0009ffff : System RAM\n  00002000-00002fff : x\n")
        .unwrap();
    let capture = from_folder(folder.path()).unwrap();
    assert_eq!(capture.view().functions, whole.view().functions);
    assert_eq!(capture.tables.len(), whole.tables.len(), "without the licence's key");
    assert_eq!(capture.functions[0].iommu_group, Some(7));
    assert_eq!(capture.functions[0].driver.as_deref(), Some("thing"));
    let nvme = capture.view().functions.iter().position(|it| it.class >> 8 == 0x0108).unwrap();
    let view = capture.view();
    assert_eq!(view.bars(&view.functions[nvme])[0].unwrap().size, 0x4000);
    assert_eq!(
        capture.cpus.iter().map(|cpu| (cpu.apic_id, cpu.kind)).collect::<Vec<_>>(),
        [(2, 0), (3, 0)]
    );
    assert_eq!((capture.memory.len(), capture.memory[0].length), (1, 0x9f000));
    let text = summary::summary(&capture);
    for words in [
        "perhaps: Linux lists virtualization and x2apic",
        "MSDM: it holds a licence's key and is left out",
        "CPUID and the MSRs of virtualization: no copy of files has them",
        "driver thing",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    // Parts of the copy alone are enough, and what is not there is said.
    std::fs::remove_dir_all(&proc).unwrap();
    std::fs::remove_dir_all(sys.join("bus")).unwrap();
    let missing = from_folder(folder.path()).unwrap().missing.join("\n");
    for words in ["the CPUs: there is no /proc/cpuinfo", "the memory map", "the PCI functions: "] {
        assert!(missing.contains(words), "{words}\n{missing}");
    }
    // The folder of the tables itself, and one of them that was cut.
    std::fs::write(tables.join("APIC"), &whole.tables[0].bytes.0[..40]).unwrap();
    let missing = from_folder(&sys).unwrap().missing.join("\n");
    assert!(missing.contains("the table APIC: it has 40 bytes and claims"), "{missing}");
}

#[test]
fn what_is_no_machine_is_refused_in_a_sentence() {
    let some = folder(&[("notes.txt", "nothing of use\n")]);
    let file = some.path().join("notes.txt");
    let sentence = |result: Result<Capture>| result.unwrap_err().to_string();
    for (error, words) in [
        (sentence(from_folder(&some.path().join("gone"))), "there is no folder "),
        (sentence(from_folder(&file)), "is a file, and --from wants a folder"),
        (sentence(from_folder(some.path())), "there is nothing of a machine"),
        (sentence(from_log(some.path())), "is a folder, and --from-log wants the log"),
        (sentence(from_log(&file)), "there is no line of a probe in it"),
        (sentence(from_log(&some.path().join("gone"))), "cannot read "),
    ] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_noticed_before_the_work() {
    let some = folder(&[("notes.txt", "")]);
    let refused = |path: &Path| Output::open(path).unwrap_err().to_string();
    let folder = refused(some.path());
    assert!(folder.contains("it is a folder: name a file"), "{folder}");
    let gone = refused(&some.path().join("gone/machine.toml"));
    assert!(gone.contains("there is no folder ") && gone.ends_with("nothing was done"), "{gone}");
    let below = refused(&some.path().join("notes.txt/machine.toml"));
    assert!(below.contains("cannot write "), "{below}");
    // A probe that fails leaves what was there.
    let path = some.path().join("machine.toml");
    std::fs::write(&path, "old").unwrap();
    drop(Output::open(&path).unwrap());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    Output::open(&path).unwrap().write(&machine("bochs-vtd")).unwrap();
    assert_eq!(Capture::read(&path).unwrap(), machine("bochs-vtd"));
}

#[test]
fn the_summary_says_what_follows_from_a_machine() {
    let cases: &[(&str, &[&str])] = &[
        (
            "bochs-vtd",
            &[
                "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz, GenuineIntel",
                "would Nexit run on it? yes, with VT-x",
                "at 0xfed90000 for segment 0000, and all that others do not name: CAP 0x",
                "00:01.1 8086:7010 IDE controller",
                "it goes to a guest only together with 00:01.2",
            ],
        ),
        (
            "qemu-q35-no-iommu",
            &[
                "would Nexit run on it? yes, with AMD-V",
                "IOMMU: none that can be used: the firmware has no DMAR table",
                "in a group with 00:1f.0, 00:1f.3, which may stay behind",
            ],
        ),
        (
            "qemu-q35-pxb",
            &[
                "41:00.0 1b36:0010 NVMe controller (class 010802)",
                "BAR 0: memory of 64 bits, 16 KiB at 0xfe600000",
                "capabilities: MSI-X (65 messages), PCI Express, power management",
                "alone in its group",
                "it is reset by Function Level Reset",
                "MCFG: segment 0000, buses 00 to ff at 0xb0000000",
            ],
        ),
    ];
    for (name, sentences) in cases {
        let text = summary::summary(&machine(name));
        for sentence in *sentences {
            assert!(text.contains(sentence), "{name}: {sentence}\n{text}");
        }
    }
}

#[test]
fn a_cpu_that_will_not_do_is_told_why() {
    let verdict = |change: &dyn Fn(&mut capture::CpuKind)| {
        let mut capture = machine("bochs-vtd");
        change(&mut capture.cpu_kinds[0]);
        summary::summary(&capture)
    };
    let registers = |kind: &mut capture::CpuKind, bit: u32| {
        kind.cpuid.0.get_mut(&(1, 0)).unwrap()[2] &= !(1 << bit);
    };
    let text = verdict(&|kind| registers(kind, 21));
    assert!(text.contains("no: the CPU has no x2APIC"), "{text}");
    let text = verdict(&|kind| registers(kind, 5));
    assert!(text.contains("no: the CPU has no VT-x"), "{text}");
    let text = verdict(&|kind| kind.msrs.0.clear());
    assert!(text.contains("perhaps: the CPU has VT-x, but the MSRs"), "{text}");
    let text = verdict(&|kind| {
        kind.msrs.0.insert(0x3a, 1);
    });
    assert!(text.contains("no: ") && text.contains("0x1"), "{text}");
}
