//! A machine from Linux' `/sys` and `/proc`, the running one's or a copy's.
//!
//! Invariant: what is not there costs what would have been in it, and a sentence with what to do.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use arch::Bdf;
use capture::{Bytes, Capture, Function, IommuUnit, MemoryKind, MemoryRange, Table};

/// Where the two trees are.
#[derive(Clone, Debug)]
pub(super) struct Trees {
    pub(super) sys: PathBuf,
    pub(super) proc: PathBuf,
    /// They are this machine's.
    pub(super) live: bool,
}

/// A file's first line.
pub(super) fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_string()).filter(|line| !line.is_empty())
}

/// The entries of a folder, sorted by name.
pub(super) fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    Ok(found)
}

pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Trees {
    /// What would make an unreadable thing readable.
    fn cure(&self, as_root: bool, copy: &str) -> String {
        match (self.live, as_root) {
            (true, true) => String::from("run `nexit probe` as root"),
            (true, false) => String::from("the kernel does not offer it"),
            (false, _) => format!("copy {copy}, as root"),
        }
    }

    /// All but the CPUs.
    pub(super) fn read(&self, capture: &mut Capture) {
        self.system(capture);
        self.memory(capture);
        self.tables(capture);
        self.iommu_units(capture);
        self.functions(capture);
    }

    fn system(&self, capture: &mut Capture) {
        let dmi = self.sys.join("class/dmi/id");
        let parts = ["sys_vendor", "product_name", "bios_vendor", "bios_version", "bios_date"];
        let parts: Vec<String> = parts.iter().filter_map(|part| line(&dmi.join(part))).collect();
        if !parts.is_empty() {
            capture.system = Some(parts.join(", "));
        }
        let firmware = self.sys.join("firmware");
        if firmware.join("efi").exists() {
            capture.uefi = Some(true);
        } else if self.live && firmware.exists() {
            capture.uefi = Some(false);
        }
    }

    fn memory(&self, capture: &mut Capture) {
        let number = |path: PathBuf| {
            let text = line(&path)?;
            u64::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
        };
        let mut map = Vec::new();
        for entry in entries(&self.sys.join("firmware/memmap")).unwrap_or_default() {
            let (Some(start), Some(end)) = (number(entry.join("start")), number(entry.join("end")))
            else {
                continue;
            };
            let kind = kind(&line(&entry.join("type")).unwrap_or_default());
            map.extend(range(start, end, kind));
        }
        if map.is_empty() {
            let text = fs::read_to_string(self.proc.join("iomem")).unwrap_or_default();
            for row in text.lines().filter(|row| !row.starts_with(' ')) {
                map.extend(iomem(row));
            }
        }
        // To those without rights, all addresses read as 0.
        map.retain(|range| (range.start, range.length) != (0, 1));
        if map.is_empty() {
            let cure = self.cure(true, "/sys/firmware/memmap or /proc/iomem");
            capture.missing.push(format!(
                "the memory map: neither firmware/memmap nor iomem has addresses; {cure}"
            ));
        }
        map.sort_by_key(|range| range.start);
        capture.memory = map;
    }

    fn tables(&self, capture: &mut Capture) {
        let folder = self.sys.join("firmware/acpi/tables");
        let mut problem = None;
        let mut some = false;
        match entries(&folder) {
            Err(error) => problem = Some(error.kind()),
            Ok(files) => {
                for file in files.iter().filter(|file| file.is_file()) {
                    some = true;
                    match fs::read(file) {
                        Ok(bytes) => add_table(capture, bytes, &name(file)),
                        Err(error) => problem = Some(error.kind()),
                    }
                }
            }
        }
        let what = match problem {
            None if some => return,
            None => String::from("the folder is empty"),
            Some(ErrorKind::NotFound) => String::from("there is no such folder"),
            Some(ErrorKind::PermissionDenied) => String::from("they are root's"),
            Some(other) => other.to_string(),
        };
        let denied = problem == Some(ErrorKind::PermissionDenied);
        let cure = self.cure(denied, "/sys/firmware/acpi/tables");
        capture.missing.push(format!(
            "the firmware's ACPI tables (/sys/firmware/acpi/tables: {what}): CPUs, IOMMU and the windows \
             to PCI are not known; {cure}"
        ));
    }

    fn iommu_units(&self, capture: &mut Capture) {
        for unit in entries(&self.sys.join("class/iommu")).unwrap_or_default() {
            let word = |file: &str| {
                u64::from_str_radix(&line(&unit.join("intel-iommu").join(file))?, 16).ok()
            };
            if let (Some(address), Some(capability), Some(extended)) =
                (word("address"), word("cap"), word("ecap"))
            {
                capture.iommu_units.push(IommuUnit { address, capability, extended });
            }
        }
    }

    fn functions(&self, capture: &mut Capture) {
        let folder = self.sys.join("bus/pci/devices");
        let devices = match entries(&folder) {
            Ok(devices) => devices,
            Err(error) => {
                let cure = self.cure(false, "/sys/bus/pci/devices with what its links lead to");
                capture
                    .missing
                    .push(format!("the PCI functions: {}: {error}; {cure}", folder.display()));
                return;
            }
        };
        let (mut short, mut unreadable, mut virtual_functions) = (0, 0, 0);
        for device in &devices {
            let Ok(at) = name(device).parse::<Bdf>() else { continue };
            if device.join("physfn").exists() {
                virtual_functions += 1;
                continue;
            }
            match fs::read(device.join("config")) {
                Ok(config) if config.len() >= 64 => {
                    short += usize::from(config.len() < 256);
                    capture.functions.push(function(device, at, config));
                }
                _ => unreadable += 1,
            }
        }
        let cure = self.cure(true, "/sys/bus/pci/devices with `cp -rL`");
        if short > 0 {
            capture.missing.push(format!(
                "configuration space behind its first 64 bytes, of {short} PCI functions: capabilities, \
                 groups and resets are not known; {cure}"
            ));
        }
        if unreadable > 0 {
            capture.missing.push(format!(
                "{unreadable} PCI functions: their file `config` cannot be read; {cure}"
            ));
        }
        if virtual_functions > 0 {
            capture.missing.push(format!(
                "{virtual_functions} virtual functions (SR-IOV) are left out: they are gone after a \
                 reset, and Nexit does not make any"
            ));
        }
    }
}

/// Adds a table, unless it is a licence's key.
pub(super) fn add_table(capture: &mut Capture, bytes: Vec<u8>, name: &str) {
    let length = arch::bytes::u32_at(&bytes, 4).map_or(0, |length| length as usize);
    if [b"MSDM", b"SLIC"].iter().any(|it| bytes.starts_with(*it)) {
        capture.missing.push(format!("the table {name}: it holds a licence's key and is left out"));
        return;
    }
    if length < 36 || bytes.len() < length {
        capture.missing.push(format!(
            "the table {name}: it has {} bytes and claims {length}; copy it again",
            bytes.len()
        ));
        return;
    }
    capture.tables.push(Table::new(None, bytes));
}

fn function(device: &Path, at: Bdf, config: Vec<u8>) -> Function {
    let link = |file: &str| Some(name(&fs::read_link(device.join(file)).ok()?));
    let uevent = fs::read_to_string(device.join("uevent")).unwrap_or_default();
    let driver = uevent.lines().find_map(|line| line.strip_prefix("DRIVER=")).map(String::from);
    let number = |file: &str| line(&device.join(file))?.parse().ok();
    Function {
        at,
        name: None,
        driver: driver.or_else(|| link("driver")),
        iommu_group: link("iommu_group").and_then(|group| group.parse().ok()),
        numa: number("numa_node"),
        bar_sizes: sizes(&fs::read_to_string(device.join("resource")).unwrap_or_default()),
        config: Bytes(config),
    }
}

/// From the file `resource`: first and last address and flags, a line for each BAR and one for the ROM.
fn sizes(resource: &str) -> Vec<Option<u64>> {
    let size = |line: &str| {
        let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
        let numbers: Option<Vec<u64>> = line.split_whitespace().map(number).collect();
        match numbers.as_deref() {
            Some([0, 0, _]) => Some(0),
            Some([start, end, _]) => end.checked_sub(*start)?.checked_add(1),
            _ => None,
        }
    };
    resource.lines().take(7).map(size).collect()
}

fn range(start: u64, end: u64, kind: MemoryKind) -> Option<MemoryRange> {
    let length = end.checked_sub(start)?.checked_add(1)?;
    Some(MemoryRange { start, length, kind })
}

/// `00100000-bffdafff : System RAM`; what is no memory is left out.
fn iomem(row: &str) -> Option<MemoryRange> {
    let (addresses, what) = row.split_once(" : ")?;
    let (start, end) = addresses.trim().split_once('-')?;
    let number = |word: &str| u64::from_str_radix(word, 16).ok();
    let is_memory = what.starts_with("System RAM")
        || what.eq_ignore_ascii_case("Reserved")
        || ["ACPI", "Persistent", "Unusable"].iter().any(|it| what.starts_with(it));
    range(number(start)?, number(end)?, kind(what)).filter(|_| is_memory)
}

/// In Linux' words.
fn kind(words: &str) -> MemoryKind {
    match words {
        "System RAM" => MemoryKind::Usable,
        "ACPI Tables" => MemoryKind::AcpiReclaimable,
        "ACPI Non-volatile Storage" => MemoryKind::AcpiNvs,
        "Unusable memory" => MemoryKind::Defective,
        _ if words.starts_with("Persistent Memory") => MemoryKind::Persistent,
        _ => MemoryKind::Reserved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_resources() {
        let text = "0x00000000febd0000 0x00000000febd3fff 0x0000000000140204\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
                    what\n";
        assert_eq!(sizes(text), [Some(0x4000), Some(0), Some(0x20), None]);
        assert!(sizes("").is_empty());
    }

    #[test]
    fn a_memory_map_without_rights_is_none() {
        let row = |row| iomem(row).map(|it| (it.start, it.length, it.kind));
        let ram = row("00100000-3fffffff : System RAM");
        assert_eq!(ram, Some((0x10_0000, 0x3ff0_0000, MemoryKind::Usable)));
        let zeroes = row("00000000-00000000 : System RAM");
        assert_eq!(zeroes, Some((0, 1, MemoryKind::Usable)), "to be left out");
        assert_eq!(row("fec00000-fec003ff : IOAPIC 0"), None);
        assert_eq!(row("  00100000-3fffffff : System RAM").map(|it| it.0), Some(0x10_0000));
    }
}
