//! Small firmware tables that real machines are like, made by hand: `data/` has them in words, this
//! reads the words ([`Case`]) and makes memory with whole ACPI tables of them ([`Ram`]).
//!
//! For tests only, so what is wrong in the words is a panic. A line is one word and its numbers, all
//! hexadecimal; `#` begins a remark.
//!
//! | In any file | |
//! |---|---|
//! | `table NAME` | a new table; what follows goes into it |
//! | `hex`, `w`, `d`, `q` | bytes, words of 16, 32 and 64 bits |
//! | `zero N` | N bytes of zeroes |
//! | `len N`, `badsum` | the header's length is wrong, its checksum is |
//! | `revision N` | the header's revision |
//! | `lapic UID ID FLAGS`, `x2apic ID UID FLAGS`, `ioapic ID ADDRESS GSI`, `iso IRQ GSI FLAGS` | entries of a MADT |
//! | `mcfg BASE SEGMENT FIRST LAST` | an entry of an MCFG |
//! | `rsdprev N` | the RSDP has this revision and no XSDT |
//! | `null`, `page0 …` | a null pointer is the root table's first entry; bytes at address 0 |
//!
//! A `*.dmar` file is one table DMAR: `flags N`, `haw N`, `drhd FLAGS SEGMENT ADDRESS [SIZE]`,
//! `rmrr SEGMENT BASE LIMIT`, `andd NUMBER NAME`, `satc FLAGS SEGMENT`, `sidp SEGMENT`,
//! `scope KIND ENUMERATION BUS D.F/…` (in the structure before), `raw …` and `tail …` (bytes),
//! `bridge B:D.F SSEE` (the function leads to buses SS to EE of the machine).

#![expect(clippy::unwrap_used, reason = "words that cannot be read are a mistake in a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Length of the header that all tables begin with.
const HEADER: usize = 36;

/// The UEFI memory map of this name in `data/`: for each descriptor its first byte, its last byte and its
/// memory type. A line is `FIRST-LAST type=T …`.
///
/// # Panics
/// When there is no such file, or it has a line that cannot be read.
#[must_use]
pub fn memory_map(name: &str) -> Vec<(u64, u64, u32)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (first, last) = words.next().and_then(|range| range.split_once('-')).unwrap();
        let kind = words.next().and_then(|kind| kind.strip_prefix("type=")).unwrap();
        (number(first), number(last), kind.parse().unwrap())
    };
    read(name).lines().map(line).collect()
}

/// The file of this name in `data/`.
fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Tables in words.
#[derive(Clone, Default, Debug)]
pub struct Case {
    tables: Vec<Table>,
    /// PCI bridges.
    pub bridges: Vec<Bridge>,
    page_0: Vec<u8>,
    null_entry: bool,
    without_xsdt: bool,
}

/// A PCI bridge of the case's machine.
#[derive(Clone, Copy, Debug)]
pub struct Bridge {
    /// Bus, device and function.
    pub at: (u8, u8, u8),
    /// First and last bus behind it.
    pub buses: (u8, u8),
}

#[derive(Clone, Debug)]
struct Table {
    signature: String,
    revision: u8,
    body: Vec<u8>,
    /// Where in `body` the last structure and its length field are.
    structure: Option<(usize, usize)>,
    length: Option<u32>,
    bad_sum: bool,
}

impl Case {
    /// The file of this name in `data/`.
    ///
    /// # Panics
    /// When there is no such file, or it has a line that cannot be read.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let text = read(name);
        if name.ends_with(".dmar") {
            Self::parse(&format!("table DMAR\nhex 26 0\nzero a\n{text}"))
        } else {
            Self::parse(&text)
        }
    }

    /// These words.
    ///
    /// # Panics
    /// When a line cannot be read.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut case = Self::default();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or("").trim();
            let mut words = line.split_whitespace();
            let Some(word) = words.next() else { continue };
            let rest: Vec<&str> = words.collect();
            assert!(case.line(word, &rest) || word.starts_with('?'), "cannot read: {line}");
        }
        case
    }

    /// The tables' names, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().map(|table| table.signature.as_str())
    }

    /// All bytes of the first table of this name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn table(&self, name: &str) -> Vec<u8> {
        let table = self.tables.iter().find(|table| table.signature == name);
        table.unwrap_or_else(|| panic!("no table {name}")).seal()
    }

    fn line(&mut self, word: &str, rest: &[&str]) -> bool {
        if self.of_machine(word, rest) {
            return true;
        }
        let Some(table) = self.tables.last_mut() else { return false };
        table.bytes(word, rest) || table.interrupts(word, rest) || table.dmar(word, rest)
    }

    fn of_machine(&mut self, word: &str, rest: &[&str]) -> bool {
        match (word, rest) {
            ("table", [name]) => self.tables.push(Table::new(name)),
            ("bridge", [at, buses]) => {
                let buses = number(buses) as u16;
                let (bus, path) = at.split_once(':').unwrap();
                let path = pairs(path)[0];
                let at = (number(bus) as u8, path.0, path.1);
                self.bridges.push(Bridge { at, buses: ((buses >> 8) as u8, buses as u8) });
            }
            ("null", []) => self.null_entry = true,
            ("page0", bytes) => self.page_0 = numbers(bytes, 1),
            ("rsdprev", [_]) => self.without_xsdt = true,
            _ => return false,
        }
        true
    }
}

impl Table {
    fn new(signature: &str) -> Self {
        let (signature, body) = (signature.to_string(), Vec::new());
        Self { signature, revision: 1, body, structure: None, length: None, bad_sum: false }
    }

    fn bytes(&mut self, word: &str, rest: &[&str]) -> bool {
        match (word, rest) {
            ("hex" | "raw" | "tail", bytes) => self.body.extend(numbers(bytes, 1)),
            ("w", words) => self.body.extend(numbers(words, 2)),
            ("d", words) => self.body.extend(numbers(words, 4)),
            ("q", words) => self.body.extend(numbers(words, 8)),
            ("zero", [count]) => self.body.extend(vec![0; number(count) as usize]),
            ("len", [length]) => self.length = Some(number(length) as u32),
            ("revision", [revision]) => self.revision = number(revision) as u8,
            ("badsum", []) => self.bad_sum = true,
            _ => return false,
        }
        true
    }

    fn interrupts(&mut self, word: &str, rest: &[&str]) -> bool {
        let values: Vec<u64> = match word {
            "lapic" | "x2apic" | "ioapic" | "iso" | "mcfg" => {
                rest.iter().map(|n| number(n)).collect()
            }
            _ => return false,
        };
        let fields: &[(u64, usize)] = match (word, values.as_slice()) {
            ("lapic", [uid, id, flags]) => &[(0x800, 2), (*uid, 1), (*id, 1), (*flags, 4)],
            ("x2apic", [id, uid, flags]) => &[(0x1009, 4), (*id, 4), (*flags, 4), (*uid, 4)],
            ("ioapic", [id, at, gsi]) => &[(0xc01, 2), (*id, 2), (*at, 4), (*gsi, 4)],
            ("iso", [irq, gsi, flags]) => &[(0xa02, 3), (*irq, 1), (*gsi, 4), (*flags, 2)],
            ("mcfg", [base, segment, first, last]) => {
                &[(*base, 8), (*segment, 2), (*first, 1), (*last, 1), (0, 4)]
            }
            _ => return false,
        };
        self.fields(fields);
        true
    }

    fn dmar(&mut self, word: &str, rest: &[&str]) -> bool {
        match (word, rest) {
            ("flags", [flags]) => self.body[1] = number(flags) as u8,
            ("haw", [width]) => self.body[0] = number(width) as u8,
            ("drhd", [flags, segment, base, size @ ..]) => {
                let size = size.first().map_or(0, |size| number(size));
                let fields =
                    [(number(flags), 1), (size, 1), (number(segment), 2), (number(base), 8)];
                self.structure(0, &fields);
            }
            ("rmrr", [segment, base, limit]) => {
                let fields = [(number(segment) << 16, 4), (number(base), 8), (number(limit), 8)];
                self.structure(1, &fields);
            }
            ("andd", [device, name]) => {
                self.structure(4, &[(number(device) << 24, 4)]);
                self.body.extend(name.bytes().chain([0]));
                self.set_length();
            }
            ("satc", [flags, segment]) => {
                self.structure(5, &[(number(flags), 2), (number(segment), 2)]);
            }
            ("sidp", [segment]) => self.structure(6, &[(number(segment) << 16, 4)]),
            ("scope", [kind, enumeration, bus, path @ ..]) => {
                let path = path.first().map_or(Vec::new(), |path| pairs(path));
                let length = 6 + 2 * path.len() as u64;
                let head = [(number(kind), 1), (length, 1), (0, 2), (number(enumeration), 1)];
                self.fields(&head);
                self.fields(&[(number(bus), 1)]);
                self.body.extend(path.iter().flat_map(|(device, function)| [*device, *function]));
                self.set_length();
            }
            _ => return false,
        }
        true
    }

    fn structure(&mut self, kind: u64, fields: &[(u64, usize)]) {
        self.structure = Some((self.body.len(), self.body.len() + 2));
        self.fields(&[(kind, 2), (0, 2)]);
        self.fields(fields);
        self.set_length();
    }

    fn set_length(&mut self) {
        let (start, field) = self.structure.unwrap();
        let length = (self.body.len() - start) as u16;
        self.body[field..field + 2].copy_from_slice(&length.to_le_bytes());
    }

    fn fields(&mut self, fields: &[(u64, usize)]) {
        for (value, size) in fields {
            self.body.extend(&value.to_le_bytes()[..*size]);
        }
    }

    /// Header and body.
    fn seal(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(self.signature.as_bytes());
        bytes[8] = self.revision;
        bytes[10..16].copy_from_slice(b"NEXIT ");
        bytes[16..24].copy_from_slice(b"CASES   ");
        bytes.extend(&self.body);
        let length = self.length.unwrap_or(bytes.len() as u32);
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes.truncate(length as usize);
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = 0_u8.wrapping_sub(sum).wrapping_sub(u8::from(self.bad_sum));
        bytes
    }
}

/// Memory with a case's tables in it, and an RSDP in the BIOS area that leads to them.
#[derive(Clone, Debug)]
pub struct Ram {
    /// Bytes by their address.
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Ram {
    /// Where the RSDP is.
    pub const RSDP: u64 = 0xf_0010;

    /// The case's tables, one after the other from `base`.
    ///
    /// # Panics
    /// When the case is not one that can be.
    #[must_use]
    pub fn new(case: &Case, base: u64) -> Self {
        let mut pieces = BTreeMap::from([(0, case.page_0.clone())]);
        let mut entries: Vec<u64> = case.null_entry.then_some(0).into_iter().collect();
        let (mut next, mut dsdt) = (base + 0x1000, 0_u64);
        for table in case.tables.iter().rev() {
            let mut table = table.clone();
            if let Some(field) = table.body.get_mut(4..8).filter(|_| table.signature == "FACP") {
                field.copy_from_slice(&(dsdt as u32).to_le_bytes());
            }
            if table.signature == "DSDT" {
                dsdt = next;
            } else {
                entries.insert(usize::from(case.null_entry), next);
            }
            let bytes = table.seal();
            let length = bytes.len().max(HEADER) as u64;
            pieces.insert(next, bytes);
            next = (next + length).next_multiple_of(64);
        }
        let mut root = |signature: &str, at: u64, size: usize| {
            let mut table = Table::new(signature);
            entries.iter().for_each(|entry| table.fields(&[(*entry, size)]));
            pieces.insert(at, table.seal());
        };
        root("RSDT", base, 4);
        let xsdt = if case.without_xsdt { 0 } else { base + 0x800 };
        if xsdt != 0 {
            root("XSDT", xsdt, 8);
        }
        let mut rsdp = Table::new("");
        rsdp.body.extend(b"RSD PTR \0NEXIT ");
        rsdp.fields(&[(2, 1), (base, 4), (36, 4), (xsdt, 8), (0, 4)]);
        let mut rsdp = rsdp.body;
        rsdp[8] = rsdp[..20].iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        rsdp[32] = rsdp.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        pieces.insert(Self::RSDP, rsdp);
        Self { pieces }
    }

    /// `length` bytes at `at`, if they all are there.
    #[must_use]
    pub fn bytes(&self, at: u64, length: usize) -> Option<&[u8]> {
        let (start, piece) = self.pieces.range(..=at).next_back()?;
        let from = usize::try_from(at - start).ok()?;
        piece.get(from..from.checked_add(length)?)
    }

    /// Makes every table's checksum right again.
    pub fn seal(&mut self) {
        for bytes in self.pieces.values_mut().filter(|bytes| bytes.len() > HEADER) {
            bytes[9] = 0;
            bytes[9] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        }
    }

    /// Every byte, to change it.
    pub fn each_byte(&mut self) -> impl Iterator<Item = &mut u8> {
        self.pieces.values_mut().flatten()
    }
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn numbers(texts: &[&str], size: usize) -> Vec<u8> {
    texts.iter().flat_map(|text| number(text).to_le_bytes()[..size].to_vec()).collect()
}

/// `D.F/D.F`
fn pairs(text: &str) -> Vec<(u8, u8)> {
    let hop = |hop: &str| {
        let (device, function) = hop.split_once('.').unwrap();
        (number(device) as u8, number(function) as u8)
    };
    text.split('/').map(hop).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of the tables as another program made them of the same words.
    #[test]
    fn the_words_make_the_bytes_that_they_describe() {
        let dmar = Case::named("odd-last-structure.dmar").table("DMAR");
        assert_eq!((dmar.len(), dmar[9]), (68, 0xde));
        assert_eq!(
            dmar[36..],
            *b"\x26\x01\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\x01\0\0\0\0\x10\xd9\xfe\0\0\0\0\x03\0\x20\0"
        );
        for (name, length, sum) in [
            ("andd-sidp-satc", 231, 0x4d),
            ("badsum", 72, 0xd8),
            ("eighteen-units", 480, 0x5e),
            ("high-unit", 64, 0x1d),
            ("ioapic-id-mismatch", 104, 0xae),
            ("rmrr-names-everything", 206, 0x32),
            ("scope-without-path", 102, 0x5e),
            ("tail-zeroes", 88, 0xc9),
            ("vtd-off-leftover", 104, 0x57),
            ("x2apic-optout", 72, 0xd7),
            ("zero-unit", 88, 0xca),
        ] {
            let table = Case::named(&format!("{name}.dmar")).table("DMAR");
            assert_eq!((table.len(), table[9]), (length, sum), "{name}");
        }
        let madt = Case::named("madt-zero-length.txt").table("APIC");
        assert_eq!((madt.len(), madt[9]), (62, 0xba));
    }
}
