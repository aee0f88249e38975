//! Why the image was not started, in sentences for the firmware's console.

use core::fmt;
use uefi::Status;
use uefi_loader::placement::Taken;

/// Longest name of a boot module, in bytes.
pub(crate) const NAME_LIMIT: usize = 128;

/// What went wrong.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// The loader's own volume or the folder on it cannot be opened.
    Folder(Status),
    /// A file that must be there is not.
    Missing(&'static str),
    /// A file or the folder cannot be read.
    Unreadable(Status),
    /// `nexit.elf` is something else.
    NotAnImage,
    /// The firmware sits where the image belongs.
    Taken(Taken),
    /// No free memory below 4 GiB.
    NoMemory {
        /// How much was asked for.
        bytes: usize,
    },
    /// A file name is too long.
    LongName,
    /// Too many files, or no room to describe them.
    TooManyFiles,
    /// No ACPI.
    NoRsdp,
}

impl LoadError {
    /// What the firmware is told.
    pub(crate) const fn status(&self) -> Status {
        match self {
            Self::Folder(status) | Self::Unreadable(status) => *status,
            Self::Missing(_) | Self::NoRsdp => Status::NOT_FOUND,
            Self::NotAnImage => Status::LOAD_ERROR,
            Self::Taken(_) | Self::NoMemory { .. } => Status::OUT_OF_RESOURCES,
            Self::LongName | Self::TooManyFiles => Status::BAD_BUFFER_SIZE,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(status) => write!(
                f,
                "the folder \\nexit of the volume that holds this loader cannot be opened \
                 ({status}): make it and copy nexit.elf, nexit.toml and the guests' files there"
            ),
            Self::Missing(name) => {
                write!(f, "the file \\nexit\\{name} is missing: copy it to the boot volume")
            }
            Self::Unreadable(status) => write!(
                f,
                "a file in \\nexit cannot be read ({status}): check the boot volume's file system"
            ),
            Self::NotAnImage => f.write_str(
                "\\nexit\\nexit.elf is not a complete x86-64 hypervisor image: copy it again",
            ),
            Self::Taken(taken) => taken.fmt(f),
            Self::NoMemory { bytes } => write!(
                f,
                "there are no {bytes} bytes of free memory below 4 GiB: put fewer or smaller files \
                 into \\nexit"
            ),
            Self::LongName => {
                write!(f, "a file in \\nexit has a name of more than {NAME_LIMIT} bytes: rename it")
            }
            Self::TooManyFiles => write!(
                f,
                "there are more than {} files in \\nexit: remove those that no guest needs",
                boot::MAX_MODULES
            ),
            Self::NoRsdp => f.write_str(
                "the firmware has no ACPI tables (no RSDP in its configuration table): \
                 enable ACPI in setup",
            ),
        }
    }
}
