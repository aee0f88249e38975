//! A machine from the log of `probe = true` (`kernel/src/probe.rs` writes it, `banner::Lines` its lines).
//!
//! Anything else may stand between the lines. A line that is garbled or missing costs what was in it, and
//! a sentence.

use std::collections::BTreeMap;

use arch::Bdf;
use capture::bytes::unhex;
use capture::{Bytes, Capture, Cpu, CpuKind, Function, IommuUnit, MemoryKind, MemoryRange, Table};

/// What the lines say, line by line.
#[derive(Default)]
struct Reader {
    /// Text of each whole line by its number.
    lines: BTreeMap<u32, String>,
    garbled: usize,
    end: Option<u32>,
    before: Option<Box<Self>>,
}

/// Reads the last whole probe in a log; a sentence where there is none.
pub(super) fn read(log: &str, source: &str) -> Result<Capture, String> {
    let mut reader = Reader::default();
    for line in log.split(['\n', '\r']) {
        reader.line(line);
    }
    // The machine may have been started again: what ended counts.
    let whole = match reader.before.take() {
        Some(before) if reader.end.is_none() && before.end.is_some() => *before,
        _ => reader,
    };
    whole.capture(source)
}

impl Reader {
    fn line(&mut self, line: &str) {
        // The mark may stand in the text of others.
        let Some((number, text)) = line.match_indices("probe ").find_map(|(at, _)| {
            let (number, rest) = line.get(at + 6..)?.split_once(' ')?;
            let (sum, text) = rest.split_once(": ")?;
            let number = number.parse::<u32>().ok()?;
            let is_sum = sum.len() == 4 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_sum.then_some((number, (sum, text)))
        }) else {
            return;
        };
        let (sum, text) = text;
        let text = text.trim_end();
        if u16::from_str_radix(sum, 16) != Ok(banner::sum(text)) {
            self.garbled += 1;
            return;
        }
        if number == 1 && !self.lines.is_empty() {
            let mut before = std::mem::take(self);
            before.before = None;
            self.before = Some(Box::new(before));
        }
        if text == "end" {
            self.end = Some(number);
        }
        self.lines.insert(number, text.to_string());
    }

    fn capture(self, source: &str) -> Result<Capture, String> {
        if self.lines.is_empty() {
            return Err(match self.garbled {
                0 => String::from(
                    "there is no line of a probe in it: boot the image with `probe = true` in \
                     nexit.toml, and take the log from the serial line",
                ),
                count => format!(
                    "all {count} lines of the probe in it are garbled: take the log again, as bytes, \
                     from a line at 115200 baud, 8N1"
                ),
            });
        }
        let mut capture = Capture::new(source);
        let mut parts = Parts::default();
        let mut unknown = 0;
        for text in self.lines.values() {
            let words: Vec<&str> = text.split(' ').collect();
            if parts.line(&mut capture, &words).is_none() {
                unknown += 1;
            }
        }
        self.say_what_is_missing(&mut capture, unknown);
        parts.finish(&mut capture);
        Ok(capture)
    }

    fn say_what_is_missing(&self, capture: &mut Capture, unknown: usize) {
        let last = self.lines.keys().next_back().copied().unwrap_or(0);
        let missing: Vec<u32> =
            (1..=last).filter(|number| !self.lines.contains_key(number)).collect();
        if let Some(first) = missing.first() {
            capture.missing.push(format!(
                "{} of {last} lines of the log are garbled or lost, the first is line {first}: what was \
                 in them is missing; take the log again",
                missing.len()
            ));
        }
        if self.end.is_none() {
            capture.missing.push(format!(
                "the log is cut: its last line is {last}, and no line says that this is the end; what \
                 comes behind is missing; take the log again"
            ));
        }
        if unknown > 0 {
            capture.missing.push(format!(
                "{unknown} lines of the log say what this version of nexit does not know: use the \
                 version that made the image"
            ));
        }
    }
}

/// What is put together of many lines.
#[derive(Default)]
struct Parts {
    kind: CpuKind,
    /// Length and bytes by address; `None` where the length is not known.
    tables: BTreeMap<u64, (Option<usize>, Vec<u8>)>,
    functions: BTreeMap<Bdf, Pci>,
    silent: Vec<String>,
    left_out: Vec<String>,
    /// Functions whose extended configuration space was left out.
    short: usize,
}

#[derive(Default)]
struct Pci {
    length: Option<usize>,
    sizes: Vec<Option<u64>>,
    bytes: Vec<u8>,
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

/// No table and no configuration space is longer.
const MAX_BYTES: usize = 16 << 20;

/// Puts bytes at an offset.
fn place(bytes: &mut Vec<u8>, offset: &str, digits: &str) -> Option<()> {
    let offset = usize::try_from(hex(offset)?).ok()?;
    let row = unhex(digits)?;
    let end = offset.checked_add(row.len()).filter(|end| *end <= MAX_BYTES)?;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes.get_mut(offset..end)?.copy_from_slice(&row);
    Some(())
}

impl Parts {
    /// Takes a line; `None` where it is none that this version knows.
    fn line(&mut self, capture: &mut Capture, words: &[&str]) -> Option<()> {
        match words {
            ["begin", "1", version] => {
                capture.source = format!("{} (Nexit {version})", capture.source);
            }
            ["uefi", uefi] => capture.uefi = Some(*uefi == "1"),
            ["cpu", id, started] => {
                let apic_id = u32::try_from(hex(id)?).ok()?;
                if *started == "0" {
                    self.silent.push(apic_id.to_string());
                }
                capture.cpus.push(Cpu { apic_id, kind: 0, package: None, core: None, numa: None });
            }
            ["microcode", revision] => self.kind.microcode = Some(hex(revision)?),
            ["cpuid", leaf, subleaf, registers @ ..] => {
                let word = |word: &str| u32::try_from(hex(word)?).ok();
                let registers: Option<Vec<u32>> = registers.iter().map(|it| word(it)).collect();
                let key = (word(leaf)?, word(subleaf)?);
                self.kind.cpuid.0.insert(key, registers?.try_into().ok()?);
            }
            ["msr", number, value] => {
                self.kind.msrs.0.insert(u32::try_from(hex(number)?).ok()?, hex(value)?);
            }
            ["unit", address, capability, extended] => {
                let (address, capability) = (hex(address)?, hex(capability)?);
                let extended = hex(extended)?;
                capture.iommu_units.push(IommuUnit { address, capability, extended });
            }
            ["memory", start, length, kind] => {
                let kind = memory_kind(kind)?;
                let (start, length) = (hex(start)?, hex(length)?);
                capture.memory.push(MemoryRange { start, length, kind });
            }
            ["table", address, length, signature, rest @ ..] => {
                let at = hex(address)?;
                let length = usize::try_from(hex(length)?).ok().filter(|it| *it <= MAX_BYTES)?;
                if rest.is_empty() {
                    self.tables.entry(at).or_default().0 = Some(length);
                } else {
                    self.left_out.push(format!("{signature} ({length} bytes)"));
                }
            }
            ["t", address, offset, digits] => {
                place(&mut self.tables.entry(hex(address)?).or_default().1, offset, digits)?;
            }
            ["pci", at, length, sizes @ ..] => {
                let function = self.functions.entry(at.parse().ok()?).or_default();
                let length = usize::try_from(hex(length)?).ok();
                function.length = Some(length.filter(|it| *it <= 4096)?);
                if let Some(sizes) = sizes.iter().map(|it| hex(it)).collect::<Option<Vec<u64>>>() {
                    function.sizes = sizes.into_iter().map(Some).collect();
                }
            }
            ["c", at, offset, digits] => {
                let function = self.functions.entry(at.parse().ok()?).or_default();
                place(&mut function.bytes, offset, digits)?;
            }
            ["short", _] => self.short += 1,
            ["end"] => {}
            _ => return None,
        }
        Some(())
    }

    fn finish(self, capture: &mut Capture) {
        let hybrid = self.kind.cpuid(7, 0).edx >> 15 & 1 != 0;
        capture.cpu_kinds.push(self.kind);
        if hybrid {
            capture.missing.push(String::from(
                "the CPUs are of several kinds, and only the boot processor was asked",
            ));
        }
        if !self.silent.is_empty() {
            let list = self.silent.join(", ");
            capture.missing.push(format!("CPUs that did not start (APIC identifiers): {list}"));
        }
        if !self.left_out.is_empty() {
            capture.missing.push(format!(
                "tables that Nexit left out of the log: {}; `acpidump` on a Linux there has them",
                self.left_out.join(", ")
            ));
        }
        if self.short > 0 {
            capture.missing.push(format!(
                "extended configuration space (ACS, SR-IOV) of {} PCI functions: Nexit left it out of a \
                 log that got long; `nexit probe` on a Linux there has it",
                self.short
            ));
        }
        for (address, (length, mut bytes)) in self.tables {
            // Without the line that says it, the table itself does.
            let own = arch::bytes::u32_at(&bytes, 4).map(|it| it as usize);
            let length = length.or(own.filter(|it| (bytes.len()..=MAX_BYTES).contains(it)));
            bytes.resize(length.unwrap_or(bytes.len()).max(bytes.len()), 0);
            capture.tables.push(Table::new(Some(address), bytes));
        }
        for (at, mut pci) in self.functions {
            let least = if pci.bytes.len() > 256 { 4096 } else { 256 };
            let length = pci.length.unwrap_or(least).max(pci.bytes.len());
            pci.bytes.resize(length, 0);
            capture.functions.push(Function {
                at,
                name: None,
                driver: None,
                iommu_group: None,
                numa: None,
                bar_sizes: pci.sizes,
                config: Bytes(pci.bytes),
            });
        }
    }
}

fn memory_kind(word: &str) -> Option<MemoryKind> {
    Some(match word {
        "usable" => MemoryKind::Usable,
        "acpi-reclaimable" => MemoryKind::AcpiReclaimable,
        "acpi-nvs" => MemoryKind::AcpiNvs,
        "persistent" => MemoryKind::Persistent,
        "reserved" => MemoryKind::Reserved,
        "mmio" => MemoryKind::Mmio,
        "defective" => MemoryKind::Defective,
        _ => return None,
    })
}
