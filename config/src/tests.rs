//! What the reader takes, and what it says to what it refuses.

use arch::Bdf;
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
        modules: vec![],
        symbols: None,
        devices: Devices::Listed(vec![Bdf::new(0, 4, 0)]),
        interrupts: InterruptMode::Exitless,
        io_ports: vec![],
        intx: vec![],
        uart: None,
        gdb: None,
        pit: true,
        on_crash: Afterwards::Stop,
        on_reboot: Afterwards::Restart,
        places: Places::default(),
    }
}

fn sentence(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn the_documented_example_is_read() {
    let config = Config {
        guests: vec![linux()],
        unsafe_no_iommu: false,
        console: None,
        probe: false,
        share_cores: false,
        shared: vec![],
        places: Places::default(),
    };
    assert_eq!(parse(LINUX), Ok(config));
}

#[test]
fn optional_keys_have_their_documented_defaults() {
    let text = "[[guest]]\nname=\"a\"\ncpus=[1]\nmemory=\"1G\"\nkernel=\"k\"\n";
    let guest = &parse(text).unwrap().guests[0];
    assert_eq!((guest.memory, &guest.initrd, guest.cmdline.as_str()), (1 << 30, &None, ""));
    assert_eq!(guest.interrupts, InterruptMode::Exitless);
    assert_eq!(guest.devices, Devices::Listed(vec![]));
    assert!(guest.modules.is_empty() && guest.io_ports.is_empty());
    assert!(guest.intx.is_empty() && guest.uart.is_none() && guest.pit);
    assert_eq!((guest.on_crash, guest.on_reboot), (Afterwards::Stop, Afterwards::Restart));
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

const OTHER: &str = "[[guest]]\nname=\"a\"\ncpus=[1]\nmemory=\"1G\"\nkernel=\"k\"\n";

#[test]
fn interrupt_lines_are_read_and_belong_to_one_guest() {
    let text = format!("{LINUX}intx = [\"00:05.0=21\", \"0000:02:00.1 = 21\"]\n");
    let lines = &parse(&text).unwrap().guests[0].intx;
    let expected = [(Bdf::new(0, 5, 0), 21), (Bdf::new(2, 0, 1), 21)];
    assert_eq!(lines.iter().map(|l| (l.function, l.gsi)).collect::<Vec<_>>(), expected);
    let error = sentence(&format!("{text}{OTHER}intx = [\"00:06.0=21\"]\n"));
    assert!(
        error.contains("interrupt line 21 of 00:06.0 already belongs to guest \"linux\""),
        "{error}"
    );
    let taken = ["00:05.0", "00:05.0=", "00:05.0=4", "00:05.0=14", "x=16", "00:05.0=0x10"];
    for entry in taken {
        let error = sentence(&format!("{LINUX}intx = [\"{entry}\"]\n"));
        assert!(error.contains("each with the global system interrupt"), "{entry}: {error}");
    }
    let error = sentence(&format!("{LINUX}intx = [\"00:05.0=21\", \"00:05.0=22\"]\n"));
    assert!(error.contains("for the second time"), "{error}");
}

#[test]
fn a_crash_waits_for_gdb_only_where_there_is_a_line_to_one() {
    let text = format!("{LINUX}gdb = \"COM2\"\non_crash = \"debug\"\n");
    assert_eq!(parse(&text).unwrap().guests[0].on_crash, Afterwards::Debug);
    let error = sentence(&format!("{LINUX}on_crash = \"debug\"\n"));
    assert!(error.contains("gdb = \"console\""), "{error}");
    let error = sentence(&format!("{LINUX}gdb = \"COM2\"\non_reboot = \"debug\"\n"));
    assert!(error.contains("on_reboot must be \"stop\" or \"restart\""), "{error}");
}

#[test]
fn the_line_of_gdb_is_nobody_elses() {
    let with = |key: &str| format!("{LINUX}{key}\n");
    assert_eq!(parse(&with("gdb = \"COM2\"")).unwrap().guests[0].gdb, Some(Gdb::Uart(Uart::Com2)));
    for refused in ["COM1", "COM3", "com2", "0x2f8"] {
        let error = sentence(&with(&format!("gdb = \"{refused}\"")));
        assert!(error.contains("COM1 is the hypervisor's own"), "{error}");
    }
    let error = sentence(&format!("{}{OTHER}gdb = \"COM2\"\n", with("gdb = \"COM2\"")));
    assert!(error.contains("UART COM2 already belongs to guest \"linux\""), "{error}");
    for taken in ["uart = \"COM2\"", "uart = \"COM4\"", "io_ports = [\"0x2f8\"]"] {
        let error = sentence(&format!("{LINUX}gdb = \"COM2\"\n{OTHER}{taken}\n"));
        assert!(error.contains("gdb's COM2 already belongs to guest \"a\""), "{taken}: {error}");
    }
    let error = sentence(&format!("console = \"COM2\"\n{}", with("gdb = \"COM2\"")));
    assert!(error.contains("0x2f8 or its interrupt line"), "{error}");
}

#[test]
fn every_guest_can_have_its_gdb_at_the_console_if_there_is_one() {
    let both = format!("{LINUX}gdb = \"console\"\n{OTHER}gdb = \"console\"\n");
    let guests = parse(&both).unwrap().guests;
    assert!(guests.iter().all(|guest| guest.gdb == Some(Gdb::Console)), "{guests:?}");
    let error = sentence(&format!("console = \"none\"\n{both}"));
    assert!(error.contains("guest \"linux\" has gdb = \"console\", and there is none"), "{error}");
}

#[test]
fn a_uart_is_one_guests_and_never_the_consoles() {
    let with = |uart: &str| format!("{LINUX}uart = \"{uart}\"\n");
    assert_eq!(parse(&with("COM2")).unwrap().guests[0].uart, Some(Uart::Com2));
    for refused in ["COM1", "COM3", "com2", "0x2f8"] {
        let error = sentence(&with(refused));
        assert!(error.contains("COM1 is the hypervisor's own"), "{error}");
    }
    for (second, what) in [
        ("uart = \"COM2\"", "UART COM2"),
        ("uart = \"COM4\"", "interrupt line 3"),
        ("io_ports = [\"0x2f0-0x2f8\"]", "port 0x2f0-0x2f8"),
    ] {
        let error = sentence(&format!("{}{OTHER}{second}\n", with("COM2")));
        assert!(error.contains(&format!("{what} already belongs to guest \"linux\"")), "{error}");
    }
    let ports = LINUX.replace("io_ports = []", "io_ports = [\"0x2ff\"]");
    let error = sentence(&format!("{ports}{OTHER}uart = \"COM2\"\n"));
    assert!(error.contains("port of COM2 already belongs to guest \"linux\""), "{error}");
}

#[test]
fn a_serial_card_is_the_consoles_or_a_guests() {
    let with = |devices: &str| {
        let guest = LINUX.lines().filter(|line| !line.starts_with("devices"));
        let guest: String = guest.flat_map(|line| [line, "\n"]).collect();
        parse(&format!("console = \"pci:05:00.0\"\n{guest}{devices}\n"))
    };
    for refused in ["devices = [\"05:00.0\"]", "devices = \"all\""] {
        let error = with(refused).unwrap_err().to_string();
        assert!(error.contains("guest \"linux\" has the serial card 05:00.0"), "{error}");
    }
    let free = "devices = \"all\"\nexcept = [\"05:00.0\"]";
    for accepted in ["devices = [\"04:00.0\"]", free] {
        assert!(with(accepted).is_ok(), "{accepted}");
    }
}

#[test]
fn guests_share_cores_only_where_the_file_says_so() {
    assert!(!parse(LINUX).unwrap().share_cores);
    assert!(parse(&format!("share_cores = true\n{LINUX}")).unwrap().share_cores);
    assert!(!parse(&format!("share_cores = false\n{LINUX}")).unwrap().share_cores);
    let wrong = sentence(&format!("share_cores = 1\n{LINUX}"));
    assert!(wrong.contains("share_cores") && wrong.contains("true or false"), "{wrong}");
}

#[test]
fn a_file_that_only_asks_what_the_machine_is_needs_no_guest() {
    let probe = parse("probe = true\n").unwrap();
    assert!(probe.probe && probe.guests.is_empty());
    assert!(parse(&format!("probe = true\n{LINUX}")).unwrap().probe);
    assert!(!parse(LINUX).unwrap().probe);
    assert!(sentence("probe = false\n").contains("there is no [[guest]]"));
}

#[test]
fn the_console_is_a_uart_or_none_and_no_guests() {
    let with = |console: &str| format!("console = \"{console}\"\n{LINUX}");
    let read = |console: &str| parse(&with(console)).unwrap().console;
    assert_eq!(parse(LINUX).unwrap().console, None);
    assert_eq!(read("none"), Some(Console::None));
    for (text, port) in [("COM1", 0x3f8), ("COM2", 0x2f8), ("COM4", 0x2e8), ("0x3e8", 0x3e8)] {
        assert_eq!(read(text), Some(Console::Port(port)), "{text}");
    }
    for refused in ["COM5", "com1", "3f8", "0x60", "0x3f9", "0xcf8", "0x10000", "0x+8", ""] {
        let error = sentence(&with(refused));
        assert!(
            error.starts_with("nexit.toml, line 1: console must be \"COM1\" to \"COM4\""),
            "{error}"
        );
    }
    for (console, own) in [
        ("COM2", "uart = \"COM2\"\n"),
        // Not its ports, but its interrupt line.
        ("COM4", "uart = \"COM2\"\n"),
    ] {
        let error = sentence(&format!("{}{own}", with(console)));
        assert!(error.contains("guest \"linux\" has the UART at port 0x2"), "{error}");
    }
    let ports = with("0x3e8").replace("io_ports = []", "io_ports = [\"0x3ef\"]");
    assert!(sentence(&ports).contains("has the UART at port 0x3e8"));
    let card = Console::Card("0001:05:00.2".parse().unwrap());
    assert_eq!(read("pci:0001:05:00.2"), Some(card));
    for refused in ["pci:", "pci:5", "pci:05:20.0", "PCI:05:00.0"] {
        assert!(sentence(&with(refused)).contains("a serial card such as"), "{refused}");
    }
    for free in ["none", "COM1", "COM3"] {
        assert!(parse(&format!("{}uart = \"COM2\"\n", with(free))).is_ok(), "{free}");
    }
}

#[test]
fn what_follows_a_crash_and_a_reboot_is_read() {
    let text = format!("{LINUX}on_crash = \"restart\"\non_reboot = \"stop\"\n");
    let guest = &parse(&text).unwrap().guests[0];
    assert_eq!((guest.on_crash, guest.on_reboot), (Afterwards::Restart, Afterwards::Stop));
}

#[test]
fn a_list_of_symbols_is_a_file() {
    let text = format!("{LINUX}symbols = \"boot/System.map\"\n");
    assert_eq!(parse(&text).unwrap().guests[0].symbols.as_deref(), Some("boot/System.map"));
}

#[test]
fn a_module_is_a_file_and_the_words_behind_it() {
    let text = format!("{LINUX}modules = [\"a/one.bin\", \" two  x  y=1 \"]\n");
    let module = |file: &str, args: &str| ModuleConfig { file: file.into(), args: args.into() };
    let expected = [module("a/one.bin", ""), module("two", "x  y=1")];
    assert_eq!(parse(&text).unwrap().guests[0].modules, expected);
}

const B: &str = "[[guest]]\nname = \"b\"\ncpus = [1]\nmemory = \"16M\"\nkernel = \"k\"\n";

#[test]
fn all_is_what_exists_but_the_exceptions_and_what_others_list() {
    let function = |device, function| Bdf::new(0, device, function);
    let text = format!("{B}devices = \"all\"\nexcept = [\"00:1f.0\", \"00:1e.0\"]\n{LINUX}");
    let config = parse(&text).unwrap();
    let [all, linux] = &config.guests[..] else { panic!("two guests") };
    assert_eq!(all.devices.named(), [function(31, 0), function(30, 0)]);
    let existing = [function(3, 0), function(4, 0), function(4, 1), function(31, 0)];
    assert_eq!(config.functions(all, &existing), [function(3, 0), function(4, 1)]);
    assert_eq!(config.functions(linux, &existing), [function(4, 0)]);
    assert_eq!(config.functions(linux, &[]), [function(4, 0)], "the caller says that it is absent");
}

#[test]
fn only_one_guest_can_have_all() {
    let all = B.to_string() + "devices = \"all\"\n";
    let second = all.replace("\"b\"", "\"c\"").replace("[1]", "[2]");
    let expected = "nexit.toml, line 12: devices = \"all\" already belongs to guest \"b\"";
    let error = sentence(&(all + &second));
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn what_is_excepted_may_be_listed_by_another_guest() {
    let text = format!("{LINUX}{B}devices = \"all\"\nexcept = [\"00:04.0\"]\n");
    assert_eq!(parse(&text).unwrap().guests[1].devices.named(), [Bdf::new(0, 4, 0)]);
}

/// `(what is replaced, by what, the sentence)`.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "kernel =",
        "kernl =",
        "line 5: unknown key \"kernl\" in [[guest]]: the keys are name, cpus, memory, kernel, \
         initrd, cmdline, modules, symbols, devices, except, interrupts, io_ports, intx, uart, gdb, pit, on_crash, on_reboot, \
         unsafe_no_iommu",
    ),
    ("[[guest]]", "guests = 1\n[[guest]]", "line 1: unknown key \"guests\" in the file"),
    ("[[guest]]", "[guest]", "line 1: guest must be a list of tables"),
    ("[[guest]]", "guest = [1]\n[x]", "line 1: guest must be a list of tables"),
    ("kernel = \"vmlinuz\"", "", "line 1: this [[guest]] has no kernel: add a line such as"),
    ("\"vmlinuz\"", "\" \"", "line 5: kernel must be a file name such as \"vmlinuz\""),
    (
        "\"initrd.img\"",
        "7",
        "line 6: initrd must be a file name such as \"vmlinuz\", not an integer",
    ),
    ("[0]", "[]", "line 3: cpus is empty"),
    ("[0]", "0", "line 3: cpus must be a list of CPU numbers such as [0, 1], not an integer"),
    (
        "[0]",
        "[0, 1, 0]",
        "line 3: cpus must be a list of CPU numbers such as [0, 1], not \"0 for the second time\"",
    ),
    ("[0]", "[-1]", "line 3: cpus must be a list of CPU numbers such as [0, 1], not \"-1\""),
    ("[0]", "[\"0\"]", "line 3: cpus must be a list of CPU numbers such as [0, 1], not a string"),
    (
        "\"512M\"",
        "512",
        "line 4: memory must be a size in K, M or G such as \"512M\", not an integer",
    ),
    ("\"512M\"", "\"512\"", "line 4: memory must be a size"),
    ("\"512M\"", "\"-1M\"", "line 4: memory must be a size"),
    ("\"512M\"", "\"M\"", "line 4: memory must be a size"),
    ("\"512M\"", "\"99999999999999G\"", "line 4: memory must be a size"),
    (
        "\"512M\"",
        "\"8M\"",
        "line 4: memory must be at least 16M and a multiple of 2M, not 8388608 bytes",
    ),
    ("\"512M\"", "\"17M\"", "line 4: memory must be at least 16M"),
    ("\"console=ttyS0\"", "\"a\\nb\"", "line 7: cmdline must be one line of text"),
    (
        "\"00:04.0\"",
        "\"00:99.0\"",
        "line 8: devices must be a list of PCI functions such as [\"00:04.0\"], or \"all\", not \
         \"00:99.0\"",
    ),
    (
        "[\"00:04.0\"]",
        "[\"00:04.0\", \"0000:00:04.0\"]",
        "line 8: devices must be a list of PCI functions",
    ),
    ("[\"00:04.0\"]", "\"ALL\"", "line 8: devices must be a list of PCI functions"),
    ("[\"00:04.0\"]", "4", "line 8: devices must be a list of PCI functions"),
    (
        "interrupts = \"exitless\"",
        "except = []",
        "line 9: except takes functions out of devices = \"all\", which does not stand here",
    ),
    (
        "devices = [\"00:04.0\"]",
        "except = [\"00:04.0\"]",
        "line 8: except takes functions out of devices = \"all\"",
    ),
    (
        "[\"00:04.0\"]",
        "\"all\"\nexcept = [\"00:01.0\", \"00:01.0\"]",
        "line 9: except must be a list of PCI functions such as [\"00:1f.0\"], not \
         \"00:01.0 for the second time\"",
    ),
    (
        "[\"00:04.0\"]",
        "\"all\"\nexcept = \"all\"",
        "line 9: except must be a list of PCI functions",
    ),
    (
        "io_ports = []",
        "on_crash = \"reboot\"",
        "line 10: on_crash must be \"stop\", \"restart\" or \"debug\", not \"reboot\"",
    ),
    ("io_ports = []", "on_reboot = true", "line 10: on_reboot must be \"stop\" or \"restart\""),
    ("io_ports = []", "modules = [\" \"]", "line 10: modules must be a list of file names"),
    ("io_ports = []", "modules = [\"a\\tb\"]", "line 10: modules must be a list of file names"),
    ("io_ports = []", "modules = \"a\"", "line 10: modules must be a list of file names"),
    (
        "\"exitless\"",
        "\"none\"",
        "line 9: interrupts must be \"exitless\", \"exiting\" or \"posted\", not \"none\"",
    ),
    ("io_ports = []", "io_ports = [\"0x10-0x8\"]", "line 10: io_ports must be a list of ports"),
    ("io_ports = []", "io_ports = [0xf4]", "line 10: io_ports must be a list of ports"),
    (
        "io_ports = []",
        "unsafe_no_iommu = 1",
        "line 10: unsafe_no_iommu must be true or false, not an integer",
    ),
    ("\"linux\"", "\"\"", "line 2: name must be 1 to 64 printable characters"),
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
        let named = guest.devices.named().iter().map(Bdf::to_string).collect::<Vec<_>>();
        let devices = match guest.devices {
            Devices::Listed(_) => format!("devices = {named:?}"),
            Devices::All { .. } => format!("except = {named:?}\ndevices = \"all\""),
        };
        let modules = guest.modules.iter().map(|module| format!("{} {}", module.file, module.args));
        let modules = modules.collect::<Vec<_>>();
        let word = |afterwards| match afterwards {
            Afterwards::Stop => "stop",
            Afterwards::Restart => "restart",
            Afterwards::Debug => "debug",
        };
        let (on_crash, on_reboot) = (word(guest.on_crash), word(guest.on_reboot));
        let ports = guest.io_ports.iter();
        let ports = ports.map(|r| format!("{:#x}-{:#x}", r.first, r.last)).collect::<Vec<_>>();
        text += &format!(
            "[[guest]]\nname = {:?}\ncpus = {:?}\nmemory = \"{}K\"\nkernel = {:?}\n",
            guest.name,
            guest.cpus,
            guest.memory >> 10,
            guest.kernel
        );
        if let Some(symbols) = &guest.symbols {
            text += &format!("symbols = {symbols:?}\n");
        }
        if let Some(initrd) = &guest.initrd {
            text += &format!("initrd = {initrd:?}\n");
        }
        let interrupts = match guest.interrupts {
            InterruptMode::Exitless => "exitless",
            InterruptMode::Exiting => "exiting",
            InterruptMode::Posted => "posted",
        };
        text += &format!(
            "cmdline = {:?}\n{devices}\nmodules = {modules:?}\ninterrupts = \"{interrupts}\"\n\
             io_ports = {ports:?}\non_crash = {on_crash:?}\non_reboot = {on_reboot:?}\n",
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
        any::<[bool; 4]>(),
        proptest::option::of((0u16..128, 128u16..256)),
        proptest::collection::vec((file, "[a-z]{0,3}"), 0..3),
    )
        .prop_map(
            move |(cpus, units, kernel, initrd, cmdline, devices, flags, ports, modules)| {
                let [exiting, all, crash, reboot] = flags;
                let devices: Vec<_> =
                    devices.into_iter().map(|n| Bdf::new(index, n >> 3, n & 7)).collect();
                let afterwards = |flag| if flag { Afterwards::Restart } else { Afterwards::Stop };
                let base = u16::from(index) << 8;
                GuestConfig {
                    name: format!("guest {index}"),
                    cpus: cpus.into_iter().map(|cpu| cpu + 100 * u32::from(index)).collect(),
                    memory: units * MEMORY_UNIT,
                    kernel,
                    symbols: initrd.clone(),
                    initrd,
                    cmdline,
                    modules: modules
                        .into_iter()
                        .map(|(file, args)| ModuleConfig { file, args })
                        .collect(),
                    // Only one guest can have all: the last.
                    devices: match all && index > 0 {
                        true => Devices::All { except: devices },
                        false => Devices::Listed(devices),
                    },
                    interrupts: if exiting {
                        InterruptMode::Exiting
                    } else {
                        InterruptMode::Exitless
                    },
                    io_ports: ports
                        .map(|(a, b)| PortRange { first: base + a, last: base + b })
                        .into_iter()
                        .collect(),
                    intx: vec![],
                    uart: None,
                    gdb: None,
                    pit: true,
                    on_crash: afterwards(crash),
                    on_reboot: afterwards(reboot),
                    places: Places::default(),
                }
            },
        )
}

proptest! {
    #[test]
    fn every_valid_configuration_round_trips(one in guest(0), two in guest(1), flag: bool) {
        for guests in [vec![one.clone()], vec![one, two]] {
            let config = Config { unsafe_no_iommu: flag && guests.len() == 1, guests, console: None, probe: false, share_cores: false, shared: vec![], places: Places::default() };
            prop_assert_eq!(parse(&write(&config)), Ok(config));
        }
    }

    #[test]
    fn no_function_has_two_owners(
        one in guest(0),
        two in guest(1),
        existing in proptest::collection::btree_set(0u16..0x200, 0..20),
    ) {
        let config = Config { guests: vec![one, two], unsafe_no_iommu: false, console: None, probe: false, share_cores: false, shared: vec![], places: Places::default() };
        let existing: Vec<_> = existing.into_iter().map(Bdf::from_requester_id).collect();
        let [one, two] = [0, 1].map(|index| config.functions(&config.guests[index], &existing));
        prop_assert!(!one.iter().any(|function| two.contains(function)));
        if let Devices::All { except } = &config.guests[1].devices {
            // Nothing is lost either: what exists belongs to the one or the other, or is excepted.
            for function in &existing {
                let owners = [&one, &two, except].map(|list| list.contains(function));
                let count = owners.into_iter().filter(|owns| *owns).count();
                prop_assert_eq!(count, 1, "{}", function);
            }
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

/// Two guests that share a region named before them.
const SHARED: &str = r#"[[shared]]
name = "pipe"
size = "1M"
guests = ["b", "a"]
[[guest]]
name = "a"
cpus = [0]
memory = "16M"
kernel = "k"
[[guest]]
name = "b"
cpus = [1]
memory = "16M"
kernel = "k"
"#;

#[test]
fn a_shared_region_names_its_guests_in_the_order_of_their_peer_identifiers() {
    let config = parse(SHARED).unwrap();
    let pipe = SharedConfig {
        name: "pipe".into(),
        size: 1 << 20,
        guests: vec![1, 0],
        places: Places::default(),
    };
    assert_eq!(config.shared, [pipe]);
}

#[test]
fn a_shared_region_that_cannot_be_is_told_with_its_line() {
    const TAKES_GUESTS: &str =
        "guests must be a list of 2 to 8 guests' names such as [\"a\", \"b\"]";
    for (from, to, expected) in [
        ("size", "length", "line 3: unknown key \"length\" in [[shared]]: the keys are name, size"),
        ("size = \"1M\"", "", "line 1: this [[shared]] has no size: add a line such as size ="),
        ("\"1M\"", "\"3M\"", "line 3: size must be a power of two from \"4K\" on"),
        ("\"1M\"", "\"2K\"", "line 3: size must be a power of two"),
        ("\"1M\"", "1", "line 3: size must be a power of two"),
        ("\"pipe\"", "\"\"", "line 2: name must be 1 to 64 printable characters"),
        ("[\"b\"", "[\"c\"", "line 4: there is no [[guest]] \"c\": add it, or share with others"),
        ("[\"b\"", "[\"a\"", &format!("line 4: {TAKES_GUESTS}, not \"a for the second")),
        ("[\"b\", ", "[", &format!("line 4: {TAKES_GUESTS}, not \"1 of them\"")),
        ("[[shared]]", "[shared]", "line 1: shared must be a list of tables"),
        (
            "[[guest]]",
            "[[shared]]\nname = \"pipe\"\nsize = \"4K\"\nguests = [\"a\", \"b\"]\n[[guest]]",
            "line 5: there are two [[shared]] \"pipe\"",
        ),
    ] {
        let error = sentence(&SHARED.replacen(from, to, 1));
        assert!(error.starts_with(&format!("nexit.toml, {expected}")), "{to}: {error}");
    }
}

#[test]
fn every_key_and_entry_knows_its_line() {
    let text = "unsafe_no_iommu = true\n\n[[guest]]\nname = \"a\"\ncpus = [\n  0,\n  1,\n]\n\
                memory = \"64M\"\nkernel = \"k\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.places.line("unsafe_no_iommu"), Some(1));
    let places = &config.guests[0].places;
    assert_eq!(
        ["name", "cpus", "memory", "initrd"].map(|key| places.line(key)),
        [Some(4), Some(5), Some(9), None]
    );
    assert_eq!([0, 1, 2].map(|index| places.entry("cpus", index)), [Some(6), Some(7), Some(5)]);
    assert_eq!(places.entry("devices", 0), None);
}
