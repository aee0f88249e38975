//! What a guest can see and do in its function's configuration space.

use super::*;
use crate::bar::BarKind;
use crate::fake::{FakeSpace, arbitrary_bars};
use crate::header::BAR0;
use proptest::prelude::*;
use std::vec::Vec;

const AT: Bdf = Bdf::new(0, 4, 0);
const WIDTHS: [Width; 3] = [Width::Byte, Width::Word, Width::Dword];

fn memory(index: u8, base: u64, size: u64) -> Option<Bar> {
    let kind = BarKind::Memory64;
    Some(Bar { index, kind, prefetchable: false, base, size })
}

/// PM, MSI, an unknown one, PCI Express, VPD and MSI-X; AER, a serial number and ATS.
fn space() -> FakeSpace {
    let mut space = FakeSpace::default();
    let device = space.device(AT, 0x010802);
    device.capability(0x40, capability::POWER_MANAGEMENT, &[3, 0, 0, 0, 0, 0]);
    device.capability(0x50, capability::MSI, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.capability(0x60, capability::ADVANCED_FEATURES, &[6, 3, 0, 0]);
    device.capability(0x70, capability::PCI_EXPRESS, &[2, 0, 0, 0, 0, 0x10, 0x20, 0x28, 0, 0]);
    device.capability(0xb0, capability::VITAL_PRODUCT_DATA, &[0, 0, 0, 0, 0, 0]);
    device.capability(0xc0, capability::MSI_X, &[3, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
    device.set(0xd0, 0x5555_5555);
    device.set_writable(0xd0, u32::MAX);
    device.set_bars(&[memory(0, 0xfebd_0000, 0x4000), None, None, None, None, None]);
    device.set(0x100, 0x1401_0001);
    device.set(0x104, 0xdead_beef);
    device.set(0x140, 0x1501_0003);
    device.set(0x144, 0x1122_3344);
    device.set(0x150, 0x0001_000f);
    device.bytes[0x3d] = 1;
    device.bytes[4] = 7;
    space
}

fn view(space: &mut FakeSpace) -> VirtualFunction {
    VirtualFunction::new(space, AT)
}

/// Walks the list that the guest sees.
fn seen(view: &VirtualFunction, space: &FakeSpace) -> Vec<(u32, u16)> {
    let mut list = Vec::new();
    let mut at = view.read(space, 0x34, Width::Byte) as u16;
    while at != 0 {
        list.push((view.read(space, at, Width::Byte), at));
        at = view.read(space, at + 1, Width::Byte) as u16;
    }
    list
}

#[test]
fn capabilities_that_reach_past_the_function_are_hidden() {
    let mut space = space();
    let view = view(&mut space);
    assert_eq!(seen(&view, &space), [(1, 0x40), (5, 0x50), (0x10, 0x70), (3, 0xb0), (0x11, 0xc0)]);
    assert_eq!(view.read(&space, 0x60, Width::Dword), 0);
    assert_eq!(view.read(&space, 0x100, Width::Dword), 0x1400_0000);
    assert_eq!(view.read(&space, 0x104, Width::Dword), 0);
    assert_eq!(view.read(&space, 0x140, Width::Dword), 0x0001_0003);
    assert_eq!(view.read(&space, 0x144, Width::Dword), 0x1122_3344);
    assert_eq!(view.read(&space, 0x150, Width::Dword), 0);
    assert_eq!(view.read(&space, 0x74, Width::Dword) & 1 << 28, 0, "FLR is not offered");
}

#[test]
fn what_is_hidden_takes_no_write() {
    let mut space = space();
    let mut view = view(&mut space);
    // Advanced Features: bit 0 of the byte at 4 starts a Function Level Reset.
    for (offset, width) in [(0x64, Width::Byte), (0x62, Width::Word), (0x60, Width::Dword)] {
        assert_eq!(view.write(&space, offset, width, u32::MAX), Effect::None);
    }
}

#[test]
fn of_two_capabilities_of_one_kind_the_first_counts_and_the_other_is_hidden() {
    let mut space = space();
    let device = space.functions.get_mut(&AT).unwrap();
    device.capability(0xe0, capability::MSI_X, &[3, 0, 0, 0x10, 0, 0, 0, 0x18, 0, 0]);
    let mut view = view(&mut space);
    assert_eq!(view.msix().map(|msix| msix.offset), Some(0xc0));
    assert!(!seen(&view, &space).contains(&(0x11, 0xe0)));
    assert_eq!(view.write(&space, 0xe2, Width::Word, 0x8000), Effect::None);
}

#[test]
fn a_vector_table_outside_its_bar_hides_msi_x() {
    let mut space = space();
    space.functions.get_mut(&AT).unwrap().bytes[0xc5] = 0x40;
    let view = view(&mut space);
    assert!(view.msix().is_none());
    assert!(!seen(&view, &space).iter().any(|(id, _)| *id == 0x11));
}

#[test]
fn a_fresh_function_decodes_but_masters_no_bus_and_has_no_intx_and_no_rom() {
    let mut space = space();
    let mut view = view(&mut space);
    assert_eq!(view.read(&space, 4, Width::Word), 3);
    assert_eq!(view.read(&space, 0x3d, Width::Byte), 0);
    assert_eq!(view.write(&space, 0x30, Width::Dword, u32::MAX), Effect::None);
    assert_eq!(view.read(&space, 0x30, Width::Dword), 0);
    assert_eq!(view.write(&space, 0x3c, Width::Byte, 11), Effect::None);
    assert_eq!(view.read(&space, 0x3c, Width::Word), 11);
    assert_eq!(view.read(&space, 0x0e, Width::Byte), 0);
    view.set_multi_function(true);
    assert_eq!(view.read(&space, 0x0e, Width::Byte), 0x80);
}

#[test]
fn a_function_that_is_wired_shows_its_pin_its_line_and_its_interrupt_status() {
    let mut space = space();
    for (pin, exists) in [(0, false), (5, false), (2, true)] {
        let bytes = &mut space.functions.get_mut(&AT).unwrap().bytes;
        (bytes[0x3d], bytes[6]) = (pin, bytes[6] | 8);
        assert_eq!(view(&mut space).wire(&space, 21), exists);
    }
    let mut view = view(&mut space);
    assert_eq!(view.read(&space, 6, Width::Word) & 8, 0);
    assert!(view.wire(&space, 21));
    assert_eq!((view.interrupt_pin(), view.read(&space, 0x3c, Width::Word)), (2, 0x0215));
    assert_eq!(view.read(&space, 6, Width::Word) & 8, 8);
    assert_eq!(view.write(&space, 0x3c, Width::Dword, 0x050b), Effect::None);
    assert_eq!(view.read(&space, 0x3c, Width::Word), 0x020b, "the pin is read-only");
}

#[test]
fn command_changes_come_out_whatever_the_width() {
    for width in WIDTHS {
        let mut space = space();
        let mut view = view(&mut space);
        let new = Command::MEMORY_SPACE | Command::BUS_MASTER;
        let old = Command::MEMORY_SPACE | Command::IO_SPACE;
        assert_eq!(view.write(&space, 4, width, 0x86), Effect::CommandChanged { old, new });
        assert_eq!(view.write(&space, 4, width, 0x06), Effect::None);
    }
}

#[test]
fn message_control_is_virtual() {
    let mut space = space();
    let mut view = view(&mut space);
    let live = MsixControl::new(0x8000);
    let off = MsixControl::default();
    let effect = view.write(&space, 0xc2, Width::Word, 0x8003);
    assert_eq!(effect, Effect::MsixControlChanged { old: off, new: live });
    assert_eq!(view.read(&space, 0xc0, Width::Dword), 0x8003_0011);
    assert_eq!(view.write(&space, 0xc4, Width::Dword, 0), Effect::None);
    assert_eq!(view.write(&space, 0x54, Width::Dword, 0xfee0_0000), Effect::MsiChanged);
    assert_eq!(view.write(&space, 0x5c, Width::Word, 0x41), Effect::MsiChanged);
    assert_eq!(view.write(&space, 0x52, Width::Word, 0x81), Effect::MsiChanged);
    let message = view.msi().unwrap().message().unwrap();
    assert_eq!((message.address, message.data), (0xfee0_0000, 0x41));
    assert_eq!(space.read(AT, 0x54, Width::Dword), 0);
}

#[test]
fn what_passes_and_what_does_not() {
    let mut space = space();
    let mut view = view(&mut space);
    let word = |offset, value| Effect::PhysicalWrite { offset, width: Width::Word, value };
    // Device Control: MRRS and no-snoop pass, payload size, phantom functions and FLR do not.
    assert_eq!(
        view.write(&space, 0x78, Width::Word, 0xdaff),
        word(0x78, 0x7830 & !0x2800 | 0x800 & 0xdaff)
    );
    assert_eq!(view.write(&space, 0x7a, Width::Word, 0xffff), Effect::None);
    // VPD: reading passes, writing does not.
    assert_eq!(view.write(&space, 0xb2, Width::Word, 0x10), word(0xb2, 0x10));
    assert_eq!(view.write(&space, 0xb2, Width::Word, 0x8010), Effect::None);
    assert_eq!(view.write(&space, 0xb4, Width::Dword, 1), Effect::None);
    // The device's own registers are read; a write passes where it is an exception only.
    assert_eq!(view.read(&space, 0xd1, Width::Byte), 0x55);
    assert_eq!(view.write(&space, 0xd2, Width::Word, 7), Effect::None);
    // Power states are played, not passed.
    assert_eq!(view.write(&space, 0x44, Width::Word, 3), Effect::None);
    assert_eq!(view.read(&space, 0x44, Width::Word), 0xb);
}

#[test]
fn what_no_capability_holds_is_read_only_but_for_the_exceptions() {
    let outside = |at: u16| {
        let within = [(0x40, 8), (0x50, 16), (0x60, 0x10), (0x70, 0x3c), (0xb0, 8), (0xc0, 12)];
        !within.iter().any(|(first, length)| (*first..first + length).contains(&at))
    };
    for width in WIDTHS {
        let mut space = space();
        let mut view = view(&mut space);
        for at in (0x40..0x1000).step_by(usize::from(width.bytes())).filter(|at| outside(*at)) {
            assert_eq!(view.write(&space, at, width, u32::MAX), Effect::None, "{at:#x}");
        }
    }
    // A UHCI controller: no trap is switched on, and what the guest may not change stays.
    let mut space = FakeSpace::default();
    space.device(AT, 0x0c_0300).set(0xc0, 0x0000_0010);
    let mut uhci = view(&mut space);
    let passed = Effect::PhysicalWrite { offset: 0xc0, width: Width::Word, value: 0xaf10 };
    assert_eq!(uhci.write(&space, 0xc0, Width::Word, 0xffff), passed);
    assert_eq!(uhci.write(&space, 0xc0, Width::Byte, 0xff), Effect::None);
}

/// Where the guest has the BARs.
fn addresses(view: &VirtualFunction) -> [u64; 6] {
    [0, 1, 2, 3, 4, 5].map(|index| view.bar_address(index))
}

proptest! {
    #[test]
    fn guests_size_and_move_bars_as_on_the_device(bars in arbitrary_bars(), to: [u32; 6]) {
        let mut space = FakeSpace::default();
        space.device(AT, 0).set_bars(&bars);
        let mut view = view(&mut space);
        let mut real = space.clone();
        for (i, to) in to.into_iter().enumerate() {
            let offset = BAR0 + 4 * i as u16;
            for value in [u32::MAX, to] {
                let before = addresses(&view);
                let effect = view.write(&space, offset, Width::Dword, value);
                real.write(AT, offset, Width::Dword, value);
                let seen = view.read(&space, offset, Width::Dword);
                prop_assert_eq!(seen, real.read(AT, offset, Width::Dword));
                let after = addresses(&view);
                prop_assert_eq!(effect == Effect::BarMoved, after != before);
                for bar in view.bars() {
                    prop_assert_eq!(view.bar_address(bar.index) % bar.size, 0);
                }
            }
        }
        prop_assert_eq!(&space.functions[&AT].bytes[0x10..0x28], &{
            let mut untouched = FakeSpace::default();
            untouched.device(AT, 0).set_bars(&bars);
            untouched.functions[&AT].bytes[0x10..0x28].to_vec()
        }[..]);
    }

    #[test]
    fn no_access_writes_where_the_guest_must_not(
        content in proptest::collection::vec(any::<u8>(), 1024),
        accesses in proptest::collection::vec((0u16..1024, 0usize..3, any::<u32>()), 1..80),
    ) {
        let mut space = FakeSpace::default();
        space.device(AT, 0).bytes[4..1024].copy_from_slice(&content[4..]);
        let mut view = view(&mut space);
        for (offset, width, value) in accesses {
            let width = WIDTHS[width];
            let offset = offset & !(u16::from(width.bytes()) - 1);
            let _ = view.read(&space, offset, width);
            if let Effect::PhysicalWrite { offset, width, value } = view.write(&space, offset, width, value) {
                prop_assert!((0x40..0x100).contains(&offset));
                prop_assert_eq!(u64::from(value) & !width.mask(), 0);
                prop_assert_eq!(offset % u16::from(width.bytes()), 0);
            }
        }
    }
}
