//! Somebody types at gdb, which is at a guest over the machine's one line.

use nexit_tests::{Emulator, Folder, Payload, Session};

use crate::debugging::gdb_by_line;

/// Ctrl-C stops the guest that gdb waits for. A gdb that is killed while the guest runs says nothing to it: the next one takes
/// its place. At a guest that has ended gdb is told so, and a dump, too.
fn a_gdb_at_a_terminal(emulator: Emulator) {
    let folder = Folder::new(&format!("typed-{emulator}"));
    let further = "gdb = \"console\"";
    let watched = Payload { further, ..Payload::new("watched") };
    // As long as another guest is there, the machine is.
    let hung = Payload { command_line: "hang", ..Payload::new("ends") };
    let second = hung.toml().replace("cpus = [0]", "cpus = [1]");
    let config = folder.write("nexit.toml", watched.toml() + &second);
    let run = ["run", "--config", &config, "--timeout", "240"];
    let mut session = Session::start(&[&run, emulator.options()].concat());
    session.see("payload: counting");
    let program = watched.path().display().to_string();
    let options = ["--start", "--", "-q", "-nx", "-ex", "set confirm off", &program];
    let mut gdb = session.beside(&["gdb", "watched"], &options);
    gdb.see("(gdb) ");
    interrupt(&mut gdb);
    interrupt(&mut gdb);
    // A condition that does not hold: gdb steps and goes on by itself, again and again.
    gdb.keys("hbreak one_round if 0\r");
    gdb.see("(gdb) ");
    interrupt(&mut gdb);
    gdb.keys("delete\r");
    gdb.see("(gdb) ");
    gdb.keys("hbreak place_0\r");
    gdb.see("(gdb) ");
    gdb.keys("info threads\r");
    gdb.see("Thread 1.1");
    gdb.keys("delete\rcontinue\r");
    gdb.see("Continuing.");
    gdb.kill_child();
    let (screen, status) = gdb.end();
    assert!(!status.success() && screen.contains("gdb ended: "), "{screen}");
    let script = "set language c\nset var *(unsigned long *)&DONE = 1\ninfo threads\ndetach\n";
    let line = session.line();
    let ended = gdb_by_line(&folder, &line, "watched", watched.path(), script).wait();
    let said = std::fs::read_to_string(folder.path("watched.log")).unwrap_or_default();
    assert!(ended.is_ok_and(|status| status.success()), "{said}");
    assert!(said.contains("* 1    Thread 1.1") && said.contains("detached]"), "{said}");
    session.see("nexit: guest watched: poweroff");
    let ended = gdb_by_line(&folder, &line, "watched", watched.path(), "info threads\n").wait();
    let said = std::fs::read_to_string(folder.path("watched.log")).unwrap_or_default();
    assert!(ended.is_ok() && said.contains("the guest does not run: start it first"), "{said}");
    let core = folder.path("core").display().to_string();
    let dumped = folder.nexit("dump", &["dump", "watched", &core, "--line", &line]);
    assert!(dumped.errors.contains("the guest does not run: start it first"), "{dumped}");
    session.keys("\u{1}m");
    session.see("nexit> ");
    session.keys("stop ends\r");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
}

/// Has the guest go on, and stops it by Ctrl-C as soon as gdb says that it does.
fn interrupt(gdb: &mut Session) {
    loop {
        gdb.keys("continue\r");
        gdb.see("Continuing.");
        gdb.keys("\u{3}");
        // For some moments gdb takes Ctrl-C as the end of its own command, and the guest does not go on.
        let (quits, _) = gdb.see_one_of(&["received signal SIGINT", "Quit\n"]);
        gdb.see("(gdb) ");
        if quits == 0 {
            return;
        }
    }
}

#[test]
fn a_gdb_at_a_terminal_on_amd_v() {
    a_gdb_at_a_terminal(Emulator::Qemu);
}

#[test]
#[ignore = "on QEMU, too: `make test-all`"]
fn a_gdb_at_a_terminal_on_vt_x() {
    a_gdb_at_a_terminal(Emulator::Bochs);
}
