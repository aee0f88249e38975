//! CPUs: from `/proc/cpuinfo`, and where this machine is looked at from CPUID and `/dev/cpu/*/msr` of each.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use arch::machine::CpuidResult;
use capture::{Capture, Cpu, CpuKind};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::sys::{Trees, line};

/// The MSRs that say what VMX can do: feature control, and the capabilities.
const VMX_MSRS: std::ops::RangeInclusive<u32> = 0x480..=0x492;
const FEATURE_CONTROL: u32 = 0x3a;
const VM_CR: u32 = 0xc001_0114;

/// What `/proc/cpuinfo` says of a CPU.
type Info<'a> = BTreeMap<&'a str, &'a str>;

/// Reads them.
pub(super) fn read(trees: &Trees, capture: &mut Capture) {
    let text = fs::read_to_string(trees.proc.join("cpuinfo")).unwrap_or_default();
    let infos: Vec<Info<'_>> = text.split("\n\n").map(info).filter(|it| !it.is_empty()).collect();
    let mut no_msrs = None;
    for info in &infos {
        let number = |key: &str| info.get(key)?.parse::<u32>().ok();
        let Some(processor) = number("processor") else { continue };
        let mut kind = CpuKind::default();
        if trees.live {
            on(processor, || ask(&mut kind));
            no_msrs = msrs(processor, &mut kind).err().or(no_msrs);
        }
        let text = |key: &str| info.get(key).map(|it| (*it).to_string());
        kind.name = text("model name");
        let microcode = info.get("microcode").and_then(|it| it.strip_prefix("0x"));
        kind.microcode = microcode.and_then(|it| u64::from_str_radix(it, 16).ok());
        kind.flags =
            ["flags", "vmx flags"].iter().filter_map(|key| text(key)).collect::<Vec<_>>().join(" ");
        let same = |known: &CpuKind| general(known) == general(&kind);
        let index = capture.cpu_kinds.iter().position(same).unwrap_or(capture.cpu_kinds.len());
        if index == capture.cpu_kinds.len() {
            capture.cpu_kinds.push(kind);
        }
        let apic_id = number("apicid").unwrap_or(processor);
        let numa = numa(&trees.sys, processor);
        let (package, core) = (number("physical id"), number("core id"));
        capture.cpus.push(Cpu { apic_id, kind: index, package, core, numa });
    }
    if infos.is_empty() {
        capture.missing.push(String::from("the CPUs: there is no /proc/cpuinfo; copy it"));
    } else if !trees.live {
        capture.missing.push(String::from(
            "CPUID and the MSRs of virtualization: no copy of files has them; run `nexit probe` on the \
             machine, or boot the image there with `probe = true`",
        ));
    } else if let Some(why) = no_msrs {
        capture.missing.push(why);
    }
}

fn info(block: &str) -> Info<'_> {
    let pair = |line: &str| line.split_once(':').is_some();
    let lines = block.lines().filter(|line| pair(line));
    lines.filter_map(|line| line.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect()
}

fn numa(sys: &Path, processor: u32) -> Option<u32> {
    let nodes = super::sys::entries(&sys.join("devices/system/node")).ok()?;
    let node = |path: &Path| super::sys::name(path).strip_prefix("node")?.parse::<u32>().ok();
    let has =
        |path: &Path| line(&path.join("cpulist")).is_some_and(|list| contains(&list, processor));
    nodes.iter().find(|path| has(path)).and_then(|path| node(path))
}

/// Whether a list such as `0-3,8` names a number.
fn contains(list: &str, number: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bounds = first.parse::<u32>().and_then(|first| Ok(first..=last.parse::<u32>()?));
        bounds.is_ok_and(|bounds| bounds.contains(&number))
    })
}

/// Does `work` on a CPU, as far as the kernel lets this thread go there.
fn on(processor: u32, work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut set = CpuSet::new();
            if (processor as usize) < CpuSet::MAX_CPU {
                set.set(processor as usize);
                // Where it fails, another CPU answers, which nearly always is the same kind.
                let _ = sched_setaffinity(None, &set);
            }
            work();
        });
    });
}

/// CPUID of the CPU that runs this.
fn ask(kind: &mut CpuKind) {
    let cpuid = |leaf: u32, subleaf: u32| {
        let raw_cpuid::CpuIdResult { eax, ebx, ecx, edx } =
            raw_cpuid::native_cpuid::cpuid_count(leaf, subleaf);
        CpuidResult { eax, ebx, ecx, edx }
    };
    banner::leaves(cpuid, &mut |leaf, subleaf, CpuidResult { eax, ebx, ecx, edx }| {
        kind.cpuid.0.insert((leaf, subleaf), [eax, ebx, ecx, edx]);
    });
}

/// The MSRs; those that the CPU has not cannot be read, and stay out.
fn msrs(processor: u32, kind: &mut CpuKind) -> Result<(), String> {
    let path = format!("/dev/cpu/{processor}/msr");
    let (vmx, svm) =
        (kind.cpuid(1, 0).ecx >> 5 & 1 != 0, kind.cpuid(0x8000_0001, 0).ecx >> 2 & 1 != 0);
    if !vmx && !svm {
        return Ok(());
    }
    let file = fs::File::open(&path).map_err(|error| {
        format!(
            "the MSRs that say what virtualization can do ({path}: {error}): `modprobe msr`, and run \
             `nexit probe` as root"
        )
    })?;
    let vmx_msrs = std::iter::once(FEATURE_CONTROL).chain(VMX_MSRS).filter(|_| vmx);
    for number in vmx_msrs.chain(std::iter::once(VM_CR).filter(|_| svm)) {
        let mut value = [0; 8];
        if file.read_exact_at(&mut value, number.into()).is_ok() {
            kind.msrs.0.insert(number, u64::from_le_bytes(value));
        }
    }
    if vmx && kind.msr(0x480).is_none() {
        return Err(format!(
            "the MSRs of VT-x: {path} does not give them: another hypervisor is below, or the kernel is \
             locked down (Secure Boot)"
        ));
    }
    Ok(())
}

/// What is equal in all CPUs of a kind: without identifiers, and without what an operating system set up.
fn general(kind: &CpuKind) -> CpuKind {
    const EXTENDED_APIC_ID: u32 = 0x8000_001e;
    let mut general = kind.clone();
    general.cpuid.0.retain(|(leaf, _), _| *leaf != EXTENDED_APIC_ID);
    for ((leaf, _), [_, ebx, ecx, edx]) in &mut general.cpuid.0 {
        match leaf {
            1 => {
                *ebx &= 0x00ff_ffff;
                // OSXSAVE
                *ecx &= !(1 << 27);
            }
            0xb | 0x1f | 0x8000_0026 => *edx = 0,
            0xd => *ebx = 0,
            _ => {}
        }
    }
    general
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert!(contains("0-3,8", 2) && contains("0-3,8", 8) && contains("0", 0));
        assert!(!contains("0-3,8", 4) && !contains("", 0) && !contains("x-y", 0));
    }

    #[test]
    fn cpus_that_differ_in_their_identifier_are_one_kind() {
        let mut kind = CpuKind::default();
        kind.cpuid.0.insert((1, 0), [0x906ea, 0x0010_0800, 0x7ffa_fbff, 0xbfeb_fbff]);
        let mut other = kind.clone();
        other.cpuid.0.insert((1, 0), [0x906ea, 0x0210_0800, 0x77fa_fbff, 0xbfeb_fbff]);
        // Of the first CPU it is all zero, and then left out.
        other.cpuid.0.insert((0x8000_001e, 0), [1, 1, 0, 0]);
        assert_eq!(general(&kind), general(&other));
        other.cpuid.0.insert((0x1a, 0), [0x2000_0001, 0, 0, 0]);
        assert_ne!(general(&kind), general(&other));
    }
}
