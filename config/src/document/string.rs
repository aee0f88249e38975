//! Strings: in `"` with escapes, in `'` as they stand, and both in three quotes over several lines.

use alloc::format;
use alloc::string::String;

use super::cursor::{Cursor, is_blank};
use crate::error::ConfigError;

/// Reads a string that begins with `quote` here.
pub(super) fn of_any_kind(cursor: &mut Cursor<'_>, quote: char) -> Result<String, ConfigError> {
    let three = [quote; 3].iter().collect::<String>();
    if !cursor.starts_with(&three) {
        return in_one_line(cursor, quote);
    }
    let start = cursor.position();
    cursor.take(&three);
    cursor.take_newline();
    let mut text = String::new();
    loop {
        if cursor.take(&three) {
            // One or two more belong to the text.
            for _ in 0..2 {
                if cursor.peek() == Some(quote) {
                    text.extend(cursor.next());
                }
            }
            return Ok(text);
        } else if let Some(newline) = cursor.take_newline() {
            text.push_str(newline);
        } else if cursor.peek().is_none() {
            let what = format!("the text that begins here has no end: close it with {three}");
            return Err(start.syntax(what));
        } else if !(quote == '"' && skip_folded(cursor)) {
            character(cursor, quote, &mut text)?;
        }
    }
}

/// Reads a string that begins with one `quote` here and ends on the same line.
pub(super) fn in_one_line(cursor: &mut Cursor<'_>, quote: char) -> Result<String, ConfigError> {
    let start = cursor.position();
    cursor.next();
    let mut text = String::new();
    loop {
        match cursor.peek() {
            Some(next) if next == quote => {
                cursor.next();
                return Ok(text);
            }
            None | Some('\n' | '\r') => {
                let what = format!(
                    "the text that begins here has no end: close it with {quote} on this line"
                );
                return Err(start.syntax(what));
            }
            Some(_) => character(cursor, quote, &mut text)?,
        }
    }
}

/// Takes a backslash at the end of a line, and all blanks and line ends up to the text that goes on.
fn skip_folded(cursor: &mut Cursor<'_>) -> bool {
    let line = cursor.rest_of_line();
    let folded = line.strip_prefix('\\').is_some_and(|rest| rest.chars().all(is_blank));
    if folded {
        cursor.next();
        cursor.skip_blanks();
        while cursor.take_newline().is_some() {
            cursor.skip_blanks();
        }
    }
    folded
}

/// Takes one character, written as itself or as an escape.
fn character(cursor: &mut Cursor<'_>, quote: char, text: &mut String) -> Result<(), ConfigError> {
    let here = cursor.position();
    match cursor.next() {
        Some('\\') if quote == '"' => {
            let unescaped = escape(cursor).ok_or_else(|| {
                here.syntax("no such escape: write \\\\ for a backslash, or the text in ' ' instead of \" \"")
            })?;
            text.push(unescaped);
        }
        Some(c) if c.is_ascii_control() && c != '\t' => {
            return Err(here.syntax("a string contains a control character: remove it"));
        }
        other => text.extend(other),
    }
    Ok(())
}

/// What stands behind a backslash.
fn escape(cursor: &mut Cursor<'_>) -> Option<char> {
    let digits = match cursor.next()? {
        'b' => return Some('\u{8}'),
        't' => return Some('\t'),
        'n' => return Some('\n'),
        'f' => return Some('\u{c}'),
        'r' => return Some('\r'),
        'e' => return Some('\u{1b}'),
        same @ ('"' | '\\') => return Some(same),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    let mut code = 0;
    for _ in 0..digits {
        code = code << 4 | cursor.next()?.to_digit(16)?;
    }
    char::from_u32(code)
}
