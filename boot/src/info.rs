//! The one description of the machine and the boot modules that all loaders' words end in.
//!
//! Invariant: every string and range in it was checked to lie in memory that the loader filled.
#![forbid(unsafe_code)]

use crate::error::BootError;
use crate::framebuffer::Framebuffer;
use crate::memory_map::{MemoryKind, MemoryMap, MemoryRegion};
use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};
use arrayvec::ArrayVec;

/// How many boot modules there is room for.
pub const MAX_MODULES: usize = 64;

/// A file that the loader put into memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module<'m> {
    /// File name without its folder: the first word of the module's string, behind the last `/`.
    pub name: &'m str,
    /// The words behind the name.
    pub command_line: &'m str,
    /// Where its bytes are.
    pub range: HpaRange,
}

/// What the kernel needs to know from the loader. Strings, modules and the RSDP stay where the
/// loader put them: the memory map counts that memory as usable, [`BootInfo::occupied`] names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootInfo<'m> {
    /// The image's own command line, as the loader passes it (QEMU puts the image's name first).
    pub command_line: &'m str,
    /// Physical memory: sorted, disjoint, neighbours of one kind merged.
    pub memory: MemoryMap,
    /// Boot modules in the loader's order.
    pub modules: ArrayVec<Module<'m>, MAX_MODULES>,
    /// Where the Root System Description Pointer (or the loader's copy of it) is; `None` when the
    /// loader does not tell: search the BIOS area (ACPI "Finding the RSDP on IA-PC Systems").
    pub rsdp: Option<Hpa>,
    /// Where text can be shown, or why not there; `None` where the loader says nothing of it.
    pub framebuffer: Option<Result<Framebuffer, &'static str>>,
    /// The firmware is UEFI.
    pub uefi: bool,
    /// The loader's own structures and strings, which this `BootInfo` borrows from.
    pub loader_data: ArrayVec<HpaRange, { MAX_MODULES + 4 }>,
}

impl<'m> BootInfo<'m> {
    pub(crate) fn new() -> Self {
        Self {
            command_line: "",
            memory: MemoryMap::new(),
            modules: ArrayVec::new(),
            rsdp: None,
            framebuffer: None,
            uefi: false,
            loader_data: ArrayVec::new(),
        }
    }

    /// The ranges that must not be handed out as free memory while this `BootInfo` is in use:
    /// modules and loader data. (The image itself is the linker's to name.)
    pub fn occupied(&self) -> impl Iterator<Item = HpaRange> + '_ {
        self.modules.iter().map(|module| module.range).chain(self.loader_data.iter().copied())
    }

    /// The highest `bytes` of whole pages below 640 KiB, page 0 apart, that are RAM and in which nothing lies: where
    /// code can run that begins in real mode.
    #[must_use]
    pub fn conventional(&self, bytes: u64) -> Option<Hpa> {
        const END: u64 = 0xa_0000;
        let free = |range: &HpaRange| {
            let inside = |region: &MemoryRegion| {
                region.kind == MemoryKind::Usable
                    && region.range.start <= range.start
                    && range.end() <= region.range.end()
            };
            self.memory.iter().any(inside) && !self.occupied().any(|taken| taken.overlaps(*range))
        };
        let starts = (1..END / PAGE_SIZE).rev().map(|page| Hpa::new(page * PAGE_SIZE));
        let mut ranges = starts
            .map(|start| HpaRange { start, length: bytes })
            .filter(|range| range.end() <= Hpa::new(END));
        ranges.find(free).map(|range| range.start)
    }

    /// The module with this file name.
    #[must_use]
    pub fn module(&self, name: &str) -> Option<&Module<'m>> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// Adds the module at `start..end` whose string is `text`.
    pub(crate) fn add_module(
        &mut self,
        (start, end): (u32, u32),
        text: &'m str,
    ) -> Result<(), BootError> {
        let length = end.checked_sub(start).ok_or(BootError::ModuleRange { start, end })?;
        let range = HpaRange { start: Hpa::new(start.into()), length: length.into() };
        let text = text.trim_start();
        let (path, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let name = path.rsplit('/').next().unwrap_or(path);
        let module = Module { name, command_line: rest.trim(), range };
        self.modules
            .try_push(module)
            .map_err(|_| BootError::TooMany { what: "boot modules", limit: MAX_MODULES })
    }

    /// Notes that the loader's data lie here.
    pub(crate) fn add_loader_data(&mut self, range: HpaRange) -> Result<(), BootError> {
        let limit = self.loader_data.capacity();
        self.loader_data
            .try_push(range)
            .map_err(|_| BootError::TooMany { what: "structures", limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_name_is_its_strings_first_word_without_the_folder() {
        let mut info = BootInfo::new();
        info.add_module((0x1000, 0x1800), "/boot/a/vmlinuz  root=/dev/nvme0n1 quiet").unwrap();
        info.add_module((0x2000, 0x2000), "").unwrap();
        let module = info.module("vmlinuz").unwrap();
        assert_eq!(module.command_line, "root=/dev/nvme0n1 quiet");
        assert_eq!(module.range, HpaRange { start: Hpa::new(0x1000), length: 0x800 });
        assert_eq!(info.modules[1].name, "");
        assert_eq!(
            info.add_module((0x2000, 0x1fff), "x"),
            Err(BootError::ModuleRange { start: 0x2000, end: 0x1fff })
        );
    }

    #[test]
    fn code_that_begins_in_real_mode_gets_whole_free_pages_below_640_kib() {
        let with = |usable: &[(u64, u64)], module: (u32, u32)| {
            let mut info = BootInfo::new();
            for (start, end) in usable {
                info.memory.add(*start, end - start, MemoryKind::Usable).unwrap();
            }
            info.add_module(module, "file").unwrap();
            info.conventional(2 * PAGE_SIZE)
        };
        let pc = [(0, 0x9_fc00), (0x10_0000, 0x80_0000)];
        assert_eq!(with(&pc, (0x10_0000, 0x20_0000)), Some(Hpa::new(0x9_d000)));
        assert_eq!(
            with(&pc, (0x9_d000, 0x9_d001)),
            Some(Hpa::new(0x9_b000)),
            "something lies there"
        );
        assert_eq!(with(&pc, (0x2000, 0x9_f000)), None, "page 0 is not for it");
        assert_eq!(with(&[(0, 0x20_0000)], (0, 0)), Some(Hpa::new(0x9_e000)), "below 640 KiB");
        assert_eq!(with(&[(0x10_0000, 0x20_0000)], (0, 0)), None);
    }
}
