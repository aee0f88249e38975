//! The commands in the pages can be typed: `nexit`'s options and `make`'s targets and variables exist, and so do the
//! tests and packages that `cargo` is to build. Nothing is run.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap::error::ErrorKind;

use crate::cli::Cli;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Pages that a user follows. Decisions are history: their commands may be gone.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = ["README.md", "CONTRIBUTING.md", "bench/README.md"].map(PathBuf::from).to_vec();
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    pages.extend(docs.map(|name| Path::new("docs").join(name)));
    pages.retain(|path| path.extension().is_some_and(|it| it == "md"));
    let read = |path: PathBuf| (path.clone(), fs::read_to_string(root().join(path)).unwrap());
    pages.into_iter().map(read).collect()
}

/// The commands of a page, each with whether it stands in a fenced block: only there it is whole.
fn commands(text: &str) -> Vec<(bool, String)> {
    let (mut found, mut fenced) = (Vec::new(), false);
    let text = text.replace("\\\n", " ");
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push((true, line.trim_start().trim_start_matches("$ ").to_owned()));
        } else {
            // Every second piece stands between backticks. A table writes `|` as `\|`.
            let quoted = line.split('`').skip(1).step_by(2);
            found.extend(quoted.map(|it| (false, it.replace("\\|", "|"))));
        }
    }
    let commands = found.iter().flat_map(|(whole, line)| {
        line.split("&&").map(|command| (*whole, command.trim().to_owned()))
    });
    commands.filter(|(_, command)| !command.is_empty()).collect()
}

/// Words as a shell divides them: quotes hold together, `#` begins a remark, `>` ends the arguments.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in command.chars() {
        match (letter, quote) {
            ('#', None) if word.is_empty() => break,
            ('>', None) => break,
            (' ', None) => words.push(core::mem::take(&mut word)),
            ('\'' | '"', None) => quote = Some(letter),
            _ if Some(letter) == quote => quote = None,
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty() && word != "sudo" && word != "…");
    words
}

/// What is wrong with a command; commands of other programs are not looked at.
fn wrong(whole: bool, command: &str) -> Option<String> {
    let words = words(command);
    let (program, arguments) = words.split_first()?;
    match program.as_str() {
        "nexit" | "target/debug/nexit" => nexit(whole, arguments),
        "make" => make(arguments),
        "cargo" => cargo(arguments),
        _ => None,
    }
}

/// Optional arguments in brackets, as in `[--json]`, are given; of `a|b` the first is.
fn nexit(whole: bool, arguments: &[String]) -> Option<String> {
    // The name alone, or with no more than prose around it.
    let first = arguments.first()?;
    if !whole && !first.starts_with(|letter: char| letter.is_ascii_lowercase()) {
        return None;
    }
    let plain = arguments.iter().map(|it| it.trim_matches(['[', ']']));
    let plain = plain.map(|it| it.split('|').next().unwrap_or_default());
    let error = Cli::command().try_get_matches_from(["nexit"].into_iter().chain(plain)).err()?;
    let cut_short = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::MissingSubcommand,
        // An option without its value.
        ErrorKind::InvalidValue,
    ];
    let help = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
    let fine = help || !whole && cut_short.contains(&error.kind());
    (!fine).then(|| error.to_string())
}

fn make(arguments: &[String]) -> Option<String> {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let unknown = arguments.iter().find(|word| match word.split_once('=') {
        Some((name, _)) => !makefile.contains(&format!("$({name})")),
        None => !makefile.lines().any(|line| line.starts_with(&format!("{word}:"))),
    })?;
    Some(format!("the Makefile knows no {unknown}"))
}

fn cargo(arguments: &[String]) -> Option<String> {
    let after = |option: &str| {
        arguments.iter().skip_while(|word| *word != option).nth(1).filter(|it| *it != "NAME")
    };
    let package = after("-p")?;
    let manifests = cargo_manifests();
    let Some((folder, _)) = manifests.iter().find(|(_, name)| name == package) else {
        return Some(format!("there is no package {package}"));
    };
    let test = after("--test")?;
    let file = folder.join("tests").join(format!("{test}.rs"));
    (!file.is_file()).then(|| format!("{package} has no test {test}"))
}

/// The packages of the workspace, by folder.
fn cargo_manifests() -> Vec<(PathBuf, String)> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    let folders = members.split('"').skip(1).step_by(2).map(|folder| root().join(folder));
    let named = folders.map(|folder| {
        let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("name = \"")).unwrap();
        (folder, name.trim_end_matches('"').to_owned())
    });
    named.collect()
}

#[test]
fn every_command_in_the_pages_can_be_typed() {
    let (mut whole, mut refused) = (0, Vec::new());
    for (path, text) in pages() {
        for (fenced, command) in commands(&text) {
            let command = command.trim_start_matches("sudo ");
            let ours = ["nexit ", "target/debug/nexit ", "make ", "cargo "];
            whole += usize::from(fenced && ours.iter().any(|it| command.starts_with(it)));
            if let Some(why) = wrong(fenced, command) {
                refused.push(format!("{}: `{command}`: {why}", path.display()));
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(whole >= 20, "commands in fenced blocks: {whole}");
}

#[test]
fn every_option_of_nexit_is_in_the_pages() {
    let text: String = pages().into_iter().map(|(_, text)| text).collect();
    let cli = Cli::command();
    for command in cli.get_subcommands() {
        let name = command.get_name();
        assert!(text.contains(&format!("`nexit {name}")), "nexit {name} is in no page");
        let options = command.get_arguments().filter_map(|argument| argument.get_long());
        for option in options.filter(|option| *option != "help") {
            assert!(text.contains(&format!("--{option}")), "nexit {name} --{option} is in no page");
        }
    }
}

#[test]
fn a_command_that_cannot_be_typed_is_found() {
    for command in [
        "nexit rum --config a.toml",
        "nexit run --config a.toml --fast",
        "nexit run",
        "target/debug/nexit run --config a.toml --emulator vmware",
        "make tea",
        "make run SUGAR=2",
        "cargo test -p no-such-package",
        "cargo test -p nexit --test no_such_test",
    ] {
        assert!(wrong(true, command).is_some(), "{command}");
    }
    for command in [
        "sudo nexit probe --output machine.toml   # and writes its machine file",
        "nexit init --machine machine.toml > my.toml",
        "nexit run --config a -- -device nvme,addr=4",
        "make run CONFIG=my.toml EMULATOR=qemu",
        "cargo test -p nexit --test links",
        "sudo dd if=a of=b",
    ] {
        assert_eq!(wrong(true, command), None, "{command}");
    }
    assert_eq!(wrong(false, "nexit run --report"), None, "in a sentence it may be cut short");
    assert!(wrong(false, "nexit run --rapport").is_some());
}
