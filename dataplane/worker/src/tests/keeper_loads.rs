//! Orders of the keeper on workers with a real host: a pin's blocks come from who keeps them, or from a tier, before
//! anything is computed; and what blocks were claimed for comes with them.

use mainstay_engine_abi::sdk::entry_point;
use mainstay_engine_host::Source;
use mainstay_proto::tokens::pack;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_types::{BlockHasher, HashKey, NamespaceId, PinId, PinState, SequenceHash};

use super::fake_control::{FakeControl, HASH_KEY};
use super::fake_engine::SPACE;
use super::hosted::{BLOCK_TOKENS, Parrot};
use super::{counted, eventually};
use crate::config::WorkerConfig;
use crate::lifecycle::{WorkerHandle, start};
use crate::tiers::{DiskConfig, TierConfig};

const TOKENS: u32 = 81;
/// Tokens of its whole blocks. Of a prompt of so many the last block is computed, for the token that follows it.
const WHOLE: usize = 80;

fn prompt(first: u32) -> Vec<u32> {
    (first..first + TOKENS).collect()
}

fn names(prompt: &[u32]) -> Vec<u128> {
    let names =
        BlockHasher::hash_prompt(HashKey(HASH_KEY), NamespaceId(SPACE), BLOCK_TOKENS, prompt);
    names.iter().map(|name| name.0).collect()
}

async fn worker(control: &FakeControl, name: &str, tiers: TierConfig) -> WorkerHandle {
    counted("none", &[]);
    let source = Source::Linked(entry_point::<Parrot>());
    let config = WorkerConfig {
        model_name: "toy".into(),
        revision: "r1".into(),
        tiers,
        ..WorkerConfig::new(name, vec![control.address.clone()], source)
    };
    start(config).await.expect("starts")
}

/// Asks; how many tokens were cached.
async fn ask(
    worker: &WorkerHandle,
    prompt: &[u32],
    sources: Vec<v1::BlockSource>,
    ranges: Vec<v1::RetentionRange>,
) -> u32 {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    let request = v1::GenerateRequest {
        namespace: SPACE.to_le_bytes().to_vec().into(),
        tokens: pack(prompt),
        sources,
        ranges,
        ..super::Stage::request()
    };
    let mut events = client.generate(request).await.expect("taken").into_inner();
    let mut cached = 0;
    while let Some(event) = events.message().await.expect("an event") {
        cached = event.cached_tokens.max(cached);
    }
    cached
}

fn outcomes(outcome: &str) -> u64 {
    counted("mainstay_worker_recomputed_total", &[&format!("outcome=\"{outcome}\"")])
}

fn blocks_from(from: &str) -> u64 {
    counted("mainstay_worker_loaded_blocks_total", &[&format!("from=\"{from}\"")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_takes_the_blocks_from_who_keeps_them() {
    let control = FakeControl::start().await;
    let one = worker(&control, "keeps", TierConfig::default()).await;
    let other = worker(&control, "ordered", TierConfig::default()).await;
    let (prompt, blocks) = (prompt(100), names(&prompt(100)));
    assert_eq!(ask(&one, &prompt, vec![], vec![]).await, 0);
    control.put_copied_pin(7, &blocks, &prompt[..WHOLE], 2);
    let keeps = |worker: &WorkerHandle| {
        let id = worker.worker_id();
        control.look(|machine| {
            machine.pin(PinId(7)).and_then(|pin| pin.holders.get(&id).copied()).unwrap_or(0)
        })
    };
    eventually("kept by one", || keeps(&one) as usize == blocks.len()).await;
    let (loaded, from_peer) = (outcomes("loaded"), blocks_from("peer"));
    control.order_pin(7, other.worker_id(), other.epoch());
    eventually("kept by both", || control.pin_state(7) == Some(PinState::Active)).await;
    eventually("counted", || outcomes("loaded") > loaded).await;
    assert_eq!(keeps(&other) as usize, blocks.len());
    assert!(blocks_from("peer") >= from_peer + blocks.len() as u64 - 1);
    assert!(control.faults().is_empty(), "{:?}", control.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_takes_the_blocks_from_a_tier() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let disk = || {
        let disk = DiskConfig { folder: folder.path().to_owned(), bytes: 16 << 20 };
        TierConfig { host_bytes: 2 << 20, disk: Some(disk), remote: None }
    };
    let control = FakeControl::start().await;
    let (prompt, blocks) = (prompt(300), names(&prompt(300)));
    let first = worker(&control, "w", disk()).await;
    assert_eq!(ask(&first, &prompt, vec![], vec![]).await, 0);
    assert_eq!(first.drain().await, Ok(()));
    let second = worker(&control, "w", disk()).await;
    let (loaded, from_tier) = (outcomes("loaded"), blocks_from("local"));
    control.put_copied_pin(9, &blocks, &prompt[..WHOLE], 1);
    control.order_pin(9, second.worker_id(), second.epoch());
    eventually("whole", || control.pin_state(9) == Some(PinState::Active)).await;
    eventually("counted", || outcomes("loaded") > loaded).await;
    assert!(blocks_from("local") >= from_tier + blocks.len() as u64 - 1);
}

/// What a worker knows of how much a block is wanted.
fn priority(worker: &WorkerHandle, block: u128) -> (u8, u64) {
    let said = worker.shared().wanted(SequenceHash(block));
    (said.priority, said.until_ms.saturating_sub(crate::tiers::now_ms()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_claimed_for_blocks_comes_with_them() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let tiers = || {
        let disk = DiskConfig { folder: folder.path().to_owned(), bytes: 16 << 20 };
        TierConfig { host_bytes: 2 << 20, disk: Some(disk), remote: None }
    };
    let control = FakeControl::start().await;
    let one = worker(&control, "one", TierConfig::default()).await;
    let other = worker(&control, "other", tiers()).await;
    let (prompt, blocks) = (prompt(500), names(&prompt(500)));
    let ranges = vec![
        v1::RetentionRange { end: 40, priority: 90, duration_ms: 600_000, ..Default::default() },
        v1::RetentionRange {
            start: 40,
            end: 60,
            priority: 40,
            duration_ms: 600_000,
            ..Default::default()
        },
    ];
    assert_eq!(ask(&one, &prompt, vec![], ranges).await, 0);
    let source = |worker: &WorkerHandle| v1::BlockSource {
        address: worker.address().to_string(),
        blocks: blocks.len() as u32,
    };
    // By a request that says nothing itself.
    assert_eq!(ask(&other, &prompt, vec![source(&one)], vec![]).await, TOKENS - 1);
    let inherited = |worker: &WorkerHandle, least_ms: u64| {
        let (first, left) = priority(worker, blocks[0]);
        assert!(first == 90 && (least_ms..=600_000).contains(&left), "{first} for {left} ms");
        assert_eq!(priority(worker, blocks[12]).0, 40);
        assert_eq!(priority(worker, blocks[16]).0, 35, "of which nobody said anything");
    };
    inherited(&other, 500_000);
    // Over its end, by its disk.
    assert_eq!(other.drain().await, Ok(()));
    let again = worker(&control, "other", tiers()).await;
    assert_eq!(priority(&again, blocks[0]).0, 35, "it knows nothing before it loads");
    assert_eq!(ask(&again, &prompt, vec![], vec![]).await, TOKENS - 1);
    inherited(&again, 400_000);
}
