//! What VT-d has been told of a function, as it stands in the tables
//! (VT-d specification "Context Entry" and "Interrupt Remapping Table Entry (IRTE) for Remapped Interrupts").

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use crate::{Column, Lines, Table};

/// A 128-bit entry, the low half first.
pub type Words = [u64; 2];

const PRESENT: u64 = 1;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A function's context entry; `None` where its bus has no table.
#[must_use]
pub fn context(function: &str, entry: Option<Words>) -> Lines {
    let Some([low, high]) = entry.filter(|[low, _]| low & PRESENT != 0) else {
        return vec![format!("{function}: no context entry is present: its DMA is refused")];
    };
    let levels = (high & 7) + 2;
    let domain = high >> 8 & 0xffff;
    let kind = match low >> 2 & 3 {
        0 => "through the table",
        1 => "through the table, with a device TLB",
        2 => "untranslated",
        _ => "reserved",
    };
    let faults = if low & 2 == 0 { "" } else { ", its faults are not recorded" };
    vec![
        format!("{function}: context entry {high:016x} {low:016x}"),
        format!(
            "  domain {domain}: DMA goes {kind} at {:#x}, of {levels} levels{faults}",
            low & ADDRESS
        ),
    ]
}

/// Remapping entries, by their indices. Those that are not present, one for each message that a device could send, are
/// counted.
#[must_use]
pub fn entries(entries: &[(u16, Words)]) -> Lines {
    let mut table = Table::new(&[
        Column::Right("  entry"),
        Column::Left("vector"),
        Column::Left("to CPU"),
        Column::Left("how"),
        Column::Left("from"),
        Column::Left("as programmed"),
    ]);
    let (present, absent): (Vec<_>, Vec<_>) =
        entries.iter().partition(|(_, [low, _])| low & PRESENT != 0);
    for (index, [low, high]) in &present {
        let vector = format!("{:#04x}", low >> 16 & 0xff);
        let mode = match low >> 5 & 7 {
            0 => "fixed",
            1 => "lowest priority",
            2 => "SMI",
            4 => "NMI",
            5 => "INIT",
            7 => "ExtINT",
            _ => "reserved",
        };
        let trigger = if low & 1 << 4 == 0 { "edge" } else { "level" };
        // In x2APIC mode all 32 bits are the identifier.
        let destination = format!("APIC {}", low >> 32);
        let (how, raw) = (format!("{mode}, {trigger}"), format!("{high:016x} {low:016x}"));
        table.row([format!("  {index}"), vector, destination, how, source(*high), raw]);
    }
    let mut lines = if present.is_empty() { vec![] } else { table.lines() };
    lines.push(format!("  {} entries taken for it are not present", absent.len()));
    lines
}

/// Who may use an entry.
fn source(high: u64) -> String {
    let requester = (high & 0xffff) as u16;
    let function = arch::Bdf::from_requester_id(requester);
    match high >> 18 & 3 {
        0 => "anyone".into(),
        1 => format!("{function}"),
        2 => format!("buses {:02x} to {:02x}", requester >> 8, requester & 0xff),
        _ => "reserved".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_entry_names_its_domain_and_table() {
        assert_eq!(
            context("00:04.0", Some([0x1234_5001, 0x702])),
            [
                "00:04.0: context entry 0000000000000702 0000000012345001",
                "  domain 7: DMA goes through the table at 0x12345000, of 4 levels",
            ]
        );
        let refused = "00:04.0: no context entry is present: its DMA is refused";
        assert_eq!(context("00:04.0", None), [refused]);
        assert_eq!(context("00:04.0", Some([0, 0x702])), [refused]);
    }

    #[test]
    fn a_remapping_entry_is_read_as_the_unit_reads_it() {
        let lines = entries(&[
            (5, [0x0000_0002_0031_0001, 0x4_0020]),
            (6, [0x0000_0002_0031_0091, 0x4_f0f8]),
            (7, [0, 0x4_0020]),
        ]);
        assert_eq!(
            lines,
            [
                "  entry  vector  to CPU  how          from     as programmed",
                "      5  0x31    APIC 2  fixed, edge  00:04.0  0000000000040020 0000000200310001",
                "      6  0x31    APIC 2  NMI, level   f0:1f.0  000000000004f0f8 0000000200310091",
                "  1 entries taken for it are not present",
            ]
        );
        assert_eq!(entries(&[]), ["  0 entries taken for it are not present"]);
    }
}
