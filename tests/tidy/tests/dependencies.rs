//! What may enter the dependency tree, read from `deny.toml`: licences and sources. `cargo deny check` says the
//! same and more where it is installed; this runs everywhere.

use cargo_metadata::MetadataCommand;
use serde::Deserialize;

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

/// Asked for when the test runs: a build folder that two checkouts share may have it from the other.
fn here() -> String {
    std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test")
}

/// Whether an SPDX expression can be met by allowed licences alone. `/` is the old way to write OR.
fn met(expression: &str, allow: &[String]) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    // Without nesting, AND binds tighter than OR; nested expressions are read the strict way below.
    let nested = expression.contains('(');
    let allowed = |license: &str| allow.iter().any(|a| a == license.trim());
    if nested {
        return flat.split(" AND ").all(|part| part.split(" OR ").any(allowed));
    }
    flat.split(" OR ").any(|part| part.split(" AND ").all(allowed))
}

#[test]
fn expressions_are_read() {
    let allow = ["MIT".to_owned(), "Apache-2.0".to_owned()];
    for good in ["MIT", "MIT OR GPL-3.0", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Apache-2.0"] {
        assert!(met(good, &allow), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", ""] {
        assert!(!met(bad, &allow), "{bad}");
    }
}

#[test]
fn every_dependency_is_allowed() {
    let deny: Deny = toml::from_str(include_str!("../../../deny.toml")).expect("deny.toml is read");
    let metadata = MetadataCommand::new()
        .manifest_path(format!("{}/../../Cargo.toml", here()))
        .other_options(
            ["--offline", "--locked", "--filter-platform", &mainstay_tidy::host()]
                .map(str::to_owned),
        )
        .exec()
        .expect("cargo metadata runs");
    let nodes = &metadata.resolve.as_ref().expect("a resolved graph").nodes;
    let mut faults = Vec::new();
    for package in nodes.iter().map(|n| &metadata[&n.id]) {
        let ours = package.source.is_none();
        if !ours && !package.source.as_ref().is_some_and(|s| s.is_crates_io()) {
            faults.push(format!("{} does not come from the registry", package.name));
        }
        let license = package.license.as_deref().unwrap_or_default();
        if !met(license, &deny.licenses.allow) {
            faults.push(format!("{} has the licence {license:?}", package.name));
        }
    }
    assert!(nodes.len() > 50, "only {} packages were seen", nodes.len());
    assert!(faults.is_empty(), "{faults:#?}");
}
