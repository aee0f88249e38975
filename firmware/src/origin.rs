//! The manufacturer of the tables (ACPI Specification, "System Description Table Header").

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use arch::Hpa;

use crate::Memory;
use crate::tables::{Table, Tables, name};

/// What the header of a table says of its maker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The table, as people call it.
    pub table: String,
    /// OEMID.
    pub oem: String,
    /// OEM Table ID.
    pub model: String,
}

impl Origin {
    /// Of the tables that tell machines apart.
    pub(crate) fn of(tables: &Tables<'_>, dsdt: Option<Hpa>, memory: Memory<'_, '_>) -> Vec<Self> {
        let fadt = tables.all(*b"FACP").next();
        let dsdt = dsdt.and_then(|at| Table::at(at, memory).ok());
        let dmar = tables.all(*b"DMAR").next();
        [fadt, dsdt, dmar].into_iter().flatten().map(|table| Self::read(&table)).collect()
    }

    fn read(table: &Table<'_>) -> Self {
        let text = |bytes: core::ops::Range<usize>| {
            let bytes = table.bytes.get(bytes).unwrap_or(&[]);
            let shown = |byte: &u8| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '?',
            };
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            let text: String = bytes.iter().take(end).map(shown).collect();
            String::from(text.trim())
        };
        Self { table: name(table.signature()), oem: text(10..16), model: text(16..24) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\" \"{}\"", self.table, self.oem, self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_the_maker_and_no_byte_of_it_breaks_a_line() {
        let mut bytes = b"FACP\x24\0\0\0\x01\0ALASKAA M I  \0\0".to_vec();
        bytes.resize(36, 0);
        let origin = |bytes: &[u8]| Origin::read(&Table { bytes }).to_string();
        assert_eq!(origin(&bytes), "FADT \"ALASKA\" \"A M I\"");
        bytes[10..16].copy_from_slice(b"\n\x1e\xff\"ab");
        assert_eq!(origin(&bytes), "FADT \"???\"ab\" \"A M I\"");
        assert_eq!(origin(b"DSDT"), "DSDT \"\" \"\"");
    }
}
