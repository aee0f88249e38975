//! Counting lines of code: not blank, not comment, not test.
//!
//! A small lexer blanks out comments and the insides of literals, so that neither can look like
//! code; then items under `#[cfg(test)]` are taken away with whatever they hold.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::failure::{OrFailed, Result};

const TEST_ATTRIBUTE: &str = "#[cfg(test)]";

/// A source file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its text line by line, comments, tests and the insides of literals taken away.
    code: String,
}

impl Source {
    /// Lines of code.
    pub(crate) fn count(&self) -> usize {
        count(&self.code)
    }

    /// `unsafe { … }` blocks.
    pub(crate) fn unsafe_blocks(&self) -> usize {
        let rests = words(&self.code, "unsafe").map(|at| self.code.get(at..).unwrap_or_default());
        rests.filter(|rest| rest.trim_start().starts_with('{')).count()
    }

    /// Lines of code of the functions that `touched` lines are in, the whole of each, and of lines outside of all
    /// functions that are touched themselves (a macro's).
    pub(crate) fn count_touched(&self, touched: &BTreeSet<usize>) -> usize {
        let functions = functions(&self.code);
        let mut all = BTreeSet::new();
        for line in touched {
            match functions.iter().find(|function| function.contains(line)) {
                Some(function) => all.extend(function.clone()),
                None => _ = all.insert(*line),
            }
        }
        let lines = self.code.lines().zip(1..);
        lines.filter(|(text, line)| all.contains(line) && !text.trim().is_empty()).count()
    }
}

/// Whether a test stands below `folder`, in tests' files or beside what it tests.
pub(crate) fn has_tests(folder: &Path) -> Result<bool> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    for path in files {
        let text = fs::read_to_string(&path).or_failed("read", &path)?;
        if code_of(&text).contains("#[test]") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All Rust and assembly files below `folder`, without tests.
pub(crate) fn sources(folder: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    let mut sources = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).or_failed("read", &path)?;
        sources.push((path, code_of(&text)));
    }
    // `#[cfg(test)] mod tests;` takes its file away.
    let excluded: Vec<_> = sources.iter().flat_map(|(path, code)| test_files(path, code)).collect();
    sources.retain(|(path, _)| {
        !excluded.iter().any(|test| path.with_extension("") == *test || path.starts_with(test))
    });
    let source = |(path, code): (PathBuf, String)| Source { path, code: without_tests(&code) };
    Ok(sources.into_iter().map(source).collect())
}

/// The places behind a word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let in_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word).filter_map(move |(at, _)| {
        let end = at + word.len();
        let before = code.get(..at).and_then(|text| text.chars().next_back());
        let after = code.get(end..).and_then(|text| text.chars().next());
        (!before.is_some_and(in_word) && !after.is_some_and(in_word)).then_some(end)
    })
}

/// The lines of each function that has a body and is in no other one, the first line being 1.
fn functions(code: &str) -> Vec<RangeInclusive<usize>> {
    let line = |at: usize| 1 + code.get(..at).map_or(0, |text| text.matches('\n').count());
    let mut functions = Vec::new();
    let mut end = 0;
    for at in words(code, "fn") {
        let rest = code.get(at..).unwrap_or_default();
        let named =
            rest.trim_start().starts_with(|letter: char| letter.is_alphabetic() || letter == '_');
        if at < end || !named {
            continue;
        }
        end = at + item_length(rest);
        if code.get(..end).is_some_and(|text| text.ends_with('}')) {
            functions.push(line(at)..=line(end));
        }
    }
    functions
}

fn collect(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).or_failed("list", folder)? {
        let path = entry.or_failed("list", folder)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            collect(&path, files)?;
        } else if matches!(extension, Some("rs" | "s" | "S")) {
            files.push(path);
        }
    }
    Ok(())
}

fn count(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// The modules, as paths without extension, that `code` in `path` declares for tests only.
fn test_files(path: &Path, code: &str) -> Vec<std::path::PathBuf> {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let parent = path.parent().unwrap_or(Path::new(""));
    let folder = match name {
        "lib" | "main" | "mod" => parent.to_path_buf(),
        other => parent.join(other),
    };
    let items = code.split(TEST_ATTRIBUTE).skip(1);
    let modules = items.filter_map(|item| {
        let (head, _) = item.split_once([';', '{'])?;
        let declared = item.as_bytes().get(head.len()) == Some(&b';');
        let name = head.split_whitespace().skip_while(|word| *word != "mod").nth(1)?;
        declared.then(|| folder.join(name))
    });
    modules.collect()
}

/// `code` without the items under `#[cfg(test)]`, and empty where the whole file is under it.
fn without_tests(code: &str) -> String {
    if code.contains("#![cfg(test)]") {
        return String::new();
    }
    // What is taken away leaves its empty lines: a line keeps its number.
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, item)) = rest.split_once(TEST_ATTRIBUTE) {
        kept.push_str(before);
        let (item, tail) = item.split_at(item_length(item));
        kept.extend(item.chars().filter(|letter| *letter == '\n'));
        rest = tail;
    }
    kept + rest
}

/// Length of the item at the start of `code`: to its `;`, or to the end of its braces.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, letter) in code.char_indices() {
        match letter {
            '{' | '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The text with comments removed and the insides of string and character literals replaced, line
/// by line: a line that was only comment becomes blank.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let (length, kind) = token(rest, code.chars().next_back());
        let (piece, tail) = rest.split_at(length.max(letter.len_utf8()).min(rest.len()));
        match kind {
            Kind::Code => code.push_str(piece),
            Kind::Comment => code.extend(piece.chars().filter(|letter| *letter == '\n')),
            Kind::Literal => {
                code.extend(piece.chars().map(|c| if c == '\n' { c } else { 'x' }));
            }
        }
        rest = tail;
    }
    code
}

enum Kind {
    Code,
    Comment,
    Literal,
}

/// Length and kind of the token at the start of `text`; `before` is the character in front of it.
fn token(text: &str, before: Option<char>) -> (usize, Kind) {
    let in_word = before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    if text.starts_with("//") {
        return (text.find('\n').unwrap_or(text.len()), Kind::Comment);
    }
    if text.starts_with("/*") {
        return (block_comment(text), Kind::Comment);
    }
    if !in_word && let Some(length) = raw_string(text) {
        return (length, Kind::Literal);
    }
    if text.starts_with('"') {
        return (quoted(text, '"'), Kind::Literal);
    }
    // 'a' and '\n' are characters; 'a without a closing quote is a lifetime.
    let mut letters = text.chars();
    if letters.next() == Some('\'')
        && let Some(first) = letters.next()
        && (first == '\\' || letters.next() == Some('\''))
    {
        return (quoted(text, '\''), Kind::Literal);
    }
    (1, Kind::Code)
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let step = if rest.starts_with("/*") {
            depth += 1;
            2
        } else if rest.starts_with("*/") {
            depth = depth.saturating_sub(1);
            2
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of `r"…"`, `br#"…"#` and their like.
fn raw_string(text: &str) -> Option<usize> {
    let letters = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - letters.len();
    let hashes_on = letters.strip_prefix('r').filter(|_| prefix <= 1)?;
    let body = hashes_on.trim_start_matches('#');
    let hashes = hashes_on.len() - body.len();
    let body = body.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let head = prefix + 1 + hashes + 1;
    Some(body.find(&end).map_or(text.len(), |at| head + at + end.len()))
}

/// Length of a literal between `quote`s, with escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return at + letter.len_utf8();
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> usize {
        count(&without_tests(&code_of(text)))
    }

    #[test]
    fn blanks_and_comments_do_not_count() {
        assert_eq!(lines("//! doc\n\nfn a() {} // why\n/* a\n/* b */\n*/\n  /// doc\nlet b;\n"), 2);
    }

    #[test]
    fn a_comment_inside_a_literal_is_code() {
        let text = "let a = \"// no /* comment\";\nlet b = r#\"\"/*\"#;\nlet c = '\"';\nlet d;\n";
        assert_eq!(lines(text), 4);
        assert_eq!(lines("let a = \"\\\"//\";\nlet e: &'static str = \"x\";\n"), 2);
        assert_eq!(lines("let a = b\"x\"; let b = '\\'';\nlet c = '\\\\';\n// x"), 2);
    }

    #[test]
    fn a_text_over_many_lines_counts_line_by_line() {
        assert_eq!(lines("asm!(\"\n  mov // not a comment\n  ret\n\");\n"), 4);
    }

    #[test]
    fn test_modules_functions_and_imports_do_not_count() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { if x { \"}\"; } }\n}\nfn c() {}\n";
        assert_eq!(lines(text), 2);
        assert_eq!(lines("#[cfg(test)]\n#[allow(x)]\nuse a;\nfn c() {}\n"), 1);
        assert_eq!(lines("#[cfg(test)]\nfn f(a: [u8; 2]) {\n x;\n}\nfn c() {}\n"), 1);
        assert_eq!(lines("#![cfg(test)]\nfn c() {}\n"), 0);
    }

    fn source(text: &str) -> Source {
        Source { path: PathBuf::new(), code: without_tests(&code_of(text)) }
    }

    #[test]
    fn a_function_that_is_touched_counts_with_all_its_lines() {
        let source = source(
            "struct A {\n  b: u8,\n}\n#[cfg(test)]\nfn t() {\n}\nimpl A {\n  fn a(&self) -> [u8; 2] {\n\n    \
             fn inner() { x }\n    x\n  }\n  fn b(f: fn(u8)) -> u8;\n  fn c() {\n    y\n  }\n}\n",
        );
        let touched = |lines: &[usize]| source.count_touched(&lines.iter().copied().collect());
        assert_eq!(functions(&source.code), [8..=12, 14..=16]);
        assert_eq!((touched(&[11]), touched(&[10, 8]), touched(&[15])), (4, 4, 3));
        assert_eq!(
            (touched(&[2]), touched(&[5, 9]), touched(&[])),
            (1, 4, 0),
            "a blank line is none"
        );
    }

    #[test]
    fn unsafe_blocks_are_counted_and_unsafe_functions_are_not() {
        let text = "unsafe fn a() {}\nlet b = unsafe { c() };\nlet d = unsafe\n{ e() };\n// unsafe { }\n\
                    #[unsafe(no_mangle)]\nunsafe impl Send for X {}\n";
        assert_eq!(source(text).unsafe_blocks(), 2);
    }

    #[test]
    fn test_modules_in_files_of_their_own_are_found() {
        let code = "#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod inline { fn x() {} }\n";
        assert_eq!(test_files(Path::new("src/lib.rs"), code), [PathBuf::from("src/tests")]);
        assert_eq!(test_files(Path::new("src/a.rs"), code), [PathBuf::from("src/a/tests")]);
    }

    proptest! {
        #[test]
        fn every_text_is_counted_and_no_line_is_counted_twice(
            pieces in prop::collection::vec("(\"|'|r#|/\\*|\\*/|//|\n|\\\\|x|é|#\\[cfg\\(test\\)\\]|\\{|\\}|;)", 0..40),
        ) {
            let text = pieces.concat();
            prop_assert!(lines(&text) <= text.lines().count());
            prop_assert_eq!(code_of(&text).matches('\n').count(), text.matches('\n').count());
        }
    }
}
