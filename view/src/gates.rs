//! A guest's IDT: its own gates, and what the CPU reads in their place.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use arch::gate::{GATE_FLAGS_OFFSET, GATE_PRESENT, GateFormat};

use crate::{Column, Lines, Table};

/// A gate's bytes; those of 32-bit gates are the first eight.
pub type GateBytes = [u8; 16];

/// One vector's gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gate {
    /// What the guest has written; `None` where it has mapped no page.
    pub own: Option<GateBytes>,
    /// What the CPU reads.
    pub seen: Option<GateBytes>,
    /// Why the vector may reach the guest directly; empty where it may not.
    pub granted: String,
}

/// What is the same for all vectors of a row.
#[derive(PartialEq, Eq)]
struct Kind {
    own: Option<u8>,
    seen: Option<u8>,
    granted: String,
}

impl Gate {
    fn kind(&self) -> Kind {
        let flags = |bytes: &GateBytes| bytes[GATE_FLAGS_OFFSET];
        Kind {
            own: self.own.as_ref().map(flags),
            seen: self.seen.as_ref().map(flags),
            granted: self.granted.clone(),
        }
    }

    fn handler(&self, format: GateFormat) -> Option<u64> {
        let bytes =
            self.own.as_ref().filter(|bytes| bytes[GATE_FLAGS_OFFSET] & GATE_PRESENT != 0)?;
        let [a, b, _, _, _, _, c, d, e, f, g, h, ..] = *bytes;
        Some(match format {
            GateFormat::Bits64 => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            GateFormat::Bits32 => u32::from_le_bytes([a, b, c, d]).into(),
        })
    }
}

/// The flags of a gate in words (SDM "IDT Descriptors").
fn words(flags: Option<u8>) -> String {
    let Some(flags) = flags else { return "no memory".into() };
    let kind = match flags & 0x1f {
        0x5 => "task",
        0x6 => "interrupt, 16-bit",
        0x7 => "trap, 16-bit",
        0xe => "interrupt",
        0xf => "trap",
        _ => "no gate",
    };
    let ring = flags >> 5 & 3;
    match (flags & GATE_PRESENT != 0, flags) {
        (_, 0) => "empty".into(),
        (true, _) => format!("{kind}, ring {ring}"),
        (false, _) => format!("{kind}, ring {ring}, not present"),
    }
}

/// The gates from vector 0 on, of a table of this format. Vectors that differ in their handlers alone share a row.
#[must_use]
pub fn table(who: &str, format: GateFormat, gates: &[Gate]) -> Lines {
    let mut table = Table::new(&[
        Column::Left("  vectors"),
        Column::Left("guest's gate"),
        Column::Left("the CPU reads"),
        Column::Left("granted by"),
        Column::Left("handler"),
    ]);
    let mut rest: Vec<(usize, &Gate)> = gates.iter().enumerate().collect();
    while let Some((first, gate)) = rest.first().copied() {
        let kind = gate.kind();
        let alike = rest.iter().take_while(|(_, other)| other.kind() == kind).count();
        let last = first + alike - 1;
        let vectors = if alike == 1 {
            format!("  {first:#04x}")
        } else {
            format!("  {first:#04x}-{last:#04x}")
        };
        // What is empty shows as empty; a difference is what to look for.
        let seen = if kind.seen == kind.own { "the same".into() } else { words(kind.seen) };
        let handlers = match gate.handler(format) {
            None => String::new(),
            Some(handler) if alike == 1 => format!("{handler:x}"),
            Some(handler) => format!("{handler:x} .."),
        };
        let granted = if first < 32 { "an exception".into() } else { kind.granted.clone() };
        table.row([vectors, words(kind.own), seen, granted, handlers]);
        rest.drain(..alike);
    }
    let mut lines = vec![format!("{who}: {} gates", gates.len())];
    lines.extend(table.lines());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(flags: u8, seen: u8, handler: u64, granted: &str) -> Gate {
        let bytes = |flags| {
            let [a, b, c, d, e, f, g, h] = handler.to_le_bytes();
            [a, b, 0x10, 0, 0, flags, c, d, e, f, g, h, 0, 0, 0, 0]
        };
        Gate { own: Some(bytes(flags)), seen: Some(bytes(seen)), granted: granted.into() }
    }

    #[test]
    fn gates_that_are_alike_share_a_row_and_a_closed_one_is_seen() {
        let mut gates: Vec<Gate> =
            (0..32).map(|n| gate(0x8e, 0x8e, 0xffff_ffff_8100_0000 + n, "")).collect();
        gates.push(gate(0x8e, 0x0e, 0xffff_ffff_8100_0100, ""));
        gates.push(gate(0x8e, 0x8e, 0xffff_ffff_8100_0200, "a device"));
        gates.push(gate(0, 0x0e, 0, ""));
        gates.push(Gate { own: None, seen: None, granted: String::new() });
        assert_eq!(
            table("linux, CPU 0", GateFormat::Bits64, &gates),
            [
                "linux, CPU 0: 36 gates",
                "  vectors    guest's gate       the CPU reads                   granted by    handler",
                "  0x00-0x1f  interrupt, ring 0  the same                        an exception  ffffffff81000000 ..",
                "  0x20       interrupt, ring 0  interrupt, ring 0, not present                ffffffff81000100",
                "  0x21       interrupt, ring 0  the same                        a device      ffffffff81000200",
                "  0x22       empty              interrupt, ring 0, not present",
                "  0x23       no memory          the same",
            ]
        );
    }

    #[test]
    fn a_gate_of_32_bits_has_its_handler_in_two_pieces() {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&[0x78, 0x56, 8, 0, 0, 0x8f, 0x34, 0x12]);
        let gate = Gate { own: Some(bytes), seen: Some(bytes), granted: String::new() };
        let lines = table("a", GateFormat::Bits32, &[gate]);
        assert!(lines[2].contains("trap, ring 0") && lines[2].ends_with("12345678"), "{lines:?}");
    }
}
