//! What machine it is: `name=value`, as the emulator's configuration has it.

use std::path::PathBuf;

use crate::nvme::NvmeOptions;
use crate::unit::UnitOptions;

/// All options.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The unit; `None` for a machine without.
    pub unit: Option<UnitOptions>,
    /// What every controller is like.
    pub nvme: NvmeOptions,
    /// The controllers: their device numbers, and what they store; an empty path is 1 MiB of zeroes.
    pub controllers: Vec<(u8, PathBuf)>,
    /// A file for the counters.
    pub report: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            unit: Some(UnitOptions::default()),
            nvme: NvmeOptions::default(),
            controllers: Vec::new(),
            report: None,
        }
    }
}

impl Options {
    /// Takes `name=value`; the value may stand in quotes.
    ///
    /// # Errors
    /// A sentence, where it is no option or has no such value.
    pub fn take(&mut self, option: &str) -> Result<(), String> {
        let refused = |why: &str| Err(format!("vtd: `{option}`: {why}"));
        let Some((name, value)) = option.split_once('=') else {
            return refused("not of the form name=value");
        };
        let value = value.trim_matches('"');
        match name {
            "nvme" => return self.take_controller(value).or_else(refused),
            "report" => {
                self.report = Some(PathBuf::from(value));
                return Ok(());
            }
            _ => {}
        }
        let Ok(number) = value.parse::<u64>() else { return refused("no number") };
        if self.take_number(name, number) {
            Ok(())
        } else {
            refused("no such option, or no such value")
        }
    }

    /// `DEVICE:FILE`.
    fn take_controller(&mut self, value: &str) -> Result<(), &'static str> {
        // Bochs' own bridge functions are on 0 and 1.
        const DEVICES: std::ops::Range<u8> = 2..32;
        let (device, path) = value.split_once(':').ok_or("not of the form DEVICE:FILE")?;
        let device = device.parse().ok().filter(|device| DEVICES.contains(device));
        let device = device.ok_or("the device is a number from 2 to 31")?;
        if self.controllers.iter().any(|(other, _)| *other == device) {
            return Err("two controllers on one device number");
        }
        self.controllers.push((device, PathBuf::from(path)));
        Ok(())
    }

    fn take_number(&mut self, name: &str, number: u64) -> bool {
        let flag = number == 1;
        let is_flag = number <= 1;
        let nvme = &mut self.nvme;
        match name {
            "latency" => nvme.latency = number.max(1),
            "reset_ticks" => nvme.reset_ticks = number,
            "vectors" if (1..=8).contains(&number) => nvme.vectors = number as u16,
            "msix" if is_flag => nvme.msi_x = flag,
            "intx" if is_flag => nvme.pin = flag,
            "bar64" if is_flag => nvme.bar_64 = flag,
            "flr" if is_flag => nvme.reset = flag,
            "unit" if is_flag => self.unit = flag.then(UnitOptions::default),
            _ => return self.unit.as_mut().is_some_and(|unit| take_of_unit(unit, name, number)),
        }
        true
    }
}

fn take_of_unit(unit: &mut UnitOptions, name: &str, number: u64) -> bool {
    let flag = match name {
        "levels" if number == 3 || number == 4 => {
            unit.levels = number as u8;
            return true;
        }
        "delay" => {
            unit.delay = number.max(1);
            return true;
        }
        "caching_mode" => &mut unit.caching_mode,
        "superpages" => &mut unit.superpages,
        "eim" => &mut unit.extended_interrupt_mode,
        "ir" => &mut unit.interrupt_remapping,
        "coherent" => &mut unit.coherent,
        "write_buffer" => &mut unit.write_buffer,
        "answers" => &mut unit.answers,
        "left_on" => &mut unit.left_on,
        "left_error" => &mut unit.left_error,
        "trace" => &mut unit.trace,
        _ => return false,
    };
    *flag = number == 1;
    number <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_its_effect() {
        let mut options = Options::default();
        for option in
            ["nvme=\"4:a disk\"", "nvme=5:", "report=\"r\"", "levels=3", "eim=0", "vectors=1"]
        {
            options.take(option).unwrap();
        }
        assert_eq!(options.controllers, [(4, PathBuf::from("a disk")), (5, PathBuf::new())]);
        assert_eq!((options.report, options.nvme.vectors), (Some(PathBuf::from("r")), 1));
        let unit = options.unit.unwrap();
        assert!(unit.levels == 3 && !unit.extended_interrupt_mode && unit.interrupt_remapping);
    }

    #[test]
    fn what_is_none_is_refused_with_a_sentence() {
        let mut options = Options::default();
        let bad = [
            "",
            "x=1",
            "eim=2",
            "eim=yes",
            "levels=5",
            "vectors=9",
            "nvme=4",
            "nvme=1:",
            "nvme=32:",
        ];
        for option in bad {
            let sentence = options.take(option).unwrap_err();
            assert!(sentence.starts_with(&format!("vtd: `{option}`: ")), "{sentence}");
        }
        options.take("nvme=4:").unwrap();
        assert!(options.take("nvme=4:").unwrap_err().contains("two controllers"));
        options.take("unit=0").unwrap();
        assert!(options.take("eim=0").is_err(), "no unit to be that way");
    }
}
