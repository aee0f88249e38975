//! Bootable images: one file that is an ISO for CD-ROM drives and, written to a stick, a disk with a
//! BIOS boot sector and a UEFI system partition.
//!
//! The files stand twice in it, in the ISO file system and in the UEFI system partition (FAT), both
//! times in `/nexit`. The FAT copy is the one that can be edited on a stick, so a stick's GRUB takes
//! that one where it finds it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::built;
use crate::cli::{ImagePaths, Loader};
use crate::failure::{Failure, OrFailed, Result};
use crate::output;
use crate::scenario::{BootFile, IMAGE_NAME, Scenario};
use crate::tool::Tool;

/// Where Debian's packages grub-pc-bin and grub-efi-amd64-bin put their parts.
const GRUB: &str = "/usr/lib/grub";
/// Volume label of the UEFI system partition.
const LABEL: &str = "NEXIT";
/// Folder of all files, in both file systems.
pub(crate) const FOLDER: &str = "nexit";
/// What GRUB needs to find the files, read them, set a screen's mode and start the image.
const MODULES: &str = "normal configfile search search_fs_file search_label test echo \
                       part_gpt part_msdos iso9660 fat multiboot2 serial terminfo terminal boot";

/// What goes into an image.
struct Contents<'a> {
    /// The hypervisor image.
    image: &'a Path,
    /// The UEFI loader, where it is wanted in GRUB's place.
    uefi_loader: Option<&'a Path>,
    /// The boot modules, the configuration among them.
    files: &'a [BootFile],
}

impl Contents<'_> {
    /// All files of the folder, by name.
    fn all(&self) -> Vec<(&str, &Path)> {
        let modules = self.files.iter().map(|file| (file.name.as_str(), file.path.as_path()));
        std::iter::once((IMAGE_NAME, self.image)).chain(modules).collect()
    }
}

/// Builds the image of `scenario` at `output`, with the images that `paths` and `loader` name.
pub(crate) fn build(
    scenario: &Scenario,
    paths: &ImagePaths,
    loader: Loader,
    output: &Path,
) -> Result<()> {
    let image = built::image(paths)?;
    // The files stand twice in it.
    output::check_file(output, 2 * output::bytes(&image, &scenario.files)?)?;
    let uefi_loader = built::uefi_image(paths, loader)?;
    let contents =
        Contents { image: &image, uefi_loader: uefi_loader.as_deref(), files: &scenario.files };
    let scratch = tempfile::tempdir()
        .map_err(|error| Failure::Failed(format!("cannot make a temporary folder: {error}")))?;
    write(&contents, scratch.path(), output)
}

/// `scratch` is an empty folder for the parts.
fn write(contents: &Contents<'_>, scratch: &Path, output: &Path) -> Result<()> {
    let tree = scratch.join("tree");
    let folder = tree.join(FOLDER);
    fs::create_dir_all(&folder).or_failed("create", &folder)?;
    for (name, path) in contents.all() {
        fs::copy(path, folder.join(name)).or_failed("copy", path)?;
    }
    let grub = tree.join("boot/grub");
    fs::create_dir_all(&grub).or_failed("create", &grub)?;
    let menu = grub.join("grub.cfg");
    fs::write(&menu, grub_menu(contents.files)).or_failed("write", &menu)?;
    let first = scratch.join("first.cfg");
    fs::write(&first, first_script()).or_failed("write", &first)?;

    let bios = format!("{MODULES} biosdisk");
    core("i386-pc-eltorito", &bios, &first, &grub.join("eltorito.img"))?;
    let uefi = match contents.uefi_loader {
        Some(loader) => loader.to_path_buf(),
        None => {
            let path = scratch.join("grubx64.efi");
            uefi_core(&first, &path)?;
            path
        }
    };
    let partition = scratch.join("esp.img");
    system_partition(contents, &uefi, &menu, &partition)?;
    assemble(&tree, &partition, output)
}

/// GRUB's first program, with `modules` and the script `first` built in.
pub(crate) fn core(format: &str, modules: &str, first: &Path, output: &Path) -> Result<()> {
    Tool::new("grub-mkimage")
        .args(["-O", format, "-p", "/boot/grub", "-c"])
        .arg(first)
        .arg("-o")
        .arg(output)
        .args(modules.split_whitespace())
        .run()
}

/// The same for UEFI.
pub(crate) fn uefi_core(first: &Path, output: &Path) -> Result<()> {
    core("x86_64-efi", &format!("{MODULES} efi_gop"), first, output)
}

/// Finds the volume: the FAT one of a stick before the ISO one, as only FAT can be edited.
pub(crate) fn first_script() -> String {
    format!(
        "search --no-floppy --set=root --file /{FOLDER}/{IMAGE_NAME}\n\
         search --no-floppy --set=root --label {LABEL}\n\
         set prefix=($root)/boot/grub\n\
         configfile /boot/grub/grub.cfg\n"
    )
}

/// GRUB's menu. Messages go to the screen and, with a BIOS, to the serial line too, as plain text
/// (UEFI firmware with a serial line repeats its screen there by itself).
pub(crate) fn grub_menu(files: &[BootFile]) -> String {
    let mut text = format!(
        "if [ \"$grub_platform\" = pc ]; then\n\
         serial --unit=0 --speed=115200\n\
         terminfo serial dumb\n\
         terminal_output --append serial\n\
         fi\n\
         echo \"Nexit: loading\"\n\
         multiboot2 /{FOLDER}/{IMAGE_NAME}\n"
    );
    for BootFile { name, .. } in files {
        // From a slow stick a file may take seconds.
        text.push_str(&format!("echo \"Nexit: loading {name}\"\n"));
        text.push_str(&format!("module2 /{FOLDER}/{name} {name}\n"));
    }
    text.push_str("boot\n");
    text
}

/// The UEFI system partition, a FAT file system made without a mount.
fn system_partition(contents: &Contents<'_>, uefi: &Path, menu: &Path, image: &Path) -> Result<()> {
    let mut copies: Vec<(&Path, String)> =
        vec![(uefi, "EFI/BOOT/BOOTX64.EFI".to_owned()), (menu, "boot/grub/grub.cfg".to_owned())];
    copies
        .extend(contents.all().into_iter().map(|(name, path)| (path, format!("{FOLDER}/{name}"))));
    let mut total = 0;
    for (path, _) in &copies {
        total += fs::metadata(path).or_failed("read", path)?.len();
    }
    let file = fs::File::create(image).or_failed("create", image)?;
    file.set_len(partition_bytes(total)).or_failed("size", image)?;
    drop(file);
    Tool::new("mformat").args(["-v", LABEL, "-i"]).arg(image).arg("::").run()?;
    let folders = ["EFI", "EFI/BOOT", "boot", "boot/grub", FOLDER].map(|name| format!("::/{name}"));
    Tool::new("mmd").arg("-i").arg(image).args(folders).run()?;
    for (path, name) in copies {
        Tool::new("mcopy").arg("-i").arg(image).arg(path).arg(format!("::/{name}")).run()?;
    }
    Ok(())
}

/// The partition's size: the files, the tables of the file system, and room to edit; whole MiB.
const fn partition_bytes(files: u64) -> u64 {
    (files + files / 32 + (4 << 20)).next_multiple_of(1 << 20)
}

/// The hybrid image: El Torito for CD-ROMs, MBR and GPT for disks, the system partition appended.
fn assemble(tree: &Path, partition: &Path, output: &Path) -> Result<()> {
    let temporary = PathBuf::from(format!("{}.partial", output.display()));
    Tool::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-R", "-J", "-volid", "NEXIT_ISO"])
        .args(["-b", "boot/grub/eltorito.img", "-no-emul-boot", "-boot-load-size", "4"])
        .args(["-boot-info-table", "--grub2-boot-info", "--grub2-mbr"])
        .arg(format!("{GRUB}/i386-pc/boot_hybrid.img"))
        .args([
            "-partition_offset",
            "16",
            "-appended_part_as_gpt",
            "-append_partition",
            "2",
            "0xef",
        ])
        .arg(partition)
        .args(["-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::"])
        .args(["-no-emul-boot", "-o"])
        .arg(&temporary)
        .arg(tree)
        .run()?;
    fs::rename(&temporary, output).or_failed("write", output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<BootFile> {
        ["nexit.toml", "vmlinuz"]
            .map(|name| BootFile { name: name.to_owned(), path: PathBuf::from(name) })
            .to_vec()
    }

    #[test]
    fn every_module_is_loaded_under_its_own_name() {
        let menu = grub_menu(&files());
        assert!(menu.contains("multiboot2 /nexit/nexit.elf\n"));
        assert!(menu.contains("module2 /nexit/nexit.toml nexit.toml\n"));
        assert!(menu.ends_with("loading vmlinuz\"\nmodule2 /nexit/vmlinuz vmlinuz\nboot\n"));
    }

    #[test]
    fn the_volume_that_can_be_edited_is_preferred() {
        let script = first_script();
        let (iso, fat) = (script.find("--file").unwrap(), script.find("--label").unwrap());
        assert!(iso < fat, "the later search wins where both find something");
    }

    #[test]
    fn the_partition_holds_its_files_with_room_to_spare() {
        for files in [0, 1 << 20, 300 << 20] {
            assert!(partition_bytes(files) >= files + (4 << 20));
            assert_eq!(partition_bytes(files) % (1 << 20), 0);
        }
    }
}
