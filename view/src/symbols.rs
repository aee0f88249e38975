//! The names of a Linux' functions, from its System.map or from what root reads of its `/proc/kallsyms`: lines of an address in
//! hexadecimal, a letter, and a name.
//!
//! The list is searched where it lies, from the first line to the last, for all addresses at once: it need not be in order,
//! and nothing is allocated for it. What is no such line is passed over.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arch::machine::GuestMemory;
use insn::linux::linux_text;

use crate::Lines;
use crate::registers::Snapshot;

/// So far from its symbol an address is still of that function: the largest of Linux have some 10 KiB.
const MAX_OFFSET: u64 = 1 << 16;
/// So much of a name is shown.
const MAX_NAME: usize = 64;
/// Where a 64-bit Linux and its modules are. What is below is no code of its.
const CODE: u64 = 0xffff_ffff_8000_0000;

/// A symbol: where it is, the letter, and the name.
struct Symbol<'a> {
    address: u64,
    is_code: bool,
    name: &'a [u8],
}

fn symbols(list: &[u8]) -> impl Iterator<Item = Symbol<'_>> {
    list.split(|byte| *byte == b'\n').filter_map(symbol)
}

fn symbol(line: &[u8]) -> Option<Symbol<'_>> {
    const DIGITS: usize = 16;
    let (digits, rest) = line.split_at_checked(DIGITS)?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let address =
        digits.iter().try_fold(0, |all: u64, byte| Some(all << 4 | u64::from(digit(*byte)?)))?;
    let [b' ', letter, b' ', name @ ..] = rest else { return None };
    let name = name.split(u8::is_ascii_whitespace).next().filter(|name| !name.is_empty())?;
    Some(Symbol { address, is_code: matches!(letter, b't' | b'T' | b'w' | b'W'), name })
}

/// The list of a guest whose Linux has its text at `text`.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    list: &'a [u8],
    /// From where the list has them to where they are.
    moved: u64,
}

impl<'a> Symbols<'a> {
    /// `None` where the list says nothing of `_text`.
    #[must_use]
    pub fn new(list: &'a [u8], text: u64) -> Option<Self> {
        let own = symbols(list).find(|symbol| symbol.name == b"_text")?;
        Some(Self { list, moved: text.wrapping_sub(own.address) })
    }

    /// The function of each address, and how far into it that is.
    fn find(&self, addresses: &[u64]) -> Vec<Option<(&'a [u8], u64)>> {
        let mut found: Vec<Option<(&[u8], u64)>> = alloc::vec![None; addresses.len()];
        for symbol in symbols(self.list).filter(|symbol| symbol.is_code) {
            let address = symbol.address.wrapping_add(self.moved);
            for (place, wanted) in found.iter_mut().zip(addresses) {
                let offset = wanted.wrapping_sub(address);
                if offset < place.map_or(MAX_OFFSET, |(_, nearest)| nearest) {
                    *place = Some((symbol.name, offset));
                }
            }
        }
        found
    }

    /// Lines about RIP and the words at the top of a stack that may be return addresses.
    #[must_use]
    pub fn lines(&self, rip: u64, stack: u64, words: &[u64]) -> Lines {
        let places = (0..).map(|index: u64| stack.wrapping_add(8 * index));
        let on_stack = places.zip(words).filter(|(_, word)| **word >= CODE);
        let (mut titles, mut addresses) = (alloc::vec![String::from("rip")], alloc::vec![rip]);
        for (place, word) in on_stack {
            titles.push(format!("{place:016x}"));
            addresses.push(*word);
        }
        let found = self.find(&addresses);
        let named = titles.iter().zip(&addresses).zip(found);
        named
            .filter_map(|((title, address), found)| {
                let (name, offset) = found?;
                let name = String::from_utf8_lossy(name.get(..MAX_NAME).unwrap_or(name));
                Some(format!("  {title:>16}: {address:016x} {name}+{offset:#x}"))
            })
            .collect()
    }
}

/// Lines about where a CPU is, and the words at the top of its stack: by the names of `list`, which its guest was given.
#[must_use]
pub fn names(cpu: &Snapshot, list: &[u8], memory: &impl GuestMemory, words: &[u64]) -> Lines {
    let Some(text) = linux_text(cpu.paging, cpu.calls.lstar, memory) else {
        return ["  its tables and system calls are no 64-bit Linux' now: no names".into()].into();
    };
    let Some(symbols) = Symbols::new(list, text) else {
        return ["  the file of the key `symbols` has no line for _text: it is no list of a Linux"
            .into()]
        .into();
    };
    symbols.lines(cpu.code_address(), cpu.stack(), words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &[u8] = b"0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _text\n\
        ffffffff81000000 T _stext\n\
        ffffffff81000040 T secondary_startup_64\n\
        ffffffff81200000 t default_idle\n\
        ffffffff81200020 t do_idle\n\
        ffffffff82000000 D jiffies\n\
        ffffffffc0000000 t probe\t[nvme]\n";
    const MOVED: u64 = 0x2600_0000;

    fn moved() -> Symbols<'static> {
        Symbols::new(LIST, 0xffff_ffff_8100_0000 + MOVED).unwrap()
    }

    #[test]
    fn rip_and_return_addresses_have_the_names_of_functions_where_linux_has_put_itself() {
        let [rip, idle] = [0xffff_ffff_8120_000b, 0xffff_ffff_8120_0021].map(|at: u64| at + MOVED);
        let lines = moved().lines(rip, 0x1000, &[7, idle, 0xffff_ffff_8200_0001 + MOVED]);
        assert_eq!(
            lines,
            [
                "               rip: ffffffffa720000b default_idle+0xb",
                "  0000000000001008: ffffffffa7200021 do_idle+0x1",
            ],
            "neither a number nor data"
        );
    }

    #[test]
    fn a_list_of_this_boot_needs_no_offset_and_has_modules() {
        let own = Symbols::new(LIST, 0xffff_ffff_8100_0000).unwrap();
        assert_eq!(own.find(&[0xffff_ffff_c000_0010]), [Some((&b"probe"[..], 0x10))]);
        assert_eq!(own.find(&[0xffff_ffff_8130_0000]), [None], "too far from any");
    }

    #[test]
    fn what_is_no_list_has_no_names() {
        // Debian's.
        let empty = &b"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n"[..];
        for list in [empty, &b""[..], b"\x7fELF\n\n  T a"] {
            assert!(Symbols::new(list, 0).is_none());
        }
        let cut = &LIST[..LIST.len() - 20];
        let own = Symbols::new(cut, 0xffff_ffff_8100_0000).unwrap();
        assert_eq!(own.find(&[0xffff_ffff_c000_0010]), [None]);
    }

    proptest! {
        #[test]
        fn whatever_the_list_is_each_name_is_of_it_and_near(
            list in prop_oneof![
                any::<Vec<u8>>(),
                "(ffffffff8[0-9a-f]{7} [tTdD] [a-z_]{1,8}\n?){0,20}".prop_map(String::into_bytes),
            ],
            addresses: [u64; 4], text: u64,
        ) {
            let own = Symbols { list: &list, moved: text };
            for (name, offset) in own.find(&addresses).into_iter().flatten() {
                prop_assert!(offset < MAX_OFFSET);
                prop_assert!(list.windows(name.len()).any(|part| part == name));
            }
            let _ = (Symbols::new(&list, text), own.lines(addresses[0], text, &addresses));
        }
    }
}
