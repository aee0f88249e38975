//! The reader against another one: the crate `toml`, which the image does not hold.

use proptest::prelude::*;

use super::*;

/// What the other reader makes of a value that this one read.
fn same(item: &Item, other: &toml::Value) -> bool {
    match (&item.value, other) {
        (Value::String(own), toml::Value::String(other)) => own == other,
        (Value::Integer(own), toml::Value::Integer(other)) => own == other,
        (Value::Boolean(own), toml::Value::Boolean(other)) => own == other,
        (Value::List(own), toml::Value::Array(other)) => {
            own.len() == other.len() && own.iter().zip(other).all(|(own, other)| same(own, other))
        }
        (Value::Table(own), toml::Value::Table(other)) => same_table(own, other),
        _ => false,
    }
}

fn same_table(own: &Table, other: &toml::Table) -> bool {
    let same = |(key, item): &(Key, Item)| other.get(&key.name).is_some_and(|it| same(item, it));
    own.0.len() == other.len() && own.iter().all(same)
}

/// Both read a text, and what they say is compared. `true` if this one took it.
fn compare(text: &str) -> Result<bool, String> {
    let other = text.parse::<toml::Table>();
    match (Table::parse(text).map_err(|error| error.problem), other) {
        (Ok(own), Ok(other)) if same_table(&own, &other) => Ok(true),
        (Ok(own), Ok(other)) => Err(format!("{text:?}: {own:?}, and the other read {other:?}")),
        (Ok(_), Err(other)) => Err(format!("{text:?} was taken, and the other says {other}")),
        (Err(Problem::Unread { .. }), _) | (Err(Problem::Syntax { .. }), Err(_)) => Ok(false),
        (Err(own), Ok(_)) => Err(format!("{text:?}: {own}, and the other took it")),
        (Err(own), Err(_)) => Err(format!("{text:?}: {own:?} is no mistake in TOML")),
    }
}

/// Texts that are taken, each for another rule of TOML.
const TAKEN: &[&str] = &[
    "",
    "\u{feff}a = 1",
    "# c\té\r\n\r\na = 1 # c\r\n\tb\t=\t2",
    "a = +1\nb = -0\nc = 1_000\nd = 0xdead_BEEF\ne = 0o17\nf = 0b0_1\ng = 0",
    "a = 9223372036854775807\nb = -9223372036854775808",
    "a = true\nb = false\ntrue = 1\n1 = 2\n- = 3\n_ = 4",
    "\"a b\" = 1\n'c\"' = 2\n\"\" = 3\n\"\\u00e9\" = 4",
    "a = \"\\b\\t\\n\\f\\r\\\"\\\\\\e\\x7f\\u00e9\\U0001F600\"\nb = 'C:\\x'",
    "a = \"\"\"\nx\n y\"\"\"\nb = '''\r\nx\\\n'''\nc = \"\"\"x\\\n  \n y\\  \r\n\tz\"\"\"",
    "a = \"\"\"\"x\"\" \"\"\"\"\"\nb = ''''''''\nc = \"\"\"\"\"\"\nd = \"\"\nf = ''",
    "a = [ # c\n 1 , # d\n 2\n,]\nb = []\nc = [\"x\", true,'''y\n''']",
    "a = 1\n[b]\nc = 1\n[ d ]\n[[e]]\nf = 1\n[b2]\n[[e]] # x\nf = 2\n[['g h']]",
];

#[test]
fn each_rule_is_read_as_the_other_reader_does() {
    for text in TAKEN {
        assert_eq!(compare(text), Ok(true), "{text:?}");
    }
}

/// Mistakes, with line and column.
const MISTAKES: &[(&str, usize, usize, &str)] = &[
    (
        "a = 1\n b = \"x\n",
        2,
        6,
        "the text that begins here has no end: close it with \" on this line",
    ),
    ("a = 'x", 1, 5, "the text that begins here has no end: close it with ' on this line"),
    ("\na = \"\"\"x\n\"\"\n", 2, 5, "the text that begins here has no end: close it with \"\"\""),
    ("a = '''x''", 1, 5, "the text that begins here has no end: close it with '''"),
    ("a = \"\"\"\"\"\"\"\"\"", 1, 13, "nothing may follow here"),
    ("a = \"C:\\Windows\"", 1, 8, "no such escape: write \\\\ for a backslash"),
    ("a = \"\\uD800\"", 1, 6, "no such escape"),
    ("a = \"é\u{1}\"", 1, 7, "a string contains a control character"),
    ("a = 1 # \u{7f}", 1, 9, "a comment contains a control character"),
    ("a = linux", 1, 5, "`linux` is no value: write a text in quotes"),
    ("a = True", 1, 5, "`True` is no value"),
    ("a =\nb = 1", 1, 4, "a value is missing"),
    ("a = [1\nb = 2", 2, 1, "an entry of a list is followed by a comma or ]"),
    ("a = [1,,]", 1, 8, "a value is missing"),
    ("a = [", 1, 6, "a value is missing"),
    ("a = 1 b = 2", 1, 7, "nothing may follow here: begin a new line"),
    ("a 1", 1, 3, "a key is followed by = and a value"),
    ("= 1", 1, 1, "a key is missing"),
    ("é = 1", 1, 1, "a key is missing"),
    ("a = 1\rb = 2", 1, 6, "nothing may follow here"),
    ("[[a]\n", 1, 4, "the name of a table is followed by ]]"),
    ("[a\n]", 1, 3, "the name of a table is followed by ]"),
    ("[ [a]]", 1, 3, "a key is missing"),
    ("[a] b = 1", 1, 5, "nothing may follow here"),
    ("a = 1\n\n a = 2", 3, 2, "duplicate key \"a\", already on line 1: keep one of them"),
    ("[a]\nb = 1\n\"b\" = 2", 3, 1, "duplicate key \"b\""),
    ("[a]\n[a]", 2, 2, "duplicate key \"a\""),
    ("[a]\n[[a]]", 2, 3, "duplicate key \"a\""),
    ("[[a]]\n[a]", 2, 2, "duplicate key \"a\""),
    ("a = []\n[[a]]", 2, 3, "duplicate key \"a\""),
];

#[test]
fn a_mistake_is_told_with_its_column_and_is_one_to_the_other_reader_too() {
    for (text, line, column, sentence) in MISTAKES {
        let error = Table::parse(text).unwrap_err();
        let Problem::Syntax { column: found, what } = &error.problem else { panic!("{error}") };
        assert_eq!((error.line, found), (Some(*line), column), "{text:?}: {error}");
        assert!(what.starts_with(sentence), "{text:?}: {what}");
        assert_eq!(compare(text), Ok(false));
    }
}

/// What is TOML, and no key takes.
const UNREAD: &[(&str, usize, &str)] = &[
    ("a.b = 1", 2, "a name has one piece"),
    ("[a.b]", 3, "a name has one piece"),
    ("[[a . \"b\"]]", 5, "a name has one piece"),
    ("a = { b = 1 }", 5, "write a table under a line [[name]]"),
    ("a = [[1]]", 6, "no key takes a list in a list"),
    ("a = 1.5", 5, "`1.5` is no value"),
    ("a = -inf", 5, "`-inf` is no value"),
    ("a = 1979-05-27", 5, "`1979-05-27` is no value"),
];

#[test]
fn what_no_key_takes_is_not_called_a_mistake() {
    for (text, column, sentence) in UNREAD {
        let error = Table::parse(text).unwrap_err();
        let Problem::Unread { column: found, what } = &error.problem else { panic!("{error}") };
        assert_eq!(found, column, "{text:?}");
        assert!(what.starts_with(sentence), "{text:?}: {what}");
        assert!(text.parse::<toml::Table>().is_ok(), "{text:?}");
    }
}

#[test]
fn numbers_that_are_malformed_or_too_large_are_refused() {
    for word in
        ["01", "+0x1", "1__0", "_1", "1_", "0x", "0X1", "0b2", "9223372036854775808", "+", "1e3"]
    {
        assert!(Table::parse(&format!("a = {word}")).is_err(), "{word}");
        assert_eq!(compare(&format!("a = {word}")), Ok(false));
    }
}

#[test]
fn brackets_without_end_do_not_reach_deep() {
    assert!(Table::parse(&format!("a = {}", "[".repeat(1 << 20))).is_err());
}

/// Something of everything.
const WHOLE: &str = "# text\nprobe = true\n[[guest]]\nname = \"a\\t\\u00e9\"\ncpus = [0, 0x1, # two\n 2]\n\
    kernel = 'k'\ncmdline = \"\"\"\nquiet \\\n  ro\"\"\"\n\n[[guest]]\nnote = \'\'\'\nx\'\'\'\n[shared]\nsize = -1\n";

/// Pieces that make TOML, nearly TOML and none.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "a", "b", "c-d", "\"a\"", "'b'", " = ", "=", "1", "-7", "0x1f", "1_0", "true", "false", ".", "1.5",
        ]),
        3 => prop::sample::select(vec![
            "\n", "\n", "\r\n", "\r", " ", "\t", ",", "[", "]", "[[", "]]", "{", "}", "#", "# c\n",
        ]),
        3 => prop::sample::select(vec![
            "\"", "'", "\"\"\"", "'''", "\\", "\\n", "\\u00e9", "\\x41", "\\\n", "é", "\u{7f}", "\u{0}", "\u{feff}",
        ]),
        3 => prop::sample::select(vec![
            "\na = 1\n", "\nb = \"x\"\n", "\n[[guest]]\n", "\n[a]\n", "\nc = [1, 2]\n", "\nd = '''\n", "\ne = \"\"\"\n",
        ]),
    ]
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_pieces_are_read_as_the_other_reader_does(pieces in prop::collection::vec(piece(), 0..24)) {
        compare(&pieces.concat()).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn strings_are_read_as_the_other_reader_does(
        quote in prop::sample::select(vec!["\"", "'", "\"\"\"", "'''"]),
        text in "(\\PC|[\"'\\\\ntbfreuxU0-9 \t\r\n]){0,16}",
    ) {
        compare(&format!("a = {quote}{text}{quote}\nb = 1\n")).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn bare_words_are_read_as_the_other_reader_does(word in "[-+0-9a-fA-FxobtruelsnEinT_.:Z]{1,10}") {
        compare(&format!("a = {word}")).map_err(TestCaseError::fail)?;
        compare(&format!("{word} = 1")).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_damaged_configuration_is_read_as_the_other_reader_does(
        cuts in prop::collection::vec((0..WHOLE.len(), 0_usize..4, piece()), 1..4),
    ) {
        let mut text = WHOLE.to_owned();
        for (at, length, with) in cuts {
            let at = text.floor_char_boundary(at);
            let end = text.floor_char_boundary((at + length).min(text.len()));
            text.replace_range(at..end, &with);
        }
        compare(&text).map_err(TestCaseError::fail)?;
    }
}
