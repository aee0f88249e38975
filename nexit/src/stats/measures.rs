//! The five measures, their text, and what they are held to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::crates::ImageCrate;
use super::image::{Image, Lines};
use super::lines::{self, Source};
use super::reach::{Graph, LOOP, THROUGH_OBJECTS, Vendor};
use crate::failure::{Failure, Result};

/// A crate of the image, with its sources.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Crate {
    name: String,
    ours: bool,
    /// Its own tests run on the host.
    tested: bool,
    sources: Vec<Source>,
}

impl Crate {
    /// Reads its sources.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn read(krate: &ImageCrate) -> Result<Self> {
        let folder = krate.folder.join("src");
        let sources = lines::sources(&folder)?;
        let tests = krate.folder.join("tests");
        let tested = krate.ours
            && (lines::has_tests(&folder)? || tests.is_dir() && lines::has_tests(&tests)?);
        Ok(Self { name: krate.name.clone(), ours: krate.ours, tested, sources })
    }

    fn lines(&self) -> usize {
        self.sources.iter().map(Source::count).sum()
    }

    fn unsafe_blocks(&self) -> usize {
        self.sources.iter().map(Source::unsafe_blocks).sum()
    }

    fn touched(&self, touched: &Lines) -> usize {
        let count = |source: &Source| Some(source.count_touched(touched.get(&source.path)?));
        self.sources.iter().filter_map(count).sum()
    }
}

/// A measure: its name in the file of limits, what it says, and its parts.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Measure {
    key: String,
    title: String,
    parts: BTreeMap<String, usize>,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Measures(Vec<Measure>);

impl Measures {
    /// Takes them.
    ///
    /// # Errors
    /// The functions from which reach is measured are not in the image.
    pub(crate) fn take(image: &Image, graph: &Graph<'_>, crates: &[Crate]) -> Result<Self> {
        let mut all = Vec::new();
        for vendor in Vendor::ALL {
            let functions = graph.reach(vendor);
            if functions.is_empty() {
                let text = format!(
                    "no function of the image that is called {LOOP}… enters a guest by {}: name the loop in \
                     nexit/src/stats/reach.rs as it is called now",
                    vendor.name()
                );
                return Err(Failure::Failed(text));
            }
            let mut touched = Lines::new();
            functions.iter().for_each(|f| image.lines(f.start, f.end, &mut touched));
            let name = vendor.name();
            all.push(Measure {
                key: format!("reached-{}", name.to_lowercase()),
                title: format!("own lines that a guest's exit can reach on {name}"),
                parts: parts(crates, |krate| krate.ours.then(|| krate.touched(&touched))),
            });
        }
        named(image)?;
        let linked = image.all_lines();
        let code: u64 =
            image.segments.iter().filter(|segment| segment.is_code()).map(|s| s.memory).sum();
        let code = code.saturating_sub(image.init.end - image.init.start);
        let code = usize::try_from(code).unwrap_or(usize::MAX);
        let measure =
            |key: &str, title: &str, parts| Measure { key: key.into(), title: title.into(), parts };
        all.extend([
            measure(
                "foreign-linked",
                "foreign lines linked",
                parts(crates, |krate| (!krate.ours).then(|| krate.touched(&linked))),
            ),
            measure(
                "foreign-whole",
                "foreign lines, whole crates",
                parts(crates, |krate| (!krate.ours).then(|| krate.lines())),
            ),
            measure(
                "code-bytes",
                "bytes of code that stay in memory after the boot",
                BTreeMap::from([("all of it".to_owned(), code)]),
            ),
            measure(
                "unsafe-blocks",
                "unsafe blocks",
                parts(crates, |krate| krate.ours.then(|| krate.unsafe_blocks())),
            ),
            measure(
                "untested-lines",
                "own lines in crates without host tests",
                parts(crates, |krate| (krate.ours && !krate.tested).then(|| krate.lines())),
            ),
        ]);
        Ok(Self(all))
    }

    /// For a reader: what there is in all, then the measures.
    pub(crate) fn text(&self, crates: &[Crate]) -> String {
        let own = Measure {
            key: String::new(),
            title: "own lines, whole crates (held to nothing)".to_owned(),
            parts: parts(crates, |krate| krate.ours.then(|| krate.lines())),
        };
        let mut text = String::new();
        for Measure { title, parts, key } in [&own].into_iter().chain(&self.0) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{title}{}{key}", if key.is_empty() { "" } else { ": " });
            let some = parts.iter().filter(|(_, count)| **count > 0);
            let some: Vec<_> = some.map(|(name, count)| (name.as_str(), *count)).collect();
            let total = ("total", parts.values().sum());
            for (name, count) in some.into_iter().chain([total]) {
                let _ = writeln!(text, "  {name:24} {count:8}");
            }
        }
        text
    }

    /// The measures that are above their limit, as sentences.
    ///
    /// # Errors
    /// A measure has no limit, or a limit no measure.
    pub(crate) fn over(&self, limits: &[(String, usize)]) -> Result<Vec<String>> {
        let known = |key: &str| self.0.iter().any(|measure| measure.key == key);
        if let Some((key, _)) = limits.iter().find(|(key, _)| !known(key)) {
            return Err(Failure::Usage(format!("--most {key}: `nexit stats` has no such measure")));
        }
        let mut over = Vec::new();
        for Measure { key, title, parts } in &self.0 {
            let limit = limits.iter().find(|(name, _)| name == key).map(|(_, limit)| *limit);
            let missing = || Failure::Usage(format!("--most: no limit for {key}"));
            let (limit, total) = (limit.ok_or_else(missing)?, parts.values().sum::<usize>());
            if total > limit {
                over.push(format!("{title}: {total}, and {limit} is allowed ({key})"));
            }
        }
        Ok(over)
    }
}

/// A name that stands for functions must be the name of some.
fn named(image: &Image) -> Result<()> {
    let unknown =
        |name: &&str| !image.functions.iter().any(|function| function.name.contains(*name));
    THROUGH_OBJECTS.iter().find(|name| unknown(name)).map_or(Ok(()), |name| {
        let text =
            format!("no function of the image is called …{name}…: see nexit/src/stats/reach.rs");
        Err(Failure::Failed(text))
    })
}

/// By crate; two versions of a crate are one part.
fn parts(crates: &[Crate], count: impl Fn(&Crate) -> Option<usize>) -> BTreeMap<String, usize> {
    let mut parts = BTreeMap::new();
    for krate in crates {
        if let Some(count) = count(krate) {
            *parts.entry(krate.name.clone()).or_default() += count;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures() -> Measures {
        let measure = |key: &str, count| Measure {
            key: key.to_owned(),
            title: format!("lines of {key}"),
            parts: BTreeMap::from([("a".to_owned(), count), ("b".to_owned(), 1)]),
        };
        Measures(vec![measure("x", 9), measure("y", 0)])
    }

    fn over(limits: &[(&str, usize)]) -> Result<Vec<String>> {
        let limits: Vec<_> =
            limits.iter().map(|(key, limit)| ((*key).to_owned(), *limit)).collect();
        measures().over(&limits)
    }

    #[test]
    fn growth_beyond_a_limit_is_said_with_both_numbers() {
        assert_eq!(over(&[("x", 10), ("y", 1)]), Ok(vec![]));
        let sentence = "lines of x: 10, and 9 is allowed (x)".to_owned();
        assert_eq!(over(&[("y", 1), ("x", 9)]), Ok(vec![sentence]));
    }

    #[test]
    fn a_measure_without_a_limit_and_a_limit_without_a_measure_are_refused() {
        for (limits, word) in [
            ([("x", 10)].as_slice(), "no limit for y"),
            (&[("x", 10), ("y", 1), ("z", 1)], "z: `nexit stats` has no such"),
        ] {
            let sentence = over(limits).unwrap_err().to_string();
            assert!(sentence.contains(word), "{sentence}");
        }
    }

    #[test]
    fn every_measure_is_printed_with_its_key_and_its_total() {
        let text = measures().text(&[]);
        assert!(
            text.contains("lines of x: x\n")
                && text.contains("  total                          10\n"),
            "{text}"
        );
    }
}
