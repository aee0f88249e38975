//! Where the built images are: beside this program, in the build folder that it came from.

use std::path::{Path, PathBuf};

use crate::cli::{ImagePaths, Loader};
use crate::failure::{Failure, Result};

/// The hypervisor image, below the build folder.
const IMAGE: &str = "x86_64-hypervisor/release/kernel";
/// The UEFI loader, below the build folder.
const UEFI_IMAGE: &str = "x86_64-unknown-uefi/release/uefi-loader.efi";

/// The hypervisor image.
pub(crate) fn image(paths: &ImagePaths) -> Result<PathBuf> {
    find(paths.image.as_deref(), IMAGE, "hypervisor image", "--image")
}

/// The UEFI loader, where the image is started by it.
pub(crate) fn uefi_image(paths: &ImagePaths, loader: Loader) -> Result<Option<PathBuf>> {
    let find = || find(paths.uefi_image.as_deref(), UEFI_IMAGE, "UEFI loader", "--uefi-image");
    (loader == Loader::Native).then(find).transpose()
}

/// The build folder.
pub(crate) fn folder() -> PathBuf {
    // TARGET/debug/nexit → TARGET
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(2).unwrap_or(Path::new("target")).to_path_buf()
}

fn find(given: Option<&Path>, built: &str, what: &str, option: &str) -> Result<PathBuf> {
    let path = given.map_or_else(|| folder().join(built), Path::to_path_buf);
    if path.is_file() {
        return Ok(path);
    }
    let advice = format!("`make` builds it, {option} names another");
    Err(Failure::Usage(format!("there is no {what} at {}: {advice}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_a_usage_error_that_says_what_to_do() {
        let paths = ImagePaths { image: Some(PathBuf::from("/no/such")), uefi_image: None };
        let error = image(&paths).unwrap_err();
        assert_eq!(error.status(), 2);
        assert!(error.to_string().contains("/no/such: `make` builds it"), "{error}");
    }
}
