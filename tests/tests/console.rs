//! A user at the one serial line: guests and the monitor through `nexit run`, at a terminal.

use std::process::Command;

use nexit_tests::{
    Devices, Emulator, Folder, Guest, Kernel, Payload, ResultLine, Session, packaged,
};
use rustix::process::Signal;

/// A small guest that has its interrupts off and never exits.
fn hung(cpu: u32) -> String {
    let payload = Payload { command_line: "hang", ..Payload::new("ends") };
    payload.toml().replace("cpus = [0]", &format!("cpus = [{cpu}]"))
}

/// A Linux at its shell, with `further` keys, and a guest that hangs.
fn linux_at_its_shell(folder: &Folder, further: &str) -> Session {
    let linux = Guest::on_qemu("nvme,shell reads=500", "[\"00:04.0\"]");
    let config = folder.write("nexit.toml", linux.toml() + further + &hung(1));
    let nvme = ["-device", "nvme,drive=disk,serial=nexit,addr=4"];
    let disk = Kernel::Stock.folder().join("disk.img");
    let disk = format!("driver=file,node-name=disk,read-only=on,filename={}", disk.display());
    let run = ["run", "--config", &config, "--timeout", "240", "--", "-blockdev", &disk];
    let mut session = Session::start(&[&run[..], &nvme].concat());
    session.see("linux: demo: shell: type exit to end");
    session
}

#[test]
fn gdb_over_the_one_line_stops_linux_at_a_symbol() {
    let folder = Folder::new("console-gdb");
    let mut session = linux_at_its_shell(&folder, "gdb = \"console\"\n");
    session.keys("echo $((6 * 7))\r");
    session.see("linux: 42\n");
    gdb_stops_linux_at_a_symbol(&mut session, &folder);
    session.keys("exit\r");
    session.see("nexit: guest linux: poweroff");
}

/// With the symbols that Debian packages: the guest's tasks, its log and what its CPUs do.
#[test]
#[ignore = "fetches 283 MB and dumps a Linux over the line: `make test-all`"]
fn crash_reads_the_dump_of_a_linux() {
    let folder = Folder::new("console-crash");
    let linux = Guest {
        cpus: "[0, 1]",
        kernel: Kernel::Cloud,
        memory: "96M",
        ..Guest::on_qemu("shell", "[]")
    };
    let config = folder.write("nexit.toml", linux.toml() + "gdb = \"console\"\n");
    let mut session = Session::start(&["run", "--config", &config, "--timeout", "3600"]);
    session.see("demo: shell: type exit to end");
    session.keys("echo release $(uname -r) e''nd\r");
    let shown = session.see(" end\n");
    let release = word_behind(&shown, "\nrelease ");
    let core = folder.path("core").display().to_string();
    let dumped = folder.nexit("dump", &["dump", "linux", &core, "--line", &session.line()]);
    assert!(dumped.output.contains("96 MiB of RAM"), "{dumped}");
    session.keys("exit\r");
    session.see("guest linux: poweroff");

    let commands = folder.write("commands", "sys\nps\nlog\nquit\n");
    let (program, symbols) = (packaged::crash().unwrap(), packaged::vmlinux(&release).unwrap());
    let crash = Command::new(&program)
        .env("LD_LIBRARY_PATH", program.parent().unwrap())
        .args(["-s", "-i", &commands])
        .args([&symbols.display().to_string(), &core])
        .output();
    let said = String::from_utf8_lossy(&crash.unwrap().stdout).into_owned();
    folder.write("crash.log", &said);
    let release = format!("RELEASE: {release}");
    // Of the tasks Debian 12's `crash` finds those of this kernel that run, and it cannot unwind their stacks.
    for expected in [&*release, "CPUS: 2", "MEMORY: 95.6 MB", "[swapper/1]", "Linux version 6."] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let dump = std::fs::read(&core).unwrap();
    let is_offset = |bytes: &&[u8]| bytes.starts_with(b"KERNELOFFSET=");
    let offset = dump.split(|byte| *byte == b'\n').find(is_offset).unwrap_or_default();
    let offset = String::from_utf8_lossy(offset).replace("KERNELOFFSET=", "0x");
    // Each name would be there twice with a program, and gdb may take the one that is not moved.
    let tasks = format!(
        "file\ncore {core}\nadd-symbol-file {} -o {offset}\nprint init_task.comm\n\
         print ((struct task_struct *)((char *)init_task.tasks.prev - \
         (long)&((struct task_struct *)0)->tasks))->comm\n",
        symbols.display()
    );
    let said = crate::debugging::gdb(&folder, &symbols, &tasks);
    for expected in ["\"swapper/0\\000", "\"sh\","] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn guests_and_the_monitor_share_a_terminal() {
    let folder = Folder::new("console");
    let map = folder.write("System.map", symbols());
    let mut session = linux_at_its_shell(&folder, &format!("symbols = \"{map}\"\n"));
    assert!(session.is_raw());
    session.keys("echo $((6 * 7))\r");
    session.see("linux: 42\n");

    session.keys("\u{1}m");
    session.see("typing to the monitor");
    let help = session.ask("help");
    for command in ["guests", "exits", "irqs", "devices", "iommu", "memory", "regs", "stop"] {
        assert!(help.contains(&format!("nexit: {command} ")), "{command}: {help}");
    }
    let guests = session.ask("guests");
    has_row(&guests, &["1", "linux", "running", "512 MiB", "[0]", "00:04.0"]);
    has_row(&guests, &["2", "ends", "running", "64 MiB", "[1]", "-"]);
    let exits = session.ask("exits");
    has_row(&exits, &["linux, CPU 0: ", " exits; ", " in the last "]);
    has_row(&exits, &["ends, CPU 0: "]);
    has_row(&exits, &["nested_page_fault"]);
    let again = session.ask("exits linux");
    has_row(&again, &["reason", "exits", "new", "new/s"]);
    assert!(!again.contains("ends"), "{again}");
    let irqs = session.ask("irqs");
    has_row(&irqs, &["  0x", "message ", " of 00:04.0 (1b36:0010)", " 0 "]);
    has_row(&irqs, &["  0x", "line 4, of a virtual device"]);
    has_row(&irqs, &["  0x", "its timer"]);
    has_row(&irqs, &["ends: exitless: "]);
    has_row(&session.ask("devices"), &["00:04.0", "1b36:0010", "010802", "linux"]);
    assert!(session.ask("iommu").contains("nexit: vt-d: 0 faults\n"));
    let memory = session.ask("memory");
    has_row(&memory, &["ends", "64 MiB"]);
    has_row(&memory, &["free", "MiB"]);
    looks_into_linux(&mut session);
    shows_where_it_hangs(&mut session);
    history_and_completion(&mut session);
    a_live_table(&mut session);
    a_report_has_it_all(&mut session);
    complains_in_sentences(&mut session);

    session.keys("\u{1}2");
    session.see("typing to guest 2, ends");
    session.keys("\u{1}1");
    session.see("typing to guest 1, linux");
    another_terminal_has_panes(&mut session, &folder);
    session.keys("exit\r");
    session.see("nexit: guest linux: poweroff");
    session.keys("\u{1}m");
    session.see("nexit> ");
    session.keys("stop ends\r");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    // What was stopped did not power itself off.
    assert_eq!(status.code(), Some(1), "{screen}");
    assert!(screen.contains("nexit: all guests have ended"), "{screen}");
    assert!(session.is_as_before(), "{screen}");
}

/// What a guest's CPU holds. On a busy host the emulator may not come to that CPU in the time that the monitor waits.
fn ask_a_cpu(session: &mut Session, command: &str) -> String {
    let mut answer = session.ask(command);
    for _ in 0..3 {
        if !answer.contains(": no answer: ") {
            break;
        }
        answer = session.ask(command);
    }
    answer
}

/// With the symbols that the guest itself lists, as a `vmlinux` has them, moved by what the stub says: a breakpoint that a
/// command meets.
fn gdb_stops_linux_at_a_symbol(session: &mut Session, folder: &Folder) {
    // What is typed before the shell's prompt is shown twice: it must not look like an answer.
    session.keys("grep -wE '_text|__x64_sys_getcwd' /proc/kallsyms; echo e''nd\r");
    let shown = session.see("end\n").replace("linux: ", "").replace("linux> ", "");
    let symbol = |line: &str| {
        let (address, name) = line.split_once(" T ")?;
        Some((u64::from_str_radix(address, 16).ok()?, name.to_owned()))
    };
    let list: Vec<(u64, String)> = shown.lines().filter_map(symbol).collect();
    let text = list.iter().find(|(_, name)| name == "_text").map(|(address, _)| *address);
    let text = text.unwrap_or_else(|| panic!("no _text: {shown}"));
    let moved = text - TEXT;
    let linked = |(address, name): &(u64, String)| format!("{:x} T {name}\n", address - moved);
    let linked: String = list.iter().map(linked).collect();
    let (map, elf) = (folder.write("System.map", &linked), folder.path("linux.elf"));
    let elf = elf.display().to_string();
    let written = folder.nexit("symbols", &["symbols", &map, &elf]);
    assert!(written.output.contains("2 symbols"), "{written}\n{linked}");
    let ready = folder.path("ready").display().to_string();
    let script = format!(
        "set remotetimeout 60\nmonitor kaslr\nsymbol-file\nadd-symbol-file {elf} -o {moved:#x}\n\
         info address _text\nhbreak __x64_sys_getcwd\nshell touch {ready}\ncontinue\ndetach\n"
    );
    let mut gdb = crate::debugging::gdb_by_line(folder, &session.line(), "linux", &elf, &script);
    while !std::path::Path::new(&ready).exists() {
        let said = std::fs::read_to_string(folder.path("linux.log")).unwrap_or_default();
        assert!(matches!(gdb.try_wait(), Ok(None)), "gdb has ended: {said}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // Typed for a guest that stands until gdb has it go on.
    session.keys("/bin/busybox pwd; echo went o''n\r");
    session.see("went on\n");
    let ended = gdb.wait();
    let said = std::fs::read_to_string(folder.path("linux.log")).unwrap_or_default();
    assert!(ended.is_ok_and(|status| status.success()), "{said}");
    let sentence = format!("Linux' text is at {text:#x}: add-symbol-file vmlinux -o {moved:#x}");
    for expected in [&*sentence, "Breakpoint 1, 0x", " in __x64_sys_getcwd ("] {
        assert!(said.contains(expected), "{expected}: {said}\n{list:x?}");
    }
    assert!(said.contains(&format!("Symbol \"_text\" is at {text:#x}")), "{said}");
}

fn complains_in_sentences(session: &mut Session) {
    for (wrong, sentence) in [
        ("halt", "there is no command \"halt\": `help` lists them"),
        ("exits windows", "there is no guest \"windows\": the guests are 1 linux, 2 ends"),
        ("regs ends 1", "ends has no such CPU: it has 1, counted from 0"),
        ("regs", "regs lacks an argument: write `regs GUEST [CPU]`"),
    ] {
        let answer = session.ask(wrong);
        assert_eq!(answer, format!("nexit: {sentence}\n"));
    }
}

/// One line of the answer has all these parts, in this order.
fn has_row(answer: &str, parts: &[&str]) {
    let in_order = |line: &str| {
        parts
            .iter()
            .try_fold(line, |rest, part| rest.split_once(part).map(|(_, rest)| rest))
            .is_some()
    };
    assert!(answer.lines().any(in_order), "{parts:?}\n{answer}");
}

/// The registers come by NMI, from the instruction that jumps to itself; the tables lead to it, and its IDT is as the
/// guest has made it.
fn shows_where_it_hangs(session: &mut Session) {
    let registers = ask_a_cpu(session, "regs ends");
    has_row(&registers, &["ends, CPU 0: 64-bit, ring 0, interrupts off"]);
    has_row(&registers, &["cr0 ", "PG", "PE"]);
    has_row(&registers, &["code at rip: eb fe"]);
    has_row(&registers, &["last exits: "]);
    let rip = word_behind(&registers, "rip ");
    let walk = ask_a_cpu(session, &format!("walk ends {rip}"));
    has_row(&walk, &["PML4", "present"]);
    has_row(&walk, &["nested table: ", " is host-physical ", "read, write, execute, write-back"]);
    has_row(&walk, &["it is: the guest's RAM"]);
    let gpa = word_behind(&walk, "guest-physical ");
    let by_linear = ask_a_cpu(session, &format!("virt ends {rip} 2"));
    has_row(&by_linear, &[&rip, "  eb fe "]);
    has_row(&session.ask(&format!("mem ends {gpa} 2")), &["  eb fe "]);
    has_row(&session.ask("mem ends fee00000"), &["none of it is the guest's RAM"]);
}

fn word_behind(answer: &str, what: &str) -> String {
    let rest = answer.split_once(what).unwrap_or_else(|| panic!("{what}: {answer}")).1;
    rest.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Gates that were granted are the guest's own, the others are closed; VT-d has what the driver has asked for.
/// Where a Linux' text is by its symbols.
const TEXT: u64 = 0xffff_ffff_8100_0000;

/// A list with a name each 32 KiB of a kernel's text: the address.
fn symbols() -> String {
    let at = |n: u64| TEXT + (n << 15);
    let names = (0..1024).map(|n| format!("{:x} T at_{:x}\n", at(n), at(n)));
    format!("{TEXT:x} T _text\n") + &names.collect::<String>()
}

/// RIP, or what is on the stack, has names, each moved as far as the text.
fn addresses_have_names(session: &mut Session, text: u64) {
    let registers = ask_a_cpu(session, "regs linux");
    let hex = |word: &str| u64::from_str_radix(word, 16).unwrap_or_default();
    let of_line = |line: &str| {
        let (before, name) = line.split_once(" at_")?;
        let (symbol, offset) = name.trim_end().split_once("+0x")?;
        Some((hex(before.rsplit(' ').next()?), hex(symbol), hex(offset)))
    };
    let named: Vec<_> = registers.lines().filter_map(of_line).collect();
    assert!(!named.is_empty(), "{registers}");
    for (address, symbol, offset) in named {
        assert_eq!(address - symbol - offset, text - TEXT, "{registers}");
    }
}

fn looks_into_linux(session: &mut Session) {
    let gates = ask_a_cpu(session, "idt linux");
    has_row(&gates, &["linux, CPU 0: IDT at 0x", ": 256 gates"]);
    has_row(&gates, &["0x", "interrupt, ring 0", "the same", "its timer"]);
    has_row(&gates, &["0x", "interrupt, ring 0", "interrupt, ring 0, not present"]);
    // What the guest itself says of its system calls, its text begins before.
    let kaslr = ask_a_cpu(session, "kaslr linux");
    let text = number(&word_behind(&kaslr, "text is at "));
    let entry = number(&word_behind(&ask_a_cpu(session, "msr linux c0000082"), "IA32_LSTAR: "));
    assert!(text < entry && entry - text < 64 << 20, "{kaslr}");
    addresses_have_names(session, text);
    let function = session.ask("vtd 00:04.0");
    has_row(&function, &["domain ", ": DMA goes through the table at 0x"]);
    has_row(&function, &["0x", "APIC 0", "fixed, edge", "00:04.0"]);
}

/// As a user types: the last line again, a word begun.
fn history_and_completion(session: &mut Session) {
    session.keys("\u{1b}[A");
    session.see("nexit> mem ends fee00000");
    session.keys("\u{15}gue\t\r");
    session.see("guests \n");
    session.see("nexit> ");
    session.keys("re\t\u{15}\r");
    session.see("nexit: regs report restart reboot\n");
    session.see("nexit> ");
    has_row(&session.ask("help walk"), &["walk GUEST ADDRESS [CPU]: where a linear address leads"]);
}

/// It goes on until a key, and the prompt is back then.
fn a_live_table(session: &mut Session) {
    session.keys("top\r");
    for _ in 0..2 {
        session.see("most often, each second\n");
        session.see("linux    0");
    }
    session.keys("q");
    session.see("nexit> ");
    session.keys("\u{1}t");
    session.see("most often, each second\n");
    // It goes on beside what is typed, until the same keys.
    assert!(session.ask("guests").contains("linux"));
    session.see("most often, each second\n");
    session.keys("\u{1}t");
}

/// It comes late, learns who the guests are, and leaves the run to itself.
fn another_terminal_has_panes(session: &mut Session, folder: &Folder) {
    let logs = folder.path("logs").display().to_string();
    let _ = std::fs::remove_dir_all(&logs);
    let mut other = session.beside(&["console"], &["--logs", &logs]);
    for title in [" 1 linux ", " 2 ends ", " nexit "] {
        other.see(title);
    }
    session.see("typing to guest 1, linux");
    other.keys("echo $((7 * 8))\r");
    session.see("linux: 56\n");
    other.see("56");
    other.keys("\u{1}x");
    let (screen, status) = other.end();
    assert!(status.success(), "{status}: {screen}");
    assert!(other.is_as_before(), "{screen}");
    let log = |name: &str| std::fs::read_to_string(format!("{logs}/{name}")).unwrap_or_default();
    assert!(log("guest-linux.log").contains("echo $((7 * 8))\r\n56"), "{}", log("guest-linux.log"));
    assert!(log("nexit.log").contains("nexit> guests\r\n"), "{}", log("nexit.log"));
}

fn a_report_has_it_all(session: &mut Session) {
    let report = ask_a_cpu(session, "report linux");
    for part in
        ["guests", "exits", "interrupts", "IOMMU", "VT-d", "registers", "stack", "code", "log"]
    {
        assert!(report.contains(&format!("nexit: == {part}\n")), "{part}: {report}");
    }
    has_row(&report, &["report of linux: running, up ", " s, 512 MiB; Nexit "]);
    has_row(&report, &["end of the report of linux"]);
}

#[test]
fn a_hung_guest_shows_its_registers_on_vt_x() {
    let folder = Folder::new("console-bochs");
    let config = folder.write("nexit.toml", hung(0));
    let start = ["run", "--config", &config, "--timeout", "90"];
    let run = [&start[..], Emulator::Bochs.options()].concat();
    let mut session = Session::start(&run);
    session.see("payload: ends by hang");
    assert!(session.is_raw());
    session.keys("\u{1}m");
    shows_where_it_hangs(&mut session);
    session.keys("stop ends\r");
    let (screen, status) = session.end();
    folder.write("run.log", &screen);
    assert_eq!(status.code(), Some(1), "{screen}");
    assert!(screen.contains("nexit: guest ends: stopped"), "{screen}");
    assert!(session.is_as_before(), "{screen}");
}

#[test]
fn the_terminal_is_given_back_however_the_run_ends() {
    let folder = Folder::new("console-ends");
    folder.write("kernel", "");
    let toml = "[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"kernel\"\n";
    let config = folder.write("config.toml", toml);
    // -S: QEMU waits before the first instruction.
    let run = ["run", "--unchecked", "--config", &config, "--timeout", "60", "--", "-S"];
    type Way = (&'static str, fn(&mut Session));
    let ways: [Way; 4] = [
        // Ctrl-C is the guest's.
        ("Ctrl-A x", |session| session.keys("\u{3}\u{1}x")),
        ("SIGINT", |session| session.signal(Signal::INT)),
        ("SIGTERM", |session| session.signal(Signal::TERM)),
        ("the emulator's death", |session| session.kill_child()),
    ];
    for (way, end) in ways {
        let mut session = Session::start(&run);
        session.see("Ctrl-A x ends the run");
        assert!(session.is_raw(), "{way}");
        end(&mut session);
        let (screen, status) = session.end();
        assert_eq!(status.code(), Some(1), "{way}: {screen}");
        assert!(session.is_as_before(), "{way}: {screen}");
    }
}

/// A guest on one CPU of Bochs that only computes, and one on the other that floods its console. The longest gap of the
/// first is the watchdog's call, in instructions.
#[test]
fn a_guest_that_floods_its_console_stops_no_other() {
    let guest = |command_line: &str, cpu: &str| {
        let payload = Payload { command_line, memory: "16M", ..Payload::new("beside") };
        let toml =
            payload.toml().replace("name = \"beside\"", &format!("name = \"{command_line}\""));
        toml.replace("[0]", cpu)
    };
    let toml = guest("computes", "[0]") + &guest("floods", "[1]");
    let options = [Emulator::Bochs.options(), &["--timeout", "240"]].concat();
    let outcome = Folder::new("console-flood").run(&toml, &options, &Devices::none());
    let (computes, floods) = (outcome.of_guest("computes"), outcome.of_guest("floods"));
    computes.assert_verdicts(&["the gaps are of the time without the flood and of that with it"]);
    let alone = computes.number("longest gap alone");
    let beside = computes.number("longest gap beside the flood");
    assert!((1..=3 * alone).contains(&beside), "{beside} instructions, alone {alone}\n{outcome}");

    // Of what both then say at the same time no byte is lost.
    let lines = [computes, floods].map(|guest| {
        let lines = guest.output.lines().filter(|line| line.starts_with("line "));
        let count = lines
            .enumerate()
            .inspect(|(number, line)| {
                assert_eq!(*line, format!("line {number:05} {:-<60}", ""), "{outcome}");
            })
            .count() as u64;
        assert_eq!(guest.number("lines of the flood"), count, "{outcome}");
        count
    });
    // 115,200 baud are 157 lines a second: the line was full, and the second to come had its part.
    assert!(lines.iter().sum::<u64>() > 200 && lines[0] > 10, "{lines:?} lines\n{outcome}");
}

/// A hexadecimal number.
fn number(word: &str) -> u64 {
    let digits = word.trim_start_matches("0x").trim_end_matches(',');
    u64::from_str_radix(digits, 16).unwrap_or_else(|error| panic!("{word}: {error}"))
}

/// A Linux whose disk is read all the time stops for gdb, is stepped and goes on, three times: every read is one interrupt,
/// none is lost, and none is an exit.
fn gdb_stops_a_linux_that_reads_its_disk(emulator: Emulator, reads: u64) {
    const STOPS: usize = 3;
    let folder = Folder::new(&format!("console-gdb-disk-{emulator}"));
    let linux = Guest::on_qemu("nvme quiet", "[\"00:04.0\"]");
    let (linux, devices) = match emulator {
        Emulator::BochsVtd => (
            Guest { kernel: Kernel::Cloud, memory: "256M", ..linux },
            Devices::disk_behind_vtd(&folder, ""),
        ),
        Emulator::Qemu | Emulator::Bochs | Emulator::Nested => (linux, Devices::none().nvme()),
    };
    let toml = linux.toml().replace("demo=nvme", &format!("demo=nvme reads={reads}"));
    let config = folder.write("nexit.toml", toml + "gdb = \"console\"\n");
    let run = ["run", "--config", &config, "--timeout", "1800"];
    let devices: Vec<&str> = devices.iter().collect();
    let mut session = Session::start(&[&run, emulator.options(), &["--"], &devices].concat());
    session.see("demo: nvme-files: ok");
    let elf = folder.path("linux.elf").display().to_string();
    let map = folder.write("System.map", symbols());
    let _ = folder.nexit("symbols", &["symbols", &map, &elf]);
    let script = "set remotetimeout 60\ninfo threads\nstepi\nstepi\nstepi\nprint $rip\ndetach\n";
    for _ in 0..STOPS {
        let gdb = crate::debugging::gdb_by_line(&folder, &session.line(), "linux", &elf, script);
        let ended = { gdb }.wait();
        let said = std::fs::read_to_string(folder.path("linux.log")).unwrap_or_default();
        assert!(ended.is_ok_and(|status| status.success()), "{said}");
        for expected in ["Thread 1.1", "$1 = ", "[Inferior 1 (process 1) detached]"] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }
    session.keys("\u{1}m");
    let before = session.see("nexit> ");
    assert!(!before.contains("demo: nvme: ok"), "the reads ended before gdb: more are needed");
    session.see("demo: nvme: ok");
    let line = ResultLine::parse(&session.see("\n"));
    assert_eq!((line.get("reads"), line.get("interrupts")), (reads, reads), "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    session.see("nexit: guest linux: poweroff");
}

#[test]
#[ignore = "a minute: `make test-all`"]
fn gdb_stops_a_linux_that_reads_its_disk_on_amd_v() {
    gdb_stops_a_linux_that_reads_its_disk(Emulator::Qemu, 20_000);
}

#[test]
#[ignore = "minutes: `make test-all`"]
fn gdb_stops_a_linux_that_reads_its_disk_on_vt_x() {
    gdb_stops_a_linux_that_reads_its_disk(Emulator::BochsVtd, 20_000);
}
