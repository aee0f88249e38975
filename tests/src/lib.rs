//! What the emulator tests share: they call the program `nexit` as a user does, and judge its output,
//! its report and its exit status.
//!
//! Invariant: every run has a timeout, and every test a folder of its own below the build folder
//! (kept after the test, to look into).

pub mod bare;
mod counters;
mod emulator;
pub mod endurance;
pub mod fidelity;
mod folder;
pub mod gates;
pub mod generations;
mod guest;
pub mod i386;
pub mod line;
mod outcome;
pub mod packaged;
pub mod page;
mod picture;
mod q35;
mod tables;
mod terminal;
pub mod zoo;

pub use counters::Counters;
pub use emulator::Emulator;
pub use folder::{Folder, build_folder, project_folder};
pub use guest::{Devices, Guest, Kernel, Payload};
pub use outcome::{Outcome, ResultLine};
pub use picture::Silent;
pub use q35::{Row, q35};
pub use tables::{Stopped, Sum, config_write};
pub use terminal::Session;
