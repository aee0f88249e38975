//! How fast this machine's clocks run.

use arch::clock::Counter;
use clock::Clock;
use cpu::clock::{AcpiTimer, Pit};
use cpu::hpet::Hpet;
use cpu::instructions::{cpuid, tsc};
use cpu::local_apic::{ApicTimer, LocalApic};
use firmware::PmTimer;
use plan::Vendor;

use crate::backend;
use crate::console::logln;
use crate::machine::MachineClock;
use crate::refusal::{Refusal, refuse};

/// Says how fast the time-stamp counter runs, and who says so.
pub(super) fn read(
    mut hpet: Option<Hpet>,
    pm_timer: Option<PmTimer>,
    apic: LocalApic,
) -> Result<MachineClock, Refusal> {
    // SAFETY: ring 0; the firmware names the port.
    let mut acpi_timer = pm_timer.map(|timer| unsafe { AcpiTimer::new(timer.port) });
    // SAFETY: ring 0; nobody else uses the PIT.
    let mut pit = unsafe { Pit::new() };
    let mut clocks = [
        Clock {
            name: "HPET",
            hz: hpet.map_or(0, |hpet| hpet.hz()),
            counter: hpet.as_mut().map(|hpet| hpet as &mut dyn Counter),
        },
        Clock {
            name: "ACPI timer",
            hz: AcpiTimer::HZ,
            counter: acpi_timer.as_mut().map(|timer| timer as &mut dyn Counter),
        },
        Clock { name: "PIT", hz: Pit::HZ, counter: Some(&mut pit) },
    ];
    // Half a second for each clock at most.
    logln!("the clocks are measured");
    let found = clock::tsc_frequency(&|leaf| cpuid(leaf, 0), &mut clocks)
        .map_err(|refused| refuse!("{refused}"))?;
    found.remarks.iter().for_each(|remark| logln!("{remark}"));
    let tsc_khz = found.khz;
    logln!("TSC at {tsc_khz} kHz ({})", found.source);
    // Only guests on Intel's CPUs are told it, in leaf 0x15.
    let apic_timer_hz = match backend::vendor()? {
        // SAFETY: no guest runs yet.
        Vendor::VtX => clock::apic_timer_hz(&mut unsafe { ApicTimer::new(apic) }, tsc_khz),
        Vendor::AmdV => None,
    };
    // SAFETY: ring 0; nobody else uses the real-time clock's ports.
    let unix_time = unsafe { cpu::clock::unix_time() };
    Ok(MachineClock { tsc_khz, apic_timer_hz, unix_time, read_at_tsc: tsc() })
}
