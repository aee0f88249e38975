//! The file: TOML, or JSON where its name ends in `.json`.

use std::fmt;
use std::path::Path;

use crate::{Capture, FORMAT};

/// The lines that a file in TOML begins with.
const REMARK: &str = "\
# A machine as it describes itself, for `nexit check` and `nexit init` (docs/machine-file.md).
# No serial numbers are in it, but the ACPI tables are whole: look before you send it to a stranger.

";

/// Why a file cannot be used: a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileError(String);

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FileError {}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|it| it.eq_ignore_ascii_case("json"))
}

impl Capture {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not what this version writes.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let refuse = |why: String| FileError(format!("{}: {why}", path.display()));
        if path.is_dir() {
            let what = "is a folder, and a machine file is wanted: `nexit probe --from DIR --output \
                        machine.toml` makes one of it";
            return Err(FileError(format!("{} {what}", path.display())));
        }
        let text = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            refuse(format!("this is no machine file: byte {at} is no text"))
        })?;
        if is_json(path) { Self::from_json(&text) } else { Self::from_toml(&text) }
            .map_err(|FileError(why)| refuse(why))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let text = if is_json(path) { self.to_json() } else { self.to_toml() }?;
        std::fs::write(path, text)
            .map_err(|error| FileError(format!("cannot write {}: {error}", path.display())))
    }

    /// From TOML.
    ///
    /// # Errors
    /// When it is not what this version writes.
    pub fn from_toml(text: &str) -> Result<Self, FileError> {
        #[derive(serde::Deserialize)]
        struct Format {
            format: u32,
        }
        // First the format alone, so that a file of another version is called that.
        let format = toml::from_str::<Format>(text).map(|it| it.format);
        let whole = toml::from_str::<Self>(text).map_err(|error| error.to_string());
        Self::checked(format.ok(), whole)
    }

    /// From JSON.
    ///
    /// # Errors
    /// When it is not what this version writes.
    pub fn from_json(text: &str) -> Result<Self, FileError> {
        let value = serde_json::from_str::<serde_json::Value>(text);
        let format = value.ok().and_then(|it| u32::try_from(it.get("format")?.as_u64()?).ok());
        let whole = serde_json::from_str::<Self>(text).map_err(|error| error.to_string());
        Self::checked(format, whole)
    }

    fn checked(format: Option<u32>, whole: Result<Self, String>) -> Result<Self, FileError> {
        let sentence = match (format, whole) {
            (Some(FORMAT), Ok(capture)) => return Ok(capture),
            (Some(format), _) if format != FORMAT => format!(
                "its format is {format}, and this version of nexit reads {FORMAT}: make it again with \
                 `nexit probe`"
            ),
            (_, Err(why)) => {
                format!("this is no machine file that `nexit probe` wrote: {}", why.trim_end())
            }
            (None | Some(_), Ok(_)) => String::from("this is no machine file: it has no format"),
        };
        Err(FileError(sentence))
    }

    /// As TOML.
    ///
    /// # Errors
    /// Never, for what this crate makes.
    pub fn to_toml(&self) -> Result<String, FileError> {
        let text = toml::to_string_pretty(self).map_err(|error| FileError(error.to_string()))?;
        Ok(format!("{REMARK}{text}"))
    }

    /// As JSON.
    ///
    /// # Errors
    /// Never, for what this crate makes.
    pub fn to_json(&self) -> Result<String, FileError> {
        serde_json::to_string_pretty(self).map_err(|error| FileError(error.to_string()))
    }
}
