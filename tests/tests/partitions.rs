//! Several CPUs to a guest, several guests to a machine, and their life cycle.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use nexit_tests::{Devices, Folder, Guest, Kernel, Payload, build_folder};

const TIMEOUT: &[&str] = &["--timeout", "240"];

#[test]
fn four_cpus_boot_go_offline_come_back_and_take_interrupts_without_exits() {
    let mut guest = Guest::on_qemu("hotplug,nvme reads=3000", "[\"00:04.0\"]");
    guest.cpus = "[0, 1, 2, 3]";
    let outcome = Folder::new("four-cpus").run(&guest.toml(), TIMEOUT, &Devices::none().nvme());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let _ = outcome.result("hotplug");
    let line = outcome.result("nvme");
    assert!(line.get("interrupts") >= 3000, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    // The interrupt may be another CPU's than the reader's: waking it is an IPI, one MSR write.
    assert_eq!(line.exits_but_the_watchdogs(), line.exits("msr"), "{line:?}");
    let vcpus = outcome.report["guests"][0]["vcpus"].as_array().map(Vec::len);
    assert_eq!(vcpus, Some(4), "{outcome}");
}

#[test]
fn two_cpus_take_interrupts_without_exits_on_vt_x() {
    let folder = Folder::new("two-cpus-bochs");
    let mut guest = Guest::on_bochs("ide reads=500");
    guest.cpus = "[0, 1]";
    let toml = format!("unsafe_no_iommu = true\n{}", guest.toml());
    let options = ["--emulator", "bochs", "--timeout", "400"];
    let outcome = folder.run(&toml, &options, &Devices::ide(&folder));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let line = outcome.result("ide");
    assert!(line.get("interrupts") >= 500, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
}

/// A small guest crashes and begins anew, over and over, until it is stopped at the monitor; the other
/// reads from its disk meanwhile.
#[test]
fn a_guest_that_begins_anew_costs_its_neighbour_nothing_and_the_machine_no_memory() {
    let folder = Folder::new("neighbours");
    let mut reader = Guest::on_qemu("nvme reads=20000", "[\"00:04.0\"]");
    reader.name = "reader";
    let restless = format!(
        "[[guest]]\nname = \"restless\"\ncpus = [1]\nmemory = \"16M\"\nkernel = \"{}\"\n\
         cmdline = \"triple-fault\"\non_crash = \"restart\"\n",
        Payload::new("ends").path().display()
    );
    let config = folder.write("nexit.toml", format!("{}{restless}", reader.toml()));
    let disk = Kernel::Stock.folder().join("disk.img");
    let disk = format!("driver=file,node-name=disk,read-only=on,filename={}", disk.display());
    let nvme = "nvme,drive=disk,serial=reader,addr=4";
    let arguments = ["run", "--config", &config, "--timeout", "240", "--"];
    let arguments = [&arguments[..], &["-blockdev", &disk, "-device", nvme]].concat();
    let output = typed_to(&arguments, |line, restarts| {
        if line.contains("it begins anew") && restarts == 1 {
            "\x01mmemory\r"
        } else if line.contains("nexit: guest reader: poweroff") {
            "guests\rmemory\rstop restless\r"
        } else {
            ""
        }
    });
    folder.write("run.log", &output);
    let restarts = output.matches(ANEW).count();
    assert!(restarts >= 10, "{restarts} restarts\n{output}");
    let result = output.lines().find(|line| line.contains("reader: demo: nvme: ok"));
    let result = result.unwrap_or_else(|| panic!("no result\n{output}"));
    for word in ["interrupts=20000", "external_interrupt=0", "eoi=0", "shadow_gate=0"] {
        assert!(result.contains(word), "{word}: {result}");
    }
    assert!(output.contains("nexit: restless: "), "the monitor answers\n{output}");
    assert!(output.contains("nexit: guest restless: stopped"), "{output}");
    let free: Vec<&str> = output.lines().filter(|line| line.contains("nexit: free: ")).collect();
    assert!(free.len() == 2 && free[0] == free[1], "{free:?} after {restarts} restarts");
}

#[test]
fn a_guest_that_reboots_has_its_cpus_and_its_device_again() {
    let folder = Folder::new("reboots-with-device");
    let mut guest = Guest::on_qemu("nvme,reboot reads=1000", "[\"00:04.0\"]");
    (guest.name, guest.cpus, guest.on_reboot) = ("restless", "[0, 1]", "restart");
    let config = folder.write("nexit.toml", guest.toml());
    let disk = Kernel::Stock.folder().join("disk.img");
    let disk = format!("driver=file,node-name=disk,read-only=on,filename={}", disk.display());
    let nvme = "nvme,drive=disk,serial=reader,addr=4";
    let arguments = ["run", "--config", &config, "--timeout", "240", "--"];
    let arguments = [&arguments[..], &["-blockdev", &disk, "-device", nvme]].concat();
    let output = typed_to(&arguments, |line, restarts| {
        let done = restarts == 2 && line.contains("demo: nvme: ok");
        if done { "\x01mstop restless\r" } else { "" }
    });
    folder.write("run.log", &output);
    for seen in ["2 CPU(s)", "demo: nvme: ok reads=1000 "] {
        let lives = output.matches(seen).count();
        assert!(lives >= 3, "{seen}: {lives} lives\n{output}");
    }
    assert!(output.contains("nexit: guest restless: stopped"), "{output}");
    assert!(!output.contains("FAILED"), "{output}");
}

const ANEW: &str = ": it begins anew";

/// Runs `nexit` with `arguments`; `keys` says what is typed at a line of its output, given how often
/// the guest has begun anew. All of the output.
#[expect(clippy::expect_used, reason = "only a test calls it")]
fn typed_to(arguments: &[&str], keys: impl Fn(&str, usize) -> &'static str) -> String {
    let mut nexit = Command::new(build_folder().join("debug/nexit"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("nexit is built");
    let mut input = nexit.stdin.take().expect("a pipe");
    let mut lines = BufReader::new(nexit.stdout.take().expect("a pipe"));
    let (mut output, mut line, mut restarts) = (String::new(), Vec::new(), 0);
    while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        restarts += usize::from(text.contains(ANEW));
        // The emulator may be gone by now; what is missing shows in the output.
        let _ = input.write_all(keys(&text, restarts).as_bytes());
        output.push_str(&text);
        line.clear();
    }
    let _ = nexit.wait();
    output
}
