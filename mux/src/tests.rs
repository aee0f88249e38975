//! Claims on the whole line: what an independent reader makes of its bytes is what was said.

use proptest::prelude::*;

use super::*;

/// A line and what was sent on it.
struct Line {
    mux: Mux,
    sent: Vec<u8>,
}

impl Line {
    fn with(names: &[&str]) -> Self {
        let mut mux = Mux::new();
        names.iter().for_each(|name| mux.add_guest((*name).to_owned()));
        Self { mux, sent: Vec::new() }
    }

    fn guest(&mut self, guest: usize, text: &str) -> &mut Self {
        for byte in text.bytes() {
            self.mux.guest_output(guest, byte, &mut |byte| self.sent.push(byte));
        }
        self
    }

    fn log(&mut self, text: &str) -> &mut Self {
        self.mux.log_line(format_args!("{text}"), &mut |byte| self.sent.push(byte));
        self
    }

    fn keys(&mut self, keys: &[u8]) -> Vec<Input> {
        let key = |key: &u8| self.mux.typed(*key, &mut |byte| self.sent.push(byte));
        keys.iter().map(key).filter(|input| *input != Input::None).collect()
    }

    /// What was sent since the last call, the mark as `#`.
    fn sent(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.sent)).unwrap().replace('\x1e', "#")
    }
}

#[test]
fn the_only_guest_is_not_labelled() {
    let mut line = Line::with(&["a"]);
    line.guest(0, "x\r\n\r\n# ").log("one").guest(0, "y\n\r").log("two");
    assert_eq!(line.sent(), "x\r\n\r\n# \r\n#nexit: one\r\ny\n\r#nexit: two\r\n");
}

#[test]
fn the_focused_guest_is_shown_at_once_and_the_others_by_lines() {
    let mut line = Line::with(&["a", "b"]);
    line.guest(0, "login: ").guest(1, "boo");
    assert_eq!(line.sent(), "a: login: ");
    line.guest(1, "t\r\n").guest(0, "root\r\n\r\n");
    assert_eq!(line.sent(), "\r\nb: boot\r\na> root\r\na: \r\n");
}

#[test]
fn a_carriage_return_does_not_get_a_guest_out_of_its_label() {
    let mut line = Line::with(&["a", "b"]);
    line.guest(0, "50%\r60%\r\r\n\rb: x\n");
    assert_eq!(line.sent(), "a: 50%\ra: 60%\r\r\na: \ra: b: x\n");
}

#[test]
fn what_a_guest_has_held_back_shows_when_it_gets_the_focus_or_ends() {
    let mut line = Line::with(&["a", "b"]);
    line.guest(1, "login: ");
    line.keys(b"\x012");
    assert_eq!(line.sent(), "#nexit: typing to guest 2, b\r\nb: login: ");
    line.guest(0, "dying");
    line.mux.flush(0, &mut |byte| line.sent.push(byte));
    assert_eq!(line.sent(), "\r\na: dying");
}

#[test]
fn a_guest_without_newlines_is_held_back_to_a_bound() {
    let mut line = Line::with(&["a", "b"]);
    line.guest(1, &"x".repeat(HELD - 1));
    assert_eq!(line.sent(), "");
    line.guest(1, "x").guest(0, "y").guest(1, "z\n");
    assert_eq!(line.sent(), format!("b: {}\r\na: y\r\nb> z\n", "x".repeat(HELD)));
}

#[test]
fn text_of_the_log_cannot_pose_as_a_line_of_its_own() {
    let mut line = Line::with(&["a"]);
    line.log("panic:\nnexit: halted\r\x1e\n");
    assert_eq!(line.sent(), "#nexit: panic:\r\n#nexit:   nexit: halted??\r\n");
}

#[test]
fn who_cuts_into_a_line_of_the_log_begins_a_new_one() {
    struct Panics<'a>(std::cell::RefCell<&'a mut Vec<u8>>);
    impl std::fmt::Display for Panics<'_> {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.borrow_mut().push(b'!');
            std::panic::resume_unwind(Box::new(()))
        }
    }
    let mut line = Line::with(&["a"]);
    let mut seen = Vec::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let last = Panics(std::cell::RefCell::new(&mut seen));
        line.mux.log_line(format_args!("CPU 0 {last}"), &mut |byte| line.sent.push(byte));
    }));
    assert!(result.is_err());
    assert_eq!(seen, b"!");
    line.log("panic");
    assert_eq!(line.sent(), "#nexit: CPU 0 \r\n#nexit: panic\r\n");
}

#[test]
fn the_escape_key_moves_the_focus_and_reaches_the_guest_when_typed_twice() {
    let mut line = Line::with(&["a", "b", "c"]);
    assert_eq!(line.keys(b"x\x01\x01"), [Input::ToGuest(0, b'x'), Input::ToGuest(0, ESCAPE)]);
    assert_eq!(line.keys(b"\x013y\x01ny\x01ny"), [2, 0, 1].map(|g| Input::ToGuest(g, b'y')));
    assert_eq!(line.keys(b"\x01m\x01nz"), [Input::ToGuest(1, b'z')], "back from the monitor");
    line.sent();
    assert_eq!(line.keys(b"\x017z"), [Input::ToGuest(1, b'z')]);
    assert_eq!(line.sent(), "#nexit: there is no guest 7: the guests are 1 a, 2 b, 3 c\r\n");
    for key in [b'h', b'?', b'q'] {
        assert_eq!(line.keys(&[ESCAPE, key]), []);
        assert!(line.sent().contains("1 to 8: that guest"));
    }
}

#[test]
fn a_line_without_guests_takes_keys_and_gives_none() {
    let mut line = Line::with(&[]);
    assert_eq!(line.keys(b"a\x01n\x011b"), []);
    assert_eq!(line.keys(b"\x01mreboot\r"), [Input::Monitor(Command::Reboot)]);
}

#[test]
fn the_monitor_takes_commands_and_complains_in_sentences() {
    let mut line = Line::with(&["a", "b"]);
    line.keys(b"\x01m");
    assert!(line.sent().ends_with("\r\n#nexit> "));
    assert_eq!(line.keys(b"stop b\r"), [Input::Monitor(Command::Stop(GuestRef(1)))]);
    assert_eq!(line.sent(), "stop b\r\n");
    line.log("guest b: stopped");
    line.mux.prompt(&mut |byte| line.sent.push(byte));
    assert_eq!(line.sent(), "#nexit: guest b: stopped\r\n#nexit> ");
    assert_eq!(line.keys(b"stop z\r\ri\x03"), []);
    assert_eq!(
        line.sent(),
        "stop z\r\n#nexit: there is no guest \"z\": the guests are 1 a, 2 b\r\n#nexit> \
         \r\n#nexit> i^C\r\n#nexit> "
    );
}

#[test]
fn a_command_that_was_cut_in_two_by_output_is_shown_again_with_the_next_key() {
    let mut line = Line::with(&["a", "b"]);
    line.keys(b"\x01mirq");
    line.sent();
    line.guest(0, "x\r\n");
    assert_eq!(line.sent(), "\r\na: x\r\n");
    assert_eq!(line.keys(b"s\r"), [Input::Monitor(Command::Irqs)]);
    assert_eq!(line.sent(), "#nexit> irqs\r\n");
}

#[test]
fn tab_completes_what_is_known_and_lists_what_is_not_clear() {
    let mut line = Line::with(&["linux", "lisp"]);
    line.mux.add_function("00:04.0".to_owned());
    line.keys(b"\x01m");
    line.sent();
    assert_eq!(line.keys(b"reg\tl\tn\t\r").len(), 1);
    assert_eq!(line.sent(), "regs linux \r\n");
    line.mux.prompt(&mut |byte| line.sent.push(byte));
    line.sent();
    line.keys(b"re\t");
    assert_eq!(line.sent(), "re\r\n#nexit: regs report restart reboot\r\n#nexit> re");
    line.keys(b"\x15vtd \t\x15x\t");
    assert_eq!(
        line.sent(),
        "\x08 \x08\x08 \x08vtd 00:04.0 ".to_owned() + &"\x08 \x08".repeat(12) + "x\x07"
    );
}

#[test]
fn a_live_table_ends_with_any_key_and_where_the_focus_goes() {
    let mut line = Line::with(&["a"]);
    line.keys(b"\x01m");
    line.sent();
    assert_eq!(line.keys(b"top\r"), [Input::Monitor(Command::Top)]);
    line.mux.prompt(&mut |byte| line.sent.push(byte));
    assert_eq!(line.sent(), "top\r\n", "no prompt meanwhile");
    assert_eq!(line.keys(b"q"), [Input::Monitor(Command::EndTop)], "the key is no part of a line");
    line.mux.prompt(&mut |byte| line.sent.push(byte));
    assert_eq!(line.sent(), "#nexit> ");
    assert_eq!(
        line.keys(b"top\r\x011x"),
        [Input::Monitor(Command::Top), Input::Monitor(Command::EndTop), Input::ToGuest(0, b'x'),]
    );
}

#[test]
fn a_live_table_that_a_key_has_begun_stays_until_that_key() {
    let mut line = Line::with(&["a"]);
    assert_eq!(line.keys(b"\x01t"), [Input::Monitor(Command::Top)]);
    let kept = line.keys(b"x\x01my\x15\x011z");
    assert_eq!(kept, [Input::ToGuest(0, b'x'), Input::ToGuest(0, b'z')]);
    assert_eq!(line.keys(b"\x01t"), [Input::Monitor(Command::EndTop)]);
    assert_eq!(line.keys(b"\x01t"), [Input::Monitor(Command::Top)]);
    // The command takes it over.
    assert_eq!(line.keys(b"\x01mtop\r"), [Input::Monitor(Command::Top)]);
    assert_eq!(line.keys(b"q"), [Input::Monitor(Command::EndTop)]);
}

const NAMES: [&str; 3] = ["a", "b", "ab"];

#[derive(Clone, Debug)]
enum Step {
    Guest(usize, String),
    Log(String),
    Report(String),
    Keys(Vec<u8>),
    Flush(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let text = "[ab:> \r\n\x1e]{0,6}|x{250,260}";
    prop_oneof![
        6 => (0..NAMES.len(), text).prop_map(|(guest, text)| Step::Guest(guest, text)),
        1 => "[a: >]{0,4}".prop_map(Step::Log),
        1 => "[a: >]{0,4}".prop_map(Step::Report),
        1 => prop::collection::vec(prop::sample::select(b"\x01\x01123mnhx\r\x03\x15\x7f".as_slice()), 0..5)
            .prop_map(Step::Keys),
        1 => (0..NAMES.len()).prop_map(Step::Flush),
    ]
}

/// Carries the steps out, with each guest's line ended at the end. Returns what each guest sent (as
/// it must come out) and the own lines.
fn carry_out(line: &mut Line, guests: usize, steps: &[Step]) -> (Vec<String>, Vec<String>) {
    let (mut said, mut own) = (vec![String::new(); guests], Vec::new());
    for step in steps {
        let Line { mux, sent } = &mut *line;
        let mut sink = |byte| sent.push(byte);
        match step {
            Step::Guest(guest, text) => {
                let Some(said) = said.get_mut(*guest) else { continue };
                said.push_str(&text.replace('\x1e', "?"));
                line.guest(*guest, text);
            }
            Step::Log(text) => {
                own.push(format!("\x1enexit: {text}"));
                mux.log_line(format_args!("{text}"), &mut sink);
            }
            Step::Report(text) => {
                own.push(format!("\x1enexit-report: {text}"));
                mux.report_line(format_args!("{text}"), &mut sink);
            }
            Step::Keys(keys) => drop(line.keys(keys)),
            Step::Flush(guest) => mux.flush(*guest, &mut sink),
        }
    }
    for (guest, said) in said.iter_mut().enumerate() {
        said.push('\n');
        line.guest(guest, "\n");
    }
    (said, own)
}

/// Takes the labels off a labelled line's text: what the guest itself sent.
fn without_labels(name: &str, text: &str) -> String {
    let mut parts = text.split('\r');
    let mut sent = parts.next().unwrap().to_owned();
    let label = format!("{name}: ");
    for part in parts {
        sent.push('\r');
        assert!(matches!(part, "" | "\n") || part.starts_with(&label), "no label: {part:?}");
        sent.push_str(part.strip_prefix(&label).unwrap_or(part));
    }
    sent
}

/// Reads a line of many guests as a user does: whose line it is stands at its beginning.
fn read(stream: &str) -> (Vec<String>, Vec<String>) {
    let (mut said, mut own) = (vec![String::new(); NAMES.len()], Vec::new());
    for line in stream.split_inclusive('\n') {
        if let Some(text) = line.strip_prefix('\x1e') {
            assert!(!text.contains('\x1e'), "two speakers: {line:?}");
            own.push(line.trim_end_matches(['\r', '\n']).to_owned());
            continue;
        }
        let of = |(guest, name): (usize, &&'static str)| {
            let rest = line.strip_prefix(*name)?;
            let goes_on = rest.starts_with("> ");
            let text = rest.strip_prefix("> ").or_else(|| rest.strip_prefix(": "))?;
            Some((guest, *name, goes_on, text))
        };
        let found = NAMES.iter().enumerate().find_map(of);
        let (guest, name, goes_on, text) = found.unwrap_or_else(|| panic!("whose is {line:?}?"));
        let said = &mut said[guest];
        if goes_on {
            // The line end before was not the guest's.
            said.truncate(said.strip_suffix("\r\n").expect("nothing to go on with").len());
        } else {
            assert!(said.is_empty() || said.ends_with('\n'));
        }
        said.push_str(&without_labels(name, text));
    }
    (said, own)
}

proptest! {
    #[test]
    fn every_line_has_one_speaker_and_nothing_is_lost_or_reordered(
        steps in prop::collection::vec(step(), 0..40)
    ) {
        let mut line = Line::with(&NAMES);
        let (said, logged) = carry_out(&mut line, NAMES.len(), &steps);
        // Whoever is held back has been ended by the newline; the monitor may have the last line.
        let (read_said, own) = read(std::str::from_utf8(&line.sent).unwrap());
        prop_assert_eq!(read_said, said);
        let mut own = own.iter();
        for expected in logged {
            prop_assert!(own.any(|line| *line == expected), "missing: {:?}", expected);
        }
    }

    #[test]
    fn the_only_guests_bytes_come_out_as_they_are_between_own_lines(
        steps in prop::collection::vec(step(), 0..40)
    ) {
        let mut line = Line::with(&NAMES[..1]);
        let (said, _) = carry_out(&mut line, 1, &steps);
        let stream = String::from_utf8(line.sent).unwrap();
        let mut guest = String::new();
        for line in stream.split_inclusive('\n') {
            match line.trim_start_matches('\r').strip_prefix('\x1e') {
                Some(own) => prop_assert!(own.starts_with("nexit") && !own.contains('\x1e')),
                None => {
                    prop_assert!(!line.contains('\x1e'));
                    guest.push_str(line);
                }
            }
        }
        // Where a line was broken cannot be told from the stream: compare all but line ends.
        let visible = |text: &str| text.replace(['\r', '\n'], "");
        prop_assert_eq!(visible(&guest), visible(&said[0]));
    }

    #[test]
    fn keys_reach_the_focused_guest_whatever_they_are(keys: Vec<u8>, guest in 0..3_u8) {
        let mut line = Line::with(&NAMES);
        line.keys(&[ESCAPE, b'1' + guest]);
        let typed: Vec<u8> = keys
            .iter()
            .flat_map(|key| if *key == ESCAPE { vec![ESCAPE, ESCAPE] } else { vec![*key] })
            .collect();
        let expected: Vec<Input> =
            keys.iter().map(|key| Input::ToGuest(usize::from(guest), *key)).collect();
        prop_assert_eq!(line.keys(&typed), expected);
    }

    #[test]
    fn any_keys_at_the_monitor_leave_every_line_whole(keys: Vec<u8>) {
        let mut line = Line::with(&NAMES);
        line.keys(b"\x01m");
        line.keys(&keys);
        line.log("end");
        let stream = String::from_utf8(line.sent).unwrap();
        prop_assert!(stream.ends_with("\r\n\x1enexit: end\r\n"));
        for line in stream.lines() {
            prop_assert!(line.starts_with("\x1enexit"), "{:?}", line);
        }
    }
}

/// A frame from the user's side.
fn frame(kind: frame::Kind, guest: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(ESCAPE, frame::Channel { kind, guest }, payload, &mut |byte| bytes.push(byte));
    bytes
}

#[test]
fn a_debugger_and_keys_share_the_line_and_neither_gets_the_others() {
    let mut line = Line::with(&["a", "b"]);
    line.mux.add_debugger(1);
    let packet = frame(frame::Kind::Gdb, 1, b"$g#67");
    let keys = [b"l\x01".as_slice(), b"\x01", &packet, b"s\x01n"].concat();
    assert_eq!(
        line.keys(&keys),
        [Input::ToGuest(0, b'l'), Input::ToGuest(0, ESCAPE), Input::ToGuest(0, b's')]
    );
    assert_eq!(line.sent(), "#nexit: typing to guest 2, b\r\n");
    let mut taken = || line.mux.from_debugger(1);
    assert_eq!(core::iter::from_fn(&mut taken).collect::<Vec<_>>(), b"$g#67");
    assert_eq!(line.mux.from_debugger(0), None);
    assert_eq!(line.keys(&frame(frame::Kind::Gdb, 0, b"$g#67")), [], "guest a has no gdb");
    assert_eq!(line.mux.from_debugger(0), None);
}

#[test]
fn a_frame_that_was_cut_or_damaged_costs_no_key() {
    let mut line = Line::with(&["a"]);
    line.mux.add_debugger(0);
    let packet = frame(frame::Kind::Gdb, 0, b"$g#67");
    for length in 2..packet.len() {
        let keys = [&packet[..length], b"x"].concat();
        assert_eq!(line.keys(&keys), [Input::ToGuest(0, b'x')], "{length}");
    }
    assert_eq!(line.keys(&[&packet[..5], b"\x01h"].concat()), []);
    assert!(line.sent().contains("Ctrl-A, then"), "the escape key is one, behind a cut frame too");
    assert_eq!(line.mux.from_debugger(0), None);
}

#[test]
fn a_gdb_that_floods_uses_up_its_own_place_only() {
    let mut line = Line::with(&["a"]);
    line.mux.add_debugger(0);
    for _ in 0..100 {
        line.keys(&frame(frame::Kind::Gdb, 0, &[b'x'; frame::MAX_PAYLOAD]));
    }
    assert_eq!(line.keys(b"k"), [Input::ToGuest(0, b'k')]);
    let waiting = core::iter::from_fn(|| line.mux.from_debugger(0)).count();
    assert!((4096..=8192).contains(&waiting), "{waiting}");
}

#[test]
fn whoever_asks_is_told_the_guests_and_which_of_them_gdb_can_reach() {
    let mut line = Line::with(&["a", "b"]);
    line.mux.add_debugger(1);
    line.guest(0, "lo");
    line.sent();
    assert_eq!(line.keys(&frame(frame::Kind::Names, 0, b"")), []);
    line.guest(0, "gin:");
    let (rest, told) = split(&std::mem::take(&mut line.sent));
    assert_eq!(told, [(0, b"\0a".to_vec()), (1, b"\x01b".to_vec())]);
    assert_eq!(rest, b"gin:", "the guest's line goes on");
}

#[test]
fn no_guest_is_told_by_anothers_number() {
    let mut line = Line::with(&["x"; frame::MAX_GUESTS + 1]);
    assert_eq!(line.keys(&frame(frame::Kind::Names, 0, b"")), []);
    let guests: Vec<u8> = split(&line.sent).1.into_iter().map(|(guest, _)| guest).collect();
    assert_eq!(guests, (0..frame::MAX_GUESTS as u8).collect::<Vec<_>>());
}

/// What is no frame's, and of each frame the guest and the payload.
fn split(bytes: &[u8]) -> (Vec<u8>, Vec<(u8, Vec<u8>)>) {
    let mut splitter = frame::Splitter::new(MARK);
    let (mut rest, mut told) = (Vec::new(), Vec::new());
    for byte in bytes {
        splitter.push(*byte, &mut |byte| rest.push(byte), &mut |channel, payload| {
            told.push((channel.guest, payload.to_vec()));
        });
    }
    (rest, told)
}
