//! Bochs with the project's plugin (`tests/machines`), which gives it a VT-d unit and NVMe controllers:
//! which Bochs that is, and which devices a guest may have in it.

use std::path::{Path, PathBuf};

use config::{Config, Devices};

use crate::built;
use crate::cli::Iommu;
use crate::failure::{Failure, Result};

/// The installed Bochs.
const INSTALLED: &str = "bochs";
/// Where the plugin lies, beside Bochs 3.
const PLUGIN: &str = "plugins/libbx_vtd.so";

/// A Bochs to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    pub program: String,
    /// Whether the machine in it has a VT-d unit.
    pub has_unit: bool,
}

/// The Bochs that the options ask for.
///
/// # Errors
/// There is none with a VT-d unit, and one was asked for.
pub fn program(given: Option<&str>, iommu: Option<Iommu>) -> Result<Program> {
    choose(given, iommu, &places())
}

/// Where Bochs 3 may lie: `make setup` itself knows no other build folder than target.
pub(crate) fn places() -> [PathBuf; 2] {
    [built::folder().join("bochs3/bochs"), PathBuf::from("target/bochs3/bochs")]
}

fn choose(given: Option<&str>, iommu: Option<Iommu>, places: &[PathBuf]) -> Result<Program> {
    let without = |program: &str| Program { program: program.to_owned(), has_unit: false };
    if iommu == Some(Iommu::None) {
        return Ok(without(given.unwrap_or(INSTALLED)));
    }
    let given_place = given.map(PathBuf::from);
    let places = given_place.as_ref().map_or(places, std::slice::from_ref);
    if let Some(place) = places.iter().find(|place| has_plugin(place)) {
        return Ok(Program { program: place.display().to_string(), has_unit: true });
    }
    if iommu == Some(Iommu::VtD) {
        let program = given.unwrap_or("Bochs 3");
        return Err(Failure::Usage(format!(
            "--iommu vt-d: {program} has no plugin for it: `make setup machines` puts both in target/bochs3"
        )));
    }
    Ok(without(given.unwrap_or(INSTALLED)))
}

fn has_plugin(program: &Path) -> bool {
    program.parent().is_some_and(|folder| {
        !folder.as_os_str().is_empty() && folder.join(PLUGIN).is_file() && program.is_file()
    })
}

/// Bochs' own devices bypass the unit, and the hypervisor cannot know it: no guest may have one.
///
/// # Errors
/// A guest has one.
pub(crate) fn check_devices(config: &Config, lines: &[String]) -> Result<()> {
    let behind: Vec<String> = lines.iter().flat_map(|line| controllers(line)).collect();
    for guest in &config.guests {
        let refused = |what: &str| {
            Err(Failure::Usage(format!(
                "guest {}: {what}: Bochs' own devices bypass its VT-d unit; give the guest controllers of lines \
                 like 'vtd: nvme=\"4:disk.img\"', or the machine no unit (--iommu none, and unsafe_no_iommu = true)",
                guest.name
            )))
        };
        match &guest.devices {
            Devices::All { .. } => return refused("devices = \"all\""),
            Devices::Listed(functions) => {
                let names = functions.iter().map(ToString::to_string);
                if let Some(name) = names.into_iter().find(|name| !behind.contains(name)) {
                    return refused(&name);
                }
            }
        }
    }
    Ok(())
}

/// The controllers that a line of Bochs' configuration puts behind the unit, as `lspci` writes them.
fn controllers(line: &str) -> Vec<String> {
    let Some(options) = line.trim_start().strip_prefix("vtd:") else { return Vec::new() };
    let values = options.split(',').filter_map(|option| option.trim().strip_prefix("nvme="));
    let devices = values.filter_map(|value| {
        let (device, _) = value.trim_start_matches('"').split_once(':')?;
        device.parse::<u8>().ok()
    });
    devices.map(|device| format!("00:{device:02x}.0")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn bochs_3_with_its_plugin_comes_first_and_is_never_made_up() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("bochs");
        let places = [folder.path().join("none/bochs"), place.clone()];
        let installed = Program { program: "bochs".into(), has_unit: false };
        assert_eq!(choose(None, None, &places).unwrap(), installed);
        let error = choose(None, Some(Iommu::VtD), &places).unwrap_err().to_string();
        assert!(error.contains("`make setup machines`"), "{error}");

        fs::write(&place, "").unwrap();
        fs::create_dir(folder.path().join("plugins")).unwrap();
        fs::write(folder.path().join(PLUGIN), "").unwrap();
        let name = place.display().to_string();
        let with_unit = Program { program: name.clone(), has_unit: true };
        assert_eq!(choose(None, None, &places).unwrap(), with_unit);
        assert_eq!(choose(Some(&name), None, &[]).unwrap(), with_unit);
        assert_eq!(choose(None, Some(Iommu::None), &places).unwrap(), installed);
        let other = Program { program: "/x/bochs".into(), has_unit: false };
        assert_eq!(choose(Some("/x/bochs"), None, &places).unwrap(), other);
        let without = Program { program: name.clone(), has_unit: false };
        assert_eq!(choose(Some(&name), Some(Iommu::None), &[]).unwrap(), without);
    }

    fn checked(devices: &str, lines: &[&str]) -> Result<()> {
        let text = format!(
            "[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"k\"\ndevices = {devices}\n"
        );
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        check_devices(&config::parse(&text).unwrap(), &lines)
    }

    #[test]
    fn a_device_that_bypasses_the_unit_is_refused() {
        let lines = ["ata0-master: type=disk, path=d", "vtd: nvme=\"4:a\", nvme=17:, report=r"];
        assert!(checked("[]", &[]).is_ok());
        assert!(checked("[\"00:04.0\", \"00:11.0\"]", &lines).is_ok());
        for devices in ["[\"00:01.1\"]", "[\"00:04.0\", \"00:05.0\"]", "\"all\""] {
            let error = checked(devices, &lines).unwrap_err().to_string();
            assert!(error.contains("guest a: ") && error.contains("--iommu none"), "{error}");
        }
    }
}
