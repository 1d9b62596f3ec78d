//! What the tests share: compiling C engines, naming sources, reading with a deadline.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mainstay_engine_host::sdk::{EntryPoint, Output, Request, Sampling, entry_point};
use mainstay_engine_host::{Receivers, Source};

use crate::echo::Echo;

/// Makes this program serve an engine.
pub(crate) const CHILD_WORD: &str = "engine-child";
/// Makes this program open a child and wait to be killed.
pub(crate) const MIDDLE_WORD: &str = "engine-middle";

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn rust_echo() -> EntryPoint {
    entry_point::<Echo>()
}

pub(crate) fn args(word: &str) -> Vec<String> {
    ["child_program", "--exact", "--nocapture", word].map(str::to_owned).to_vec()
}

/// A child that is this program, with a library or the linked engine.
pub(crate) fn child(library: Option<PathBuf>) -> Source {
    let host_program = std::env::current_exe().unwrap();
    Source::Child { library, host_program, args: args(CHILD_WORD) }
}

/// A C engine, compiled into a folder of its own that goes with it.
pub(crate) struct Compiled {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn compile(source: &str, switches: &[&str]) -> Compiled {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    let root = Path::new(&here);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.so");
    let built = Command::new("gcc")
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"])
        // A table that ends before the header's does is what growth looks like (R2).
        .arg("-Wno-missing-field-initializers")
        .args(["-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-I"])
        .arg(root.join("../include"))
        .args(switches)
        .arg(root.join("tests/fixtures").join(source))
        .arg("-o")
        .arg(&path)
        .output()
        .expect("gcc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Compiled { _folder: folder, path }
}

pub(crate) fn c_echo() -> Compiled {
    compile("echo.c", &[])
}

/// The echo engine in Rust as a library: the example `echo_engine`.
pub(crate) fn rust_library() -> PathBuf {
    let mut folder = std::env::current_exe().unwrap();
    // From target/PROFILE/deps/TEST to target/PROFILE/examples.
    folder.pop();
    folder.pop();
    let path = folder.join("examples/libecho_engine.so");
    assert!(path.is_file(), "{} is missing; run `cargo test` without --test", path.display());
    path
}

/// Runs a test's future on a runtime of its own, with a deadline for all of it.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE * 2, future).await.expect("the test ends in time")
    })
}

pub(crate) fn request(id: u64, tokens: &[u32]) -> Request {
    Request {
        id,
        namespace: 5 << 64 | 6,
        tokens: tokens.to_vec(),
        sampling: Sampling { tokens_max: 8, ..Sampling::default() },
        ..Request::default()
    }
}

/// Reads outputs until `finals` requests have ended.
pub(crate) async fn read_until_finals(receivers: &mut Receivers, finals: usize) -> Vec<Output> {
    let mut all: Vec<Output> = Vec::new();
    while all.iter().filter(|output| output.finish.is_some()).count() < finals {
        let batch = tokio::time::timeout(DEADLINE, receivers.outputs.recv()).await;
        match batch.expect("outputs come in time") {
            Some(batch) => all.extend(batch),
            None => panic!("the lane ended after {all:?}"),
        }
    }
    all
}
