//! Starts the program `guided` on one target, and reads what it says.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nexit_fuzz::{Target, corpus, mutate};

pub(crate) struct Paths<'a> {
    pub(crate) program: &'a Path,
    pub(crate) folder: &'a Path,
}

/// The most inputs of a target that are kept in the tree.
const MAX_KEPT: usize = 64;
/// Where they begin in a corpus.
const FOUND: &str = "# Found by `make fuzz KEEP=1`:\n";
/// The longest of them.
const MAX_KEPT_BYTES: usize = 512;

/// How many inputs the target took, and whether nothing was found.
pub(crate) fn run(
    target: &Target,
    paths: &Paths<'_>,
    seconds: u64,
    keep: bool,
) -> Result<(u64, bool), String> {
    let told = |what: &Path| {
        let what = what.display().to_string();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    let folder = paths.folder.join(target.name);
    let inputs = folder.join("corpus");
    fs::create_dir_all(&inputs).map_err(told(&inputs))?;
    for (number, input) in corpus::read(target.name)?.iter().enumerate() {
        let path = inputs.join(format!("tree-{number}"));
        fs::write(&path, input).map_err(told(&path))?;
    }
    let mut command = Command::new(paths.program);
    command
        .env("NEXIT_FUZZ_TARGET", target.name)
        .arg(&inputs)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", mutate::MAX_INPUT))
        .arg(format!("-artifact_prefix={}/", folder.display()))
        .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=2048", "-verbosity=1"])
        .stdout(Stdio::null());
    let output = command.output().map_err(told(paths.program))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let path = folder.join("log");
    fs::write(&path, &*log).map_err(told(&path))?;
    let count = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let count = count.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    if !output.status.success() {
        let panic = log
            .lines()
            .filter(|line| line.contains("panicked at") || line.contains("Test unit written"));
        eprintln!("{}: {}", target.name, panic.collect::<Vec<_>>().join("; "));
    }
    if keep {
        keep_smallest(target, paths, &folder)?;
    }
    Ok((count, output.status.success()))
}

/// The inputs that together reach all that was reached, the smallest of them first, up to a bound.
fn keep_smallest(target: &Target, paths: &Paths<'_>, folder: &Path) -> Result<(), String> {
    let (all, least) = (folder.join("corpus"), folder.join("least"));
    let told = |error: std::io::Error| format!("{}: {error}", folder.display());
    if least.exists() {
        fs::remove_dir_all(&least).map_err(told)?;
    }
    fs::create_dir_all(&least).map_err(told)?;
    let mut command = Command::new(paths.program);
    command.env("NEXIT_FUZZ_TARGET", target.name).arg("-merge=1").arg(&least).arg(&all);
    let output = command.output().map_err(told)?;
    if !output.status.success() {
        return Err(format!("{}: libFuzzer cannot merge its corpus", target.name));
    }
    let mut kept = Vec::new();
    for entry in fs::read_dir(&least).map_err(told)? {
        kept.push(fs::read(entry.map_err(told)?.path()).map_err(told)?);
    }
    kept.retain(|input| input.len() <= MAX_KEPT_BYTES);
    // Of all sizes: the smallest alone would be the shallowest.
    kept.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    let step = kept.len().div_ceil(MAX_KEPT).max(1);
    let kept: Vec<String> = kept.iter().step_by(step).map(|input| corpus::line(input)).collect();
    // What was put there by hand stays.
    let path = corpus::path(target.name);
    let text = fs::read_to_string(&path).map_err(told)?;
    let by_hand = text.split(FOUND).next().unwrap_or_default();
    fs::write(&path, format!("{by_hand}{FOUND}{}\n", kept.join("\n"))).map_err(told)
}
