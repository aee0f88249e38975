//! `nexit symbolize`: the hypervisor's log with the functions that its backtraces are of.
//!
//! The hypervisor logs addresses (`backtrace: at …`, `backtrace: from …`); names and lines are in its image.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use addr2line::Context;
use gimli::{DwarfSections, EndianSlice, LittleEndian, SectionId};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::built;
use crate::cli::SymbolizeArgs;
use crate::failure::{Failure, OrFailed as _, Result};

/// Prints the log of `args`, and below each line of a backtrace what is at its addresses.
pub(crate) fn print(args: &SymbolizeArgs) -> Result<()> {
    let log = fs::read(&args.log).or_failed("read", &args.log)?;
    let path = built::image(&args.images)?;
    let image = fs::read(&path).or_failed("read", &path)?;
    let text = symbolize(&String::from_utf8_lossy(&log), &image)?;
    print!("{text}");
    Ok(())
}

/// What [`print()`] prints.
fn symbolize(log: &str, image: &[u8]) -> Result<String> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::Failed(format!("no image that can be read: {error}"))
    };
    let file = object::File::parse(image).map_err(|error| failed(&error))?;
    let section = |id: SectionId| {
        let data = file.section_by_name(id.name()).and_then(|s| s.uncompressed_data().ok());
        Ok::<_, gimli::Error>(data.unwrap_or(Cow::Borrowed(&[])))
    };
    let sections = DwarfSections::load(section).map_err(|error| failed(&error))?;
    let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
    let context = Context::from_dwarf(dwarf).map_err(|error| failed(&error))?;
    let mut text = String::new();
    let mut found = false;
    for line in log.lines() {
        let _ = writeln!(text, "{}", line.trim_start_matches('\x1e'));
        for (address, is_return) in addresses(line) {
            found = true;
            // A return address is behind its call, which may be the last of its line and function.
            let frames = frames(&context, &file, address - u64::from(is_return && address > 0));
            let _ = writeln!(text, "    {address:#x} {}", frames.join("\n        inlined in "));
        }
    }
    if found { Ok(text) } else { Err(Failure::Failed("the log has no backtrace".to_owned())) }
}

/// The addresses of a line of a backtrace, and whether each is a return address.
fn addresses(line: &str) -> Vec<(u64, bool)> {
    let Some((_, rest)) = line.split_once("nexit: backtrace: ") else { return Vec::new() };
    let mut words = rest.split_whitespace();
    let is_return = match words.next() {
        Some("at") => false,
        Some("from") => true,
        _ => return Vec::new(),
    };
    let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    words.map_while(number).map(|address| (address, is_return)).collect()
}

const UNKNOWN: &str = "?";

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The function at an address, and those that it is inlined in, the innermost first.
fn frames(context: &Context<Slice<'_>>, file: &object::File<'_>, address: u64) -> Vec<String> {
    let mut names = Vec::new();
    // Functions that the linker has left out stand in the tables at address 0.
    if !in_code(file, address) {
        return vec![UNKNOWN.to_owned()];
    }
    if let Ok(mut frames) = context.find_frames(address).skip_all_loads() {
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.as_ref().and_then(|name| name.demangle().ok());
            let name = name.map_or_else(|| UNKNOWN.to_owned(), Cow::into_owned);
            let place = frame.location.and_then(|at| Some((at.file?, at.line?)));
            names.push((name, place));
        }
    }
    // Line tables name functions without their modules; the symbol has them, but is only that of the outermost.
    match (names.last_mut(), symbol(file, address)) {
        (Some((name, _)), Some(symbol)) => *name = symbol,
        (None, symbol) => names.push((symbol.unwrap_or_else(|| UNKNOWN.to_owned()), None)),
        (Some(_), None) => {}
    }
    let text = |(name, place): (String, Option<(&str, u32)>)| match place {
        Some((file, line)) => format!("{name} at {}:{line}", short(file)),
        None => name,
    };
    names.into_iter().map(text).collect()
}

fn in_code(file: &object::File<'_>, address: u64) -> bool {
    file.sections().any(|section| {
        let offset = address.checked_sub(section.address());
        section.kind() == object::SectionKind::Text
            && offset.is_some_and(|offset| offset < section.size())
    })
}

/// The symbol that an address is in, or behind where it has no size: of assembly there is nothing else.
fn symbol(file: &object::File<'_>, address: u64) -> Option<String> {
    let candidate = |symbol: &object::Symbol<'_, '_>| {
        !symbol.is_undefined()
            && symbol.name().is_ok_and(|name| !name.is_empty())
            && address
                .checked_sub(symbol.address())
                .is_some_and(|offset| symbol.size() == 0 || offset < symbol.size())
    };
    let nearest = file.symbols().filter(candidate).max_by_key(object::ObjectSymbol::address);
    let name = nearest?.name().ok()?;
    Some(format!("{:#}", rustc_demangle::demangle(name)))
}

/// A path of a source file without the folder that the project, or Rust's library, is in.
fn short(path: &str) -> &str {
    if let Some((_, library)) = path.split_once("/rust/library/") {
        return library;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    let relative = Path::new(path).strip_prefix(root).ok().and_then(Path::to_str);
    relative.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_addresses_of_a_backtrace_are_looked_up() {
        assert_eq!(addresses("\x1enexit: backtrace: at 0x201000"), [(0x20_1000, false)]);
        let two = [(0x20_1000, true), (0x20_2000, true)];
        assert_eq!(addresses("\x1enexit: backtrace: from 0x201000 0x202000\r"), two);
        for none in [
            "nexit: backtrace: none, as 0x10 is in no stack",
            "nexit: guest linux: rip 0x201000",
            "backtrace: from 0x201000",
            "nexit: backtrace: from",
            "nexit: backtrace: from 201000",
        ] {
            assert_eq!(addresses(none), [], "{none}");
        }
    }

    #[test]
    fn this_very_program_finds_its_own_function_and_line_by_address() {
        let path = std::env::current_exe().unwrap();
        let program = fs::read(path).unwrap();
        let file = object::File::parse(&*program).unwrap();
        // The function, and none of the closures in it, in either mangling.
        let is_closure = |name: &str| name.contains("closure") || name.starts_with("_RNC");
        let own = file.symbols().find(|symbol| {
            let name = symbol.name().unwrap_or_default();
            name.contains("symbolize9addresses") && !is_closure(name) && symbol.size() > 0
        });
        let own = own.unwrap().address();
        let log = format!("boot\n\x1enexit: backtrace: at {own:#x}\n");
        let text = symbolize(&log, &program).unwrap();
        let line = text.lines().nth(2).unwrap();
        assert!(line.contains("symbolize::addresses at nexit/src/symbolize.rs:"), "{text}");
        let behind = format!("nexit: backtrace: from {:#x}", own + 1);
        let text = symbolize(&behind, &program).unwrap();
        assert!(
            text.contains("symbolize::addresses"),
            "a return address is behind its call: {text}"
        );
    }

    #[test]
    fn what_is_no_image_or_no_backtrace_is_said() {
        assert!(symbolize("nexit: backtrace: at 0x10", b"no ELF").is_err());
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = symbolize("nexit: hello", &program).unwrap_err();
        assert_eq!(error.to_string(), "the log has no backtrace");
        let text = symbolize("nexit: backtrace: from 0x1", &program).unwrap();
        assert!(text.contains("0x1 ?"), "{text}");
    }
}
