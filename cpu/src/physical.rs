//! Physical memory and device registers, reached through the identity map
//! (in the hypervisor a virtual address is the physical address).

use core::ptr::NonNull;

use arch::Hpa;
use arch::machine::Width;

/// A pointer to the byte at `at`.
#[must_use]
pub fn pointer<T>(at: Hpa) -> *mut T {
    at.as_u64() as *mut T
}

/// A non-null pointer to the byte at `at`, for libraries that want one.
#[must_use]
pub fn non_null<T>(at: Hpa) -> Option<NonNull<T>> {
    NonNull::new(pointer(at))
}

/// `length` bytes of RAM at `at`.
///
/// # Safety
/// The range is RAM, mapped, and nobody writes it while the slice lives.
#[must_use]
pub unsafe fn bytes<'a>(at: Hpa, length: usize) -> &'a [u8] {
    // SAFETY: the caller vouches for the range.
    unsafe { core::slice::from_raw_parts(pointer(at), length) }
}

/// `length` bytes of RAM at `at`, to write.
///
/// # Safety
/// The range is RAM, mapped writable, and nobody else uses it while the slice lives.
#[must_use]
pub unsafe fn bytes_mut<'a>(at: Hpa, length: usize) -> &'a mut [u8] {
    // SAFETY: the caller vouches for the range.
    unsafe { core::slice::from_raw_parts_mut(pointer(at), length) }
}

/// Reads a device register.
///
/// # Safety
/// `at` is mapped, naturally aligned, and a read of it disturbs nobody else.
#[must_use]
pub unsafe fn mmio_read(at: Hpa, width: Width) -> u64 {
    match width {
        // SAFETY: the caller vouches for the register.
        Width::Byte => u64::from(unsafe { pointer::<u8>(at).read_volatile() }),
        // SAFETY: the caller vouches for the register.
        Width::Word => u64::from(unsafe { pointer::<u16>(at).read_volatile() }),
        // SAFETY: the caller vouches for the register.
        Width::Dword => u64::from(unsafe { pointer::<u32>(at).read_volatile() }),
        // SAFETY: the caller vouches for the register.
        Width::Qword => unsafe { pointer::<u64>(at).read_volatile() },
    }
}

/// Writes a device register.
///
/// # Safety
/// `at` is mapped, naturally aligned, and the write breaks nothing that the hypervisor relies on.
pub unsafe fn mmio_write(at: Hpa, width: Width, value: u64) {
    match width {
        // SAFETY: the caller vouches for the register and the value.
        Width::Byte => unsafe { pointer::<u8>(at).write_volatile(value as u8) },
        // SAFETY: the caller vouches for the register and the value.
        Width::Word => unsafe { pointer::<u16>(at).write_volatile(value as u16) },
        // SAFETY: the caller vouches for the register and the value.
        Width::Dword => unsafe { pointer::<u32>(at).write_volatile(value as u32) },
        // SAFETY: the caller vouches for the register and the value.
        Width::Qword => unsafe { pointer::<u64>(at).write_volatile(value) },
    }
}
