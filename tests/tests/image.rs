//! Every format of `nexit image`, booted; and places where no image can be written.

use std::fs;
use std::process::Command;

use nexit_tests::line::{Line, firmware};
use nexit_tests::{Folder, Payload};

const UART: &str = "isa-serial,iobase=0x3f8,irq=4,chardev=line";

/// An image of a guest that switches off, as a folder.
fn build(folder: &Folder, format: &str, further: &[&str]) -> String {
    let payload = Payload { command_line: "poweroff", ..Payload::new("ends") };
    let config = folder.write("own-name.toml", payload.toml());
    let output = folder.path(format).display().to_string();
    let mut options = vec!["image", "--config", &config, "--format", format, "--output", &output];
    options.extend(further);
    let outcome = folder.nexit("image", &options);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    output
}

/// The guest runs and ends on a machine that boots by these arguments.
fn boots(folder: &Folder, arguments: &[&str]) {
    let (_machine, mut line) = Line::start(folder, UART, arguments);
    line.hear("nexit: guest ends: entering");
    line.hear("nexit: guest ends: poweroff after");
}

/// UEFI, with this folder as the files of a disk.
fn boots_from_files(folder: &Folder, files: &str) {
    let drive = format!("if=none,id=files,format=raw,readonly=on,file=fat:{files}");
    let firmware = firmware();
    let mut arguments = vec!["-drive", &drive, "-device", "virtio-blk-pci,drive=files"];
    arguments.extend(firmware.iter().map(String::as_str));
    boots(folder, &arguments);
}

#[test]
fn the_files_of_a_system_partition_boot_with_either_loader() {
    for (name, further) in [("image-esp", &[][..]), ("image-esp-grub", &["--loader", "grub"])] {
        let folder = Folder::new(name);
        boots_from_files(&folder, &build(&folder, "esp", further));
    }
}

/// `/boot` as a folder of the root, and as a partition of its own.
#[test]
fn an_installed_grub_boots_the_folder_by_the_entry_that_is_in_it() {
    for (name, place) in [("image-grub-root", "boot/nexit"), ("image-grub-boot", "nexit")] {
        let folder = Folder::new(name);
        let built = build(&folder, "directory", &[]);
        let disk = folder.path("disk");
        for below in ["EFI/BOOT", place.trim_end_matches("nexit")] {
            fs::create_dir_all(disk.join(below)).unwrap();
        }
        fs::rename(&built, disk.join(place)).unwrap();
        // The installed GRUB, with a menu that is the entry alone.
        let menu = format!("set timeout=0\nsource /{place}/custom.cfg\n");
        fs::write(disk.join("menu.cfg"), menu).unwrap();
        let first = "search --set=root --file /menu.cfg\nconfigfile /menu.cfg\n";
        let first = folder.write("first.cfg", first);
        let mut grub = Command::new("grub-mkimage");
        grub.args(["-O", "x86_64-efi", "-p", "/boot/grub", "-c", &first, "-o"]);
        grub.arg(disk.join("EFI/BOOT/BOOTX64.EFI"));
        grub.args(["normal", "configfile", "search", "search_fs_file", "test", "echo", "fat"]);
        grub.args(["part_msdos", "part_gpt", "ext2", "multiboot2", "boot", "efi_gop"]);
        assert!(grub.status().unwrap().success());
        boots_from_files(&folder, &disk.display().to_string());
    }
}

#[test]
fn a_loader_that_takes_files_boots_the_folder() {
    let folder = Folder::new("image-kernel");
    let built = build(&folder, "directory", &[]);
    let (kernel, modules) =
        (format!("{built}/nexit.elf"), format!("{built}/nexit.toml,{built}/ends"));
    boots(&folder, &["-kernel", &kernel, "-initrd", &modules]);
}

/// Over the network: the card's ROM is iPXE, QEMU the TFTP server.
#[test]
fn ipxe_boots_the_folder_by_the_script_that_is_in_it() {
    let folder = Folder::new("image-pxe");
    let built = build(&folder, "pxe", &[]);
    let server = format!("user,id=net,tftp={built},bootfile=nexit.ipxe");
    let arguments = ["-netdev", &server, "-device", "e1000e,netdev=net,bootindex=0"];
    boots(&folder, &arguments);
}

#[test]
fn a_place_where_no_image_can_be_written_is_refused_before_any_work() {
    let folder = Folder::new("image-places");
    let payload = Payload::new("ends");
    let config = folder.write("nexit.toml", payload.toml());
    let file = folder.write("file", "");
    fs::create_dir_all(folder.path("full/sub")).unwrap();
    let full = folder.path("full").display().to_string();
    let absent = folder.path("no/such").display().to_string();
    for (format, output, words) in [
        ("iso", full.as_str(), "this is a folder: name a file in it"),
        (
            "iso",
            "/dev/null",
            "is not a regular file: write the image to a file, and copy that with dd",
        ),
        ("iso", &absent, "it cannot be written: No such file"),
        ("iso", "/proc/nexit.iso", "it cannot be written"),
        ("esp", &file, "exists and is no folder"),
        ("directory", &full, "is not empty: name a new folder, or empty this one"),
        ("pxe", &absent, "there is no folder"),
        ("pxe", "/proc/nexit", "cannot write to the folder /proc"),
    ] {
        let options = ["image", "--config", &config, "--format", format, "--output", output];
        let outcome = folder.nexit("place", &options);
        assert_eq!(outcome.status, Some(2), "{outcome}");
        assert!(outcome.errors.contains(words), "{words}\n{outcome}");
        assert_eq!(outcome.output, "", "{outcome}");
    }
    let output = folder.path("new").display().to_string();
    let options = ["image", "--config", &config, "--format", "pxe", "--output", &output];
    let outcome = folder.nexit("loader", &[&options[..], &["--loader", "grub"]].concat());
    assert!(outcome.errors.contains("--loader is for iso and esp"), "{outcome}");
}
