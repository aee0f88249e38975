//! `nexit demo`: what the demo and the tests run as a guest. A stock Debian kernel, an initramfs
//! around busybox, a disk image with a real ext4 file system, and a file to send over TCP.

pub mod cpio;
mod disk;
pub mod initramfs;
pub mod kernel;
pub mod modules;

use std::fs;
use std::path::Path;

pub use kernel::Flavour;

use crate::failure::{OrFailed, Result};
use modules::Modules;

/// Makes `vmlinuz`, `initrd.img`, `disk.img` and `payload.bin` in `output`. `programs` is the
/// folder with the in-guest programs, `scripts` the one with `init`.
///
/// # Errors
/// A tool or a file is missing; nothing that is left behind looks finished.
pub(crate) fn build(
    flavour: Flavour,
    scripts: &Path,
    programs: &Path,
    output: &Path,
) -> Result<()> {
    fs::create_dir_all(output).or_failed("create", output)?;
    let cache = output.parent().unwrap_or(output).join("kernels");
    fs::create_dir_all(&cache).or_failed("create", &cache)?;
    let kernel = kernel::fetch(flavour, &cache)?;
    let image = output.join("vmlinuz");
    fs::copy(&kernel.image, &image).or_failed("write", &image)?;
    disk::build(output)?;
    let modules = Modules::find(&kernel.modules)?;
    let payload = disk::checksum(&output.join("payload.bin"))?;
    let mut entries = initramfs::entries(&modules, scripts, programs, &payload)?;
    if flavour == Flavour::Stock {
        let package = kernel::package_folder("rt-tests", &cache)?;
        initramfs::add_hackbench(&mut entries, &package)?;
    }
    let initrd = output.join("initrd.img");
    fs::write(&initrd, cpio::archive(&entries)).or_failed("write", &initrd)
}
