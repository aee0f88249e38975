//! The loader's files, kept out of guests' memory.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arch::address::PAGE_SIZE;
use boot::{BootInfo, Module};

use crate::console::logln;
use crate::memory::{self, Memory};
use crate::refusal::Refusal;

/// Modules that lie in memory which a guest will get are copied out of it.
pub(super) fn move_out(
    memory: Memory,
    info: &'static BootInfo<'static>,
    spared: u64,
) -> Result<&'static [Module<'static>], Refusal> {
    let mut modules: Vec<Module<'static>> = info.modules.iter().copied().collect();
    for module in &mut modules {
        let range = module.range;
        if range.start.as_u64() >= spared || range.length == 0 {
            continue;
        }
        logln!(
            "{}: its {} KiB are moved out of the guest's memory",
            module.name,
            range.length >> 10
        );
        let to = memory.lend(range.length, PAGE_SIZE).ok_or_else(memory::out_of_memory)?.start();
        // SAFETY: the loader's module, which nobody writes.
        let from = unsafe { cpu::physical::bytes(range.start, range.length as usize) };
        // SAFETY: fresh memory of the pool.
        unsafe { cpu::physical::bytes_mut(to, range.length as usize) }.copy_from_slice(from);
        module.range.start = to;
        module.name = Box::leak(Box::from(module.name));
    }
    Ok(modules.leak())
}
