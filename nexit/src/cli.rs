//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::attach::BAUD;
use crate::demo::Flavour;
use crate::machine::MAX_CPUS;
use crate::size;

/// Builds Nexit images and runs them in an emulator.
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
    /// Run the guests of a configuration in an emulator.
    Run(RunArgs),
    /// Attach to a machine's serial line: a pane for each guest and one for the monitor.
    Console(ConsoleArgs),
    /// Build a bootable image of a configuration: an ISO or a stick, a system partition, a folder for GRUB or iPXE.
    Image(ImageArgs),
    /// Describe a machine before Nexit runs on it, and write its machine file.
    Probe(ProbeArgs),
    /// Check a configuration, alone or for a machine: report everything that is wrong with it.
    Check(CheckArgs),
    /// Propose a configuration for a machine.
    Init(InitArgs),
    /// Make the demo's guest: a stock Debian kernel, an initramfs, a disk.
    Demo(DemoArgs),
    /// Measure the trusted code and the image's size.
    Stats(StatsArgs),
    /// Let gdb at a guest with `gdb = "console"`, by way of the machine's one serial line.
    Gdb(GdbArgs),
    /// Dump a guest with `gdb = "console"` into an ELF core that gdb opens.
    Dump(DumpArgs),
    /// Make the symbols of a Linux, from its System.map or /proc/kallsyms, a file for gdb.
    Symbols(SymbolsArgs),
    /// Explain from the hypervisor's log why a CPU refused to enter a guest.
    Explain(ExplainArgs),
    /// Add function names and source lines to the backtraces of a log.
    Symbolize(SymbolizeArgs),
}

/// Which emulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Emulator {
    /// QEMU: emulated AMD-V and VT-d, or nested VT-x with `--accel kvm`.
    Qemu,
    /// Bochs: VT-x; also VT-d with version 3 and the project's plugin.
    Bochs,
    /// QEMU with KVM's nested VT-x and VT-d, in a Linux in Bochs. Needs no VT-x on the host.
    Nested,
}

/// How QEMU executes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Accel {
    /// QEMU's own emulation.
    Tcg,
    /// An Intel host with nested VT-x (never run yet).
    Kvm,
}

/// The machine's IOMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Iommu {
    /// Intel's VT-d with interrupt remapping. Arguments for QEMU may name another unit (`-device intel-iommu,…`).
    VtD,
    /// None.
    None,
}

/// How the machine boots the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Boot {
    /// The emulator loads it (QEMU's `-kernel`).
    Kernel,
    /// From the ISO, by BIOS and GRUB.
    Iso,
    /// From the ISO, by UEFI and the loader that `--loader` names.
    Uefi,
}

/// What UEFI starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Loader {
    /// GRUB, by multiboot2.
    Grub,
    /// Nexit's own BOOTX64.EFI.
    Native,
}

/// What an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// One file: a CD, or by `dd` a stick; BIOS and UEFI.
    Iso,
    /// A folder to copy to an EFI system partition.
    Esp,
    /// A folder for /boot of an installed Linux, with an entry for its GRUB's menu.
    Directory,
    /// A folder for a TFTP or HTTP server, with a script for iPXE on BIOS.
    Pxe,
}

/// Paths of the built images.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImagePaths {
    /// The hypervisor image [default: the one built last].
    #[arg(long, env = "NEXIT_IMAGE", value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// The UEFI loader [default: the one built last].
    #[arg(long, env = "NEXIT_UEFI_IMAGE", value_name = "FILE")]
    pub(crate) uefi_image: Option<PathBuf>,
}

/// `nexit run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The configuration; file names in it are relative to its folder, or absolute.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The emulator to run it in.
    #[arg(long, value_enum, default_value = "qemu")]
    pub(crate) emulator: Emulator,
    /// The machine's IOMMU [default: vt-d; none in a Bochs without the plugin].
    #[arg(long, value_enum)]
    pub(crate) iommu: Option<Iommu>,
    /// How QEMU executes; always KVM with `--emulator nested`.
    #[arg(long, value_enum, default_value = "tcg")]
    pub(crate) accel: Accel,
    /// How the machine boots [default: kernel in QEMU, nested too, iso in Bochs].
    #[arg(long, value_enum)]
    pub(crate) boot: Option<Boot>,
    /// What `--boot uefi` starts.
    #[arg(long, value_enum, default_value = "grub")]
    pub(crate) loader: Loader,
    /// CPUs of the machine [default: as many as the configuration names, at least 2 in QEMU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CPUS)))]
    pub(crate) cpus: Option<u32>,
    /// Memory of the machine, such as 2G [default: the guests' and room for the hypervisor].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) memory: Option<u64>,
    /// End the run after this many seconds, with status 124.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Write the hypervisor's report (exits by reason and more) as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Listen for gdb on this port of the loopback interface, for the guest with `gdb = "COM2"`; 0 for any free port.
    #[arg(long, value_name = "PORT")]
    pub(crate) gdb: Option<u16>,
    /// Start even what `nexit check` refuses, to see the hypervisor refuse it.
    #[arg(long)]
    pub(crate) unchecked: bool,
    /// The CPU model of Bochs.
    #[arg(long, value_name = "MODEL", default_value = "corei7_haswell_4770")]
    pub(crate) bochs_model: String,
    /// The Bochs program [default: version 3 with VT-d, which `make setup machines` puts in target/bochs3, else the
    /// installed one; nested KVM needs version 3].
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) bochs: Option<String>,
    /// Where the images are.
    #[command(flatten)]
    pub(crate) images: ImagePaths,
    /// Arguments for QEMU (also nested), or lines of Bochs' configuration.
    #[arg(last = true, value_name = "EMULATOR ARGS")]
    pub(crate) emulator_args: Vec<String>,
}

/// `nexit console`.
#[derive(Args, Debug)]
pub(crate) struct ConsoleArgs {
    /// Where it is.
    #[command(flatten)]
    pub(crate) line: LineArgs,
    /// The configuration, for the guests' names [default: the hypervisor says them].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Also write what each guest says to a file of its own in this folder.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) logs: Option<PathBuf>,
    /// No panes: lines, each with the name of who speaks. Without a terminal it is always so.
    #[arg(long)]
    pub(crate) plain: bool,
}

/// `nexit image`.
#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    /// The configuration; file names in it are relative to its folder, or absolute.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value = "iso")]
    pub(crate) format: Format,
    /// The image to write: a file, or a new or empty folder.
    #[arg(long, value_name = "FILE.iso|FOLDER")]
    pub(crate) output: PathBuf,
    /// Build even what `nexit check` refuses.
    #[arg(long)]
    pub(crate) unchecked: bool,
    /// What UEFI starts [default: native for esp, else grub]. BIOS always starts GRUB.
    #[arg(long, value_enum)]
    pub(crate) loader: Option<Loader>,
    /// Where the images are.
    #[command(flatten)]
    pub(crate) images: ImagePaths,
}

/// `nexit probe`. Without `--from` and `--from-log`: the machine that runs this.
#[derive(Args, Debug)]
pub(crate) struct ProbeArgs {
    /// Write the machine file; as JSON if its name ends in `.json`.
    #[arg(long, value_name = "machine.toml")]
    pub(crate) output: Option<PathBuf>,
    /// A folder with a copy of another machine's /sys and /proc, or output of `acpidump` and `lspci -xxxx -vvv`.
    #[arg(long, value_name = "DIR", conflicts_with = "from_log")]
    pub(crate) from: Option<PathBuf>,
    /// The log of a machine on which Nexit ran with `probe = true`.
    #[arg(long, value_name = "FILE")]
    pub(crate) from_log: Option<PathBuf>,
}

/// `nexit check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The configuration; file names in it are relative to its folder, or absolute.
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// The machine file of the target, from `nexit probe`.
    #[arg(long, value_name = "FILE")]
    pub(crate) machine: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nexit init`.
#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// The machine file, from `nexit probe`.
    #[arg(long, value_name = "FILE")]
    pub(crate) machine: PathBuf,
    /// The configuration to write; an existing file is not overwritten [default: print it].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `nexit demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Which of Debian's kernels.
    #[arg(long, value_enum, default_value = "stock")]
    pub(crate) kernel: Flavour,
    /// Folder with `init`.
    #[arg(long, value_name = "DIR", default_value = "demo")]
    pub(crate) scripts: PathBuf,
    /// Folder with the programs that run in the guest.
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: PathBuf,
    /// Folder to write to.
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

/// Which serial line.
#[derive(Args, Clone, Debug)]
pub(crate) struct LineArgs {
    /// The machine's serial line: a device such as /dev/ttyUSB0, a TCP socket, or the socket of a run [default: the `nexit run`
    /// that is running].
    #[arg(long, value_name = "PATH|HOST:PORT")]
    pub(crate) line: Option<String>,
    /// The rate of a serial device, in baud.
    #[arg(long, value_name = "RATE", default_value_t = BAUD)]
    pub(crate) baud: u32,
}

/// `nexit gdb`.
#[derive(Args, Debug)]
pub(crate) struct GdbArgs {
    /// The guest's name.
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// Where it is.
    #[command(flatten)]
    pub(crate) line: LineArgs,
    /// Listen for gdb on this port of the loopback interface; 0 for any free port.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) port: u16,
    /// Start gdb, attached to the guest; end when it ends.
    #[arg(long)]
    pub(crate) start: bool,
    /// Arguments for the gdb that is started, such as a file with symbols.
    #[arg(last = true, value_name = "GDB ARGS", requires = "start")]
    pub(crate) gdb_args: Vec<String>,
}

/// `nexit dump`.
#[derive(Args, Debug)]
pub(crate) struct DumpArgs {
    /// The guest's name.
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// The file to write; an existing one is replaced when the dump is complete.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where the guest is.
    #[command(flatten)]
    pub(crate) line: LineArgs,
}

/// `nexit symbols`.
#[derive(Args, Debug)]
pub(crate) struct SymbolsArgs {
    /// A System.map, or what root reads from /proc/kallsyms.
    #[arg(value_name = "LIST")]
    pub(crate) list: PathBuf,
    /// The ELF file to write; an existing one is overwritten.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// `nexit explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// The hypervisor's log, as it came over the serial line.
    #[arg(value_name = "FILE")]
    pub(crate) log: PathBuf,
}

/// `nexit symbolize`.
#[derive(Args, Debug)]
pub(crate) struct SymbolizeArgs {
    /// The hypervisor's log, as it came over the serial line.
    #[arg(value_name = "FILE")]
    pub(crate) log: PathBuf,
    /// The image must be the one that wrote the log.
    #[command(flatten)]
    pub(crate) images: ImagePaths,
}

/// `nexit stats`.
#[derive(Args, Debug)]
pub(crate) struct StatsArgs {
    /// Where the images are.
    #[command(flatten)]
    pub(crate) images: ImagePaths,
    /// A report of `nexit run`: also print the memory that the hypervisor took.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Also print the functions that a guest's exit can reach.
    #[arg(long)]
    pub(crate) functions: bool,
    /// Fail if a measure exceeds this limit. Every measure then needs one.
    #[arg(long, value_name = "MEASURE=NUMBER", value_parser = limit)]
    pub(crate) max: Vec<(String, usize)>,
}

fn limit(text: &str) -> Result<(String, usize), String> {
    let (measure, number) =
        text.split_once('=').ok_or("MEASURE=NUMBER, such as unsafe-blocks=10")?;
    let number = number.parse().map_err(|_| format!("{number} is no number"))?;
    Ok((measure.to_owned(), number))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run_args(words: &[&str]) -> RunArgs {
        let all = ["nexit", "run"].iter().chain(words);
        let Command::Run(args) = Cli::try_parse_from(all).unwrap().command else {
            panic!("not the command that was given");
        };
        args
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn emulator_arguments_follow_two_dashes_unchanged() {
        let args = run_args(&["--config", "a.toml", "--", "-device", "nvme,addr=4", "--timeout"]);
        assert_eq!(args.emulator_args, ["-device", "nvme,addr=4", "--timeout"]);
        assert_eq!(args.timeout, None);
    }

    #[test]
    fn sizes_and_numbers_are_checked_before_anything_starts() {
        let refused = [["--memory", "2X"], ["--cpus", "0"], ["--timeout", "0"], ["--accel", "xen"]];
        for words in refused {
            let all = ["nexit", "run", "--config", "a"].iter().chain(&words);
            assert_eq!(Cli::try_parse_from(all).unwrap_err().exit_code(), 2, "{words:?}");
        }
        assert_eq!(run_args(&["--config", "a", "--memory", "2G"]).memory, Some(2 << 30));
    }
}
