//! The table of the monitor's commands: what is parsed, what `help` prints, what Tab completes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arch::Bdf;

use crate::monitor::{Command, GuestAddress, GuestRef};

/// A line of the table.
pub(crate) struct Entry {
    pub(crate) word: &'static str,
    pub(crate) shape: Shape,
    /// In a few words, for the list.
    pub(crate) help: &'static str,
    /// What else there is to know, for `help COMMAND`; a newline begins a line.
    pub(crate) more: &'static str,
}

/// Which arguments a command takes, and what becomes of them.
pub(crate) enum Shape {
    Plain(Command),
    MayCommand,
    MayGuest(fn(Option<GuestRef>) -> Command),
    Guest(fn(GuestRef) -> Command),
    GuestMayCpu(fn(GuestRef, Option<u32>) -> Command),
    GuestAddressMayCpu(fn(GuestAddress) -> Command),
    GuestAddressMayBytes(fn(GuestAddress, u64) -> Command),
    Function(fn(Bdf) -> Command),
}

/// What an argument is, for Tab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Argument {
    Command,
    Guest,
    Function,
    /// Nothing that can be completed.
    Other,
}

impl Shape {
    pub(crate) const fn arguments(&self) -> &'static str {
        match self {
            Self::Plain(_) => "",
            Self::MayCommand => " [COMMAND]",
            Self::MayGuest(_) => " [GUEST]",
            Self::Guest(_) => " GUEST",
            Self::GuestMayCpu(_) => " GUEST [CPU]",
            Self::GuestAddressMayCpu(_) => " GUEST ADDRESS [CPU]",
            Self::GuestAddressMayBytes(_) => " GUEST ADDRESS [BYTES]",
            Self::Function(_) => " FUNCTION",
        }
    }

    /// What its first argument is.
    pub(crate) const fn first(&self) -> Argument {
        match self {
            Self::Plain(_) => Argument::Other,
            Self::MayCommand => Argument::Command,
            Self::Function(_) => Argument::Function,
            Self::MayGuest(_)
            | Self::Guest(_)
            | Self::GuestMayCpu(_)
            | Self::GuestAddressMayCpu(_)
            | Self::GuestAddressMayBytes(_) => Argument::Guest,
        }
    }
}

const fn entry(word: &'static str, shape: Shape, help: &'static str, more: &'static str) -> Entry {
    Entry { word, shape, help, more }
}

/// The entry of this word.
pub(crate) fn find(word: &str) -> Option<&'static Entry> {
    COMMANDS.iter().find(|entry| entry.word == word)
}

/// Answers [`Command::Help`]: a line for each command, or more of one.
#[must_use]
pub fn help(of: Option<&str>) -> Vec<String> {
    let Some(Entry { word, shape, help, more }) = of.and_then(find) else {
        let typed = |entry: &Entry| format!("{}{}", entry.word, entry.shape.arguments());
        let width = COMMANDS.iter().map(|entry| typed(entry).len()).max().unwrap_or(0);
        let line = |entry: &Entry| format!("{:width$}  {}", typed(entry), entry.help);
        return COMMANDS.iter().map(line).collect();
    };
    let first = format!("{word}{}: {help}", shape.arguments());
    core::iter::once(first).chain(more.lines().map(|line| format!("  {line}"))).collect()
}

pub(crate) static COMMANDS: [Entry; 22] = [
    entry("help", Shape::MayCommand, "this list, or more of one command", ""),
    entry("guests", Shape::Plain(Command::Guests), "every guest: state, CPUs, memory", ""),
    entry(
        "exits",
        Shape::MayGuest(Command::Exits),
        "exits by reason, the most frequent first",
        "new: since the last `exits`, or since the guest's start.\n\
         As of the watchdog's last call on that CPU, about a second ago at most.",
    ),
    entry(
        "top",
        Shape::Plain(Command::Top),
        "exits of every CPU each two seconds, until a key",
        "",
    ),
    entry(
        "irqs",
        Shape::Plain(Command::Irqs),
        "each guest's vectors, and what raises them",
        "A device that has no line here has not programmed a message, or has masked it.",
    ),
    entry("devices", Shape::Plain(Command::Devices), "every PCI function and its owner", ""),
    entry("iommu", Shape::Plain(Command::Iommu), "the IOMMU and its faults", ""),
    entry(
        "vtd",
        Shape::Function(Command::Vtd),
        "what VT-d was told of a function: context entry, remapping entries",
        "FUNCTION as `devices` writes it: 00:04.0.\n\
         Behind a bridge that speaks for it, the bridge has the entries.",
    ),
    entry(
        "regs",
        Shape::GuestMayCpu(|guest, cpu| Command::Regs { guest, cpu }),
        "registers of a guest's CPU (the first is 0), even of a hung one",
        "The CPU answers when it next leaves the guest, for which it gets an NMI, and goes on.",
    ),
    entry(
        "mem",
        Shape::GuestAddressMayBytes(|place, bytes| Command::Memory { place, bytes }),
        "bytes of a guest's RAM, by guest-physical address",
        "ADDRESS is hexadecimal, with 0x or without; BYTES is 64, or up to 1024.",
    ),
    entry(
        "virt",
        Shape::GuestAddressMayBytes(|place, bytes| Command::Virtual { place, bytes }),
        "the same by linear address, through the tables of its CPU 0",
        "ADDRESS is hexadecimal, with 0x or without; BYTES is 64, or up to 1024.\n\
         -- is a byte that is not mapped, or is not the guest's RAM.",
    ),
    entry(
        "walk",
        Shape::GuestAddressMayCpu(Command::Walk),
        "where a linear address leads: guest's tables, nested table",
        "ADDRESS is hexadecimal, with 0x or without. Whoever may reach it: rights are shown, not checked.",
    ),
    entry(
        "idt",
        Shape::GuestMayCpu(|guest, cpu| Command::Gates { guest, cpu }),
        "each gate: the guest's, what the CPU reads, granted by what",
        "A gate that is not granted is shown to the CPU as not present. The CPU is 0 if none is given.",
    ),
    entry(
        "msr",
        Shape::GuestAddressMayCpu(Command::Msr),
        "an MSR of a guest's CPU",
        "ADDRESS is the MSR's, hexadecimal. Those of the guest's state: EFER, segment bases, system calls.",
    ),
    entry(
        "kaslr",
        Shape::Guest(Command::Kaslr),
        "where a 64-bit Linux has put itself, by the tables of its CPU 0",
        "The offset is what gdb's add-symbol-file takes behind -o.",
    ),
    entry(
        "report",
        Shape::Guest(Command::Report),
        "all that is needed when a guest hangs, to be mailed",
        "guests, exits, irqs, iommu, regs, the top of each stack, and the log.",
    ),
    entry("log", Shape::Plain(Command::Log), "the last lines of the log, from memory", ""),
    entry("memory", Shape::Plain(Command::Sizes), "who has how much memory", ""),
    entry("start", Shape::Guest(Command::Start), "start a guest that has ended", ""),
    entry("stop", Shape::Guest(Command::Stop), "stop a guest, as if its power was cut", ""),
    entry("restart", Shape::Guest(Command::Restart), "stop a guest and start it afresh", ""),
    entry("reboot", Shape::Plain(Command::Reboot), "reset the machine", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_command_in_columns_and_tells_more_of_one() {
        let all = help(None);
        assert_eq!(all.len(), COMMANDS.len());
        assert_eq!(all[0], "help [COMMAND]              this list, or more of one command");
        assert!(
            all.iter().all(|line| line.len() < 100 && line.get(26..28) == Some("  ")),
            "{all:?}"
        );
        assert_eq!(
            help(Some("mem")),
            [
                "mem GUEST ADDRESS [BYTES]: bytes of a guest's RAM, by guest-physical address",
                "  ADDRESS is hexadecimal, with 0x or without; BYTES is 64, or up to 1024.",
            ]
        );
    }
}
