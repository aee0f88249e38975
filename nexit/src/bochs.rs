//! The configuration file of Bochs. Pure: a machine in, text out.
//!
//! Bochs by itself has VT-x and no IOMMU, no MSI. The plugin of `tests/machines`, which the line `vtd:` loads,
//! gives it a VT-d unit and NVMe controllers. The CD-ROM that it boots from is the master of the second IDE
//! channel, so that the first stays free for the user's disk.

use std::net::SocketAddr;
use std::path::Path;

use crate::cli::Iommu;
use crate::machine::Machine;
use crate::size;

/// Bochs refuses to take more of this host's memory than this, in MiB. The rest of a larger machine's memory lies
/// in a file, and only as far as it is used.
const MAX_HOST_MEMORY: u64 = 2048;
/// The guests' memory together, in bytes. All of it is used, and of what a machine uses beyond [`MAX_HOST_MEMORY`]
/// Bochs 2.7 and 3.0 lose some: while the RAM of a guest of 2304 MiB was cleared, the hypervisor's stack became zero.
pub(crate) const MAX_GUEST_MEMORY: u64 = (MAX_HOST_MEMORY - 256) << 20;

/// Instructions per virtual second.
pub const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;

/// The configuration of `machine`, which boots `iso`, connects its serial line to `serial`, and carries out
/// `ips` instructions in a virtual second.
pub fn configuration(
    machine: &Machine,
    model: &str,
    ips: u32,
    iso: &Path,
    serial: SocketAddr,
) -> String {
    let mebibytes = size::mebibytes(machine.memory);
    let cpus = machine.cpus;
    // Virtual time is instructions: the clock knows nothing of the host's time (`sync=none`), so a
    // run is the same every time. A triple fault stops the run and does not restart it.
    let mut lines = vec![
        "config_interface: textconfig".to_owned(),
        "display_library: rfb, options=\"timeout=0\"".to_owned(),
        "romimage: file=/usr/share/bochs/BIOS-bochs-latest".to_owned(),
        // In Bochs' VBE modes, which the image asks GRUB for, Debian's GRUB 2.06 destroys its own heap ("free magic is
        // broken"): a card without them.
        "vga: extension=none".to_owned(),
        "vgaromimage: file=/usr/share/vgabios/vgabios.bin".to_owned(),
        format!("cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault=0"),
        format!("memory: guest={mebibytes}, host={}", mebibytes.min(MAX_HOST_MEMORY)),
        "clock: sync=none, time0=946684800".to_owned(),
        "pci: enabled=1, chipset=i440fx".to_owned(),
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14".to_owned(),
        "ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15".to_owned(),
        format!("ata1-master: type=cdrom, path=\"{}\", status=inserted", iso.display()),
        "boot: cdrom".to_owned(),
        format!("com1: enabled=1, mode=socket-client, dev={serial}"),
        "panic: action=fatal".to_owned(),
        "error: action=report".to_owned(),
    ];
    if machine.iommu == Iommu::VtD {
        lines.push("vtd: unit=1".to_owned());
    }
    lines.extend(machine.extra.iter().cloned());
    lines.join("\n") + "\n"
}

/// The lock files of the disk images that `lines` name. A run that was killed leaves them, and the
/// next one would end at once.
pub(crate) fn lock_files(lines: &[String]) -> Vec<String> {
    let paths = lines.iter().filter_map(|line| {
        let (_, rest) = line.split_once("path=")?;
        let path = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next()?,
            None => rest.split(',').next()?.trim(),
        };
        (!path.is_empty()).then(|| format!("{path}.lock"))
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::cli::Accel;
    use crate::machine::Start;

    fn text(extra: &[&str]) -> String {
        with_memory(512 << 20, extra)
    }

    fn with_memory(memory: u64, extra: &[&str]) -> String {
        let machine = Machine {
            cpus: 1,
            memory,
            accel: Accel::Tcg,
            iommu: Iommu::VtD,
            start: Start::Bios { iso: PathBuf::from("/t/nexit.iso") },
            extra: extra.iter().map(|line| (*line).to_owned()).collect(),
        };
        let model = "corei7_haswell_4770";
        let (iso, serial) = (Path::new("/t/nexit.iso"), ([127, 0, 0, 1], 7).into());
        configuration(&machine, model, INSTRUCTIONS_PER_SECOND, iso, serial)
    }

    #[test]
    fn the_first_ide_channel_is_left_to_the_user() {
        let disk = "ata0-master: type=disk, path=disk.img";
        let text = text(&[disk]);
        assert!(text.contains("ata1-master: type=cdrom, path=\"/t/nexit.iso\", status=inserted\n"));
        assert_eq!(text.lines().filter(|line| line.starts_with("ata0-master")).count(), 1);
        assert_eq!(text.lines().last(), Some(disk));
    }

    #[test]
    fn the_unit_is_there_before_the_user_says_what_is_behind_it() {
        let disk = "vtd: nvme=\"4:disk.img\"";
        assert!(text(&[disk]).ends_with(&format!("\nvtd: unit=1\n{disk}\n")));
    }

    #[test]
    fn time_is_counted_in_instructions_and_memory_in_mebibytes() {
        let text = text(&[]);
        assert!(text.contains("cpu: model=corei7_haswell_4770, count=1, ips=50000000, "));
        assert!(text.contains("memory: guest=512, host=512\n"));
        assert!(text.contains("clock: sync=none"));
    }

    #[test]
    fn a_large_machine_takes_no_more_of_the_host_than_bochs_allows() {
        assert!(with_memory(5 << 30, &[]).contains("memory: guest=5120, host=2048\n"));
    }

    #[test]
    fn lock_files_lie_beside_the_disks() {
        let lines = [
            "ata0-master: type=disk, path=disk.img, mode=flat",
            "ata0-slave: type=disk, path=\"a b.img\"",
            "cpu: model=x",
        ];
        let lines = lines.map(str::to_owned);
        assert_eq!(lock_files(&lines), ["disk.img.lock", "a b.img.lock"]);
    }
}
