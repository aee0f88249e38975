//! What the programs `zoo`, `fidelity` and `mutants` share: each checks some or all rows of a list and writes a page
//! of `docs/`.

use std::fs;

/// `[--output FILE] [NAME …]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arguments {
    /// The page to write; none is written without it.
    output: Option<String>,
    /// The rows to check; all if empty.
    names: Vec<String>,
}

impl Arguments {
    /// Reads the process's arguments. `known` lists the names that may be given.
    ///
    /// # Errors
    /// One sentence: an unknown option or name, or `--output` without a file.
    pub fn read(known: &[String]) -> Result<Self, String> {
        Self::parse(std::env::args().skip(1), known)
    }

    fn parse(
        mut arguments: impl Iterator<Item = String>,
        known: &[String],
    ) -> Result<Self, String> {
        let mut parsed = Self::default();
        while let Some(argument) = arguments.next() {
            if argument == "--output" {
                let file = arguments.next().filter(|file| !file.starts_with("--"));
                parsed.output = Some(file.ok_or("--output needs a file")?);
            } else if known.contains(&argument) {
                parsed.names.push(argument);
            } else {
                return Err(format!("there is no {argument}: the names are {}", known.join(", ")));
            }
        }
        Ok(parsed)
    }

    /// Whether the row `name` is to be checked.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|chosen| chosen == name)
    }

    /// Writes the page.
    ///
    /// # Errors
    /// One sentence: the file cannot be written.
    pub fn write(&self, page: &str) -> Result<(), String> {
        let Some(output) = &self.output else { return Ok(()) };
        fs::write(output, page).map_err(|error| format!("cannot write {output}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, String> {
        let known = ["qemu", "bochs"].map(str::to_owned);
        Arguments::parse(arguments.iter().map(|argument| (*argument).to_owned()), &known)
    }

    #[test]
    fn without_names_every_row_is_selected() {
        let arguments = parse(&["--output", "page.md"]).unwrap();
        assert_eq!(arguments.output.as_deref(), Some("page.md"));
        assert!(arguments.selects("qemu") && arguments.selects("bochs"));
    }

    #[test]
    fn with_names_only_these_rows_are_selected() {
        let arguments = parse(&["bochs"]).unwrap();
        assert!(arguments.selects("bochs") && !arguments.selects("qemu"));
    }

    #[test]
    fn an_unknown_name_an_unknown_option_and_an_output_without_a_file_are_refused() {
        assert!(parse(&["bosch"]).unwrap_err().contains("the names are qemu, bochs"));
        assert!(parse(&["--ouput", "page.md"]).unwrap_err().contains("there is no --ouput"));
        assert!(parse(&["--output"]).unwrap_err().contains("needs a file"));
        assert!(parse(&["--output", "--ouput"]).is_err());
    }
}
