//! The last exits of a virtual CPU, for its last words.

use core::fmt;

use arch::ExitReason;
use arch::msr::IA32_X2APIC_ICR;

use crate::counters::Counter;

/// Number of exits kept.
const KEPT: usize = 8;

/// One exit.
#[derive(Clone, Copy, Debug)]
struct Recent {
    reason: Counter,
    /// Port, address, MSR, vector or code, as the reason has it; else 0.
    detail: u64,
    rip: u64,
}

/// The last exits, but those that are not the guest's doing (the watchdog, interrupts), and those that would leave no
/// room for others (CPUID, IPIs).
#[derive(Clone, Debug, Default)]
pub struct RecentExits {
    exits: [Option<Recent>; KEPT],
    count: usize,
}

impl RecentExits {
    /// Keeps an exit in place of the oldest; `msr` is what RCX names.
    #[inline(always)]
    pub fn keep(&mut self, reason: &ExitReason, rip: impl Fn() -> u64, msr: u64) {
        let Some(detail) = detail(reason, msr) else { return };
        if let Some(place) = self.exits.get_mut(self.count % KEPT) {
            *place = Some(Recent { reason: Counter::of(reason), detail, rip: rip() });
            self.count = self.count.wrapping_add(1);
        }
    }
}

/// `None` for what is not kept.
#[inline(always)]
fn detail(reason: &ExitReason, msr: u64) -> Option<u64> {
    Some(match *reason {
        ExitReason::Nmi
        | ExitReason::HostTimer
        | ExitReason::ExternalInterrupt(_)
        | ExitReason::LevelInterruptEnded(_)
        | ExitReason::InterruptWindow
        | ExitReason::Cpuid => return None,
        ExitReason::WriteMsr if msr as u32 == IA32_X2APIC_ICR => return None,
        ExitReason::Io(access) => access.port.into(),
        ExitReason::ReadMsr | ExitReason::WriteMsr => msr & 0xffff_ffff,
        ExitReason::ApicWritten { msr, .. } => msr.into(),
        ExitReason::NestedPageFault(fault) => fault.gpa.as_u64(),
        ExitReason::Exception { vector, .. } => vector.0.into(),
        ExitReason::ControlRegister(write) => write.qualification,
        ExitReason::EntryFailure(failure) => failure.code,
        ExitReason::Unexpected { code, .. } => code,
        ExitReason::TaskSwitch(switch) => switch.selector.unwrap_or(0).into(),
        ExitReason::DescriptorTable
        | ExitReason::LocalDescriptorTable
        | ExitReason::Halt
        | ExitReason::TripleFault
        | ExitReason::Xsetbv
        | ExitReason::CacheInvalidate
        | ExitReason::BusLock
        | ExitReason::DebugRegister
        | ExitReason::VirtualizationInstruction
        | ExitReason::Step
        | ExitReason::Init => 0,
    })
}

/// Formats as `io 0x604 at 0x1012ab, triple_fault 0x0 at 0x1012ac`: the newest is the last.
impl fmt::Display for RecentExits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (newer, older) = self.exits.split_at(self.count % KEPT);
        let mut separator = "";
        for Recent { reason, detail, rip } in older.iter().chain(newer).flatten() {
            write!(f, "{separator}{} {detail:#x} at {rip:#x}", reason.key())?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_eight_are_kept_in_order_without_what_the_guest_did_not_do() {
        let mut recent = RecentExits::default();
        assert_eq!(recent.to_string(), "");
        recent.keep(&ExitReason::ReadMsr, || 0x1000, 0xffff_ffff_0000_001b);
        recent.keep(&ExitReason::Nmi, || 0x1002, 0);
        recent.keep(&ExitReason::Cpuid, || 0x1002, 1);
        recent.keep(&ExitReason::WriteMsr, || 0x1002, IA32_X2APIC_ICR.into());
        recent.keep(&ExitReason::TripleFault, || 0x1004, 0);
        assert_eq!(recent.to_string(), "msr 0x1b at 0x1000, triple_fault 0x0 at 0x1004");
        for rip in 0..7 {
            recent.keep(&ExitReason::Xsetbv, || rip, 5);
        }
        let text = recent.to_string();
        assert!(text.starts_with("triple_fault 0x0 at 0x1004, xsetbv 0x0 at 0x0, "), "{text}");
        assert!(text.ends_with(", xsetbv 0x0 at 0x6"), "{text}");
    }
}
