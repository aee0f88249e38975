//! The neighbour: fills memory with a pattern, lets its timer run, and sees whether anything of that
//! is disturbed.

use core::sync::atomic::Ordering;

use arch::Hpa;
use arch::msr;
use cpu::instructions::write_msr;
use payload::{say, verdict};
use x86_64::instructions::interrupts;

use crate::trap::{self, NMIS, STRAY, TICKS, TIMER};

/// Memory that no loader touches, in a guest of 16 MiB.
const MEMORY: Hpa = Hpa::new(0x80_0000);
const WORDS: usize = 0x40_0000 / 8;

fn word(index: usize) -> *mut u64 {
    cpu::physical::pointer::<u64>(MEMORY).wrapping_add(index)
}

fn pattern(index: usize, pass: u64) -> u64 {
    (index as u64 ^ pass << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Watches its memory in so many passes.
pub(crate) fn watch(passes: u64) {
    start_timer();
    interrupts::enable();
    let mut changed = 0_u64;
    (0..WORDS).for_each(|index| write(index, 0));
    for pass in 0..passes {
        for index in 0..WORDS {
            // SAFETY: RAM of the guest that nobody else of it uses.
            let value = unsafe { word(index).read_volatile() };
            changed += u64::from(value != pattern(index, pass));
            write(index, pass + 1);
        }
        if pass % 64 == 0 {
            say!("pass {pass}, {} ticks", TICKS.load(Ordering::Relaxed));
        }
    }
    interrupts::disable();
    verdict("its memory is as it wrote it", changed == 0, format_args!("{changed} words differ"));
    let (ticks, stray) = (TICKS.load(Ordering::Relaxed), STRAY.load(Ordering::Relaxed));
    verdict("its timer ran", ticks > 10, format_args!("{ticks} ticks"));
    let nmis = NMIS.load(Ordering::Relaxed);
    let quiet = stray == 0 && nmis == 0;
    verdict("nobody interrupted it", quiet, format_args!("{stray} interrupts, {nmis} NMIs"));
}

fn write(index: usize, pass: u64) {
    // SAFETY: RAM of the guest that nobody else of it uses.
    unsafe { word(index).write_volatile(pattern(index, pass)) };
}

fn start_timer() {
    const PERIODIC: u64 = 1 << 17;
    let steps = [
        (msr::IA32_X2APIC_SIVR, 0x1ff),
        (msr::IA32_X2APIC_DIV_CONF, 0xb),
        (msr::IA32_X2APIC_LVT_TIMER, PERIODIC | u64::from(TIMER)),
        (msr::IA32_X2APIC_INIT_COUNT, 1_000_000),
    ];
    trap::load();
    for (register, value) in steps {
        // SAFETY: the guest's own local APIC, in x2APIC mode.
        unsafe { write_msr(register, value) };
    }
}
