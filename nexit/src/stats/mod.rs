//! `nexit stats`: lines of trusted code, size of the image, memory at run time.
//!
//! Trusted code is what is linked into the image: its own crates, and the crates of others that it
//! depends on (told apart; Rust's own `core` and `alloc` are not counted). Tools, tests and the UEFI
//! loader, which is gone when the image runs, are not in it.

mod crates;
mod elf;
mod lines;

use std::fs;
use std::path::Path;

use crate::built;
use crate::cli::StatsArgs;
use crate::failure::{Failure, OrFailed, Result};
use crate::report::Report;
use crates::ImageCrate;

/// Prints everything.
pub(crate) fn print(args: &StatsArgs) -> Result<()> {
    let crates = crates::in_image()?;
    let (ours, others): (Vec<_>, Vec<_>) = crates.iter().partition(|krate| krate.ours);
    let own = table("lines of Nexit in the image", &ours)?;
    table("lines of its dependencies (whole crates; not all of each is linked)", &others)?;
    let image = built::image(&args.images)?;
    let bytes = fs::read(&image).or_failed("read", &image)?;
    let segments = elf::segments(&bytes)
        .ok_or_else(|| Failure::Failed(format!("{} is no ELF image", image.display())))?;
    println!("image");
    for segment in &segments {
        println!("  {:24} {:8} KiB", segment.name(), segment.memory.div_ceil(1024));
    }
    let total: u64 = segments.iter().map(|segment| segment.memory).sum();
    println!("  {:24} {:8} KiB", "in memory", total.div_ceil(1024));
    args.report.as_deref().map_or(Ok(()), print_memory)?;
    within(own, args.most_lines)
}

/// Trusted code grows only where somebody decides that it may.
fn within(own: usize, most: Option<usize>) -> Result<()> {
    match most {
        Some(most) if own > most => Err(Failure::Failed(format!(
            "the image has {own} lines of Nexit's own, and {most} is the most allowed: make it smaller, or \
             raise MOST_LINES in the Makefile and say why"
        ))),
        _ => Ok(()),
    }
}

fn table(title: &str, crates: &[&ImageCrate]) -> Result<usize> {
    println!("{title}");
    let mut total = 0;
    for krate in crates {
        let count = lines::count_folder(&krate.folder.join("src"))?;
        println!("  {:24} {count:8}", krate.name);
        total += count;
    }
    println!("  {:24} {total:8}", "total");
    Ok(total)
}

/// What the hypervisor said of its memory in a run.
fn print_memory(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).or_failed("read", path)?;
    let report: Report = serde_json::from_str(&text)
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let kib = report.host.memory_bytes.div_ceil(1024);
    println!("memory taken in the last run\n  {:24} {kib:8} KiB", "total");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_what_is_allowed_fails_and_says_what_to_do() {
        assert!(within(100, None).is_ok() && within(100, Some(100)).is_ok());
        let sentence = within(101, Some(100)).unwrap_err().to_string();
        assert!(sentence.contains("101 lines") && sentence.contains("MOST_LINES"), "{sentence}");
    }
}
