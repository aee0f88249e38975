use super::*;
use proptest::prelude::*;

/// One TSC tick per nanosecond.
fn at_us(us: u64) -> PitClock {
    PitClock { tsc: us * 1000, tsc_khz: 1_000_000 }
}

fn load(pit: &mut Pit, control: u8, port: u16, count: u16, clock: PitClock) {
    pit.write(CONTROL, control, clock);
    let [low, high] = count.to_le_bytes();
    pit.write(port, low, clock);
    pit.write(port, high, clock);
}

fn read_word(pit: &mut Pit, port: u16, clock: PitClock) -> u16 {
    let low = pit.read(port, clock);
    u16::from_le_bytes([low, pit.read(port, clock)])
}

#[test]
fn channel_2_counts_50_ms_through_its_gate_as_linux_calibrates() {
    let mut pit = Pit::default();
    pit.write(PORT_61, 1, at_us(0));
    load(&mut pit, 0xb0, 0x42, 59_659, at_us(0));
    assert_eq!(pit.read(PORT_61, at_us(49_990)) & PORT_61_OUTPUT, 0);
    assert_ne!(pit.read(PORT_61, at_us(50_010)) & PORT_61_OUTPUT, 0);
}

#[test]
fn a_closed_gate_holds_channel_2() {
    let mut pit = Pit::default();
    load(&mut pit, 0xb0, 0x42, 1000, at_us(0));
    assert_eq!(read_word(&mut pit, 0x42, at_us(5000)), 1000);
    assert_eq!(pit.read(PORT_61, at_us(5000)) & PORT_61_OUTPUT, 0);
}

fn output(pit: &mut Pit, us: u64) -> bool {
    pit.read(PORT_61, at_us(us)) & PORT_61_OUTPUT != 0
}

fn gate(pit: &mut Pit, open: bool, us: u64) {
    pit.write(PORT_61, open.into(), at_us(us));
}

/// Data sheet, "Gate Pin Operations Summary": in modes 0 and 4 a low gate stops the count and does no more.
#[test]
fn in_modes_0_and_4_the_gate_stops_the_count_and_lets_it_go_on() {
    for (control, counting) in [(0xb0, false), (0xb8, true)] {
        let mut pit = Pit::default();
        gate(&mut pit, true, 0);
        load(&mut pit, control, 0x42, 11_932, at_us(0));
        assert_eq!(output(&mut pit, 4_000), counting, "{control:#x}");
        gate(&mut pit, false, 4_000);
        let rest = 11_932 - 4_772;
        assert_eq!(read_word(&mut pit, 0x42, at_us(4_000)), rest);
        assert_eq!(read_word(&mut pit, 0x42, at_us(90_000)), rest, "it stands still");
        assert_eq!(output(&mut pit, 90_000), counting);
        gate(&mut pit, true, 90_000);
        assert_eq!(read_word(&mut pit, 0x42, at_us(91_000)), rest - 1_193);
        assert_eq!((output(&mut pit, 95_990), output(&mut pit, 96_010)), (counting, true));
        gate(&mut pit, false, 96_010);
        assert!(output(&mut pit, 97_000), "a closed gate takes nothing back");
        // Half of another count: mode 0 waits for the rest of it.
        pit.write(0x42, 0x10, at_us(98_000));
        assert_eq!(output(&mut pit, 98_000), counting);
        gate(&mut pit, true, 98_000);
        assert_eq!(output(&mut pit, 190_000), counting, "{control:#x}");
    }
}

/// The same for modes 1 and 5: a rising gate begins, a low one does nothing.
#[test]
fn in_modes_1_and_5_the_gate_begins_a_count_that_it_does_not_stop() {
    for (control, counting) in [(0xb2, false), (0xba, true)] {
        let mut pit = Pit::default();
        gate(&mut pit, true, 0);
        load(&mut pit, control, 0x42, 11_932, at_us(0));
        assert!(output(&mut pit, 5_000), "it has not begun, {control:#x}");
        assert_eq!(read_word(&mut pit, 0x42, at_us(5_000)), 0, "nor is its count loaded");
        gate(&mut pit, false, 5_000);
        gate(&mut pit, true, 6_000);
        gate(&mut pit, false, 7_000);
        assert_eq!(read_word(&mut pit, 0x42, at_us(8_000)), 11_932 - 2_386);
        assert_eq!((output(&mut pit, 8_000), output(&mut pit, 17_000)), (counting, true));
        // A count that is written meanwhile is the next one's.
        gate(&mut pit, true, 20_000);
        [0, 1].into_iter().for_each(|byte| pit.write(0x42, byte, at_us(21_000)));
        assert_eq!(read_word(&mut pit, 0x42, at_us(22_000)), 11_932 - 2_386);
        gate(&mut pit, false, 22_000);
        gate(&mut pit, true, 23_000);
        assert_eq!(read_word(&mut pit, 0x42, at_us(23_000)), 0x100);
        assert_eq!((output(&mut pit, 23_100), output(&mut pit, 23_300)), (counting, true));
    }
}

#[test]
fn the_strobe_of_modes_4_and_5_is_one_clock_long() {
    for control in [0xb8, 0xba] {
        let mut pit = Pit::default();
        load(&mut pit, control, 0x42, 100, at_us(0));
        gate(&mut pit, true, 0);
        let low: Vec<u64> = (0..200).filter(|us| !output(&mut pit, *us)).collect();
        assert_eq!(low, [84], "{control:#x}");
    }
}

/// The same for modes 2 and 3: a low gate stops the count with the output high, a rising one begins anew.
#[test]
fn in_modes_2_and_3_the_gate_stops_the_count_and_begins_anew() {
    for (control, far) in [(0xb4, 1_193), (0xb6, 2 * 1_193)] {
        let mut pit = Pit::default();
        gate(&mut pit, true, 0);
        load(&mut pit, control, 0x42, 11_932, at_us(0));
        gate(&mut pit, false, 8_000);
        let stopped = read_word(&mut pit, 0x42, at_us(8_000));
        assert_eq!((output(&mut pit, 8_000), output(&mut pit, 90_000)), (true, true));
        assert_eq!(read_word(&mut pit, 0x42, at_us(90_000)), stopped);
        gate(&mut pit, true, 90_000);
        let count = read_word(&mut pit, 0x42, at_us(91_000));
        assert_eq!(count, 11_932 - far, "{control:#x}");
    }
}

#[test]
fn a_channel_counts_decimal_digits_if_it_is_told_to() {
    let mut pit = Pit::default();
    gate(&mut pit, true, 0);
    load(&mut pit, 0xb1, 0x42, 0x2000, at_us(0));
    assert_eq!(read_word(&mut pit, 0x42, at_us(1_000)), 0x0807);
    assert!(!output(&mut pit, 1_600) && output(&mut pit, 1_700));
    assert_eq!(read_word(&mut pit, 0x42, at_us(2_000)), 0x9614, "through 9999");
    load(&mut pit, 0xb5, 0x42, 0, at_us(0));
    assert_eq!(read_word(&mut pit, 0x42, at_us(0)), 0, "10,000");
    assert_eq!(read_word(&mut pit, 0x42, at_us(1_000)), 0x8807);
    pit.write(CONTROL, 0xe8, at_us(0));
    assert_eq!(pit.read(0x42, at_us(0)), 0x80 | 0x35, "its status says so");
    // The machine's, too.
    load(&mut pit, 0x31, 0x40, 0x2000, at_us(0));
    let written: Vec<u8> = pit.follow(at_us(1_000)).into_iter().flatten().map(|it| it.1).collect();
    assert_eq!(written, [0x31, 0x07, 0x08]);
}

#[test]
fn the_status_says_whether_a_count_is_loaded() {
    let mut pit = Pit::default();
    let status = |pit: &mut Pit| {
        pit.write(CONTROL, 0xe8, at_us(0));
        pit.read(0x42, at_us(0))
    };
    pit.write(CONTROL, 0xb0, at_us(0));
    assert_eq!(status(&mut pit), 0x70);
    load(&mut pit, 0xb0, 0x42, 100, at_us(0));
    assert_eq!(status(&mut pit), 0x30);
    load(&mut pit, 0xb2, 0x42, 100, at_us(0));
    assert_eq!(status(&mut pit), 0xf2);
    gate(&mut pit, true, 0);
    assert_eq!(status(&mut pit), 0x32);
}

#[test]
fn a_latched_count_stands_still_until_it_has_been_read() {
    let mut pit = Pit::default();
    load(&mut pit, 0x34, 0x40, 10_000, at_us(0));
    pit.write(CONTROL, 0x00, at_us(1000));
    let latched = read_word(&mut pit, 0x40, at_us(3000));
    assert_eq!(latched, 10_000 - 1193);
    assert_eq!(read_word(&mut pit, 0x40, at_us(2000)), 10_000 - 2386);
}

#[test]
fn read_back_gives_status_then_count() {
    let mut pit = Pit::default();
    load(&mut pit, 0x34, 0x40, 10_000, at_us(0));
    pit.write(CONTROL, 0xc2, at_us(0));
    assert_eq!(pit.read(0x40, at_us(0)), 0x80 | 0x30 | 2 << 1);
    assert_eq!(read_word(&mut pit, 0x40, at_us(1000)), 10_000);
}

#[test]
fn one_byte_access_modes_use_one_byte() {
    let mut pit = Pit::default();
    pit.write(CONTROL, 0x90, at_us(0));
    pit.write(0x42, 0x12, at_us(0));
    assert_eq!(pit.read(0x42, at_us(0)), 0x12);
    assert_eq!(pit.read(0x42, at_us(0)), 0x12);
}

#[test]
fn a_periodic_channel_0_ticks_once_a_period_also_by_a_clock_that_is_a_little_off() {
    for (control, off) in [(0x34, 0_i64), (0x36, 0), (0x34, 400), (0x36, -400)] {
        let mut pit = Pit::default();
        load(&mut pit, control, 0x40, 11_932, at_us(0));
        assert!(!pit.ticks(at_us(100), true));
        for tick in 1..50_u64 {
            let now = at_us((10_000 * tick).saturating_add_signed(off));
            assert!(pit.ticks(now, true), "{control:#x} {tick}");
            for later in [now, at_us(10_000 * tick + 2_000)] {
                assert!(!pit.ticks(later, true) && !pit.ticks(later, false));
            }
        }
    }
}

#[test]
fn a_one_shot_ticks_once_for_each_count() {
    for control in [0x30, 0x38] {
        let mut pit = Pit::default();
        pit.write(CONTROL, control, at_us(0));
        assert!(!pit.ticks(at_us(90_000), true), "no count yet");
        for begin in [100_000, 200_000] {
            load(&mut pit, control, 0x40, 11_932, at_us(begin));
            assert!(!pit.ticks(at_us(begin + 9_000), true));
            assert!(!pit.ticks(at_us(begin + 9_999), false));
            assert!(pit.ticks(at_us(begin + 9_999), true));
            assert!(!pit.ticks(at_us(begin + 90_000), false));
        }
    }
}

#[test]
fn only_a_period_below_50_us_is_too_often() {
    let mut pit = Pit::default();
    assert!(pit.ticks_seldom());
    for (control, count, seldom) in [(0x34, 59, false), (0x36, 60, true), (0x38, 1, true)] {
        load(&mut pit, control, 0x40, count, at_us(0));
        assert_eq!(pit.ticks_seldom(), seldom);
    }
}

#[test]
fn the_machines_is_loaded_as_this_one_is() {
    let written = |pit: &mut Pit| {
        let writes = pit.follow(at_us(0)).into_iter().flatten();
        writes.map(|(register, value)| (register == PitRegister::Control, value)).collect()
    };
    let mut pit = Pit::default();
    let all: Vec<(bool, u8)> = written(&mut pit);
    assert_eq!(all, [(true, 0x36), (false, 0), (false, 0)], "as firmware leaves it");
    pit.write(CONTROL, 0x14, at_us(0));
    assert_eq!(written(&mut pit), Vec::new(), "no count yet");
    pit.write(0x40, 200, at_us(0));
    assert_eq!(written(&mut pit), [(true, 0x14), (false, 200)]);
    load(&mut pit, 0x34, 0x40, 0x1234, at_us(0));
    pit.write(0x40, 1, at_us(0));
    assert_eq!(written(&mut pit), Vec::new(), "half of a count");
    load(&mut pit, 0x30, 0x40, 0x1234, at_us(0));
    assert_eq!(written(&mut pit), [(true, 0x30), (false, 0x34), (false, 0x12)]);
    let behind: Vec<_> = pit.follow(at_us(5_000)).into_iter().flatten().collect();
    assert_eq!(behind, [], "it has ticked");
    let half = pit.follow(at_us(2_000));
    assert_eq!(half[1..], [0xe2, 0x08].map(|byte| Some((PitRegister::Channel0, byte))));
}

#[test]
fn the_refresh_bit_toggles() {
    let mut pit = Pit::default();
    let one = pit.read(PORT_61, at_us(7)) & PORT_61_REFRESH;
    let other = pit.read(PORT_61, at_us(22)) & PORT_61_REFRESH;
    assert_ne!(one, other);
}

proptest! {
    #[test]
    fn periodic_counters_stay_in_their_period(
        reload in 2u16.., square: bool, us in 0u64..1 << 40
    ) {
        let mut pit = Pit::default();
        load(&mut pit, if square { 0x36 } else { 0x34 }, 0x40, reload, at_us(0));
        let count = read_word(&mut pit, 0x40, at_us(us));
        prop_assert!(count <= reload);
    }

    #[test]
    fn any_sequence_of_accesses_is_survived(
        accesses in proptest::collection::vec(
            (0u16..5, any::<Option<u8>>(), any::<u64>(), any::<u32>()), 0..64)
    ) {
        let mut pit = Pit::default();
        for (port, value, tsc, khz) in accesses {
            let port = if port == 4 { PORT_61 } else { 0x40 + port };
            let clock = PitClock { tsc, tsc_khz: khz.into() };
            match value {
                Some(value) => pit.write(port, value, clock),
                None => { pit.read(port, clock); }
            }
        }
    }
}
