//! The firmware's serial console according to its tables (Microsoft, "Serial Port Console Redirection
//! Table (SPCR)" and "Debug Port Table 2 (DBG2)").
//!
//! Invariant: a [`SerialPort`] has eight registers inside its address space, at an address
//! that could be a UART's. Only an access shows whether a UART is there.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arch::address::HpaRange;
use arch::bytes::{u16_at, u32_at, u64_at};
use arch::uart::{UartBase, UartPlace};
use arch::{Hpa, Width};

/// Length of an address as ACPI writes it ("Generic Address Structure (GAS)").
const ADDRESS: usize = 12;

/// A serial port that a table claims to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialPort {
    /// The table that says so.
    pub table: &'static str,
    /// Where its registers are.
    pub place: UartPlace,
    /// The UART's divisor; `None`: as the firmware left it.
    pub divisor: Option<u16>,
}

impl SerialPort {
    /// The claim is false: the registers would overlap RAM.
    #[must_use]
    pub fn is_in_ram(&self, is_ram: impl Fn(HpaRange) -> bool) -> bool {
        self.place.range().is_some_and(is_ram)
    }
}

/// The port of the SPCR.
pub(crate) fn spcr(table: &[u8], notes: &mut Vec<String>) -> Option<SerialPort> {
    /// Length of the first revisions; the two fields below were added later.
    const LENGTH: usize = 80;
    const CLOCK: usize = 76;
    const PRECISE_BAUD: usize = 80;
    if table.len() < LENGTH {
        notes.push(format!("the SPCR is left out: its {} bytes are no whole one", table.len()));
        return None;
    }
    let kind = u16::from(table.get(36).copied().unwrap_or(0));
    let revision = table.get(8).copied().unwrap_or(0);
    let number = |at, least| u32_at(table, at).filter(|it| revision >= least && *it != 0);
    let code = table.get(58).copied().unwrap_or(0);
    let baud = number(PRECISE_BAUD, 4).or(match code {
        3 => Some(9600),
        4 => Some(19_200),
        6 => Some(57_600),
        7 => Some(115_200),
        _ => None,
    });
    let clock = number(CLOCK, 3).unwrap_or(1_843_200);
    let divisor = baud.and_then(|baud| divisor(clock, baud));
    port("SPCR", kind, table.get(40..40 + ADDRESS), divisor, notes)
}

/// The divisor for this rate with this clock, if there is one (the factor 16 is the UART's own).
fn divisor(clock: u32, baud: u32) -> Option<u16> {
    let divided = (u64::from(clock) + 8 * u64::from(baud)) / (16 * u64::from(baud)).max(1);
    u16::try_from(divided).ok().filter(|divisor| *divisor != 0)
}

/// The serial ports of the DBG2.
pub(crate) fn dbg2(table: &[u8], notes: &mut Vec<String>) -> Vec<SerialPort> {
    /// Length of an entry before its addresses.
    const ENTRY: usize = 22;
    /// No machine has as many debug ports.
    const MAX_ENTRIES: u32 = 16;
    const SERIAL: u16 = 0x8000;
    let mut ports = Vec::new();
    let (Some(first), Some(count)) = (u32_at(table, 36), u32_at(table, 40)) else {
        notes.push(format!("the DBG2 is left out: its {} bytes are no whole one", table.len()));
        return ports;
    };
    let mut rest = usize::try_from(first).ok().and_then(|first| table.get(first..)).unwrap_or(&[]);
    for number in 0..count.min(MAX_ENTRIES) {
        let length = u16_at(rest, 1).map_or(0, usize::from);
        let entry = rest.get(..length).filter(|entry| entry.len() >= ENTRY);
        let Some(entry) = entry else {
            notes.push(format!(
                "the DBG2 ends at its port {number}, which claims {length} bytes: that cannot be"
            ));
            break;
        };
        let field = |at| u16_at(entry, at).unwrap_or(0);
        if field(12) == SERIAL {
            let at = usize::from(field(18));
            let address = if entry.get(3) == Some(&0) { None } else { entry.get(at..at + ADDRESS) };
            ports.extend(port("DBG2", field(14), address, None, notes));
        } else {
            let kind = field(12);
            notes.push(format!("the DBG2's port {number} is no serial port (type {kind:#x})"));
        }
        rest = rest.get(length..).unwrap_or(&[]);
    }
    ports
}

fn port(
    table: &'static str,
    kind: u16,
    address: Option<&[u8]>,
    divisor: Option<u16>,
    notes: &mut Vec<String>,
) -> Option<SerialPort> {
    /// Fully compatible, a subset, and compatible with the register layout in the address.
    const COMPATIBLE: [u16; 3] = [0, 1, 0x12];
    let found = if COMPATIBLE.contains(&kind) {
        address.ok_or_else(|| String::from("it has no address")).and_then(place)
    } else {
        Err(format!("it is {}, and Nexit drives 16550s only", name(kind)))
    };
    match found {
        Ok(place) => Some(SerialPort { table, place, divisor }),
        Err(why) => {
            notes.push(format!("the {table}'s serial port is left out: {why}"));
            None
        }
    }
}

/// The registers' place, from a generic address.
fn place(address: &[u8]) -> Result<UartPlace, String> {
    const MEMORY: u8 = 0;
    const IO: u8 = 1;
    let &[space, bits, offset, access, ..] = address else {
        return Err(String::from("it has no address"));
    };
    let at = u64_at(address, 4).unwrap_or(0);
    if at == 0 {
        return Err(String::from(
            "its address is 0: the console's redirection is off in the firmware's setup",
        ));
    }
    if space == IO {
        // What lies below 0x100 are the chipset's own devices. A port is a byte, whatever the table says.
        let port = u16::try_from(at).ok().filter(|port| *port >= 0x100 && *port <= 0xfff8);
        let port = port.ok_or_else(|| format!("no UART is at port {at:#x}"))?;
        return Ok(UartPlace::port(port));
    }
    if space != MEMORY {
        return Err(format!("its registers are in address space {space:#x}"));
    }
    let stride = match bits {
        0 | 8 => 1,
        16 => 2,
        32 => 4,
        64 => 8,
        _ => return Err(format!("its registers have {bits} bits")),
    };
    let (width, least) = match access {
        0 | 1 => (Width::Byte, 1),
        2 => (Width::Word, 2),
        3 => (Width::Dword, 4),
        _ => return Err(format!("its registers want accesses of kind {access}")),
    };
    // An access that is wider than a register would reach into the next one.
    let stride: u8 = if stride < least { least } else { stride };
    if offset != 0 {
        return Err(format!("its registers begin at bit {offset}"));
    }
    let start = Hpa::new(at);
    let place = UartPlace { base: UartBase::Memory(start), stride, width };
    let end = place.range().and_then(|range| range.start.checked_add(range.length));
    if !start.is_aligned(u64::from(least)) || end.is_none() {
        return Err(format!("its registers cannot be at {start}"));
    }
    Ok(place)
}

/// The specification's name of a type of serial port that is not a 16550 ("Debug Port Table 2", table of
/// types).
fn name(kind: u16) -> String {
    let name = match kind {
        2 => "a MAX311x on SPI",
        3 => "an Arm PL011",
        5 => "an Nvidia 16550",
        0x0b => "an Intel USIF",
        0x0d | 0x0e => "an Arm SBSA UART",
        0x0f => "an Arm DCC",
        0x14 => "an Intel LPSS UART",
        _ => return format!("of type {kind:#x}"),
    };
    format!("{name} (type {kind:#x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COM2: [u8; 12] = [1, 8, 0, 1, 0xf8, 2, 0, 0, 0, 0, 0, 0];

    fn table(length: usize, revision: u8, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[8] = revision;
        for (at, field) in fields {
            bytes[*at..*at + field.len()].copy_from_slice(field);
        }
        bytes
    }

    fn read(address: &[u8], kind: u8) -> Result<SerialPort, String> {
        let mut notes = Vec::new();
        let spcr = spcr(&table(80, 2, &[(36, &[kind]), (40, address)]), &mut notes);
        spcr.ok_or_else(|| notes.join("\n"))
    }

    fn memory(bits: u8, offset: u8, access: u8, at: u64) -> Vec<u8> {
        [&[0, bits, offset, access], at.to_le_bytes().as_slice()].concat()
    }

    #[test]
    fn the_table_says_where_the_uart_is_and_how_its_registers_lie() {
        let com2 = read(&COM2, 0).unwrap();
        assert_eq!((com2.place, com2.divisor), (UartPlace::port(0x2f8), None));
        let at = |bits, access| read(&memory(bits, 0, access, 0xfe03_4000), 0x12).unwrap();
        for (bits, access, stride, width) in [
            (8, 1, 1, Width::Byte),
            (0, 0, 1, Width::Byte),
            (32, 1, 4, Width::Byte),
            (32, 3, 4, Width::Dword),
            (16, 2, 2, Width::Word),
            // Dwords that overlap are no registers.
            (8, 3, 4, Width::Dword),
        ] {
            let port = at(bits, access);
            let base = UartBase::Memory(Hpa::new(0xfe03_4000));
            assert_eq!(port.place, UartPlace { base, stride, width }, "{bits} {access}");
        }
        assert_eq!(at(32, 3).place.range().map(|range| range.length), Some(32));
    }

    #[test]
    fn a_rate_is_set_only_where_the_table_names_one() {
        let rate = |revision, code: u8, clock: u32, precise: u32| {
            let spcr_table = table(
                88,
                revision,
                &[
                    (40, &COM2),
                    (58, &[code]),
                    (76, &clock.to_le_bytes()),
                    (80, &precise.to_le_bytes()),
                ],
            );
            spcr(&spcr_table, &mut Vec::new()).unwrap().divisor
        };
        assert_eq!(rate(2, 0, 0, 0), None, "as it is");
        assert_eq!((rate(2, 7, 0, 0), rate(2, 3, 0, 0)), (Some(1), Some(12)));
        assert_eq!(rate(2, 9, 0, 0), None, "no rate that is known");
        assert_eq!(rate(3, 7, 48_000_000, 0), Some(26));
        assert_eq!(rate(2, 7, 48_000_000, 0), Some(1), "the field came later");
        assert_eq!(rate(4, 0, 0, 38_400), Some(3));
        assert_eq!(rate(4, 0, 1, 38_400), None, "no divisor makes it");
    }

    #[test]
    fn what_cannot_be_a_uart_is_named_and_left_out() {
        for (address, kind, why) in [
            (memory(32, 0, 3, 0), 0, "its address is 0: the console's redirection is off"),
            (memory(32, 0, 3, 0xfe03_4000), 3, "it is an Arm PL011 (type 0x3)"),
            (memory(32, 0, 3, 0xfe03_4000), 0x77, "it is of type 0x77"),
            (memory(7, 0, 1, 0xfe03_4000), 0, "its registers have 7 bits"),
            (memory(32, 8, 1, 0xfe03_4000), 0, "its registers begin at bit 8"),
            (memory(32, 0, 4, 0xfe03_4000), 0, "its registers want accesses of kind 4"),
            (memory(32, 0, 3, 0xfe03_4002), 0, "its registers cannot be at 0xfe034002"),
            (memory(8, 0, 1, u64::MAX), 0, "its registers cannot be at 0xffffffffffffffff"),
            ([&[1, 8, 0, 1], 0x60_u64.to_le_bytes().as_slice()].concat(), 0, "at port 0x60"),
            ([&[1, 8, 0, 1], 0x1_02f8_u64.to_le_bytes().as_slice()].concat(), 0, "port 0x102f8"),
            ([&[2, 8, 0, 1], 0x3f8_u64.to_le_bytes().as_slice()].concat(), 0, "address space 0x2"),
        ] {
            let note = read(&address, kind).unwrap_err();
            assert!(note.contains(why), "{why}: {note}");
        }
        let mut notes = Vec::new();
        assert_eq!(spcr(&table(79, 2, &[(40, &COM2)]), &mut notes), None);
        assert!(notes[0].contains("its 79 bytes are no whole one"), "{notes:?}");
    }

    #[test]
    fn registers_that_would_be_in_ram_are_seen_to_be() {
        let ram = |range: HpaRange| range.start.as_u64() < 0x8000_0000;
        assert!(read(&memory(32, 0, 3, 0x7000_0000), 0).unwrap().is_in_ram(ram));
        assert!(!read(&memory(32, 0, 3, 0xfe03_4000), 0).unwrap().is_in_ram(ram));
        assert!(!read(&COM2, 0).unwrap().is_in_ram(ram), "a port is nowhere in memory");
    }

    /// An entry: its port's type and subtype, and its addresses.
    fn entry(kind: u16, subtype: u16, addresses: &[[u8; 12]]) -> Vec<u8> {
        let mut bytes = vec![0; 22];
        bytes[1..3].copy_from_slice(&(22 + 12 * addresses.len() as u16).to_le_bytes());
        bytes[3] = addresses.len() as u8;
        bytes[12..14].copy_from_slice(&kind.to_le_bytes());
        bytes[14..16].copy_from_slice(&subtype.to_le_bytes());
        bytes[18..20].copy_from_slice(&22_u16.to_le_bytes());
        bytes.extend(addresses.concat());
        bytes
    }

    fn ports(count: u32, entries: &[Vec<u8>]) -> (Vec<SerialPort>, String) {
        let fields: &[(usize, &[u8])] = &[(36, &[44, 0, 0, 0]), (40, &count.to_le_bytes())];
        let mut notes = Vec::new();
        let found = dbg2(&[table(44, 0, fields), entries.concat()].concat(), &mut notes);
        (found, notes.join("\n"))
    }

    #[test]
    fn each_serial_port_of_a_dbg2_is_found_and_others_are_named() {
        let network = entry(0x8003, 0x8086, &[]);
        let serial = entry(0x8000, 0, &[COM2]);
        let (found, notes) = ports(3, &[network, serial, entry(0x8000, 3, &[COM2])]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].table, found[0].place), ("DBG2", UartPlace::port(0x2f8)));
        assert!(notes.contains("the DBG2's port 0 is no serial port (type 0x8003)"), "{notes}");
        assert!(notes.contains("it is an Arm PL011"), "{notes}");
    }

    #[test]
    fn a_dbg2_with_wrong_lengths_ends_with_a_sentence() {
        let mut none = entry(0x8000, 0, &[COM2]);
        none[1..3].copy_from_slice(&[0, 0]);
        let mut long = none.clone();
        long[1..3].copy_from_slice(&[0xff, 0xff]);
        for broken in [none, long, vec![], vec![0, 22]] {
            let (found, notes) = ports(u32::MAX, &[broken]);
            assert_eq!(found, []);
            assert!(notes.contains("the DBG2 ends at its port 0"), "{notes}");
        }
        let mut beyond = entry(0x8000, 0, &[COM2]);
        beyond[18..20].copy_from_slice(&[0xff, 0xff]);
        let (found, notes) = ports(1, &[beyond]);
        assert_eq!(found, []);
        assert!(notes.contains("it has no address"), "{notes}");
        assert!(ports(1, &[entry(0x8000, 0, &[])]).1.contains("it has no address"));
        assert_eq!(dbg2(&[0; 40], &mut Vec::new()), []);
    }
}
