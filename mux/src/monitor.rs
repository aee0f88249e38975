//! The monitor's commands: text in, [`Command`] out. Carrying them out is the kernel's.
//!
//! Invariant: the table [`COMMANDS`] is both what is parsed and what `help` prints; a guest in a
//! [`Command`] is one of the names that the parser was given.

use alloc::string::String;
use core::fmt;

/// A guest by its index, in the order of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestRef(pub usize);

/// What the user asks of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Lists the commands: [`crate::Mux::help`].
    Help,
    /// Every guest: its state, CPUs and memory.
    Guests,
    /// Exits by reason, of one guest or of all.
    Exits(Option<GuestRef>),
    /// The vectors of every guest, and what raises them.
    Irqs,
    /// Every PCI function and its owner.
    Devices,
    /// The IOMMU: tables and faults.
    Iommu,
    /// Registers of one CPU of a guest, or of all its CPUs.
    Regs {
        /// Whose.
        guest: GuestRef,
        /// Which of the guest's CPUs, counted from 0. Not checked: the parser does not know how
        /// many there are.
        cpu: Option<u32>,
    },
    /// The last lines of the log.
    Log,
    /// Who has how much memory.
    Memory,
    /// Starts a guest that has ended.
    Start(GuestRef),
    /// Stops a guest, as if its power was cut.
    Stop(GuestRef),
    /// Stops a guest and starts it afresh.
    Restart(GuestRef),
    /// Resets the machine.
    Reboot,
}

/// A line of the table.
struct Entry {
    word: &'static str,
    shape: Shape,
    help: &'static str,
}

/// Which arguments a command takes, and what becomes of them.
enum Shape {
    Plain(Command),
    MayGuest(fn(Option<GuestRef>) -> Command),
    Guest(fn(GuestRef) -> Command),
    GuestMayCpu(fn(GuestRef, Option<u32>) -> Command),
}

impl Shape {
    const fn arguments(&self) -> &'static str {
        match self {
            Self::Plain(_) => "",
            Self::MayGuest(_) => " [GUEST]",
            Self::Guest(_) => " GUEST",
            Self::GuestMayCpu(_) => " GUEST [CPU]",
        }
    }
}

const fn entry(word: &'static str, shape: Shape, help: &'static str) -> Entry {
    Entry { word, shape, help }
}

static COMMANDS: [Entry; 13] = [
    entry("help", Shape::Plain(Command::Help), "this list"),
    entry("guests", Shape::Plain(Command::Guests), "every guest: state, CPUs, memory"),
    entry(
        "exits",
        Shape::MayGuest(Command::Exits),
        "exits by reason, and their rates since last asked",
    ),
    entry("irqs", Shape::Plain(Command::Irqs), "each guest's vectors, and what raises them"),
    entry("devices", Shape::Plain(Command::Devices), "every PCI function and its owner"),
    entry("iommu", Shape::Plain(Command::Iommu), "the IOMMU and its faults"),
    entry(
        "regs",
        Shape::GuestMayCpu(|guest, cpu| Command::Regs { guest, cpu }),
        "registers of a guest's CPU (the first is 0), even of a hung one",
    ),
    entry("log", Shape::Plain(Command::Log), "the last lines of the log, from memory"),
    entry("memory", Shape::Plain(Command::Memory), "who has how much memory"),
    entry("start", Shape::Guest(Command::Start), "start a guest that has ended"),
    entry("stop", Shape::Guest(Command::Stop), "stop a guest, as if its power was cut"),
    entry("restart", Shape::Guest(Command::Restart), "stop a guest and start it afresh"),
    entry("reboot", Shape::Plain(Command::Reboot), "reset the machine"),
];

/// Why a line is no command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandError<'a> {
    /// No command has this name.
    UnknownCommand(&'a str),
    /// The command needs an argument.
    MissingArgument {
        /// The command.
        word: &'static str,
        /// All its arguments.
        arguments: &'static str,
    },
    /// The command takes fewer arguments.
    UnexpectedArgument {
        /// The command.
        word: &'static str,
        /// All its arguments.
        arguments: &'static str,
        /// The first that is too many.
        found: &'a str,
    },
    /// No guest has this name or number.
    UnknownGuest {
        /// What was typed.
        found: &'a str,
        /// The names of all.
        guests: &'a [String],
    },
    /// A CPU is a number.
    BadCpu(&'a str),
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCommand(found) => {
                write!(f, "there is no command \"{found}\": `help` lists them")
            }
            Self::MissingArgument { word, arguments } => {
                write!(f, "{word} lacks an argument: write `{word}{arguments}`")
            }
            Self::UnexpectedArgument { word, arguments, found } => {
                write!(f, "{word} does not take \"{found}\": write `{word}{arguments}`")
            }
            Self::UnknownGuest { found, guests } => {
                write!(f, "there is no guest \"{found}\": the guests are {}", Guests(guests))
            }
            Self::BadCpu(found) => {
                write!(f, "\"{found}\" is no CPU: give its number in the guest, from 0")
            }
        }
    }
}

impl core::error::Error for CommandError<'_> {}

/// The guests as a list: `1 linux, 2 other`.
pub(crate) struct Guests<'a>(pub(crate) &'a [String]);

impl fmt::Display for Guests<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} {name}", index + 1)?;
        }
        Ok(())
    }
}

/// Parses a line; `None` where it is empty. A guest is given by its name in `guests`, or else by its
/// number, counted from 1 (a name with a space in it by its number only).
///
/// # Errors
/// A sentence for the user.
pub fn parse<'a>(line: &'a str, guests: &'a [String]) -> Result<Option<Command>, CommandError<'a>> {
    let mut words = line.split_ascii_whitespace();
    let Some(word) = words.next() else { return Ok(None) };
    let entry = COMMANDS.iter().find(|entry| entry.word == word);
    let Entry { word, shape, .. } = entry.ok_or(CommandError::UnknownCommand(word))?;
    let arguments = shape.arguments();
    let guest = |found| find_guest(found, guests);
    let needed = |found: Option<&'a str>| {
        guest(found.ok_or(CommandError::MissingArgument { word, arguments })?)
    };
    let command = match shape {
        Shape::Plain(command) => *command,
        Shape::MayGuest(command) => command(words.next().map(guest).transpose()?),
        Shape::Guest(command) => command(needed(words.next())?),
        Shape::GuestMayCpu(command) => {
            let guest = needed(words.next())?;
            command(guest, words.next().map(cpu).transpose()?)
        }
    };
    match words.next() {
        Some(found) => Err(CommandError::UnexpectedArgument { word, arguments, found }),
        None => Ok(Some(command)),
    }
}

fn find_guest<'a>(found: &'a str, guests: &'a [String]) -> Result<GuestRef, CommandError<'a>> {
    let by_name = guests.iter().position(|name| name == found);
    let by_number = || {
        let index = found.parse::<usize>().ok()?.checked_sub(1)?;
        (index < guests.len()).then_some(index)
    };
    let index = by_name.or_else(by_number);
    index.map(GuestRef).ok_or(CommandError::UnknownGuest { found, guests })
}

fn cpu(found: &str) -> Result<u32, CommandError<'_>> {
    found.parse().map_err(|_| CommandError::BadCpu(found))
}

/// What `help` prints, a line for each command: what to type, and what it does.
pub(crate) fn help() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    COMMANDS.iter().map(|entry| (entry.word, entry.shape.arguments(), entry.help))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> Vec<String> {
        ["linux", "2", "a b"].map(str::to_owned).to_vec()
    }

    fn command(line: &str) -> Command {
        parse(line, &names()).unwrap().unwrap()
    }

    fn sentence(line: &str) -> String {
        parse(line, &names()).unwrap_err().to_string()
    }

    #[test]
    fn every_command_of_the_table_is_understood_as_help_writes_it() {
        for (word, arguments, _) in help() {
            let full = arguments.replace(['[', ']'], "").replace("GUEST", "linux");
            let line = format!("{word}{}", full.replace("CPU", "3"));
            assert!(parse(&line, &names()).unwrap().is_some(), "{line}");
            let error = CommandError::UnexpectedArgument { word, arguments, found: "more" };
            assert_eq!(parse(&format!("{line} more"), &names()), Err(error));
        }
    }

    #[test]
    fn each_command_is_the_one_that_its_word_says() {
        let all = [
            ("help", Command::Help),
            ("guests", Command::Guests),
            ("exits", Command::Exits(None)),
            ("exits linux", Command::Exits(Some(GuestRef(0)))),
            ("irqs", Command::Irqs),
            ("devices", Command::Devices),
            ("iommu", Command::Iommu),
            ("regs linux", Command::Regs { guest: GuestRef(0), cpu: None }),
            (" regs  3\t1 ", Command::Regs { guest: GuestRef(2), cpu: Some(1) }),
            ("log", Command::Log),
            ("memory", Command::Memory),
            ("start 1", Command::Start(GuestRef(0))),
            ("stop 1", Command::Stop(GuestRef(0))),
            ("restart 1", Command::Restart(GuestRef(0))),
            ("reboot", Command::Reboot),
        ];
        for (line, expected) in all {
            assert_eq!(command(line), expected, "{line}");
        }
    }

    #[test]
    fn a_name_goes_before_a_number() {
        let names = ["2", "x"].map(str::to_owned);
        assert_eq!(parse("stop 2", &names), Ok(Some(Command::Stop(GuestRef(0)))));
        assert_eq!(parse("stop 1", &names), Ok(Some(Command::Stop(GuestRef(0)))));
        assert_eq!(parse("stop x", &names), Ok(Some(Command::Stop(GuestRef(1)))));
    }

    #[test]
    fn a_line_of_nothing_asks_for_nothing() {
        assert_eq!(parse("", &names()), Ok(None));
        assert_eq!(parse(" \t ", &names()), Ok(None));
    }

    #[test]
    fn errors_say_what_to_write() {
        assert_eq!(sentence("halt"), "there is no command \"halt\": `help` lists them");
        assert_eq!(sentence("stop"), "stop lacks an argument: write `stop GUEST`");
        assert_eq!(sentence("regs"), "regs lacks an argument: write `regs GUEST [CPU]`");
        assert_eq!(sentence("irqs 1"), "irqs does not take \"1\": write `irqs`");
        assert_eq!(
            sentence("exits win"),
            "there is no guest \"win\": the guests are 1 linux, 2 2, 3 a b"
        );
        for number in ["0", "4", "-1", "99999999999999999999"] {
            assert!(sentence(&format!("stop {number}")).starts_with("there is no guest"));
        }
        assert_eq!(
            sentence("regs linux x"),
            "\"x\" is no CPU: give its number in the guest, from 0"
        );
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_or_refused_in_one_line(
            line in ".{0,40}|(help|exits|regs|stop|linux|[0-9]{1,20}| |\t){0,8}"
        ) {
            if let Err(error) = parse(&line, &names()) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
