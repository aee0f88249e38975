//! Columns: each as wide as its widest cell, numbers to the right.

use alloc::string::String;
use alloc::vec::Vec;

use crate::Lines;

/// Blanks between two columns.
const GAP: usize = 2;

/// The head of a column, and the side that its cells stand on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// Text.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Column {
    const fn head(self) -> &'static str {
        match self {
            Self::Left(head) | Self::Right(head) => head,
        }
    }
}

/// Rows under their heads.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of these columns, without rows.
    #[must_use]
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Cells beyond the columns are left out, missing ones are empty.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The head and the rows.
    #[must_use]
    pub fn lines(&self) -> Lines {
        let head: Vec<&str> = self.columns.iter().map(|column| column.head()).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(String::as_str).collect::<Vec<_>>());
        let all: Vec<Vec<&str>> = core::iter::once(head).chain(rows).collect();
        let width = |at: usize| {
            let cells = all.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        all.iter().map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[&str], widths: &[usize]) -> String {
        let mut line = String::new();
        for (at, (column, width)) in self.columns.iter().zip(widths).enumerate() {
            let cell = row.get(at).copied().unwrap_or_default();
            let blanks = width.saturating_sub(cell.chars().count());
            let (before, behind) = match column {
                Column::Left(_) => (0, blanks),
                Column::Right(_) => (blanks, 0),
            };
            let gap = if at == 0 { 0 } else { GAP };
            line.extend(core::iter::repeat_n(' ', gap + before));
            line.push_str(cell);
            line.extend(core::iter::repeat_n(' ', behind));
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_stand_to_the_right() {
        let mut table = Table::new(&[Column::Left("reason"), Column::Right("n"), Column::Left("")]);
        table.row(["io".into(), "1234".into(), "x".into()]);
        table.row(["nested_page_fault".into(), "5".into()]);
        assert_eq!(
            table.lines(),
            ["reason                n", "io                 1234  x", "nested_page_fault     5"]
        );
        assert_eq!(Table::new(&[Column::Left("only")]).lines(), ["only"]);
    }
}
