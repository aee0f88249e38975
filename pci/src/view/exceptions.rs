//! What a guest may write outside of capabilities: nothing, but for these registers.
//!
//! What lies there has no common meaning. It can raise an SMI (Intel graphics' SWSCI and ASLS, the traps of EHCI's and UHCI's
//! legacy support), turn a controller into another one (MAP of Intel's SATA), write flash, or move a port from one function to
//! another (Intel's xHCI and EHCI). So a register passes only if a driver is known to need it, and if it concerns nothing
//! but its own function. The rows are public facts, from the drivers of Linux that each one names. What a row does not name
//! reads as the device has it.

use core::ops::RangeInclusive;

use arch::Width;

const AMD: u16 = 0x1022;
const ATI: u16 = 0x1002;
const BROADCOM: u16 = 0x14e4;
const INTEL: u16 = 0x8086;
const NVIDIA: u16 = 0x10de;

const IDE: u32 = 0x01_01;
const AHCI: u32 = 0x01_06;
const ETHERNET: u32 = 0x02_00;
const HD_AUDIO: u32 = 0x04_03;
/// With its programming interface, 00h: the other USB controllers are not meant.
const USB_UHCI: u32 = 0x0c_03_00;

/// Which functions a row is for.
#[derive(Clone, Copy)]
enum Of {
    /// A vendor's functions of a base class and sub-class.
    Vendor(u16, u32),
    /// Anybody's functions of a base class, sub-class and programming interface.
    Interface(u32),
}

/// A register that passes.
struct Row {
    of: Of,
    bytes: RangeInclusive<u16>,
    /// Bits that the guest changes, counted from the first byte; the others keep what they have.
    bits: u32,
}

const fn row(of: Of, bytes: RangeInclusive<u16>, bits: u32) -> Row {
    Row { of, bytes, bits }
}

const ROWS: &[Row] = &[
    // The timing of the channels and their cables (`ata_piix`).
    row(Of::Vendor(INTEL, IDE), 0x40..=0x57, !0),
    // PCS: which ports are enabled, where firmware has not done it (`ahci`). MAP, beside it, says what the controller is.
    row(Of::Vendor(INTEL, AHCI), 0x92..=0x93, !0),
    // The windows to registers and memory of the chip, which BAR 0 shows, too; some revisions want them used (`tg3`, `bnx2`).
    row(Of::Vendor(BROADCOM, ETHERNET), 0x68..=0x9b, !0),
    // TCSEL and the clock gate that a controller's reset needs open (`snd_hda_intel`, `snd_soc_avs`).
    row(Of::Vendor(INTEL, HD_AUDIO), 0x44..=0x44, 0x7),
    row(Of::Vendor(INTEL, HD_AUDIO), 0x48..=0x4b, 1 << 6),
    // Whether its transfers snoop caches (`snd_hda_intel`).
    row(Of::Vendor(ATI, HD_AUDIO), 0x42..=0x42, 0x7),
    row(Of::Vendor(AMD, HD_AUDIO), 0x42..=0x42, 0x7),
    row(Of::Vendor(NVIDIA, HD_AUDIO), 0x4c..=0x4c, 0x1),
    row(Of::Vendor(NVIDIA, HD_AUDIO), 0x4d..=0x4d, 0x1),
    row(Of::Vendor(NVIDIA, HD_AUDIO), 0x4e..=0x4e, 0xf),
    // Legacy support: the interrupt is on, and the status of traps is cleared; no trap is switched on (`uhci_hcd`; UHCI Design
    // Guide, "Legacy Support Register").
    row(Of::Interface(USB_UHCI), 0xc0..=0xc1, 0xaf00),
];

/// Which bits of `width` at `offset` the guest of a function with this vendor and class code may change; 0: none.
pub(super) fn writable(vendor: u16, class: u32, offset: u16, width: Width) -> u32 {
    let last = offset + u16::from(width.bytes()) - 1;
    let holds = |row: &&Row| {
        let is_of = match row.of {
            Of::Vendor(of, sub_class) => vendor == of && class >> 8 == sub_class,
            Of::Interface(interface) => class == interface,
        };
        is_of && row.bytes.contains(&offset) && row.bytes.contains(&last)
    };
    ROWS.iter().find(holds).map_or(0, |row| {
        let shift = 8 * u32::from(offset - row.bytes.start());
        let bits = if row.bits == !0 { !0 } else { row.bits >> shift };
        bits & width.mask() as u32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_what_lies_whole_in_it_to_its_own_functions() {
        use Width::{Byte, Dword, Word};
        let cases = [
            (INTEL, 0x01_0180, 0x40, Word, 0xffff),
            (INTEL, 0x01_0180, 0x54, Dword, 0xffff_ffff),
            (INTEL, 0x01_0180, 0x58, Byte, 0),
            (AMD, 0x01_0180, 0x40, Word, 0),
            (INTEL, 0x01_0601, 0x92, Word, 0xffff),
            (INTEL, 0x01_0601, 0x90, Byte, 0),
            (INTEL, 0x01_0601, 0x90, Dword, 0),
            (BROADCOM, 0x02_0000, 0x78, Dword, 0xffff_ffff),
            (BROADCOM, 0x02_8000, 0x78, Dword, 0),
            (INTEL, 0x04_0300, 0x44, Byte, 7),
            (INTEL, 0x04_0300, 0x44, Dword, 0),
            (INTEL, 0x04_0300, 0x48, Dword, 0x40),
            (INTEL, 0x04_0300, 0x49, Byte, 0),
            (NVIDIA, 0x04_0300, 0x4e, Byte, 0xf),
            (INTEL, 0x0c_0300, 0xc0, Word, 0xaf00),
            (0x1106, 0x0c_0300, 0xc1, Byte, 0xaf),
            (INTEL, 0x0c_0330, 0xd0, Dword, 0),
            (INTEL, 0x0c_0320, 0x6c, Dword, 0),
        ];
        for (vendor, class, offset, width, bits) in cases {
            let what = (vendor, class, offset, width);
            assert_eq!(writable(vendor, class, offset, width), bits, "{what:x?}");
        }
    }

    #[test]
    fn a_display_has_no_register_that_passes_whoever_made_it() {
        // SWSCI is at 0xe0 or 0xe8, ASLE at 0xe4 and ASLS at 0xfc: the first two raise an SMI.
        for vendor in [INTEL, AMD, ATI, NVIDIA, BROADCOM] {
            for sub_class in 0..=0xff {
                for offset in 0x40..0x100 {
                    let bits = writable(vendor, 0x03_0000 | sub_class << 8, offset, Width::Byte);
                    assert_eq!(bits, 0, "{vendor:x} {offset:x}");
                }
            }
        }
    }
}
