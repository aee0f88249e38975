use super::registers::{FSTS, PPF};
use super::*;
use crate::host::{Interrupt, Timer};
use crate::workbench::Workbench;

const ROOT: u64 = 0x1_0000;
const CONTEXTS: u64 = 0x2_0000;
const TABLE: u64 = 0x3_0000;
const REMAPS: u64 = 0x4_0000;
const QUEUE: u64 = 0x5_0000;
const STATUS: u64 = 0x5_1000;
/// 00:04.0.
const SOURCE: u16 = 4 << 3;

struct Machine {
    host: Workbench,
    unit: Unit,
    tail: u32,
}

/// A unit that is on, with domain 7 of three levels for [`SOURCE`]: page 0x5000 is 0x9000.
fn machine(options: UnitOptions) -> Machine {
    let mut host = Workbench::default();
    host.put(ROOT, &[CONTEXTS | 1, 0]);
    host.put(CONTEXTS + 16 * u64::from(SOURCE), &[TABLE | 1, 7 << 8 | 1]);
    host.put(TABLE, &[0x3_1000 | 3]);
    host.put(0x3_1000, &[0x3_2000 | 3]);
    host.put(0x3_2000 + 5 * 8, &[0x9000 | 3]);
    let mut machine = Machine { host, unit: Unit::new(options), tail: 0 };
    machine.write_quad(RTADDR, ROOT);
    machine.command(SRTP);
    machine.write_quad(IQA, QUEUE);
    machine.command(QIE);
    machine.queue(&[[0x11, 0], [0xd2, 0]]);
    machine.write_quad(IRTA, REMAPS | EIME | 7);
    machine.command(SIRTP);
    machine.queue(&[[4, 0]]);
    machine.command(TE);
    machine.command(IRE);
    assert_eq!(machine.unit.counters.driver_errors, 0, "{:?}", machine.host.lines);
    machine
}

impl Machine {
    fn write(&mut self, offset: u32, value: u32) {
        self.unit.write(&mut self.host, offset, value);
    }

    fn write_quad(&mut self, offset: u32, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    /// One more bit of GCMD.
    fn command(&mut self, bit: u32) {
        let lasting = self.unit.read(GSTS) & LASTING;
        self.write(GCMD, lasting | bit);
        assert_ne!(self.unit.read(GSTS) & bit, 0);
    }

    /// Queues these and a wait, and lets the time pass. Whether the wait was reached.
    fn queue(&mut self, descriptors: &[[u64; 2]]) -> bool {
        self.host.put(STATUS, &[0]);
        for descriptor in descriptors.iter().chain([&[0x1_0000_0025, STATUS]]) {
            self.host.put(QUEUE + u64::from(self.tail), descriptor);
            self.tail = (self.tail + 16) % 4096;
        }
        self.write(IQT, self.tail);
        assert_eq!(self.host.get(STATUS), 0, "nothing happens at once");
        if let Some(timer) = self.host.next() {
            assert_eq!(timer, Timer::Unit);
            self.unit.work(&mut self.host);
        }
        self.host.get(STATUS) == 1
    }

    fn read(&mut self, at: u64) -> Option<u64> {
        let mut data = [0; 8];
        let done = self.unit.dma(&mut self.host, SOURCE, at, Transfer::Read(&mut data));
        done.then(|| u64::from_le_bytes(data))
    }

    fn write_memory(&mut self, at: u64) -> bool {
        self.unit.dma(&mut self.host, SOURCE, at, Transfer::Write(&[1; 8]))
    }

    /// The reason of the last fault.
    fn reason(&self) -> u8 {
        let last = (self.unit.next_record + FAULT_RECORDS - 1) % FAULT_RECORDS;
        self.unit.read(FRCD + RECORD_SIZE * last as u32 + 12) as u8
    }

    fn stale(&self) -> [u64; 3] {
        let counters = self.unit.counters;
        [counters.stale_contexts, counters.stale_translations, counters.stale_remaps]
    }

    fn send(&mut self, source: u16, index: u16) -> bool {
        let address = remapping::remappable_address(index);
        self.unit.message(&mut self.host, source, address, 0)
    }
}

#[test]
fn dma_goes_where_the_domain_says() {
    let mut machine = machine(UnitOptions::default());
    machine.host.put(0x9010, &[42]);
    assert_eq!(machine.read(0x5010), Some(42));
    assert_eq!((machine.unit.counters.walks, machine.unit.counters.hits), (1, 0));
    assert!(machine.write_memory(0x5ff0) && machine.host.get(0x9ff0) == u64::MAX / 255);
    assert_eq!((machine.unit.counters.walks, machine.unit.counters.hits), (1, 1));
    // Half of it lies in the next page, which is mapped to nothing.
    assert!(!machine.write_memory(0x5ffc));
    assert_eq!(machine.host.get(0x9ff8) >> 32, 0x0101_0101);
    assert_eq!(machine.reason(), 0x05);
}

#[test]
fn each_wrong_entry_has_its_reason() {
    let entry = CONTEXTS + 16 * u64::from(SOURCE);
    let cases: &[(u64, &[u64], u64, u8)] = &[
        (ROOT, &[0], 0x5000, 0x01),
        (ROOT, &[CONTEXTS | 3], 0x5000, 0x0a),
        (ROOT, &[1 << 40 | 1], 0x5000, 0x09),
        (entry, &[TABLE], 0x5000, 0x02),
        (entry, &[TABLE | 1, 7 << 8 | 3], 0x5000, 0x03),
        (entry, &[TABLE | 1 | 1 << 2, 7 << 8 | 1], 0x5000, 0x03),
        (entry, &[TABLE | 1, 1 << 30 | 1], 0x5000, 0x0b),
        (entry, &[TABLE | 1, 7 << 8 | 1], 1 << 39, 0x04),
        (0x3_2028, &[0], 0x5000, 0x06),
        (0x3_2028, &[0x9000 | 2], 0x5000, 0x06),
        (0x3_1000, &[1 << 40 | 3], 0x5000, 0x07),
        (0x3_2028, &[0x9000 | 1 << 11 | 3], 0x5000, 0x0c),
        (0x3_1000, &[0x20_1000 | 1 << 7 | 3], 0x5000, 0x0c),
    ];
    for (at, words, address, reason) in cases {
        let mut machine = machine(UnitOptions::default());
        machine.host.put(*at, words);
        assert_eq!(machine.read(*address), None);
        assert_eq!(machine.reason(), *reason, "{at:#x}: {words:x?}");
        assert_ne!(machine.unit.read(FSTS) & PPF, 0);
    }
}

#[test]
fn a_function_that_is_not_to_be_told_of_is_refused_in_silence() {
    let mut machine = machine(UnitOptions::default());
    machine.host.put(CONTEXTS + 16 * u64::from(SOURCE), &[2]);
    assert_eq!(machine.read(0x5000), None);
    assert_eq!((machine.unit.counters.faults, machine.unit.read(FSTS)), (0, 0));
}

#[test]
fn a_page_that_is_no_longer_mapped_works_until_it_is_invalidated_and_that_shows() {
    let mut machine = machine(UnitOptions::default());
    assert!(machine.read(0x5000).is_some());
    machine.host.put(0x3_2028, &[0]);
    assert!(machine.read(0x5000).is_some());
    assert_eq!((machine.stale(), machine.host.says("STALE translation")), ([0, 1, 0], 1));
    // Of another domain, then of another page, then of that page.
    let of_page = |page: u64, domain: u64| [2 | 3 << 4 | 3 << 6 | domain << 16, page];
    for (descriptor, still) in
        [(of_page(0x5000, 8), true), (of_page(0x6000, 7), true), (of_page(0x5000, 7), false)]
    {
        assert!(machine.queue(&[descriptor]));
        assert_eq!(machine.read(0x5000).is_some(), still);
    }
    assert_eq!(machine.unit.counters.undrained, 0);
}

#[test]
fn a_detached_function_works_until_its_context_is_invalidated_and_that_shows() {
    let mut machine = machine(UnitOptions::default());
    assert!(machine.read(0x5000).is_some());
    machine.host.put(CONTEXTS + 16 * u64::from(SOURCE), &[0, 0]);
    assert!(machine.read(0x5000).is_some());
    assert_eq!(machine.stale(), [1, 0, 0]);
    let of_function = |source: u64| [1 | 3 << 4 | 7 << 16 | source << 32, 0];
    assert!(machine.queue(&[of_function(5 << 3)]));
    assert!(machine.read(0x5000).is_some());
    assert!(machine.queue(&[of_function(SOURCE.into())]));
    assert!(machine.read(0x5000).is_none());
}

#[test]
fn with_caching_mode_what_is_not_there_is_kept_too() {
    for caching_mode in [false, true] {
        let mut machine = machine(UnitOptions { caching_mode, ..UnitOptions::default() });
        assert_eq!(machine.read(0x6000), None);
        machine.host.put(0x3_2030, &[0xa000 | 3]);
        assert_eq!(machine.read(0x6000).is_some(), !caching_mode);
        assert_eq!(machine.stale(), [0, u64::from(caching_mode), 0]);
        assert!(machine.queue(&[[0xd2, 0]]));
        assert!(machine.read(0x6000).is_some());
    }
}

#[test]
fn superpages_are_used_where_the_unit_has_them() {
    for superpages in [false, true] {
        let mut machine = machine(UnitOptions { superpages, ..UnitOptions::default() });
        machine.host.put(0x3_1008, &[0x20_0000 | 1 << 7 | 3]);
        machine.host.put(0x20_5008, &[9]);
        assert_eq!(machine.read(0x20_5008), superpages.then_some(9));
    }
}

/// Vector 0x51, edge, for the APIC 0x12345 by [`SOURCE`] alone.
const ENTRY: [u64; 2] = [0x1_2345_0051_0001, 1 << 18 | SOURCE as u64];

#[test]
fn a_message_is_remapped_for_its_source_alone() {
    let mut machine = machine(UnitOptions::default());
    machine.host.put(REMAPS + 16 * 3, &ENTRY);
    assert!(machine.send(SOURCE, 3));
    let to =
        Interrupt { vector: 0x51, destination: 0x12345, mode: 0, logical: false, level: false };
    assert_eq!(machine.host.delivered, [to]);
    for (source, index, reason) in [(5 << 3, 3, 0x26), (SOURCE, 4, 0x22), (SOURCE, 256, 0x21)] {
        assert!(!machine.send(source, index));
        assert_eq!(machine.reason(), reason);
    }
    let index = 3;
    machine.host.put(REMAPS + 16 * 3, &[ENTRY[0] | 1 << 24, ENTRY[1]]);
    assert!(machine.send(SOURCE, index), "the entry is kept");
    assert_eq!(machine.stale(), [0, 0, 1]);
    assert!(machine.queue(&[[4 | 1 << 4 | 3 << 32, 0]]));
    assert_eq!(
        machine.stale(),
        [0, 0, 0],
        "it was told to forget it, and either was right meanwhile"
    );
    assert!(!machine.send(SOURCE, index));
    assert_eq!((machine.reason(), machine.host.delivered.len()), (0x24, 2));
}

#[test]
fn compatibility_format_passes_only_without_remapping() {
    let mut unit = Unit::new(UnitOptions::default());
    let mut host = Workbench::default();
    assert!(unit.message(&mut host, SOURCE, 0xfee0_1000, 0x41));
    let mut machine = machine(UnitOptions::default());
    assert!(!machine.unit.message(&mut machine.host, SOURCE, 0xfee0_1000, 0x41));
    assert_eq!(
        (machine.reason(), host.delivered.len(), machine.host.delivered.len()),
        (0x25, 1, 0)
    );
}

#[test]
fn dma_to_the_interrupt_range_is_a_message_or_nothing() {
    let mut machine = machine(UnitOptions::default());
    machine.host.put(REMAPS + 16 * 3, &ENTRY);
    let at = remapping::remappable_address(3);
    assert!(machine.unit.dma(&mut machine.host, SOURCE, at, Transfer::Write(&[0; 4])));
    assert_eq!(machine.host.delivered.len(), 1);
    assert!(!machine.write_memory(at));
    assert_eq!(machine.read(at), None);
}

#[test]
fn misuse_is_told() {
    let misuses: &[fn(&mut Machine)] = &[
        |machine| machine.write(GCMD, 0),
        |machine| machine.write(GCMD, TE | QIE | IRE | EAFL),
        |machine| machine.write_quad(IQA, QUEUE),
        |machine| machine.write(IQT, 8),
        |machine| machine.write(CCMD + 4, 1 << 31 | 1 << 29),
        |machine| machine.write(IOTLB + 4, 1 << 31 | 1 << 28),
        |machine| machine.write(CAP, 0),
        // A new root table that is used before the old one is forgotten.
        |machine| {
            machine.write(GCMD, QIE | IRE);
            machine.command(SRTP);
            machine.command(TE);
        },
        |machine| {
            machine.write(GCMD, TE | QIE);
            machine.command(SIRTP);
            machine.command(IRE);
        },
    ];
    for (number, misuse) in misuses.iter().enumerate() {
        let mut machine = machine(UnitOptions::default());
        misuse(&mut machine);
        assert!(machine.unit.counters.driver_errors > 0, "{number}");
        assert!(machine.host.says("DRIVER ERROR: ") > 0, "{number}");
    }
}

#[test]
fn a_bad_descriptor_stops_the_queue_until_the_error_is_cleared() {
    for bad in
        [[0xf, 0], [1, 0], [0x11, 1], [0x12, 1 << 7], [4 | 1 << 5, 0], [5, 1], [5 | 1 << 9, 0]]
    {
        let mut machine = machine(UnitOptions::default());
        assert!(!machine.queue(&[bad]), "{bad:x?}");
        assert_eq!(machine.unit.read(FSTS) & IQE, IQE);
        assert_eq!(machine.unit.counters.driver_errors, 1);
        let head = machine.unit.read(IQH);
        machine.host.put(QUEUE + u64::from(head), &[0x11, 0]);
        assert!(!machine.queue(&[]), "it stays where it is");
        machine.write(FSTS, IQE);
        assert_eq!(machine.host.next(), Some(Timer::Unit));
        machine.unit.work(&mut machine.host);
        assert_eq!(machine.unit.read(IQH), machine.tail);
    }
}

#[test]
fn a_write_buffer_wants_to_be_flushed_before_each_invalidation() {
    let mut unit = Unit::new(UnitOptions { write_buffer: true, ..UnitOptions::default() });
    let mut host = Workbench::default();
    unit.write(&mut host, GCMD, QIE);
    unit.write(&mut host, GCMD, QIE | WBF);
    unit.write(&mut host, IQT, 16);
    assert_eq!(unit.counters.driver_errors, 0);
    unit.write(&mut host, IQT, 32);
    assert_eq!(unit.counters.driver_errors, 1);
}

#[test]
fn faults_beyond_the_records_are_lost_and_freed_records_are_used_again() {
    let mut machine = machine(UnitOptions::default());
    for _ in 0..5 {
        assert_eq!(machine.read(0x7000), None);
    }
    assert_eq!((machine.unit.counters.faults, machine.unit.counters.lost_faults), (5, 1));
    assert_eq!(machine.unit.read(FSTS) & 3, 3);
    for record in 0..4 {
        machine.write(FRCD + 16 * record + 12, 1 << 31);
    }
    machine.write(FSTS, 1);
    assert_eq!(machine.unit.read(FSTS) & 3, 0);
    assert_eq!(machine.read(0x7000), None);
    assert_eq!((machine.unit.counters.lost_faults, machine.unit.read(FSTS) & 3), (1, 2));
}

#[test]
fn a_masked_fault_event_waits_for_its_mask() {
    let mut machine = machine(UnitOptions::default());
    machine.write(FECTL + 4, 0x61);
    machine.write(FECTL + 8, 0xfee0_2000);
    assert_eq!(machine.read(0x7000), None);
    assert!(machine.host.delivered.is_empty());
    machine.write(FECTL, 0);
    let to = Interrupt { vector: 0x61, destination: 2, mode: 0, logical: false, level: false };
    assert_eq!(machine.host.delivered, [to]);
}

#[test]
fn a_unit_that_never_answers_is_never_woken() {
    let mut unit = Unit::new(UnitOptions { answers: false, ..UnitOptions::default() });
    let mut host = Workbench::default();
    unit.write(&mut host, GCMD, QIE);
    unit.write(&mut host, IQT, 16);
    assert_eq!(host.next(), None);
}

#[test]
fn what_the_firmware_leaves_is_as_the_options_say() {
    let options = UnitOptions { left_on: true, left_error: true, ..UnitOptions::default() };
    let mut unit = Unit::new(options);
    unit.reset_by_firmware();
    assert_eq!(unit.read(GSTS), TE | SRTP | QIE | IRE | SIRTP | CFI);
    assert_eq!((unit.read(IQH), unit.read(IQT)), (0x40, 0x50), "it stopped there");
    assert_eq!(unit.read(FSTS), IQE | ICE);
    assert!(unit.passes_compatibility());
}

#[test]
fn capabilities_are_those_of_the_options() {
    let unit = Unit::new(UnitOptions::default());
    let capability = unit.options().capability();
    assert_eq!((capability >> 16 & 63, capability >> 8 & 31, capability >> 34 & 3), (47, 6, 3));
    let options = UnitOptions { levels: 3, superpages: false, ..UnitOptions::default() };
    let capability = options.capability();
    assert_eq!((capability >> 16 & 63, capability >> 8 & 31, capability >> 34 & 3), (38, 2, 0));
    let ecap = |options: UnitOptions| options.extended_capability() & 0x1b;
    assert_eq!(ecap(UnitOptions::default()), 0x1b);
    let lesser = UnitOptions { extended_interrupt_mode: false, ..UnitOptions::default() };
    assert_eq!(ecap(lesser), 0x0b);
    let least =
        UnitOptions { interrupt_remapping: false, coherent: false, ..UnitOptions::default() };
    assert_eq!(ecap(least), 0x02);
}
