//! Each change of `tests/mutants` can be made: its text is in its file, once. A mutant whose text is gone tests nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests: a panic is the failure

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// What `key` is in a mutant's lines. The lists' strings are written as JSON's are.
fn value(mutant: &str, key: &str) -> Option<String> {
    let begin = format!("{key} = ");
    let text = mutant.lines().find_map(|line| line.strip_prefix(&begin))?;
    Some(serde_json::from_str(text).unwrap())
}

#[test]
fn the_text_that_each_mutant_changes_is_in_its_file_once() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for list in fs::read_dir(root().join("tests/mutants")).unwrap() {
        let path = list.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for mutant in text.split("[[mutant]]\n").skip(1) {
            let name = value(mutant, "name").expect("a mutant without a name");
            let (file, find) = (value(mutant, "file").unwrap(), value(mutant, "find").unwrap());
            let source = fs::read_to_string(root().join(&file)).unwrap_or_default();
            let count = source.matches(&find).count();
            if count != 1 {
                wrong.push(format!("{}: {name}: {count} times in {file}", path.display()));
            }
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 200, "{seen} mutants");
}
