//! A generation that ends with a vector in service, one requested, and a copy under way.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use arch::machine::Width;
use cpu::instructions::port_write;
use payload::{say, verdict};
use x86_64::instructions::interrupts;

use crate::interrupts::{FIRST, LOWER, STAY, is_busy, taken};
use payload::controller::{Controller, State};

const LENGTH: usize = 16 << 10;

#[repr(align(4096))]
struct Room(UnsafeCell<[u8; 2 * LENGTH]>);
// SAFETY: the device alone uses it, but for the first byte of either half.
unsafe impl Sync for Room {}
static ROOM: Room = Room(UnsafeCell::new([0; 2 * LENGTH]));

fn address() -> u64 {
    ROOM.0.get() as u64
}

/// How a generation ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It waits for its end.
    Wait,
    /// It resets itself.
    Reset,
}

fn copy(device: Controller) -> bool {
    // SAFETY: a byte of the static, which no copy is under way to or from.
    unsafe { ROOM.0.get().cast::<u8>().write_volatile(0x5a) };
    device.copy_in(100, address(), address() + LENGTH as u64, LENGTH as u32);
    let done = device.finish() == State::Done;
    // SAFETY: as above, in the other half.
    done && unsafe { ROOM.0.get().cast::<u8>().wrapping_add(LENGTH).read_volatile() } == 0x5a
}

/// From a fresh start to the end.
pub(crate) fn generation(device: Controller, end: End) -> ! {
    verdict("nothing is in service or requested at the start", !is_busy(), format_args!(""));
    let before = taken(0, FIRST);
    device.route(0, 0, FIRST);
    device.route(1, 0, LOWER);
    interrupts::enable();
    device.send_in(100, 0);
    device.finish();
    (0..100_000).for_each(|_| core::hint::spin_loop());
    let came = taken(0, FIRST) - before;
    verdict("the device's interrupt comes once", came == 1, format_args!("{came}"));
    verdict("the device copies", copy(device), format_args!("{LENGTH} bytes"));
    DEVICE.with(device, end);
    STAY.store(true, Ordering::Relaxed);
    device.send_in(100, 0);
    loop {
        core::hint::spin_loop();
    }
}

/// What the handler needs to know.
struct Known(UnsafeCell<Option<(Controller, End)>>);
// SAFETY: written before the handler that reads it can run.
unsafe impl Sync for Known {}
static DEVICE: Known = Known(UnsafeCell::new(None));

impl Known {
    fn with(&self, device: Controller, end: End) {
        // SAFETY: nobody reads it before `STAY` is set.
        unsafe { *self.0.get() = Some((device, end)) };
    }
}

/// In the handler of the higher vector, which is never ended: the lower one stays requested, and copies go
/// on to the end.
pub(crate) fn in_service() -> ! {
    // SAFETY: written before.
    let known = unsafe { *DEVICE.0.get() };
    let Some((device, end)) = known else {
        say!("FAILED: a handler stays before it should");
        payload::power_off()
    };
    device.send_in(100, 1);
    device.finish();
    verdict("one is in service and one requested at the end", is_busy(), format_args!(""));
    say!("lived");
    loop {
        device.copy_in(3000, address(), address() + LENGTH as u64, LENGTH as u32);
        if end == End::Reset {
            // SAFETY: the guest's own reset register.
            unsafe { port_write(0xcf9, Width::Byte, 6) };
        }
        device.finish();
    }
}
