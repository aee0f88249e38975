//! A stock Debian kernel: fetched by the machine's own apt, unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::failure::{Failure, OrFailed, Result};
use crate::tool::Tool;

/// Which of Debian's kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Flavour {
    /// `linux-image-amd64`: all drivers, compressed by XZ.
    Stock,
    /// `linux-image-cloud-amd64`: few drivers, quick to unpack itself (for Bochs).
    Cloud,
}

impl Flavour {
    /// The package that depends on the newest kernel of this flavour.
    const fn package(self) -> &'static str {
        match self {
            Self::Stock => "linux-image-amd64",
            Self::Cloud => "linux-image-cloud-amd64",
        }
    }
}

/// An unpacked kernel package.
#[derive(Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
}

/// Fetches and unpacks below `cache`, unless it is there already.
///
/// # Errors
/// apt does not know it, or cannot fetch it.
pub fn fetch(flavour: Flavour, cache: &Path) -> Result<Kernel> {
    let depends = Tool::new("apt-cache").args(["depends", flavour.package()]).output()?;
    let package = image_package(&depends).ok_or_else(|| {
        Failure::Failed(format!(
            "apt knows no kernel behind {}: run `apt-get update` first",
            flavour.package()
        ))
    })?;
    let folder = package_folder(&package, cache)?;
    let image = only_entry(&folder.join("boot"), "vmlinuz-")?;
    Ok(Kernel { image, modules: only_entry(&folder.join("lib/modules"), "")? })
}

/// The folder below `cache` where `package` lies unpacked; fetched if it is not there.
pub(super) fn package_folder(package: &str, cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(package);
    if !folder.is_dir() {
        unpack(package, cache, &folder)?;
    }
    Ok(folder)
}

/// Unpacks beside the folder and renames, so that a run that was cut short leaves nothing half.
fn unpack(package: &str, cache: &Path, folder: &Path) -> Result<()> {
    println!("nexit: fetching {package}");
    let partial = cache.join(format!("{package}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).or_failed("remove", &partial)?;
    }
    fs::create_dir_all(&partial).or_failed("create", &partial)?;
    Tool::new("apt-get").args(["--quiet", "download", package]).within(&partial).run()?;
    let archive = only_entry(&partial, package)?;
    Tool::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial).run()?;
    fs::remove_file(&archive).or_failed("remove", &archive)?;
    fs::rename(&partial, folder).or_failed("rename", &partial)
}

/// The first `linux-image-VERSION` of `apt-cache depends`.
fn image_package(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).or_failed("list", folder)?;
    let matching = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).find(matching).ok_or_else(|| {
        Failure::Failed(format!("the kernel package holds no {prefix}* in {}", folder.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_the_meta_package_is_found() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(image_package(text).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(image_package("linux-image-amd64\n"), None);
    }
}
