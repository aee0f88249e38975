//! What becomes of each PCI function: can a guest have it, with whom, how do its interrupts come, how is it
//! reset.

use std::collections::BTreeMap;

use arch::Bdf;
use arch::machine::{ConfigSpace as _, Width};
use capture::Capture;
use config::{Config, Devices, GuestConfig};
use pci::header::{HeaderType, INTERRUPT_LINE};
use pci::reset::{Way, way};
use pci::{Function, VirtualFunction};
use serde::Serialize;

use super::facts::Facts;
use crate::files::Files;

/// Configuration space that was read without rights ends here: no capabilities.
const HEADER_BYTES: usize = 64;

/// A function and what is known of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct DeviceVerdict {
    /// Its address.
    pub(crate) at: String,
    /// Vendor and device.
    pub(crate) id: String,
    /// Its class, or what people call it.
    pub(crate) what: String,
    /// The driver that has it where it was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) driver: Option<String>,
    /// A guest can have it.
    pub(crate) assignable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why_not: Option<String>,
    /// What must go to the same guest.
    pub(crate) together_with: Vec<String>,
    /// How its interrupts come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interrupts: Option<String>,
    /// How it is reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reset: Option<String>,
    /// Other things to know.
    pub(crate) notes: Vec<String>,
    /// The guest that has it by the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<String>,
}

/// The verdicts on all functions; `owned` are those of each guest of `config`.
pub(crate) fn verdicts(
    capture: &Capture,
    facts: &Facts,
    config: Option<(&Config, &[Vec<Bdf>])>,
) -> Vec<DeviceVerdict> {
    let trusting = config.is_some_and(|(config, _)| config.unsafe_no_iommu);
    let functions = facts.view.functions.iter();
    let found = functions.map(|function| verdict(capture, facts, function, trusting, config));
    let unreached = facts.unreached().iter().map(|at| DeviceVerdict {
        why_not: Some(
            "the boot does not find it: no window to configuration space and no bridge leads \
                       there"
                .to_owned(),
        ),
        ..blank(capture, *at, "")
    });
    found.chain(unreached).collect()
}

fn blank(capture: &Capture, at: Bdf, what: &str) -> DeviceVerdict {
    let captured = capture.function(at);
    let identity = captured.and_then(|it| arch::bytes::u32_at(&it.config.0, 0)).unwrap_or(0);
    let name = captured.and_then(|it| it.name.clone());
    DeviceVerdict {
        at: at.to_string(),
        id: format!("{:04x}:{:04x}", identity as u16, identity >> 16),
        what: name.unwrap_or_else(|| what.to_owned()),
        driver: captured.and_then(|it| it.driver.clone()),
        assignable: false,
        why_not: None,
        together_with: Vec::new(),
        interrupts: None,
        reset: None,
        notes: Vec::new(),
        guest: None,
    }
}

fn verdict(
    capture: &Capture,
    facts: &Facts,
    function: &Function,
    trusting: bool,
    config: Option<(&Config, &[Vec<Bdf>])>,
) -> DeviceVerdict {
    let at = function.bdf;
    let mut verdict = blank(capture, at, class_name(function.class));
    let together = together(facts, at);
    let alone = refusal(facts, &together, trusting);
    verdict.assignable = alone.is_none();
    verdict.why_not = alone;
    if function.header != HeaderType::Device || function.is_infrastructure() {
        return verdict;
    }
    let others = together.iter().filter(|other| **other != at);
    verdict.together_with = others.map(ToString::to_string).collect();
    let whole = capture.function(at).is_some_and(|it| it.config.0.len() > HEADER_BYTES);
    if whole {
        verdict.interrupts = Some(interrupts(facts, function));
        let way = way(&facts.view.space, &facts.view.functions, function, &together);
        verdict.reset = Some(way.to_string());
        if way == Way::None {
            verdict.notes.push("what a guest leaves in it, the next one finds".to_owned());
        }
    } else {
        verdict.notes.push(
            "its capabilities were not read (probe as root): interrupts and reset are not known"
                .to_owned(),
        );
    }
    if let Some(range) = facts.view.reserved_memory(at).filter(|_| verdict.assignable) {
        verdict.notes.push(format!(
            "taken from the firmware, which uses it for DMA to {} (RMRR)",
            range.start
        ));
    }
    if function.is_of_the_platform() {
        verdict
            .notes
            .push("not among \"all\": it controls the board's sensors or its firmware".to_owned());
    }
    let owner = config.and_then(|(config, owned)| {
        let index = owned.iter().position(|own| own.contains(&at))?;
        config.guests.get(index)
    });
    verdict.guest = owner.map(|guest| guest.name.clone());
    verdict
}

/// The function and all that must go to a guest with it.
pub(crate) fn together(facts: &Facts, at: Bdf) -> Vec<Bdf> {
    let divided = facts.view.groups.divided(&[[at]]);
    let only = facts.no_iommu.is_some();
    divided.into_iter().next().filter(|_| !only).map_or(vec![at], |error| error.together)
}

/// Why a guest cannot have these functions, by what `plan` says of a guest that has nothing else.
pub(crate) fn refusal(facts: &Facts, functions: &[Bdf], trusting: bool) -> Option<String> {
    let guest = GuestConfig { devices: Devices::Listed(functions.to_vec()), ..some_guest()? };
    let config = Config {
        guests: vec![guest],
        unsafe_no_iommu: trusting,
        console: None,
        probe: false,
        share_cores: false,
        shared: Vec::new(),
        places: config::Places::default(),
    };
    let plan = facts.plan(&config, &Files::none());
    let refusal = plan.refusals.into_iter().find(|refusal| refusal.key == "devices")?;
    let words = refusal.words().to_string();
    Some(words.trim_start_matches("guest -: ").trim_start_matches("devices: ").to_owned())
}

fn some_guest() -> Option<GuestConfig> {
    let text = "[[guest]]\nname = \"-\"\ncpus = [0]\nmemory = \"16M\"\nkernel = \"-\"\n";
    config::parse(text).ok()?.guests.into_iter().next()
}

/// How the interrupts of a function come.
fn interrupts(facts: &Facts, function: &Function) -> String {
    let mut view = VirtualFunction::new(&mut facts.view.space.clone(), function.bdf);
    let pin = facts.view.space.read(function.bdf, INTERRUPT_LINE + 1, Width::Byte);
    if let Some(entries) = view.msix().map(|msix| msix.entries) {
        let plural = if entries == 1 { "" } else { "s" };
        format!("MSI-X, {entries} message{plural}, exitless")
    } else if view.msi().is_some() {
        "MSI, one message, exitless".to_owned()
    } else if !function.legacy_ide().is_empty() {
        "the ISA bus's lines 14 and 15".to_owned()
    } else if let 1..=4 = pin {
        let letter = char::from(b'A' + pin as u8 - 1);
        format!("only by its pin INT{letter}: it needs an entry in intx")
    } else {
        "none".to_owned()
    }
}

/// What a class code says (PCI Code and ID Assignment Specification, "Class Codes").
pub(crate) fn class_name(class: u32) -> &'static str {
    let names: BTreeMap<u32, &str> = BTreeMap::from([
        (0x01_01, "IDE controller"),
        (0x01_04, "RAID controller"),
        (0x01_06, "SATA controller"),
        (0x01_07, "SAS controller"),
        (0x01_08, "NVMe controller"),
        (0x02_00, "Ethernet controller"),
        (0x02_80, "network controller"),
        (0x04_01, "sound"),
        (0x04_03, "sound"),
        (0x06_00, "host bridge"),
        (0x06_01, "ISA bridge"),
        (0x06_04, "PCI bridge"),
        (0x07_00, "serial line"),
        (0x08_05, "SD card reader"),
        (0x08_06, "IOMMU"),
        (0x0c_03, "USB controller"),
        (0x0c_05, "SMBus controller"),
        (0x0c_80, "serial bus controller"),
    ]);
    let base = match class >> 16 {
        0x00 => "old device",
        0x01 => "storage controller",
        0x02 => "network controller",
        0x03 => "display",
        0x04 => "multimedia device",
        0x05 => "memory controller",
        0x06 => "bridge",
        0x07 => "communication controller",
        0x08 => "system device",
        0x09 => "input device",
        0x0c => "serial bus controller",
        0x0d => "wireless controller",
        0x10 => "encryption controller",
        0x11 => "signal processing controller",
        0x12 | 0x40 => "accelerator",
        _ => "device",
    };
    names.get(&(class >> 8)).copied().unwrap_or(base)
}
