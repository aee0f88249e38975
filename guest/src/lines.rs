//! The physical interrupt lines of a guest, and the inputs of its I/O APIC that they drive.
//!
//! Invariant: no two lines drive one input, and none drives that of the console. A line of the ISA bus
//! has the number that it has in every PC; a line of PCI keeps its number too, where it is one of
//! 16 to 23, and otherwise gets a free one of those.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use config::{GuestConfig, Uart};

use crate::devices::ioapic::{INPUTS, ISA_INPUTS};
use crate::devices::pit;

/// The inputs for lines of PCI.
const PCI_INPUTS: Range<u32> = ISA_INPUTS..INPUTS;

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    /// The input of the guest's I/O APIC.
    pub input: u32,
    /// The machine's global system interrupt.
    pub gsi: u32,
    /// A line of PCI is active when low, one of the ISA bus when high.
    pub active_low: bool,
}

/// How a line is wired in the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wired {
    /// The machine's global system interrupt.
    pub gsi: u32,
    /// It is active when low.
    pub active_low: bool,
    /// It is level-triggered, whatever the guest takes it for.
    pub level: bool,
}

impl Line {
    /// How it is wired, where `isa` says so of an interrupt of the machine's ISA bus: firmware may have
    /// moved it.
    pub fn wired(self, isa: impl Fn(u8) -> Wired) -> Wired {
        match self.input {
            pit::GSI => isa(0),
            input if input < ISA_INPUTS => isa(input as u8),
            _ => Wired { gsi: self.gsi, active_low: self.active_low, level: false },
        }
    }
}

/// Two that would share an interrupt of the machine, because the firmware has moved one of the ISA bus to
/// where `intx` names a line of PCI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clash<'a> {
    /// Whose the interrupt of the ISA bus is, and its number there.
    pub isa: (&'a str, u32),
    /// Who names the line.
    pub intx: &'a str,
    /// The global system interrupt.
    pub gsi: u32,
}

impl fmt::Display for Clash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { isa: (owner, irq), gsi, .. } = self;
        write!(
            f,
            "intx names line {gsi}, to which this machine's firmware has moved interrupt {irq} of \
             the ISA bus, which is that of {owner}: the two cannot be told apart; give one of the devices up"
        )
    }
}

/// Finds the first of `lines`, each with its owner, that would share an interrupt with another.
pub fn clash<'a>(lines: &[(&'a str, Line)], isa: impl Fn(u8) -> Wired) -> Option<Clash<'a>> {
    let is_pci = |line: &Line| PCI_INPUTS.contains(&line.input);
    lines.iter().filter(|(_, line)| !is_pci(line)).find_map(|(owner, line)| {
        let gsi = line.wired(&isa).gsi;
        let mut others = lines.iter().filter(|(_, other)| is_pci(other) && other.gsi == gsi);
        let irq = if line.input == pit::GSI { 0 } else { line.input };
        others.next().map(|(intx, _)| Clash { isa: (owner, irq), intx, gsi })
    })
}

/// A guest has more lines of PCI than its I/O APIC has inputs for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyLines;

impl fmt::Display for TooManyLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "intx names more than {} different lines: remove some", PCI_INPUTS.len())
    }
}

impl core::error::Error for TooManyLines {}

/// The lines that `guest` names, and its others of the ISA bus: of IDE channels in compatibility mode, and
/// of the PIT.
///
/// # Errors
/// When there are too many.
pub fn of(guest: &GuestConfig, isa: impl Iterator<Item = u32>) -> Result<Vec<Line>, TooManyLines> {
    let isa = isa.chain(guest.uart.map(Uart::gsi));
    let mut lines: Vec<Line> = isa.map(|gsi| Line { input: gsi, gsi, active_low: false }).collect();
    let mut pci: Vec<u32> = guest.intx.iter().map(|entry| entry.gsi).collect();
    // Those that keep their number come first.
    pci.sort_unstable_by_key(|gsi| (!PCI_INPUTS.contains(gsi), *gsi));
    pci.dedup();
    for gsi in pci {
        let free = |input: &u32| !lines.iter().any(|line| line.input == *input);
        let own = Some(gsi).filter(|gsi| PCI_INPUTS.contains(gsi));
        let input = own.or_else(|| PCI_INPUTS.clone().find(free)).ok_or(TooManyLines)?;
        lines.push(Line { input, gsi, active_low: true });
    }
    Ok(lines)
}

/// Whether a guest with these lines has 8259s, from whose numbers Linux takes those of the PIT and of IDE
/// channels: it gives the lines of what ACPI names numbers of its own.
#[must_use]
pub fn legacy(lines: &[Line]) -> bool {
    lines.iter().any(|line| matches!(line.input, pit::GSI | 14 | 15))
}

/// Inputs of the I/O APIC of a guest that has these lines. Those that are never used cost exits, too:
/// Linux reads and masks each several times while it starts.
pub(crate) fn inputs(lines: &[Line]) -> u32 {
    let pci = lines.iter().any(|line| PCI_INPUTS.contains(&line.input));
    if pci { INPUTS } else { ISA_INPUTS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;

    fn lines(gsis: &[u32], further: &str) -> Result<Vec<(u32, u32)>, TooManyLines> {
        let entries: Vec<String> =
            gsis.iter().enumerate().map(|(i, gsi)| format!("\"00:{i:02x}.0={gsi}\"")).collect();
        let text = format!(
            "[[guest]]\nname=\"a\"\ncpus=[0]\nmemory=\"1G\"\nkernel=\"k\"\nintx=[{}]\n{further}",
            entries.join(",")
        );
        let config = config::parse(&text).unwrap();
        let lines = of(&config.guests[0], [14].into_iter())?;
        assert!(lines.iter().all(|line| line.active_low == (line.gsi != 3 && line.gsi != 14)));
        assert_eq!(inputs(&lines), if gsis.is_empty() { 16 } else { 24 });
        Ok(lines.iter().map(|line| (line.input, line.gsi)).collect())
    }

    #[test]
    fn lines_keep_their_numbers_where_the_guest_has_such_an_input() {
        assert_eq!(lines(&[], ""), Ok(vec![(14, 14)]));
        let expected = vec![(14, 14), (3, 3), (17, 17), (23, 23), (16, 11), (18, 40)];
        assert_eq!(lines(&[40, 23, 11, 17, 23], "uart=\"COM2\""), Ok(expected));
    }

    /// A machine whose interrupts 3 and 14 of the ISA bus were moved.
    fn moved(irq: u8) -> Wired {
        let (gsi, active_low, level) = match irq {
            0 => (2, false, false),
            3 => (20, true, true),
            14 => (46, true, false),
            _ => (u32::from(irq), false, false),
        };
        Wired { gsi, active_low, level }
    }

    #[test]
    fn lines_of_the_isa_bus_are_where_the_firmware_says() {
        let wired = |input, gsi| {
            let wired = Line { input, gsi, active_low: input >= 16 }.wired(moved);
            (wired.gsi, wired.active_low, wired.level)
        };
        assert_eq!([wired(2, 2), wired(3, 3)], [(2, false, false), (20, true, true)]);
        assert_eq!([wired(14, 14), wired(15, 15)], [(46, true, false), (15, false, false)]);
        let pci = [wired(16, 11), wired(20, 3)];
        assert_eq!(pci, [(11, true, false), (3, true, false)], "lines of PCI");
    }

    #[test]
    fn an_interrupt_that_was_moved_onto_a_line_of_pci_is_found() {
        let uart = ("a", Line { input: 3, gsi: 3, active_low: false });
        let ide = ("a", Line { input: 14, gsi: 14, active_low: false });
        let intx = |name, gsi| (name, Line { input: 16, gsi, active_low: true });
        assert_eq!(clash(&[uart, ide, intx("b", 16), intx("b", 3)], moved), None);
        let found = clash(&[ide, intx("b", 20), uart], moved);
        assert_eq!(found, Some(Clash { isa: ("a", 3), intx: "b", gsi: 20 }));
        let sentence = format!("{}", found.unwrap());
        assert!(sentence.starts_with("intx names line 20, to which"), "{sentence}");
        let own = clash(&[uart, intx("a", 20)], moved);
        assert_eq!(own, Some(Clash { isa: ("a", 3), intx: "a", gsi: 20 }), "one guest's own");
    }

    #[test]
    fn only_the_pit_and_ide_channels_need_the_8259s() {
        for (input, needed) in [(2, true), (3, false), (14, true), (15, true), (17, false)] {
            assert_eq!(legacy(&[Line { input, gsi: input, active_low: false }]), needed);
        }
    }

    #[test]
    fn a_ninth_line_of_pci_is_refused() {
        let eight: Vec<u32> = (30..38).collect();
        assert_eq!(lines(&eight, "").map(|lines| lines.len()), Ok(9));
        let nine: Vec<u32> = (30..39).collect();
        assert_eq!(lines(&nine, ""), Err(TooManyLines));
    }
}
