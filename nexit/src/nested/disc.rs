//! The disc that Bochs boots the inner Linux from: GRUB, the kernel, the initramfs.

use std::fs;
use std::path::Path;

use crate::failure::{OrFailed, Result};
use crate::image;
use crate::tool::Tool;

use super::lz4;
use super::system::System;

/// What GRUB needs to read the disc and to start Linux.
const MODULES: &str = "biosdisk iso9660 normal configfile linux boot";
/// * Bochs' clocks count instructions: nothing drifts, nothing has to be watched, and no run differs.
/// * A panic restarts the machine by a triple fault, which ends Bochs.
const COMMAND_LINE: &str =
    "console=ttyS0,115200 loglevel=2 nokaslr mitigations=off no_timer_check panic=-1 reboot=t";

/// Writes the disc of `system` with `job`, an archive, to `output`; `scratch` is a folder for the parts.
///
/// # Errors
/// A file or a tool is missing.
pub(super) fn build(system: &System, job: &[u8], scratch: &Path, output: &Path) -> Result<()> {
    let tree = scratch.join("nested");
    let grub = tree.join("boot/grub");
    fs::create_dir_all(&grub).or_failed("create", &grub)?;
    let kernel = tree.join("vmlinuz");
    fs::copy(&system.kernel, &kernel).or_failed("copy", &system.kernel)?;
    let packed_job = scratch.join("job.lz4");
    lz4::pack(job, &packed_job)?;
    let read = |path: &Path| fs::read(path).or_failed("read", path);
    let initrd = tree.join("initrd.img");
    let contents = lz4::join(&read(&system.packed)?, &read(&packed_job)?)?;
    fs::write(&initrd, contents).or_failed("write", &initrd)?;
    let menu = grub.join("grub.cfg");
    fs::write(&menu, menu_text()).or_failed("write", &menu)?;
    image::core("i386-pc-eltorito", MODULES, &menu, &grub.join("eltorito.img"))?;
    Tool::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-R", "-volid", "NEXIT_NESTED"])
        .args(["-b", "boot/grub/eltorito.img", "-no-emul-boot", "-boot-load-size", "4"])
        .args(["-boot-info-table", "--grub2-boot-info", "-o"])
        .arg(output)
        .arg(&tree)
        .run()
}

/// It says nothing on the serial line: that is the inner system's.
fn menu_text() -> String {
    format!("linux /vmlinuz {COMMAND_LINE}\ninitrd /initrd.img\nboot\n")
}
