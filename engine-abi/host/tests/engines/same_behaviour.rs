//! One script of calls, the same words from C and Rust, in this process and in a child.

use std::time::Duration;

use mainstay_engine_host::sdk::{BlockAges, Code, Finish, KvEvent, Output, Pin};
use mainstay_engine_host::{HostError, KvBatch, OpDone, Source, open};

use crate::support::{
    DEADLINE, c_echo, child, compile, read_until_finals, request, run, rust_echo, rust_library,
};

/// What the script sees, without timing.
#[derive(Debug, PartialEq)]
struct Seen {
    tokens: Vec<(u64, Vec<u32>)>,
    finishes: Vec<(u64, Finish)>,
    firsts: usize,
    stored: Vec<KvEvent>,
    op: OpDone,
    refusals: Vec<Code>,
    decode_tokens: u64,
    ages: Option<BlockAges>,
    model: String,
}

fn tokens_of(outputs: &[Output], id: u64) -> Vec<u32> {
    outputs
        .iter()
        .filter(|output| output.id == id)
        .flat_map(|output| output.tokens.clone())
        .collect()
}

async fn script(source: Source) -> Seen {
    let (handle, mut receivers) = open(source, "{}").await.unwrap();
    handle.submit(request(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9])).await.unwrap();
    handle.submit(request(2, &[30, 20, 10])).await.unwrap();
    handle.submit(request(3, &[777])).await.unwrap();
    let mut outputs = read_until_finals(&mut receivers, 2).await;

    let mut refusals = Vec::new();
    for refused in [request(3, &[1]), request(4, &[]), request(4, &[1000])] {
        refusals.push(handle.submit(refused).await.unwrap_err().code());
    }
    let pin = Pin { op_id: 1, pin_id: 1, blocks: vec![1], ttl_ms: 1, priority: 1 };
    refusals.push(handle.pin(pin).await.unwrap_err().code());

    handle.cancel(99);
    handle.cancel(3);
    handle.cancel(3);
    outputs.extend(read_until_finals(&mut receivers, 1).await);

    handle.kv_snapshot(11).await.unwrap();
    let op = tokio::time::timeout(DEADLINE, receivers.ops.recv()).await.unwrap().unwrap();

    let stats = handle.stats().await.unwrap();
    handle.submit(request(5, &[777])).await.unwrap();
    handle.drain(Duration::from_secs(1)).await.unwrap();
    outputs.extend(read_until_finals(&mut receivers, 1).await);
    refusals.push(handle.submit(request(6, &[1])).await.unwrap_err().code());

    let kv = tokio::time::timeout(DEADLINE, receivers.kv.recv()).await.unwrap().unwrap();
    let KvBatch { epoch: 0, first_seq: 0, reset: false, gap: false, events: stored } = kv else {
        panic!("{kv:?}")
    };
    let model = handle.info().model.clone();
    drop(handle);
    assert!(receivers.outputs.recv().await.is_none(), "nothing is owed");
    assert_eq!(receivers.exit.await.unwrap().to_string(), "it was stopped");

    let mut finishes: Vec<(u64, Finish)> =
        outputs.iter().filter_map(|o| Some((o.id, o.finish.clone()?))).collect();
    finishes.sort_by_key(|(id, _)| *id);
    let tokens = [1, 2, 3, 5].map(|id| (id, tokens_of(&outputs, id))).to_vec();
    let firsts = outputs.iter().filter(|output| output.first).count();
    let decode_tokens = stats.decode_tokens;
    let ages = stats.ages;
    Seen { tokens, finishes, firsts, stored, op, refusals, decode_tokens, ages, model }
}

fn expected() -> Seen {
    let namespace = 5 << 64 | 6;
    Seen {
        tokens: vec![
            (1, vec![1, 2, 3, 4, 5, 6, 7, 8, 9]),
            (2, vec![30, 20, 10]),
            (3, vec![777]),
            (5, vec![777]),
        ],
        finishes: vec![
            (1, Finish::Length),
            (2, Finish::Length),
            (3, Finish::Cancelled),
            (5, Finish::Cancelled),
        ],
        firsts: 4,
        stored: vec![KvEvent::Stored {
            namespace,
            parent: namespace,
            blocks: vec![1 << 64 | 1, 2 << 64 | 5],
            tier: 0,
            snapshot: false,
        }],
        op: OpDone { op_id: 11, rc: 0, done: 0 },
        refusals: vec![
            Code::Exists,
            Code::Invalid,
            Code::Invalid,
            Code::Unimplemented,
            Code::Unavailable,
        ],
        decode_tokens: 12,
        ages: Some(crate::echo::ages(12)),
        model: "echo".into(),
    }
}

#[test]
fn a_c_engine_in_this_process() {
    let engine = c_echo();
    assert_eq!(run(script(Source::Library(engine.path.clone()))), expected());
}

#[test]
fn a_c_engine_in_a_child() {
    let engine = c_echo();
    assert_eq!(run(script(child(Some(engine.path.clone())))), expected());
}

#[test]
fn an_engine_of_a_later_minor_serves_as_one_of_this() {
    let engine = compile("echo.c", &["-DLATER_MINOR"]);
    assert_eq!(run(script(Source::Library(engine.path.clone()))), expected());
    assert_eq!(run(script(child(Some(engine.path.clone())))), expected());
}

#[test]
fn an_engine_that_keeps_no_ages_serves_as_ever() {
    let engine = compile("echo.c", &["-DNO_AGES"]);
    let without = || Seen { ages: None, ..expected() };
    assert_eq!(run(script(Source::Library(engine.path.clone()))), without());
    assert_eq!(run(script(child(Some(engine.path.clone())))), without());
}

#[test]
fn a_rust_engine_linked_in() {
    assert_eq!(run(script(Source::Linked(rust_echo()))), expected());
}

#[test]
fn a_rust_engine_in_a_child() {
    assert_eq!(run(script(child(None))), expected());
}

#[test]
fn a_rust_engine_as_a_library_here_and_in_a_child() {
    let path = rust_library();
    assert_eq!(run(script(Source::Library(path.clone()))), expected());
    assert_eq!(run(script(child(Some(path)))), expected());
}

#[test]
fn a_rust_engine_exports_two_symbols() {
    let nm = std::process::Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=just-symbols"])
        .arg(rust_library())
        .output()
        .expect("nm runs");
    let mut symbols: Vec<&str> = std::str::from_utf8(&nm.stdout).unwrap().lines().collect();
    symbols.sort_unstable();
    assert_eq!(symbols, ["mse_magic_v1", "mse_open_v1"]);
}

#[test]
fn one_library_gives_many_engines() {
    let engine = c_echo();
    run(async {
        for round in 0..20 {
            let (handle, mut receivers) =
                open(Source::Library(engine.path.clone()), "{}").await.unwrap();
            assert_eq!(handle.identity().name, "echo-c");
            handle.submit(request(round, &[1, 2])).await.unwrap();
            assert_eq!(read_until_finals(&mut receivers, 1).await.len(), 2);
        }
    });
}

#[test]
fn a_handle_that_goes_ends_what_is_live() {
    run(async {
        for source in [Source::Linked(rust_echo()), child(None)] {
            let (handle, mut receivers) = open(source, "{}").await.unwrap();
            handle.submit(request(1, &[777])).await.unwrap();
            handle.stop();
            let outputs = read_until_finals(&mut receivers, 1).await;
            let finish = outputs.last().unwrap().finish.clone().unwrap();
            assert!(matches!(finish, Finish::Error { rc: -14, .. }), "{finish:?}");
            assert!(receivers.outputs.recv().await.is_none());
            let error = handle.submit(request(2, &[1])).await.unwrap_err();
            assert!(matches!(error, HostError::Ended(_)), "{error}");
        }
    });
}
