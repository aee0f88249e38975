//! Kernels that Debian packages for this machine's own architecture, fetched by apt where they are first asked for.

use std::fs;
use std::path::PathBuf;
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
    let folder = project_folder().join("target/guest/packaged");
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    let kernel = folder.join(plain);
    let _fetching = one_at_a_time();
    if kernel.is_file() {
        return Ok(kernel);
    }
    let unpacked = folder.join("unpacked");
    fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    Tool::new("apt-get").args(["--quiet", "download", package]).within(&folder).run()?;
    let archive = entry(&folder, &format!("{package}_"))?;
    Tool::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked).run()?;
    let image = unpacked.join("boot").join(name);
    if plain != name {
        Tool::new("gunzip").arg(&image).run()?;
    }
    let image = unpacked.join("boot").join(plain);
    fs::rename(&image, &kernel).map_err(|error| failed(&image, &error))?;
    let _ = fs::remove_dir_all(unpacked);
    let _ = fs::remove_file(archive);
    Ok(kernel)
}
