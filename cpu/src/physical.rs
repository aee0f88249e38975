//! Physical memory and device registers, reached through the identity map
//! (in the hypervisor a virtual address is the physical address).

use core::sync::atomic::{AtomicU32, Ordering};

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

/// Eight bytes at any address, read and written at once.
#[repr(C, packed)]
struct Word(u64);

/// Copies bytes out that others may change meanwhile: each is read once, so that what was checked is what is used.
///
/// # Safety
/// The range is RAM, mapped, and no Rust reference to it lives.
pub unsafe fn copy_from_shared(at: Hpa, bytes: &mut [u8]) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let behind = at.wrapping_add(8 * words.len() as u64);
    for (at, to) in (at.as_u64()..).step_by(8).zip(words) {
        // SAFETY: the caller vouches for the range; it needs no alignment.
        let Word(word) = unsafe { pointer::<Word>(Hpa::new(at)).read_volatile() };
        *to = word.to_ne_bytes();
    }
    for (at, to) in (behind.as_u64()..).zip(rest) {
        // SAFETY: as above.
        *to = unsafe { pointer::<u8>(Hpa::new(at)).read_volatile() };
    }
}

/// Copies bytes to where others may read and write meanwhile: each is written once.
///
/// # Safety
/// The range is RAM, mapped writable, nothing of the hypervisor's is in it, and no Rust reference to it lives.
pub unsafe fn copy_to_shared(at: Hpa, bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<8>();
    let behind = at.wrapping_add(8 * words.len() as u64);
    for (at, from) in (at.as_u64()..).step_by(8).zip(words) {
        let word = Word(u64::from_ne_bytes(*from));
        // SAFETY: the caller vouches for the range; it needs no alignment.
        unsafe { pointer::<Word>(Hpa::new(at)).write_volatile(word) };
    }
    for (at, from) in (behind.as_u64()..).zip(rest) {
        // SAFETY: as above.
        unsafe { pointer::<u8>(Hpa::new(at)).write_volatile(*from) };
    }
}

/// Sets `bits` in the 4 bytes at `at` if they still are `old`, at once; whether they were.
///
/// # Safety
/// As for [`copy_to_shared`], and `at` is aligned.
pub unsafe fn mark_shared(at: Hpa, old: u32, bits: u32) -> bool {
    // SAFETY: the caller vouches for the place.
    let word = unsafe { AtomicU32::from_ptr(pointer::<u32>(at)) };
    word.compare_exchange(old, old | bits, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_copied_whole_at_any_address_and_length() {
        let shared: Vec<u8> = (0..64).collect();
        for (start, length) in (0..9).flat_map(|start| (0..40).map(move |length| (start, length))) {
            let mut copy = vec![0xaa; length + 1];
            let at = Hpa::new(shared.as_ptr().wrapping_add(start) as u64);
            // SAFETY: within the vector, which nobody writes.
            unsafe { copy_from_shared(at, &mut copy[..length]) };
            assert_eq!(copy[..length], shared[start..start + length]);
            let mut target = vec![0x55_u8; 64];
            let at = Hpa::new(target.as_mut_ptr().wrapping_add(start) as u64);
            // SAFETY: within the vector, which nobody else uses.
            unsafe { copy_to_shared(at, &copy[..length]) };
            assert_eq!(target[start..start + length], copy[..length]);
            assert!(
                target[..start].iter().chain(&target[start + length..]).all(|byte| *byte == 0x55)
            );
            assert_eq!(copy[length], 0xaa);
        }
    }
}
