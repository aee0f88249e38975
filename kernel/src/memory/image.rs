//! The image's sections, by the linker's symbols.

use arch::Hpa;
use arch::address::HpaRange;
use mem::Rights;

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
    static __init_start: u8;
    static __init_end: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __stack_guard: u8;
    static __stack_bottom: u8;
    static __stack_top: u8;
}

fn range(start: *const u8, end: *const u8) -> HpaRange {
    let start = Hpa::new(start as u64);
    HpaRange { start, length: end as u64 - start.as_u64() }
}

/// The whole image in memory.
pub(crate) fn whole() -> HpaRange {
    range(&raw const __image_start, &raw const __image_end)
}

/// Code that stays.
pub(super) fn text() -> HpaRange {
    range(&raw const __text_start, &raw const __text_end)
}

/// The boot processor's stack.
pub(super) fn boot_stack() -> HpaRange {
    range(&raw const __stack_bottom, &raw const __stack_top)
}

/// What is not plain data.
pub(super) fn sections() -> [(HpaRange, Rights); 3] {
    [
        (init(), Rights::READ_EXECUTE),
        (text(), Rights::READ_EXECUTE),
        (range(&raw const __rodata_start, &raw const __rodata_end), Rights::READ),
    ]
}

/// Code that runs only until the guests do.
pub(crate) fn init() -> HpaRange {
    range(&raw const __init_start, &raw const __init_end)
}

/// The page below the boot stack.
pub(super) fn stack_guard() -> Hpa {
    Hpa::new(&raw const __stack_guard as u64)
}
