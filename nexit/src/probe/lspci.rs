//! PCI functions from the text of `lspci -xxxx -vvv`; `-xxx`, `-x` and less verbose forms say less.

use arch::Bdf;
use capture::{Bytes, Function};

/// What the text says of one function.
struct Entry {
    at: Bdf,
    name: String,
    bytes: Vec<u8>,
    /// A row did not follow the one before.
    torn: bool,
    verbose: bool,
    /// Register, address and size of what decodes.
    regions: Vec<Region>,
    rom: Option<u64>,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa: Option<u32>,
}

struct Region {
    /// Where the text has the number.
    index: Option<usize>,
    address: Option<u64>,
    size: u64,
}

/// Whether a text is one of `lspci` that has bytes in it.
pub(super) fn is_one(text: &str) -> bool {
    let mut lines = text.lines().skip_while(|line| head(line).is_none());
    lines.next().is_some() && lines.any(|line| row(line).is_some_and(|(offset, _)| offset == 0))
}

/// The functions, and what is wrong with the text.
pub(super) fn read(text: &str) -> (Vec<Function>, Vec<String>) {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines() {
        if let Some((at, name)) = head(line) {
            entries.push(Entry::new(at, name));
        } else if let Some(entry) = entries.last_mut() {
            entry.line(line);
        }
    }
    let (mut functions, mut wrong) = (Vec::new(), Vec::new());
    let mut without_sizes = 0;
    for entry in entries {
        without_sizes += usize::from(!entry.verbose);
        functions.extend(entry.function(&mut wrong));
    }
    if without_sizes > 0 {
        wrong.push(format!(
            "the sizes of the BARs of {without_sizes} functions: lspci's text has them with -vvv only"
        ));
    }
    (functions, wrong)
}

impl Entry {
    fn new(at: Bdf, name: &str) -> Self {
        Self {
            at,
            name: name.to_string(),
            bytes: Vec::new(),
            torn: false,
            verbose: false,
            regions: Vec::new(),
            rom: None,
            driver: None,
            iommu_group: None,
            numa: None,
        }
    }

    fn line(&mut self, line: &str) {
        if let Some((offset, row)) = row(line) {
            if offset == self.bytes.len() {
                self.bytes.extend(row);
            } else {
                self.torn = true;
            }
            return;
        }
        let text = line.trim();
        self.verbose |= !text.is_empty() && line.starts_with(['\t', ' ']);
        let after = |words: &str| text.strip_prefix(words).map(str::trim);
        if let Some(driver) = after("Kernel driver in use:") {
            self.driver = Some(driver.to_string());
        } else if let Some(group) = after("IOMMU group:") {
            self.iommu_group = group.parse().ok();
        } else if let Some(node) = after("NUMA node:") {
            self.numa = node.split(',').next().and_then(|it| it.parse().ok());
        } else if text.starts_with("Expansion ROM at") {
            self.rom = size(text);
        } else if let Some(size) = size(text) {
            self.regions.extend(region(text, size));
        }
    }

    /// Sizes by register.
    fn sizes(&self) -> Vec<Option<u64>> {
        if !self.verbose {
            return Vec::new();
        }
        let mut sizes = vec![Some(0); 7];
        for region in &self.regions {
            let by_address = || {
                let base = region.address?;
                (0..6).find(|index| {
                    let value = arch::bytes::u32_at(&self.bytes, 16 + 4 * index).unwrap_or(0);
                    let flags = if value & 1 != 0 { 3 } else { 0xf };
                    value & !flags == base as u32 && value != 0
                })
            };
            if let Some(size) = region.index.or_else(by_address).and_then(|it| sizes.get_mut(it)) {
                *size = Some(region.size);
            }
        }
        if let Some(rom) = sizes.last_mut() {
            *rom = self.rom.or(Some(0));
        }
        sizes
    }

    fn function(mut self, wrong: &mut Vec<String>) -> Option<Function> {
        let (at, length) = (self.at, self.bytes.len());
        if length < 64 {
            wrong.push(format!(
                "{at}: lspci's text has {length} bytes of its configuration space: it is left out; make \
                 the text again, as root, with -xxxx"
            ));
            return None;
        }
        let whole = [64, 128, 256, 4096].into_iter().rfind(|it| *it <= length).unwrap_or(64);
        if self.torn || whole != length {
            wrong.push(format!(
                "{at}: lspci's text breaks off after {length} bytes of its configuration space: the \
                 first {whole} are used; make the text again"
            ));
        }
        self.bytes.truncate(whole);
        let bar_sizes = self.sizes();
        let Self { name, driver, iommu_group, numa, bytes, .. } = self;
        let (name, config) = (Some(name), Bytes(bytes));
        Some(Function { at, name, driver, iommu_group, numa, bar_sizes, config })
    }
}

/// `0000:00:1f.2 SATA controller: …`
fn head(line: &str) -> Option<(Bdf, &str)> {
    let (at, name) = line.split_once(' ')?;
    Some((at.parse().ok()?, name))
}

/// `10: 00 00 00 f0 …`
fn row(line: &str) -> Option<(usize, Vec<u8>)> {
    let (offset, rest) = line.split_once(": ")?;
    let is_offset = (2..=3).contains(&offset.len());
    let offset = usize::from_str_radix(offset, 16).ok().filter(|_| is_offset)?;
    let byte = |word: &str| u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2);
    let row: Vec<u8> = rest.split_whitespace().map_while(byte).collect();
    (!row.is_empty()).then_some((offset, row))
}

/// `[size=16K]`
fn size(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("[size=")?;
    let (size, _) = rest.split_once(']')?;
    let digits = size.trim_end_matches(|it: char| !it.is_ascii_digit());
    let shift = match size.get(digits.len()..)? {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `Region 0: Memory at febd0000 (64-bit, …`, or without the number.
fn region(text: &str, size: u64) -> Option<Region> {
    let (index, rest) = match text.strip_prefix("Region ").and_then(|rest| rest.split_once(": ")) {
        Some((index, rest)) => (index.parse().ok(), rest),
        None => (None, text),
    };
    let address = ["Memory at ", "I/O ports at "].iter().find_map(|it| rest.strip_prefix(it))?;
    let address = u64::from_str_radix(address.split(' ').next()?, 16).ok();
    Some(Region { index, address, size })
}
