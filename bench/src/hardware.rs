//! The same guest and the same work on a machine that is no emulator: images to boot there, and what their
//! serial lines said. The guest's programs count themselves, by the TSC.

use std::fs;
use std::path::Path;

use arch::Bdf;
use nexit::failure::{Failure, OrFailed, Result};
use nexit::tool::Tool;

use crate::bochs::END;
use crate::cli::{ImageArgs, ReadArgs};
use crate::images::{self, Images};
use crate::mode::{GUEST_MEMORY, KERNEL_WORDS, Mode, SAME_CLOCK, absolute};
use crate::results::{self, Results};
use crate::{reading, run};

/// What asks nothing of a network, with a disk and without.
const WITH_DISK: &str = "nvme,timer,ipi,process,idle";
const WITHOUT: &str = "timer,ipi,process,idle";

/// `nexit-bench image`.
pub(crate) fn image(args: &ImageArgs) -> Result<()> {
    if args.mode == Mode::Kvm {
        let text = "--mode kvm: there is no image of this mode; bare, exitless, exiting or posted";
        return Err(Failure::Usage(text.into()));
    }
    fs::create_dir_all(&args.folder).or_failed("create", &args.folder)?;
    let images = images::build(&args.folder, &args.programs, false)?;
    let words = words(args);
    if args.mode == Mode::Bare {
        bare(&images, &menu(&words), &args.folder.join("image"), &args.output)?;
    } else {
        let config = args.folder.join(format!("image-{}.toml", args.mode.name()));
        let [kernel, initrd] = [absolute(&images.kernel)?, absolute(&images.initrd)?];
        let text = toml(args, &kernel, &initrd, &words);
        fs::write(&config, text).or_failed("write", &config)?;
        let program = std::env::current_exe().unwrap_or_default().with_file_name("nexit");
        let tool = Tool::new(&program.to_string_lossy()).args(["image", "--config"]).arg(&config);
        tool.arg("--output").arg(&args.output).run()?;
    }
    println!(
        "nexit-bench: wrote {}: boot it and keep what COM1 says (115,200 baud, 8N1) up to `{END}`, for \
         `nexit-bench read {}=FILE`",
        args.output.display(),
        args.mode.name()
    );
    Ok(())
}

/// The words of the guest's kernel.
fn words(args: &ImageArgs) -> String {
    let usual = if args.devices.is_empty() { WITHOUT } else { WITH_DISK };
    let works = if args.works.is_empty() { usual.to_owned() } else { args.works.join(",") };
    let words = format!("{KERNEL_WORDS}{SAME_CLOCK} busy=1 works={works} n={}", args.scale);
    match (args.mode, args.devices.first()) {
        // The first of the machine's CPUs and of its memory, as the guest has, and no DMA remapping.
        (Mode::Bare, disk) => {
            let disk = disk.map_or_else(String::new, |function| format!(" disk=0000:{function}"));
            format!("{words} maxcpus={} mem={GUEST_MEMORY} intel_iommu=off{disk}", args.cpus)
        }
        // In a guest a function may have another number.
        _ => format!("{words} disk=any"),
    }
}

fn toml(args: &ImageArgs, kernel: &Path, initrd: &Path, words: &str) -> String {
    let cpus: Vec<u32> = (0..args.cpus).collect();
    let devices: Vec<String> = args.devices.iter().map(Bdf::to_string).collect();
    format!(
        "[[guest]]\nname = \"guest\"\ncpus = {cpus:?}\nmemory = \"{GUEST_MEMORY}\"\nkernel = \"{}\"\n\
         initrd = \"{}\"\ndevices = {devices:?}\ncmdline = \"{words}\"\ninterrupts = \"{}\"\n\
         on_reboot = \"stop\"\n",
        kernel.display(),
        initrd.display(),
        args.mode.name()
    )
}

/// GRUB's menu for Linux on the machine itself. With UEFI the firmware sees to the serial line.
fn menu(words: &str) -> String {
    format!(
        "if [ \"$grub_platform\" = pc ]; then\nserial --unit=0 --speed=115200\n\
         terminal_output --append serial\nfi\n\
         linux /boot/vmlinuz {words}\ninitrd /boot/initrd\nboot\n"
    )
}

fn bare(images: &Images, menu: &str, folder: &Path, output: &Path) -> Result<()> {
    let grub = folder.join("boot/grub");
    fs::create_dir_all(&grub).or_failed("create", &grub)?;
    for (name, from) in [("boot/vmlinuz", &images.kernel), ("boot/initrd", &images.initrd)] {
        fs::copy(from, folder.join(name)).or_failed("copy", from)?;
    }
    let file = grub.join("grub.cfg");
    fs::write(&file, menu).or_failed("write", &file)?;
    Tool::new("grub-mkrescue").arg("-o").arg(output).arg(folder).run()
}

/// `nexit-bench read`.
pub(crate) fn read(args: &ReadArgs) -> Result<()> {
    let mut results = Results { machine: Default::default(), ..results::about("") };
    let mut runs = Vec::new();
    for (mode, path) in &args.boots {
        let text = fs::read(path).or_failed("read", path)?;
        let console = String::from_utf8_lossy(&text).replace('\r', "");
        results.add_facts(*mode, &console);
        let name = format!("{}, {}", mode.name(), path.display());
        if !console.contains(END) {
            results.notes.push(format!("{name}: the guest did not come to its end"));
        }
        let notes = run::take(*mode, reading::ticks(&console), &mut runs);
        results.notes.extend(notes.into_iter().map(|note| format!("{name}: {note}")));
    }
    let from = "serial lines; revision and date are those of reading";
    results.machine.insert("emulator".to_owned(), from.to_owned());
    results.figures = results::aggregate(&runs);
    if results.figures.is_empty() {
        let text = "there is no work in these files that the guest of `nexit-bench image` measured";
        return Err(Failure::Failed(text.into()));
    }
    run::finish(&mut results, &args.folders)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(words: &str) -> ImageArgs {
        let all = format!("nexit-bench image --output a.iso {words}");
        let cli = Cli::try_parse_from(all.split_whitespace()).unwrap();
        let Command::Image(args) = cli.command else { panic!("not the command that was given") };
        args
    }

    #[test]
    fn the_bare_machine_has_what_the_guest_has_and_reads_from_the_same_disk() {
        let bare = words(&args("--mode bare --device 03:00.0 --cpus 3"));
        for word in ["maxcpus=3", "mem=512M", "disk=0000:03:00.0", "busy=1", "works=nvme,timer"] {
            assert!(bare.contains(word), "{word}: {bare}");
        }
        let guest = args("--mode exitless --device 03:00.0 --device 0000:04:00.1");
        let text = toml(&guest, Path::new("/k"), Path::new("/i"), &words(&guest));
        for line in
            ["cpus = [0, 1]", "devices = [\"03:00.0\", \"04:00.1\"]", "interrupts = \"exitless\""]
        {
            assert!(text.contains(&format!("{line}\n")), "{line}: {text}");
        }
        assert!(text.contains(" disk=any\"") && !text.contains("mem="), "{text}");
    }

    #[test]
    fn without_a_device_there_is_nothing_to_read_from() {
        assert!(words(&args("--mode posted")).contains("works=timer,ipi,process,idle n=1000"));
        assert!(
            words(&args("--mode bare --works process --scale 500")).contains("works=process n=500")
        );
    }
}
