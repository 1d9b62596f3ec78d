//! The layers of the workspace: every edge between our crates is written in `layers.toml`.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};
use mainstay_tidy::host;
use serde::Deserialize;

#[derive(Deserialize)]
struct Layers {
    allow: BTreeMap<String, Vec<String>>,
    roots: Names,
    pure: Pure,
    only: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Names {
    names: Vec<String>,
}

/// Asked for when the test runs: a build folder that two checkouts share may have it from the other.
fn here() -> String {
    std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test")
}

#[derive(Deserialize)]
struct Pure {
    names: Vec<String>,
    never: Vec<String>,
}

fn load() -> (Layers, Metadata) {
    let layers = toml::from_str(include_str!("../layers.toml")).expect("layers.toml is read");
    let metadata = MetadataCommand::new()
        .manifest_path(format!("{}/../../Cargo.toml", here()))
        // Only this platform's packages are in the cache; the layers are the same on all.
        .other_options(["--offline", "--locked", "--filter-platform", &host()].map(str::to_owned))
        .exec()
        .expect("cargo metadata runs");
    (layers, metadata)
}

#[test]
fn every_edge_is_written_down() {
    let (layers, metadata) = load();
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        if layers.roots.names.contains(&package.name.to_string()) {
            continue;
        }
        let Some(allowed) = layers.allow.get(package.name.as_str()) else {
            faults.push(format!("{} has no line in layers.toml", package.name));
            continue;
        };
        for dependency in
            package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development)
        {
            if dependency.name.starts_with("mainstay") && !allowed.contains(&dependency.name) {
                faults.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
            let home = layers.only.get(&dependency.name);
            if home.is_some_and(|homes| !homes.iter().any(|h| h == package.name.as_str())) {
                faults.push(format!("{} is no home of {}", package.name, dependency.name));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn pure_crates_reach_no_runtime() {
    let (layers, metadata) = load();
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    let mut edges: BTreeMap<&PackageId, Vec<&PackageId>> = BTreeMap::new();
    for node in &resolve.nodes {
        let normal = node
            .deps
            .iter()
            .filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
        edges.insert(&node.id, normal.map(|d| &d.pkg).collect());
    }
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        if !layers.pure.names.contains(&package.name.to_string()) {
            continue;
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![&package.id];
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(edges.get(id).into_iter().flatten());
            }
        }
        for id in seen {
            let name = metadata[id].name.to_string();
            if layers.pure.never.contains(&name) {
                faults.push(format!("{} reaches {name}", package.name));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
