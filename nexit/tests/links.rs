//! Every relative link and anchor of every page leads somewhere, and every page of `docs` is in the book.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests: a panic is the failure

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().canonicalize().unwrap()
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with(".git") && name != "target" {
            pages(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The text without code, in which brackets mean nothing.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            // Every second piece stands between backticks.
            let pieces = line.split('`').step_by(2);
            prose.extend(pieces.chain(["\n"]));
        }
    }
    prose
}

/// What is linked to, but addresses of the web.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let inline = inline.map(|(to, _)| to.split_whitespace().next().unwrap_or_default());
    let pictures = ["src=\"", "srcset=\""].into_iter().flat_map(|key| text.split(key).skip(1));
    let pictures = pictures.filter_map(|rest| rest.split_once('"')).map(|(to, _)| to);
    inline.chain(pictures).filter(|to| !to.contains("://")).map(str::to_owned).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        // Such as `<a id="name"></a>`.
        let named = line.split("id=\"").skip(1).filter_map(|rest| rest.split_once('"'));
        anchors.extend(named.map(|(name, _)| name.to_owned()));
        let Some(heading) = line.strip_prefix('#').filter(|_| !fenced) else { continue };
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        anchors.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

/// What is wrong with a link in `page`.
fn broken(page: &Path, link: &str) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { page.to_path_buf() } else { page.parent()?.join(file) };
    if !target.exists() {
        return Some(format!("{}: {link}: no such file", page.display()));
    }
    let known = || anchors(&fs::read_to_string(&target).unwrap_or_default()).contains(anchor);
    (!anchor.is_empty() && !known()).then(|| format!("{}: {link}: no such heading", page.display()))
}

#[test]
fn every_link_of_every_page_leads_somewhere() {
    let mut all = Vec::new();
    pages(&root(), &mut all);
    let of = |page: &PathBuf| -> Vec<String> {
        let text = fs::read_to_string(page).unwrap();
        links(&text).iter().filter_map(|link| broken(page, link)).collect()
    };
    let broken: Vec<String> = all.iter().flat_map(of).collect();
    assert!(all.len() > 40, "the pages were found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_page_of_docs_is_in_the_book() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<PathBuf> = links(&summary).iter().map(|link| docs.join(link)).collect();
    let mut all = Vec::new();
    pages(&docs, &mut all);
    let missing: Vec<_> = all
        .iter()
        .filter(|page| !page.ends_with("SUMMARY.md") && !listed.contains(*page))
        .collect();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}

#[test]
fn links_are_told_from_code_and_from_the_web() {
    let text = "[a](b.md#c) `[x](y)` [w](https://w) <img src=\"p.svg\">\n```\n[z](z)\n```\n![d](e.png \"t\")\n";
    assert_eq!(links(text), ["b.md#c", "e.png", "p.svg"]);
}

#[test]
fn anchors_are_those_of_the_headings() {
    let text = "# IPI virtualization: never run\n```\n# no heading\n```\n### `nexit stats`\n<a id=\"own\"></a>\n";
    let expected = ["ipi-virtualization-never-run", "nexit-stats", "own"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
}

#[test]
fn a_link_to_nothing_and_to_no_heading_is_found() {
    let page = root().join("README.md");
    assert!(
        broken(&page, "docs/none.md").is_some() && broken(&page, "docs/costs.md#none").is_some()
    );
    assert_eq!(broken(&page, "docs/costs.md#growth"), None);
}
