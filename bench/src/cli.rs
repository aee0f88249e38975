//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// What grows with CPUs and with guests: memory, boot, exits; counts, with 1, 2, 4 and 8 of them.
    Growth(GrowthArgs),
    /// Make the page of a file of results.
    Report {
        /// The results.
        results: PathBuf,
        /// The page to write.
        #[arg(long, value_name = "FILE.html", default_value = "target/bench/report.html")]
        output: PathBuf,
    },
    /// Say which exact counts got worse in the history of results; status 1 if any did.
    Compare {
        /// Files, or folders with such files; each figure's last value is held against the one before.
        #[arg(default_value = "bench/results")]
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

/// `nexit-bench growth`.
#[derive(Args, Debug)]
pub(crate) struct GrowthArgs {
    /// Folder with the small guests of tests/payload.
    #[arg(long, value_name = "DIR")]
    pub(crate) payloads: PathBuf,
    /// The counting plugin.
    #[arg(long, value_name = "FILE.so")]
    pub(crate) plugin: PathBuf,
    /// Folder for what the runs leave.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) folder: PathBuf,
    /// Folder for the file of results.
    #[arg(long, value_name = "DIR", default_value = "target/bench/results")]
    pub(crate) results: PathBuf,
}

/// Where the modes run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum MachineKind {
    /// QEMU.
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
    /// The modes [default: all; with --quick all but kvm].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) modes: Vec<Mode>,
    /// The machines: AMD-V in QEMU, VT-x in Bochs.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["amd-v", "vt-x"])]
    pub(crate) machines: Vec<MachineKind>,
    /// The works of bench/guest/init [default: all].
    #[arg(long, value_delimiter = ',')]
    pub(crate) works: Vec<String>,
    /// How often, the modes of AMD-V interleaved [default: 3, with --quick 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: Option<u32>,
    /// How much work, in percent of the most sensible [default: 20, with --quick 5].
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
    /// Folder for images, logs and the page.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) folder: PathBuf,
    /// Folder for the file of results.
    #[arg(long, value_name = "DIR", default_value = "target/bench/results")]
    pub(crate) results: PathBuf,
}
