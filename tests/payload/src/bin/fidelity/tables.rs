//! Descriptor tables and the registers that name them.

use core::arch::asm;

use crate::fact;
use crate::trap::{self, Told};

/// SGDT or SIDT with the opcode's extension.
fn stored(extension: u8) -> [u8; 10] {
    let mut place = [0xee_u8; 10];
    let _ = trap::bytes(&[0x0f, 0x01, 7 | extension << 3], place.as_mut_ptr() as u64);
    core::hint::black_box(place)
}

fn limit(place: [u8; 10]) -> u16 {
    u16::from_le_bytes([place[0], place[1]])
}

pub(crate) fn all() {
    let (gdtr, idtr) = (stored(0), stored(1));
    fact!("tables: limits of GDTR and IDTR"; "{:#x}, {:#x}", limit(gdtr), limit(idtr));
    let selectors: [u16; 2] = core::array::from_fn(|which| {
        let selector: u64;
        if which == 0 {
            // SAFETY: a read.
            unsafe { asm!("sldt {:x}", out(reg) selector) };
        } else {
            // SAFETY: a read.
            unsafe { asm!("str {:x}", out(reg) selector) };
        }
        selector as u16
    });
    fact!("tables: LDTR and TR at the start"; "{selectors:x?}");
    for (name, code, argument) in [
        ("LLDT of null", &[0x0f, 0x00, 0xd7][..], 0),
        ("LLDT of a code segment", &[0x0f, 0x00, 0xd7], 8),
        ("LLDT beyond the GDT", &[0x0f, 0x00, 0xd7], 0x1238),
        ("LTR of null", &[0x0f, 0x00, 0xdf], 0),
        ("LTR of a data segment", &[0x0f, 0x00, 0xdf], 16),
        ("LTR beyond the GDT", &[0x0f, 0x00, 0xdf], 0x1238),
        ("LGDT from where nothing is mapped", &[0x0f, 0x01, 0x17], 0x1_0000_0000),
        ("LIDT from where nothing is mapped", &[0x0f, 0x01, 0x1f], 0x1_0000_0000),
        ("SIDT to where nothing is mapped", &[0x0f, 0x01, 0x0f], 0x1_0000_0000),
        ("LGDT from no address", &[0x0f, 0x01, 0x17], 0x8000_0000_0000),
        ("LLDT from no address", &[0x0f, 0x00, 0x17], 0x8000_0000_0000),
        ("VERR of a code segment", &[0x0f, 0x00, 0xe7], 8),
    ] {
        fact!("tables: {name}"; "{}", Told(trap::bytes(code, argument)));
    }
    // A base that is not canonical.
    let mut bad = [0xff_u8; 10];
    bad[9] = 0x7f;
    let at = bad.as_ptr() as u64;
    let again = gdtr.as_ptr() as u64;
    // QEMU takes them.
    let seen = trap::bytes(&[0x0f, 0x01, 0x17], at);
    let _ = trap::bytes(&[0x0f, 0x01, 0x17], again);
    fact!("tables: LGDT of a base that is no address"; "{}", Told(seen));
    let seen = trap::bytes(&[0x0f, 0x01, 0x1f], at);
    trap::load(0xfff);
    fact!("tables: LIDT of a base that is no address"; "{}", Told(seen));
    fact!("tables: GDTR and IDTR are as they were"; "{}", (gdtr, idtr) == (stored(0), stored(1)));
}
