//! Blocks in and out through a handle, in this process and in a child.

use std::time::Duration;

use mainstay_engine_host::sdk::Code;
use mainstay_engine_host::{HostError, KvImport, Source, open};

use crate::echo::{BLOCK_BYTES, HELD, LAYOUT};
use crate::support::{DEADLINE, c_echo, child, run, rust_echo};

fn import(blocks: &[u128]) -> KvImport {
    let bytes = blocks.iter().flat_map(|block| [*block as u8; BLOCK_BYTES]).collect();
    let (namespace, parent, layout) = (1, 1, LAYOUT);
    KvImport {
        namespace,
        parent,
        layout,
        blocks: blocks.to_vec(),
        bytes,
        priority: 50,
        duration_ms: 0,
    }
}

async fn round_trip(source: Source) {
    let (handle, mut receivers) = open(source, "{}").await.unwrap();
    assert_eq!(handle.kv_import(import(&[4, 5, 6])).await.unwrap(), 3);
    let bytes = handle.kv_export(vec![4, 5, 6, 7]).await.unwrap();
    assert_eq!(bytes, import(&[4, 5, 6]).bytes, "up to the first that is not held");
    assert!(handle.kv_export(vec![7]).await.unwrap().is_empty());

    let foreign = KvImport { layout: LAYOUT + 1, ..import(&[4]) };
    assert_eq!(handle.kv_import(foreign).await.unwrap_err().code(), Code::Precondition);
    let short = KvImport { bytes: vec![0; BLOCK_BYTES - 1], ..import(&[4]) };
    assert_eq!(handle.kv_import(short).await.unwrap_err().code(), Code::Invalid);
    assert_eq!(handle.kv_export(Vec::new()).await.unwrap_err().code(), Code::Invalid);
    assert!(receivers.ops.try_recv().is_err(), "the host's own operations are its own");

    // One that never ends: whoever waits hears of the engine's end.
    let waiting = handle.clone();
    let held = KvImport { namespace: HELD, parent: HELD, ..import(&[9]) };
    let waiter = tokio::spawn(async move { waiting.kv_import(held).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiter.is_finished());
    handle.stop();
    let told =
        tokio::time::timeout(DEADLINE, waiter).await.expect("nobody waits for ever").unwrap();
    assert!(told.is_err(), "{told:?}");
}

#[test]
fn linked_into_this_process() {
    run(round_trip(Source::Linked(rust_echo())));
}

#[test]
fn in_a_child() {
    run(round_trip(child(None)));
}

#[test]
fn an_engine_without_the_capability_is_not_asked() {
    let engine = c_echo();
    run(async {
        let (handle, _receivers) = open(Source::Library(engine.path.clone()), "{}").await.unwrap();
        let error = handle.kv_export(vec![1]).await.unwrap_err();
        assert!(matches!(error, HostError::Unsupported { .. }), "{error:?}");
    });
}
