//! What a boot loader leaves, and the files that guests are loaded from.

use arch::address::HpaRange;
use arch::{Gpa, Hpa};
use boot::elf::Elf;
use guest::load::{LoadRequest, ModuleRequest, Source, plan};
use guest::memory_map::{GpaRange, MemoryMap};

use crate::input::Input;

/// What loaders leave in EAX.
const MAGICS: [u32; 3] = [0x2bad_b002, 0x36d7_6289, 0];
/// Where the loader's structures are.
const INFO: u64 = 0x1000;
const GUEST_MEMORY: u64 = 64 << 20;

pub(super) fn loader(input: &[u8]) {
    let mut input = Input(input);
    let magic = input.one_of(&MAGICS);
    let bytes = input.0;
    let memory = |range: HpaRange| -> Option<&[u8]> {
        let start = usize::try_from(range.start.as_u64().checked_sub(INFO)?).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(range.length).ok()?)?)
    };
    match boot::parse(magic, Hpa::new(INFO), &memory) {
        Ok(info) => {
            let pairs = info.memory.iter().zip(info.memory.iter().skip(1));
            assert!(pairs.into_iter().all(|(one, next)| one.range.end() <= next.range.start));
            assert!(info.occupied().all(|range| range.start.checked_add(range.length).is_some()));
            if let Some(free) = info.conventional(0x2000) {
                let range = HpaRange { start: free, length: 0x2000 };
                assert!(range.end().as_u64() <= 0xa_0000 && range.start.as_u64() > 0);
                assert!(!info.occupied().any(|occupied| occupied.overlaps(range)));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(super) fn elf(input: &[u8]) {
    let Ok(elf) = Elf::parse(input) else { return };
    for segment in elf.segments().flatten() {
        assert!(segment.bytes.start <= segment.bytes.end && segment.bytes.end <= input.len());
        assert!(segment.size > 0 && segment.bytes.len() as u64 <= segment.size);
    }
}

pub(super) fn kernel(input: &[u8]) {
    let mut input = Input(input);
    let flags = input.byte();
    let module = ModuleRequest { size: usize::from(input.word()), words: "module a=b" };
    let initrd = usize::from(input.word()) << (input.byte() & 15);
    let memory = MemoryMap::new(GUEST_MEMORY, None);
    let request = LoadRequest {
        kernel: input.0,
        initrd_size: (flags & 1 != 0).then_some(initrd),
        modules: if flags & 2 != 0 { &[module] } else { &[] },
        command_line: if flags & 4 != 0 { "console=ttyS0 quiet" } else { "" },
        memory: &memory,
        rsdp: Gpa::new(0xe_0000),
    };
    match plan(request) {
        Ok(plan) => {
            let inside = |start: Gpa, length: u64| {
                let range = GpaRange { start, length };
                memory.ram().iter().any(|run| run.contains(range)) || length == 0
            };
            for copy in &plan.copies {
                let size = match copy.source {
                    Source::Kernel => request.kernel.len(),
                    Source::Initrd => initrd,
                    Source::Module(index) => request.modules[index].size,
                };
                assert!(copy.bytes.start <= copy.bytes.end && copy.bytes.end <= size, "{copy:x?}");
                assert!(inside(copy.to, copy.bytes.len() as u64), "{copy:x?}");
            }
            for blob in &plan.blobs {
                assert!(inside(blob.at, blob.bytes.len() as u64), "{:x?}", blob.at);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
