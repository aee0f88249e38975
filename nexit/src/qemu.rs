//! QEMU's command line. Pure: a machine in, words out.
//!
//! The machine is a q35 with VT-d, a serial line, and no PCI device of its own beyond the chipset
//! (00:00.0 and 00:1f.*): slots 3 to 30 of bus 0 are the user's.

use std::path::Path;

use crate::cli::{Accel, Iommu};
use crate::failure::{Failure, Result};
use crate::machine::{Machine, Start};
use crate::size;

pub const PROGRAM: &str = "qemu-system-x86_64";

/// VT-d with interrupt remapping in x2APIC mode.
const IOMMU: &str = "intel-iommu,intremap=on,eim=on,caching-mode=off,aw-bits=48";
/// An AMD CPU: QEMU itself emulates AMD-V, not VT-x. What it lacks of the model is taken off here,
/// or it would warn of each feature on each CPU.
const TCG_CPU: &str = "EPYC-v4,+x2apic,+svm,+npt,+vgif,-fxsr-opt,-misalignsse,-osvw,-topoext,\
                       -perfctr-core,-clzero,-ibpb,-nrip-save,-xsavec,-xsaves";

/// Says in time what QEMU would not say so plainly.
///
/// # Errors
/// This host does not have `accel`.
pub fn check(accel: Accel) -> Result<()> {
    check_device(accel, Path::new("/dev/kvm"))
}

fn check_device(accel: Accel, kvm: &Path) -> Result<()> {
    if accel == Accel::Tcg || kvm.exists() {
        return Ok(());
    }
    let text = "there is none on this host: switch virtualization on in its firmware, or nested virtualization \
                where it is a guest itself, and load kvm_intel or kvm_amd; or leave --accel kvm out";
    Err(Failure::Usage(format!("--accel kvm needs {}, and {text}", kvm.display())))
}

/// All arguments.
///
/// # Errors
/// A file name that QEMU's option syntax cannot carry.
pub fn arguments(machine: &Machine) -> Result<Vec<String>> {
    let mut words = Words::default();
    words.add("-nodefaults -display none -no-reboot");
    match machine.accel {
        Accel::Tcg => {
            // `-icount` counts instructions of all CPUs in one thread.
            let icount = machine.extra.iter().any(|word| word == "-icount");
            let thread = if icount { "single" } else { "multi" };
            words.add("-machine q35").pair("-accel", format!("tcg,thread={thread}"));
            words.pair("-cpu", TCG_CPU);
        }
        Accel::Kvm => {
            // Interrupt remapping needs the I/O APIC in QEMU. A machine that may migrate has no invariant
            // TSC, nor leaf 0x40000010, which tells its frequency.
            words.add("-machine q35,kernel-irqchip=split -accel kvm -cpu host,migratable=off");
        }
    }
    words.pair("-smp", machine.cpus.to_string());
    words.pair("-m", format!("{}M", size::mebibytes(machine.memory)));
    if machine.iommu == Iommu::VtD && !brings_an_iommu(&machine.extra) {
        words.pair("-device", IOMMU);
    }
    words.add("-chardev stdio,id=console,signal=on -serial chardev:console");
    add_start(&mut words, &machine.start)?;
    words.0.extend(machine.extra.iter().cloned());
    Ok(words.0)
}

/// A machine has one IOMMU at most: one of the user's takes the place of [`IOMMU`].
fn brings_an_iommu(extra: &[String]) -> bool {
    extra.windows(2).any(|words| words[0] == "-device" && words[1].starts_with("intel-iommu"))
}

fn add_start(words: &mut Words, start: &Start) -> Result<()> {
    match start {
        Start::Kernel { image, modules } => {
            words.pair("-kernel", text(image)?);
            let names: Result<Vec<&str>> = modules.iter().map(|path| module(path)).collect();
            words.pair("-initrd", names?.join(","));
        }
        Start::Bios { iso } => add_cdrom(words, iso)?,
        Start::Uefi { iso, code, variables } => {
            let flash = |path: &Path, mode: &str| -> Result<String> {
                Ok(format!("if=pflash,format=raw,{mode}file={}", escaped(path)?))
            };
            words.pair("-drive", flash(code, "readonly=on,")?);
            words.pair("-drive", flash(variables, "")?);
            add_cdrom(words, iso)?;
        }
    }
    Ok(())
}

/// On the chipset's own AHCI controller: no further PCI function.
fn add_cdrom(words: &mut Words, iso: &Path) -> Result<()> {
    let file = escaped(iso)?;
    words.pair("-drive", format!("if=none,id=cd,media=cdrom,format=raw,readonly=on,file={file}"));
    words.add("-device ide-cd,drive=cd,bus=ide.0,bootindex=0");
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Failure::Usage(format!("{} is not UTF-8", path.display())))
}

/// A comma in an option's value is written twice.
fn escaped(path: &Path) -> Result<String> {
    Ok(text(path)?.replace(',', ",,"))
}

/// In `-initrd` a comma ends a file name and a space starts its command line.
fn module(path: &Path) -> Result<&str> {
    let name = text(path)?;
    if name.contains([',', ' ']) {
        let rename = "QEMU cannot load it: move it to a path without commas and spaces";
        return Err(Failure::Usage(format!("{name}: {rename}")));
    }
    Ok(name)
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn add(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split(' ').map(str::to_owned));
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([option.to_owned(), value.into()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn machine(start: Start) -> Machine {
        Machine {
            cpus: 2,
            memory: 1 << 30,
            accel: Accel::Tcg,
            iommu: Iommu::VtD,
            start,
            extra: Vec::new(),
        }
    }

    fn by_kernel(modules: &[&str]) -> Machine {
        let modules = modules.iter().map(PathBuf::from).collect();
        machine(Start::Kernel { image: PathBuf::from("/i/kernel"), modules })
    }

    fn line(machine: &Machine) -> String {
        arguments(machine).unwrap().join(" ")
    }

    #[test]
    fn the_whole_command_line_is_as_documented() {
        let mut machine = by_kernel(&["/t/nexit.toml", "/t/vmlinuz"]);
        machine.extra = vec!["-device".to_owned(), "nvme,addr=4".to_owned()];
        assert_eq!(
            line(&machine),
            "-nodefaults -display none -no-reboot -machine q35 -accel tcg,thread=multi \
             -cpu EPYC-v4,+x2apic,+svm,+npt,+vgif,-fxsr-opt,-misalignsse,-osvw,-topoext,\
             -perfctr-core,-clzero,-ibpb,-nrip-save,-xsavec,-xsaves -smp 2 -m 1024M \
             -device intel-iommu,intremap=on,eim=on,caching-mode=off,aw-bits=48 \
             -chardev stdio,id=console,signal=on -serial chardev:console \
             -kernel /i/kernel -initrd /t/nexit.toml,/t/vmlinuz -device nvme,addr=4"
        );
    }

    #[test]
    fn the_machine_has_one_iommu_or_none() {
        let none = Machine { iommu: Iommu::None, ..by_kernel(&[]) };
        assert!(!line(&none).contains("intel-iommu"));
        let own = ["-device", "intel-iommu,intremap=off"].map(str::to_owned).to_vec();
        let own = line(&Machine { extra: own, ..by_kernel(&[]) });
        assert_eq!(own.matches("intel-iommu").count(), 1, "{own}");
        assert!(own.ends_with("-device intel-iommu,intremap=off"), "{own}");
    }

    #[test]
    fn kvm_takes_the_hosts_cpu_and_splits_the_interrupt_chips() {
        let machine = Machine { accel: Accel::Kvm, ..by_kernel(&[]) };
        let words = "q35,kernel-irqchip=split -accel kvm -cpu host,migratable=off";
        assert!(line(&machine).contains(words));
    }

    #[test]
    fn a_host_without_kvm_is_told_so_before_anything_starts() {
        let missing = Path::new("/nowhere/kvm");
        let error = check_device(Accel::Kvm, missing).unwrap_err();
        assert_eq!(error.status(), 2);
        assert!(error.to_string().contains("needs /nowhere/kvm, and there is none"), "{error}");
        assert_eq!(check_device(Accel::Tcg, missing), Ok(()));
    }

    #[test]
    fn counting_instructions_puts_all_cpus_into_one_thread() {
        let mut machine = by_kernel(&[]);
        machine.extra = vec!["-icount".to_owned(), "shift=0".to_owned()];
        assert!(line(&machine).contains("-accel tcg,thread=single"));
    }

    #[test]
    fn module_paths_that_qemu_would_split_are_refused() {
        for path in ["/a,b/vmlinuz", "/a b/vmlinuz"] {
            let error = arguments(&by_kernel(&[path])).unwrap_err();
            assert_eq!(error.status(), 2);
            assert!(error.to_string().contains(path));
        }
    }

    #[test]
    fn booting_from_the_image_adds_no_pci_function() {
        let iso = PathBuf::from("/a,b.iso");
        let uefi = Start::Uefi {
            iso: iso.clone(),
            code: PathBuf::from("/code.fd"),
            variables: PathBuf::from("/vars.fd"),
        };
        for start in [Start::Bios { iso }, uefi] {
            let line = line(&machine(start));
            assert!(line.contains("file=/a,,b.iso -device ide-cd,drive=cd,bus=ide.0"), "{line}");
            assert_eq!(line.matches("-device").count(), 2, "the IOMMU and the drive: {line}");
        }
    }
}
