//! House rules that a reader would otherwise have to check: module docs, lengths, words.

use std::path::{Path, PathBuf};

/// Lines of one file at most.
const FILE_LINES_MAX: usize = 1_000;
/// Lines of one function at most, outside tests.
const FUNCTION_LINES_MAX: usize = 70;

/// Asked for when the test runs: a build folder that two checkouts share may have it from the other.
fn root() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    Path::new(&here).join("../..").canonicalize().expect("the root exists")
}

/// The files that git knows or would take, below the root.
fn files(extension: &str) -> Vec<PathBuf> {
    let out = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let list = String::from_utf8(out.stdout).expect("paths are UTF-8");
    let paths = list.lines().map(|l| root().join(l)).filter(|p| p.is_file());
    paths
        .filter(|p| extension.is_empty() || p.extension().is_some_and(|e| e == extension))
        .collect()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).expect("a listed file is readable")).into_owned()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn every_rust_file_says_what_it_is() {
    let silent: Vec<String> =
        files("rs").iter().filter(|p| !read(p).starts_with("//!")).map(|p| shown(p)).collect();
    assert!(silent.is_empty(), "these files do not open with //!: {silent:#?}");
}

#[test]
fn no_file_is_longer_than_a_room() {
    let long: Vec<String> = files("rs")
        .iter()
        .map(|p| (shown(p), read(p).lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(p, lines)| format!("{p}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Checkouts share a build folder, and cargo takes a program for fresh that was compiled in the other.
#[test]
fn no_program_knows_its_folder_from_when_it_was_compiled() {
    let known = concat!("env!", "(\"CARGO_MANIFEST_DIR\")");
    let fixed: Vec<String> =
        files("rs").iter().filter(|p| read(p).contains(known)).map(|p| shown(p)).collect();
    assert!(fixed.is_empty(), "ask std::env::var when the test runs, as the rest does: {fixed:#?}");
}

/// Function bodies are found by indentation, which rustfmt guarantees.
fn long_functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let head = line.trim_start();
        let is_function = [
            "fn ",
            "pub fn ",
            "pub(crate) fn ",
            "pub(super) fn ",
            "async fn ",
            "pub async fn ",
            "pub(crate) async fn ",
            "pub(super) async fn ",
            "unsafe fn ",
            "pub unsafe fn ",
        ]
        .iter()
        .any(|h| head.starts_with(h));
        if !is_function || head.ends_with(';') {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|l| *l == close).unwrap_or(0) + 1;
        if length > FUNCTION_LINES_MAX {
            found.push((head.chars().take(60).collect(), length));
        }
    }
    found
}

fn is_test(path: &Path) -> bool {
    let path = shown(path);
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("tests.rs")
        || path.contains("/examples/")
}

#[test]
fn no_function_is_longer_than_a_screen() {
    let mut long = Vec::new();
    for path in files("rs").iter().filter(|p| !is_test(p)) {
        let text = read(path);
        // Tests inside a file come last, behind this attribute.
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        long.extend(
            long_functions(code)
                .into_iter()
                .map(|(f, n)| format!("{}: {f}: {n} lines", shown(path))),
        );
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn the_function_counter_counts() {
    let body = "    x();\n".repeat(FUNCTION_LINES_MAX);
    assert_eq!(long_functions(&format!("fn f() {{\n{body}}}\n")).len(), 1);
    assert!(long_functions("fn f() {\n    x();\n}\n").is_empty());
}

#[test]
fn tests_neither_hide_nor_expect_panics() {
    let banned = [
        concat!("#[", "ignore"),
        concat!("#[", "should_panic"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    let mut hits = Vec::new();
    for path in files("rs") {
        let text = read(&path);
        hits.extend(
            banned.iter().filter(|b| text.contains(**b)).map(|b| format!("{}: {b}", shown(&path))),
        );
    }
    assert!(hits.is_empty(), "{hits:#?}");
}

#[test]
fn the_project_names_no_machine() {
    let banned = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("crates", ".io/api"),
        concat!("pypi", ".org"),
    ];
    let mut hits = Vec::new();
    for path in files("") {
        let name = shown(&path);
        if name.ends_with(".lock")
            || name.ends_with(".safetensors")
            || name.ends_with("tokenizer.json")
        {
            continue;
        }
        let text = read(&path);
        hits.extend(banned.iter().filter(|b| text.contains(**b)).map(|b| format!("{name}: {b}")));
    }
    assert!(hits.is_empty(), "{hits:#?}");
}

/// The files of the C ABI and the demo model stay within what was promised.
#[test]
fn the_bundled_model_is_small() {
    let dir = root().join("plugins/native/demo-model");
    let bytes: u64 = files("")
        .iter()
        .filter(|p| p.starts_with(&dir))
        .map(|p| p.metadata().expect("a file has a size").len())
        .sum();
    assert!(bytes > 1_000_000, "the bundled model is missing");
    assert!(bytes <= 8_000_000, "the bundled model has {bytes} bytes");
}
