//! gdb's side of the line, byte by byte.

use proptest::prelude::*;

use arch::Gpa;

use crate::fake::{Occupant, Shared, Wire, at, heed, session};
use crate::mailbox::{Order, Stop};
use crate::patches::Places;
use crate::session::Session;

fn packet(text: &str) -> Vec<u8> {
    let sum = text.bytes().fold(0_u8, u8::wrapping_add);
    format!("${text}#{sum:02x}").into_bytes()
}

/// Without run-length encoding: `0*"` is six zeros.
fn expanded(text: &str) -> String {
    let mut plain = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, plain.chars().last()) {
            ('*', Some(last)) => {
                let more = letters.next().unwrap() as usize - 29;
                plain.extend(core::iter::repeat_n(last, more));
            }
            _ => plain.push(letter),
        }
    }
    plain
}

/// gdb and its guest.
struct Talk {
    session: Session<Occupant, Wire>,
    world: Shared,
}

impl Talk {
    fn new() -> Self {
        let (session, world) = session();
        Self { session, world }
    }

    fn send(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.session.receive(*byte));
    }

    fn work(&mut self) -> bool {
        for _ in 0..3 {
            heed(&self.world);
            self.session.work();
        }
        self.session.work()
    }

    /// What comes back for a packet, acknowledgement and sum apart.
    fn ask(&mut self, text: &str) -> String {
        self.send(&packet(text));
        self.work();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let sent = std::mem::take(&mut self.world.borrow_mut().sent);
        let text = String::from_utf8_lossy(&sent).into_owned();
        let Some((_, rest)) = text.split_once('$') else { return String::new() };
        expanded(rest.split('#').next().unwrap())
    }

    /// What the CPUs do next.
    fn orders(&self) -> Vec<Option<Order>> {
        let mut world = self.world.borrow_mut();
        world.mailboxes.iter_mut().map(|mailbox| mailbox.take().map(|(order, _)| order)).collect()
    }

    fn attached() -> Self {
        let mut talk = Self::new();
        assert!(talk.ask("qSupported:multiprocess+;hwbreak+;swbreak+").contains("PacketSize="));
        talk
    }
}

const GO: Option<Order> = Some(Order::Go { step: false, breakpoints: None, patches: Places::NONE });

#[test]
fn the_guest_stops_for_the_first_whole_packet_and_for_nothing_less() {
    let mut talk = Talk::new();
    talk.send(b"\x03+-$qSupported#00$qSup");
    assert!(!talk.work());
    assert_eq!(talk.world.borrow().calls, 0);
    assert_eq!(talk.answer(), "");
    talk.send(&packet("?"));
    assert!(talk.work());
    assert_eq!(talk.world.borrow().calls, 1);
    assert!(talk.answer().starts_with('T'), "it stands");
}

fn leave(talk: &Talk) {
    talk.world.borrow_mut().mailboxes.iter_mut().for_each(|mailbox| mailbox.leave());
}

#[test]
fn who_comes_when_the_guest_has_ended_is_told_so() {
    let mut talk = Talk::new();
    leave(&talk);
    assert_eq!(talk.ask("?"), "E.the guest does not run: start it first");
    assert!(!talk.session.work());
}

#[test]
fn a_guest_that_ends_while_it_is_to_stop_has_exited_and_may_be_attached_to_again() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("vCont;c"), "");
    talk.orders();
    leave(&talk);
    talk.work();
    assert_eq!(talk.answer(), "", "it may begin again, and gdb waits");
    talk.send(&[3]);
    talk.work();
    assert_eq!(talk.answer(), "W00");
    assert!(!talk.session.work(), "nobody is attached");
    talk.world.borrow_mut().mailboxes.iter_mut().for_each(|mailbox| {
        assert_eq!(mailbox.arrive(), Order::Leave);
    });
    assert!(talk.ask("?").starts_with('T'));
}

#[test]
fn a_gdb_that_comes_after_one_was_lost_takes_its_place() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("Z1,2000,1"), "OK");
    assert_eq!(talk.ask("vCont;c"), "");
    talk.orders();
    assert!(talk.ask("qSupported:multiprocess+").contains("PacketSize="));
    assert!(talk.ask("?").starts_with('T'), "it stands");
    assert_eq!(talk.ask("vCont;c"), "");
    assert_eq!(talk.orders(), [GO, GO], "the breakpoint has gone with the other");
}

#[test]
fn a_packet_that_is_sent_again_while_the_guest_runs_is_heard_and_does_nothing() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("vCont;c"), "");
    talk.orders();
    talk.world.borrow_mut().mailboxes[1].stand(Stop::Breakpoint(1), at(0x2000));
    talk.world.borrow_mut().sent.clear();
    talk.send(&packet("vCont;c"));
    talk.send(b"-");
    assert_eq!(talk.world.borrow().sent, b"+");
    talk.work();
    assert_eq!(talk.answer(), "T05thread:p01.02;", "the stop is not lost");
}

#[test]
fn a_cpu_that_comes_while_the_others_are_called_is_called_too() {
    let mut talk = Talk::new();
    talk.world.borrow_mut().mailboxes[1].leave();
    talk.send(&packet("?"));
    assert_eq!(talk.world.borrow_mut().mailboxes[1].arrive(), Order::Leave);
    talk.work();
    assert!(talk.answer().starts_with('T'));
    assert_eq!(talk.ask("vCont;c"), "");
    talk.orders();
    talk.world.borrow_mut().mailboxes[1].leave();
    talk.world.borrow_mut().mailboxes[0].stand(Stop::Breakpoint(1), at(0x2000));
    talk.session.work();
    talk.world.borrow_mut().mailboxes[1].arrive();
    talk.work();
    assert_eq!(talk.answer(), "T05thread:01;");
}

#[test]
fn packets_that_come_before_the_guest_stands_do_not_spoil_the_first() {
    let mut talk = Talk::new();
    talk.send(&packet("?"));
    talk.send(b"$qSup");
    talk.work();
    assert!(talk.answer().starts_with('T'));
}

#[test]
fn where_no_cpu_could_be_is_not_written_to_rip() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("Hg1"), "OK");
    let registers = talk.ask("g").replace('x', "0");
    let with = |rip: u64| {
        let mut registers = registers.clone();
        let digits: String = rip.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        registers.replace_range(16 * 16..16 * 17, &digits);
        format!("G{registers}")
    };
    assert_eq!(talk.ask(&with(0xffff_ffff)), "OK");
    assert!(talk.ask(&with(0x1_0000_0000)).starts_with('E'), "without long mode");
    talk.world.borrow_mut().mailboxes[0].registers_mut().unwrap().paging.efer = 0x500;
    assert_eq!(talk.ask(&with(0xffff_8000_0000_0000)), "OK");
    assert!(talk.ask(&with(0x8000_0000_0000)).starts_with('E'));
    talk.world.borrow_mut().mailboxes[0].registers_mut().unwrap().paging.cr4 = 1 << 12;
    assert_eq!(talk.ask(&with(0x8000_0000_0000)), "OK", "five levels");
    assert_eq!(talk.ask("vCont;c:p1.41"), "");
    assert_eq!(talk.orders(), [None, None], "there is no such CPU");
}

#[test]
fn all_cpus_are_threads_with_registers_and_memory() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("qfThreadInfo"), "mp01.01,p01.02");
    assert_eq!(talk.ask("Hg2"), "OK");
    let registers = talk.ask("g");
    assert_eq!(registers.get(16 * 16..16 * 17), Some("0110000000000000"), "{registers}");
    assert_eq!(talk.ask("m100,4"), "00010203");
    assert_eq!(talk.ask("mfffe,4"), "feff", "as far as there is memory");
    assert!(talk.ask("m20000,4").starts_with('E'));
    assert_eq!(talk.ask("M100,2:abcd"), "OK");
    assert_eq!(talk.ask("m100,4"), "abcd0203");
}

#[test]
fn avx_registers_are_described_where_the_guest_has_them_when_gdb_comes() {
    let mut talk = Talk::new();
    assert!(talk.ask("qSupported:swbreak+").contains("qXfer:features:read+"));
    let without = talk.ask("qXfer:features:read:target.xml:0,fff");
    assert!(without.starts_with("l<") || without.starts_with("m<"), "{without}");
    let length = |talk: &mut Talk| talk.ask("g").len();
    let plain = length(&mut talk);
    talk.world.borrow_mut().upper = Some([0x5a; 256]);
    assert_eq!(length(&mut talk), plain, "gdb was told otherwise");
    assert_eq!(talk.ask("D"), "OK");
    for mailbox in &mut talk.world.borrow_mut().mailboxes {
        mailbox.take();
    }
    assert!(talk.ask("qSupported:swbreak+").contains("qXfer:features:read+"));
    let described: String = (0..4)
        .map(|part| talk.ask(&format!("qXfer:features:read:target.xml:{:x},800", part * 0x800)))
        .map(|part| part[1..].to_owned())
        .collect();
    assert!(described.contains("ymm15h") && described.ends_with("</target>\n"), "{described}");
    assert_eq!(talk.ask("Hg1"), "OK");
    let registers = talk.ask("g");
    assert_eq!(registers.len(), plain + 512);
    assert!(registers.contains(&"5a".repeat(256)));
    let written = registers.replace('x', "0").replacen("5a", "77", 1);
    assert_eq!(talk.ask(&format!("G{written}")), "OK");
    assert_eq!(talk.ask("D"), "OK");
    let (_, changed) = talk.world.borrow_mut().mailboxes[0].take().unwrap();
    assert_eq!(changed.unwrap().upper.unwrap()[..2], [0x77, 0x5a]);
}

#[test]
fn a_register_that_was_written_is_the_cpus_when_it_goes_on() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("Hg1"), "OK");
    let mut registers = talk.ask("g").replace('x', "0");
    registers.replace_range(0..4, "3412");
    assert_eq!(talk.ask(&format!("G{registers}")), "OK");
    assert_eq!(talk.ask("D"), "OK");
    let (order, changed) = talk.world.borrow_mut().mailboxes[0].take().unwrap();
    assert_eq!((order, changed.unwrap().general[0]), (Order::Leave, 0x1234));
    assert_eq!(
        talk.world.borrow_mut().mailboxes[1].take().unwrap().1,
        None,
        "the other is as it was"
    );
}

#[test]
fn a_breakpoint_is_in_the_debug_registers_and_its_cpu_stops_all() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("Z0,2000,1"), "OK", "a software breakpoint is one of the hardware");
    assert_eq!(talk.ask("Z2,3000,4"), "OK");
    assert_eq!(talk.ask("vCont;c"), "");
    for order in talk.orders() {
        let Some(Order::Go { step: false, breakpoints: Some(registers), patches: Places::NONE }) =
            order
        else {
            panic!("{order:?}");
        };
        assert_eq!(registers.addresses, [0x2000, 0x3000, 0, 0]);
    }
    talk.world.borrow_mut().mailboxes[1].stand(Stop::Breakpoint(1), at(0x2000));
    talk.work();
    assert_eq!(talk.answer(), "T05thread:p01.02;swbreak:;");
    assert_eq!(talk.ask("vCont;c"), "");
    talk.orders();
    talk.world.borrow_mut().mailboxes[0].stand(Stop::Breakpoint(2), at(0x2004));
    talk.work();
    assert_eq!(talk.answer(), "T05thread:p01.01;watch:3000;");
    for slot in 0..2 {
        assert_eq!(talk.ask(&format!("Z1,400{slot},1")), "OK");
    }
    assert_eq!(talk.ask("Z1,5000,1"), "OK", "the software breakpoint makes room");
    assert!(talk.ask("Z1,6000,1").starts_with('E'), "a CPU has four");
    assert_eq!(talk.ask("D"), "OK");
    assert_eq!(talk.orders(), [Some(Order::Leave); 2]);
}

#[test]
fn what_the_debug_registers_have_no_room_for_is_a_byte_of_the_guests_code_while_it_runs() {
    let mut talk = Talk::attached();
    for address in 0..6 {
        assert_eq!(talk.ask(&format!("Z0,200{address},1")), "OK");
    }
    assert_eq!(talk.ask("m2000,8"), "0001020304050607", "gdb sees the guest's own");
    let memory = |talk: &Talk| talk.world.borrow().memory.borrow().0[0x2000..0x2008].to_vec();
    assert_eq!(memory(&talk), [0, 1, 2, 3, 0xf1, 0xf1, 6, 7]);
    assert_eq!(talk.ask("M2004,2:9090"), "OK");
    assert_eq!(memory(&talk), [0, 1, 2, 3, 0xf1, 0xf1, 6, 7]);
    assert_eq!(talk.ask("vCont;c"), "");
    for order in talk.orders() {
        let Some(Order::Go { breakpoints: Some(_), patches, .. }) = order else {
            panic!("{order:?}")
        };
        assert!(patches.has(Gpa::new(0x2004)) && !patches.has(Gpa::new(0x2003)));
    }
    talk.world.borrow_mut().mailboxes[1].stand(Stop::Patch, at(0x2004));
    talk.work();
    assert_eq!(talk.answer(), "T05thread:p01.02;swbreak:;");
    assert!(talk.ask("Z0,f0000,1").starts_with('E'), "no RAM");
    assert_eq!(talk.ask("z0,2005,1"), "OK");
    assert_eq!(memory(&talk), [0, 1, 2, 3, 0xf1, 0x90, 6, 7]);
    assert_eq!(talk.ask("D"), "OK");
    assert_eq!(memory(&talk), [0, 1, 2, 3, 0x90, 0x90, 6, 7], "nothing of gdb stays");
}

#[test]
fn a_guest_that_was_restarted_has_no_breakpoints_in_its_code_and_is_given_none_of_the_old_bytes() {
    let mut talk = Talk::attached();
    for address in 0..5 {
        assert_eq!(talk.ask(&format!("Z0,200{address},1")), "OK");
    }
    talk.world.borrow_mut().generation += 1;
    assert_eq!(talk.ask("vCont;c"), "");
    for order in talk.orders() {
        assert!(matches!(order, Some(Order::Go { patches: Places::NONE, .. })), "{order:?}");
    }
}

#[test]
fn one_cpu_steps_and_the_others_stop_with_it() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("vCont;s:p1.2;c"), "");
    assert_eq!(
        talk.orders(),
        [GO, Some(Order::Go { step: true, breakpoints: None, patches: Places::NONE })]
    );
    assert!(talk.answer().is_empty(), "an order that no CPU has taken yet is no stop");
    talk.world.borrow_mut().mailboxes[1].stand(Stop::Step, at(0x1002));
    talk.work();
    assert_eq!(talk.answer(), "T05thread:p01.02;");
}

#[test]
fn a_cpu_that_gdb_does_not_name_stays_where_it_is() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("vCont;s:p1.1"), "");
    assert_eq!(
        talk.orders(),
        [Some(Order::Go { step: true, breakpoints: None, patches: Places::NONE }), None]
    );
    talk.world.borrow_mut().mailboxes[0].stand(Stop::Step, at(0x1001));
    talk.work();
    assert_eq!(talk.answer(), "T05thread:p01.01;");
    assert_eq!(talk.ask("vCont;c"), "");
    assert_eq!(talk.orders(), [GO, GO]);
}

#[test]
fn a_guest_that_runs_is_stopped_by_a_byte() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("vCont;c"), "");
    assert_eq!(talk.orders(), [GO, GO]);
    talk.send(&[3]);
    talk.work();
    assert_eq!(talk.answer(), "T02thread:p01.01;");
}

/// Ctrl-C just when gdb has it go on: the byte comes before the packet.
#[test]
fn a_guest_that_stands_is_stopped_by_a_byte_when_it_goes_on() {
    let mut talk = Talk::attached();
    talk.send(&[3]);
    assert!(!talk.ask("m100,2").is_empty(), "it stands, and is looked at");
    talk.send(&packet("vCont;c"));
    assert_eq!(talk.orders(), [GO, GO]);
    talk.work();
    assert_eq!(talk.answer(), "T02thread:p01.01;");
    assert_eq!(talk.ask("vCont;c"), "", "it was for once");
}

#[test]
fn a_byte_that_comes_while_gdb_steps_over_a_breakpoint_is_not_lost() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("vCont;s:p1.1"), "");
    talk.orders();
    talk.send(&[3]);
    talk.world.borrow_mut().mailboxes[0].stand(Stop::Step, at(0x1001));
    talk.work();
    assert_eq!(talk.answer(), "T02thread:p01.01;");
}

#[test]
fn a_byte_that_comes_with_a_breakpoint_stops_the_guest_behind_it() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("Z1,2000,1"), "OK");
    assert_eq!(talk.ask("vCont;c"), "");
    talk.orders();
    talk.world.borrow_mut().mailboxes[0].stand(Stop::Breakpoint(1), at(0x2000));
    talk.send(&[3]);
    talk.work();
    assert_eq!(talk.answer(), "T05thread:p01.01;hwbreak:;");
    talk.send(&packet("vCont;s:p1.1"));
    talk.orders();
    talk.work();
    assert_eq!(talk.answer(), "T02thread:p01.01;");
    talk.send(&[3]);
    assert_eq!(talk.ask("D"), "OK");
    assert!(talk.ask("?").starts_with('T'));
    assert_eq!(talk.ask("vCont;c"), "", "the next gdb has not asked for it");
}

#[test]
fn a_guest_that_has_crashed_says_so() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("vCont;c"), "");
    talk.orders();
    talk.world.borrow_mut().mailboxes[1].stand(Stop::Crashed, at(0x2000));
    talk.work();
    assert_eq!(talk.answer(), "T06thread:p01.02;");
}

#[test]
fn an_answer_that_was_not_understood_is_sent_again() {
    let mut talk = Talk::attached();
    assert_eq!(talk.ask("m100,2"), "0001");
    talk.send(b"-");
    assert_eq!(talk.answer(), "0001");
    talk.send(b"$m100,2#00");
    assert_eq!(talk.world.borrow().sent, b"-", "what is damaged is asked for again");
}

#[test]
fn the_monitor_reads_physical_memory() {
    let mut talk = Talk::attached();
    let hex: String = "phys 0x20 2".bytes().map(|byte| format!("{byte:02x}")).collect();
    talk.send(&packet(&format!("qRcmd,{hex}")));
    let sent = talk.world.borrow().sent.clone();
    let line: String = "0x20: [20, 21]\n".bytes().map(|byte| format!("{byte:02x}")).collect();
    let sent = String::from_utf8_lossy(&sent).into_owned();
    assert!(sent.contains(&format!("$O{line}#")), "{sent}");
}

proptest! {
    /// Whatever comes, the guest is left running in the end, as gdb would leave it.
    #[test]
    fn garbage_and_cut_packets_do_no_harm(
        parts in prop::collection::vec(prop_oneof![
            any::<Vec<u8>>(),
            "[a-zA-Z?!][0-9a-f,:;]{0,20}".prop_map(|text| packet(&text)),
            ("[a-zA-Z?!][0-9a-f,:;]{0,20}", 0..20_usize).prop_map(|(text, cut)| {
                let mut bytes = packet(&text);
                bytes.truncate(cut);
                bytes
            }),
        ], 0..20)
    ) {
        let mut talk = Talk::new();
        for part in parts {
            talk.send(&part);
            talk.work();
        }
        talk.send(&[3]);
        talk.work();
        talk.answer();
        talk.send(&packet("D"));
        talk.work();
        prop_assert!(!talk.session.work(), "nobody is attached");
        let orders = talk.orders();
        prop_assert!(orders.iter().all(|order| *order == Some(Order::Leave)), "{:?}", orders);
    }
}

/// What a `monitor` command says.
fn monitor(talk: &mut Talk, command: &str) -> Vec<u8> {
    let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
    talk.send(&packet(&format!("qRcmd,{hex}")));
    talk.work();
    let answer = talk.answer();
    let digits = answer.strip_prefix('O').unwrap();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn all_of_the_ram_can_be_had_packed() {
    let mut talk = Talk::attached();
    assert_eq!(monitor(&mut talk, "ram"), b"0x0 0x10000\n");
    assert!(monitor(&mut talk, "pages").starts_with(b"monitor phys"));
    // The fake's memory: each page counts from 0.
    let (mut next, mut pages) = (0_u32, Vec::new());
    while next < 16 {
        let answer = monitor(&mut talk, &format!("pages {next}"));
        let mut rest = answer.as_slice();
        loop {
            let (number, behind) = rest.split_first_chunk().unwrap();
            let (length, behind) = behind.split_first_chunk().unwrap();
            let (packed, behind) = behind.split_at(u16::from_le_bytes(*length).into());
            rest = behind;
            if packed.is_empty() {
                next = u32::from_le_bytes(*number);
                break;
            }
            pages.push(u32::from_le_bytes(*number));
            let expected: Vec<u8> = (0..4096).map(|at| at as u8).collect();
            assert_eq!(crate::pack::unpack(packed).unwrap(), expected);
        }
        assert!(rest.is_empty());
    }
    assert_eq!(pages, (0..16).collect::<Vec<u32>>());
}
