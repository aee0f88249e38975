//! On the machines whose files are in the tree, no function may have its I/O BAR on a register of the ACPI hardware.
#![allow(clippy::unwrap_used)] // helpers of tests: a panic is the failure

use std::iter;
use std::path::Path;

use arch::Hpa;
use arch::address::HpaRange;
use capture::Capture;
use plan::owners::{self, Others};

/// Machine, and PM1_EVT, PM1_CNT and, where there is one, GPE0 of its FADT: the first port and the last.
const MACHINES: [(&str, &[(u16, u16)]); 3] = [
    ("bochs-vtd", &[(0xb000, 0xb003), (0xb004, 0xb005)]),
    ("qemu-q35-no-iommu", &[(0x600, 0x603), (0x604, 0x605), (0x620, 0x62f)]),
    ("qemu-q35-pxb", &[(0x600, 0x603), (0x604, 0x605), (0x620, 0x62f)]),
];

#[test]
fn the_registers_of_each_machines_acpi_hardware_have_an_owner() {
    for (name, expected) in MACHINES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/data/machines");
        let view = Capture::read(&folder.join(format!("{name}.toml"))).unwrap().view();
        let none = || iter::empty::<HpaRange>();
        let image = HpaRange { start: Hpa::new(0x20_0000), length: 0x20_0000 };
        let others = Others { image, ram: none(), ecam: none(), units: none(), console: None };
        let owners = owners::of(view.platform.as_ref().ok(), others);
        let acpi: Vec<_> = owners.ports.iter().filter(|(_, who)| who.contains("ACPI")).collect();
        for (first, last) in expected {
            let there = acpi.iter().any(|(range, _)| (range.first, range.last) == (*first, *last));
            assert!(there, "{name}: {first:#x} to {last:#x} of {acpi:x?}");
        }
    }
}
