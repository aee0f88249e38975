//! Debuggers: gdb at a guest, by the hypervisor's stub, and at the hypervisor itself, by QEMU's.

#![allow(clippy::expect_used)] // helpers of tests: a panic is the failure

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arch::address::HpaRange;
use arch::exit::NestedPageFault;
use arch::{Bdf, ExitReason, Gpa, Hpa, Vector, VectorSet};
use guest::counters::{Counter, ExitCounters};
use guest::requests::{RequestWord, Requests};
use mux::frame::{Channel, Kind, encode};
use nexit_tests::{Emulator, Folder, Outcome, Payload, Session, build_folder, project_folder};

/// Has gdb carry out a script with the symbols of `program`; what it says.
pub(crate) fn gdb(folder: &Folder, program: &Path, script: &str) -> String {
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

/// Values of this program itself, which has types that the image has, too.
#[used]
static SHOWN: (Hpa, HpaRange, Bdf, VectorSet, ExitCounters, Counter) = (
    Hpa::new(0x1000),
    HpaRange { start: Hpa::new(0x10_0000), length: 3 << 20 },
    Bdf::new(3, 4, 5).in_segment(1),
    {
        let mut set = VectorSet::EMPTY;
        set.insert(Vector(0x31));
        set.insert(Vector(0x32));
        set.insert(Vector(0xff));
        set
    },
    ExitCounters::new(),
    Counter::Cpuid,
);

/// Exits as the back ends tell them.
#[used]
static EXITS: [ExitReason; 4] = [
    ExitReason::Cpuid,
    ExitReason::NestedPageFault(NestedPageFault {
        gpa: Gpa::new(0xfec0_0000),
        write: true,
        fetch: false,
        table_walk: false,
    }),
    ExitReason::Exception { vector: Vector(13), error_code: Some(0x1a), qualification: 0 },
    ExitReason::ExternalInterrupt(None),
];

/// Of types whose fields are their own.
#[used]
static WORD: u32 = 33;
#[used]
static COUNTS: [u64; Counter::ALL.len()] = [7; Counter::ALL.len()];
#[used]
static ASKED: Option<fn(&RequestWord) -> Requests> = Some(RequestWord::take);

#[test]
fn gdb_shows_the_hypervisors_types_in_words() {
    let folder = Folder::new("debugging-printers");
    let program = std::env::current_exe().expect("this program");
    let printers = project_folder().join("demo/printers.py").display().to_string();
    let script = format!(
        "source {printers}\nset language rust\nprint machines::debugging::SHOWN\n\
         print machines::debugging::EXITS\n\
         print *(&machines::debugging::WORD as *const guest::requests::Requests)\n\
         print *(&machines::debugging::COUNTS as *const guest::counters::ExitCounters)\n"
    );
    let said = gdb(&folder, &program, &script);
    let shown =
        "(Hpa 0x1000, 0x100000 to 0x3fffff, 3 MiB, 0001:03:04.5, 0x31 to 0x32, 0xff, no exits, ";
    assert!(said.contains(shown), "{said}");
    assert!(said.contains("= flush, init\n"), "{said}");
    assert!(said.contains("Cpuid 7, "), "{said}");
    for exit in [
        "Cpuid, NestedPageFault: gpa Gpa 0xfec00000, write, Exception: vector Vector 0xd",
        "error_code 0x1a, qualification 0x0, ExternalInterrupt: None]",
    ] {
        assert!(said.contains(exit), "{exit}: {said}");
    }
}

/// As `make gdb` does it; then gdb sends the hypervisor astray. What gdb says, what the hypervisor does, and that with the
/// functions' names.
fn astray(name: &str, script: &str) -> (String, String, Outcome) {
    let folder = Folder::new(&format!("debugging-{name}"));
    let config = folder.write("nexit.toml", Payload::new("ends").toml());
    let socket = folder.path("gdb.socket").display().to_string();
    let chardev = format!("socket,id=gdb,path={socket},server=on,wait=off");
    let gdb_at = ["--", "-S", "-chardev", &chardev, "-gdb", "chardev:gdb"];
    let run = ["run", "--config", &config, "--timeout", "120"];
    let mut session = Session::start(&[&run[..], &gdb_at].concat());
    session.see("Ctrl-A x ends the run");
    until("QEMU's socket", || Path::new(&socket).exists());
    let kernel = build_folder().join("x86_64-hypervisor/release/kernel");
    let said = gdb(
        &folder,
        &kernel,
        &format!(
            "set architecture i386:x86-64\ntarget remote {socket}\nhbreak kernel_main\ncontinue\n\
             backtrace 1\n{script}delete\ndetach\n"
        ),
    );
    assert!(said.contains("#0  kernel_main () at kernel/src/main.rs:"), "{said}");
    // Inlined at several places it is 2.1 or 2.2.
    assert!(said.contains("hit Breakpoint 2"), "{said}");
    let (screen, _) = session.end();
    let log = folder.write("run.log", &screen);
    let named = folder.nexit("symbolize", &["symbolize", &log]);
    for caller in ["kernel::boot at kernel/src/", "kernel_main at kernel/src/main.rs:", "long_mode"]
    {
        assert!(named.output.contains(caller), "{caller}: {named}");
    }
    (said, screen, named)
}

#[test]
fn gdb_stops_the_hypervisor_at_its_entry_and_a_failure_tells_who_called() {
    let script = "hbreak fadt.rs:read\ncontinue\nset $rip = 0x10\n";
    let (said, screen, _) = astray("hypervisor", script);
    assert!(said.contains(", read () at firmware/src/fadt.rs:"), "{said}");
    assert!(screen.contains("itself raised exception 14 (error code 0x11) at 0x10"), "{screen}");
}

/// Memory of the heap that is free is freed. Whoever panics here holds the heap's lock.
#[test]
fn a_panic_tells_who_called() {
    let script = "hbreak src/lib.rs:dealloc\ncontinue\nset $rdi = $rdi + 0x80000\n";
    let (said, screen, named) = astray("panic", script);
    assert!(said.contains(", dealloc () at src/lib.rs:"), "{said}");
    assert!(screen.contains("the hypervisor itself failed: panicked at "), "{screen}");
    assert!(screen.contains("aliases existing hole"), "{screen}");
    for caller in
        ["panic_fmt at ", "GlobalAlloc>::dealloc at ", "__rust_dealloc at kernel/src/heap.rs:"]
    {
        assert!(named.output.contains(caller), "{caller}: {named}");
    }
}

/// What gdb does with the guest that counts: a breakpoint, steps over CLI, STI, PUSHF and POPF while the timer interrupts,
/// a watchpoint, registers of the CPU and of its FPU, an MSR, more breakpoints than a CPU has, memory.
const SCRIPT: &str = "set language c\nset remotetimeout 60\n\
    break one_round\ncontinue\nbacktrace 2\ninfo threads\n\
    delete\nwatch *(unsigned long *)&ROUNDS\ncontinue\n\
    delete\nhbreak flags\ncontinue\ndelete\n\
    echo before \\n\nprint $rip\nstepi 12\nprint $rip\n\
    print ($eflags & 0x100) == 0\nprint $cr0 & 1\nprint $efer & 0x400\n\
    print $st0 > 3.14 && $st0 < 3.15\nprint $lstar == 0x12345678\n\
    set var $xmm3.v2_int64[1] = 81985529216486895\nset var $st3 = 2.5\nstepi\n\
    print $xmm3.v2_int64[1] == 81985529216486895\nprint $st3 == 2.5\n\
    break place_0\nbreak place_1\nbreak place_2\nbreak place_3\nbreak place_4\nbreak place_5\n\
    continue\ncontinue\ncontinue\ncontinue\ncontinue\ncontinue\nmonitor own\ndelete\n\
    set $before = *(unsigned long *)&TICKS\n\
    hbreak one_round\ncontinue 20\ndelete\n\
    print *(unsigned long *)&TICKS > $before\n\
    monitor phys 0x200000 4\n\
    print $ymm5.v4_int64[2] == 0x123456789abcdef0\nset var $ymm5.v4_int64[3] = 99\nstepi\n\
    print $ymm5.v4_int64[3] == 99 && $ymm5.v4_int64[2] == 0x123456789abcdef0\n\
    set var *(unsigned long *)&DONE = 1\ndetach\n";

/// A guest of the payload `watched` whose gdb is at the machine's second line; where that is. It counts.
fn begin_watched(folder: &Folder, emulator: Emulator, interrupts: &str) -> (Session, String) {
    let further = format!("gdb = \"COM2\"\ninterrupts = \"{interrupts}\"");
    let payload = Payload { further: &further, ..Payload::new("watched") };
    begin(folder, emulator, &payload, "payload: counting")
}

/// Starts a guest whose gdb is at the machine's second line, up to this word of it; where that is.
fn begin(
    folder: &Folder,
    emulator: Emulator,
    payload: &Payload<'_>,
    word: &str,
) -> (Session, String) {
    let config = folder.write("nexit.toml", payload.toml());
    let run = ["run", "--config", &config, "--timeout", "240", "--gdb", "0"];
    let mut session = Session::start(&[&run, emulator.options()].concat());
    session.see(&format!("guest {}: gdb: target remote ", payload.program));
    let address = session.see("\n");
    session.see(word);
    (session, address)
}

/// What comes of [`SCRIPT`], with gdb at a machine's second line. Before it comes garbage, and packets that were cut.
#[test]
fn gdb_looks_at_a_guest_and_leaves_it_as_it_was_on_vt_x() {
    let folder = Folder::new("debugging-guest-bochs");
    let (session, address) = begin_watched(&folder, Emulator::Bochs, "exitless");
    let mut line = TcpStream::connect(&address).expect("the port of gdb");
    line.write_all(b"$g#68$vCont;c#\x03\xff\0#$m0,").expect("a line that takes garbage");
    drop(line);
    let screen = looks(&folder, session, &address);
    assert!(screen.contains(NOTHING_EXITS), "{screen}");
}

/// The same where the hypervisor delivers the interrupts of the guest: it delivers them to one that gdb looks at, too.
fn gdb_looks_at_a_guest_whose_interrupts_exit(emulator: Emulator) {
    let folder = Folder::new(&format!("debugging-exiting-{emulator}"));
    let (session, address) = begin_watched(&folder, emulator, "exiting");
    looks(&folder, session, &address);
}

#[test]
fn gdb_looks_at_a_guest_whose_interrupts_exit_on_amd_v() {
    gdb_looks_at_a_guest_whose_interrupts_exit(Emulator::Qemu);
}

#[test]
#[ignore = "48 s: `make test-all`"]
fn gdb_looks_at_a_guest_whose_interrupts_exit_on_vt_x() {
    gdb_looks_at_a_guest_whose_interrupts_exit(Emulator::Bochs);
}

/// Has gdb carry out [`SCRIPT`]. The screen, at the end of the run.
fn looks(folder: &Folder, mut session: Session, address: &str) -> String {
    let script = format!("target remote {address}\n{SCRIPT}");
    let said = gdb(folder, &Payload::new("watched").path(), &script);
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    has_looked(&said, &screen);
    assert_eq!(status.code(), Some(0), "{screen}");
    screen
}

/// What the guest says of itself behind [`SCRIPT`] where its interrupts do not exit.
const NOTHING_EXITS: &str = "nothing exits behind a debugger: ok";

/// The values of [`SCRIPT`], and what the guest says of itself behind it.
fn has_looked(said: &str, screen: &str) {
    for expected in [
        "Breakpoint 1, one_round () at tests/payload/src/bin/watched.rs:",
        " in kernel_main () at tests/payload/src/bin/watched.rs:",
        "* 1    Thread 1.1",
        "Hardware watchpoint 2: *(unsigned long *)&ROUNDS",
        "Breakpoint 3, flags () at tests/payload/src/bin/watched.rs:",
        "<flags+",
        "Breakpoint 4, place_0 () at ",
        "Breakpoint 5, place_1 () at ",
        "Breakpoint 6, place_2 () at ",
        "Breakpoint 7, place_3 () at ",
        "Breakpoint 8, place_4 () at ",
        "Breakpoint 9, place_5 () at ",
        "DR3 0x3, DR6 0xffff0ff0, DR7 0x404",
        "0x200000: [02, b0, ad, 1b]",
        "[Inferior 1 (process 1) detached]",
    ] {
        assert!(said.contains(expected), "{expected}: {said}\n{screen}");
    }
    let values = values(said);
    let of_all = ["1", "1", "1024", "1", "1", "1", "1", "1"];
    let with_avx = [&of_all[..], &["1", "1"]].concat();
    let avx = screen.contains("payload: AVX: on");
    assert_eq!(&values[2..], if avx { &with_avx } else { &of_all[..] }, "{said}");
    for verdict in [
        "its flags are its own: ok",
        "its debug registers are its own: ok",
        "its own breakpoint is met behind a debugger: ok",
    ] {
        assert!(screen.contains(verdict), "{verdict}: {screen}");
    }
}

/// What gdb has printed, `$1 = …` and so on.
fn values(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| line.strip_prefix('$')?.split(" = ").nth(1)).collect()
}

/// `nexit gdb GUEST --start`, with a script and the symbols of `program`.
pub(crate) fn gdb_by_line(
    folder: &Folder,
    line: &str,
    guest: &str,
    program: impl AsRef<OsStr>,
    script: &str,
) -> Child {
    let script = folder.write(&format!("{guest}.gdb"), script);
    let log = folder.path(&format!("{guest}.log"));
    let log = File::create(log).expect("a log");
    Command::new(build_folder().join("debug/nexit"))
        .args(["gdb", guest, "--line", line, "--start", "--", "-q", "-nx", "-batch", "-x", &script])
        .arg(program)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("nexit is built")
}

/// The guest that counts, and one that hangs with its interrupts off: each with a gdb, over the line that carries both
/// consoles and the monitor. The one that hangs is stopped, looked at, and started again while its gdb is attached.
fn two_guests_are_debugged_at_once_over_the_one_line(emulator: Emulator) {
    let folder = Folder::new(&format!("debugging-one-line-{emulator}"));
    let further = "gdb = \"console\"";
    let watched = Payload { further, ..Payload::new("watched") };
    let hung = Payload { further, command_line: "hang", ..Payload::new("ends") };
    let second = hung.toml().replace("cpus = [0]", "cpus = [1]");
    let config = folder.write("nexit.toml", watched.toml() + &second);
    // Each packet of gdb's is several turns of the emulator's threads, and there are some hundred: a busy host takes long.
    let run = ["run", "--config", &config, "--timeout", "300"];
    let mut session = Session::start(&[&run, emulator.options()].concat());
    session.see("ends by hang");
    // Frames that were cut, a whole one of garbage, and what is neither key nor frame.
    for length in [2, 9, 14] {
        session.bytes(&frame(0, b"$vCont;c#a8")[..length]);
        session.bytes(b"\xff\x80");
    }
    session.bytes(&frame(1, b"$g#00$?#\xff\x03"));
    let line = session.line();
    a_dump_is_a_core_for_gdb(&folder, &line, &hung.path());
    let look = format!("{LOOK_AND_GO_ON}detach\n");
    let mut hung_gdb = gdb_by_line(&folder, &line, "ends", hung.path(), &look);
    let mut gdb = gdb_by_line(&folder, &line, "watched", watched.path(), SCRIPT);
    session.see("its flags are its own: ok");
    let ended = gdb.wait();
    let said = std::fs::read_to_string(folder.path("watched.log")).unwrap_or_default();
    assert!(ended.is_ok_and(|status| status.success()), "{said}");
    restart_once_it_runs(&mut session, &folder);
    // It hangs again, now that gdb has left it.
    session.see("ends by hang");
    let ended = hung_gdb.wait();
    let of_hung = std::fs::read_to_string(folder.path("ends.log")).unwrap_or_default();
    assert!(ended.is_ok_and(|status| status.success()), "{of_hung}");
    session.keys("stop ends\r");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    has_looked(&said, &screen);
    assert!(screen.contains(NOTHING_EXITS), "{screen}");
    // A jump to itself with interrupts off; then the breakpoint, which the new start has met.
    for expected in ["$1 = 1", "jmp    0x", "Breakpoint 1, ", "[Inferior 1 (process 1) detached]"] {
        assert!(of_hung.contains(expected), "{expected}: {of_hung}\n{screen}");
    }
    assert!(screen.is_ascii(), "nothing of a frame is shown: {screen}");
    assert_eq!(status.code(), Some(1), "one was stopped: {screen}");
}

#[test]
fn two_guests_are_debugged_at_once_over_the_one_line_on_amd_v() {
    two_guests_are_debugged_at_once_over_the_one_line(Emulator::Qemu);
}

#[test]
#[ignore = "two minutes on a busy host: `make test-all`"]
fn two_guests_are_debugged_at_once_over_the_one_line_on_vt_x() {
    two_guests_are_debugged_at_once_over_the_one_line(Emulator::Bochs);
}

/// What gdb does with the guest that hangs. It says what it sends when the guest goes on, to be started again meanwhile
/// ([`restart_once_it_runs`]).
const LOOK_AND_GO_ON: &str = "set remotetimeout 60\nset language c\nprint ($eflags & 0x200) == 0\nx/i $rip\n\
    hbreak kernel_main\nset debug remote 1\ncontinue\nset debug remote 0\nbacktrace 1\n";

/// Waits until it is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(200), "{what} does not come");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Restarts the guest that hangs by the monitor, after its stub has taken gdb's packet that has it go on.
fn restart_once_it_runs(session: &mut Session, folder: &Folder) {
    until("the packet that has the guest go on", || {
        let said = std::fs::read_to_string(folder.path("ends.log")).unwrap_or_default();
        let sent = said.split_once("Sending packet: $vCont;c");
        sent.is_some_and(|(_, behind)| behind.contains("Received Ack"))
    });
    restart(session);
}

fn restart(session: &mut Session) {
    session.keys("\u{1}m");
    session.see("nexit> ");
    session.keys("restart ends\r");
}

/// It stands at its first instruction, as it stood before. gdb, which has its breakpoint, has it go on from there.
#[test]
fn a_guest_that_is_restarted_while_it_stands_stands_again_on_amd_v() {
    let folder = Folder::new("debugging-restarted");
    let further = "gdb = \"console\"";
    let hung = Payload { further, command_line: "hang", ..Payload::new("ends") };
    let config = folder.write("nexit.toml", hung.toml());
    let mut session = Session::start(&["run", "--config", &config, "--timeout", "240"]);
    session.see("ends by hang");
    let [ready, restarted] =
        ["ready", "restarted"].map(|name| folder.path(name).display().to_string());
    let script = format!(
        "set remotetimeout 60\nset language c\nprint ($eflags & 0x200) == 0\nhbreak kernel_main\n\
         shell touch {ready}; until [ -e {restarted} ]; do sleep 0.1; done\n\
         maintenance flush register-cache\ninfo registers rip\nprint $cr0 & 0x80000001\n\
         continue\nbacktrace 1\ndetach\n"
    );
    let mut gdb = gdb_by_line(&folder, &session.line(), "ends", hung.path(), &script);
    until("gdb", || Path::new(&ready).exists());
    restart(&mut session);
    session.see("guest ends: stopped: restarting");
    // Its new start is not to be seen, as it stands before it says anything.
    std::thread::sleep(Duration::from_secs(2));
    let screen = session.screen();
    assert_eq!(screen.matches("ends by hang").count(), 1, "it stands: {screen}");
    folder.write("restarted", "");
    session.see("ends by hang");
    let ended = gdb.wait();
    let said = std::fs::read_to_string(folder.path("ends.log")).unwrap_or_default();
    assert!(ended.is_ok_and(|status| status.success()), "{said}");
    session.keys("stop ends\r");
    let (screen, _) = session.end();
    folder.write("run.log", &screen);
    // In protected mode without paging, as its loader has left it.
    let first = "0x202000 <_start>\n$2 = 1\n";
    for expected in ["$1 = 1", first, "Breakpoint 1, ", "[Inferior 1 (process 1) detached]"] {
        assert!(said.contains(expected), "{expected}: {said}\n{screen}");
    }
}

/// The guest that hangs, on VT-x: looked at in a dump and by gdb, started again by the monitor, and at last sent by its gdb
/// to where nothing is. It has crashed then, and waits for the gdb that is there; it ends when that goes.
#[test]
fn a_guest_that_hangs_and_crashes_under_gdb_is_looked_at_on_vt_x() {
    let folder = Folder::new("debugging-hung-bochs");
    let further = "gdb = \"console\"\non_crash = \"debug\"";
    let hung = Payload { further, command_line: "hang", ..Payload::new("ends") };
    let config = folder.write("nexit.toml", hung.toml());
    let run = ["run", "--config", &config, "--timeout", "240"];
    let mut session = Session::start(&[&run, Emulator::Bochs.options()].concat());
    session.see("ends by hang");
    let line = session.line();
    a_dump_is_a_core_for_gdb(&folder, &line, &hung.path());
    let look = format!(
        "{LOOK_AND_GO_ON}delete\nset $rip = 0x7000000000\ncontinue\nprint $rip == 0x7000000000\ndetach\n"
    );
    let mut gdb = gdb_by_line(&folder, &line, "ends", hung.path(), &look);
    restart_once_it_runs(&mut session, &folder);
    session.see("guest ends: CPU 0 waits for gdb");
    let ended = gdb.wait();
    let said = std::fs::read_to_string(folder.path("ends.log")).unwrap_or_default();
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert!(ended.is_ok_and(|status| status.success()), "{said}");
    for expected in [
        "$1 = 1",
        "jmp    0x",
        "Breakpoint 1, ",
        "received signal SIGABRT",
        "$2 = 1",
        "[Inferior 1 (process 1) detached]",
    ] {
        assert!(said.contains(expected), "{expected}: {said}\n{screen}");
    }
    assert!(screen.contains("guest ends: triple_fault after "), "{screen}");
    assert_eq!(status.code(), Some(1), "{screen}");
}

/// `nexit dump`, of the guest that hangs: gdb finds in the file where it hangs, and by what code.
fn a_dump_is_a_core_for_gdb(folder: &Folder, line: &str, program: &Path) {
    let core = folder.path("core").display().to_string();
    let dumped = folder.nexit("dump", &["dump", "ends", &core, "--line", line]);
    assert!(dumped.output.contains("64 MiB of RAM"), "{dumped}");
    let script = format!(
        "set language c\ncore {core}\nx/i $rip\nprint ($eflags & 0x200) == 0\nx/4xb 0x200000\n\
         info registers mxcsr\nprint $xmm0.uint128\n"
    );
    let said = gdb(folder, program, &script);
    for expected in [
        "#0  0x",
        " in end () at tests/payload/src/bin/ends.rs:",
        "jmp    0x",
        "$1 = 1",
        "0x1f80",
        "$2 = 0",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    // The multiboot header, by which its loader knows it: the first page of its image.
    assert!(said.contains("0x02\t0xb0\t0xad\t0x1b"), "{said}");
}

/// A frame to the gdb stub of a guest.
fn frame(guest: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let channel = Channel { kind: Kind::Gdb, guest };
    encode(mux::ESCAPE, channel, payload, &mut |byte| bytes.push(byte));
    bytes
}

/// What gdb does with the payload `paused`. `TICKS` is what it counts, and so on.
///
/// 1. A breakpoint that the second CPU meets stops the first; the second is stepped, and the first does not move.
/// 2. Twice: the first CPU stands with its timer armed, which comes due. The second alone goes on, sends it an IPI, and meets
///    a breakpoint. Then both go on: the two interrupts find the first CPU where it stood. The second time its breakpoint
///    is still there, so that gdb steps over it first.
/// 3. A breakpoint at the IRET of an interrupt's handler (48 CF), and steps over that, over INT and over SYSCALL.
/// 4. It leaves while the timer has come due.
const PAUSED: &str = "set language c\nset remotetimeout 60\n\
    define stood\n\
    set $ticks = *(unsigned long *)&TICKS\nset $taken = *(unsigned long *)&TAKEN\n\
    set $held = *(unsigned long *)&HELD\n\
    shell sleep 1\n\
    set scheduler-locking on\nthread 2\nthbreak second_round\ncontinue\n\
    set var *(unsigned long *)&ASKED = 1\nhbreak *sent\ncontinue\n\
    print *(unsigned long *)&TICKS == $ticks && *(unsigned long *)&TAKEN == $taken\n\
    end\n\
    define arrive\n\
    set scheduler-locking off\nthread 1\nhbreak arrived\ncontinue\n\
    print *(unsigned long *)&TICKS - $ticks\nprint *(unsigned long *)&TAKEN - $taken\n\
    print *(unsigned long *)&HELD - $held\n\
    delete\n\
    end\n\
    hbreak second_round\ncontinue\ninfo threads\ndelete\n\
    set $first = *(unsigned long *)&FIRST\nset $second = *(unsigned long *)&SECOND\n\
    shell sleep 1\nprint *(unsigned long *)&FIRST == $first && *(unsigned long *)&SECOND == $second\n\
    set scheduler-locking on\nset $from = $pc\nstepi\nstepi\n\
    print $pc > $from && *(unsigned long *)&FIRST == $first\nset scheduler-locking off\n\
    hbreak arrived\nignore $bpnum 1\ncontinue\ninfo threads\ndelete\n\
    print *(unsigned long *)&FIRST > $first && *(unsigned long *)&SECOND > $second\n\
    hbreak *armed\ncontinue\nstood\ndelete\narrive\n\
    hbreak *armed\ncontinue\nstood\narrive\n\
    set $at = (unsigned long)&tick\n\
    while *(unsigned short *)$at != 0xcf48\nset $at = $at + 1\nend\n\
    hbreak *$at\ncontinue\ndelete\n\
    print ($eflags & 0x300) == 0\nset $back = *(unsigned long *)$rsp\nstepi\n\
    print $pc == $back && ($eflags & 0x300) == 0x200\n\
    hbreak *calls\ncontinue\ndelete\n\
    set $calls = *(unsigned long *)&CALLS\nset $syscalls = *(unsigned long *)&SYSCALLS\n\
    stepi\nprint $pc == (unsigned long)&behind_int && *(unsigned long *)&CALLS == $calls + 1\n\
    stepi\nprint $pc == (unsigned long)&behind_syscall && *(unsigned long *)&SYSCALLS == $syscalls + 1\n\
    print ($eflags & 0x300) == 0x200\n\
    hbreak *armed\ncontinue\nshell sleep 1\n\
    set var *(unsigned long *)&DONE = 1\ndelete\ndetach\n";

/// What comes of [`PAUSED`]: both CPUs stop and go on as gdb wants, and no interrupt is lost or comes twice.
fn two_cpus_stop_together_and_lose_no_interrupt(emulator: Emulator, interrupts: &str) {
    let folder = Folder::new(&format!("debugging-paused-{interrupts}-{emulator}"));
    let further = format!("gdb = \"COM2\"\ninterrupts = \"{interrupts}\"");
    // QEMU's machine waits for its host, and its timer does not; Bochs' counts instructions.
    let ticks = if emulator == Emulator::Qemu { "200000000" } else { "4000000" };
    let payload = Payload {
        cpus: "[0, 1]",
        command_line: ticks,
        further: &further,
        ..Payload::new("paused")
    };
    let (mut session, address) = begin(&folder, emulator, &payload, "two CPUs count");
    let said = gdb(&folder, &payload.path(), &format!("target remote {address}\n{PAUSED}"));
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    for expected in ["* 2    Thread 1.2", "* 1    Thread 1.1", "[Inferior 1 (process 1) detached]"]
    {
        assert!(said.contains(expected), "{expected}: {said}\n{screen}");
    }
    let stood_and_arrived = ["1", "1", "1", "2"];
    let mut wanted = vec!["1", "1", "1"];
    wanted.extend([stood_and_arrived; 2].concat());
    wanted.extend(["1"; 5]);
    assert_eq!(values(&said), wanted, "{said}\n{screen}");
    assert!(screen.contains("each interrupt comes once: ok"), "{screen}");
    if interrupts == "exitless" {
        assert!(screen.contains(NOTHING_EXITS), "{screen}");
    }
    assert_eq!(status.code(), Some(0), "{screen}");
}

#[test]
fn two_cpus_stop_together_and_lose_no_interrupt_on_amd_v() {
    two_cpus_stop_together_and_lose_no_interrupt(Emulator::Qemu, "exitless");
    two_cpus_stop_together_and_lose_no_interrupt(Emulator::Qemu, "exiting");
}

#[test]
fn two_cpus_stop_together_and_lose_no_interrupt_on_vt_x() {
    two_cpus_stop_together_and_lose_no_interrupt(Emulator::Bochs, "exitless");
}

#[test]
#[ignore = "as long as the other mode's: `make test-all`"]
fn two_cpus_stop_together_and_lose_no_interrupt_that_exits_on_vt_x() {
    two_cpus_stop_together_and_lose_no_interrupt(Emulator::Bochs, "exiting");
}

/// A triple fault, with its outcome once gdb has seen enough.
fn a_guest_that_crashes_waits_for_gdb(emulator: Emulator) {
    let folder = Folder::new(&format!("debugging-crash-{emulator}"));
    let further = "gdb = \"COM2\"\non_crash = \"debug\"";
    let payload = Payload { further, command_line: "triple-fault", ..Payload::new("ends") };
    let (mut session, address) =
        begin(&folder, emulator, &payload, "guest ends: CPU 0 waits for gdb");
    let said = gdb(
        &folder,
        &payload.path(),
        &format!("target remote {address}\nbacktrace 1\nprint $cr0 & 1\ndetach\n"),
    );
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert!(said.contains("#0  ") && said.contains("$1 = 1"), "{said}\n{screen}");
    assert!(said.contains("[Inferior 1 (process 1) detached]"), "{said}\n{screen}");
    assert!(screen.contains("guest ends: triple_fault after "), "{screen}");
    assert_eq!(status.code(), Some(1), "{screen}");
}

#[test]
fn a_guest_that_crashes_waits_for_gdb_on_amd_v() {
    a_guest_that_crashes_waits_for_gdb(Emulator::Qemu);
}

#[test]
fn a_guest_that_crashes_waits_for_gdb_on_vt_x() {
    a_guest_that_crashes_waits_for_gdb(Emulator::Bochs);
}
