//! Generates the gRPC code from `mainstay/v1/*.proto`, without a system protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let names = ["blocks", "control", "raft", "worker"];
    let files: Vec<PathBuf> =
        names.iter().map(|n| root.join(format!("mainstay/v1/{n}.proto"))).collect();
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&root])?;
    // Few pins have tokens; every entry would be as large as one that does.
    let tokens = ".mainstay.v1.PutPin.tokens";
    tonic_prost_build::configure().bytes(".").boxed(tokens).compile_fds(descriptors)?;
    Ok(())
}
