//! Devices on a fake configuration space that are reset, or not.

use super::*;
use crate::fake::FakeSpace;
use crate::header::{BAR0, scan};
use std::cell::Cell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

const AT: Bdf = Bdf::new(0, 4, 0);

/// A device that loses what it was set up with when the bit is set, and takes its time.
struct Resettable {
    inner: FakeSpace,
    bit: (u16, u32),
    /// Milliseconds from a reset until it answers.
    slow: u32,
    /// It answers with Configuration Request Retry Status until then, not with ones.
    retries: bool,
    now: Rc<Cell<u32>>,
    reset_at: Option<u32>,
    resets: u32,
}

impl ConfigSpace for Resettable {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        if self.reset_at.is_some_and(|at| self.now.get() - at < self.slow) {
            let ones = width.mask() as u32;
            return if self.retries && offset == 0 { ones & 0xffff_0001 } else { ones };
        }
        self.inner.read(function, offset, width)
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        if offset == self.bit.0 && value & self.bit.1 == self.bit.1 {
            assert_eq!(self.inner.read(function, 4, Width::Word), 0x400, "not quiet at reset");
            self.resets += 1;
            self.reset_at = Some(self.now.get());
            let device = self.inner.functions.get_mut(&function).unwrap();
            for (offset, bytes) in
                [(BAR0, 24), (0x48, 2), (0x50, 2), (0x68, 2), (0x106, 2), (0x188, 4)]
            {
                device.bytes[usize::from(offset)..][..bytes].fill(0);
            }
            return;
        }
        self.inner.write(function, offset, width, value);
    }
}

fn device(id: u16, body: &[u8], bit: (u16, u32)) -> Resettable {
    let mut inner = FakeSpace::default();
    let device = inner.device(AT, 0x010802);
    device.capability(0x40, id, body);
    device.set(BAR0, 0xfebd_0000);
    device.set_writable(BAR0, 0xffff_0000);
    device.bytes[4] = 7;
    let now = Rc::default();
    Resettable { inner, bit, slow: 0, retries: false, now, reset_at: None, resets: 0 }
}

/// Device Control at 0x48, Link Control at 0x50, Device Control 2 at 0x68.
fn express() -> Resettable {
    let mut body = [0; 0x3a];
    body[..8].copy_from_slice(&[2, 0, 0, 0, 0, 0x10, 0x20, 0x28]);
    device(capability::PCI_EXPRESS, &body, (0x48, 1 << 15))
}

/// Resets the one device: what was reported, and how long it waited.
fn run(space: &mut Resettable) -> (Vec<Event>, u32) {
    let all: Vec<_> = Function::read(&space.inner, AT).into_iter().collect();
    let (clock, mut events) = (space.now.clone(), Vec::new());
    reset_all(space, &all, &[AT], &mut |ms| clock.set(clock.get() + ms), &mut |event| {
        events.push(event);
    });
    (events, clock.get())
}

#[test]
fn every_method_resets_once_and_restores_the_bars() {
    let advanced = device(capability::ADVANCED_FEATURES, &[6, 3, 0, 0], (0x44, 1));
    let power = device(capability::POWER_MANAGEMENT, &[3, 0, 0, 0], (0x44, 3));
    for (mut space, least) in [(express(), 100), (advanced, 100), (power, 20)] {
        let (events, waited) = run(&mut space);
        assert_eq!((events, space.resets), (vec![], 1));
        assert!(waited >= least, "{waited}");
        assert_eq!(space.read(AT, BAR0, Width::Dword), 0xfebd_0000);
        assert_eq!(space.read(AT, 4, Width::Word), 0x400);
    }
}

#[test]
fn a_device_without_a_reset_says_so_and_decodes_as_before() {
    let mut plain = device(capability::POWER_MANAGEMENT, &[3, 0, 8, 0], (0x44, 3));
    let (events, _) = run(&mut plain);
    assert_eq!(events, [Event::Failed(ResetError::NotSupported(AT))]);
    assert_eq!(plain.read(AT, 4, Width::Word), 0x403);
}

#[test]
fn pending_transactions_are_waited_for_and_do_not_keep_a_device_from_its_reset() {
    let mut busy = express();
    busy.inner.functions.get_mut(&AT).unwrap().bytes[0x4a] = 0x20;
    let (events, waited) = run(&mut busy);
    assert_eq!((events, busy.resets), (vec![Event::Pending(AT)], 1));
    assert!((700..1000).contains(&waited), "{waited}");
}

#[test]
fn a_device_that_takes_long_is_waited_for_with_a_word_before_the_wait_over_a_second() {
    for (retries, slow, said) in
        [(false, 900, vec![]), (true, 900, vec![]), (true, 9_000, vec![Event::Waiting(AT)])]
    {
        let mut space = express();
        (space.slow, space.retries) = (slow, retries);
        let (events, waited) = run(&mut space);
        assert_eq!((events, space.resets), (said, 1), "{slow} ms");
        assert!((slow..slow + 200).contains(&waited), "{waited}");
        assert_eq!(space.read(AT, BAR0, Width::Dword), 0xfebd_0000, "{slow} ms");
    }
}

#[test]
fn a_device_that_does_not_come_back_is_lost_after_a_minute() {
    let mut dead = express();
    dead.slow = u32::MAX;
    let (events, waited) = run(&mut dead);
    assert_eq!(events, [Event::Waiting(AT), Event::Failed(ResetError::Lost(AT))]);
    assert!((60_000..61_000).contains(&waited), "{waited}");
}

#[test]
fn what_was_set_up_is_set_up_again_after_a_reset() {
    let mut space = express();
    let device = space.inner.functions.get_mut(&AT).unwrap();
    // Resizable BARs, of which there is one, of 2^(20+8) bytes; ACS.
    device.set(0x100, 0x1801_000d);
    device.set(0x180, 0x0001_0015);
    device.set(0x188, 0x0000_0820);
    device.set(0x104, 0x001d_001f);
    for offset in [0x104, 0x188] {
        device.set_writable(offset, u32::MAX);
    }
    for (offset, value) in [(0x48_usize, 0x5930_u16), (0x50, 0x0042), (0x68, 0x0406)] {
        device.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }
    assert_eq!(run(&mut space).0, []);
    let read = |offset| space.read(AT, offset, Width::Word);
    assert_eq!(read(0x48), 0x5930, "Device Control");
    assert_eq!(read(0x50), 0x0042, "Link Control");
    assert_eq!(read(0x68), 0x0406, "Device Control 2");
    assert_eq!(read(0x106), 0x001d, "ACS Control");
    assert_eq!(read(0x188), 0x0820, "Resizable BAR Control");
}

#[test]
fn the_sizes_of_bars_come_back_before_the_bars() {
    let mut space = express();
    let device = space.inner.functions.get_mut(&AT).unwrap();
    device.set(0x100, 0x0001_0015);
    device.set(0x108, 0x0000_0820);
    let offsets = Saved::read(&space, AT).offsets();
    let place = |offset| offsets.iter().position(|it| *it == offset);
    assert!(place(0x108) < place(BAR0), "{offsets:x?}");
}

#[test]
fn no_message_is_on_after_a_reset_nor_where_there_is_none() {
    for pending in [[3, 0, 0, 0], [3, 0, 8, 0]] {
        let mut space = device(capability::POWER_MANAGEMENT, &pending, (0x44, 3));
        let function = space.inner.functions.get_mut(&AT).unwrap();
        function.capability(0x80, capability::MSI, &[0x81, 0, 0, 0, 0xe0, 0xfe, 0x31, 0]);
        function.capability(0xa0, capability::MSI_X, &[3, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
        run(&mut space);
        assert_eq!(space.read(AT, 0x82, Width::Word) & 1, 0);
        assert_eq!(space.read(AT, 0xa2, Width::Word) & 0x8000, 0);
    }
}

#[test]
fn a_broken_function_level_reset_is_left_for_the_power_states() {
    let mut space = express();
    space.bit = (0x84, 3);
    let device = space.inner.functions.get_mut(&AT).unwrap();
    device.capability(0x80, capability::POWER_MANAGEMENT, &[3, 0, 0, 0]);
    // Its Function Level Reset would not be this one's bit: nothing would happen.
    assert_eq!(run(&mut space).0, []);
    assert_eq!(space.resets, 0, "a device without a quirk");
    space.inner.functions.get_mut(&AT).unwrap().set(0, 0x1503_8086);
    assert_eq!(run(&mut space).0, []);
    assert_eq!(space.resets, 1, "82579V");
}

#[test]
fn a_device_that_a_guest_left_asleep_is_woken_before_its_reset() {
    let mut space = express();
    let device = space.inner.functions.get_mut(&AT).unwrap();
    device.capability(0x80, capability::POWER_MANAGEMENT, &[3, 0, 3, 0]);
    assert_eq!(run(&mut space).0, []);
    assert_eq!(space.read(AT, 0x84, Width::Word) & 3, 0);
    assert_eq!(space.resets, 1);
}

/// A root port at 00:01.0 with two functions behind it that have no reset of their own, and a
/// device on the root bus that has none either.
struct Bus {
    inner: FakeSpace,
    resets: u32,
    /// The two do not answer after a reset of their own.
    lost: bool,
    gone: Vec<Bdf>,
}

const BRIDGE: Bdf = Bdf::new(0, 1, 0);
const PAIR: [Bdf; 2] = [Bdf::new(1, 0, 0), Bdf::new(1, 0, 1)];

impl ConfigSpace for Bus {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        if self.gone.contains(&function) {
            return width.mask() as u32;
        }
        self.inner.read(function, offset, width)
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        if self.lost && PAIR.contains(&function) && offset == 0x44 && value & 1 != 0 {
            self.gone.push(function);
            return;
        }
        if (function, offset) == (BRIDGE, 0x3e) && value & 0x40 != 0 {
            self.resets += 1;
            self.gone.clear();
            for function in PAIR {
                assert_eq!(self.inner.read(function, 4, Width::Word), 0x400, "not quiet");
                self.inner.write(function, BAR0, Width::Dword, 0);
            }
        }
        self.inner.write(function, offset, width, value);
    }
}

fn bus() -> (Bus, Vec<Function>) {
    let mut inner = FakeSpace::default();
    inner.bridge(BRIDGE, 1);
    inner.functions.get_mut(&BRIDGE).unwrap().set_writable(0x3c, 0xffff_0000);
    for at in PAIR.into_iter().chain([AT]) {
        let device = inner.device(at, 0x01_0802);
        device.bytes[0x0e] = 0x80;
        device.set(BAR0, 0xfebd_0000);
        device.set_writable(BAR0, 0xffff_0000);
        device.bytes[4] = 7;
    }
    let all = scan(&inner, 0, [0]).collect();
    (Bus { inner, resets: 0, lost: false, gone: vec![] }, all)
}

fn events(space: &mut impl ConfigSpace, all: &[Function], owned: &[Bdf]) -> Vec<Event> {
    let mut events = Vec::new();
    reset_all(space, all, owned, &mut |_| {}, &mut |event| events.push(event));
    events
}

#[test]
fn a_bus_of_one_owner_is_reset_once_for_all_its_functions() {
    let (mut bus, all) = bus();
    assert_eq!(events(&mut bus, &all, &PAIR), []);
    assert_eq!((bus.resets, bus.read(BRIDGE, 0x3e, Width::Word)), (1, 0));
    for function in PAIR {
        assert_eq!(bus.read(function, BAR0, Width::Dword), 0xfebd_0000);
        assert_eq!(bus.read(function, 4, Width::Word), 0x400);
    }
}

#[test]
fn a_namesake_in_another_segment_does_not_keep_a_bus_from_its_reset() {
    let (mut bus, mut all) = bus();
    let far = |bdf: Bdf| Function { bdf: bdf.in_segment(1), ..all[0] };
    // The bridge and a device there come first.
    all = [vec![far(BRIDGE), far(PAIR[1])], all.clone()].concat();
    assert_eq!(events(&mut bus, &all, &PAIR), []);
    assert_eq!(bus.resets, 1);
}

#[test]
fn a_bus_is_given_its_time_and_a_link_until_it_is_up() {
    let (mut space, all) = bus();
    let mut waited = 0;
    let mut reset = |space: &mut Bus| {
        waited = 0;
        reset_all(space, &all, &PAIR, &mut |ms| waited += ms, &mut |_| {});
        waited
    };
    assert!(reset(&mut space) >= 1000, "a conventional bus");
    let port = space.inner.functions.get_mut(&BRIDGE).unwrap();
    // A root port whose link does not come up.
    let mut body = [0; 0x12];
    (body[0], body[0xc]) = (0x42, 0x10);
    port.capability(0x40, capability::PCI_EXPRESS, &body);
    assert!((1200..1300).contains(&reset(&mut space)), "a link, and then the device behind it");
    space.inner.functions.get_mut(&BRIDGE).unwrap().bytes[0x53] = 0x20;
    assert!((100..200).contains(&reset(&mut space)), "a link that is up");
}

#[test]
fn a_bus_with_a_device_that_does_not_come_back_from_that_is_not_reset() {
    let (mut bus, _) = bus();
    bus.inner.functions.get_mut(&PAIR[1]).unwrap().set(0, 0x0030_168c);
    let all: Vec<_> = scan(&bus.inner, 0, [0]).collect();
    assert_eq!(events(&mut bus, &all, &PAIR).len(), 2);
    assert_eq!(bus.resets, 0);
}

#[test]
fn a_device_that_does_not_come_back_from_its_own_reset_gets_that_of_its_bus() {
    let (mut bus, _) = bus();
    for function in PAIR {
        let device = bus.inner.functions.get_mut(&function).unwrap();
        device.capability(0x40, capability::ADVANCED_FEATURES, &[6, 3, 0, 0]);
    }
    bus.lost = true;
    let all: Vec<_> = scan(&bus.inner, 0, [0]).collect();
    let events = events(&mut bus, &all, &PAIR);
    assert_eq!(bus.resets, 1);
    assert!(events.contains(&Event::TryingBus(PAIR[1])), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Failed(_))), "{events:?}");
    assert_eq!(bus.read(PAIR[0], BAR0, Width::Dword), 0xfebd_0000);
}

#[test]
fn a_bus_is_not_reset_under_others_nor_where_there_is_no_bridge() {
    let (mut bus, all) = bus();
    let refused = |function| [Event::Failed(ResetError::NotSupported(function))];
    assert_eq!(events(&mut bus, &all, &PAIR[..1]), refused(PAIR[0]));
    assert_eq!(events(&mut bus, &all, &[AT]), refused(AT));
    bus.inner.functions.get_mut(&PAIR[1]).unwrap().set(8, 0x0604_0000);
    let all: Vec<_> = scan(&bus.inner, 0, [0]).collect();
    assert_eq!(events(&mut bus, &all, &PAIR[..1]), refused(PAIR[0]), "beside a bridge");
    assert_eq!(bus.resets, 0);
}

#[test]
fn quiesce_leaves_no_bus_master_but_bridges_that_lead_somewhere() {
    let mut space = FakeSpace::default();
    space.device(AT, 0).bytes[4] = 7;
    let (bridge, unused) = (Bdf::new(0, 1, 0), Bdf::new(0, 2, 0));
    space.bridge(bridge, 1);
    space.bridge(unused, 0);
    space.write(bridge, 4, Width::Word, 3);
    let functions: Vec<_> = scan(&space, 0, [0]).collect();
    quiesce(&mut space, &functions);
    assert_eq!(space.read(AT, 4, Width::Word), 0x403);
    assert_eq!(space.read(bridge, 4, Width::Word), 7);
    assert_eq!(space.read(unused, 4, Width::Word), 0);
}
