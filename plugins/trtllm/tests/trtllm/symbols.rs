//! The symbols of TensorRT-LLM that the bridge needs, beside the list of them: `symbols.txt`.
//!
//! A constructor that gains an argument upstream has another name then, so that this list, compared with the real
//! library by `.ci/trtllm`, says before linking whether the bridge fits it.

use std::collections::BTreeSet;
use std::process::Command;

use expect_test::expect_file;

#[test]
fn the_manifest_names_every_symbol_that_the_bridge_needs() {
    let out = Command::new("nm")
        .args(["-uC", mainstay_trtllm::SHIM])
        .output()
        .expect("nm runs: install binutils (a C++ compiler brings it)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let needed: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("U "))
        .filter(|name| name.starts_with("tensorrt_llm::"))
        .collect();
    assert!(needed.len() > 20, "only {} symbols: {text}", needed.len());
    let list: String = needed.iter().flat_map(|name| [*name, "\n"]).collect();
    expect_file!["../../symbols.txt"].assert_eq(&list);
}
