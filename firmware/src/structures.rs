//! Where the `acpi` crate reads: a checked table's bytes as one of that crate's structures.
//!
//! Invariant: the structure lies in a copy that is as long as the table and at least as long as the
//! structure; what a shorter, older revision of the table does not have reads as zeroes.
#![expect(
    unsafe_code,
    reason = "the structures are laid over bytes; all else in this crate is safe"
)]

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::pin::Pin;

use acpi::AcpiTable;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::hpet::HpetTable;
use acpi::sdt::madt::Madt;
use acpi::sdt::mcfg::Mcfg;
use arch::bytes::u32_at;

/// A structure for which any bytes will do.
pub(crate) trait Plain: AcpiTable {}
impl Plain for Fadt {}
impl Plain for HpetTable {}
impl Plain for Madt {}
impl Plain for Mcfg {}

/// A table as the `acpi` crate's structure `T`.
#[derive(Debug)]
pub(crate) struct Structure<T> {
    bytes: Vec<u8>,
    kind: PhantomData<T>,
}

impl<T: Plain> Structure<T> {
    /// The table with these bytes: `None` unless its header's length is theirs.
    pub(crate) fn new(table: &[u8]) -> Option<Self> {
        const { assert!(align_of::<T>() == 1, "any address will do") };
        if u32_at(table, 4)? as usize != table.len() {
            return None;
        }
        let mut bytes = table.to_vec();
        bytes.resize(table.len().max(size_of::<T>()), 0);
        Some(Self { bytes, kind: PhantomData })
    }

    pub(crate) fn get(&self) -> Pin<&T> {
        // SAFETY: `new` made the bytes long enough, any address is aligned and any bytes are a `T`.
        let structure = unsafe { &*self.bytes.as_ptr().cast::<T>() };
        // SAFETY: the bytes are on the heap, and nothing moves or changes them while `self` lives.
        unsafe { Pin::new_unchecked(structure) }
    }
}
