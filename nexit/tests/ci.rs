//! Hosted CI runs the commands that the README and CONTRIBUTING give to a developer, and nothing else.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is the failure

use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(name)).unwrap()
}

/// The commands of a workflow's steps, without the installation of packages. A block (`run: |`) gives its lines.
fn commands(workflow: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut block = None;
    for line in workflow.lines().filter(|line| !line.trim().is_empty()) {
        let indent = line.len() - line.trim_start().len();
        if block.is_some_and(|start| indent > start) {
            commands.push(line.trim().to_owned());
            continue;
        }
        let step = line.trim_start().trim_start_matches("- ");
        let Some(command) = step.strip_prefix("run:").map(str::trim) else {
            block = None;
            continue;
        };
        block = command.starts_with(['|', '>']).then_some(indent);
        if block.is_none() {
            commands.push(command.to_owned());
        }
    }
    commands.retain(|command| !command.starts_with("apt-get "));
    commands
}

/// The commands of `make` and `.ci` at the start of lines in fenced blocks, and in backquotes.
fn given(page: &str) -> Vec<String> {
    let quoted = page.split('`').skip(1).step_by(2).map(str::to_owned);
    let lines = page.lines().map(|line| line.split(['#', '(']).next().unwrap().trim().to_owned());
    let ours = |command: &String| command.starts_with("make ") || command.starts_with(".ci/");
    quoted.chain(lines).filter(ours).collect()
}

#[test]
fn the_workflow_runs_the_two_commands_of_a_developer() {
    let commands = commands(&read(".github/workflows/ci.yml"));
    assert_eq!(commands, ["make check", ".ci/run"]);
    let contributing = given(&read("CONTRIBUTING.md"));
    for command in &commands {
        assert!(contributing.contains(command), "CONTRIBUTING does not give `{command}`");
    }
}

#[test]
fn ci_run_is_the_test_command_of_the_readme() {
    let script = read(".ci/run");
    let lines = script.lines().map(str::trim).filter(|line| line.starts_with("make "));
    let calls: Vec<_> = lines.map(|line| line.split(" 2>&1").next().unwrap()).collect();
    assert_eq!(calls, ["make test"]);
    let readme = given(&read("README.md"));
    for command in ["make check", "make test"] {
        assert!(readme.iter().any(|it| it == command), "the README does not give `{command}`");
    }
}

#[test]
fn every_form_of_a_step_gives_its_commands() {
    let workflow = "jobs:\n  a:\n    steps:\n      - run: apt-get update\n      - name: x\n        run: make tea\n      \
                    - run: |\n          make one\n          ./two\n      - uses: y\n";
    assert_eq!(commands(workflow), ["make tea", "make one", "./two"]);
    assert_eq!(given("`make a` and\n```\nmake b   # c\n```\n"), ["make a", "make b"]);
}
