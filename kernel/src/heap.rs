//! The heap: used while the machine is being brought up, when a guest begins or ends, and for the
//! monitor's answers; never on the path of a guest's own exit.

use linked_list_allocator::LockedHeap;

/// 1 MiB: the configuration, the guests' tables and the device models.
const SIZE: usize = 1 << 20;

#[repr(align(4096))]
struct Arena(core::cell::UnsafeCell<[u8; SIZE]>);

// SAFETY: the arena is only ever touched through the allocator below, which locks.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(core::cell::UnsafeCell::new([0; SIZE]));

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the allocator its arena.
///
/// # Safety
/// Called once, before the first allocation.
pub(crate) unsafe fn initialise() {
    // SAFETY: the caller vouches that nobody has the arena yet.
    unsafe { HEAP.lock().init(ARENA.0.get().cast(), SIZE) };
}

/// Bytes of it that are in use.
pub(crate) fn used() -> usize {
    HEAP.lock().used()
}
