//! The files that a guest begins from.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use config::GuestConfig;
use guest::load::{self, LoadError, LoadRequest, ModuleRequest};
use guest::memory_map::{ACPI_TABLES, MemoryMap};

use crate::Refusal;

/// A file that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File<'a> {
    /// Its size in bytes.
    pub size: usize,
    /// Its bytes; only a kernel's are looked at.
    pub bytes: &'a [u8],
}

/// The file that a key names by a path; or the end of a sentence that says why there is none.
pub type Source<'a> = &'a dyn Fn(&'static str, &str) -> Result<File<'a>, String>;

/// Looks for the guest's files, and whether its kernel can be started with them.
pub(crate) fn check(
    guest: &GuestConfig,
    map: &MemoryMap,
    files: Source<'_>,
    refusals: &mut Vec<Refusal>,
) {
    let before = refusals.len();
    let mut find = |key, index, path: &str| match files(key, path) {
        Ok(file) if file.size == 0 && key != "modules" => {
            let or = if key == "kernel" { "".into() } else { format!(", or remove {key}") };
            let sentence = format!("{key} = \"{path}\": the file is empty: copy it again{or}");
            refusals.push(Refusal::guest(guest, key, sentence));
            None
        }
        Ok(file) => Some(file),
        Err(why) => {
            let sentence = format!("{key} = \"{path}\": {why}");
            refusals.push(Refusal::entry(guest, (key, index), sentence));
            None
        }
    };
    let kernel = find("kernel", 0, &guest.kernel);
    let initrd = guest.initrd.as_ref().and_then(|path| find("initrd", 0, path));
    if let Some(path) = &guest.symbols {
        find("symbols", 0, path);
    }
    let mut modules = Vec::new();
    for (index, module) in guest.modules.iter().enumerate() {
        let size = find("modules", index, &module.file).map_or(0, |file| file.size);
        modules.push(ModuleRequest { size, words: &module.args });
    }
    let Some(kernel) = kernel.filter(|_| refusals.len() == before) else { return };
    let request = LoadRequest {
        kernel: kernel.bytes,
        initrd_size: initrd.map(|file| file.size),
        modules: &modules,
        command_line: &guest.cmdline,
        memory: map,
        rsdp: ACPI_TABLES,
    };
    if let Err(error) = load::plan(request) {
        let key = match error {
            LoadError::CommandLine { .. } => "cmdline",
            LoadError::ModulesForLinux | LoadError::Modules { .. } => "modules",
            LoadError::NoRoom { .. } | LoadError::NoRoomAt { .. } => "memory",
            LoadError::UnknownFormat
            | LoadError::NeedsFirmware(_)
            | LoadError::Truncated { .. }
            | LoadError::OldProtocol(_)
            | LoadError::NeedsBios
            | LoadError::BadField { .. }
            | LoadError::UnsupportedFlags(_) => "kernel",
        };
        let sentence = format!("kernel = \"{}\": {error}", guest.kernel);
        refusals.push(Refusal::guest(guest, key, sentence));
    }
}
