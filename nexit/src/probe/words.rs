//! What classes and capabilities are called (PCI Code and ID Assignment Specification).

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};
use pci::capability::{capabilities as listed, extended_capabilities};

/// The name of a class code.
pub(super) const fn class(class: u32) -> &'static str {
    match class >> 8 {
        0x0101 => "IDE controller",
        0x0104 => "RAID controller",
        0x0106 => "SATA controller",
        0x0107 => "SAS controller",
        0x0108 => "NVMe controller",
        0x0200 => "Ethernet controller",
        0x0280 => "network controller",
        0x0401 | 0x0403 => "sound",
        0x0600 => "host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0700 => "serial port",
        0x0806 => "IOMMU",
        0x0c03 => "USB controller",
        0x0c05 => "SMBus",
        _ => match class >> 16 {
            0x01 => "mass storage",
            0x02 => "network",
            0x03 => "display",
            0x04 => "multimedia",
            0x05 => "memory controller",
            0x06 => "bridge",
            0x07 => "communication",
            0x08 => "system peripheral",
            0x09 => "input",
            0x0c => "serial bus",
            0x0d => "wireless",
            0x10 => "encryption",
            0x11 => "signal processing",
            0x12 => "accelerator",
            _ => "device",
        },
    }
}

/// A function's capabilities, in the order of its lists.
pub(super) fn capabilities(space: &impl ConfigSpace, function: Bdf) -> Vec<String> {
    let plain = listed(space, function).map(|it| match it.id {
        pci::capability::MSI_X => {
            let control = space.read(function, it.offset + 2, Width::Word);
            format!("MSI-X ({} messages)", (control & 0x7ff) + 1)
        }
        id => name(PLAIN, id, "capability"),
    });
    let extended = extended_capabilities(space, function);
    plain.chain(extended.map(|it| name(EXTENDED, it.id, "extended capability"))).collect()
}

fn name(names: &[(u16, &str)], id: u16, what: &str) -> String {
    let known = names.iter().find(|(known, _)| *known == id);
    known.map_or_else(|| format!("{what} {id:#04x}"), |(_, name)| (*name).to_string())
}

const PLAIN: &[(u16, &str)] = &[
    (0x01, "power management"),
    (0x03, "VPD"),
    (0x05, "MSI"),
    (0x07, "PCI-X"),
    (0x09, "vendor-specific"),
    (0x0d, "subsystem ID"),
    (0x10, "PCI Express"),
    (0x12, "SATA"),
    (0x13, "advanced features"),
];

const EXTENDED: &[(u16, &str)] = &[
    (0x01, "AER"),
    (0x02, "virtual channels"),
    (0x03, "serial number"),
    (0x0b, "vendor-specific (extended)"),
    (0x0d, "ACS"),
    (0x0e, "ARI"),
    (0x0f, "ATS"),
    (0x10, "SR-IOV"),
    (0x13, "PRI"),
    (0x15, "resizable BAR"),
    (0x18, "LTR"),
    (0x19, "secondary PCI Express"),
    (0x1b, "PASID"),
    (0x1e, "L1 substates"),
];
