//! How many inputs each target has taken: the table in `docs/fuzzing.md`, which the program keeps.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::TARGETS;

const BEGIN: &str = "<!-- counts: kept by `make fuzz` -->\n";
const END: &str = "<!-- end of counts -->";

/// Inputs by target.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts(pub BTreeMap<String, u64>);

impl Counts {
    /// The counts that a page has.
    ///
    /// # Errors
    /// When the page has no table of them.
    pub fn of(page: &str) -> Result<Self, String> {
        let (_, table, _) = parts(page)?;
        let row = |line: &str| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next()?.trim_matches('`').to_owned();
            let count = cells.next()?.replace(',', "").parse().ok()?;
            Some((name, count))
        };
        let rows = table.lines().filter_map(row);
        Ok(Self(rows.filter(|(name, count)| known(name) && *count > 0).collect()))
    }

    /// The page with these counts in its table.
    ///
    /// # Errors
    /// When the page has no table of them.
    pub fn put_into(&self, page: &str) -> Result<String, String> {
        let (before, _, after) = parts(page)?;
        let mut table = String::from("| Target | Inputs | What is claimed |\n|---|--:|---|\n");
        for target in TARGETS {
            let count = self.0.get(target.name).copied().unwrap_or(0);
            let _ =
                writeln!(table, "| `{}` | {} | {} |", target.name, grouped(count), target.claim);
        }
        let _ = writeln!(table, "| all | {} | |", grouped(self.0.values().sum()));
        Ok(format!("{before}{BEGIN}{table}{END}{after}"))
    }

    /// Adds what a target has taken to a page.
    ///
    /// # Errors
    /// When the page cannot be read or written, or has no table of counts.
    pub fn add(page: &Path, target: &str, inputs: u64) -> Result<(), String> {
        let told = |error: std::io::Error| format!("{}: {error}", page.display());
        let text = fs::read_to_string(page).map_err(told)?;
        let mut counts = Self::of(&text)?;
        *counts.0.entry(target.to_owned()).or_default() += inputs;
        fs::write(page, counts.put_into(&text)?).map_err(told)
    }
}

fn known(name: &str) -> bool {
    TARGETS.iter().any(|target| target.name == name)
}

fn parts(page: &str) -> Result<(&str, &str, &str), String> {
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (table, after) = rest.split_once(END)?;
        Some((before, table, after))
    });
    parts.ok_or_else(|| format!("the page has no table between {:?} and {END:?}", BEGIN.trim_end()))
}

/// With a comma every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_in_the_page() {
        let page = format!("before\n{BEGIN}{END}\nafter");
        let counts = Counts([("dmar".to_owned(), 1_234_567), ("elf".to_owned(), 3)].into());
        let page = counts.put_into(&page).unwrap();
        assert!(page.contains("| `dmar` | 1,234,567 |") && page.contains("| all | 1,234,570 | |"));
        assert_eq!(Counts::of(&page), Ok(counts.clone()));
        assert_eq!(counts.put_into(&page), Ok(page));
    }

    #[test]
    fn the_page_in_the_tree_has_the_table_of_these_targets() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fuzzing.md");
        let page = fs::read_to_string(path).unwrap();
        assert_eq!(Counts::of(&page).unwrap().put_into(&page), Ok(page));
    }
}
