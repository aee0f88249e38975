//! Configuration space of bus 0, by ports.

use arch::machine::Width;
use cpu::instructions::{port_read, port_write};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Reads the dword at `offset` of function 0 of `device`.
#[must_use]
pub fn config_read(device: u32, offset: u32) -> u32 {
    // SAFETY: the guest's own configuration ports.
    unsafe { port_write(CONFIG_ADDRESS, Width::Dword, 1 << 31 | device << 11 | offset) };
    // SAFETY: as above.
    unsafe { port_read(CONFIG_DATA, Width::Dword) }
}

pub fn config_write(device: u32, offset: u32, value: u32) {
    // SAFETY: the guest's own configuration ports.
    unsafe { port_write(CONFIG_ADDRESS, Width::Dword, 1 << 31 | device << 11 | offset) };
    // SAFETY: as above.
    unsafe { port_write(CONFIG_DATA, Width::Dword, value) };
}

/// Where a memory BAR of `device` is.
#[must_use]
pub fn bar(device: u32, index: u32) -> u64 {
    const MEMORY_64: u32 = 4;
    let offset = 0x10 + 4 * index;
    let low = config_read(device, offset);
    let high = if low & MEMORY_64 != 0 { config_read(device, offset + 4) } else { 0 };
    u64::from(high) << 32 | u64::from(low & !0xf)
}

/// Offset of the capability `id` of `device`.
#[must_use]
pub fn capability(device: u32, id: u32) -> Option<u32> {
    let mut at = config_read(device, 0x34) & 0xfc;
    while at != 0 {
        let header = config_read(device, at);
        if header & 0xff == id {
            return Some(at);
        }
        at = header >> 8 & 0xfc;
    }
    None
}
