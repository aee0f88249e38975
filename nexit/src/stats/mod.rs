//! `nexit stats`: five measures of the trusted code, and what they may grow to.
//!
//! Trusted code is what is linked into the image: its own crates, and the crates of others that it
//! depends on (told apart; Rust's own `core` and `alloc` are shown and held to nothing). Tools, tests and the UEFI
//! loader, which is gone when the image runs, are not in it. `docs/trusted-code.md` says how each measure is
//! taken and what it does not see.

mod crates;
mod image;
mod init;
mod lines;
mod measures;
mod reach;

use std::fs;
use std::path::Path;

use crate::built;
use crate::cli::StatsArgs;
use crate::failure::{Failure, OrFailed, Result};
use crate::report::Report;
use image::Image;
use measures::{Crate, Measures};
use reach::{Graph, Vendor};

/// Prints everything.
pub(crate) fn print(args: &StatsArgs) -> Result<()> {
    let path = built::image(&args.images)?;
    let bytes = fs::read(&path).or_failed("read", &path)?;
    let image = Image::read(&bytes)?;
    let crates = crates::in_image()?.iter().map(Crate::read).collect::<Result<Vec<_>>>()?;
    let graph = Graph::new(&image);
    let measures = Measures::take(&image, &graph, &crates)?;
    print!("{}", measures.text(&crates));
    let boot = init::Boot::find(&image, &graph)?;
    print!("{}", boot.text(args.functions));
    if args.functions {
        for vendor in Vendor::ALL {
            println!("functions that a guest's exit can reach on {}", vendor.name());
            graph.reach(vendor).iter().for_each(|function| println!("  {}", function.name));
        }
    }
    println!("image");
    for segment in &image.segments {
        println!("  {:24} {:8} KiB", segment.name(), segment.memory.div_ceil(1024));
    }
    let total: u64 = image.segments.iter().map(|segment| segment.memory).sum();
    println!("  {:24} {:8} KiB", "in memory", total.div_ceil(1024));
    args.report.as_deref().map_or(Ok(()), print_memory)?;
    if args.most.is_empty() { Ok(()) } else { hold(&measures, &args.most) }
}

/// Trusted code grows only where somebody decides that it may.
fn hold(measures: &Measures, limits: &[(String, usize)]) -> Result<()> {
    let over = measures.over(limits)?;
    if over.is_empty() {
        return Ok(());
    }
    let advice = "make it smaller, or raise its limit in the Makefile (MOST) and say why";
    Err(Failure::Failed(format!("{}: {advice}", over.join("; "))))
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
