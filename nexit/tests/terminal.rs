//! `nexit run` on a pseudo-terminal, with a program in QEMU's place that says what it is typed.
#![allow(clippy::unwrap_used)] // In tests; clippy.toml does not reach their helpers.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use tempfile::TempDir;

/// Prints each byte of its standard input in hexadecimal, up to a Ctrl-D.
const MACHINE: &str = "#!/bin/sh
[ -t 0 ] && echo 'on the terminal itself'
echo ready
while byte=$(dd bs=1 count=1 2>/dev/null | od -An -tx1) && [ -n \"$byte\" ]; do
    echo \"typed$byte\"
    [ \"$byte\" = ' 04' ] && break
done
echo 'no more'
";
const CONFIG: &str = "[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"kernel\"\n";

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let machine = folder.path().join("qemu-system-x86_64");
    fs::write(&machine, MACHINE).unwrap();
    fs::set_permissions(&machine, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("nexit.toml"), CONFIG).unwrap();
    fs::write(folder.path().join("kernel"), "").unwrap();
    folder
}

/// `program ARGUMENTS… nexit run …`, not started.
fn command(folder: &Path, before: &[&str]) -> Command {
    let nexit = env!("CARGO_BIN_EXE_nexit");
    let mut words =
        before.iter().copied().chain([nexit, "run", "--unchecked", "--timeout", "60", "--config"]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(folder.join("nexit.toml")).arg("--image").arg(folder.join("kernel"));
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", folder.display()));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A run with a terminal of its own, as a shell's foreground job has it.
struct Run {
    _folder: TempDir,
    /// The user's end.
    user: File,
    /// The program's end, to look at its modes.
    terminal: File,
    before: Termios,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Run {
    fn start() -> Self {
        let folder = folder();
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        // With no controlling terminal, as in CI, opening one would make it ours.
        let open = || {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
            File::from(rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap())
        };
        let terminal = open();
        let before = tcgetattr(&terminal).unwrap();
        assert!(before.local_modes.contains(LocalModes::ISIG | LocalModes::ICANON));
        // `setsid` becomes `nexit`, so that a Ctrl-C that were a signal would be nexit's.
        let mut command = command(folder.path(), &["setsid", "--ctty"]);
        let mut child = command.stdin(open()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut run = Self { _folder: folder, user: user.into(), terminal, before, child, output };
        assert_eq!(run.line(), "ready", "the machine has a pipe, not the terminal");
        run
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.terminal).unwrap().local_modes
    }

    /// Waits for its end: the exit status, and what it said last. The terminal is as it was.
    fn end(mut self) -> (Option<i32>, String) {
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let status = self.child.wait().unwrap().code();
        let after = tcgetattr(&self.terminal).unwrap();
        assert_eq!(after.local_modes, self.before.local_modes);
        assert_eq!(after.input_modes, self.before.input_modes);
        (status, errors.lines().last().unwrap().to_owned())
    }
}

#[test]
fn every_key_reaches_the_machine_at_once_and_ctrl_a_x_ends_the_run() {
    let mut run = Run::start();
    let cooked = LocalModes::ISIG | LocalModes::ICANON | LocalModes::ECHO;
    assert!(!run.modes().intersects(cooked));
    for (keys, typed) in [
        (b"q".as_slice(), ["typed 71"].as_slice()),
        (b"\x03", &["typed 03"]),
        (b"\r", &["typed 0d"]),
        (b"\x13", &["typed 13"]),
        (b"\x1a", &["typed 1a"]),
        (b"\x012", &["typed 01", "typed 32"]),
        (b"\x01\x01", &["typed 01", "typed 01"]),
    ] {
        run.user.write_all(keys).unwrap();
        for expected in typed {
            assert_eq!(run.line(), *expected);
        }
    }
    run.user.write_all(b"\x01x").unwrap();
    assert_eq!(run.end(), (Some(1), "nexit: ended by Ctrl-A x".to_owned()));
}

#[test]
fn a_signal_ends_the_run_and_gives_the_terminal_back() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let run = Run::start();
        let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        assert_eq!(run.end(), (Some(1), "nexit: interrupted".to_owned()));
    }
}

#[test]
fn a_pipe_is_the_machines_own_and_no_key_in_it_is_special() {
    let folder = folder();
    let mut child = command(folder.path(), &[]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"\x01x\x03\x04").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("ready\ntyped 01\ntyped 78\ntyped 03\ntyped 04\nno more\n"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}
