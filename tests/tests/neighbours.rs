//! Guests beside one another: two Linux with a device each and a small multiboot kernel, all at work
//! at the same time, while one of them dies again and again.

use std::fs;
use std::os::unix::fs::symlink;

use nexit_tests::{Devices, Folder, Guest, Kernel, Payload, ResultLine, Session};

const GENERATIONS: usize = 10;

/// Linux with a network card, which transfers until somebody types.
fn net() -> String {
    let mut guest = Guest::on_qemu("igb transfers=key", "[\"00:06.0\"]");
    (guest.name, guest.cpus) = ("net", "[0, 1]");
    guest.toml()
}

/// Linux with a disk, which checks and reads it and then dies of a triple fault, over and over. It has
/// the kernel that is quick to boot, under names of its own: an image holds each name once.
fn disk(folder: &Folder) -> String {
    let mut guest = Guest::on_qemu("nvme,reboot reads=1000 quiet reboot=t", "[\"00:04.0\"]");
    (guest.name, guest.cpus, guest.kernel) = ("disk", "[2, 3]", Kernel::Cloud);
    let mut toml = guest.toml() + "on_crash = \"restart\"\n";
    for name in ["vmlinuz", "initrd.img"] {
        let (file, link) =
            (Kernel::Cloud.folder().join(name), folder.path(&format!("disk-{name}")));
        let linked = fs::canonicalize(file).and_then(|file| symlink(file, &link));
        assert!(linked.is_ok(), "{name}: {linked:?}");
        let named = Kernel::Cloud.folder().join(name).display().to_string();
        toml = toml.replace(&named, &link.display().to_string());
    }
    toml
}

/// A multiboot kernel with a command line and a module, which stays until it is stopped.
fn small(folder: &Folder) -> String {
    let module = folder.write("module", "a module of 24 bytes...\n");
    let further = format!("modules = [\"{module}\"]");
    let small =
        Payload { command_line: "spin beside them", further: &further, ..Payload::new("ends") };
    small.toml().replace("name = \"ends\"", "name = \"small\"").replace("[0]", "[4]")
}

/// The free bytes in the monitor's answer to `memory`.
fn free_memory(session: &mut Session) -> u64 {
    let answer = session.ask("memory");
    let free = answer.lines().find_map(|line| line.strip_prefix("nexit: free "));
    let bytes = free.and_then(|free| free.split_whitespace().last()?.parse().ok());
    bytes.unwrap_or_else(|| panic!("no free memory: {answer}"))
}

/// The numbers of every line `GUEST: demo: PART: ok …` on the screen.
fn results(screen: &str, guest: &str, part: &str) -> Vec<ResultLine> {
    let start = format!("{guest}: demo: {part}: ok");
    screen.lines().filter_map(|line| line.strip_prefix(&start)).map(ResultLine::parse).collect()
}

#[test]
fn a_linux_that_dies_ten_times_costs_its_neighbours_no_byte_and_no_exit() {
    let folder = Folder::new("neighbours");
    let config = folder.write("nexit.toml", net() + &disk(&folder) + &small(&folder));
    let devices = Devices::none().nvme().network("igb", 6);
    let mut arguments = vec!["run", "--config", &config, "--timeout", "600", "--"];
    arguments.extend(devices.iter());
    let mut session = Session::start(&arguments);
    session.see("small: payload: ends by spin");
    session.keys("\u{1}m");
    session.see("nexit> ");
    // Between two generations a guest's memory and tables may be free; while Linux is at its disk they are not.
    session.see("disk: demo: kernel");
    let free = free_memory(&mut session);
    for _ in 0..GENERATIONS {
        session.see("guest disk: triple_fault: restarting");
    }
    session.see("disk: demo: kernel");
    // Each generation puts its IDT elsewhere, which may take a few tables more.
    assert!(free_memory(&mut session).abs_diff(free) < 1 << 20, "of {free} bytes");
    let faults = session.ask("iommu");
    assert!(faults.contains("nexit: vt-d: 0 faults\n"), "{faults}");
    session.keys("\u{1}1");
    session.see("typing to guest 1, net");
    session.keys("\r");
    session.see("nexit: guest net: poweroff");
    session.keys("\u{1}m");
    session.see("nexit> ");
    session.keys("stop disk\rstop small\r");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(status.code(), Some(1), "two were stopped\n{screen}");
    assert!(!screen.contains("FAILED"), "{screen}");

    assert!(screen.contains("small: payload: command line: spin beside them\n"), "{screen}");
    assert!(screen.contains("small: payload: module: 24 bytes, checksum "), "{screen}");
    assert!(screen.contains("nexit: guest small: stopped"), "{screen}");
    let reads = results(&screen, "disk", "nvme");
    assert!(reads.len() >= GENERATIONS, "{screen}");
    assert_eq!(results(&screen, "disk", "nvme-files").len(), reads.len(), "checksums\n{screen}");
    let transfers = results(&screen, "net", "igb-tcp");
    let [transfers] = transfers.as_slice() else { panic!("no end of the transfers\n{screen}") };
    // Each was checked; a transfer went on over the generations of the other.
    assert!(transfers.get("transfers") >= 2, "{transfers:?}");
    for line in reads.iter().chain([transfers]) {
        assert!(line.get("interrupts") >= 1000, "{line:?}");
        assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    }
}
