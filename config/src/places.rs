//! On which line of the file each key stands, so that what is wrong with a value on some machine can be
//! said with its place, too.

use alloc::vec::Vec;

use crate::document::{Item, Key};

/// The lines of one table's keys, and of the entries of its lists. Tables that say the same are equal,
/// wherever they stand.
#[derive(Clone, Debug, Default)]
pub struct Places(Vec<KeyLine>);

#[derive(Clone, Copy, Debug)]
struct KeyLine {
    key: &'static str,
    /// Of an entry: which one.
    entry: Option<usize>,
    line: usize,
}

impl Places {
    /// Notes where a key stands, and the entries of its list.
    pub(crate) fn add(&mut self, known: &'static str, key: &Key, item: &Item) {
        self.0.push(KeyLine { key: known, entry: None, line: key.line() });
        for (index, entry) in item.list().into_iter().flatten().enumerate() {
            self.0.push(KeyLine { key: known, entry: Some(index), line: entry.line() });
        }
    }

    /// The line of `key`, counted from 1; `None` where the key is missing.
    #[must_use]
    pub fn line(&self, key: &str) -> Option<usize> {
        self.find(key, None)
    }

    /// The line of entry `index` of the list `key`, or else of the key.
    #[must_use]
    pub fn entry(&self, key: &str, index: usize) -> Option<usize> {
        self.find(key, Some(index)).or_else(|| self.line(key))
    }

    fn find(&self, key: &str, entry: Option<usize>) -> Option<usize> {
        self.0.iter().find(|place| place.key == key && place.entry == entry).map(|it| it.line)
    }
}

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Places {}
