//! The book in `docs/`: each page is in its summary, each link leads somewhere, and what it names exists: metrics in the
//! reference of metrics, commands in that of commands. mdbook itself is not needed for that.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Where the book lies, below the root.
const BOOK: &str = "docs";
const SUMMARY: &str = "docs/SUMMARY.md";

/// Asked for when the test runs: a build folder that two checkouts share may have it from the other.
fn root() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    Path::new(&here).join("../..").canonicalize().expect("the root exists")
}

/// All pages, as paths below the root.
fn pages() -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the book") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root.join(BOOK), &mut found);
    let below = |path: &PathBuf| {
        path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned()
    };
    let mut pages: Vec<String> = found.iter().map(below).collect();
    pages.sort();
    pages
}

fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"))
}

/// The text without fenced blocks: neither headings nor links are read in those.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let kept = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// Where its links lead, as they are written.
fn targets(page: &str) -> Vec<String> {
    let text = prose(&read(page));
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// Headings as the anchors that renderers make of them.
fn anchors(page: &str) -> BTreeSet<String> {
    let text = prose(&read(page));
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

/// A link of a page as a path below the root.
fn resolved(page: &str, path: &str) -> String {
    if path.is_empty() {
        return page.to_owned();
    }
    let mut parts: Vec<String> = Vec::new();
    let joined = Path::new(page).parent().expect("a page has a folder").join(path);
    for part in joined.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    parts.join("/")
}

#[test]
fn every_page_is_in_the_summary_once() {
    let listed: Vec<String> = targets(SUMMARY).iter().map(|t| resolved(SUMMARY, t)).collect();
    let unique: BTreeSet<&String> = listed.iter().collect();
    assert_eq!(unique.len(), listed.len(), "a page is listed twice");
    let pages = pages();
    let missing: Vec<&String> =
        pages.iter().filter(|page| *page != SUMMARY && !unique.contains(page)).collect();
    assert!(missing.is_empty(), "not in {SUMMARY}: {missing:#?}");
    let gone: Vec<&String> = listed.iter().filter(|page| !pages.contains(page)).collect();
    assert!(gone.is_empty(), "{SUMMARY} lists what is not there: {gone:#?}");
    assert!(listed.len() >= 40, "only {} pages", listed.len());
}

#[test]
fn links_lead_somewhere() {
    let (mut followed, mut wrong) = (0, Vec::new());
    for page in pages().iter().map(String::as_str).chain(["README.md"]) {
        for target in targets(page) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let to = resolved(page, path);
            followed += 1;
            if !root().join(&to).exists() {
                wrong.push(format!("{page}: no {target}"));
            } else if !anchor.is_empty() && !anchors(&to).contains(anchor) {
                wrong.push(format!("{page}: {to} has no heading for #{anchor}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(followed >= 150, "only {followed} links were found");
}

/// Words of a text that begin like this, up to what no name has.
fn names(text: &str, beginning: &str) -> BTreeSet<String> {
    let end = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let found = text.match_indices(beginning).map(|(at, _)| {
        let rest = &text[at..];
        rest[..rest.find(end).unwrap_or(rest.len())].to_owned()
    });
    found.collect()
}

#[test]
fn metrics_that_pages_name_are_in_the_reference() {
    let known = names(&read("docs/reference/metrics.md"), "mainstay_");
    let (mut count, mut wrong) = (0, Vec::new());
    // Pages on how it came about may speak of what was.
    for page in pages().iter().filter(|p| !p.contains("/rfcs/") && !p.contains("/develop/")) {
        let text = read(page);
        for kind in ["gateway", "worker", "control", "tier", "keeper"] {
            for name in names(&text, &format!("mainstay_{kind}_")) {
                count += 1;
                let base = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .unwrap_or(&name);
                // A pattern for grep ends where its choices begin.
                let pattern = name.ends_with('_') && known.iter().any(|k| k.starts_with(&name));
                if !known.contains(base) && !pattern {
                    wrong.push(format!("{page}: {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "no such metrics: {wrong:#?}");
    assert!(count >= 100, "only {count} names were found");
}

/// The command lines in backticks or blocks, without what follows the names of commands.
fn commands(text: &str) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("mainstay ") {
        let before = text[..at].chars().next_back();
        if !matches!(before, None | Some('`' | '\n' | ' ' | '(')) {
            continue;
        }
        let rest: &str = &text[at + "mainstay ".len()..];
        let line = rest.split(['\n', '`', '|', '·']).next().unwrap_or_default();
        let word =
            |w: &&str| !w.is_empty() && w.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let words: Vec<String> = line
            .split(' ')
            .take_while(word)
            .take_while(|w| !w.starts_with('-'))
            .map(str::to_owned)
            .collect();
        // In prose the word may be the project's name.
        if matches!(before, Some('`' | '\n')) && !words.is_empty() {
            found.insert(words);
        }
    }
    found
}

#[test]
fn commands_that_pages_name_are_in_the_reference() {
    let reference = read("docs/reference/cli.md");
    let known: BTreeSet<Vec<String>> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("### `mainstay ")?.strip_suffix('`'))
        .map(|names| names.split(' ').map(str::to_owned).collect())
        .collect();
    assert!(known.len() >= 40, "only {} commands are in the reference", known.len());
    let (mut count, mut wrong) = (0, Vec::new());
    for page in pages().iter().filter(|p| !p.contains("/rfcs/") && !p.contains("/develop/")) {
        for command in commands(&read(page)) {
            count += 1;
            // Behind the last command come values, such as a folder.
            let group = |n: usize| known.iter().any(|k| k.len() > n && k[..n] == command[..n]);
            let is_known = (1..=command.len()).rev().any(|n| {
                let values_follow = n < command.len();
                known.contains(&command[..n]) && !(values_follow && group(n))
            });
            if !is_known {
                wrong.push(format!("{page}: mainstay {}", command.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "no such commands: {wrong:#?}");
    assert!(count >= 80, "only {count} commands were found");
}
