//! The engine as a library in a child process, as a worker runs it.

use std::time::Duration;

use mainstay_engine_abi::sdk::Finish;
use mainstay_engine_host::{Source, open};

use crate::rig::{Folder, prompt, request};

/// Makes this program serve an engine.
pub(crate) const CHILD_WORD: &str = "engine-child";
const DEADLINE: Duration = Duration::from_secs(60);

/// The example's library, which cargo builds with the tests.
fn source() -> Source {
    let program = std::env::current_exe().unwrap();
    // From target/PROFILE/deps/TEST to target/PROFILE/examples.
    let profile = program.parent().and_then(std::path::Path::parent).unwrap();
    let path = profile.join("examples/libtrtllm_double.so");
    assert!(path.is_file(), "{} is missing; run `cargo test` without --test", path.display());
    let args = ["child_program", "--exact", "--nocapture", CHILD_WORD].map(str::to_owned).to_vec();
    Source::Child { library: Some(path), host_program: program, args }
}

#[test]
fn a_child_process_serves_the_library_and_it_says_that_it_is_a_double() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = Folder::new(&[]);
    let serve = async {
        let (engine, mut receivers) =
            open(source(), &folder.config(serde_json::json!({}))).await.unwrap();
        assert_eq!(engine.identity().name, "trtllm-double");
        let info = engine.info();
        assert!(info.device.contains("computes nothing"), "{}", info.device);
        assert!(info.model.starts_with("double-"), "{}", info.model);
        engine.submit(request(1, 7, prompt(1, 40), 5)).await.unwrap();
        let (mut tokens, mut finish) = (0, None);
        while finish.is_none() {
            for output in receivers.outputs.recv().await.unwrap() {
                tokens += output.tokens.len();
                finish = finish.or(output.finish);
            }
        }
        assert_eq!((tokens, finish), (5, Some(Finish::Length)));
        let told = receivers.kv.recv().await.unwrap();
        assert!(!told.events.is_empty());
    };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, serve).await }).unwrap();
}
