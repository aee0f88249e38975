//! `nexit run`: from the command line to the exit status.
//!
//! Everything that can be wrong with the configuration is found before an emulator starts. What the
//! run needs (modules under their names in the image, the ISO, logs) lies in a folder of its own
//! that goes away with it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bochs;
use crate::built;
use crate::cli::{Accel, Boot, Emulator, Iommu, RunArgs};
use crate::failure::{Failure, OrFailed, Result};
use crate::files;
use crate::gdb::Relay;
use crate::image;
use crate::machine::{self, MAX_CPUS, Machine, Start};
use crate::nested;
use crate::qemu;
use crate::scenario::{BootFile, Scenario};
use crate::session::{self, Emulation, Output};
use crate::size;
use crate::verdict::Verdict;
use crate::vtd::{self, Program};

/// Where Debian's package ovmf puts the firmware.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Runs the guests and says what became of them.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let scenario = Scenario::load(&args.config, args.unchecked)?;
    check_cpus(args, &scenario)?;
    check_memory(args, &scenario, machine::host_memory())?;
    let folder = tempfile::Builder::new()
        .prefix("nexit-run-")
        .tempdir()
        .map_err(|error| Failure::Failed(format!("cannot make a temporary folder: {error}")))?;
    let relay = args.gdb.map(|port| Relay::open(port, &scenario.config)).transpose()?;
    let emulation = emulation(args, &scenario, &folder, relay.as_ref())?;
    if let Some(path) = &args.report {
        files::check_writable("--report", path, &scenario.files)?;
    }
    let names = scenario.config.guests.iter().map(|guest| guest.name.clone());
    let mut verdict = Verdict::new(names);
    if let Some(relay) = relay {
        relay.start();
    }
    let start = Instant::now();
    let timeout = args.timeout.map(Duration::from_secs);
    let ended = session::run(emulation, timeout, &mut verdict);
    let seconds = start.elapsed().as_secs_f64();
    println!("\nnexit: the run took {seconds:.1} s");
    print!("{}", verdict.report);
    if let Some(path) = &args.report {
        write_report(&verdict, path)?;
    }
    ended.and_then(|()| verdict.conclude())
}

fn write_report(verdict: &Verdict, path: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(&verdict.report)
        .map_err(|error| Failure::Failed(format!("cannot write the report: {error}")))?;
    fs::write(path, json + "\n").or_failed("write", path)
}

fn check_cpus(args: &RunArgs, scenario: &Scenario) -> Result<()> {
    let needed = scenario.cpus();
    match args.cpus {
        Some(cpus) if cpus < needed => Err(Failure::Usage(format!(
            "--cpus {cpus}: the configuration gives CPU {} to a guest, so at least {needed} are \
             needed",
            needed - 1
        ))),
        None if needed > MAX_CPUS => Err(Failure::Usage(format!(
            "the configuration gives CPU {} to a guest, and the emulators have at most {MAX_CPUS} \
             CPUs, counted from 0",
            needed - 1
        ))),
        _ => Ok(()),
    }
}

/// An emulator that is given more than there is dies in the middle of the run.
fn check_memory(args: &RunArgs, scenario: &Scenario, host: Option<u64>) -> Result<()> {
    let guests = scenario.guest_memory();
    if args.emulator == Emulator::Bochs && guests > bochs::MAX_GUEST_MEMORY {
        return Err(Failure::Usage(format!(
            "the guests have {} MiB of memory, and Bochs can hold {} MiB of them: give them less, or use \
             --emulator qemu",
            size::mebibytes(guests),
            bochs::MAX_GUEST_MEMORY >> 20
        )));
    }
    let needed = args.memory.unwrap_or_else(|| machine::default_memory(scenario));
    match host {
        Some(host) if needed > host => Err(Failure::Usage(format!(
            "the machine would have {} MiB of memory ({} MiB are the guests'), and this host has {} \
             MiB: give the guests less, or --memory",
            size::mebibytes(needed),
            size::mebibytes(scenario.guest_memory()),
            host >> 20
        ))),
        _ => Ok(()),
    }
}

/// The emulator's process, ready to start.
fn emulation(
    args: &RunArgs,
    scenario: &Scenario,
    folder: &TempDir,
    relay: Option<&Relay>,
) -> Result<Emulation> {
    let folder = folder.path();
    match args.emulator {
        Emulator::Qemu => {
            qemu::check(args.accel)?;
            let iommu = args.iommu.unwrap_or(Iommu::VtD);
            let mut machine = machine(args, scenario, 2, iommu, start(args, scenario, folder)?);
            machine.extra.extend(relay.iter().flat_map(|relay| relay.for_qemu()));
            Ok(Emulation {
                program: qemu::PROGRAM.to_owned(),
                arguments: qemu::arguments(&machine)?,
                output: Output::Pipe,
            })
        }
        Emulator::Bochs => bochs_emulation(args, scenario, folder, relay),
        Emulator::Nested if relay.is_some() => {
            Err(Failure::Usage("--gdb: the nested machine has no second line; leave it out".into()))
        }
        Emulator::Nested => nested_emulation(args, scenario, folder),
    }
}

fn machine(
    args: &RunArgs,
    scenario: &Scenario,
    min_cpus: u32,
    iommu: Iommu,
    start: Start,
) -> Machine {
    Machine {
        cpus: args.cpus.unwrap_or_else(|| machine::default_cpus(scenario, min_cpus)),
        memory: args.memory.unwrap_or_else(|| machine::default_memory(scenario)),
        accel: args.accel,
        iommu,
        start,
        extra: args.emulator_args.clone(),
    }
}

fn start(args: &RunArgs, scenario: &Scenario, folder: &Path) -> Result<Start> {
    match args.boot.unwrap_or(Boot::Kernel) {
        Boot::Kernel => {
            let image = built::image(&args.images)?;
            let modules: Result<_> =
                scenario.files.iter().map(|file| stage(file, folder)).collect();
            Ok(Start::Kernel { image, modules: modules? })
        }
        Boot::Iso => Ok(Start::Bios { iso: build_iso(args, scenario, folder)? }),
        Boot::Uefi => {
            let variables = folder.join("variables.fd");
            fs::copy(FIRMWARE_VARIABLES, &variables)
                .or_failed("copy", Path::new(FIRMWARE_VARIABLES))?;
            let iso = build_iso(args, scenario, folder)?;
            Ok(Start::Uefi { iso, code: PathBuf::from(FIRMWARE), variables })
        }
    }
}

/// QEMU names a module after its path: a link gives it the name that it has in images.
fn stage(file: &BootFile, folder: &Path) -> Result<PathBuf> {
    let target = fs::canonicalize(&file.path).or_failed("find", &file.path)?;
    let link = folder.join(&file.name);
    symlink(&target, &link).or_failed("link", &link)?;
    Ok(link)
}

fn build_iso(args: &RunArgs, scenario: &Scenario, folder: &Path) -> Result<PathBuf> {
    let iso = folder.join("nexit.iso");
    image::build(scenario, &args.images, args.loader, &iso)?;
    Ok(iso)
}

fn bochs_emulation(
    args: &RunArgs,
    scenario: &Scenario,
    folder: &Path,
    relay: Option<&Relay>,
) -> Result<Emulation> {
    if args.accel == Accel::Kvm {
        return Err(Failure::Usage("--accel kvm: Bochs has no accelerator; leave it out".into()));
    }
    if !matches!(args.boot, None | Some(Boot::Iso)) {
        let text = "--boot: Bochs boots from the ISO by BIOS only; leave it out";
        return Err(Failure::Usage(text.into()));
    }
    let Program { program, has_unit } = vtd::program(args.bochs.as_deref(), args.iommu)?;
    if has_unit {
        vtd::check_devices(&scenario.config, &args.emulator_args)?;
    }
    let iso = build_iso(args, scenario, folder)?;
    let iommu = if has_unit { Iommu::VtD } else { Iommu::None };
    let mut machine = machine(args, scenario, 1, iommu, Start::Bios { iso: iso.clone() });
    machine.extra.extend(relay.map(Relay::for_bochs));
    let locks = bochs::lock_files(&args.emulator_args).into_iter().map(PathBuf::from).collect();
    bochs_process(args, program, &machine, bochs::INSTRUCTIONS_PER_SECOND, &iso, locks, folder)
}

/// Nexit in QEMU in Linux in Bochs.
fn nested_emulation(args: &RunArgs, scenario: &Scenario, folder: &Path) -> Result<Emulation> {
    let from = match nested::check_boot(args.boot)? {
        Boot::Kernel => nested::From::Kernel(built::image(&args.images)?),
        Boot::Iso | Boot::Uefi => nested::From::Bios(build_iso(args, scenario, folder)?),
    };
    let bochs = nested::bochs(args.bochs.as_deref(), &vtd::places())?;
    let iommu = args.iommu.unwrap_or(Iommu::VtD);
    let inner = machine(args, scenario, 1, iommu, Start::Bios { iso: PathBuf::new() });
    let (outer, iso) = nested::machine(&inner, &from, &scenario.files, folder, &built::folder())?;
    let speed = nested::INSTRUCTIONS_PER_SECOND;
    bochs_process(args, bochs, &outer, speed, &iso, Vec::new(), folder)
}

/// Bochs with `machine`.
fn bochs_process(
    args: &RunArgs,
    program: String,
    machine: &Machine,
    ips: u32,
    iso: &Path,
    locks: Vec<PathBuf>,
    folder: &Path,
) -> Result<Emulation> {
    let refused = |error| Failure::Failed(format!("cannot listen for Bochs' serial line: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused)?;
    let serial = listener.local_addr().map_err(refused)?;
    let log = folder.join("bochs.log");
    let text = bochs::configuration(machine, &args.bochs_model, ips, iso, serial);
    let text = format!("log: \"{}\"\n{text}", log.display());
    let file = folder.join("bochsrc");
    fs::write(&file, text).or_failed("write", &file)?;
    let mut arguments = vec!["-q".to_owned()];
    if session::says(&program, "--help", "-rc ")? {
        // A build with the debugger stops at its prompt: this tells it to go on.
        let commands = folder.join("commands");
        fs::write(&commands, "c\n").or_failed("write", &commands)?;
        arguments.extend(["-rc".to_owned(), commands.display().to_string()]);
    }
    arguments.extend(["-f".to_owned(), file.display().to_string()]);
    Ok(Emulation {
        program,
        arguments,
        output: Output::Socket { listener, log, errors: folder.join("bochs.errors"), locks },
    })
}
