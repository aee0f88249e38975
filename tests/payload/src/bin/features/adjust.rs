//! IA32_TSC_ADJUST: where CPUID announces it, it moves the TSC; else it is not there.

use cpu::instructions::tsc;
use payload::fact;

use crate::control::{self, Value, read_msr, write_msr};

const IA32_TSC_ADJUST: u32 = 0x3b;
const ANNOUNCED: control::Feature = (7, 1, 1);
/// More than passes between two readings.
const FAR: u64 = 1 << 50;

pub(crate) fn all() {
    let seen = if control::has(ANNOUNCED) {
        let before = read_msr(IA32_TSC_ADJUST).or_zero();
        let earlier = tsc();
        let written = write_msr(IA32_TSC_ADJUST, before.wrapping_add(FAR)).fine();
        let moved = tsc().wrapping_sub(earlier) >= FAR;
        let kept = read_msr(IA32_TSC_ADJUST).or_zero() == before.wrapping_add(FAR);
        let back = write_msr(IA32_TSC_ADJUST, before).fine();
        written && moved && kept && back
    } else {
        let absent =
            matches!(read_msr(IA32_TSC_ADJUST), Value::Raised(seen) if seen.after.vector == 13);
        absent && write_msr(IA32_TSC_ADJUST, 0).after.vector == 13
    };
    fact!("adjust: IA32_TSC_ADJUST is as CPUID says"; "{seen}");
}
