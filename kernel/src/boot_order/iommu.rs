//! The IOMMU: switched on, or the reason why the machine has no usable one.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};

use arch::address::HpaRange;
use arch::iommu::Iommu;
use boot::BootInfo;
use cpu::config_space::MachineConfigSpace;
use firmware::PlatformTables;
use iommu::dmar::{Dmar, UNIT_REGISTERS};
use iommu::vtd::VtD;
use spin::Mutex;

use crate::console::logln;
use crate::hardware::buses_behind;
use crate::memory::{self, Memory};
use crate::routes::SharedIommu;

/// Switches all VT-d units on; or says why there is no usable IOMMU.
pub(super) fn switch_on(
    info: &BootInfo<'_>,
    firmware: &PlatformTables,
    space: MachineConfigSpace,
    memory: Memory,
) -> Result<(SharedIommu, Dmar<'static>), String> {
    let table = firmware.dmar.clone()?;
    let dmar = Dmar::parse(table.leak()).map_err(|error| error.to_string())?;
    if dmar.left_out() > 0 {
        logln!("the DMAR table has {} parts that are not whole: left out", dmar.left_out());
    }
    if dmar.x2apic_opt_out() {
        logln!(
            "the DMAR table asks for no x2APIC mode (X2APIC_OPT_OUT): Nexit needs it and uses it"
        );
    }
    if let Some(why) = dmar.unit_in_ram(|range| memory::is_ram(info, range)) {
        return Err(why);
    }
    for unit in dmar.units() {
        let registers = HpaRange { start: unit.registers, length: UNIT_REGISTERS };
        memory::map_device(memory, registers).map_err(|why| {
            format!("the firmware's DMAR table names a unit that cannot be reached: {why}")
        })?;
    }
    // Each waits for what it was told, for a good part of a second at most.
    logln!("IOMMU units are switched on: {}", dmar.units().count());
    let bridges = Box::leak(Box::new(move |bridge| buses_behind(&space, bridge)));
    // SAFETY: the table is this machine's; its units are mapped uncached; no function masters the bus.
    let vtd = unsafe { VtD::new(dmar, bridges, memory) }.map_err(|error| error.to_string())?;
    logln!("IOMMU {}: translation and interrupt remapping are on", vtd.name());
    for (base, capability, extended) in vtd.capability_words() {
        logln!("IOMMU unit at {base}: CAP {capability:#x} ECAP {extended:#x}");
    }
    Ok((Box::leak(Box::new(Mutex::new(vtd))), dmar))
}
