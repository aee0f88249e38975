//! What the reader takes, and what it says to what it refuses.

use proptest::prelude::*;

use super::*;

const LINUX: &str = r#"[[guest]]
name = "linux"
cpus = [0]
memory = "512M"
kernel = "vmlinuz"
initrd = "initrd.img"
cmdline = "console=ttyS0"
devices = ["00:04.0"]
interrupts = "exitless"
io_ports = []
"#;

fn linux() -> GuestConfig {
    GuestConfig {
        name: "linux".into(),
        cpus: vec![0],
        memory: 512 << 20,
        kernel: "vmlinuz".into(),
        initrd: Some("initrd.img".into()),
        cmdline: "console=ttyS0".into(),
        devices: vec![Bdf::new(0, 4, 0)],
        interrupts: InterruptMode::Exitless,
        io_ports: vec![],
    }
}

fn sentence(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn the_documented_example_is_read() {
    let config = Config { guests: vec![linux()], unsafe_no_iommu: false };
    assert_eq!(parse(LINUX), Ok(config));
}

#[test]
fn optional_keys_have_their_documented_defaults() {
    let text = "[[guest]]\nname=\"a\"\ncpus=[1]\nmemory=\"1G\"\nkernel=\"k\"\n";
    let guest = &parse(text).unwrap().guests[0];
    assert_eq!((guest.memory, &guest.initrd, guest.cmdline.as_str()), (1 << 30, &None, ""));
    assert_eq!(guest.interrupts, InterruptMode::Exitless);
    assert!(guest.devices.is_empty() && guest.io_ports.is_empty());
}

#[test]
fn unsafe_no_iommu_is_taken_at_the_top_and_in_the_guest_but_for_one_guest_only() {
    assert!(parse(&format!("unsafe_no_iommu = true\n{LINUX}")).unwrap().unsafe_no_iommu);
    assert!(parse(&format!("{LINUX}unsafe_no_iommu = true\n")).unwrap().unsafe_no_iommu);
    assert!(!parse(&format!("{LINUX}unsafe_no_iommu = false\n")).unwrap().unsafe_no_iommu);
    let other = "[[guest]]\nname=\"a\"\ncpus=[1]\nmemory=\"1G\"\nkernel=\"k\"\n";
    let error = sentence(&format!("unsafe_no_iommu = true\n{LINUX}{other}"));
    assert!(error.starts_with("nexit.toml: unsafe_no_iommu is for one guest only"), "{error}");
}

#[test]
fn ports_are_read_alone_and_as_ranges() {
    let text = LINUX.replace("io_ports = []", r#"io_ports = ["0xf4", "0x3f0-0x3f7", "80"]"#);
    let expected = [(0xf4, 0xf4), (0x3f0, 0x3f7), (80, 80)];
    let ports = &parse(&text).unwrap().guests[0].io_ports;
    assert_eq!(ports.iter().map(|r| (r.first, r.last)).collect::<Vec<_>>(), expected);
}

/// `(what is replaced, by what, the sentence)`.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "kernel =",
        "kernl =",
        "line 5: unknown key \"kernl\" in [[guest]]: the keys are name, cpus, memory, kernel, \
         initrd, cmdline, devices, interrupts, io_ports, unsafe_no_iommu",
    ),
    ("[[guest]]", "guests = 1\n[[guest]]", "line 1: unknown key \"guests\" in the file"),
    ("[[guest]]", "[guest]", "line 1: guest is a list of tables"),
    ("[[guest]]", "guest = [1]\n[x]", "line 1: guest is a list of tables"),
    ("kernel = \"vmlinuz\"", "", "line 1: this [[guest]] has no kernel: add a line such as"),
    ("\"vmlinuz\"", "\" \"", "line 5: kernel is a file name such as \"vmlinuz\""),
    (
        "\"initrd.img\"",
        "7",
        "line 6: initrd is a file name such as \"vmlinuz\", and here stands an integer",
    ),
    ("[0]", "[]", "line 3: cpus is empty"),
    (
        "[0]",
        "0",
        "line 3: cpus is a list of CPU numbers such as [0, 1], and here stands an integer",
    ),
    (
        "[0]",
        "[0, 1, 0]",
        "line 3: cpus is a list of CPU numbers such as [0, 1], and here stands \"0 for the second time\"",
    ),
    ("[0]", "[-1]", "line 3: cpus is a list of CPU numbers such as [0, 1], and here stands \"-1\""),
    (
        "[0]",
        "[\"0\"]",
        "line 3: cpus is a list of CPU numbers such as [0, 1], and here stands a string",
    ),
    (
        "\"512M\"",
        "512",
        "line 4: memory is a size in K, M or G such as \"512M\", and here stands an integer",
    ),
    ("\"512M\"", "\"512\"", "line 4: memory is a size"),
    ("\"512M\"", "\"-1M\"", "line 4: memory is a size"),
    ("\"512M\"", "\"M\"", "line 4: memory is a size"),
    ("\"512M\"", "\"99999999999999G\"", "line 4: memory is a size"),
    (
        "\"512M\"",
        "\"8M\"",
        "line 4: memory is at least 16M and a multiple of 2M, and here stand 8388608 bytes",
    ),
    ("\"512M\"", "\"17M\"", "line 4: memory is at least 16M"),
    ("\"console=ttyS0\"", "\"a\\nb\"", "line 7: cmdline is one line of text"),
    (
        "\"00:04.0\"",
        "\"00:99.0\"",
        "line 8: devices is a list of PCI functions such as [\"00:04.0\"], and here stands \"00:99.0\"",
    ),
    (
        "[\"00:04.0\"]",
        "[\"00:04.0\", \"0000:00:04.0\"]",
        "line 8: devices is a list of PCI functions",
    ),
    (
        "\"exitless\"",
        "\"none\"",
        "line 9: interrupts is \"exitless\" or \"exiting\", and here stands \"none\"",
    ),
    ("io_ports = []", "io_ports = [\"0x10-0x8\"]", "line 10: io_ports is a list of ports"),
    ("io_ports = []", "io_ports = [0xf4]", "line 10: io_ports is a list of ports"),
    (
        "io_ports = []",
        "unsafe_no_iommu = 1",
        "line 10: unsafe_no_iommu is true or false, and here stands an integer",
    ),
    ("\"linux\"", "\"\"", "line 2: name is 1 to 64 printable characters"),
    ("\"linux\"", "\"a", "line 2: this is not TOML: "),
    ("cpus = [0]", "cpus = [0]\ncpus = [1]", "line 4: this is not TOML: duplicate key"),
];

#[test]
fn what_is_refused_is_told_with_its_line_and_what_to_do() {
    for (from, to, expected) in REFUSED {
        let text = LINUX.replacen(from, to, 1);
        assert_ne!(text, LINUX, "{from}");
        let error = sentence(&text);
        assert!(error.starts_with(&format!("nexit.toml, {expected}")), "{to}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn no_guest_is_refused() {
    for text in ["", "# nothing\n", "unsafe_no_iommu = true", "guest = []"] {
        assert!(sentence(text).starts_with("nexit.toml: there is no [[guest]]"));
    }
}

#[test]
fn what_one_guest_owns_no_other_can() {
    let first = LINUX.replace("io_ports = []", "io_ports = [\"0x10-0x1f\"]");
    let second = [
        ("name = \"linux\"", "guest name linux", 12),
        ("cpus = [2, 0]", "CPU 0", 13),
        ("devices = [\"00:04.0\"]", "device 00:04.0", 16),
        ("io_ports = [\"0x1f-0x20\"]", "port 0x1f-0x20", 17),
    ];
    for (line, what, number) in second {
        let keys = ["name = \"b\"", "cpus = [2]", "memory = \"16M\"", "kernel = \"k\""];
        let mut text = format!("{first}[[guest]]\n");
        for key in keys.into_iter().chain(["devices = []", "io_ports = []"]) {
            let same = key.split('=').next() == line.split('=').next();
            text += if same { line } else { key };
            text += "\n";
        }
        let expected =
            format!("nexit.toml, line {number}: {what} already belongs to guest \"linux\"");
        assert!(sentence(&text).starts_with(&expected), "{}", sentence(&text));
    }
}

/// Writes a configuration as a user would.
fn write(config: &Config) -> String {
    let mut text = format!("unsafe_no_iommu = {}\n", config.unsafe_no_iommu);
    for guest in &config.guests {
        let devices = guest.devices.iter().map(Bdf::to_string).collect::<Vec<_>>();
        let ports = guest.io_ports.iter();
        let ports = ports.map(|r| format!("{:#x}-{:#x}", r.first, r.last)).collect::<Vec<_>>();
        text += &format!(
            "[[guest]]\nname = {:?}\ncpus = {:?}\nmemory = \"{}K\"\nkernel = {:?}\n",
            guest.name,
            guest.cpus,
            guest.memory >> 10,
            guest.kernel
        );
        if let Some(initrd) = &guest.initrd {
            text += &format!("initrd = {initrd:?}\n");
        }
        let interrupts = match guest.interrupts {
            InterruptMode::Exitless => "exitless",
            InterruptMode::Exiting => "exiting",
        };
        text += &format!(
            "cmdline = {:?}\ndevices = {devices:?}\ninterrupts = \"{interrupts}\"\nio_ports = {ports:?}\n",
            guest.cmdline
        );
    }
    text
}

/// Guest number `index` owns CPUs, buses and ports that no other number does.
fn guest(index: u8) -> impl Strategy<Value = GuestConfig> {
    let file = "[a-z/._-]{1,12}";
    (
        proptest::collection::btree_set(0u32..100, 1..5),
        8u64..1 << 20,
        file,
        proptest::option::of(file),
        "[ -~]{0,40}",
        proptest::collection::btree_set(0u8..=255, 0..5),
        any::<bool>(),
        proptest::option::of((0u16..128, 128u16..256)),
    )
        .prop_map(move |(cpus, units, kernel, initrd, cmdline, devices, exiting, ports)| {
            let base = u16::from(index) << 8;
            GuestConfig {
                name: format!("guest {index}"),
                cpus: cpus.into_iter().map(|cpu| cpu + 100 * u32::from(index)).collect(),
                memory: units * MEMORY_UNIT,
                kernel,
                initrd,
                cmdline,
                devices: devices.into_iter().map(|n| Bdf::new(index, n >> 3, n & 7)).collect(),
                interrupts: if exiting { InterruptMode::Exiting } else { InterruptMode::Exitless },
                io_ports: ports
                    .map(|(a, b)| PortRange { first: base + a, last: base + b })
                    .into_iter()
                    .collect(),
            }
        })
}

proptest! {
    #[test]
    fn every_valid_configuration_round_trips(one in guest(0), two in guest(1), flag: bool) {
        for guests in [vec![one.clone()], vec![one, two]] {
            let config = Config { unsafe_no_iommu: flag && guests.len() == 1, guests };
            prop_assert_eq!(parse(&write(&config)), Ok(config));
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn a_damaged_configuration_is_parsed_or_refused(at in 0usize..160, with in "[\\[\\]\"=,a0\n]{0,3}") {
        let mut text = LINUX.to_string();
        text.replace_range(at..at + 1, &with);
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
