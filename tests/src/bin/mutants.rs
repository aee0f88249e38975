//! `make mutants`: takes one line after the other out of the code and says which test notices.
//!
//! `mutants [--output FILE] [LIST …]`: a list is a file of `tests/mutants`; without names all of them.
//! The mutants are built in a copy of the tree below the build folder: the working tree stays as it is.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nexit_tests::{build_folder, project_folder};
use serde::Deserialize;

/// What a list says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    /// What the list is about, for the table's heading.
    about: String,
    /// Shell commands that have to fail for a mutant, the quickest first.
    tests: Vec<String>,
    mutant: Vec<Mutant>,
}

/// One change.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// What is taken away, in words.
    name: String,
    /// The file.
    file: String,
    /// A text that stands in it once …
    find: String,
    /// … and what takes its place.
    #[serde(default)]
    replace: String,
    /// Why it may survive: hardware that no emulator has, or a line that saves work only.
    #[serde(default)]
    survives: Option<String>,
}

/// What became of a mutant.
enum Fate {
    Noticed(String),
    Survived,
    /// It does not build, or its text is not there: the list is out of date.
    Broken(String),
}

fn main() -> ExitCode {
    let mut output = None;
    let mut names: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--output" { output = arguments.next() } else { names.push(argument) }
    }
    match run(&names, output.as_deref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(names: &[String], output: Option<&str>) -> Result<bool, String> {
    let tree = copy_tree()?;
    let mut page = String::from(
        "# Mutants\n\nMade by `make mutants`: each row takes one thing out of the code, and names the first test command \
         that fails for it. The lists are `tests/mutants/*.toml`.\n",
    );
    let (mut noticed, mut survived) = (0, 0);
    for path in lists(names)? {
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let list: List =
            toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let _ = write!(
            page,
            "\n## {}\n\n| Taken out | File | Noticed by |\n|---|---|---|\n",
            list.about
        );
        for mutant in &list.mutant {
            let fate = fate_of(mutant, &list.tests, &tree)?;
            let (good, words) = match (&fate, &mutant.survives) {
                (Fate::Noticed(by), _) => (true, format!("`{by}`")),
                (Fate::Survived, Some(why)) => (true, format!("nothing: {why}")),
                (Fate::Survived, None) => (false, "**nothing**".to_owned()),
                (Fate::Broken(why), _) => (false, format!("**broken**: {why}")),
            };
            if good {
                noticed += 1
            } else {
                survived += 1
            }
            println!("{}: {words}", mutant.name);
            let _ = writeln!(page, "| {} | `{}` | {words} |", mutant.name, mutant.file);
        }
    }
    println!("{noticed} passed, {survived} failed");
    if let Some(output) = output {
        fs::write(output, page).map_err(|error| format!("cannot write {output}: {error}"))?;
    }
    Ok(survived == 0)
}

fn lists(names: &[String]) -> Result<Vec<PathBuf>, String> {
    let folder = project_folder().join("tests/mutants");
    if !names.is_empty() {
        return Ok(names.iter().map(|name| folder.join(name).with_extension("toml")).collect());
    }
    let entries =
        fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// The files that git knows, as they are now, in a folder that the last run may have left.
fn copy_tree() -> Result<PathBuf, String> {
    let tree = build_folder().join("mutants/tree");
    let made = shell(
        &project_folder(),
        &format!(
            "rm -rf '{0}' && mkdir -p '{0}' && git ls-files -z | xargs -0 cp --parents --target-directory='{0}'",
            tree.display()
        ),
    );
    if !made {
        return Err(format!("cannot copy the tree to {}", tree.display()));
    }
    // What the tests of emulators want beside the build folder, without fetching it again.
    for name in ["bochs3", "guest", "machines"] {
        let (from, to) =
            (build_folder().join(name), build_folder().join("mutants/target").join(name));
        if from.exists() && !to.exists() {
            let _ = fs::create_dir_all(build_folder().join("mutants/target"));
            std::os::unix::fs::symlink(&from, &to)
                .map_err(|error| format!("{}: {error}", to.display()))?;
        }
    }
    Ok(tree)
}

fn fate_of(mutant: &Mutant, tests: &[String], tree: &Path) -> Result<Fate, String> {
    let path = tree.join(&mutant.file);
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(Fate::Broken("there is no such file".to_owned()));
    };
    let found = text.matches(&mutant.find).count();
    if found != 1 {
        return Ok(Fate::Broken(format!("the text stands in the file {found} times")));
    }
    let write =
        |text: &str| fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()));
    write(&text.replacen(&mutant.find, &mutant.replace, 1))?;
    let package = mutant.file.split('/').next().unwrap_or_default();
    let builds = shell(tree, &format!("cargo build --locked --quiet -p {package}"));
    let noticed = tests.iter().find(|test| builds && !shell(tree, test));
    write(&text)?;
    Ok(match noticed {
        _ if !builds => Fate::Broken("it does not build".to_owned()),
        Some(test) => Fate::Noticed(test.clone()),
        None => Fate::Survived,
    })
}

/// Whether `command` ends well in `folder`.
fn shell(folder: &Path, command: &str) -> bool {
    Command::new("sh")
        .args(["-c", command])
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", build_folder().join("mutants/target"))
        .env("NEXIT_GUEST", build_folder().join("guest"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
