//! A payload on the bare machine: the one that `nexit run` gives the hypervisor, without it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nexit::bochs::{INSTRUCTIONS_PER_SECOND, configuration};
use nexit::cli::{Accel, Iommu};
use nexit::machine::{Machine, Start};
use nexit::qemu;
use nexit::tool::Tool;

use crate::emulator::Emulator;
use crate::folder::{Folder, Turn, build_folder};
use crate::guest::{Payload, first_cpus};

/// A payload's last line.
const END: &str = "payload: done";
/// Seconds that it may take; nested, where Linux starts first, on a busy host.
const PATIENCE: u64 = 300;
const PATIENCE_NESTED: u64 = 3600;
/// What the emulator itself complains of.
const ERRORS: &str = "bare.err";
/// As `nexit run`'s default.
const MODEL: &str = "corei7_haswell_4770";

fn machine(cpus: u32, iommu: Iommu, start: Start) -> Machine {
    Machine { cpus, memory: 1 << 30, accel: Accel::Tcg, iommu, start, extra: Vec::new() }
}

/// Runs `program`, a multiboot kernel, on the bare machine of `emulator` until its line `payload: done`; what came
/// over the serial line. There are `cpus` CPUs; `cpu` names another CPU as `nexit run`'s words do: `-- -cpu MODEL` or `--bochs-model MODEL`.
///
/// It is what others are compared with, and no code of Nexit is in it: one that an emulator does not bring to its end
/// is run once more.
///
/// # Errors
/// It does not start, or twice does not say that it is done.
pub fn run(
    emulator: Emulator,
    folder: &Folder,
    program: &Path,
    cpus: u32,
    cpu: &[&str],
) -> Result<String, String> {
    once(emulator, folder, program, cpus, cpu).or_else(|first| {
        eprintln!("{first}\nonce more:");
        once(emulator, folder, program, cpus, cpu)
    })
}

fn once(
    emulator: Emulator,
    folder: &Folder,
    program: &Path,
    cpus: u32,
    cpu: &[&str],
) -> Result<String, String> {
    let (console, end) = match emulator {
        Emulator::Qemu => in_qemu(folder, program, cpus, cpu)?,
        Emulator::Bochs | Emulator::BochsVtd => in_bochs(emulator, folder, program, cpus, cpu)?,
        Emulator::Nested => in_kvm(folder, program, cpus)?,
    };
    folder.write("bare.log", &console);
    if console.lines().any(|line| line == END) {
        return Ok(console);
    }
    let errors = std::fs::read_to_string(folder.path(ERRORS)).unwrap_or_default();
    // The end last: it is what a log that is cut keeps.
    Err(format!("on the bare machine it does not come to its end\n{console}\n{errors}{end}"))
}

/// What came over the serial line, and how the run ended.
type Heard = (String, String);

/// As KVM's guest, where Nexit would be: `nexit run` takes it for the hypervisor's image.
fn in_kvm(folder: &Folder, program: &Path, cpus: u32) -> Result<Heard, String> {
    let _place = Turn::take();
    let payload = Payload { cpus: first_cpus(cpus), ..Payload::new("fidelity") };
    let config = folder.write("config.toml", payload.toml());
    let mut command = Command::new(build_folder().join("debug/nexit"));
    command.args(["run", "--unchecked", "--config", &config, "--emulator", "nested", "--image"]);
    let mut child = start_program(folder, command.arg(program), Stdio::piped())?;
    let output = child.stdout.take().ok_or("nexit has no output")?;
    Ok(listen(output, &mut child, PATIENCE_NESTED))
}

fn in_qemu(folder: &Folder, program: &Path, cpus: u32, cpu: &[&str]) -> Result<Heard, String> {
    let _place = Turn::take();
    // GRUB's modules have no counterpart: QEMU wants one, so it gets the program once more.
    let modules = vec![program.to_path_buf()];
    let start = Start::Kernel { image: program.to_path_buf(), modules };
    let mut machine = machine(cpus, Iommu::VtD, start);
    machine.extra = cpu.iter().skip(1).map(|word| (*word).to_owned()).collect();
    let arguments = qemu::arguments(&machine).map_err(|e| e.to_string())?;
    let mut child =
        start_program(folder, Command::new(qemu::PROGRAM).args(arguments), Stdio::piped())?;
    let output = child.stdout.take().ok_or("QEMU has no output")?;
    Ok(listen(output, &mut child, PATIENCE))
}

fn in_bochs(
    emulator: Emulator,
    folder: &Folder,
    program: &Path,
    cpus: u32,
    cpu: &[&str],
) -> Result<Heard, String> {
    let _place = Turn::take();
    let (bochs, iommu) = if emulator == Emulator::Bochs {
        ("bochs".to_owned(), Iommu::None)
    } else {
        (build_folder().join("bochs3/bochs").display().to_string(), Iommu::VtD)
    };
    let iso = disc(folder, program)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    let serial: SocketAddr = listener.local_addr().map_err(|e| e.to_string())?;
    let machine = machine(cpus, iommu, Start::Bios { iso: iso.clone() });
    let model = cpu.get(1).unwrap_or(&MODEL);
    let text = configuration(&machine, model, INSTRUCTIONS_PER_SECOND, &iso, serial);
    let log = folder.path("bochs.log");
    let file = folder.write("bochsrc", format!("log: \"{}\"\n{text}", log.display()));
    let mut command = Command::new(&bochs);
    command.arg("-q");
    let help = Command::new(&bochs).arg("--help").output();
    // A build with the debugger stops at its prompt: this tells it to go on.
    if help.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("-rc ")) {
        command.arg("-rc").arg(folder.write("commands", "c\n"));
    }
    let mut child = start_program(folder, command.arg("-f").arg(file), Stdio::null())?;
    listener.set_nonblocking(true).map_err(|e| e.to_string())?;
    let end = Instant::now() + Duration::from_secs(PATIENCE);
    let line = loop {
        match listener.accept() {
            Ok((line, _)) => break Some(line),
            Err(_) if Instant::now() < end && matches!(child.try_wait(), Ok(None)) => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(_) => break None,
        }
    };
    let Some(line) = line.filter(|line| line.set_nonblocking(false).is_ok()) else {
        stop(&mut child);
        return Err("Bochs does not connect its serial line".to_owned());
    };
    Ok(listen(line, &mut child, PATIENCE))
}

/// A CD from which GRUB boots the program, with the BIOS.
fn disc(folder: &Folder, program: &Path) -> Result<PathBuf, String> {
    let grub = folder.path("tree/boot/grub");
    std::fs::create_dir_all(&grub).map_err(|e| e.to_string())?;
    std::fs::copy(program, grub.join("payload")).map_err(|e| e.to_string())?;
    let menu = "multiboot2 /boot/grub/payload\nboot\n";
    std::fs::write(grub.join("grub.cfg"), menu).map_err(|e| e.to_string())?;
    let iso = folder.path("bare.iso");
    let tool = Tool::new("grub-mkrescue").args(["-d", "/usr/lib/grub/i386-pc", "-o"]);
    tool.arg(&iso).arg(folder.path("tree")).run().map_err(|e| e.to_string())?;
    Ok(iso)
}

fn start_program(folder: &Folder, command: &mut Command, output: Stdio) -> Result<Child, String> {
    let errors = std::fs::File::create(folder.path(ERRORS)).map_err(|e| e.to_string())?;
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    child.map_err(|error| format!("cannot start {}: {error}", command.get_program().display()))
}

/// `nexit run` ends its emulator when it is asked to leave, and could not if it were killed.
fn stop(child: &mut Child) {
    const PATIENCE: usize = 50;
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    for _ in 0..PATIENCE {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// What comes, up to the payload's last line; then the emulator is ended.
fn listen(mut from: impl std::io::Read + Send + 'static, child: &mut Child, seconds: u64) -> Heard {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let part = bytes.get(..count).unwrap_or_default().to_vec();
            if sender.send(part).is_err() {
                break;
            }
        }
    });
    let patience = Instant::now() + Duration::from_secs(seconds);
    let mut console = String::new();
    let end = loop {
        if console.contains(&format!("{END}\n")) {
            break "it is done".to_owned();
        }
        let left = patience.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(part) => console.push_str(&String::from_utf8_lossy(&part).replace('\r', "")),
            Err(RecvTimeoutError::Timeout) => {
                break format!("it took more than {seconds} s");
            }
            Err(RecvTimeoutError::Disconnected) => break format!("the emulator {}", ended(child)),
        }
    };
    stop(child);
    (console, end)
}

/// The status of an emulator whose line has closed: it is about to end, or has.
fn ended(child: &mut Child) -> String {
    for _ in 0..100 {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Ok(Some(status)) => return format!("ended: {status}"),
            Err(error) => return format!("cannot be asked: {error}"),
        }
    }
    "closed its line and goes on".to_owned()
}
