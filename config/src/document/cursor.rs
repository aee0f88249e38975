//! A place in the text that moves forward: blanks, comments, ends of lines.

use alloc::string::String;

use crate::error::ConfigError;

/// Line and column, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

pub(super) const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// What is not yet read.
pub(super) struct Cursor<'a> {
    rest: &'a str,
    at: Position,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { rest: text, at: Position { line: 1, column: 1 } }
    }

    pub(super) const fn position(&self) -> Position {
        self.at
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Without its end.
    pub(super) fn rest_of_line(&self) -> &'a str {
        let line = self.rest.split('\n').next().unwrap_or_default();
        line.strip_suffix('\r').unwrap_or(line)
    }

    pub(super) fn starts_with(&self, what: &str) -> bool {
        self.rest.starts_with(what)
    }

    /// The next character, taken.
    pub(super) fn next(&mut self) -> Option<char> {
        let mut rest = self.rest.chars();
        let next = rest.next()?;
        self.rest = rest.as_str();
        self.at = match next {
            '\n' => Position { line: self.at.line + 1, column: 1 },
            _ => Position { column: self.at.column + 1, ..self.at },
        };
        Some(next)
    }

    /// Takes `what` if it stands here.
    pub(super) fn take(&mut self, what: &str) -> bool {
        let here = self.starts_with(what);
        if here {
            what.chars().for_each(|_| _ = self.next());
        }
        here
    }

    /// Takes what `belongs`.
    pub(super) fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let before = self.rest;
        while self.peek().is_some_and(&belongs) {
            self.next();
        }
        before.strip_suffix(self.rest).unwrap_or(before)
    }

    /// Takes the end of a line, as Unix or Windows writes it.
    pub(super) fn take_newline(&mut self) -> Option<&'static str> {
        ["\n", "\r\n"].into_iter().find(|newline| self.take(newline))
    }

    pub(super) fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    /// Blanks, comments and ends of lines.
    pub(super) fn skip_lines(&mut self) -> Result<(), ConfigError> {
        loop {
            self.skip_blanks();
            self.skip_comment()?;
            if self.take_newline().is_none() {
                return Ok(());
            }
        }
    }

    fn skip_comment(&mut self) -> Result<(), ConfigError> {
        if self.take("#") {
            self.take_while(|c| c == '\t' || !c.is_ascii_control());
            if self.peek().is_some() && !self.starts_with("\n") && !self.starts_with("\r\n") {
                return Err(self.syntax("a comment contains a control character: remove it"));
            }
        }
        Ok(())
    }

    /// What follows a value or the name of a table: nothing but a comment.
    pub(super) fn end_of_line(&mut self) -> Result<(), ConfigError> {
        self.skip_blanks();
        self.skip_comment()?;
        if self.peek().is_none() || self.take_newline().is_some() {
            return Ok(());
        }
        Err(self.syntax("nothing may follow here: begin a new line, or a comment with #"))
    }

    pub(super) fn syntax(&self, what: impl Into<String>) -> ConfigError {
        self.at.syntax(what)
    }

    pub(super) fn unread(&self, what: impl Into<String>) -> ConfigError {
        self.at.unread(what)
    }
}
