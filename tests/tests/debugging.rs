//! Debuggers: gdb at the hypervisor itself, by QEMU's own stub.

use std::path::Path;
use std::process::{Command, Stdio};

use nexit_tests::{Folder, Payload, Session, build_folder};

/// Has gdb carry out a script with the symbols of `program`; what it says.
fn gdb(folder: &Folder, program: &Path, script: &str) -> String {
    let script = folder.write("script.gdb", script);
    let gdb = Command::new("gdb")
        .args(["-q", "-nx", "-batch", "-x", &script])
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .expect("`make setup` installs gdb");
    let said = [gdb.stdout, gdb.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    folder.write("gdb.log", &said);
    said
}

/// As `make gdb` does it; then the hypervisor is sent astray.
#[test]
fn gdb_stops_the_hypervisor_at_its_entry_and_a_failure_tells_who_called() {
    let folder = Folder::new("debugging-hypervisor");
    let config = folder.write("nexit.toml", Payload::new("ends").toml());
    let socket = folder.path("gdb.socket").display().to_string();
    let chardev = format!("socket,id=gdb,path={socket},server=on,wait=off");
    let mut session = Session::start(&[
        "run",
        "--config",
        &config,
        "--timeout",
        "120",
        "--",
        "-S",
        "-chardev",
        &chardev,
        "-gdb",
        "chardev:gdb",
    ]);
    session.see("Ctrl-A x ends the run");
    for _ in 0..100 {
        if Path::new(&socket).exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let kernel = build_folder().join("x86_64-hypervisor/release/kernel");
    let said = gdb(
        &folder,
        &kernel,
        &format!(
            "set architecture i386:x86-64\ntarget remote {socket}\nhbreak kernel_main\ncontinue\n\
             backtrace 1\nhbreak fadt.rs:read\ncontinue\nset $rip = 0x10\ndetach\n"
        ),
    );
    assert!(said.contains("#0  kernel_main () at kernel/src/main.rs:"), "{said}");
    // Inlined at several places it is 2.1 or 2.2.
    assert!(said.contains("hit Breakpoint 2"), "{said}");
    assert!(said.contains(", read () at firmware/src/fadt.rs:"), "{said}");
    let (screen, _) = session.end();
    assert!(screen.contains("itself raised exception 14 (error code 0x11) at 0x10"), "{screen}");
    let log = folder.write("run.log", &screen);
    let named = folder.nexit("symbolize", &["symbolize", &log]);
    for caller in ["kernel::boot at kernel/src/", "kernel_main at kernel/src/main.rs:", "long_mode"]
    {
        assert!(named.output.contains(caller), "{caller}: {named}");
    }
}
