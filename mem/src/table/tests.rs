//! Every format against a naive model, and every intermediate state against old and new.

use super::*;
use crate::formats::{DmaFormat, EptFormat, HostFormat, NptFormat};
use crate::reserve::Frames;
use crate::testing::TestMemory;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

impl<F: Format, P> Table<F, P> {
    /// Its pages below the root, each with its level.
    pub(crate) fn levels(&self, memory: &impl TableMemory<Pool = P>) -> Vec<(u64, u8)> {
        let mut found = Vec::new();
        let mut left = vec![(self.root(), self.format.levels() - 1)];
        while let Some((table, level)) = left.pop() {
            for index in 0..ENTRIES {
                let decoded = self.format.decode(memory.read(entry(table, index)), level);
                if let Entry::Table(lower) = decoded {
                    found.push((lower.as_u64(), level - 1));
                    left.push((lower, level - 1));
                }
            }
        }
        found
    }
}

/// The newest change that covers a page decides; no radix tree, no page sizes.
#[derive(Clone, Debug, Default)]
struct Model(Vec<(Range<u64>, Answer)>);

type Answer = Option<(u64, Rights, MemoryType)>;

impl Model {
    fn get(&self, input: u64) -> Answer {
        let (range, target) = self.0.iter().rev().find(|(range, _)| range.contains(&input))?;
        target.map(|(hpa, access, kind)| (hpa + (input - range.start), access, kind))
    }

    /// The ends of all changes and their neighbours.
    fn samples(&self) -> Vec<u64> {
        let ends = self.0.iter().flat_map(|(range, _)| [range.start, range.end]);
        let middles = self.0.iter().map(|(range, _)| range.start.midpoint(range.end));
        ends.chain(middles)
            .flat_map(|at| [at.saturating_sub(4096), at, at + 0x123, at + 4096, at + (2 << 20)])
            .collect()
    }
}

#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    input: u64,
    hpa: u64,
    length: u64,
    access: Rights,
    memory_type: MemoryType,
}

/// Addresses near multiples of all three page sizes, so that large pages form and are cut.
fn address() -> impl Strategy<Value = u64> {
    (0..4u64, 0..4u64, 0..4u64).prop_map(|(g, m, k)| (g << 30) + (m << 21) + (k << 12))
}

fn step() -> impl Strategy<Value = Step> {
    let rights = (any::<bool>(), any::<bool>(), any::<bool>());
    (0..4u8, address(), address(), address(), any::<bool>(), rights).prop_map(
        |(kind, input, hpa, length, same_phase, (write, execute, device))| Step {
            kind,
            input,
            // Half of the time input and output agree in their low bits, as RAM's do. Where they do
            // not, everything is 4 KiB pages: keep it short.
            hpa: if same_phase { (hpa & !0x3fff_ffff) + (input & 0x3fff_ffff) } else { hpa },
            length: length % if same_phase { 2 << 30 } else { 6 << 20 },
            access: Rights { write, execute },
            memory_type: if device { MemoryType::Uncached } else { MemoryType::WriteBack },
        },
    )
}

/// Applies `step` where the model says that it is allowed, and checks the refusal elsewhere.
fn change<F: Format>(
    table: &mut Table<F, TestMemory>,
    memory: &mut TestMemory,
    model: &mut Model,
    step: &Step,
) -> Result<(), TestCaseError> {
    let Step { input, length, access, memory_type, .. } = *step;
    let hpa = Hpa::new(step.hpa);
    let range = input..input + length;
    let pages: Vec<u64> = model
        .samples()
        .into_iter()
        .map(|at| at & !0xfff)
        .chain([range.start, range.end.saturating_sub(4096)])
        .filter(|at| range.contains(at))
        .collect();
    let mapped = pages.iter().filter(|at| model.get(**at).is_some()).count();
    let (result, allowed) = match step.kind {
        0 | 1 => {
            let added = table.map(memory, input, hpa, length, access, memory_type);
            (added.map(Flush::from), mapped == 0)
        }
        2 => {
            (table.replace(memory, input, hpa, length, access, memory_type), mapped == pages.len())
        }
        _ => (table.unmap(memory, input, length), true),
    };
    prop_assert_eq!(result.is_ok(), allowed, "{:?}", result);
    if allowed {
        prop_assert_eq!(result, Ok(Flush { input, length }));
        let target = (step.kind != 3).then_some((step.hpa, access, memory_type));
        model.0.push((range, target));
    }
    Ok(())
}

fn seen<F: Format>(table: &Table<F, TestMemory>, memory: &TestMemory, at: u64) -> Answer {
    let mapping = table.translate(memory, at)?;
    Some((mapping.hpa.as_u64(), mapping.access, mapping.memory_type))
}

/// What is left of an answer in a format that has no bits for the rest.
fn as_stored(dma: bool, answer: Answer) -> Answer {
    let (hpa, access, kind) = answer?;
    if dma {
        Some((hpa, Rights { execute: false, ..access }, MemoryType::WriteBack))
    } else {
        Some((hpa, access, kind))
    }
}

fn agrees_with_the_model<F: Format>(
    format: F,
    dma: bool,
    steps: &[Step],
) -> Result<(), TestCaseError> {
    let mut memory = TestMemory::new();
    let mut table = Table::new(format, &mut memory).unwrap();
    let mut model = Model::default();
    for step in steps {
        let old = model.clone();
        let mut replay = memory.clone();
        memory.log.clear();
        change(&mut table, &mut memory, &mut model, step)?;
        let samples = model.samples();
        for at in &samples {
            prop_assert_eq!(
                seen(&table, &memory, *at),
                as_stored(dma, model.get(*at)),
                "{:#x}",
                at
            );
        }
        // Every state in between, as a reader that walks meanwhile meets it.
        let _ = replay.allocate_contiguous(4096 * 4096);
        let writes = memory.log.len();
        for (number, (at, value)) in memory.log.iter().enumerate() {
            replay.write(Word::linked(*at), *value);
            // Long runs of leaves look alike; look closely at the first and last writes.
            if number > 1100 && number + 16 < writes && number % 97 != 0 {
                continue;
            }
            for at in samples.iter().copied().step_by(1 + samples.len() / 24) {
                let now = seen(&table, &replay, at);
                let (old, new) = (as_stored(dma, old.get(at)), as_stored(dma, model.get(at)));
                prop_assert!(now == old || now == new, "{at:#x}: {now:?}, not {old:?} or {new:?}");
            }
        }
    }
    table.free_tables(&mut memory);
    prop_assert_eq!(memory.frames, u64::MAX, "every page is given back, once");
    Ok(())
}

fn page_size() -> impl Strategy<Value = PageSize> {
    prop_oneof![Just(PageSize::Size2M), Just(PageSize::Size1G)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 64 }))]

    #[test]
    fn a_host_table_agrees_with_the_model_and_is_never_broken(s in steps(), largest in page_size()) {
        agrees_with_the_model(HostFormat { largest }, false, &s)?;
    }

    #[test]
    fn a_nested_table_agrees_with_the_model_and_is_never_broken(s in steps(), largest in page_size()) {
        agrees_with_the_model(NptFormat { largest }, false, &s)?;
    }

    #[test]
    fn an_ept_agrees_with_the_model_and_is_never_broken(s in steps(), largest in page_size()) {
        agrees_with_the_model(EptFormat::up_to(largest), false, &s)?;
    }

    #[test]
    fn a_dma_table_agrees_with_the_model_and_is_never_broken(
        s in steps(), largest in page_size(), levels in 3..=4u8,
    ) {
        agrees_with_the_model(DmaFormat { levels, largest }, true, &s)?;
    }
}

const GIB: u64 = 1 << 30;

fn ept() -> (Table<EptFormat, TestMemory>, TestMemory) {
    let mut memory = TestMemory::new();
    let table = Table::new(EptFormat::up_to(PageSize::Size1G), &mut memory).unwrap();
    (table, memory)
}

#[test]
fn the_largest_pages_that_fit_are_used() {
    let (mut table, mut memory) = ept();
    let (access, kind) = (Rights::ALL, MemoryType::WriteBack);
    let start = GIB - (2 << 20) - 4096;
    let length = GIB + (2 << 20) + 2 * 4096;
    table.map(&mut memory, start, Hpa::new(start), length, access, kind).unwrap().nothing_cached();
    assert_eq!(table.page_counts(&memory), PageCounts { size_4k: 2, size_2m: 1, size_1g: 1 });
}

#[test]
fn one_page_of_a_gigabyte_is_replaced_with_two_tables() {
    let (mut table, mut memory) = ept();
    let (access, kind) = (Rights::ALL, MemoryType::WriteBack);
    table.map(&mut memory, 0, Hpa::new(GIB), GIB, access, kind).unwrap().nothing_cached();
    memory.frames = 2;
    let page = Hpa::new(0x7000);
    let flush = table.replace(&mut memory, 0x12_3000, page, 4096, Rights::READ, kind).unwrap();
    assert_eq!(flush, Flush { input: 0x12_3000, length: 4096 });
    assert_eq!(table.page_counts(&memory), PageCounts { size_4k: 512, size_2m: 511, size_1g: 0 });
    assert_eq!(table.translate(&memory, 0x12_3004).unwrap().hpa, Hpa::new(0x7004));
    assert_eq!(table.translate(&memory, 0x12_3004).unwrap().access, Rights::READ);
    assert_eq!(table.translate(&memory, 0x12_4004).unwrap().hpa, Hpa::new(GIB + 0x12_4004));
}

#[test]
fn a_split_without_memory_changes_nothing() {
    let (mut table, mut memory) = ept();
    let (access, kind) = (Rights::ALL, MemoryType::WriteBack);
    table.map(&mut memory, 0, Hpa::new(GIB), GIB, access, kind).unwrap().nothing_cached();
    memory.frames = 0;
    memory.log.clear();
    assert_eq!(table.unmap(&mut memory, 0, 4096), Err(MapError::OutOfFrames));
    assert!(memory.log.is_empty());
}

/// RAM of two pieces with a page of its own in one, a reserve, and stand-ins for two CPUs: what a guest's tables are.
fn build(frames: u64) -> (Result<(), MapError>, TestMemory) {
    let mut memory = TestMemory::new();
    memory.frames = frames;
    let mut reserved = Frames::default();
    let result =
        Table::new(EptFormat::up_to(PageSize::Size2M), &mut memory).and_then(|mut table| {
            let filled = fill(&mut table, &mut memory, &mut reserved);
            table.free_tables(&mut memory);
            filled
        });
    while let Some(frame) = reserved.take(&mut memory) {
        memory.free(frame);
    }
    (result, memory)
}

fn fill(
    table: &mut Table<EptFormat, TestMemory>,
    memory: &mut TestMemory,
    reserved: &mut Frames<TestMemory>,
) -> Result<(), MapError> {
    const RESERVED: usize = 5;
    let (access, kind) = (Rights::ALL, MemoryType::WriteBack);
    for (start, length) in [(0, 3 << 20), (5 * GIB, GIB + 4096)] {
        table.map(memory, start, Hpa::new(start), length, access, kind)?.nothing_cached();
    }
    table.replace(memory, 0x3000, Hpa::new(0), 4096, Rights::READ, kind)?.not_in_use();
    for _ in 0..RESERVED {
        let frame = memory.allocate_table().ok_or(MapError::OutOfFrames)?;
        reserved.put(memory, frame);
    }
    Ok(())
}

#[test]
fn tables_that_run_out_of_frames_give_back_all_that_they_took() {
    let needed = (0..100).find(|frames| build(*frames).0.is_ok()).unwrap();
    assert!(needed > 8, "each of these can be the first that is missing");
    for frames in 0..=needed {
        let (result, memory) = build(frames);
        assert_eq!(result, if frames < needed { Err(MapError::OutOfFrames) } else { Ok(()) });
        assert_eq!(memory.frames, frames);
    }
}

#[test]
fn bad_addresses_are_refused() {
    let (mut table, mut memory) = ept();
    let mut map = |input: u64, hpa: u64, length: u64| {
        let (access, kind) = (Rights::ALL, MemoryType::WriteBack);
        table
            .map(&mut memory, input, Hpa::new(hpa), length, access, kind)
            .map(Added::nothing_cached)
    };
    assert_eq!(map(1, 0, 4096), Err(MapError::NotAligned(1)));
    assert_eq!(map(0, 8, 4096), Err(MapError::NotAligned(8)));
    assert_eq!(map(0, 0, 12), Err(MapError::NotAligned(12)));
    assert_eq!(map(1 << 48, 0, 4096), Err(MapError::InputTooWide(1 << 48)));
    assert_eq!(map(0, 0, !0xfff), Err(MapError::InputTooWide(0)));
    assert_eq!(map(0, 1 << 52, 4096), Err(MapError::OutputTooWide(1 << 52)));
    assert_eq!(map(0x1000, 0, 0x2000), Ok(()));
    assert_eq!(map(0, 0, 0x4000), Err(MapError::AlreadyMapped(0x1000)));
    assert_eq!(table.translate(&memory, 1 << 48), None);
    let flush =
        table.replace(&mut memory, 0x2000, Hpa::new(0), 0x2000, Rights::ALL, MemoryType::WriteBack);
    assert_eq!(flush, Err(MapError::NotMapped(0x3000)));
}

#[test]
fn a_reader_without_large_pages_gets_none() {
    let mut memory = TestMemory::new();
    let mut table =
        Table::new(DmaFormat { levels: 3, largest: PageSize::Size4K }, &mut memory).unwrap();
    let (access, kind) = (Rights::READ_WRITE, MemoryType::WriteBack);
    table.map(&mut memory, 0, Hpa::new(0), 4 << 20, access, kind).unwrap().nothing_cached();
    assert_eq!(table.page_counts(&memory), PageCounts { size_4k: 1024, size_2m: 0, size_1g: 0 });
}

#[test]
fn a_big_bar_takes_big_pages_few_tables_and_few_looks() {
    const GIB: u64 = 1 << 30;
    for (largest, tables) in [(PageSize::Size1G, 2), (PageSize::Size2M, 66)] {
        let mut memory = TestMemory::new();
        let mut table = Table::new(HostFormat { largest }, &mut memory).unwrap();
        let (at, length) = (1 << 37, 64 * GIB);
        memory.frames = 1000;
        let bar = Hpa::new(at);
        // A page of it is there already, with registers of its own.
        let (page, access) = (at + 5 * GIB, Rights::READ_WRITE);
        let kind = MemoryType::WriteBack;
        table.map(&mut memory, page, Hpa::new(page), 4096, access, kind).unwrap().nothing_cached();
        let kind = MemoryType::Uncached;
        table.map_missing(&mut memory, at, bar, length, access, kind).unwrap().nothing_cached();
        // Besides, two tables for that page.
        assert!(1000 - memory.frames <= tables + 2, "{}", 1000 - memory.frames);
        assert!(memory.reads.get() < 100_000, "{}", memory.reads.get());
        for offset in [0, 5 * GIB - 4096, 5 * GIB + 4096, 64 * GIB - 4096] {
            let mapping = table.translate(&memory, at + offset).unwrap();
            assert_eq!(mapping.hpa, Hpa::new(at + offset));
            assert_eq!(mapping.memory_type, MemoryType::Uncached);
        }
        let there = table.translate(&memory, page).unwrap();
        assert_eq!(there.memory_type, MemoryType::WriteBack, "what was there stays");
    }
}
