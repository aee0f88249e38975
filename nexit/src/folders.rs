//! Images that are folders: for an EFI system partition, for an installed Linux's GRUB, for iPXE.

use std::fs;
use std::path::Path;

use crate::cli::{ImagePaths, Loader};
use crate::failure::{Failure, OrFailed as _, Result};
use crate::image::{FOLDER, first_script, grub_menu, uefi_core};
use crate::scenario::{BootFile, IMAGE_NAME, Scenario};
use crate::{built, output};

/// What GRUB of an installed Linux reads beside its own menu (Debian's `/etc/grub.d/41_custom`).
const MENU: &str = "custom.cfg";
/// The script for iPXE.
const SCRIPT: &str = "nexit.ipxe";

/// The files of an EFI system partition: BOOTX64.EFI where firmware looks for it, and the folder `nexit`.
pub(crate) fn system_partition(
    scenario: &Scenario,
    paths: &ImagePaths,
    loader: Loader,
    output: &Path,
) -> Result<()> {
    let image = built::image(paths)?;
    let uefi = built::uefi_image(paths, loader)?;
    output::check_folder(output, output::bytes(&image, &scenario.files)?)?;
    copy_files(&output.join(FOLDER), &image, &scenario.files)?;
    let boot = output.join("EFI/BOOT");
    fs::create_dir_all(&boot).or_failed("create", &boot)?;
    let target = boot.join("BOOTX64.EFI");
    if let Some(uefi) = uefi {
        fs::copy(&uefi, &target).or_failed("copy", &uefi)?;
        return Ok(());
    }
    let grub = output.join("boot/grub");
    fs::create_dir_all(&grub).or_failed("create", &grub)?;
    write(&grub.join("grub.cfg"), &grub_menu(&scenario.files))?;
    let first = tempfile::NamedTempFile::new()
        .map_err(|error| Failure::Failed(format!("cannot make a temporary file: {error}")))?;
    write(first.path(), &first_script())?;
    uefi_core(first.path(), &target)
}

/// All files, and an entry for the menu of an installed Linux's GRUB.
pub(crate) fn for_grub(scenario: &Scenario, paths: &ImagePaths, output: &Path) -> Result<()> {
    plain(scenario, paths, output, MENU, &menu_entry(&scenario.files))
}

/// All files, and a script for iPXE.
pub(crate) fn for_ipxe(scenario: &Scenario, paths: &ImagePaths, output: &Path) -> Result<()> {
    plain(scenario, paths, output, SCRIPT, &ipxe_script(&scenario.files))
}

fn plain(
    scenario: &Scenario,
    paths: &ImagePaths,
    output: &Path,
    name: &str,
    text: &str,
) -> Result<()> {
    let image = built::image(paths)?;
    if scenario.files.iter().any(|file| file.name.eq_ignore_ascii_case(name)) {
        let text = format!("the name {name} is taken in this format: rename that file");
        return Err(Failure::Usage(text));
    }
    output::check_folder(output, output::bytes(&image, &scenario.files)?)?;
    copy_files(output, &image, &scenario.files)?;
    write(&output.join(name), text)
}

fn copy_files(folder: &Path, image: &Path, files: &[BootFile]) -> Result<()> {
    fs::create_dir_all(folder).or_failed("create", folder)?;
    let files = files.iter().map(|file| (file.name.as_str(), file.path.as_path()));
    for (name, path) in std::iter::once((IMAGE_NAME, image)).chain(files) {
        fs::copy(path, folder.join(name)).or_failed("copy", path)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).or_failed("write", path)
}

/// The entry. `/boot` may be a partition of its own, or a folder of the root's.
fn menu_entry(files: &[BootFile]) -> String {
    let mut text = format!(
        "# Copy this folder to /boot/{FOLDER}, and this file to /boot/grub/{MENU} (or add it to the one there).\n\
         menuentry \"Nexit\" {{\n\
         \x20   insmod part_gpt\n\
         \x20   insmod part_msdos\n\
         \x20   insmod fat\n\
         \x20   insmod ext2\n\
         \x20   insmod multiboot2\n\
         \x20   set nexit=/boot/{FOLDER}\n\
         \x20   if ! search --no-floppy --set=root --file $nexit/{IMAGE_NAME}; then\n\
         \x20       set nexit=/{FOLDER}\n\
         \x20       search --no-floppy --set=root --file $nexit/{IMAGE_NAME}\n\
         \x20   fi\n\
         \x20   echo \"Nexit: loading\"\n\
         \x20   multiboot2 $nexit/{IMAGE_NAME}\n"
    );
    for BootFile { name, .. } in files {
        text.push_str(&format!("    echo \"Nexit: loading {name}\"\n"));
        text.push_str(&format!("    module2 $nexit/{name} {name}\n"));
    }
    text.push_str("}\n");
    text
}

/// The script. Names are relative to where the script came from.
fn ipxe_script(files: &[BootFile]) -> String {
    let mut text = format!("#!ipxe\necho Nexit: loading\nkernel {IMAGE_NAME}\n");
    for BootFile { name, .. } in files {
        text.push_str(&format!("module {name} {name}\n"));
    }
    text.push_str("boot\n");
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn files() -> Vec<BootFile> {
        let file = |name: &str| BootFile { name: name.to_owned(), path: PathBuf::from(name) };
        ["nexit.toml", "vmlinuz"].map(file).to_vec()
    }

    #[test]
    fn the_scripts_load_every_file_under_its_own_name() {
        let entry = menu_entry(&files());
        assert!(entry.contains("    multiboot2 $nexit/nexit.elf\n"), "{entry}");
        assert!(entry.contains("    module2 $nexit/nexit.toml nexit.toml\n"), "{entry}");
        assert!(entry.ends_with("    module2 $nexit/vmlinuz vmlinuz\n}\n"), "{entry}");
        let script = ipxe_script(&files());
        assert!(script.starts_with("#!ipxe\n"), "{script}");
        assert!(script.contains("kernel nexit.elf\nmodule nexit.toml nexit.toml\n"), "{script}");
        assert!(script.ends_with("module vmlinuz vmlinuz\nboot\n"), "{script}");
    }
}
