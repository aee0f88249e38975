//! KVM's clock: two MSRs that name places in the guest's memory for the hypervisor to fill.

use arch::machine::{GuestMemory, Machine};

use super::{MsrOutcome, Msrs, done_if};

pub(super) const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
pub(super) const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;

/// The KVM clock's zero: the same on all CPUs of a guest, so that they agree on the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockBase {
    /// TSC at which the guest's clock is 0.
    pub tsc: u64,
}

impl Msrs {
    /// Fills the vCPU's time page, once: the TSC never changes its rate, so the page stays right.
    /// (Linux, `Documentation/virt/kvm/x86/msr.rst`, MSR_KVM_SYSTEM_TIME_NEW.)
    pub(super) fn write_system_time(
        &mut self,
        value: u64,
        machine: &impl Machine,
        memory: &mut impl GuestMemory,
    ) -> MsrOutcome {
        let Some(clock) = self.clock else { return MsrOutcome::Unknown };
        self.system_time = value;
        if value & 1 == 0 {
            return MsrOutcome::Done;
        }
        let (multiplier, shift) = nanoseconds_per_tick(machine.tsc_khz());
        let mut page = [0; 32];
        // version (even: complete), padding, TSC at …, … this time, multiplier, shift, flags
        // (bit 0: the same on all CPUs).
        let fields: [&[u8]; 7] = [
            &2u32.to_le_bytes(),
            &[0; 4],
            &clock.tsc.to_le_bytes(),
            &[0; 8],
            &multiplier.to_le_bytes(),
            &shift.to_le_bytes(),
            &[1],
        ];
        for (to, from) in page.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        done_if(memory.write(arch::Gpa::new(value & !1), &page).is_ok())
    }

    /// Fills the wall-clock structure: the time of day at the clock's zero.
    pub(super) fn write_wall_clock(
        &mut self,
        value: u64,
        machine: &impl Machine,
        memory: &mut impl GuestMemory,
    ) -> MsrOutcome {
        let Some(clock) = self.clock else { return MsrOutcome::Unknown };
        self.wall_clock = value;
        let since = machine.tsc().wrapping_sub(clock.tsc) / (machine.tsc_khz().max(1) * 1000);
        let seconds = machine.unix_time().saturating_sub(since) as u32;
        let mut bytes = [0; 12];
        let fields = [2u32.to_le_bytes(), seconds.to_le_bytes()];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = from;
        }
        done_if(memory.write(arch::Gpa::new(value), &bytes).is_ok())
    }
}

/// The factor by which the guest gets nanoseconds from TSC ticks: `(ticks << shift) × multiplier
/// >> 32`, the multiplier as large as fits in 32 bits.
fn nanoseconds_per_tick(tsc_khz: u64) -> (u32, i8) {
    let mut hz = tsc_khz.max(1).saturating_mul(1000);
    let mut shift = 0i8;
    while hz > 2_000_000_000 {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= 1_000_000_000 {
        hz <<= 1;
        shift += 1;
    }
    (((1_000_000_000u64 << 32) / hz) as u32, shift)
}
