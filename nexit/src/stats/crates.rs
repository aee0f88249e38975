//! Which crates are in the image, as cargo resolves them for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::{Failure, Result};
use crate::tool::Tool;

/// The crate that becomes the image.
const ROOT: &str = "kernel";
/// Stands for the image's own target, which cargo knows from a file only.
const TARGET: &str = "x86_64-unknown-none";

/// A crate in the image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ImageCrate {
    /// Its name.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Part of this workspace.
    pub(crate) ours: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    manifest_path: PathBuf,
}

/// All crates of the image, by name.
pub(crate) fn in_image() -> Result<Vec<ImageCrate>> {
    // What runs on the host at build time (build scripts, procedural macros) is not in the image.
    let edges = ["--edges", "normal,no-proc-macro"];
    let format = ["--prefix", "none", "--format", "{p}", "--no-dedupe"];
    let tree = Tool::new("cargo")
        .args(["tree", "--locked", "-p", ROOT, "--target", TARGET])
        .args(edges)
        .args(format)
        .output()?;
    let metadata = Tool::new("cargo").args(["metadata", "--locked", "--format-version", "1"]);
    let metadata: Metadata = serde_json::from_str(&metadata.output()?)
        .map_err(|error| Failure::Failed(format!("cargo metadata is unreadable: {error}")))?;
    Ok(select(&tree, &metadata.packages))
}

fn select(tree: &str, packages: &[Package]) -> Vec<ImageCrate> {
    let mut selected = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        let version = version.trim_start_matches('v');
        let found = packages.iter().find(|p| p.name == name && p.version == version);
        if let Some(package) = found {
            let folder = package.manifest_path.parent().unwrap_or(Path::new(""));
            let krate = ImageCrate {
                name: name.to_owned(),
                folder: folder.to_path_buf(),
                ours: package.source.is_none(),
            };
            selected.insert((name.to_owned(), version.to_owned()), krate);
        }
    }
    selected.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, source: Option<&str>) -> Package {
        let manifest_path = PathBuf::from(format!("/src/{name}-{version}/Cargo.toml"));
        let source = source.map(str::to_owned);
        Package { name: name.to_owned(), version: version.to_owned(), source, manifest_path }
    }

    #[test]
    fn each_crate_counts_once_and_what_is_not_in_the_tree_does_not_count() {
        let packages = [
            package("kernel", "0.1.0", None),
            package("spin", "0.12.0", Some("registry")),
            package("spin", "0.9.0", Some("registry")),
            package("clap", "4.5.0", Some("registry")),
        ];
        let tree = "kernel v0.1.0 (/x)\nspin v0.12.0\nspin v0.12.0 (*)\n";
        let crates = select(tree, &packages);
        let seen: Vec<_> = crates.iter().map(|krate| (krate.name.as_str(), krate.ours)).collect();
        assert_eq!(seen, [("kernel", true), ("spin", false)]);
        assert_eq!(crates[1].folder, Path::new("/src/spin-0.12.0"));
    }
}
