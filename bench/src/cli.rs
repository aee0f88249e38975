//! The command line.

use std::path::PathBuf;

use arch::Bdf;
use clap::{Args, Parser, Subcommand, ValueEnum};
use nexit::cli::Accel;
use nexit::failure::{Failure, Result};

use crate::mode::Mode;

/// Measures what Nexit costs.
#[derive(Parser, Debug)]
#[command(version, about)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the benchmark: a table, a file of results and a page.
    Run(RunArgs),
    /// Build an image that boots the guest of one mode on a real machine, by BIOS or UEFI, and does its work.
    Image(ImageArgs),
    /// Read what the serial lines of such boots said: a table, a file of results and a page.
    Read(ReadArgs),
    /// What grows with CPUs and with guests: memory, boot, exits; counts, with 1, 2, 4 and 8 of them.
    Growth(GrowthArgs),
    /// Make the page of files of results, and the pictures of it.
    Report {
        /// The results, of one machine each.
        #[arg(default_values = ["bench/results/vt-x.json", "bench/results/amd-v.json"])]
        results: Vec<PathBuf>,
        /// The page to write.
        #[arg(long, value_name = "FILE.html", default_value = "target/bench/report.html")]
        output: PathBuf,
        /// A folder to write each picture into, as an SVG file.
        #[arg(long, value_name = "DIR")]
        pictures: Option<PathBuf>,
    },
    /// Keep a file of results in the tree: as the newest of its machine, and as lines of the history.
    Keep {
        /// What `run`, `read` or `growth` wrote.
        results: PathBuf,
        /// The folder.
        #[arg(long, value_name = "DIR", default_value = "bench/results")]
        folder: PathBuf,
    },
    /// Say which exact counts got worse in the history of results; status 1 if any did.
    Compare {
        /// Files, or folders with such files; each figure's last value is held against the one before.
        #[arg(default_values = ["bench/results/history.csv", "target/bench/results"])]
        results: Vec<PathBuf>,
    },
    /// Show the windows of a file of the counting plugin, with `profile=` by function.
    Profile {
        /// What the plugin wrote.
        counts: PathBuf,
        /// The hypervisor image that was profiled.
        image: PathBuf,
    },
}

/// Where output goes.
#[derive(Args, Debug)]
pub(crate) struct Folders {
    /// Folder for images, logs and the page.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) folder: PathBuf,
    /// Folder for the file of results.
    #[arg(long, value_name = "DIR", default_value = "target/bench/results")]
    pub(crate) results: PathBuf,
    /// Keep the results in this folder of the tree, too, as `nexit-bench keep` does.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
}

/// `nexit-bench growth`.
#[derive(Args, Debug)]
pub(crate) struct GrowthArgs {
    /// Folder with the small guests of tests/payload.
    #[arg(long, value_name = "DIR")]
    pub(crate) payloads: PathBuf,
    /// The counting plugin.
    #[arg(long, value_name = "FILE.so")]
    pub(crate) plugin: PathBuf,
    /// Where its output goes.
    #[command(flatten)]
    pub(crate) folders: Folders,
}

/// What counts in QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Count {
    /// The plugin: instructions.
    Plugin,
    /// The guest's programs: ticks of the TSC.
    Tsc,
}

/// Where the modes run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum MachineKind {
    /// QEMU. With `--accel kvm` its technology is the host's.
    AmdV,
    /// Bochs.
    VtX,
}

/// `nexit-bench run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Once, with little work, without KVM: for a look in between.
    #[arg(long)]
    pub(crate) quick: bool,
    /// How QEMU executes. With kvm the host's CPU does, and programs count by the TSC.
    #[arg(long, value_enum, default_value = "tcg")]
    pub(crate) accel: Accel,
    /// What counts in QEMU [default: plugin; with --accel kvm tsc].
    #[arg(long, value_enum)]
    pub(crate) count: Option<Count>,
    /// The modes [default: all; with --quick or by the TSC all but kvm].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) modes: Vec<Mode>,
    /// The machines: AMD-V in QEMU, VT-x in Bochs [default: both; by the TSC QEMU alone].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) machines: Vec<MachineKind>,
    /// The works of bench/guest/init, or start [default: all].
    #[arg(long, value_delimiter = ',')]
    pub(crate) works: Vec<String>,
    /// How often, the modes of AMD-V interleaved [default: 3, with --quick 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: Option<u32>,
    /// How much work, in percent of the most sensible in an emulator [default: 20, with --quick 5; 50 times that
    /// with --accel kvm].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) scale: Option<u32>,
    /// For how many seconds each work is watched in its steady state, in the exitless mode, once.
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub(crate) steady: u32,
    /// Folder with the programs that run in the guest.
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: PathBuf,
    /// The small guest of the micro-costs.
    #[arg(long, value_name = "FILE")]
    pub(crate) payload: PathBuf,
    /// The counting plugin.
    #[arg(long, value_name = "FILE.so")]
    pub(crate) plugin: PathBuf,
    /// Where its output goes.
    #[command(flatten)]
    pub(crate) folders: Folders,
}

impl RunArgs {
    /// What counts in QEMU.
    ///
    /// # Errors
    /// What was asked for does not go together.
    pub(crate) fn count(&self) -> Result<Count> {
        let usual = if self.accel == Accel::Kvm { Count::Tsc } else { Count::Plugin };
        let count = self.count.unwrap_or(usual);
        if (self.accel, count) == (Accel::Kvm, Count::Plugin) {
            let text = "--count plugin: KVM executes past QEMU's plugins; leave it out, and the TSC counts";
            return Err(Failure::Usage(text.into()));
        }
        if count == Count::Tsc && self.modes.contains(&Mode::Kvm) {
            let text = "--modes kvm: by the TSC this mode is not there, as nothing says its exits; leave it out";
            return Err(Failure::Usage(text.into()));
        }
        Ok(count)
    }

    /// Whether `machine` takes part.
    pub(crate) fn on(&self, machine: MachineKind, count: Count) -> bool {
        let usual = count == Count::Plugin || machine == MachineKind::AmdV;
        if self.machines.is_empty() { usual } else { self.machines.contains(&machine) }
    }
}

/// `nexit-bench image`.
#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    /// The mode; not kvm.
    #[arg(long, value_enum)]
    pub(crate) mode: Mode,
    /// A PCI function for the guest, as lspci writes it; the first is the NVMe controller that is read from.
    /// Nothing is written to it.
    #[arg(long = "device", value_name = "BB:DD.F")]
    pub(crate) devices: Vec<Bdf>,
    /// CPUs of the guest, the first ones of the machine; the bare machine runs on as many.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: u32,
    /// The works of bench/guest/init [default: nvme if there is a device, timer,ipi,process,idle].
    #[arg(long, value_delimiter = ',')]
    pub(crate) works: Vec<String>,
    /// How much work, in percent of the most sensible in an emulator.
    #[arg(long, value_name = "PERCENT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) scale: u32,
    /// Folder with the programs that run in the guest.
    #[arg(long, value_name = "DIR", default_value = "target/x86_64-unknown-linux-gnu/release")]
    pub(crate) programs: PathBuf,
    /// Folder for the parts.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) folder: PathBuf,
    /// The image to write: an ISO, or `dd` to a stick.
    #[arg(long, value_name = "FILE.iso")]
    pub(crate) output: PathBuf,
}

/// `nexit-bench read`.
#[derive(Args, Debug)]
pub(crate) struct ReadArgs {
    /// A mode and the file of what its boot said on the serial line. A mode may stand here more than once.
    #[arg(required = true, value_name = "MODE=LOG", value_parser = boot)]
    pub(crate) boots: Vec<(Mode, PathBuf)>,
    /// Where its output goes.
    #[command(flatten)]
    pub(crate) folders: Folders,
}

fn boot(text: &str) -> std::result::Result<(Mode, PathBuf), String> {
    let (mode, path) = text.split_once('=').ok_or("MODE=LOG, such as bare=bare.log")?;
    Ok((Mode::from_str(mode, false)?, PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &str) -> RunArgs {
        let all = format!("nexit-bench run --programs p --payload p --plugin p {words}");
        let cli = Cli::try_parse_from(all.split_whitespace()).unwrap();
        let Command::Run(args) = cli.command else { panic!("not the command that was given") };
        args
    }

    #[test]
    fn under_kvm_the_tsc_counts_and_bochs_runs_only_where_it_is_asked_for() {
        let kvm = args("--accel kvm");
        assert_eq!(kvm.count(), Ok(Count::Tsc));
        assert!(kvm.on(MachineKind::AmdV, Count::Tsc) && !kvm.on(MachineKind::VtX, Count::Tsc));
        assert!(args("--accel kvm --machines vt-x").on(MachineKind::VtX, Count::Tsc));
        assert_eq!(
            (args("").count(), args("--count tsc").count()),
            (Ok(Count::Plugin), Ok(Count::Tsc))
        );
        assert!(args("").on(MachineKind::VtX, Count::Plugin));
        for refused in ["--accel kvm --count plugin", "--count tsc --modes bare,kvm"] {
            assert_eq!(args(refused).count().unwrap_err().status(), 2, "{refused}");
        }
    }

    #[test]
    fn a_log_is_named_with_its_mode() {
        assert_eq!(boot("exitless=a=b.log"), Ok((Mode::Exitless, PathBuf::from("a=b.log"))));
        assert!(boot("bare").is_err() && boot("fast=a.log").is_err());
    }
}
