//! Two guests that share memory, each with a bus and a machine of its own.

use std::boxed::Box;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::pci::doorbells::Bell;

const REGION: u64 = 0x1_2340_0000;
const SIZE: u64 = 1 << 20;
const IN_MACHINE: HpaRange = HpaRange { start: Hpa::new(REGION), length: SIZE };
/// Where a guest whose slots below are taken finds it.
const PLACE: Bdf = Bdf::new(0, 31, 0);
const ON: u64 = 0x8000;
const MASKED: u64 = 0xc000;

fn region() -> &'static SharedMemory {
    Box::leak(Box::new(SharedMemory::new(SIZE)))
}

impl World {
    fn sharing(memory: &'static SharedMemory, peer: u16) -> Self {
        let mut world = Self::new();
        world.machine.owned.add_shared(IN_MACHINE);
        world.with(|bus, host| {
            bus.detach(host);
            bus.add_shared(memory, peer).unwrap();
            bus.attach(host);
        });
        world
    }

    fn shared(&mut self, offset: u16) -> u64 {
        self.read(Self::ecam(PLACE, offset), Width::Dword).unwrap()
    }

    fn set_shared(&mut self, offset: u16, value: u64) {
        self.write(Self::ecam(PLACE, offset), Width::Dword, value);
    }

    /// The address of a BAR.
    fn bar(&mut self, index: u16) -> u64 {
        self.shared(0x10 + 4 * index) & !0xf
    }

    /// Enables MSI-X and bus mastering.
    fn listen(&mut self, control: u64) {
        self.set_shared(4, 0x6);
        self.set_shared(0x40, control << 16);
    }

    fn set_entry(&mut self, index: u64, address: u64, data: u64, control: u64) {
        let entry = self.bar(1) + 16 * index;
        self.write(entry, Width::Qword, address);
        self.write(entry + 8, Width::Qword, control << 32 | data);
    }

    /// Rings, and says what was sent.
    fn ring(&mut self, peer: u64, index: u64) -> Vec<(ApicId, Vector)> {
        let doorbell = self.bar(0) + 12;
        self.write(doorbell, Width::Dword, peer << 16 | index);
        core::mem::take(&mut self.machine.rung)
    }

    fn pending(&mut self) -> Option<u64> {
        let at = self.bar(1) + 0x800;
        self.read(at, Width::Qword)
    }
}

#[test]
fn it_looks_like_ivshmem_doorbell_and_its_bars_are_placed_and_can_be_sized() {
    let memory = region();
    let (mut world, bare) = (World::sharing(memory, 5), World::new());
    assert_eq!(
        [0, 4, 8, 0x2c, 0x34, 0x3c].map(|at| world.shared(at)),
        [0x1110_1af4, 0x0010_0002, 0x0500_0001, 0x1100_1af4, 0x40, 0]
    );
    assert_eq!([0x40, 0x44, 0x48].map(|at| world.shared(at)), [0x0007_0011, 1, 0x801]);
    // Prefetchable, 64 bits.
    assert_eq!([0x10, 0x14, 0x18].map(|at| world.shared(at) & 0xf), [0, 0, 0xc]);
    let (registers, messages, at) = (world.bar(0), world.bar(1), world.bar(2));
    let position = world.read(registers + 8, Width::Dword);
    assert_eq!(position, Some(5));
    assert_eq!(world.read(registers + 9, Width::Byte), Some(0));
    assert_ne!(registers & !0xfff, messages);
    let shared: Vec<_> = world.mapped().into_iter().filter(|(_, hpa)| *hpa >= REGION).collect();
    let expected = (0..SIZE).step_by(4096).map(|offset| (at + offset, REGION + offset));
    assert_eq!(shared, expected.collect::<Vec<_>>());
    assert_eq!(world.mapped().len() - shared.len(), bare.mapped().len(), "only the memory");
    for (register, size) in [(0x10, 256), (0x14, 4096), (0x18, SIZE)] {
        world.set_shared(register, u32::MAX.into());
        assert_eq!(world.shared(register) & !0xf, (1 << 32) - size);
    }
    let unmapped = world.mapped().iter().all(|(_, hpa)| *hpa < REGION);
    assert!(unmapped, "it is at no address that it could have");
}

#[test]
fn its_bars_keep_clear_of_what_other_functions_have() {
    let mut world = World::new();
    // As if the firmware had put it there.
    world.write(World::ecam(NIC_PLACE, 0x10), Width::Dword, 0x8000_0000);
    world.machine.owned.add_shared(IN_MACHINE);
    world.machine.owned.add_shared(IN_MACHINE);
    let small = world.with(|bus, host| {
        bus.detach(host);
        bus.add_shared(region(), 0).unwrap();
        bus.add_shared(region(), 0).unwrap();
        bus.attach(host);
        bus.shared.iter().map(|function| function.address).collect::<Vec<_>>()
    });
    assert_eq!(small, [PLACE, Bdf::new(0, 30, 0)]);
    let ranges: Vec<_> = world.bus.shared.iter().flat_map(SharedFunction::reserved).collect();
    let nic = GpaRange { start: Gpa::new(0x8000_0000), length: 0x2_0000 };
    for (index, range) in ranges.iter().enumerate() {
        assert!(range.start.is_aligned(range.length) && !range.overlaps(nic), "{range:?}");
        assert!(ranges[index + 1..].iter().all(|other| !other.overlaps(*range)));
    }
}

#[test]
fn each_function_shows_the_region_that_it_is_for() {
    const FURTHER: u64 = 0x2_0000_0000;
    let mut world = World::sharing(region(), 0);
    let further = HpaRange { start: Hpa::new(FURTHER), length: 2 * SIZE };
    world.machine.owned.add_shared(further);
    world.with(|bus, host| {
        bus.detach(host);
        bus.add_shared(Box::leak(Box::new(SharedMemory::new(2 * SIZE))), 0).unwrap();
        bus.attach(host);
    });
    let pages = |range: core::ops::Range<u64>| {
        world.mapped().iter().filter(|(_, hpa)| range.contains(hpa)).count() as u64
    };
    assert_eq!(pages(REGION..REGION + SIZE), SIZE / 4096);
    assert_eq!(pages(FURTHER..FURTHER + 2 * SIZE), 2 * SIZE / 4096);
    // An instruction that the CPU cannot carry out by itself.
    let at = world.bar(2);
    world.write(at + 8, Width::Dword, 0x1234_5678);
    assert_eq!(world.machine.dword(REGION + 8), 0x1234_5678);
}

#[test]
fn a_doorbell_raises_the_vector_that_its_guest_chose_on_the_cpu_that_it_chose() {
    let memory = region();
    let (mut one, mut other) = (World::sharing(memory, 0), World::sharing(memory, 1));
    assert_eq!(one.ring(1, 2), [], "nobody listens");
    other.set_entry(2, 0xfee0_1000, 0x41, 0);
    assert_eq!((one.ring(1, 2), other.grants.len()), (vec![], 0), "MSI-X is off");
    other.listen(ON);
    assert_eq!(other.grants, [(Vector(0x41), ApicId(3))]);
    assert_eq!(one.ring(1, 2), [(ApicId(3), Vector(0x41))]);
    for (peer, index) in [(0, 2), (2, 2), (8, 2), (0xffff, 2), (1, 3), (1, 8), (1, 0xffff)] {
        assert_eq!(one.ring(peer, index), [], "{peer}, {index}");
    }
    assert_eq!(other.ring(1, 2), [(ApicId(3), Vector(0x41))], "its own");
    other.set_entry(2, 0xfee0_0000, 0x42, 0);
    assert_eq!(one.ring(1, 2), [(ApicId(2), Vector(0x42))]);
    // No bus master sends nothing.
    other.set_shared(4, 2);
    assert_eq!((one.ring(1, 2), other.pending()), (vec![], Some(0)));
    assert_eq!(other.machine.log, [] as [String; 0]);
}

#[test]
fn what_is_rung_while_masked_is_pending_and_comes_once_when_unmasked() {
    let memory = region();
    let (mut one, mut other) = (World::sharing(memory, 0), World::sharing(memory, 1));
    other.listen(MASKED);
    other.set_entry(0, 0xfee0_0000, 0x41, 0);
    other.set_entry(1, 0xfee0_0000, 0x42, 1);
    for index in [0, 1, 1, 1] {
        assert_eq!(one.ring(1, index), []);
    }
    assert_eq!((one.pending(), other.pending()), (Some(0), Some(3)));
    other.listen(ON);
    assert_eq!(core::mem::take(&mut other.machine.rung), [(ApicId(2), Vector(0x41))]);
    assert_eq!(other.pending(), Some(2));
    other.set_entry(1, 0xfee0_0000, 0x42, 0);
    assert_eq!(core::mem::take(&mut other.machine.rung), [(ApicId(2), Vector(0x42))]);
    assert_eq!((other.pending(), one.ring(1, 1).len()), (Some(0), 1));
}

#[test]
fn a_message_that_is_no_interrupt_of_the_guest_is_refused_and_said_few_times() {
    let memory = region();
    let (mut one, mut other) = (World::sharing(memory, 0), World::sharing(memory, 1));
    other.listen(ON);
    for (address, data) in
        [(0xfee0_0000, 0x241), (0x1000, 0x41), (0xfee0_7000, 0x41), (0xfee0_0000, 0x1f)]
    {
        other.set_entry(0, address, data, 0);
        assert_eq!(one.ring(1, 0), [], "{address:#x} {data:#x}");
        other.set_entry(0, address, data, 1);
    }
    assert_eq!((other.grants.len(), other.pending()), (0, Some(1)));
    assert!(other.machine.log[0].starts_with("00:1f.0: doorbell 0 stays masked: address 0x"));
    for _ in 0..20 {
        other.set_entry(0, 0, 0, 0);
    }
    assert_eq!(other.machine.log.len(), 8);
}

#[test]
fn a_guest_that_has_ended_is_rung_in_vain_and_has_the_memory_no_more() {
    let memory = region();
    let (mut one, mut other) = (World::sharing(memory, 0), World::sharing(memory, 1));
    other.listen(ON);
    other.set_entry(0, 0xfee0_0000, 0x41, 0);
    assert_eq!(one.ring(1, 0).len(), 1);
    other.with(|bus, host| bus.detach(host));
    assert_eq!((one.ring(1, 0), other.mapped()), (vec![], vec![]));
    // It restarts: as after reset.
    let mut other = World::sharing(memory, 1);
    assert_eq!(one.ring(1, 0), []);
    other.listen(ON);
    assert_eq!((one.ring(1, 0), other.pending()), (vec![], Some(1)));
}

#[test]
fn other_functions_are_never_touched_by_what_a_guest_does_to_it() {
    let mut world = World::sharing(region(), 0);
    // A function of the machine that has this address; it is another guest's.
    world.config.device(PLACE, 0x020000, &[]);
    let before = world.config.clone();
    for offset in (0..256).step_by(4) {
        world.set_shared(offset, u32::MAX.into());
    }
    world.with(|bus, host| bus.detach(host));
    assert_eq!(world.config.0[&PLACE], before.0[&PLACE]);
}

/// The ringing and the unmasking meet on two CPUs.
#[test]
fn a_ring_that_races_with_the_unmasking_is_heard_exactly_once() {
    let memory = region();
    let target = GuestInterrupt { vector: Vector(0x41), destination: 0, logical: false };
    let live = Bell::Live(target.target(ApicId(7)));
    const ROUNDS: usize = 2000;
    let barrier = Barrier::new(2);
    let (rung, unmasked) = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut heard = Vec::new();
            for _ in 0..ROUNDS {
                barrier.wait();
                heard.push(memory.ring(1, 0).is_some());
                barrier.wait();
            }
            heard
        });
        let mut heard = Vec::new();
        for _ in 0..ROUNDS {
            memory.set(1, 0, Bell::Masked);
            barrier.wait();
            heard.push(memory.set(1, 0, live));
            barrier.wait();
        }
        (sender.join().unwrap(), heard)
    });
    assert!(rung.iter().zip(&unmasked).all(|(rung, unmasked)| rung != unmasked));
}

#[test]
fn in_a_row_of_short_lives_such_a_message_is_said_no_more() {
    let memory = region();
    let mut other = World::sharing(memory, 1);
    other.bus.be_quiet();
    other.listen(ON);
    other.set_entry(0, 0x1000, 0x41, 0);
    other.set_entry(0, 0x1000, 0x41, 1);
    assert!(World::sharing(memory, 0).ring(1, 0).is_empty());
    assert_eq!(other.machine.log, Vec::<String>::new());
}
