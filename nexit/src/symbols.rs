//! `nexit symbols`: the symbols of a Linux as an ELF file, which gdb reads in place of the huge file with debugging information.

use std::collections::BTreeSet;
use std::fs;

use crate::cli::SymbolsArgs;
use crate::failure::{Failure, OrFailed as _, Result};

/// Sizes of the format (System V ABI, "ELF Header", "Sections", "Symbol Table").
const HEADER: usize = 64;
const SECTION: u64 = 64;
const SYMBOL: u64 = 24;
/// Where a 64-bit kernel is. Below are offsets of variables that each CPU has.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// A symbol: code or data.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Symbol {
    address: u64,
    name: String,
    code: bool,
}

/// Writes the file.
///
/// # Errors
/// The list cannot be read, has no symbols, or the file cannot be written.
pub(crate) fn write(args: &SymbolsArgs) -> Result<()> {
    let text = fs::read(&args.list).or_failed("read", &args.list)?;
    let text = String::from_utf8_lossy(&text);
    let symbols: BTreeSet<Symbol> = text.lines().filter_map(symbol).collect();
    if symbols.is_empty() {
        let list = args.list.display();
        let text = "has no address of a kernel: take a System.map, or /proc/kallsyms as root reads it. The \
                    System.map of a Debian kernel is in its package with debugging information";
        return Err(Failure::Failed(format!("{list} {text}")));
    }
    fs::write(&args.file, elf(&symbols)).or_failed("write", &args.file)?;
    println!("nexit: wrote {}: {} symbols", args.file.display(), symbols.len());
    Ok(())
}

/// `ADDRESS TYPE NAME`, and in kallsyms perhaps a module.
fn symbol(line: &str) -> Option<Symbol> {
    let mut words = line.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let code = matches!(words.next()?, "T" | "t" | "W" | "w");
    let name = words.next()?.to_owned();
    (address >= KERNEL && address != u64::MAX).then_some(Symbol { address, name, code })
}

/// Sections without contents for code and for data, and the tables of symbols.
fn elf(symbols: &BTreeSet<Symbol>) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.text\0.data\0.symtab\0.strtab\0.shstrtab\0";
    const GLOBAL_FUNCTION: u8 = 1 << 4 | 2;
    const GLOBAL_OBJECT: u8 = 1 << 4 | 1;
    let (mut table, mut names) = (vec![0; SYMBOL as usize], vec![0]);
    for symbol in symbols {
        let (kind, section) = if symbol.code { (GLOBAL_FUNCTION, 1) } else { (GLOBAL_OBJECT, 2) };
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([kind, 0, section, 0]);
        table.extend([symbol.address, 0].into_iter().flat_map(u64::to_le_bytes));
        names.extend(symbol.name.bytes().chain([0]));
    }
    let place = |code: bool| {
        let mut addresses = symbols.iter().filter(|it| it.code == code).map(|it| it.address);
        let first = addresses.next().unwrap_or(0);
        (first, addresses.next_back().unwrap_or(first) - first + 1)
    };
    let (text, data) = (place(true), place(false));
    let table_at = HEADER as u64;
    let names_at = table_at + table.len() as u64;
    let own_at = names_at + names.len() as u64;
    let sections_at = (own_at + NAMES.len() as u64).next_multiple_of(8);
    let mut bytes = header(sections_at);
    bytes.extend(&table);
    bytes.extend(&names);
    bytes.extend(NAMES);
    bytes.resize(sections_at as usize, 0);
    // Name, type, flags, address, place, size, link, information, size of an entry.
    for (name, kind, flags, address, at, size, link, information, entry) in [
        (0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 8, 6, text.0, 0, text.1, 0, 0, 0),
        (7, 8, 3, data.0, 0, data.1, 0, 0, 0),
        (13, 2, 0, 0, table_at, table.len() as u64, 4, 1, SYMBOL),
        (21, 3, 0, 0, names_at, names.len() as u64, 0, 0, 0),
        (29, 3, 0, 0, own_at, NAMES.len() as u64, 0, 0, 0),
    ] {
        bytes.extend([name, kind].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend([flags, address, at, size].into_iter().flat_map(u64::to_le_bytes));
        bytes.extend([link, information].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend([1, entry].into_iter().flat_map(u64::to_le_bytes));
    }
    bytes
}

fn header(sections_at: u64) -> Vec<u8> {
    const EXECUTABLE: u16 = 2;
    const X86_64: u16 = 62;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([EXECUTABLE, X86_64].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([0, 0, sections_at].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend(0_u32.to_le_bytes());
    let sizes = [HEADER as u16, 0, 0, SECTION as u16, 6, 5];
    bytes.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSymbol as _, SymbolKind};

    use super::*;

    const LIST: &str = "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n\
        ffffffff81234560 t do_one_initcall\nffffffff82a00000 D jiffies\n\
        ffffffffc0123000 t nvme_queue_rq\t[nvme]\nffffffffffffffff B The real one is elsewhere\n";

    #[test]
    fn another_reader_finds_the_symbols_at_their_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name| folder.path().join(name);
        fs::write(place("System.map"), LIST).unwrap();
        let args = SymbolsArgs { list: place("System.map"), file: place("linux.elf") };
        write(&args).unwrap();
        let bytes = fs::read(place("linux.elf")).unwrap();
        let file = object::File::parse(bytes.as_slice()).unwrap();
        let found: Vec<(u64, &str, bool)> = file
            .symbols()
            .map(|it| (it.address(), it.name().unwrap(), it.kind() == SymbolKind::Text))
            .collect();
        assert_eq!(
            found,
            [
                (0xffff_ffff_8100_0000, "_text", true),
                (0xffff_ffff_8123_4560, "do_one_initcall", true),
                (0xffff_ffff_82a0_0000, "jiffies", false),
                (0xffff_ffff_c012_3000, "nvme_queue_rq", true),
            ]
        );
    }

    #[test]
    fn a_list_without_addresses_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let (list, file) = (folder.path().join("kallsyms"), folder.path().join("linux.elf"));
        fs::write(&list, "0000000000000000 T _text\n").unwrap();
        let error = write(&SymbolsArgs { list, file: file.clone() }).unwrap_err().to_string();
        assert!(error.contains("as root"), "{error}");
        assert!(!file.exists());
    }
}
