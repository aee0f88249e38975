//! Kernels that Debian packages for this machine's own architecture, fetched by apt where they are first asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nexit::failure::Result;
use nexit::tool::Tool;

use crate::folder::project_folder;
use crate::i386::{entry, failed};

/// One test fetches at a time: what is unpacked lies in one place.
pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
    static FETCHING: Mutex<()> = Mutex::new(());
    FETCHING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file `name` that `package` puts into `/boot`, unpacked if it is compressed.
///
/// # Errors
/// apt does not know the package, or cannot fetch it, or has no such file in it.
pub fn kernel(package: &str, name: &str) -> Result<PathBuf> {
    file(package, &format!("boot/{name}"))
}

/// As [`kernel`], of a package of Debian 13, which this machine's release may lack.
///
/// # Errors
/// As [`kernel`].
pub fn kernel_of_debian_13(package: &str, name: &str) -> Result<PathBuf> {
    file_by(package, &format!("boot/{name}"), |unpacked| {
        let folder = unpacked.display().to_string();
        Tool::new(".ci/setup").args(["debian13", &folder, package]).within(&project_folder()).run()
    })
}

/// The file at `path` of `package`, unpacked if it is compressed.
fn file(package: &str, path: &str) -> Result<PathBuf> {
    file_by(package, path, |unpacked| {
        let folder = unpacked.parent().unwrap_or(unpacked);
        Tool::new("apt-get").args(["--quiet", "download", package]).within(folder).run()?;
        let archive = entry(folder, &format!("{package}_"))?;
        Tool::new("dpkg-deb").arg("-x").arg(&archive).arg(unpacked).run()?;
        let _ = fs::remove_file(archive);
        Ok(())
    })
}

/// As [`file`]; `unpack` fetches the package and unpacks it in a folder.
fn file_by(package: &str, path: &str, unpack: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = project_folder().join("target/guest/packaged");
    let plain = path.strip_suffix(".gz").unwrap_or(path);
    let file = folder.join(plain.rsplit('/').next().unwrap_or_default());
    let _fetching = one_at_a_time();
    if file.is_file() {
        return Ok(file);
    }
    let unpacked = folder.join(format!("unpacked-{package}"));
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked).map_err(|error| failed(&unpacked, &error))?;
    unpack(&unpacked)?;
    if plain != path {
        Tool::new("gunzip").arg(unpacked.join(path)).run()?;
    }
    // A library goes by the name of a link.
    let found = unpacked.join(plain);
    let moved = fs::canonicalize(&found).and_then(|found| fs::rename(found, &file));
    moved.map_err(|error| failed(&found, &error))?;
    let _ = fs::remove_dir_all(unpacked);
    Ok(file)
}

/// The `vmlinux` with debugging information of this release of Linux (`uname -r`).
///
/// # Errors
/// As [`kernel`].
pub fn vmlinux(release: &str) -> Result<PathBuf> {
    file(&format!("{LINUX}{release}-dbg"), &format!("usr/lib/debug/boot/vmlinux-{release}"))
}

/// The program `crash`, which reads dumps of Linux; its libraries are beside it.
///
/// # Errors
/// As [`kernel`].
pub fn crash() -> Result<PathBuf> {
    file("liblzo2-2", "lib/x86_64-linux-gnu/liblzo2.so.2")?;
    file("libsnappy1v5", "usr/lib/x86_64-linux-gnu/libsnappy.so.1")?;
    file("crash", "usr/bin/crash")
}

/// What a package of a kernel is called before its version.
const LINUX: &str = "linux-image-";

/// The packages of every Linux that apt knows: of each series (6.1, 6.12) and kind (plain, `-cloud`, `-rt`) the newest.
///
/// # Errors
/// apt cannot be asked.
pub fn linuxes() -> Result<Vec<String>> {
    let pattern = format!("^{LINUX}[0-9].*-amd64$");
    let known = Tool::new("apt-cache").args(["search", "--names-only", &pattern]).output()?;
    Ok(newest(&known))
}

/// The kernel of one of [`linuxes`].
///
/// # Errors
/// As [`kernel`].
pub fn linux(package: &str) -> Result<PathBuf> {
    kernel(package, &format!("vmlinuz-{}", package.strip_prefix(LINUX).unwrap_or(package)))
}

/// Of lines `PACKAGE - DESCRIPTION` the newest kernel of each series and kind.
fn newest(known: &str) -> Vec<String> {
    let mut newest = BTreeMap::new();
    for package in known.lines().filter_map(|line| line.split(' ').next()) {
        let Some(version) = package.strip_prefix(LINUX) else { continue };
        let numbers: Vec<u32> = version
            .split(|letter: char| !letter.is_ascii_digit())
            .map_while(|number| number.parse().ok())
            .collect();
        let [major, minor, _, ..] = *numbers else { continue };
        let kind = ["-rt-", "-cloud-"].into_iter().find(|known| version.contains(known));
        newest
            .entry((major, minor, kind))
            .and_modify(|found: &mut (Vec<u32>, &str)| {
                *found = found.clone().max((numbers.clone(), package));
            })
            .or_insert((numbers, package));
    }
    newest.into_values().map(|(_, package)| package.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn of_each_series_and_kind_there_is_the_newest() {
        let known = "linux-image-6.1.0-9-amd64 - Linux 6.1\nlinux-image-6.1.0-10-amd64 - Linux 6.1\n\
            linux-image-6.12-amd64 - the series\nlinux-image-6.12.43+deb12-rt-amd64 - x\n\
            linux-image-6.12.5+deb12-rt-amd64 - x\nlinux-image-6.1.0-10-cloud-amd64 - x\nother\n";
        assert_eq!(
            newest(known),
            [
                "linux-image-6.1.0-10-amd64",
                "linux-image-6.1.0-10-cloud-amd64",
                "linux-image-6.12.43+deb12-rt-amd64",
            ]
        );
    }
}
