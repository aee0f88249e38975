//! Several CPUs to a guest, several guests to a machine, and their life cycle.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use nexit_tests::{Devices, Emulator, Folder, Guest, Kernel, Payload, build_folder};

const TIMEOUT: &[&str] = &["--timeout", "240"];

#[test]
fn four_cpus_boot_go_offline_come_back_and_lose_no_interrupt() {
    let mut guest =
        Guest::on_qemu("hackbench,nvme,affinity reads=3000", "[\"00:04.0\", \"00:05.0\"]");
    guest.cpus = "[0, 1, 2, 3]";
    let single = ["-device", "nvme,drive=single,serial=single,addr=5,msix_qsize=1"];
    let drive = ["-blockdev", "driver=null-co,node-name=single,size=16777216,read-zeroes=on"];
    let devices = Devices::none().nvme().and(&[drive, single].concat());
    let outcome = Folder::new("four-cpus").run(&guest.toml(), TIMEOUT, &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    // An IPI that is lost leaves the program waiting.
    let line = outcome.result("hackbench");
    assert!(line.get("interrupts") > 0 && line.exits("msr") > 0, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    let _ = outcome.result("hackbench-hotplug");
    let line = outcome.result("affinity");
    assert!(line.get("interrupts") >= 3000, "{line:?}");
    assert!(line.get("moves") >= 20 && line.get("least") > 0, "every CPU took some: {line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    let line = outcome.result("nvme");
    assert!(line.get("interrupts") >= 3000, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    // The interrupt may be another CPU's than the reader's: waking it is an IPI, one MSR write.
    assert_eq!(line.exits_but_the_watchdogs(), line.exits("msr"), "{line:?}");
    let vcpus = outcome.report["guests"][0]["vcpus"].as_array().map(Vec::len);
    assert_eq!(vcpus, Some(4), "{outcome}");
}

/// One small guest on each CPU. Neither CPUs nor memory are given to `nexit`: the configuration says
/// what is needed.
fn each_cpu_runs_a_guest(emulator: Emulator, cpus: u64) {
    let guest = |cpu: u64| {
        let guest = Payload::new("ends").toml();
        let guest = guest.replace("name = \"ends\"", &format!("name = \"guest {cpu}\""));
        guest.replace("[0]", &format!("[{cpu}]")).replace("64M", "192M")
    };
    let toml: String = (0..cpus).map(guest).collect();
    let options = [emulator.options(), &["--timeout", "240"]].concat();
    let folder = Folder::new(&format!("each-cpu-{emulator}"));
    let outcome = folder.run(&toml, &options, &Devices::none());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let guests = outcome.report["guests"].as_array().cloned().unwrap_or_default();
    assert_eq!(guests.len() as u64, cpus, "{outcome}");
    for cpu in 0..cpus {
        let name = format!("guest {cpu}");
        assert_eq!(outcome.guest_outcome(&name), Some("poweroff"), "{outcome}");
        let own = guests.iter().find(|guest| guest["name"] == name.as_str());
        assert_eq!(own.map(|own| &own["vcpus"][0]["cpu"]), Some(&cpu.into()), "{outcome}");
    }
}

#[test]
fn each_of_eight_cpus_runs_a_guest_on_amd_v() {
    each_cpu_runs_a_guest(Emulator::Qemu, 8);
}

#[test]
fn each_of_four_cpus_runs_a_guest_on_vt_x() {
    each_cpu_runs_a_guest(Emulator::Bochs, 4);
}

#[test]
fn a_guest_of_eight_cpus_brings_all_up() {
    let mut guest = Guest::on_qemu("idle seconds=0", "[]");
    guest.cpus = "[0, 1, 2, 3, 4, 5, 6, 7]";
    let outcome = Folder::new("eight-cpus").run(&guest.toml(), TIMEOUT, &Devices::none());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(outcome.output.contains(", 8 CPU(s), "), "{outcome}");
    let vcpus = outcome.report["guests"][0]["vcpus"].as_array().cloned().unwrap_or_default();
    assert_eq!(vcpus.len(), 8, "{outcome}");
    for (cpu, vcpu) in vcpus.iter().enumerate() {
        assert_eq!(vcpu["cpu"], cpu, "{outcome}");
        assert!(vcpu["exits"]["cpuid"].as_u64() > Some(0), "it ran: {outcome}");
    }
}

#[test]
fn two_cpus_take_interrupts_without_exits_on_vt_x() {
    let folder = Folder::new("two-cpus-bochs");
    let mut guest = Guest::on_bochs("ide reads=500");
    guest.cpus = "[0, 1]";
    let toml = format!("unsafe_no_iommu = true\n{}", guest.toml());
    let options = ["--emulator", "bochs", "--iommu", "none", "--timeout", "400"];
    let outcome = folder.run(&toml, &options, &Devices::ide(&folder));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let line = outcome.result("ide");
    assert!(line.get("interrupts") >= 500, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
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
        let generations = output.matches(seen).count();
        assert!(generations >= 3, "{seen}: {generations} generations\n{output}");
    }
    assert!(output.contains("nexit: guest restless: stopped"), "{output}");
    assert!(!output.contains("FAILED"), "{output}");
}

const ANEW: &str = ": restarting";

/// Runs `nexit` with `arguments`; `keys` says what is typed at a line of its output, given how often
/// the guest has restarted. All of the output.
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
