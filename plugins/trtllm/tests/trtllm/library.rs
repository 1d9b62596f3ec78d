//! The engine as a library in a child process, as a worker runs it.

use std::path::PathBuf;
use std::time::Duration;

use crate::rig::{Folder, request};
use mainstay_engine_abi::sdk::Finish;

/// The example's library, which cargo builds with the tests: its folder lies beside that of this program.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.parent().and_then(std::path::Path::parent).unwrap();
    target.join("examples").join("libtrtllm_double.so")
}
