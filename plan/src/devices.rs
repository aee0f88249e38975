//! Which PCI functions guests get.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use arch::Bdf;
use arch::iommu::IommuError;
use arch::machine::ConfigSpace;
use config::{Config, Devices, GuestConfig};
use guest::pci::BusError;
use pci::Function;

use crate::{Machine, Plan, Refusal};

/// The key by which a guest's file names functions.
fn key(guest: &GuestConfig) -> &'static str {
    if matches!(guest.devices, Devices::All { .. }) { "except" } else { "devices" }
}

/// Where a guest's file names `function`.
fn at(guest: &GuestConfig, function: Bdf, sentence: String) -> Refusal {
    let index = guest.devices.named().iter().position(|named| *named == function);
    match index.filter(|_| key(guest) == "devices") {
        Some(index) => Refusal::entry(guest, ("devices", index), sentence),
        None => Refusal::guest(guest, "devices", sentence),
    }
}

/// Whether `devices = "all"` is without this function: no guest could want it.
#[must_use]
pub fn stays(function: &Function) -> bool {
    function.is_infrastructure() || function.is_of_the_platform()
}

/// The functions of each guest, in the order of the file: they exist, and no group is divided. What is
/// refused is left out.
pub(crate) fn functions<C: ConfigSpace>(
    config: &Config,
    machine: &Machine<'_, C>,
    plan: &mut Plan,
) -> Vec<Vec<Bdf>> {
    let Plan { refusals, remarks, .. } = plan;
    let found = |bdf: Bdf| machine.functions.iter().find(|found| found.bdf == bdf);
    let mut refused = Vec::new();
    for guest in &config.guests {
        for (index, &function) in guest.devices.named().iter().enumerate() {
            let sentence = match found(function) {
                None => absent(key(guest), function, machine.functions),
                Some(found) if found.is_infrastructure() && key(guest) == "devices" => {
                    format!("devices: {}", BusError::NotADevice(function))
                }
                Some(_) => continue,
            };
            refused.push(function);
            refusals.push(Refusal::entry(guest, (key(guest), index), sentence));
        }
    }
    let mut given: Vec<Bdf> =
        machine.functions.iter().filter(|it| !stays(it)).map(|function| function.bdf).collect();
    // "all" is the devices that a guest could want, and have.
    let all = |guest: &&GuestConfig| matches!(guest.devices, Devices::All { .. });
    if let Some(guest) = config.guests.iter().find(all) {
        given.retain(|function| match machine.claims.check(*function) {
            Ok(()) => true,
            Err(bad) => {
                remarks.push(Refusal::guest(guest, "devices", format!("devices = \"all\": {bad}")));
                false
            }
        });
    }
    let mut owned: Vec<Vec<Bdf>> =
        config.guests.iter().map(|guest| config.functions(guest, &given)).collect();
    owned.iter_mut().for_each(|own| own.retain(|function| !refused.contains(function)));
    // Without an IOMMU nothing keeps anything apart, and the one guest is trusted with all.
    if machine.no_iommu.is_none() {
        for error in machine.groups.divided(&owned) {
            let owner = owned.iter().position(|own| own.contains(&error.function));
            if let Some(guest) = owner.and_then(|owner| config.guests.get(owner)) {
                refusals.push(at(guest, error.function, format!("devices: {error}")));
            }
        }
    }
    owned
}

fn absent(key: &str, function: Bdf, functions: &[Function]) -> String {
    let list: Vec<_> = functions.iter().map(|found| found.bdf.to_string()).collect();
    format!(
        "{key} names {function}, but the machine has no such PCI function; it has {}",
        list.join(", ")
    )
}

/// Whether its functions can be given to a guest on this machine.
pub(crate) fn check<C: ConfigSpace>(
    guest: &GuestConfig,
    own: &[Bdf],
    machine: &Machine<'_, C>,
    refusals: &mut Vec<Refusal>,
    remarks: &mut Vec<Refusal>,
) {
    for &function in own {
        let found = machine.functions.iter().find(|found| found.bdf == function);
        let relaxed = found.is_some_and(Function::outlives_reserved_memory);
        match (machine.reserved)(function) {
            Some(range) if relaxed => {
                let sentence = format!(
                    "{function} is taken from the firmware, which used it for DMA to {} (an RMRR)",
                    range.start
                );
                remarks.push(at(guest, function, sentence));
            }
            Some(range) => {
                let sentence = format!(
                    "devices: {function} cannot be assigned: the firmware keeps using it for DMA to {} \
                     (an RMRR of its DMAR table): remove it",
                    range.start
                );
                refusals.push(at(guest, function, sentence));
            }
            None => {}
        }
        if let Err(bad) = machine.claims.check(function) {
            refusals.push(at(guest, function, format!("devices: {bad}")));
        }
        if machine.no_iommu.is_none() && !(machine.covered)(function) {
            let error = IommuError::NoUnit(function);
            let sentence = format!(
                "devices: {function} cannot be assigned: {error}: remove it, or update the firmware"
            );
            refusals.push(at(guest, function, sentence));
        }
    }
    // The same for all of them.
    let why = machine.no_iommu.filter(|_| machine.identity_ram.is_none());
    if let (Some(why), Some(function)) = (why, own.first()) {
        let sentence = format!(
            "devices: {function} cannot be assigned: the machine has no usable IOMMU, so the device could \
             reach all memory ({why}). Repair that, or write unsafe_no_iommu = true to trust the guest with \
             the whole machine"
        );
        refusals.push(at(guest, *function, sentence));
    }
}

/// Says what `devices = "all"` does not give.
pub(crate) fn remark_left_out(
    config: &Config,
    functions: &[Function],
    owned: &[Vec<Bdf>],
    remarks: &mut Vec<Refusal>,
) {
    let all = |guest: &&GuestConfig| matches!(guest.devices, Devices::All { .. });
    let Some(guest) = config.guests.iter().find(all) else { return };
    let owned = |bdf| owned.iter().any(|own| own.contains(&bdf));
    let left = functions.iter().filter(|it| it.is_of_the_platform() && !owned(it.bdf));
    let left: Vec<_> = left.map(|function| function.bdf.to_string()).collect();
    if !left.is_empty() {
        let sentence = format!(
            "devices = \"all\" is without {}, SMBus and SPI controllers, behind which the board's sensors and \
             its firmware are: list them where a guest shall have them",
            left.join(", ")
        );
        remarks.push(Refusal::guest(guest, "devices", sentence));
    }
}
