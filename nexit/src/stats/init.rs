//! Which code only the boot needs, and that nothing else runs of what is dropped from memory after it.
//!
//! The linker script gathers such code in the section `.init`, by name; the hypervisor makes its memory free before
//! the first guest runs. What may run later is found in the image's instructions: all that the boot's last function
//! ([`AFTER_BOOT`]) leads to, and all that may be called through a pointer, whoever holds that. Of the latter only
//! functions that format text cannot outlive the boot: the pointers to them are in `fmt::Arguments`, on the stack of
//! the caller.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::image::{Function, Image};
use super::reach::{Graph, LOOP, THROUGH_OBJECTS};
use crate::failure::{Failure, Result};

/// Where the boot processor stays once the boot is over.
const AFTER_BOOT: &str = "kernel::serve";
/// In the names of functions that format text.
const FORMATS: &str = " as core::fmt::";

/// The code that only the boot needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Boot<'a> {
    dropped: u64,
    /// What could be dropped besides, the largest first.
    kept: Vec<&'a Function>,
}

impl<'a> Boot<'a> {
    /// Finds it.
    ///
    /// # Errors
    /// Something in `.init` may run later, or it cannot be said what runs later.
    pub(crate) fn find(image: &'a Image, graph: &Graph<'a>) -> Result<Self> {
        let later = later(image, graph)?;
        let functions = image.functions.iter().enumerate();
        let (dropped, stays): (Vec<_>, Vec<_>) =
            functions.partition(|(_, function)| image.init.contains(&function.start));
        if let Some((index, function)) = dropped.iter().find(|(index, _)| later.contains(index)) {
            return Err(needed(function, &graph.callers(*index, &later)));
        }
        let mut kept: Vec<_> = stays
            .into_iter()
            .filter(|(index, _)| !later.contains(index))
            .map(|(_, function)| function)
            .collect();
        kept.sort_by_key(|function| std::cmp::Reverse(size(function)));
        Ok(Self { dropped: image.init.end - image.init.start, kept })
    }

    /// For a reader; with the functions that could be dropped besides.
    pub(crate) fn text(&self, functions: bool) -> String {
        let mut text = "bytes of code that only the boot needs\n".to_owned();
        let stays: u64 = self.kept.iter().map(|function| size(function)).sum();
        for (what, count) in [("dropped after it", self.dropped), ("stay all the same", stays)] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {what:24} {count:8}");
        }
        for function in self.kept.iter().filter(|_| functions) {
            let _ = writeln!(text, "    {:6} {}", size(function), function.name);
        }
        text
    }
}

const fn size(function: &Function) -> u64 {
    function.end - function.start
}

/// What may run once the boot is over.
fn later(image: &Image, graph: &Graph<'_>) -> Result<BTreeSet<usize>> {
    if graph.named(&[AFTER_BOOT]).next().is_none() {
        let text = format!(
            "no function of the image is called {AFTER_BOOT}…: name in nexit/src/stats/init.rs where the boot \
             processor stays after the boot"
        );
        return Err(Failure::Failed(text));
    }
    let formats = |index: usize| {
        image.functions.get(index).is_some_and(|function| function.name.contains(FORMATS))
    };
    let taken = graph.taken().iter().copied().filter(|index| !formats(*index));
    let named = graph.named(&[AFTER_BOOT, LOOP]).chain(graph.named(&THROUGH_OBJECTS));
    Ok(graph.led_to(taken.chain(named)))
}

fn needed(function: &Function, callers: &[&Function]) -> Failure {
    let callers: Vec<_> = callers.iter().map(|caller| caller.name.as_str()).collect();
    let by = if callers.is_empty() { "a pointer".to_owned() } else { callers.join(", ") };
    Failure::Failed(format!(
        "{} is dropped from memory after the boot, and may run later, called by {by}: take it out of .init in \
         kernel/link.ld, or out of its section .text.init",
        function.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "boot",
        "kernel::serve::<X>",
        "called_later",
        "in_a_table",
        "<X as core::fmt::Display>::fmt",
        "only_the_boot_calls_it",
    ];

    /// Functions of 16 bytes from 0x1000. The boot calls the second and the last; the second calls the third; a
    /// table holds the fourth and the fifth, and the boot loads its address.
    fn image(init: std::ops::Range<u64>) -> Image {
        let code: [(usize, &[u8]); 4] = [
            (0, &[0xE8, 0x0B, 0, 0, 0]),
            (5, &[0xE8, 0x46, 0, 0, 0]),
            (10, &[0x90, 0xB8, 0, 0x20, 0, 0]),
            (16, &[0xE8, 0x0B, 0, 0, 0]),
        ];
        Image { init, ..Image::of_test(&NAMES, &code, &[0x1030, 0x1040]) }
    }

    fn text(init: std::ops::Range<u64>) -> std::result::Result<String, String> {
        let image = image(init);
        let graph = Graph::new(&image);
        let boot = Boot::find(&image, &graph).map_err(|error| error.to_string())?;
        Ok(boot.text(true))
    }

    #[test]
    fn what_only_the_boot_calls_or_prints_can_be_dropped() {
        let text = text(0..0).unwrap();
        let dropped = |name: &str| text.contains(name);
        assert_eq!(NAMES.map(dropped), [true, false, false, false, true, true], "{text}");
    }

    #[test]
    fn what_is_dropped_is_counted_and_is_no_longer_said_to_stay() {
        let text = text(0x1000..0x1010).unwrap();
        assert!(text.contains("dropped after it               16\n"), "{text}");
        assert!(text.contains("stay all the same              32\n"), "{text}");
    }

    #[test]
    fn what_is_called_later_or_through_a_pointer_must_not_be_dropped() {
        for (init, function, caller) in [
            (0x1020..0x1030, "called_later is dropped", "called by kernel::serve::<X>: "),
            (0x1030..0x1040, "in_a_table is dropped", "called by a pointer: "),
        ] {
            let error = text(init).unwrap_err();
            assert!(error.contains(function) && error.contains(caller), "{error}");
        }
    }

    #[test]
    fn an_end_of_the_boot_of_another_name_is_noticed() {
        let mut image = image(0..0);
        image.functions[1].name = "renamed".to_owned();
        let error = Boot::find(&image, &Graph::new(&image)).unwrap_err().to_string();
        assert!(error.contains("no function of the image is called kernel::serve"), "{error}");
    }
}
