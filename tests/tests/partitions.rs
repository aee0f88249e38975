//! Several CPUs to a guest, several guests to a machine, and their life cycle.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use nexit_tests::{Devices, Folder, Guest, Kernel, build_folder};

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

/// One guest reboots over and over, and is restarted at the monitor and stopped there, while the
/// other reads from its disk.
#[test]
fn a_guest_that_begins_anew_costs_its_neighbour_nothing() {
    let folder = Folder::new("neighbours");
    let mut reader = Guest::on_qemu("nvme reads=20000", "[\"00:04.0\"]");
    reader.name = "reader";
    let mut restless = Guest::on_qemu("reboot", "[]");
    (restless.name, restless.cpus, restless.on_reboot) = ("restless", "[1]", "restart");
    let toml = folder.write("nexit.toml", format!("{}{}", reader.toml(), restless.toml()));
    let disk = Kernel::Stock.folder().join("disk.img");
    let disk = format!("driver=file,node-name=disk,read-only=on,filename={}", disk.display());
    let nvme = "nvme,drive=disk,serial=reader,addr=4";
    let arguments = ["run", "--config", &toml, "--timeout", "240", "--"];
    let arguments = [&arguments[..], &["-blockdev", &disk, "-device", nvme]].concat();
    let program = build_folder().join("debug/nexit");
    let mut nexit = Command::new(program)
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("nexit is built");
    let mut keys = nexit.stdin.take().expect("a pipe");
    let mut output = String::new();
    for line in BufReader::new(nexit.stdout.take().expect("a pipe")).lines() {
        let line = String::from_utf8_lossy(line.unwrap_or_default().as_bytes()).into_owned();
        output.push_str(&line);
        output.push('\n');
        if line.contains("nexit: guest reader: poweroff") {
            keys.write_all(b"\x01mguests\rstop restless\r").expect("it listens");
        }
    }
    let status = nexit.wait().expect("it has ended");
    folder.write("run.log", &output);
    let restarts = output.matches("guest restless: reboot: it begins anew").count();
    assert!(restarts >= 2, "{restarts} restarts\n{output}");
    let result =
        output.lines().find(|line| line.contains("reader: demo: nvme: ok")).expect(&output);
    for word in ["interrupts=20000", "external_interrupt=0", "eoi=0", "shadow_gate=0"] {
        assert!(result.contains(word), "{word}: {result}");
    }
    assert!(output.contains("nexit: restless: running, CPUs [1]"), "the monitor answers\n{output}");
    assert!(output.contains("nexit: guest restless: stopped"), "{output}");
    assert_eq!(status.code(), Some(1), "a guest that was stopped did not power off\n{output}");
}
