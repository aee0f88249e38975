//! `nexit check` beforehand and the hypervisor at boot say the same of the same mistake, word for word.

use nexit_tests::{Devices, Folder, Payload, Row, Stopped, Sum, q35};

const OPTIONS: &[&str] = &["--timeout", "60", "--memory", "1G"];
const EDU: Row = ("00:04.0", 0x11e8_1234, 0x00_ff00, false, true);
const PAIR: [Row; 2] = [
    ("00:06.0", 0x1044_1af4, 0x00_ff00, true, true),
    ("00:06.1", 0x1044_1af4, 0x00_ff00, true, true),
];
const PAIR_ARGUMENTS: &[&str] =
    &["-device", "virtio-rng-pci,addr=6.0,multifunction=on", "-device", "virtio-rng-pci,addr=6.1"];
const EDU_ARGUMENTS: &[&str] = &["-device", "edu,addr=4"];
/// A region that the firmware keeps for 00:04.0, in the words of the cases and as bytes.
const REGION: &str = "rmrr 0 30000000 3000ffff\nscope 1 0 0 4.0";
const REGION_BYTES: [u8; 32] = [
    1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0, 0xff, 0xff, 0, 0x30, 0, 0, 0, 0, 1, 8, 0,
    0, 0, 0, 4, 0,
];

struct Mistake<'a> {
    name: &'a str,
    /// What is written in place of what in the payload's configuration, `#` being a line of its own.
    change: (&'a str, &'a str),
    /// The devices of the machine, for QEMU and in the machine file.
    arguments: &'a [&'a str],
    rows: &'a [Row],
    /// Beside the unit in the DMAR table, if there is one.
    dmar: Option<&'a str>,
    /// What becomes of the emulated machine's tables.
    tables: Option<fn(&mut Stopped)>,
    options: &'a [&'a str],
    /// Some words of the sentence.
    words: &'a str,
}

const NOTHING: Mistake<'_> = Mistake {
    name: "",
    change: ("", ""),
    arguments: &[],
    rows: &[],
    dmar: Some(""),
    tables: None,
    options: &[],
    words: "",
};

const WITH_EDU: Mistake<'_> = Mistake { arguments: EDU_ARGUMENTS, rows: &[EDU], ..NOTHING };
const DEVICE: (&str, &str) = ("#", "devices = [\"00:04.0\"]");

const MISTAKES: &[Mistake<'_>] = &[
    Mistake {
        name: "cpu",
        change: ("[0]", "[5]"),
        arguments: &["-smp", "2"],
        words: "cpus names CPU 5",
        ..NOTHING
    },
    Mistake { name: "memory", change: ("64M", "3G"), words: "memory = 3072 MiB", ..NOTHING },
    Mistake {
        name: "absent",
        change: ("#", "devices = [\"00:09.0\"]"),
        words: "no such PCI function; it has 00:00.0, 00:04.0, 00:1f.0",
        ..WITH_EDU
    },
    Mistake {
        name: "bridge",
        change: ("#", "devices = [\"00:1f.0\"]"),
        words: "00:1f.0 is a bridge",
        ..NOTHING
    },
    Mistake {
        name: "group",
        change: ("#", "devices = [\"00:06.0\"]"),
        arguments: PAIR_ARGUMENTS,
        rows: &PAIR,
        words: "give 00:06.0, 00:06.1 to one guest",
        ..NOTHING
    },
    Mistake {
        name: "reserved",
        change: DEVICE,
        dmar: Some(REGION),
        tables: Some(|machine| machine.append("DMAR", &REGION_BYTES)),
        words: "the firmware keeps using it for DMA to 0x30000000",
        ..WITH_EDU
    },
    Mistake {
        name: "no-iommu",
        change: DEVICE,
        dmar: None,
        options: &["--iommu", "none"],
        words: "the firmware has no DMAR table",
        ..WITH_EDU
    },
    Mistake {
        name: "wrong-sum",
        change: DEVICE,
        dmar: Some("badsum"),
        tables: Some(|machine| machine.change("DMAR", Sum::Wrong, |_| {})),
        words: "DMAR table has a wrong checksum",
        ..WITH_EDU
    },
    Mistake {
        name: "no-remapping",
        change: DEVICE,
        dmar: Some("flags 0"),
        tables: Some(|machine| machine.change("DMAR", Sum::Right, |table| table[37] = 0)),
        words: "lacks interrupt remapping, says the firmware's DMAR table",
        ..WITH_EDU
    },
    Mistake {
        name: "line",
        change: ("#", "devices = [\"00:04.0\"]\nintx = [\"00:04.0=300\"]"),
        words: "no I/O APIC has interrupt line 300",
        ..WITH_EDU
    },
    Mistake {
        name: "posted",
        change: ("#", "interrupts = \"posted\""),
        words: "interrupts = \"posted\" is for VT-x",
        ..NOTHING
    },
    Mistake {
        name: "ports",
        change: ("#", "io_ports = [\"0xcf8\"]"),
        words: "io_ports names 0xcf8",
        ..NOTHING
    },
    Mistake {
        name: "shared",
        change: (
            "#",
            "[[guest]]\nname = \"b\"\ncpus = [1]\nmemory = \"16M\"\nkernel = \"KERNEL\"\n\
             [[shared]]\nname = \"s\"\nsize = \"2G\"\nguests = [\"ends\", \"b\"]",
        ),
        words: "shared s: size = 2097152 KiB",
        ..NOTHING
    },
    Mistake {
        name: "no-kernel",
        change: ("KERNEL", "noise"),
        words: "neither a Linux bzImage nor a multiboot kernel",
        ..NOTHING
    },
    Mistake {
        name: "empty-initrd",
        change: ("#", "initrd = \"empty\""),
        words: "initrd = \"empty\": the file is empty",
        ..NOTHING
    },
    Mistake {
        name: "large-initrd",
        change: ("#", "initrd = \"large\""),
        words: "the initrd needs 0x4000000 bytes",
        ..NOTHING
    },
];

/// A number of MiB that are free is the machine's own business: the hypervisor knows it to the page.
fn without_free(sentence: &str) -> String {
    let words: Vec<&str> = sentence.split(' ').collect();
    let is_count = |index: usize| {
        words.get(index + 1..index + 3) == Some(&["MiB", "free"])
            || words.get(index + 1) == Some(&"MiB")
                && words.get(index + 2).is_some_and(|it| it.starts_with("free"))
    };
    let word = |(index, word): (usize, &&str)| {
        if is_count(index) { "N".into() } else { (*word).to_owned() }
    };
    words.iter().enumerate().map(word).collect::<Vec<String>>().join(" ")
}

#[test]
fn the_hypervisor_and_the_check_say_the_same_of_each_mistake() {
    for mistake in MISTAKES {
        let folder = Folder::new(&format!("check-{}", mistake.name));
        let payload = Payload { further: "#", ..Payload::new("ends") };
        let kernel = payload.toml();
        let kernel = kernel.split("kernel = \"").nth(1).and_then(|rest| rest.split('"').next());
        let kernel = kernel.unwrap_or_default();
        folder.write("noise", [7; 9000]);
        folder.write("empty", "");
        folder.write("large", vec![1; 64 << 20]);
        let toml = payload.toml().replace(kernel, "KERNEL");
        let toml = toml.replacen(mistake.change.0, mistake.change.1, 1).replace("KERNEL", kernel);

        let machine = folder.path("machine.toml");
        let written = q35(mistake.rows, mistake.dmar).write(&machine);
        assert!(written.is_ok(), "{written:?}");
        let config = folder.write("checked.toml", &toml);
        let machine = machine.display().to_string();
        let check = folder.nexit("check", &["check", &config, "--machine", &machine]);
        assert_eq!(check.status, Some(1), "{}: {check}", mistake.name);
        let beforehand = check.output.lines().next().unwrap_or_default();
        let beforehand = beforehand.replacen(&format!("{config}:"), "nexit.toml, line ", 1);
        assert!(beforehand.contains(mistake.words), "{}: {beforehand}", mistake.name);
        assert!(check.errors.contains("1 thing is wrong"), "{}: {check}", mistake.name);

        let options: Vec<&str> = OPTIONS.iter().chain(mistake.options).copied().collect();
        let devices = Devices::arguments(mistake.arguments);
        let outcome = match mistake.tables {
            None => folder.run(&toml, &options, &devices),
            Some(change) => folder.run_with_tables(&toml, &options, &devices, change),
        };
        assert_eq!(without_free(outcome.refusal()), without_free(&beforehand), "{}", mistake.name);
    }
}
