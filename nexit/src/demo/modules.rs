//! Which kernel modules a driver needs, and in which order they load: read from the modules
//! themselves (section `.modinfo`: `depends=`, `softdep=pre:`), as a package that is only unpacked
//! has no `modules.dep` yet.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, OrFailed, Result};

/// The modules of an unpacked kernel package.
#[derive(Debug)]
pub(crate) struct Modules {
    /// Module name (with `_`) → file.
    files: BTreeMap<String, PathBuf>,
    /// Names of what is linked into the kernel.
    builtin: Vec<String>,
}

impl Modules {
    /// Finds all modules below `folder` (`lib/modules/VERSION`).
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(folder, &mut files)?;
        let path = folder.join("modules.builtin");
        let list = fs::read_to_string(&path).or_failed("read", &path)?;
        Ok(Self { files, builtin: list.lines().map(module_name).collect() })
    }

    /// The files to load for the driver `name`, dependencies first. `None` where this kernel has no
    /// such driver; empty where it is linked in.
    pub(crate) fn load_order(&self, name: &str) -> Result<Option<Vec<PathBuf>>> {
        let known = |name: &str| {
            self.files.contains_key(name) || self.builtin.iter().any(|builtin| builtin == name)
        };
        if !known(&module_name(name)) {
            return Ok(None);
        }
        let order = order(name, &mut |module| match self.files.get(module) {
            Some(path) => Ok(Some(needs(&fs::read(path).or_failed("read", path)?))),
            None if known(module) => Ok(None),
            None => Err(Failure::Failed(format!("module {name} needs {module}: no such module"))),
        })?;
        Ok(Some(order.iter().filter_map(|module| self.files.get(module).cloned()).collect()))
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).or_failed("list", folder)? {
        let path = entry.or_failed("list", folder)?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            files.insert(module_name(&path.to_string_lossy()), path);
        }
    }
    Ok(())
}

/// `kernel/drivers/net/nvme-core.ko` → `nvme_core`: the kernel does not tell `-` from `_`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

/// Depth-first, each module once. `needs` gives a module's needs, `None` for one that is linked in.
fn order(
    name: &str,
    needs: &mut dyn FnMut(&str) -> Result<Option<Vec<String>>>,
) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        needs: &mut dyn FnMut(&str) -> Result<Option<Vec<String>>>,
        seen: &mut Vec<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if seen.iter().any(|other| other == name) {
            return Ok(());
        }
        seen.push(name.to_owned());
        if let Some(list) = needs(name)? {
            for need in list {
                visit(&need, needs, seen, order)?;
            }
            order.push(name.to_owned());
        }
        Ok(())
    }
    let (mut seen, mut order) = (Vec::new(), Vec::new());
    visit(&module_name(name), needs, &mut seen, &mut order)?;
    Ok(order)
}

/// `depends=a,b` and `softdep=pre: c d` of a module file, as module names. A soft dependency that
/// names an algorithm rather than a file (`crc32c`) is met by its generic form.
fn needs(module: &[u8]) -> Vec<String> {
    let mut list = Vec::new();
    for line in module.split(|byte| *byte == 0) {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        if let Some(names) = line.strip_prefix("depends=") {
            list.extend(names.split(',').filter(|name| !name.is_empty()).map(module_name));
        }
        if let Some(names) = line.strip_prefix("softdep=pre:") {
            let names = names.split("post:").next().unwrap_or_default();
            list.extend(names.split_whitespace().map(algorithm));
        }
    }
    list
}

fn algorithm(name: &str) -> String {
    if name == "crc32c" { "crc32c_generic".to_owned() } else { module_name(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_from_the_module_itself() {
        let module = b"\x7fELF\0license=GPL\0depends=jbd2,mbcache\0softdep=pre: crc32c\0name=ext4\0";
        assert_eq!(needs(module), ["jbd2", "mbcache", "crc32c_generic"]);
        assert_eq!(needs(b"\0depends=\0"), Vec::<String>::new());
    }

    #[test]
    fn dependencies_load_first_and_once_and_a_cycle_ends() {
        let order = order("igb", &mut |name| {
            Ok(match name {
                "igb" => Some(vec!["ptp".into(), "dca".into(), "builtin".into()]),
                "ptp" => Some(vec!["pps_core".into(), "dca".into()]),
                "pps_core" => Some(vec!["ptp".into()]),
                "builtin" => None,
                _ => Some(vec![]),
            })
        });
        assert_eq!(order.unwrap(), ["pps_core", "dca", "ptp", "igb"]);
    }

    #[test]
    fn hyphens_and_underscores_are_the_same() {
        assert_eq!(module_name("kernel/drivers/nvme/host/nvme-core.ko"), "nvme_core");
        assert_eq!(module_name("i2c_algo_bit"), "i2c_algo_bit");
    }
}
