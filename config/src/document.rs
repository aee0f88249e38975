//! The part of TOML that `nexit.toml` needs, as a tree of tables in which each key and value knows its line.
//!
//! Read are comments, keys, `[table]` and `[[table]]` with a name in one piece, strings of all four kinds,
//! integers, booleans and lists of these. What else TOML has (names in several pieces, tables in braces, lists in
//! lists, floats, dates) no key takes: it is refused as such ([`Problem::Unread`]), not as a mistake. Invariant: a
//! text that is accepted is TOML and means the same to any other reader; one that is refused as
//! [`Problem::Syntax`] is refused by any other.
//!
//! Nothing here recurses, so that no text decides how deep the stack of the boot gets.

mod cursor;
mod string;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::error::{ConfigError, Problem};
use cursor::{Cursor, Position};

/// Keys and values in the order of the text; no key twice.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Table(Vec<(Key, Item)>);

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Key {
    /// Without its quotes.
    pub(crate) name: String,
    at: Position,
}

/// A value and its line.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Item {
    /// The value itself.
    pub(crate) value: Value,
    at: Position,
}

/// The value of a key.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Value {
    /// Without quotes and escapes.
    String(String),
    /// Of any notation.
    Integer(i64),
    /// `true` or `false`.
    Boolean(bool),
    /// Values in brackets, or the tables under lines `[[name]]`.
    List(Vec<Item>),
    /// The keys below a line `[name]` or `[[name]]`.
    Table(Table),
}

impl Table {
    /// Reads a whole text.
    ///
    /// # Errors
    /// The first place that is not TOML, or not in the supported subset.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut cursor = Cursor::new(text.strip_prefix('\u{feff}').unwrap_or(text));
        let mut file = Self::body(&mut cursor)?;
        while cursor.take("[") {
            let brackets = if cursor.take("[") { "]]" } else { "]" };
            cursor.skip_blanks();
            let key = Key::read(&mut cursor)?;
            if !cursor.take(brackets) {
                let what = format!("the name of a table is followed by {brackets}");
                return Err(cursor.syntax(what));
            }
            cursor.end_of_line()?;
            let item = Item { at: key.at, value: Value::Table(Self::body(&mut cursor)?) };
            if brackets == "]" {
                file.add(key, item)?;
            } else if let Some(tables) = file.tables_of(&key) {
                tables.push(item);
            } else {
                let at = key.at;
                file.add(key, Item { value: Value::List([item].into()), at })?;
            }
        }
        Ok(file)
    }

    /// The lines `key = value` up to the next line that begins with a bracket.
    fn body(cursor: &mut Cursor<'_>) -> Result<Self, ConfigError> {
        let mut table = Self::default();
        loop {
            cursor.skip_lines()?;
            if matches!(cursor.peek(), None | Some('[')) {
                return Ok(table);
            }
            let key = Key::read(cursor)?;
            if !cursor.take("=") {
                return Err(cursor.syntax("a key is followed by = and a value"));
            }
            cursor.skip_blanks();
            let item = Item::read(cursor)?;
            cursor.end_of_line()?;
            table.add(key, item)?;
        }
    }

    fn add(&mut self, key: Key, item: Item) -> Result<(), ConfigError> {
        if let Some((first, _)) = self.0.iter().find(|(other, _)| other.name == key.name) {
            let what = format!(
                "duplicate key \"{}\", already on line {}: keep one of them",
                key.name,
                first.line()
            );
            return Err(key.at.syntax(what));
        }
        self.0.push((key, item));
        Ok(())
    }

    /// The tables under lines `[[name]]`, if there were any. A list in brackets holds no table.
    fn tables_of(&mut self, key: &Key) -> Option<&mut Vec<Item>> {
        let (_, item) = self.0.iter_mut().find(|(other, _)| other.name == key.name)?;
        let Value::List(list) = &mut item.value else { return None };
        matches!(list.first()?.value, Value::Table(_)).then_some(list)
    }

    /// The value of a key.
    pub(crate) fn get(&self, name: &str) -> Option<&Item> {
        self.iter().find(|(key, _)| key.name == name).map(|(_, item)| item)
    }

    /// All keys with their values.
    pub(crate) fn iter(&self) -> core::slice::Iter<'_, (Key, Item)> {
        self.0.iter()
    }
}

impl Key {
    /// Its line, counted from 1.
    pub(crate) const fn line(&self) -> usize {
        self.at.line
    }

    /// Reads one, and the blanks behind it.
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ConfigError> {
        let at = cursor.position();
        let name = match cursor.peek() {
            Some(quote @ ('"' | '\'')) => string::in_one_line(cursor, quote)?,
            _ => cursor.take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(c)).into(),
        };
        if name.is_empty() && at == cursor.position() {
            return Err(cursor.syntax("a key is missing, of letters A-Z, a-z, digits, - and _"));
        }
        cursor.skip_blanks();
        if cursor.peek() == Some('.') {
            let what =
                "a name has one piece: write each key under the [[table]] that it belongs to";
            return Err(cursor.unread(what));
        }
        Ok(Self { name, at })
    }
}

impl Item {
    /// Its line, counted from 1.
    pub(crate) const fn line(&self) -> usize {
        self.at.line
    }

    /// A list's entries.
    pub(crate) fn list(&self) -> Option<&[Self]> {
        if let Value::List(list) = &self.value { Some(list) } else { None }
    }

    /// A string's text.
    pub(crate) fn string(&self) -> Option<&str> {
        if let Value::String(text) = &self.value { Some(text) } else { None }
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ConfigError> {
        let at = cursor.position();
        if !cursor.take("[") {
            return Self::single(cursor);
        }
        let mut list = Vec::new();
        loop {
            cursor.skip_lines()?;
            if cursor.take("]") {
                return Ok(Self { value: Value::List(list), at });
            }
            list.push(Self::single(cursor)?);
            cursor.skip_lines()?;
            if !cursor.take(",") && cursor.peek() != Some(']') {
                return Err(cursor.syntax("an entry of a list is followed by a comma or ]"));
            }
        }
    }

    /// Reads a value other than a list.
    fn single(cursor: &mut Cursor<'_>) -> Result<Self, ConfigError> {
        let at = cursor.position();
        let value = match cursor.peek() {
            Some(quote @ ('"' | '\'')) => Value::String(string::of_any_kind(cursor, quote)?),
            Some('[') => return Err(cursor.unread("no key takes a list in a list")),
            Some('{') => {
                let what = "write a table under a line [[name]], each key on a line of its own";
                return Err(cursor.unread(what));
            }
            _ => {
                let ends = |c: char| c.is_whitespace() || c.is_control() || "#,]}=\"'".contains(c);
                let word = cursor.take_while(|c| !ends(c));
                bare(word).ok_or_else(|| at.no_value(word))?
            }
        };
        Ok(Self { value, at })
    }
}

/// A value without quotes.
fn bare(word: &str) -> Option<Value> {
    match word {
        "true" => Some(Value::Boolean(true)),
        "false" => Some(Value::Boolean(false)),
        _ => integer(word).map(Value::Integer),
    }
}

fn integer(word: &str) -> Option<i64> {
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let prefixed = |(prefix, radix)| Some((word.strip_prefix(prefix)?, radix));
    let (number, radix) = prefixes.into_iter().find_map(prefixed).unwrap_or((word, 10));
    let digits =
        if radix == 10 { number.strip_prefix(['+', '-']).unwrap_or(number) } else { number };
    let well_formed = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_digit(radix));
    let leading_zero = radix == 10 && digits.len() > 1 && digits.starts_with('0');
    if leading_zero || !digits.split('_').all(well_formed) {
        return None;
    }
    i64::from_str_radix(&number.replace('_', ""), radix).ok()
}

impl Position {
    fn no_value(self, word: &str) -> ConfigError {
        let takes = "write a text in quotes, a whole number, true, false, or a list in [ ]";
        if word.is_empty() {
            return self.syntax(format!("a value is missing: {takes}"));
        }
        let what = format!("`{word}` is no value: {takes}");
        let number = word.trim_start_matches(['+', '-']);
        // A float, a date, a number that is too large: or a mistake in one.
        if number.starts_with(|c: char| c.is_ascii_digit()) || matches!(number, "inf" | "nan") {
            return self.unread(what);
        }
        self.syntax(what)
    }

    fn syntax(self, what: impl Into<String>) -> ConfigError {
        let problem = Problem::Syntax { column: self.column, what: what.into() };
        ConfigError { line: Some(self.line), problem }
    }

    fn unread(self, what: impl Into<String>) -> ConfigError {
        let problem = Problem::Unread { column: self.column, what: what.into() };
        ConfigError { line: Some(self.line), problem }
    }
}
