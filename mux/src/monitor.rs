//! The monitor's commands: text in, [`Command`] out. Carrying them out is the kernel's.
//!
//! Invariant: a guest in a [`Command`] is one of the names that the parser was given. What there is to type stands in
//! [`crate::commands`].

use alloc::string::String;
use core::fmt;

use arch::Bdf;

use crate::commands::{self, Entry, Shape};

/// A guest by its index, in the order of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestRef(pub usize);

/// An address of a guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestAddress {
    /// Whose.
    pub guest: GuestRef,
    /// Guest-physical or linear, as the command says.
    pub address: u64,
    /// The CPU whose tables are meant, where that matters: the first if none is given.
    pub cpu: Option<u32>,
}

/// What the user asks of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Lists the commands, or says more of one: [`crate::help`].
    Help(Option<&'static str>),
    /// Every guest: its state, CPUs and memory.
    Guests,
    /// Exits by reason, of one guest or of all.
    Exits(Option<GuestRef>),
    /// Exits of all guests, again and again, until [`Command::EndTop`].
    Top,
    /// A key was typed: [`Command::Top`] ends.
    EndTop,
    /// The vectors of every guest, and what raises them.
    Irqs,
    /// Every PCI function and its owner.
    Devices,
    /// The IOMMU: tables and faults.
    Iommu,
    /// What the IOMMU was told of a function.
    Vtd(Bdf),
    /// Registers of one CPU of a guest, or of all its CPUs.
    Regs {
        /// Whose.
        guest: GuestRef,
        /// Which of the guest's CPUs, counted from 0. Not checked: the parser does not know how
        /// many there are.
        cpu: Option<u32>,
    },
    /// Bytes of a guest's RAM.
    Memory {
        /// By guest-physical address.
        place: GuestAddress,
        /// How many.
        bytes: u64,
    },
    /// The same through the guest's own tables.
    Virtual {
        /// By linear address.
        place: GuestAddress,
        /// How many.
        bytes: u64,
    },
    /// Where a linear address leads.
    Walk(GuestAddress),
    /// The IDT of a guest's CPU.
    Gates {
        /// Whose.
        guest: GuestRef,
        /// Which of the guest's CPUs.
        cpu: Option<u32>,
    },
    /// An MSR of a guest's CPU.
    Msr(GuestAddress),
    /// Where a guest's Linux has put itself.
    Kaslr(GuestRef),
    /// All that one needs when a guest hangs.
    Report(GuestRef),
    /// The last lines of the log.
    Log,
    /// Who has how much memory.
    Sizes,
    /// Starts a guest that has ended.
    Start(GuestRef),
    /// Stops a guest, as if its power was cut.
    Stop(GuestRef),
    /// Stops a guest and starts it afresh.
    Restart(GuestRef),
    /// Resets the machine.
    Reboot,
}

/// Bytes that are shown where none is said, and at most.
const BYTES: u64 = 64;
const MAX_BYTES: u64 = 1024;

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
    /// An address is a hexadecimal number.
    BadAddress(&'a str),
    /// Not a number of bytes, or too many.
    BadBytes(&'a str),
    /// No PCI function is written so.
    BadFunction(&'a str),
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
            Self::BadAddress(found) => {
                write!(f, "\"{found}\" is no address: give it in hexadecimal, such as 0x1000")
            }
            Self::BadBytes(found) => {
                write!(f, "\"{found}\" is no number of bytes: give 1 to {MAX_BYTES}")
            }
            Self::BadFunction(found) => {
                write!(f, "\"{found}\" is no PCI function: `devices` lists them, such as 00:04.0")
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
    let Entry { word, shape, .. } =
        commands::find(word).ok_or(CommandError::UnknownCommand(word))?;
    let arguments = shape.arguments();
    let guest = |found| find_guest(found, guests);
    let needed =
        |found: Option<&'a str>| found.ok_or(CommandError::MissingArgument { word, arguments });
    let command = match shape {
        Shape::Plain(command) => *command,
        Shape::MayCommand => Command::Help(words.next().map(known).transpose()?),
        Shape::MayGuest(command) => command(words.next().map(guest).transpose()?),
        Shape::Guest(command) => command(guest(needed(words.next())?)?),
        Shape::Function(command) => command(function(needed(words.next())?)?),
        Shape::GuestMayCpu(command) => {
            let guest = guest(needed(words.next())?)?;
            command(guest, words.next().map(cpu).transpose()?)
        }
        Shape::GuestAddressMayCpu(command) => {
            let (guest, found) = (guest(needed(words.next())?)?, needed(words.next())?);
            let (address, cpu) = (address(found)?, words.next().map(cpu).transpose()?);
            command(GuestAddress { guest, address, cpu })
        }
        Shape::GuestAddressMayBytes(command) => {
            let (guest, found) = (guest(needed(words.next())?)?, needed(words.next())?);
            let bytes = words.next().map_or(Ok(BYTES), bytes)?;
            command(GuestAddress { guest, address: address(found)?, cpu: None }, bytes)
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

fn known(found: &str) -> Result<&'static str, CommandError<'_>> {
    commands::find(found).map(|entry| entry.word).ok_or(CommandError::UnknownCommand(found))
}

fn function(found: &str) -> Result<Bdf, CommandError<'_>> {
    found.parse().map_err(|_| CommandError::BadFunction(found))
}

fn address(found: &str) -> Result<u64, CommandError<'_>> {
    let digits = found.strip_prefix("0x").unwrap_or(found);
    // `from_str_radix` takes a sign.
    let number = || u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    number().ok_or(CommandError::BadAddress(found))
}

fn bytes(found: &str) -> Result<u64, CommandError<'_>> {
    let number = match found.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => found.parse(),
    };
    let bytes = number.ok().filter(|bytes| (1..=MAX_BYTES).contains(bytes));
    bytes.ok_or(CommandError::BadBytes(found))
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
        for Entry { word, shape, .. } in &commands::COMMANDS {
            let arguments = shape.arguments();
            let full = arguments.replace(['[', ']'], "").replace("GUEST", "linux");
            let full = full.replace("CPU", "3").replace("ADDRESS", "0x10").replace("BYTES", "16");
            let full = full.replace("COMMAND", "exits").replace("FUNCTION", "00:04.0");
            let line = format!("{word}{full}");
            assert!(parse(&line, &names()).unwrap().is_some(), "{line}");
            let error = CommandError::UnexpectedArgument { word, arguments, found: "more" };
            assert_eq!(parse(&format!("{line} more"), &names()), Err(error));
        }
    }

    const HIGH: u64 = 0xffff_ffff_8100_0000;

    const fn at(address: u64) -> GuestAddress {
        GuestAddress { guest: GuestRef(0), address, cpu: None }
    }

    #[test]
    fn each_command_is_the_one_that_its_word_says() {
        let all = [
            ("help", Command::Help(None)),
            ("help mem", Command::Help(Some("mem"))),
            ("top", Command::Top),
            ("vtd 00:1f.2", Command::Vtd(Bdf::new(0, 31, 2))),
            ("mem 1 1000", Command::Memory { place: at(0x1000), bytes: 64 }),
            ("mem linux 0x10 0x20", Command::Memory { place: at(16), bytes: 32 }),
            ("virt linux ffffffff81000000 7", Command::Virtual { place: at(HIGH), bytes: 7 }),
            ("walk linux ffffffff81000000", Command::Walk(at(HIGH))),
            ("walk linux 0 2", Command::Walk(GuestAddress { cpu: Some(2), ..at(0) })),
            (
                "msr linux c0000082 1",
                Command::Msr(GuestAddress { cpu: Some(1), ..at(0xc000_0082) }),
            ),
            ("kaslr 1", Command::Kaslr(GuestRef(0))),
            ("idt 1", Command::Gates { guest: GuestRef(0), cpu: None }),
            ("report 1", Command::Report(GuestRef(0))),
            ("guests", Command::Guests),
            ("exits", Command::Exits(None)),
            ("exits linux", Command::Exits(Some(GuestRef(0)))),
            ("irqs", Command::Irqs),
            ("devices", Command::Devices),
            ("iommu", Command::Iommu),
            ("regs linux", Command::Regs { guest: GuestRef(0), cpu: None }),
            (" regs  3\t1 ", Command::Regs { guest: GuestRef(2), cpu: Some(1) }),
            ("log", Command::Log),
            ("memory", Command::Sizes),
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
        for (line, words) in [
            ("mem linux", "mem lacks an argument: write `mem GUEST ADDRESS [BYTES]`"),
            ("mem linux xyz", "\"xyz\" is no address: give it in hexadecimal, such as 0x1000"),
            ("mem linux +1", "\"+1\" is no address: give it in hexadecimal, such as 0x1000"),
            ("mem linux 0 0", "\"0\" is no number of bytes: give 1 to 1024"),
            ("virt linux 0 1025", "\"1025\" is no number of bytes: give 1 to 1024"),
            ("vtd 4", "\"4\" is no PCI function: `devices` lists them, such as 00:04.0"),
            ("help halt", "there is no command \"halt\": `help` lists them"),
        ] {
            assert_eq!(sentence(line), words);
        }
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_or_refused_in_one_line(
            line in ".{0,40}|(help|exits|regs|mem|walk|vtd|stop|linux|[0-9a-fx:.]{1,20}| |\t){0,8}"
        ) {
            if let Err(error) = parse(&line, &names()) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
