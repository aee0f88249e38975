//! The linked image as it is: its segments, functions, and of which source line each piece of code is.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use gimli::{EndianSlice, LittleEndian};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, SectionKind};

use crate::failure::{Failure, Result};

/// A loaded segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    /// `p_flags`: 1 = execute, 2 = write, 4 = read.
    pub(crate) flags: u32,
    /// Bytes in memory.
    pub(crate) memory: u64,
}

impl Segment {
    /// What it holds, by its rights.
    pub(crate) const fn name(self) -> &'static str {
        match (self.is_code(), self.flags & 2 != 0) {
            (true, false) => "code",
            (false, false) => "read-only data",
            (false, true) => "writable data",
            (true, true) => "writable code",
        }
    }

    /// It can be executed.
    pub(crate) const fn is_code(self) -> bool {
        self.flags & 1 != 0
    }
}

/// Bytes at an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    /// Its first.
    pub(crate) start: u64,
    /// As they are in the file.
    pub(crate) bytes: Vec<u8>,
}

impl Piece {
    /// Whether there is a byte of it at that address.
    pub(crate) fn holds(&self, at: u64) -> bool {
        at.checked_sub(self.start).is_some_and(|offset| offset < self.bytes.len() as u64)
    }

    /// The bytes from `start` to before `end`, as far as they are in it.
    pub(crate) fn range(&self, start: u64, end: u64) -> Option<&[u8]> {
        let offset = |address: u64| usize::try_from(address.checked_sub(self.start)?).ok();
        self.bytes.get(offset(start)?..offset(end)?.min(self.bytes.len()))
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Function {
    /// Its name, as Rust writes it.
    pub(crate) name: String,
    /// Its first byte.
    pub(crate) start: u64,
    /// Behind its last.
    pub(crate) end: u64,
}

/// Source lines by file, as paths that are absolute and without `..`.
pub(crate) type Lines = BTreeMap<PathBuf, BTreeSet<usize>>;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Image {
    /// In the order of the file.
    pub(crate) segments: Vec<Segment>,
    /// Where the code is whose memory is free after the boot; empty where there is none.
    pub(crate) init: Range<u64>,
    /// By address.
    pub(crate) functions: Vec<Function>,
    pub(crate) code: Vec<Piece>,
    /// Data that the file holds.
    pub(crate) data: Vec<Piece>,
    /// From, to before, file, line; by address.
    pub(super) rows: Vec<(u64, u64, usize, usize)>,
    pub(super) files: Vec<PathBuf>,
}

impl Image {
    /// Reads an ELF file.
    ///
    /// # Errors
    /// It is none, or has no debug information.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::Failed(format!("no image that can be read: {error}"))
        };
        let file = object::File::parse(bytes).map_err(|error| failed(&error))?;
        let mut image = Self::default();
        for segment in file.segments().filter(|segment| segment.size() > 0) {
            let object::SegmentFlags::Elf { p_flags } = segment.flags() else { continue };
            image.segments.push(Segment { flags: p_flags, memory: segment.size() });
        }
        for section in file.sections() {
            let kind = section.kind();
            if section.name() == Ok(".init") && kind == SectionKind::Text {
                image.init = section.address()..section.address() + section.size();
            }
            let to = if kind == SectionKind::Text {
                &mut image.code
            } else if matches!(
                kind,
                // The linker marks all constants as strings where some of them are.
                SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString
            ) {
                &mut image.data
            } else {
                continue;
            };
            let bytes = section.data().map_err(|error| failed(&error))?.to_vec();
            to.push(Piece { start: section.address(), bytes });
        }
        image.functions = functions(&file, &image.code);
        image.read_lines(&file).map_err(|error| failed(&error))?;
        if image.rows.is_empty() || image.functions.is_empty() {
            return Err(failed(&"it has no symbols or no line tables"));
        }
        Ok(image)
    }

    fn read_lines(&mut self, file: &object::File<'_>) -> std::result::Result<(), gimli::Error> {
        let section = |id: gimli::SectionId| {
            let data = file.section_by_name(id.name()).and_then(|s| s.uncompressed_data().ok());
            Ok::<_, gimli::Error>(data.unwrap_or(Cow::Borrowed(&[])))
        };
        let sections = gimli::DwarfSections::load(section)?;
        let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
        let mut known = BTreeMap::new();
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            let unit = dwarf.unit(header)?;
            let Some(program) = unit.line_program.clone() else { continue };
            let folder =
                unit.comp_dir.map_or_else(PathBuf::new, |dir| text(dir).into_owned().into());
            let mut rows = program.rows();
            let mut before: Option<(u64, usize, usize)> = None;
            while let Some((header, row)) = rows.next_row()? {
                if let Some((start, file, line)) = before.take() {
                    self.rows.push((start, row.address(), file, line));
                }
                if row.end_sequence() {
                    continue;
                }
                let (Some(entry), Some(line)) = (row.file(header), row.line()) else { continue };
                let mut path = folder.clone();
                if let Some(folder) = entry.directory(header) {
                    path.push(text(dwarf.attr_string(&unit, folder)?).as_ref());
                }
                path.push(text(dwarf.attr_string(&unit, entry.path_name())?).as_ref());
                let number = *known.entry(path).or_insert_with_key(|path| {
                    self.files.push(plain(path));
                    self.files.len() - 1
                });
                before = Some((row.address(), number, usize::try_from(line.get()).unwrap_or(0)));
            }
        }
        self.rows.sort_unstable();
        Ok(())
    }

    /// The source lines of the code between two addresses.
    pub(crate) fn lines(&self, start: u64, end: u64, lines: &mut Lines) {
        // Rows do not overlap: each ends where the next one begins.
        let first = self.rows.partition_point(|(_, row_end, ..)| *row_end <= start);
        for (_, _, file, line) in self.rows.iter().skip(first).take_while(|row| row.0 < end) {
            if let Some(path) = self.files.get(*file) {
                lines.entry(path.clone()).or_default().insert(*line);
            }
        }
    }

    /// Those of all code.
    pub(crate) fn all_lines(&self) -> Lines {
        let mut lines = Lines::new();
        self.lines(0, u64::MAX, &mut lines);
        lines
    }
}

fn text(bytes: EndianSlice<'_, LittleEndian>) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes.slice())
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    plain
}

/// By address, each address once. One without a size (assembly) ends where the next one begins.
fn functions(file: &object::File<'_>, code: &[Piece]) -> Vec<Function> {
    let mut found: BTreeMap<u64, (u64, String)> = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.is_definition()) {
        let start = symbol.address();
        let in_code = code.iter().any(|piece| piece.holds(start));
        let size = found.get(&start).map_or(0, |(size, _)| *size);
        if in_code && symbol.size() >= size {
            let name = symbol.name().unwrap_or_default();
            let name = format!("{:#}", rustc_demangle::demangle(name));
            found.insert(start, (symbol.size(), name));
        }
    }
    let starts: Vec<u64> = found.keys().copied().chain([u64::MAX]).collect();
    let next = starts.iter().skip(1);
    let function = |((start, (size, name)), next): ((u64, (u64, String)), &u64)| {
        let end = if size > 0 { start + size } else { *next };
        Function { name, start, end }
    };
    found.into_iter().zip(next).map(function).collect()
}

#[cfg(test)]
impl Image {
    /// An image of functions of 16 bytes from 0x1000, with `code` at these offsets and NOPs elsewhere, and of `data` from
    /// 0x2000.
    pub(crate) fn of_test(names: &[&str], code: &[(usize, &[u8])], data: &[u64]) -> Self {
        let mut bytes = vec![0x90; 16 * names.len()];
        for (offset, piece) in code {
            bytes[*offset..offset + piece.len()].copy_from_slice(piece);
        }
        let function = |(name, start): (&&str, u64)| Function {
            name: (*name).to_owned(),
            start,
            end: start + 16,
        };
        let data = data.iter().flat_map(|word| word.to_le_bytes()).collect();
        Self {
            functions: names.iter().zip((0x1000..).step_by(16)).map(function).collect(),
            code: vec![Piece { start: 0x1000, bytes }],
            data: vec![Piece { start: 0x2000, bytes: data }],
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lines_of_a_range_are_those_whose_code_is_in_it() {
        let image = Image {
            files: vec![PathBuf::from("/a.rs"), PathBuf::from("/b.rs")],
            rows: vec![(0, 4, 0, 10), (4, 8, 1, 7), (8, 12, 0, 11)],
            ..Image::default()
        };
        let mut lines = Lines::new();
        image.lines(5, 9, &mut lines);
        assert_eq!(lines[Path::new("/a.rs")], BTreeSet::from([11]));
        assert_eq!(lines[Path::new("/b.rs")], BTreeSet::from([7]));
        assert_eq!(image.all_lines()[Path::new("/a.rs")].len(), 2);
    }

    #[test]
    fn paths_are_plain() {
        assert_eq!(plain(Path::new("/x/./y/../z.rs")), Path::new("/x/z.rs"));
    }

    #[test]
    fn this_very_program_can_be_read_and_knows_its_own_lines() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let image = Image::read(&program).unwrap();
        assert!(image.segments.iter().any(|segment| segment.name() == "code"));
        let file = object::File::parse(program.as_slice()).unwrap();
        let constants = file.section_by_name(".rodata").unwrap().address();
        assert!(
            image.data.iter().any(|piece| piece.holds(constants)),
            "tables of functions are there"
        );
        let own = image.functions.iter().find(|f| f.name.ends_with("stats::image::functions"));
        let own = own.unwrap();
        let mut lines = Lines::new();
        image.lines(own.start, own.end, &mut lines);
        let seen = lines.iter().find(|(path, _)| path.ends_with("src/stats/image.rs"));
        assert!(seen.is_some_and(|(_, lines)| lines.len() > 5), "{lines:?}");
    }

    proptest! {
        #[test]
        fn a_broken_file_never_panics(bytes: Vec<u8>, cut in 0..64_usize) {
            let head = [b"\x7fELF\x02\x01\x01".as_slice(), &bytes].concat();
            prop_assert!(Image::read(&head[..cut.min(head.len())]).is_err());
            let _ = Image::read(&head);
        }
    }
}
