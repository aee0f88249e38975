//! The files of `\nexit\` on the volume that this loader was started from.

use crate::error::{LoadError, NAME_LIMIT};
use crate::pages::Pages;
use ::boot::MAX_MODULES;
use arrayvec::{ArrayString, ArrayVec};
use core::ops::Range;
use uefi::boot::{self, MemoryType};
use uefi::cstr16;
use uefi::proto::media::file::{Directory, File, FileAttribute, FileMode, RegularFile};

/// The image's file name.
const IMAGE: &str = "nexit.elf";
/// The configuration's file name; its contents are the image's to judge.
const CONFIGURATION: &str = "nexit.toml";

/// A file in memory.
pub(crate) struct BootFile {
    /// Its name on the volume.
    pub(crate) name: ArrayString<NAME_LIMIT>,
    /// Its contents.
    pub(crate) pages: Pages,
}

/// Room for a directory entry with the longest name there is (255 characters).
#[repr(align(8))]
struct EntryBuffer([u8; 1024]);

/// Opens the folder. Everything in it is for the image; the volume's root is left alone.
pub(crate) fn open_folder() -> Result<Directory, LoadError> {
    let failed = |error: uefi::Error| LoadError::Folder(error.status());
    let mut volume = boot::get_image_file_system(boot::image_handle()).map_err(failed)?;
    let mut root = volume.open_volume().map_err(failed)?;
    let folder = root.open(cstr16!("nexit"), FileMode::Read, FileAttribute::empty());
    folder.map_err(failed)?.into_directory().ok_or(LoadError::Folder(uefi::Status::NOT_FOUND))
}

/// Reads the image's file.
pub(crate) fn read_image(folder: &mut Directory) -> Result<Pages, LoadError> {
    let file = folder.open(cstr16!("nexit.elf"), FileMode::Read, FileAttribute::empty());
    let file = file.ok().and_then(|file| file.into_regular_file());
    // From a slow stick a file may take seconds.
    uefi::println!("Nexit: reading {IMAGE}");
    read(file.ok_or(LoadError::Missing(IMAGE))?, &(0..0))
}

/// Reads all other files to memory outside `avoid`.
pub(crate) fn read_modules(
    folder: &mut Directory,
    avoid: &Range<u64>,
) -> Result<ArrayVec<BootFile, MAX_MODULES>, LoadError> {
    let mut files = ArrayVec::new();
    let mut buffer = EntryBuffer([0; 1024]);
    loop {
        let entry = folder.read_entry(&mut buffer.0);
        let entry = entry.map_err(|error| LoadError::Unreadable(error.status()))?;
        let Some(entry) = entry else { break };
        let file = folder.open(entry.file_name(), FileMode::Read, FileAttribute::empty());
        let file = file.map_err(|error| LoadError::Unreadable(error.status()))?;
        let Some(file) = file.into_regular_file() else { continue };
        let mut name = ArrayString::new();
        entry.file_name().as_str_in_buf(&mut name).map_err(|_| LoadError::LongName)?;
        if name.eq_ignore_ascii_case(IMAGE) {
            continue;
        }
        uefi::println!("Nexit: reading {name}");
        let pages = read(file, avoid)?;
        files.try_push(BootFile { name, pages }).map_err(|_| LoadError::TooManyFiles)?;
    }
    let configured = files.iter().any(|file| &file.name == CONFIGURATION);
    if configured { Ok(files) } else { Err(LoadError::Missing(CONFIGURATION)) }
}

/// Reads a whole file.
fn read(mut file: RegularFile, avoid: &Range<u64>) -> Result<Pages, LoadError> {
    let failed = |error: uefi::Error| LoadError::Unreadable(error.status());
    // "If the position is set to 0xFFFFFFFFFFFFFFFF, the current position is set to the end".
    file.set_position(RegularFile::END_OF_FILE).map_err(failed)?;
    let length = usize::try_from(file.get_position().map_err(failed)?).unwrap_or(usize::MAX);
    file.set_position(0).map_err(failed)?;
    let mut pages = Pages::allocate(length, MemoryType::LOADER_DATA, avoid)?;
    let mut rest = pages.bytes_mut();
    while !rest.is_empty() {
        let count = file.read(rest).map_err(failed)?;
        if count == 0 {
            return Err(LoadError::Unreadable(uefi::Status::END_OF_FILE));
        }
        rest = rest.get_mut(count..).unwrap_or_default();
    }
    Ok(pages)
}
