//! `make mutants`: removes one check after the other from the code, records which test fails, and writes
//! `docs/mutants.md`.
//!
//! `mutants [--output FILE] [LIST …]`: a list is a file of `tests/mutants`; all lists if no name is given.
//! Mutants are built in a copy of the tree below the build folder. The working tree stays unchanged.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nexit_tests::page::Arguments;
use nexit_tests::{build_folder, project_folder};
use serde::Deserialize;

/// A file of `tests/mutants`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    /// The heading of the list's table.
    about: String,
    /// Shell commands, one of which must fail for each mutant; the quickest first.
    tests: Vec<String>,
    mutant: Vec<Mutant>,
}

/// One change.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// What the mutant does wrong, in words.
    name: String,
    file: String,
    /// A text that occurs in the file exactly once …
    find: String,
    /// … and its replacement.
    #[serde(default)]
    replace: String,
    /// Why no test can fail: it needs hardware that no emulator has, or the line only saves work.
    #[serde(default)]
    survives: Option<String>,
}

/// The result of a mutant.
enum Fate {
    Noticed(String),
    Survived,
    /// It does not build, or its text is not in the file: the list is out of date.
    Broken(String),
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let lists = lists()?;
    let arguments = Arguments::read(&lists.iter().map(|path| name_of(path)).collect::<Vec<_>>())?;
    let tree = copy_tree()?;
    let mut page = String::from(
        "# Mutants\n\n`make mutants` generates this page. Each row is a change that removes one check or step from the \
         code, and the first test command that fails because of it. The changes are listed in `tests/mutants/*.toml`.\n",
    );
    let (mut noticed, mut survived) = (0, 0);
    for path in lists.iter().filter(|path| arguments.selects(&name_of(path))) {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let list: List =
            toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let _ = write!(
            page,
            "\n## {}\n\n| Change | File | Failing test |\n|---|---|---|\n",
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
    arguments.write(&page)?;
    Ok(survived == 0)
}

fn lists() -> Result<Vec<PathBuf>, String> {
    let folder = project_folder().join("tests/mutants");
    let entries =
        fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// The name of a list: its file's, without the extension.
fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Copies the files that git tracks, as they are now. Replaces the copy of the last run.
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
    // Emulator tests need these folders: linked, not downloaded again.
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
        return Ok(Fate::Broken(format!("the text occurs in the file {found} times")));
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

/// Runs `command` in `folder`, and returns whether it succeeded.
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
