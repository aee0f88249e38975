//! Functions whose resets are broken, by vendor and device.
//!
//! The rows are public facts: Linux' `drivers/pci/quirks.c` has each of them with the report that it
//! came from (`quirk_no_flr`, `quirk_no_pm_reset`, `quirk_no_bus_reset`, `delay_250ms_after_flr`,
//! `nvme_disable_and_flr`).

use crate::header::Function;

const AMD: u16 = 0x1022;
const ATI: u16 = 0x1002;
const ATHEROS: u16 = 0x168c;
const INTEL: u16 = 0x8086;
const LSI: u16 = 0x11c1;
const MEDIATEK: u16 = 0x14c3;
const NVIDIA: u16 = 0x10de;
const SAMSUNG: u16 = 0x144d;
const SOLIDIGM: u16 = 0x025e;
const SOLIDRUN: u16 = 0xd063;
const TEXAS_INSTRUMENTS: u16 = 0x104c;

/// Function Level Reset is offered, but hangs the device or does not reset it.
pub(crate) const fn has_broken_function_reset(function: &Function) -> bool {
    matches!(
        (function.vendor, function.device),
        // Starship and Matisse: HD audio, USB 3.0; FCH AHCI.
        (AMD, 0x1487 | 0x148c | 0x149c | 0x7901)
            // 82579LM and 82579V.
            | (INTEL, 0x1502 | 0x1503)
            // MT7922.
            | (MEDIATEK, 0x0616)
            // SNET DPU (its first revision; the others are kept from it too).
            | (SOLIDRUN, 0x1000)
            // SM961 and PM961: it may not answer again if it was enabled. A bus reset brings it back.
            | (SAMSUNG, 0xa804)
    )
}

/// D3hot and D0 do not reset it, though PMCSR says so: AMD's displays.
pub(crate) const fn has_broken_power_reset(function: &Function) -> bool {
    const VGA: u32 = 0x03_00;
    function.vendor == ATI && function.class >> 8 == VGA
}

/// It does not come back from a Secondary Bus Reset.
pub(crate) const fn has_broken_bus_reset(function: &Function) -> bool {
    matches!(
        (function.vendor, function.device),
        // AR9xxx, QCA6174, QCA98xx.
        (ATHEROS, 0x0030 | 0x0032..=0x0034 | 0x003c | 0x003e)
            // A100 and their like, T4.
            | (NVIDIA, 0x2340..=0x237f | 0x1eb8)
            // KeyStone C667X.
            | (TEXAS_INSTRUMENTS, 0xb005)
            // FW643.
            | (LSI, 0x5900 | 0x5901)
    )
}

/// How long it must be left alone after a Function Level Reset, although it answers: some NVMe
/// controllers are enabled too soon otherwise.
pub(crate) const fn rest_after_function_reset_ms(function: &Function) -> u32 {
    match (function.vendor, function.device) {
        // DC P3700, DC P4500 and P4600; D7-P5510.
        (INTEL, 0x0953 | 0x0a54) | (SOLIDIGM, 0xf1ac) => 250,
        _ => 0,
    }
}
