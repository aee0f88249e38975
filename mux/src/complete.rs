//! Tab: what the word that is being typed may become.

use alloc::string::String;

use crate::commands::{self, Argument, COMMANDS};

/// What words there are, beside the commands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    pub(crate) guests: &'a [String],
    pub(crate) functions: &'a [String],
}

/// The words that begin as the last one of a line does.
pub(crate) fn candidates<'a>(
    line: &'a str,
    known: Known<'a>,
) -> (&'a str, impl Iterator<Item = &'a str> + Clone) {
    let (before, begun) = line.rsplit_once(' ').unwrap_or(("", line));
    let mut words = before.split_ascii_whitespace();
    let kind = match (words.next(), words.next()) {
        (None, _) => Argument::Command,
        (Some(command), None) => {
            commands::find(command).map_or(Argument::Other, |entry| entry.shape.first())
        }
        (Some(_), Some(_)) => Argument::Other,
    };
    let has = move |wanted: Argument| kind == wanted;
    let of = move |wanted, words: &'a [String]| {
        words.iter().filter(move |_| has(wanted)).map(String::as_str)
    };
    let commands = COMMANDS.iter().filter(move |_| has(Argument::Command)).map(|entry| entry.word);
    let all = commands
        .chain(of(Argument::Guest, known.guests))
        .chain(of(Argument::Function, known.functions));
    // A name with a space in it is given by its number.
    (begun, all.filter(move |word| word.starts_with(begun) && !word.contains(' ')))
}

/// What all of them begin with.
pub(crate) fn common<'a>(mut words: impl Iterator<Item = &'a str>) -> &'a str {
    let Some(first) = words.next() else { return "" };
    words.fold(first, |common, word| {
        let same = common.bytes().zip(word.bytes()).take_while(|(a, b)| a == b).count();
        // Names may be more than ASCII: no character is cut.
        (0..=same).rev().find_map(|end| common.get(..end)).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> (String, Vec<String>, String) {
        let guests = ["linux", "lisp", "a b"].map(str::to_owned);
        let functions = ["00:04.0", "00:05.0", "01:00.0"].map(str::to_owned);
        let known = Known { guests: &guests, functions: &functions };
        let (begun, words) = candidates(line, known);
        (begun.to_owned(), words.clone().map(str::to_owned).collect(), common(words).to_owned())
    }

    #[test]
    fn commands_guests_and_functions_are_completed_where_they_belong() {
        assert_eq!(found("re").1, ["regs", "report", "restart", "reboot"]);
        assert_eq!(found("re").2, "re");
        assert_eq!(found("reg").2, "regs");
        assert_eq!(found("regs l"), ("l".into(), vec!["linux".into(), "lisp".into()], "li".into()));
        assert_eq!(found("vtd 00:").1, ["00:04.0", "00:05.0"]);
        assert_eq!(found("help wa").2, "walk");
        assert_eq!(found("").1.len(), COMMANDS.len());
    }

    #[test]
    fn nothing_is_offered_for_numbers_and_for_names_that_cannot_be_typed() {
        for line in ["regs linux ", "mem linux 0", "halt l", "irqs l", "exits a"] {
            assert_eq!(found(line).1, [""; 0], "{line}");
        }
    }

    #[test]
    fn what_two_names_have_in_common_ends_before_a_character() {
        assert_eq!(common(["aä", "aö"].into_iter()), "a");
        assert_eq!(common([].into_iter()), "");
    }
}
