//! Which kernel modules a driver needs, and in which order they load: read from the modules
//! themselves (section `.modinfo`: `depends=`, `softdep=pre:`), as a package that is only unpacked
//! has no `modules.dep` yet.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, OrFailed, Result};

/// The modules of an unpacked kernel package.
#[derive(Debug)]
pub struct Modules {
    /// Module name (with `_`) → file.
    files: BTreeMap<String, PathBuf>,
    /// Names of what is linked into the kernel.
    builtin: Vec<String>,
}

impl Modules {
    /// Finds all modules below `folder` (`lib/modules/VERSION`).
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn find(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(folder, &mut files)?;
        let path = folder.join("modules.builtin");
        let list = fs::read_to_string(&path).or_failed("read", &path)?;
        Ok(Self { files, builtin: list.lines().map(module_name).collect() })
    }

    /// The files to load for the driver `name`, dependencies first. `None` where this kernel has no
    /// such driver; empty where it is linked in.
    ///
    /// # Errors
    /// A module that another one needs is missing, or cannot be read.
    pub fn load_order(&self, name: &str) -> Result<Option<Vec<PathBuf>>> {
        if !self.has(&module_name(name)) {
            return Ok(None);
        }
        let order = order(name, &mut |module| self.needs_of(module))?;
        Ok(Some(order.iter().filter_map(|module| self.files.get(module).cloned()).collect()))
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.builtin.iter().any(|builtin| builtin == name)
    }

    /// What `module` needs; `None` where it is linked in.
    fn needs_of(&self, module: &str) -> Result<Option<Vec<String>>> {
        let Some(path) = self.files.get(module) else {
            let missing = || Failure::Failed(format!("the kernel package has no module {module}"));
            return self.has(module).then_some(None).ok_or_else(missing);
        };
        let needs = needs(&fs::read(path).or_failed("read", path)?);
        let soft = needs.soft.iter().filter_map(|algorithm| self.provider(algorithm));
        Ok(Some(needs.hard.iter().cloned().chain(soft).collect()))
    }

    /// The module for a soft dependency. It may name an algorithm (`crypto-crc32c`) rather than a
    /// file: then its generic form meets it. What this kernel lacks can be done without.
    fn provider(&self, algorithm: &str) -> Option<String> {
        let name = module_name(algorithm.strip_prefix("crypto-").unwrap_or(algorithm));
        [format!("{name}_generic"), name].into_iter().find(|candidate| self.has(candidate))
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

/// What a module file says it needs.
#[derive(Default, Debug)]
struct Needs {
    /// `depends=a,b`, as module names.
    hard: Vec<String>,
    /// `softdep=pre: c d`, as written.
    soft: Vec<String>,
}

fn needs(module: &[u8]) -> Needs {
    let mut needs = Needs::default();
    for line in module.split(|byte| *byte == 0) {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        if let Some(names) = line.strip_prefix("depends=") {
            needs.hard.extend(names.split(',').filter(|name| !name.is_empty()).map(module_name));
        }
        if let Some(names) = line.strip_prefix("softdep=pre:") {
            let names = names.split("post:").next().unwrap_or_default();
            needs.soft.extend(names.split_whitespace().map(str::to_owned));
        }
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_from_the_module_itself() {
        let module =
            b"\x7fELF\0license=GPL\0depends=jbd2,mbcache\0softdep=pre: crypto-crc32c\0name=ext4\0";
        assert_eq!(needs(module).hard, ["jbd2", "mbcache"]);
        assert_eq!(needs(module).soft, ["crypto-crc32c"]);
        assert!(needs(b"\0depends=\0").hard.is_empty());
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
    fn a_soft_dependency_is_met_by_the_generic_form_or_left_out() {
        let files = BTreeMap::from([("crc32c_generic".to_owned(), PathBuf::from("x"))]);
        let modules = Modules { files, builtin: vec!["crct10dif".to_owned()] };
        assert_eq!(modules.provider("crypto-crc32c").as_deref(), Some("crc32c_generic"));
        assert_eq!(modules.provider("crct10dif").as_deref(), Some("crct10dif"));
        assert_eq!(modules.provider("crypto-xxhash"), None);
    }

    #[test]
    fn hyphens_and_underscores_are_the_same() {
        assert_eq!(module_name("kernel/drivers/nvme/host/nvme-core.ko"), "nvme_core");
        assert_eq!(module_name("i2c_algo_bit"), "i2c_algo_bit");
    }
}
