//! Memory that guests share: taken and scrubbed once, before its first guest is built.
//!
//! It is no guest's RAM: no device reaches it, and no guest's restart scrubs it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arch::ApicId;
use arch::address::HpaRange;
use config::Config;
use cpu::physical;
use guest::pci::SharedMemory;

use super::slots::processors;
use crate::console::logln;
use crate::hardware::Hardware;
use crate::refusal::Refusal;

const _: () = assert!(config::MAX_PEERS <= guest::pci::MAX_PEERS);

/// A guest's share in a region.
#[derive(Clone)]
pub(crate) struct Share {
    /// Where the region is.
    pub(super) range: HpaRange,
    pub(super) memory: &'static SharedMemory,
    pub(super) peer: u16,
    /// The CPUs of all its guests.
    pub(super) cpus: Vec<ApicId>,
}

/// The shares of each guest, in the order of the file.
#[unsafe(link_section = ".text.init")]
pub(crate) fn shares(hardware: &Hardware, config: &Config) -> Result<Vec<Vec<Share>>, Refusal> {
    let mut shares = alloc::vec![Vec::new(); config.guests.len()];
    for region in &config.shared {
        let range = plan::memory::share(region, &mut { hardware.memory })?.range();
        if region.size > 1 << 30 {
            logln!("shared {}: its {} MiB of memory are cleared", region.name, region.size >> 20);
        }
        // SAFETY: fresh memory of the pool, which nobody else has.
        unsafe { physical::bytes_mut(range.start, region.size as usize) }.fill(0);
        let memory: &'static SharedMemory = Box::leak(Box::new(SharedMemory::new(region.size)));
        let members = || region.guests.iter().filter_map(|guest| config.guests.get(*guest));
        let cpus: Vec<ApicId> = members().flat_map(|guest| processors(hardware, guest)).collect();
        for (peer, guest) in region.guests.iter().enumerate() {
            if let Some(shares) = shares.get_mut(*guest) {
                shares.push(Share { range, memory, peer: peer as u16, cpus: cpus.clone() });
            }
        }
        logln!("shared {}: {} KiB at {}", region.name, region.size >> 10, range.start);
    }
    Ok(shares)
}
