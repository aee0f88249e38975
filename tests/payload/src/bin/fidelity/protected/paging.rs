//! Tables for paging with PAE.

use core::arch::asm;
use core::cell::UnsafeCell;

/// CR3 for paging with PAE that maps what long mode's tables map.
pub(crate) fn pae_tables() -> [u32; 2] {
    #[repr(C, align(64))]
    struct Pointers(UnsafeCell<[[u64; 4]; 2]>);
    // SAFETY: one CPU uses it.
    unsafe impl Sync for Pointers {}
    static POINTERS: Pointers = Pointers(UnsafeCell::new([[0; 4]; 2]));
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let cr3: u64;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr3", out(reg) cr3) };
    let entry = |table: u64, index: u64| {
        let at = cpu::physical::pointer::<u64>(arch::Hpa::new((table & ADDRESS) + 8 * index));
        // SAFETY: the first 4 GiB are mapped onto themselves, the tables among them.
        unsafe { at.read_volatile() }
    };
    let pointers = entry(cr3, 0);
    let pointers = core::array::from_fn(|index| entry(pointers, index as u64) & ADDRESS | 1);
    // SAFETY: no trial is on.
    unsafe { POINTERS.0.get().write_volatile([pointers; 2]) };
    let at = POINTERS.0.get() as u32;
    [at, at + 32]
}
