//! ACPI tables from the text of `acpidump`: a line `APIC @ 0x000000007FEEE000`, then rows of an offset, 16
//! bytes, and the same as letters.

use arch::bytes::u32_at;
use capture::Table;

/// Columns of a row's bytes: two digits and a blank each.
const COLUMNS: usize = 48;

/// Whether a text is one of `acpidump`.
pub(super) fn is_one(text: &str) -> bool {
    text.lines().any(|line| head(line).is_some())
}

/// The tables, and what is wrong with the text.
pub(super) fn read(text: &str) -> (Vec<Table>, Vec<String>) {
    let (mut tables, mut wrong) = (Vec::new(), Vec::new());
    let mut open: Option<(u64, Vec<u8>)> = None;
    for line in text.lines() {
        if let Some(address) = head(line) {
            close(open.replace((address, Vec::new())), &mut tables, &mut wrong);
        } else if let Some((_, bytes)) = &mut open
            && let Some((offset, row)) = row(line)
            && offset == bytes.len()
        {
            bytes.extend(row);
        }
    }
    close(open, &mut tables, &mut wrong);
    (tables, wrong)
}

fn close(open: Option<(u64, Vec<u8>)>, tables: &mut Vec<Table>, wrong: &mut Vec<String>) {
    let Some((address, mut bytes)) = open else { return };
    let table = Table::new(Some(address).filter(|it| *it != 0), bytes.clone());
    if table.signature == "RSD PTR" {
        return tables.push(table);
    }
    let name = &table.signature;
    let length = u32_at(&bytes, 4).map_or(36, |length| length as usize);
    if bytes.len() < length || length < 36 {
        wrong.push(format!(
            "the {name} is left out: acpidump's text has {} of its {length} bytes; dump it again",
            bytes.len()
        ));
        return;
    }
    bytes.truncate(length);
    tables.push(Table::new(table.address, bytes));
}

/// The address of a table that begins here.
fn head(line: &str) -> Option<u64> {
    let (name, address) = line.split_once(" @ 0x")?;
    let plain = (4..=8).contains(&name.len()) && name.is_ascii() && !name.starts_with(' ');
    u64::from_str_radix(address.trim(), 16).ok().filter(|_| plain)
}

fn row(line: &str) -> Option<(usize, Vec<u8>)> {
    let (offset, rest) = line.trim_start().split_once(": ")?;
    let offset = usize::from_str_radix(offset, 16).ok()?;
    let columns = rest.get(..COLUMNS.min(rest.len()))?;
    let byte = |word: &str| u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2);
    Some((offset, columns.split_whitespace().map_while(byte).collect()))
}
