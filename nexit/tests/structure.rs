//! The structure that `docs/architecture.md` draws is the one that the code has: crates and the modules of `kernel`
//! name only what stands below them, the two vendors are named where the page says, and its walks name files and
//! functions that exist.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests: a panic is the failure

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

type Imports = BTreeSet<(String, String)>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The layers of the block that begins with this line, the uppermost first.
fn layers(page: &str, block: &str) -> Vec<Vec<String>> {
    let (_, rest) =
        page.split_once(&format!("```text\n{block}\n")).expect("the page has that block");
    let (block, _) = rest.split_once("```").unwrap();
    let names = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    block.lines().map(names).collect()
}

/// Those that do not go down, and those of names that stand in no layer or in two.
fn wrong(layers: &[Vec<String>], imports: &Imports) -> Imports {
    let mut level = BTreeMap::new();
    let mut wrong = Imports::new();
    for (depth, name) in layers.iter().enumerate().flat_map(|(d, l)| l.iter().map(move |n| (d, n)))
    {
        if level.insert(name, depth).is_some() {
            wrong.insert((name.clone(), "stands in two layers".to_owned()));
        }
    }
    for (from, to) in imports {
        for name in [from, to].into_iter().filter(|name| !level.contains_key(name)) {
            wrong.insert((name.clone(), "stands in no layer".to_owned()));
        }
        if let (Some(above), Some(below)) = (level.get(from), level.get(to))
            && above >= below
        {
            wrong.insert((from.clone(), to.clone()));
        }
    }
    wrong
}

/// A source text without its comments.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// The lines of code in which one of these words stands, in whatever case.
fn lines_with(text: &str, words: &[&str]) -> Vec<String> {
    let code = code(text).to_lowercase();
    let named = |line: &&str| words.iter().any(|word| line.contains(word));
    code.lines().filter(named).map(|line| line.trim().to_owned()).collect()
}

/// The first names behind each `crate::` of a source text.
fn named(text: &str) -> BTreeSet<String> {
    let code = code(text);
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut at_start = true;
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_start = true,
                _ if at_start && !letter.is_whitespace() => {
                    names.insert(word(&list[at..]));
                    at_start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Between the modules right below `main.rs`. What a module's folder holds is part of it.
fn kernel_imports() -> (BTreeSet<String>, Imports) {
    let source = root().join("kernel/src");
    let mut all = Vec::new();
    files(&source, &mut all);
    let module = |path: &Path| {
        let first = path.strip_prefix(&source).unwrap().components().next().unwrap();
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    };
    let modules: BTreeSet<String> = all.iter().map(|path| module(path)).collect();
    let mut imports = Imports::new();
    for path in &all {
        let from = module(path);
        for name in named(&fs::read_to_string(path).unwrap()) {
            // What is no module is an item of the root.
            let to = if modules.contains(&name) { name } else { "main".to_owned() };
            if to != from {
                imports.insert((from.clone(), to));
            }
        }
    }
    (modules, imports)
}

#[test]
fn modules_of_kernel_name_only_what_is_below_them() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let layers = layers(&page, "layers of kernel");
    let (modules, imports) = kernel_imports();
    let drawn: BTreeSet<String> = layers.iter().flatten().cloned().collect();
    assert_eq!(
        drawn, modules,
        "docs/architecture.md, \"layers of kernel\", has other modules than kernel/src"
    );
    let wrong = wrong(&layers, &imports);
    assert!(
        wrong.is_empty(),
        "these imports of `kernel` do not go down (docs/architecture.md): {wrong:?}"
    );
}

#[test]
fn crates_depend_only_on_what_is_below_them() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let layers = layers(&page, "layers of crates");
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]).current_dir(root());
    let output = cargo.output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let mut imports = Imports::new();
    for package in packages {
        let needed = package["dependencies"].as_array().unwrap().iter();
        // Tests may use anything.
        for to in
            needed.filter(|needed| needed["kind"] != "dev").map(name).filter(|to| ours.contains(to))
        {
            imports.insert((name(package), to));
        }
    }
    let drawn: BTreeSet<String> = layers.iter().flatten().cloned().collect();
    assert_eq!(
        drawn, ours,
        "docs/architecture.md, \"layers of crates\", has other crates than the workspace"
    );
    let wrong = wrong(&layers, &imports);
    assert!(
        wrong.is_empty(),
        "these dependencies do not go down (docs/architecture.md): {wrong:?}"
    );
}

#[test]
fn only_the_seam_between_the_vendors_names_their_crates() {
    let mut all = Vec::new();
    files(&root().join("kernel/src"), &mut all);
    let seam = root().join("kernel/src/backend.rs");
    assert!(all.contains(&seam));
    for path in all.iter().filter(|path| **path != seam) {
        let lines = lines_with(&fs::read_to_string(path).unwrap(), &["vmx::", "svm::"]);
        assert!(
            lines.is_empty(),
            "{} names a back end's crate, which only kernel/src/backend.rs may: {lines:?}",
            path.display()
        );
    }
}

/// All files of the workspace in which these words stand in code, by their place.
fn places(word: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let crates = entries.filter(|path| path.join("Cargo.toml").exists());
    let mut all = Vec::new();
    crates.for_each(|folder| files(&folder.join("src"), &mut all));
    let holds = |path: &&PathBuf| code(&fs::read_to_string(path).unwrap()).contains(word);
    let place = |path: &PathBuf| path.strip_prefix(root()).unwrap().display().to_string();
    all.iter().filter(holds).map(place).collect()
}

/// The walker follows what this memory reads back, and writes where that leads (`mem/src/pages.rs`).
#[test]
fn only_known_memory_makes_pages_of_an_address_or_is_followed_by_a_walker() {
    let known = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let tests = ["iommu/src/vtd/model.rs", "mem/src/testing.rs"];
    let makes: BTreeSet<String> =
        known(&["kernel/src/memory.rs", "mem/src/pages.rs", "plan/src/memory.rs"]);
    assert_eq!(places("Pages::of("), &makes | &known(&tests));
    let followed: BTreeSet<String> =
        known(&["iommu/src/vtd/memory.rs", "kernel/src/memory.rs", "mem/src/reserve.rs"]);
    assert_eq!(places(" TableMemory for "), &followed | &known(&tests));
}

/// What VT-x alone has, and what it was called in the contract until it was said in words that fit both.
const OF_ONE_VENDOR: [&str; 13] = [
    "vmx",
    "svm",
    "vmcs",
    "vmcb",
    "preemption",
    "notification",
    "virtual_apic",
    "apicpage",
    "virtualinterrupts",
    "set_reachable",
    "take_posted",
    "endofinterrupt",
    "apicwrite(",
];

#[test]
fn the_contract_of_a_virtual_cpu_has_no_name_that_is_one_vendors() {
    for file in ["vcpu.rs", "exit.rs", "setup.rs", "interrupt.rs"] {
        let text = fs::read_to_string(root().join("arch/src").join(file)).unwrap();
        let lines = lines_with(&text, &OF_ONE_VENDOR);
        assert!(lines.is_empty(), "arch/src/{file}: say it so that it fits both: {lines:?}");
    }
}

#[test]
fn a_name_of_one_vendor_is_found_in_code_and_not_in_comments() {
    let text = "// VMX: vmx::on\n  let x = Vmx::y; // svm::\nExitReason::PreemptionTimer\n";
    assert_eq!(lines_with(text, &["vmx::", "svm::"]), ["let x = vmx::y;"]);
    assert_eq!(
        lines_with(text, &OF_ONE_VENDOR),
        ["let x = vmx::y;", "exitreason::preemptiontimer"]
    );
}

fn pairs(text: &str) -> Imports {
    let pair = |pair: &str| pair.split_once('>').map(|(a, b)| (a.to_owned(), b.to_owned()));
    text.split(' ').filter_map(pair).collect()
}

#[test]
fn an_import_upward_or_sideways_or_from_nowhere_is_found() {
    let layers = layers("x\n```text\nlayers\na\nb c\nd\n```\n", "layers");
    assert!(wrong(&layers, &pairs("a>b a>d b>d c>d")).is_empty());
    assert_eq!(wrong(&layers, &pairs("a>b d>a b>c")), pairs("d>a b>c"));
    let nowhere = [("e".to_owned(), "stands in no layer".to_owned())];
    assert_eq!(wrong(&layers, &pairs("a>e")), Imports::from(nowhere));
}

#[test]
fn all_ways_to_name_a_module_are_seen() {
    let text = "use crate::a::B;\nuse crate::{c, d::{E, f::G},\n  h as i};\n// use crate::x;\nlet y = crate::j::k();\n";
    let names: Vec<String> = named(text).into_iter().collect();
    assert_eq!(names, ["a", "c", "d", "h", "j"]);
}

/// The files of a walk, each with the names in backquotes that its row gives: the rows of the first table below the
/// heading `## PATH: …`.
fn walk(page: &str, path: &str) -> Vec<(String, Vec<String>)> {
    let (_, rest) = page.split_once(&format!("\n## {path}: ")).expect("the page has that path");
    let rows = rest.lines().skip_while(|line| !line.starts_with("| 1 |"));
    let row = |line: &str| {
        let mut quoted = line.split('`').skip(1).step_by(2).map(str::to_owned);
        (quoted.next().unwrap(), quoted.collect())
    };
    rows.take_while(|line| line.starts_with('|')).map(row).collect()
}

/// The names of a walk's row that do not occur in its file.
fn lost(file: &str, names: &[String]) -> Vec<String> {
    let Ok(text) = fs::read_to_string(root().join(file)) else { return vec![file.to_owned()] };
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let word = |name: &String| name.rsplit("::").next().unwrap().to_owned();
    let is_name = |name: &&String| name.chars().all(|c| c.is_alphanumeric() || "_:".contains(c));
    let lost = names.iter().filter(is_name).filter(|name| !words.contains(word(name).as_str()));
    lost.map(|name| format!("{file}: {name}")).collect()
}

#[test]
fn each_walk_has_at_most_eight_files_that_hold_what_it_names() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for path in ["Path 1", "Path 2", "Path 3"] {
        let rows = walk(&page, path);
        assert!((1..=8).contains(&rows.len()), "{path}: {} files", rows.len());
        let lost: Vec<_> = rows.iter().flat_map(|(file, names)| lost(file, names)).collect();
        assert!(lost.is_empty(), "{path}: {lost:?}");
    }
}

#[test]
fn a_walk_that_names_what_its_file_does_not_have_is_found() {
    let named = ["layers", "BTreeSet::new", "a path/with.marks"].map(str::to_owned);
    assert!(lost("nexit/tests/structure.rs", &named).is_empty());
    let none = ["not", "there"].concat();
    assert_eq!(lost("nexit/tests/structure.rs", std::slice::from_ref(&none)).len(), 1);
    assert_eq!(lost("nexit/tests/no_such_file.rs", &[]), ["nexit/tests/no_such_file.rs"]);
}
