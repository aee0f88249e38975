//! A machine check while the guest ran. CR4.MCE is on then, whatever the guest has in it, so that it exits and does not
//! shut the CPU down. Guests have no machine-check architecture: none is told.

use arch::machine_check::MachineCheck;

use crate::vm::{Context, Next, Platform};

impl<P: Platform> Context<'_, P> {
    /// The hardware found an error on this CPU, or on another, and has told all.
    #[cold]
    #[inline(never)]
    pub(super) fn machine_check(&mut self, verdict: MachineCheck) -> Next {
        match verdict {
            MachineCheck::NotHere => Next::Resume,
            MachineCheck::Contained(recorded) | MachineCheck::Lost(recorded) => self.crash(
                format_args!("the hardware failed while it ran: a machine check, {recorded}"),
            ),
        }
    }
}
