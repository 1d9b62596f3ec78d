//! The symbols of TensorRT-LLM that the bridge needs, beside the list of them: `symbols.txt`.
//!
//! A constructor that gains an argument upstream has another name then, so that this list, compared with the real
//! library by `.ci/trtllm`, says before linking whether the bridge fits it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

#[test]
fn the_manifest_names_every_symbol_that_the_bridge_needs() {
    let out = Command::new("nm")
        .args(["-uC", env!("TRTLLM_SHIM")])
        .output()
        .expect("nm runs: install binutils (a C++ compiler brings it)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let needed: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("U "))
        .filter(|name| name.starts_with("tensorrt_llm::") || name.contains("TrtLlm"))
        .collect();
    assert!(needed.len() > 20, "only {} symbols: {text}", needed.len());
    // Asked for when the test runs: a build folder that two checkouts share may have it from the other.
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let list = std::fs::read_to_string(here.join("symbols.txt")).unwrap();
    let listed: BTreeSet<&str> = list.lines().collect();
    let more: Vec<_> = needed.difference(&listed).collect();
    let fewer: Vec<_> = listed.difference(&needed).collect();
    assert!(more.is_empty() && fewer.is_empty(), "symbols.txt lacks {more:#?} and has {fewer:#?}");
}
