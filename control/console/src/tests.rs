//! The files as a browser will meet them: each name leads to a file, nothing leads elsewhere, nothing breaks the policy.

use std::collections::BTreeSet;

use super::*;

/// What stands between quotes behind `mark`.
fn quoted<'a>(text: &'a str, mark: &str) -> Vec<&'a str> {
    let pieces = text.split(mark).skip(1);
    pieces.filter_map(|piece| piece.split('"').next()).collect()
}

#[test]
fn every_name_in_a_file_leads_to_a_file() {
    let mut named: BTreeSet<&str> = BTreeSet::from([PAGE]);
    for asset in ASSETS {
        for mark in ["src=\"", "href=\"", "from \"./", "import \"./", "@import \""] {
            for name in quoted(asset.text, mark) {
                let name = name.trim_start_matches("./");
                if name.starts_with('#') {
                    continue;
                }
                assert!(super::asset(name).is_some(), "{} names {name}", asset.name);
                named.insert(name);
            }
        }
    }
    let all: BTreeSet<&str> = ASSETS.iter().map(|a| a.name).collect();
    assert_eq!(named, all, "a file that nobody names is not shipped");
}

#[test]
fn the_folder_holds_these_files_and_no_others() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    let folder = std::path::Path::new(&here).join("assets");
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let names: BTreeSet<String> = entries
        .map(|e| e.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ASSETS.iter().map(|a| a.name.to_owned()).collect());
}

#[test]
fn nothing_comes_from_elsewhere_and_nothing_breaks_the_policy() {
    for asset in ASSETS {
        let text = asset.text.replace("http://www.w3.org/2000/svg", "");
        for banned in ["http://", "https://", "//cdn", "url(", "innerHTML", "outerHTML"] {
            assert!(!text.contains(banned), "{} has {banned}", asset.name);
        }
        for banned in
            ["insertAdjacentHTML", "document.write", "eval(", "new Function", "onclick=", "onload="]
        {
            assert!(!text.contains(banned), "{} has {banned}", asset.name);
        }
        if asset.name.ends_with(".html") {
            assert!(!text.contains(" style=") && !text.contains("<style"), "inline style");
            assert!(!text.contains("<script>"), "inline script");
        }
        // Attributes of style are refused by the policy; properties are not.
        assert!(!text.contains("setAttribute(\"style\""), "{}", asset.name);
    }
}

#[test]
fn modules_say_what_they_are_and_are_short() {
    for asset in ASSETS.iter().filter(|a| a.name.ends_with(".js")) {
        assert!(asset.text.starts_with("// "), "{} does not say what it is", asset.name);
        let lines = asset.text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines", asset.name);
        let long = asset.text.lines().find(|line| line.chars().count() > 120);
        assert!(long.is_none(), "{}: {long:?}", asset.name);
    }
}

#[test]
fn tags_tell_files_apart() {
    let tags: BTreeSet<String> = ASSETS.iter().map(Asset::tag).collect();
    assert_eq!(tags.len(), ASSETS.len());
    for asset in ASSETS {
        assert!(asset.tag().len() == 18 && asset.media_type() != "application/octet-stream");
    }
    assert!(asset("../Cargo.toml").is_none() && asset("").is_none());
}
