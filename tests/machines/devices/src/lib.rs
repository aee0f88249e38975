//! Devices that an emulated machine lacks, as models: a VT-d unit, an I/O APIC behind it, and NVMe
//! controllers behind both, each with an engine that acts exactly so many ticks later.
//!
//! Nothing here knows an emulator: memory, time and the local APICs are a [`Host`]. The models are
//! strict readers of what a driver does: the unit keeps whatever hardware may keep until it is told to
//! forget it, and says where what it kept is no longer true.
//!
//! * [`machine`]: all of it together, by options
//! * [`mod@unit`]: the VT-d unit; [`io_apic`]: the I/O APIC
//! * [`nvme`]: a controller; [`engine`]: its second half; [`disk`]: what it stores
//! * [`acpi`]: the DMAR table for a firmware that has none
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bus;
pub mod disk;
pub mod engine;
pub mod host;
pub mod io_apic;
pub mod machine;
pub mod nvme;
pub mod options;
pub mod unit;

pub use host::{Host, Interrupt, Timer};
pub use machine::Machine;

#[cfg(test)]
mod workbench;
