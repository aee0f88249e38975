//! Ports of the chipset that every PC has, and ports of nobody: what is read, and what of a write is kept.

use arch::machine::Width;
use cpu::instructions::{port_read, port_write};
use payload::fact;

use crate::hpet;

const WIDTHS: [(Width, &str); 3] =
    [(Width::Byte, "byte"), (Width::Word, "word"), (Width::Dword, "dword")];

fn read(port: u16, width: Width) -> u32 {
    // SAFETY: none of the ports here changes anything when it is read.
    unsafe { port_read(port, width) }
}

fn byte(port: u16) -> u32 {
    read(port, Width::Byte)
}

fn write(port: u16, width: Width, value: u32) {
    // SAFETY: nor does what is written here change what this payload needs.
    unsafe { port_write(port, width, value) };
}

pub(crate) fn all() {
    nobody();
    system_control();
    clock_memory();
    keyboard();
    configuration();
    power_timer();
    hpet_memory();
}

fn nobody() {
    for port in [0x48, 0x15c, 0x260, 0x15c0, 0x8f34, 0xeff0, 0xfffc] {
        for (width, name) in WIDTHS {
            write(port, width, 0);
            fact!("chipset: a port of nobody, {port:#x}, by {name}"; "{:#x}", read(port, width));
        }
    }
    // The second 8259's mask, and what is behind it.
    write(0xa1, Width::Byte, 0xa5);
    fact!("chipset: the second 8259's mask, by byte"; "{:#x}", byte(0xa1));
    write(0xa1, Width::Byte, 0xff);
}

/// 0x61 and 0x92.
fn system_control() {
    const PORT_B: u16 = 0x61;
    let before = byte(PORT_B) & 0xf;
    for bits in 0..4 {
        write(PORT_B, Width::Byte, bits);
        fact!("chipset: port 0x61, bits 0 to 3, of {bits}"; "{:#x}", byte(PORT_B) & 15);
        fact!("chipset: port 0x61, bits 6 and 7, of {bits}"; "{:#x}", byte(PORT_B) >> 6);
    }
    // Writes to what can only be read, and the two that disable what is told by NMI.
    write(PORT_B, Width::Byte, 0xf0);
    fact!("chipset: port 0x61, bits 0 to 3, of 0xf0"; "{:#x}", byte(PORT_B) & 15);
    write(PORT_B, Width::Byte, 0x0c);
    fact!("chipset: port 0x61, bits 0 to 3, of 0xc"; "{:#x}", byte(PORT_B) & 15);
    write(PORT_B, Width::Byte, before);
    let refresh = |_| byte(PORT_B) >> 4 & 1;
    // More than 30 microseconds in any machine.
    let seen = (0..20_000).map(refresh).fold(0, |seen, bit| seen | 1 << bit);
    fact!("chipset: port 0x61, bit 4 has been"; "{seen:#b}");
    const PORT_A: u16 = 0x92;
    fact!("chipset: port 0x92"; "{:#x}", byte(PORT_A));
    // Bit 1 stays, as the address line does.
    write(PORT_A, Width::Byte, 0xfe);
    fact!("chipset: port 0x92, of 0xfe"; "{:#x}", byte(PORT_A));
    write(PORT_A, Width::Byte, 0x02);
    fact!("chipset: port 0x92, of 2"; "{:#x}", byte(PORT_A));
}

/// The MC146818.
fn clock_memory() {
    const INDEX: u16 = 0x70;
    const DATA: u16 = 0x71;
    let at = |index| {
        write(INDEX, Width::Byte, index);
        byte(DATA)
    };
    fact!("chipset: port 0x70 read"; "{:#x}", { write(INDEX, Width::Byte, 0x0d); byte(INDEX) });
    fact!("chipset: register D"; "{:#x}", at(0x0d));
    fact!("chipset: register D, read again"; "{:#x}", byte(DATA));
    fact!("chipset: register D with NMIs off"; "{:#x}", at(0x8d));
    fact!("chipset: register A but UIP"; "{:#x}", at(0x0a) & 0x7f);
    fact!("chipset: register B"; "{:#x}", at(0x0b));
    at(0x0c);
    fact!("chipset: register C, read twice"; "{:#x}", at(0x0c));
    // Register D can only be read.
    write(INDEX, Width::Byte, 0x0d);
    write(DATA, Width::Byte, 0);
    fact!("chipset: register D, 0 written"; "{:#x}", at(0x0d));
    let before = at(0x7e);
    write(DATA, Width::Byte, before ^ 0xff);
    fact!("chipset: a byte of the clock's memory keeps what is written"; "{}", at(0x7e) == before ^ 0xff);
    write(DATA, Width::Byte, before);
    // Alarms: don't care.
    let before = at(0x01);
    write(DATA, Width::Byte, 0xc0);
    fact!("chipset: the alarm's second keeps what is written"; "{}", at(0x01) == 0xc0);
    write(DATA, Width::Byte, before);
    write(INDEX, Width::Byte, 0x0d);
}

fn keyboard() {
    const STATUS: u16 = 0x64;
    fact!("chipset: port 0x64, bits 0, 1 and 5"; "{:#x}", byte(STATUS) & 0x23);
}

/// 0xCF8 to 0xCFF, and 0xCF9.
fn configuration() {
    const ADDRESS: u16 = 0xcf8;
    const DATA: u16 = 0xcfc;
    for value in [0x8000_0000, 0x8000_0004, 0x8000_0003, 0x7f00_0000, 0x0000_0000, 0xffff_fffc] {
        write(ADDRESS, Width::Dword, value);
        fact!("chipset: port 0xcf8 written with {value:#x}"; "{:#x}", read(ADDRESS, Width::Dword));
    }
    write(ADDRESS, Width::Dword, 0x8000_0008);
    // No bit that begins a reset, should the word come to 0xcf9.
    write(ADDRESS, Width::Byte, 0x40);
    write(ADDRESS, Width::Word, 0x4040);
    fact!("chipset: port 0xcf8 behind writes of a byte and a word"; "{:#x}", read(ADDRESS, Width::Dword));
    // 0xcf9 is a port of its own: 0 is no reset.
    write(0xcf9, Width::Byte, 0);
    fact!("chipset: port 0xcf9, of 0"; "{:#x}", byte(0xcf9));
    fact!("chipset: port 0xcf8 behind that"; "{:#x}", read(ADDRESS, Width::Dword));
    // What does not begin a reset is kept.
    write(0xcf9, Width::Byte, 2);
    fact!("chipset: port 0xcf9, of 2"; "{:#x}", byte(0xcf9));
    write(0xcf9, Width::Byte, 0);
    // The host bridge by every width: the parts are those of the whole.
    write(ADDRESS, Width::Dword, 0x8000_0000);
    let whole = read(DATA, Width::Dword);
    let words = read(DATA, Width::Word) | read(DATA + 2, Width::Word) << 16;
    let bytes = (0..4).fold(0, |all, at| all | byte(DATA + at) << (8 * at));
    fact!("chipset: the host bridge is there"; "{}", whole != !0 && whole != 0);
    fact!("chipset: its identification by words and by bytes"; "{}", words == whole && bytes == whole);
    // Which bits 0 and 1 of the address do not change.
    write(ADDRESS, Width::Dword, 0x8000_0003);
    fact!("chipset: the same with bits 0 and 1 of the address"; "{}", read(DATA, Width::Dword) == whole);
    write(ADDRESS, Width::Dword, 0);
    fact!("chipset: port 0xcfc while bit 31 is 0"; "{:#x}", read(DATA, Width::Dword));
    // A function of a device that has only one, and a device that is not there.
    for (address, what) in
        [(0x8000_0100_u32, "function 1 of the host bridge"), (0x80ff_ff00, "the last function")]
    {
        write(ADDRESS, Width::Dword, address);
        fact!("chipset: {what}"; "{:#x}", read(DATA, Width::Dword));
        fact!("chipset: {what}, by byte"; "{:#x}", byte(DATA));
    }
    write(ADDRESS, Width::Dword, 0);
}

fn power_timer() {
    const LONG: u32 = 1 << 8;
    let Some(table) = hpet::table(*b"FACP") else { return };
    let port = hpet::read::<u32>(table + 76) as u16;
    let long = hpet::read::<u32>(table + 112) & LONG != 0;
    let length = hpet::read::<u8>(table + 91);
    fact!("chipset: PM timer: its length in ACPI"; "{length}");
    fact!("chipset: PM timer: 32 bits in ACPI"; "{long}");
    let timer = || read(port, Width::Dword);
    let first = timer();
    let moves = (0..100_000).any(|_| timer() != first);
    fact!("chipset: PM timer: counts"; "{moves}");
    let backwards = |mut last: u32| {
        let mask = if long { !0 } else { 0xff_ffff };
        (0..1000).any(|_| {
            let now = timer();
            let back = now.wrapping_sub(last) & mask > mask / 2;
            last = now;
            back
        })
    };
    fact!("chipset: PM timer: goes backwards"; "{}", backwards(timer()));
    if !long {
        fact!("chipset: PM timer: bits 24 to 31"; "{:#x}", timer() >> 24);
    }
    let mut before = timer();
    write(port, Width::Dword, 0);
    before = timer().wrapping_sub(before) & 0xff_ffff;
    fact!("chipset: PM timer: a write sets it back"; "{}", before > 0x80_0000);
}

fn hpet_memory() {
    // The registers of the HPET: there, or as where nothing is.
    const HPET: u64 = 0xfed0_0000;
    let named = hpet::table(*b"HPET").is_some();
    let low = hpet::read::<u32>(HPET);
    fact!("chipset: the HPET is at its usual place as ACPI says"; "{}", named == (low != !0 && low != 0));
}
