//! The tests that `docs/threat-model.md` names exist, and the targets of `fuzz/`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests: a panic is the failure

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The names of all functions in a folder's Rust files.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            functions(&path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            found.extend(names.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
}

#[test]
fn each_test_that_the_threat_model_names_exists() {
    let mut there = BTreeSet::new();
    functions(&root(), &mut there);
    let targets = fs::read_to_string(root().join("fuzz/src/targets/mod.rs")).unwrap();
    let page = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let named = |text: &&str| text.matches('_').count() > 2 || text.starts_with("fuzz:");
    let names: Vec<&str> = page.split('`').skip(1).step_by(2).filter(named).collect();
    let exists = |name: &str| match name.strip_prefix("fuzz:") {
        Some(target) => targets.contains(&format!("\"{target}\"")) || target == "NAME",
        None => there.contains(name),
    };
    let missing: Vec<&&str> = names.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "no such test: {missing:?}");
    assert!(names.len() > 50, "the page names {} tests", names.len());
}
