//! Controllers with a firmware behind them that gives them up at once, late, or never.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;
use crate::fake::FakeSpace;

const AT: Bdf = Bdf::new(0, 0x14, 0);

/// Registers with a firmware that answers after so many reads of its semaphore.
#[derive(Clone, Default, Debug)]
struct Fake(Rc<RefCell<State>>);

#[derive(Default, Debug)]
struct State {
    words: BTreeMap<u64, u32>,
    /// Where the semaphore is and what bit of it is the firmware's, and after how many reads it is clear.
    firmware: (u64, u32, u32),
}

impl Registers for Fake {
    fn read(&self, offset: u64) -> u32 {
        let mut state = self.0.borrow_mut();
        let (at, bit, left) = state.firmware;
        if offset == at && left > 0 {
            state.firmware.2 -= 1;
            if left == 1 {
                *state.words.entry(at).or_default() &= !bit;
            }
        }
        state.words.get(&offset).copied().unwrap_or(0)
    }
    fn write(&mut self, offset: u64, value: u32) {
        self.0.borrow_mut().words.insert(offset, value);
    }
}

impl Fake {
    fn new(words: &[(u64, u32)], firmware: (u64, u32, u32)) -> Self {
        let words = words.iter().copied().collect();
        Self(Rc::new(RefCell::new(State { words, firmware })))
    }

    fn word(&self, at: u64) -> u32 {
        self.0.borrow().words[&at]
    }
}

/// A controller of this class whose first BAR is at 0xfe000000.
fn space(class: u32) -> FakeSpace {
    let mut space = FakeSpace::default();
    let function = space.device(AT, class);
    function.set(0x10, 0xfe00_0004);
    function.set(4, 6);
    for offset in [0x60, 0x64, 0x68, 0x6c, 0xc0] {
        function.set_writable(offset, u32::MAX);
    }
    space
}

fn taken(space: &mut FakeSpace, registers: &Fake) -> (HandOff, u32) {
    let function = Function::read(space, AT).unwrap();
    let mut waited = 0;
    let map = |at: Hpa| {
        assert_eq!(at, Hpa::new(0xfe00_0000));
        Some(registers.clone())
    };
    let result = take(space, &function, map, &mut |ms| waited += ms);
    (result, waited)
}

/// The legacy capability behind another one, of firmware that has the controller.
fn xhci_registers(left: u32) -> Fake {
    let words = [(0x10, 0x0800_0000), (0x2000, 0x0000_1002), (0x2040, 0x0001_0001), (0x2044, 0xe)];
    let fake = Fake::new(&words, (0x2040, 1 << 16, left));
    fake.0.borrow_mut().words.insert(0x2044, 0xf1ff_ffff);
    fake
}

#[test]
fn an_xhci_controller_changes_hands_and_makes_no_smi_any_more() {
    let (given, taken_by_force) = (xhci_registers(4), xhci_registers(0));
    let result = taken(&mut space(XHCI), &given);
    assert_eq!((result, given.word(0x2040)), ((HandOff::Given, 10), 0x0100_0001));
    assert_eq!(given.word(0x2044), 0xe00e_1fee, "SMIs off, events cleared, reserved bits kept");
    let result = taken(&mut space(XHCI), &taken_by_force);
    assert_eq!((result, taken_by_force.word(0x2040)), ((HandOff::Taken, 1000), 0x0100_0001));
}

#[test]
fn an_xhci_controller_without_that_capability_is_left_alone() {
    for (first, words) in [
        (0, vec![]),
        (0x0800_0000, vec![(0x2000, 0x0000_0002)]),
        (0xffff_0000, vec![]),
        // A list that leads to itself, or out of the registers.
        (0x0800_0000, vec![(0x2000, 0x0000_ff02)]),
        (u32::MAX, vec![]),
    ] {
        let registers = Fake::new(&[&[(0x10, first)], words.as_slice()].concat(), (0, 0, 0));
        let before = registers.0.borrow().words.clone();
        assert_eq!(taken(&mut space(XHCI), &registers), (HandOff::Nothing, 0), "{first:#x}");
        assert_eq!(registers.0.borrow().words, before);
    }
}

#[test]
fn an_ehci_controller_changes_hands_in_configuration_space() {
    let registers = Fake::new(&[(8, 0x6000)], (0, 0, 0));
    let mut free = space(EHCI);
    free.functions.get_mut(&AT).unwrap().set(0x60, 0x0000_6802);
    free.functions.get_mut(&AT).unwrap().set(0x68, 0x0000_0001);
    free.functions.get_mut(&AT).unwrap().set(0x6c, 0x0000_003f);
    let mut held = free.clone();
    assert_eq!(taken(&mut free, &registers), (HandOff::Nothing, 0));
    assert_eq!(free.read(AT, 0x68, Width::Dword), 0x0100_0001);
    assert_eq!(free.read(AT, 0x6c, Width::Dword), 0);
    held.functions.get_mut(&AT).unwrap().set(0x68, 0x0001_0001);
    assert_eq!(taken(&mut held, &registers), (HandOff::Taken, 1000));
    assert_eq!(held.read(AT, 0x68, Width::Dword), 0x0100_0001);
    assert_eq!(held.read(AT, 0x6c, Width::Dword), 0);
}

#[test]
fn an_ohci_controller_is_asked_for() {
    let given = Fake::new(&[(4, 0x1c0)], (4, 1 << 8, 3));
    assert_eq!(taken(&mut space(OHCI), &given), (HandOff::Given, 10));
    assert_eq!((given.word(8), given.word(0x14)), (8, 1 << 31));
    let kept = Fake::new(&[(4, 0x1c0)], (0, 0, 0));
    assert_eq!(taken(&mut space(OHCI), &kept), (HandOff::Taken, 1000));
    assert_eq!(kept.word(4), 0xc0);
    let nobodys = Fake::new(&[(4, 0xc0)], (0, 0, 0));
    assert_eq!(taken(&mut space(OHCI), &nobodys), (HandOff::Nothing, 0));
}

#[test]
fn a_uhci_controllers_traps_are_off() {
    let none = Fake::default();
    let mut traps = space(UHCI);
    traps.functions.get_mut(&AT).unwrap().set(0xc0, 0x2030);
    assert_eq!(taken(&mut traps, &none), (HandOff::Given, 0));
    assert_eq!(traps.read(AT, 0xc0, Width::Word), 0x8f00);
    assert_eq!(taken(&mut space(UHCI), &none), (HandOff::Nothing, 0));
}

#[test]
fn a_controller_that_decodes_nothing_and_other_devices_are_left_alone() {
    let registers = xhci_registers(0);
    let mut off = space(XHCI);
    off.functions.get_mut(&AT).unwrap().set(4, 0);
    assert_eq!(taken(&mut off, &registers), (HandOff::Nothing, 0));
    assert_eq!(taken(&mut space(0x01_0802), &registers), (HandOff::Nothing, 0));
    assert_eq!(registers.word(0x2040), 0x0001_0001);
}
