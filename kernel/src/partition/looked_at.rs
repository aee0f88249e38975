//! A guest's memory as the monitor reads it. Nothing is changed, and the guest's CPUs are held up by no more than a lock that
//! is held for a few reads.

use arch::machine::{GuestMemory, NotGuestMemory};
use arch::{Bdf, Gpa};
use cpu::physical;
use mem::MemoryType;
use mem::table::Mapping;

use super::Partition;
use crate::backend::Backend;

impl<B: Backend> Partition<B> {
    /// Its PCI functions.
    pub(crate) fn functions(&self) -> &[Bdf] {
        &self.plan.functions
    }

    /// Reads its RAM, which it keeps meanwhile.
    pub(crate) fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.ram.lock().as_ref().map_or(Err(NotGuestMemory(gpa)), |ram| ram.0.read(gpa, bytes))
    }

    /// What its nested table has there, and whether that is the RAM of the address.
    pub(crate) fn nested(&self, gpa: Gpa) -> Option<(Mapping, bool)> {
        let mapping = {
            let instance = self.instance.lock();
            let tables = instance.as_deref()?.tables().lock();
            tables.nested.translate(&self.plan.hardware.memory, gpa.as_u64())?
        };
        let ram = self.ram.lock();
        let own = ram.as_ref().and_then(|ram| ram.0.translate(gpa, 1).ok());
        Some((mapping, own == Some(mapping.hpa)))
    }

    /// Reads what its CPUs find there, within a page; `false` where that is no memory.
    pub(crate) fn seen(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        // Held meanwhile: the pages are the guest's as long as it is there.
        let instance = self.instance.lock();
        let Some(tables) = instance.as_deref().map(|instance| instance.tables().lock()) else {
            return false;
        };
        let mapping = tables.nested.translate(&self.plan.hardware.memory, gpa.as_u64());
        let memory = mapping.filter(|mapping| mapping.memory_type == MemoryType::WriteBack);
        let Some(Mapping { hpa, .. }) = memory else { return false };
        // SAFETY: what a nested table maps write-back is RAM of the guest's, or a page that stands in for it, all of which
        // the hypervisor has mapped; its CPUs may write it meanwhile, which changes the bytes copied and nothing else.
        unsafe {
            core::ptr::copy_nonoverlapping(
                physical::pointer::<u8>(hpa).cast_const(),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
        true
    }
}
