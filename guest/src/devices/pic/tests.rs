//! What the data sheet says that the pair does.

use super::*;
use proptest::prelude::*;

/// As every operating system of a PC sets them up: vectors 0x30 and 0x38, nothing masked.
fn pair(icw4: u8) -> Pics {
    let mut pics = Pics::default();
    for (command, base, cascade) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
        pics.write(command, 0x11);
        [base, cascade, icw4].into_iter().for_each(|word| pics.write(command + 1, word));
    }
    pics
}

fn pulse(pics: &mut Pics, irq: u8) {
    pics.set_line(irq, false);
    pics.set_line(irq, true);
}

fn take(pics: &mut Pics) -> Option<u8> {
    pics.asks().then(|| pics.acknowledge().0)
}

fn in_service(pics: &mut Pics) -> (u8, u8) {
    pics.write(0x20, 0x0b);
    pics.write(0xa0, 0x0b);
    (pics.read(0x20), pics.read(0xa0))
}

#[test]
fn linux_finds_the_pair_by_reading_the_mask_back() {
    let mut pics = Pics::default();
    pics.write(0xa1, 0xff);
    pics.write(0x21, 0xfb);
    assert_eq!((pics.read(0x21), pics.read(0xa1)), (0xfb, 0xff));
}

#[test]
fn its_ports_are_those_that_are_listed() {
    for port in 0..=u16::MAX {
        assert_eq!(is_port(port), PORTS.iter().any(|range| range.contains(port)), "{port:#x}");
    }
}

#[test]
fn before_it_is_initialized_nothing_comes_through() {
    let mut pics = Pics::default();
    pics.write(0x21, 0);
    pulse(&mut pics, 0);
    assert!(!pics.asks() && !pics.listens(0));
    pics.write(0x20, 0x11);
    pulse(&mut pics, 0);
    assert!(!pics.asks(), "in the middle of it");
}

#[test]
fn initialization_words_do_not_land_in_the_mask() {
    for (icw1, words) in [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)] {
        let mut pics = Pics::default();
        pics.write(0x21, 0xff);
        pics.write(0x20, icw1);
        assert_eq!(pics.read(0x21), 0, "ICW1 clears the mask");
        (0..words).for_each(|_| pics.write(0x21, 0x30));
        assert_eq!(pics.read(0x21), 0, "{icw1:#x}");
        pics.write(0x21, 0xaa);
        assert_eq!(pics.read(0x21), 0xaa, "{icw1:#x}");
    }
}

#[test]
fn a_tick_comes_once_and_again_after_its_end() {
    let mut pics = pair(1);
    pulse(&mut pics, 0);
    assert_eq!((take(&mut pics), take(&mut pics)), (Some(0x30), None));
    pulse(&mut pics, 0);
    assert_eq!(take(&mut pics), None, "it is in service");
    pics.write(0x20, 0x20);
    assert_eq!(take(&mut pics), Some(0x30));
    assert_eq!(in_service(&mut pics), (1, 0));
}

#[test]
fn a_masked_line_waits_for_its_mask() {
    let mut pics = pair(1);
    pics.write(0x21, 0x01);
    pulse(&mut pics, 0);
    assert!(!pics.asks() && !pics.listens(0) && pics.listens(1));
    assert_eq!(pics.read(0x20), 1, "its request");
    pics.write(0x21, 0);
    assert_eq!(take(&mut pics), Some(0x30));
}

#[test]
fn an_edge_is_withdrawn_with_its_line_and_the_cpu_that_came_too_late_gets_7() {
    let mut pics = pair(1);
    pics.set_line(3, true);
    pics.set_line(3, false);
    assert!(!pics.asks());
    assert_eq!(pics.acknowledge(), Vector(0x37));
    assert_eq!(in_service(&mut pics), (0, 0), "a default is not in service");
}

#[test]
fn a_higher_line_interrupts_a_lower_one_and_not_the_other_way_round() {
    let mut pics = pair(1);
    pulse(&mut pics, 4);
    assert_eq!(take(&mut pics), Some(0x34));
    pulse(&mut pics, 5);
    pulse(&mut pics, 1);
    assert_eq!((take(&mut pics), take(&mut pics)), (Some(0x31), None));
    pics.write(0x20, 0x20);
    assert_eq!(in_service(&mut pics), (1 << 4, 0), "the highest is ended");
    assert_eq!(take(&mut pics), None);
    pics.write(0x20, 0x64);
    assert_eq!(take(&mut pics), Some(0x35));
}

#[test]
fn the_second_interrupts_through_the_first() {
    let mut pics = pair(1);
    pulse(&mut pics, 14);
    assert_eq!(take(&mut pics), Some(0x3e));
    assert_eq!(in_service(&mut pics), (1 << 2, 1 << 6));
    pulse(&mut pics, 8);
    assert_eq!(take(&mut pics), None, "the first holds it back until the second's is ended");
    pics.write(0xa0, 0x20);
    pics.write(0x20, 0x20);
    assert_eq!(take(&mut pics), Some(0x38));
}

#[test]
fn in_the_special_fully_nested_mode_a_higher_one_of_the_second_comes_through() {
    let mut pics = pair(0x11);
    pulse(&mut pics, 14);
    assert_eq!(take(&mut pics), Some(0x3e));
    pulse(&mut pics, 8);
    assert_eq!(take(&mut pics), Some(0x38));
    assert_eq!(in_service(&mut pics), (1 << 2, 1 << 6 | 1));
}

#[test]
fn automatic_end_leaves_nothing_in_service_and_may_rotate() {
    let mut pics = pair(3);
    pulse(&mut pics, 0);
    assert_eq!(take(&mut pics), Some(0x30));
    assert_eq!(in_service(&mut pics), (0, 0));
    pics.write(0x20, 0x80);
    pulse(&mut pics, 0);
    assert_eq!(take(&mut pics), Some(0x30));
    pulse(&mut pics, 0);
    pulse(&mut pics, 1);
    assert_eq!(take(&mut pics), Some(0x31), "the one that was served last comes last");
    assert_eq!(take(&mut pics), Some(0x30));
}

#[test]
fn rotations_move_the_lowest_priority() {
    let mut pics = pair(1);
    pics.write(0x20, 0xc3);
    pulse(&mut pics, 3);
    pulse(&mut pics, 4);
    assert_eq!(take(&mut pics), Some(0x34), "3 is the lowest");
    pics.write(0x20, 0xa0);
    pulse(&mut pics, 4);
    assert_eq!(take(&mut pics), Some(0x33), "4 is, since its end");
    pics.write(0x20, 0xe3);
    assert_eq!(take(&mut pics), Some(0x34));
}

#[test]
fn in_the_special_mask_mode_what_is_served_and_masked_holds_nothing_back() {
    let mut pics = pair(1);
    pulse(&mut pics, 1);
    assert_eq!(take(&mut pics), Some(0x31));
    pulse(&mut pics, 5);
    assert_eq!(take(&mut pics), None);
    pics.write(0x21, 1 << 1);
    pics.write(0x20, 0x68);
    assert_eq!(take(&mut pics), Some(0x35));
    pics.write(0x20, 0x20);
    assert_eq!(in_service(&mut pics), (1 << 1, 0), "an end without a name passes the masked one");
    pics.write(0x20, 0x48);
    pulse(&mut pics, 5);
    assert_eq!(take(&mut pics), None, "the mode is over");
}

#[test]
fn a_level_asks_until_its_line_falls() {
    let mut pics = pair(1);
    pics.write(0x4d0, 0xff);
    pics.write(0x4d1, 0xff);
    assert_eq!((pics.read(0x4d0), pics.read(0x4d1)), (0xf8, 0xde), "system lines keep their edges");
    pics.set_line(10, true);
    for _ in 0..2 {
        assert_eq!(take(&mut pics), Some(0x3a));
        pics.write(0xa0, 0x20);
        pics.write(0x20, 0x20);
    }
    pics.set_line(10, false);
    assert_eq!(take(&mut pics), None);
}

#[test]
fn a_poll_is_an_acknowledgement() {
    let mut pics = pair(1);
    pulse(&mut pics, 6);
    pics.write(0x20, 0x0c);
    assert_eq!(pics.read(0x20), 0x86);
    assert_eq!(in_service(&mut pics), (1 << 6, 0));
    pics.write(0x20, 0x0c);
    assert_eq!(pics.read(0x20), 0, "nothing more");
    assert_eq!(pics.read(0x20), 1 << 6, "only the next read is a poll");
}

#[test]
fn a_new_initialization_forgets_what_was_in_service_and_every_edge() {
    let mut pics = pair(1);
    pulse(&mut pics, 0);
    assert_eq!(take(&mut pics), Some(0x30));
    pulse(&mut pics, 1);
    pics.write(0x20, 0x11);
    [0x20, 4, 1].into_iter().for_each(|word| pics.write(0x21, word));
    assert!(!pics.asks());
    pulse(&mut pics, 0);
    assert_eq!(take(&mut pics), Some(0x20));
}

proptest! {
    /// The definition, over what any sequence of accesses and lines has left: nothing masked comes through, and what
    /// comes through is a line's that is up or the default.
    #[test]
    fn whatever_a_guest_writes_only_unmasked_lines_come(
        steps in proptest::collection::vec((0usize..8, any::<u8>(), any::<bool>()), 0..200)
    ) {
        let mut pics = pair(1);
        let mut up = [false; 16];
        for (place, value, line) in steps {
            match [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1].get(place) {
                Some(port) if line => pics.write(*port, value),
                Some(port) => { pics.read(*port); }
                None => {
                    let irq = value & 15;
                    // The cascade's input is no line.
                    if irq != CASCADE {
                        up[usize::from(irq)] = line;
                        pics.set_line(irq, line);
                    }
                }
            }
            if pics.asks() {
                let input = pics.first.asks_for().unwrap();
                prop_assert_eq!(pics.first.mask & 1 << input, 0);
                if input == CASCADE {
                    let input = pics.second.asks_for().unwrap();
                    prop_assert_eq!(pics.second.mask & 1 << input, 0);
                    prop_assert!(up[usize::from(8 + input)]);
                } else {
                    prop_assert!(up[usize::from(input)]);
                }
                pics.acknowledge();
            }
        }
    }
}
