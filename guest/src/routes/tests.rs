//! Routes in hardware that only remembers: what reaches it, and in what order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::string::{String, ToString};

use arch::Vector;
use arch::address::{Hpa, Iova};
use arch::interrupt::DeliveryMode;
use arch::iommu::{DomainId, Fault};
use proptest::prelude::*;

use super::*;

const FUNCTION: Bdf = Bdf::new(0, 4, 0);
const BRIDGE: Bdf = Bdf::new(0, 3, 0);
const CPUS: [ApicId; 2] = [ApicId(6), ApicId(0x206)];
const PCI_LINE: Line = Line { input: 17, gsi: 40, active_low: true };
const PCI_WIRE: Wired = Wired { gsi: 40, active_low: true, level: false };
/// A line of the ISA bus that the firmware has moved.
const ISA_LINE: Line = Line { input: 4, gsi: 4, active_low: false };
const ISA_WIRE: Wired = Wired { gsi: 44, active_low: true, level: true };

/// What was done, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    Mask(u32),
    Redirect(u32, u64),
    Allocate(InterruptSource, u16),
    Remap(u16, Option<InterruptTarget>),
    Free(u16, u16),
}

/// I/O APIC 9 with the inputs 40 to 47, and entries from 100 on.
struct Hardware {
    remaps: bool,
    refuses: Rc<Cell<bool>>,
    done: Rc<RefCell<Vec<Done>>>,
    log: Rc<RefCell<Vec<String>>>,
}

struct FakeIommu<'a>(&'a Hardware, u16);

impl InterruptHardware for Hardware {
    type Input = u32;

    fn input(&self, gsi: u32) -> Option<(u8, u32)> {
        (40..48).contains(&gsi).then(|| (9, gsi - 40))
    }
    fn mask(&self, input: u32) {
        self.done.borrow_mut().push(Done::Mask(input));
    }
    fn set_redirection(&self, input: u32, entry: u64) {
        self.done.borrow_mut().push(Done::Redirect(input, entry));
    }
    fn with_iommu<T>(&self, work: impl FnOnce(&mut dyn Iommu) -> T) -> Option<T> {
        let count = |done: &Done| if let Done::Allocate(_, count) = done { *count } else { 0 };
        let taken: u16 = self.done.borrow().iter().map(count).sum();
        self.remaps.then(|| work(&mut FakeIommu(self, 100 + taken)))
    }
    fn log(&self, line: fmt::Arguments<'_>) {
        self.log.borrow_mut().push(line.to_string());
    }
}

impl FakeIommu<'_> {
    fn answer(&self, done: Done) -> Result<(), IommuError> {
        if self.0.refuses.get() {
            return Err(IommuError::TimedOut("invalidation"));
        }
        self.0.done.borrow_mut().push(done);
        Ok(())
    }
}

impl Iommu for FakeIommu<'_> {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn create_domain(&mut self, _: &[Bdf]) -> Result<DomainId, IommuError> {
        panic!("routes make no domain")
    }
    fn destroy_domain(&mut self, _: DomainId) {
        panic!("routes make no domain")
    }
    fn map(&mut self, _: DomainId, _: Iova, _: Hpa, _: u64) -> Result<(), IommuError> {
        panic!("routes map nothing")
    }
    fn attach(&mut self, _: Bdf, _: DomainId) -> Result<(), IommuError> {
        panic!("routes attach nothing")
    }
    fn detach(&mut self, _: Bdf) -> Result<(), IommuError> {
        panic!("routes detach nothing")
    }
    fn allocate_remap(
        &mut self,
        source: InterruptSource,
        count: u16,
    ) -> Result<RemapIndex, IommuError> {
        self.answer(Done::Allocate(source, count)).map(|()| RemapIndex(self.1))
    }
    fn free_remap(&mut self, first: RemapIndex, count: u16) -> Result<(), IommuError> {
        self.answer(Done::Free(first.0, count))
    }
    fn remaps_in_use(&self) -> usize {
        0
    }
    fn set_remap(
        &mut self,
        index: RemapIndex,
        target: Option<InterruptTarget>,
    ) -> Result<(), IommuError> {
        self.answer(Done::Remap(index.0, target))
    }
    fn remap_message(&self, index: RemapIndex) -> MsiMessage {
        MsiMessage { address: u64::from(index.0), data: 0 }
    }
    fn remap_redirection(&self, index: RemapIndex, target: InterruptTarget, low: bool) -> u64 {
        u64::from(index.0) << 48 | u64::from(low) << 13 | u64::from(target.vector.0)
    }
    fn context_entry(&self, _: Bdf) -> Option<[u64; 2]> {
        None
    }
    fn remap_entries(&self, _: Bdf, _: &mut dyn FnMut(RemapIndex, [u64; 2])) {}
    fn poll_faults(&mut self, _: &mut dyn FnMut(Fault)) -> u32 {
        0
    }
}

/// Routes of a guest with two messages and two lines, and what was done.
struct World {
    routes: Routes<Hardware>,
    refuses: Rc<Cell<bool>>,
    done: Rc<RefCell<Vec<Done>>>,
    log: Rc<RefCell<Vec<String>>>,
}

impl World {
    fn new(remaps: bool) -> Self {
        let (refuses, done, log) = <(Rc<Cell<bool>>, Rc<RefCell<_>>, Rc<RefCell<_>>)>::default();
        let hardware =
            Hardware { remaps, refuses: refuses.clone(), done: done.clone(), log: log.clone() };
        let mut routes = Routes::new(hardware, &CPUS);
        routes.grant_messages(FUNCTION, BRIDGE, 2).unwrap();
        routes.grant_line(PCI_LINE, PCI_WIRE).unwrap();
        routes.grant_line(ISA_LINE, ISA_WIRE).unwrap();
        Self { routes, refuses, done, log }
    }

    fn done(&self) -> Vec<Done> {
        self.done.take()
    }
}

fn to(destination: ApicId, vector: u8) -> Option<InterruptTarget> {
    let (trigger, delivery) = (TriggerMode::Edge, DeliveryMode::Fixed);
    Some(InterruptTarget { vector: Vector(vector), destination, trigger, delivery })
}

fn level(target: Option<InterruptTarget>) -> Option<InterruptTarget> {
    target.map(|target| InterruptTarget { trigger: TriggerMode::Level, ..target })
}

const fn message(index: u16) -> InterruptLine {
    InterruptLine::Message { function: FUNCTION, index }
}

#[test]
fn entries_are_taken_in_the_name_in_which_the_interrupt_comes() {
    let world = World::new(true);
    let expected = [
        Done::Allocate(InterruptSource::Device(BRIDGE), 2),
        Done::Allocate(InterruptSource::IoApic(9), 1),
        Done::Allocate(InterruptSource::IoApic(9), 1),
    ];
    assert_eq!(world.done(), expected);
}

#[test]
fn what_is_not_the_guests_is_refused_and_nothing_is_done() {
    let mut world = World::new(true);
    let _ = world.done();
    let other = InterruptLine::Message { function: BRIDGE, index: 0 };
    for (line, target) in [
        (message(0), to(ApicId(7), 0x41)),
        (InterruptLine::Gsi(40), to(ApicId(0x106), 0x41)),
        (message(2), to(CPUS[0], 0x41)),
        (other, to(CPUS[0], 0x41)),
        (other, None),
        // The machine's number of a line that has another one in the guest.
        (InterruptLine::Gsi(44), to(CPUS[0], 0x41)),
        (InterruptLine::Gsi(41), None),
    ] {
        assert!(world.routes.set(line, target).is_err(), "{line:?} {target:?}");
        assert_eq!(world.done(), []);
    }
    world.routes.each(|line, _, _| panic!("{line:?} points somewhere"));
}

#[test]
fn a_message_has_its_own_entry_wherever_it_points() {
    let mut world = World::new(true);
    let _ = world.done();
    let far = to(CPUS[1], 0x42);
    let sent = world.routes.set(message(1), far).unwrap();
    assert_eq!((sent.address, world.done()), (101, vec![Done::Remap(101, far)]));
    let mut shown = Vec::new();
    world.routes.each(|line, target, entry| shown.push((line, Some(target), entry)));
    assert_eq!(shown, [(message(1), far, Some(101))]);
    assert!(world.routes.set(message(1), None).is_ok());
    assert_eq!(world.done(), [Done::Remap(101, None)]);
}

#[test]
fn a_line_is_masked_before_its_entry_goes_and_opened_after_it_is_there() {
    let mut world = World::new(true);
    let _ = world.done();
    let target = to(CPUS[0], 0x41);
    world.routes.set(InterruptLine::Gsi(40), target).unwrap();
    assert_eq!(
        world.done(),
        [Done::Remap(102, target), Done::Redirect(0, 102 << 48 | 1 << 13 | 0x41)]
    );
    world.routes.set(InterruptLine::Gsi(40), None).unwrap();
    assert_eq!(world.done(), [Done::Mask(0), Done::Remap(102, None)]);
}

#[test]
fn a_line_that_is_held_up_is_level_whatever_the_guest_takes_it_for() {
    let mut world = World::new(true);
    let _ = world.done();
    world.routes.set(InterruptLine::Gsi(4), to(CPUS[0], 0x41)).unwrap();
    assert_eq!(world.done().first(), Some(&Done::Remap(103, level(to(CPUS[0], 0x41)))));
    world.routes.set(InterruptLine::Gsi(40), to(CPUS[0], 0x42)).unwrap();
    assert_eq!(world.done().first(), Some(&Done::Remap(102, to(CPUS[0], 0x42))));
}

#[test]
fn without_remapping_a_cpu_above_255_is_refused_and_never_taken_for_another() {
    let mut world = World::new(false);
    assert_eq!(world.done(), [], "nothing to allocate");
    let near = to(CPUS[0], 0x41);
    let sent = world.routes.set(message(0), near).unwrap();
    assert_eq!(sent, MsiMessage { address: 0xfee0_6000, data: 0x41 });
    world.routes.set(InterruptLine::Gsi(4), near).unwrap();
    assert_eq!(world.done(), [Done::Redirect(4, 0x0600_0000_0000_a041)]);
    for line in [message(0), InterruptLine::Gsi(4)] {
        let refused = world.routes.set(line, to(CPUS[1], 0x41)).unwrap_err();
        assert!(refused.0.contains("above 255"), "{}", refused.0);
        assert_eq!(world.done(), []);
    }
}

#[test]
fn an_iommu_that_does_not_answer_opens_no_line_and_is_said_at_the_end() {
    let mut world = World::new(true);
    let _ = world.done();
    world.refuses.set(true);
    for line in [message(0), InterruptLine::Gsi(40)] {
        assert_eq!(world.routes.set(line, to(CPUS[0], 0x41)), Err(IOMMU_REFUSED));
        assert_eq!(world.done(), []);
    }
    let World { routes, log, .. } = world;
    drop(routes);
    assert_eq!(
        *log.borrow(),
        ["the IOMMU did not finish: invalidation: its remapping entries stay taken"; 3]
    );
}

#[test]
fn a_line_that_no_io_apic_has_is_refused_with_the_key_to_change() {
    let mut world = World::new(true);
    let refused = world.routes.grant_line(PCI_LINE, Wired { gsi: 99, ..PCI_WIRE }).unwrap_err();
    assert_eq!(refused.to_string(), "no I/O APIC has interrupt line 99: name another one in intx");
}

proptest! {
    /// However often it was pointed somewhere: at the end every line is masked before any entry is free, and each entry
    /// that was taken is free once.
    #[test]
    fn at_the_end_every_line_is_masked_and_every_entry_is_free(
        sets in proptest::collection::vec((0_u8..4, any::<bool>(), 32_u8..), 0..20),
    ) {
        let mut world = World::new(true);
        for (line, on, vector) in sets {
            let line = match line {
                0 | 1 => message(line.into()),
                2 => InterruptLine::Gsi(40),
                _ => InterruptLine::Gsi(4),
            };
            let target = to(CPUS[0], vector).filter(|_| on);
            prop_assert!(world.routes.set(line, target).is_ok());
        }
        let World { routes, done, .. } = world;
        let allocated = done.take();
        drop(routes);
        let mut freed: Vec<u16> = Vec::new();
        let mut masked = Vec::new();
        for done in done.take() {
            match done {
                Done::Mask(input) => {
                    prop_assert!(freed.is_empty());
                    masked.push(input);
                }
                Done::Free(first, count) => freed.extend(first..first + count),
                Done::Remap(_, target) => prop_assert_eq!(target, None),
                other @ (Done::Redirect(..) | Done::Allocate(..)) => {
                    panic!("{other:?} after {allocated:?}")
                }
            }
        }
        masked.sort_unstable();
        freed.sort_unstable();
        prop_assert_eq!((masked, freed), (vec![0, 4], vec![100, 101, 102, 103]));
    }
}
