//! A worker with a real host and tiers on a real disk and in a folder: what it computed comes back after its end, what
//! was damaged is computed again, and what is another model's is not seen.

mod leases;
mod pinned;

use std::path::{Path, PathBuf};

use mainstay_engine_abi::sdk::entry_point;
use mainstay_engine_host::Source;
use mainstay_proto::tokens::pack;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_types::{BlockHasher, HashKey, NamespaceId, SequenceHash};

use super::{DiskConfig, RemoteConfig, TierConfig};
use crate::config::WorkerConfig;
use crate::lifecycle::{WorkerHandle, start};
use crate::tests::fake_control::{FakeControl, HASH_KEY};
use crate::tests::hosted::{BLOCK_TOKENS, Parrot};
use crate::tests::{Stage, counted, eventually};

/// A pack of 64 blocks of 4 tokens, and some.
const PROMPT_TOKENS: u32 = 300;
const PACK_TOKENS: u32 = 256;
/// All blocks but that of the last token.
const WHOLE: u32 = (PROMPT_TOKENS - 1) / BLOCK_TOKENS * BLOCK_TOKENS;

fn prompt() -> Vec<u32> {
    (0..PROMPT_TOKENS).collect()
}

fn names() -> Vec<SequenceHash> {
    let namespace = NamespaceId(u128::from_le_bytes([1; 16]));
    BlockHasher::hash_prompt(HashKey(HASH_KEY), namespace, BLOCK_TOKENS, &prompt())
}

async fn worker(control: &FakeControl, revision: &str, tiers: TierConfig) -> WorkerHandle {
    // Before the first count, or counts before it are lost.
    counted("none", &[]);
    let source = Source::Linked(entry_point::<Parrot>());
    let config = WorkerConfig {
        tiers,
        revision: revision.to_owned(),
        ..WorkerConfig::new("w", vec![control.address.clone()], source)
    };
    start(config).await.expect("starts")
}

fn on_disk(folder: &Path) -> TierConfig {
    let disk = DiskConfig { folder: folder.to_owned(), bytes: 16 << 20 };
    TierConfig { host_bytes: 2 << 20, disk: Some(disk), remote: None }
}

fn in_store(folder: &Path) -> TierConfig {
    let address = format!("file://{}", folder.display());
    let remote = RemoteConfig { address, endpoint: None, region: None };
    TierConfig { remote: Some(remote), ..TierConfig::default() }
}

/// Generates and says how many tokens were cached.
async fn cached(worker: &WorkerHandle) -> u32 {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    let request = v1::GenerateRequest { tokens: pack(&prompt()), ..Stage::request() };
    let mut events = client.generate(request).await.expect("taken").into_inner();
    let (mut tokens, mut cached) = (Vec::new(), 0);
    while let Some(event) = events.message().await.expect("an event") {
        tokens.extend_from_slice(&event.tokens);
        cached = event.cached_tokens;
    }
    assert_eq!(tokens, prompt(), "the answer is the same whatever came in");
    cached
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).expect("readable");
    bytes[at] ^= 0x10;
    std::fs::write(file, bytes).expect("writable");
}

/// The files of objects below a folder, those that were put aside left out.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.retain(|path| path.to_string_lossy().contains("/v1/"));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_back_has_its_blocks_and_says_so() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let control = FakeControl::start().await;
    let first = worker(&control, "r1", on_disk(folder.path())).await;
    assert_eq!(cached(&first).await, 0);
    assert_eq!(cached(&first).await, PROMPT_TOKENS / BLOCK_TOKENS * BLOCK_TOKENS);
    assert_eq!(first.drain().await, Ok(()));

    let second = worker(&control, "r1", on_disk(folder.path())).await;
    let (id, names) = (second.worker_id(), names());
    eventually("told", || control.held_of(id, &names) == names.len() as u64).await;
    assert_eq!(cached(&second).await, WHOLE);
    assert_eq!(second.drain().await, Ok(()));

    let other = worker(&control, "r2", on_disk(folder.path())).await;
    assert_eq!(cached(&other).await, 0, "another model's blocks are not served");
    assert_eq!(other.drain().await, Ok(()));
    assert!(control.faults().is_empty(), "{:?}", control.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_on_the_disk_is_seen_counted_and_computed_again() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let control = FakeControl::start().await;
    let first = worker(&control, "r1", on_disk(folder.path())).await;
    assert_eq!(cached(&first).await, 0);
    assert_eq!(first.drain().await, Ok(()));
    // Slots are of 4 KiB here: bytes of the eleventh one to be written.
    flip(&folder.path().join("blocks"), 10 * 4096 + 9);
    let second = worker(&control, "r1", on_disk(folder.path())).await;
    let came = cached(&second).await;
    assert!(came < WHOLE, "what is behind the damaged block is computed: {came}");
    let tier = ["tier=\"disk\""];
    eventually("counted", || {
        counted("mainstay_tier_corrupt_total", &tier) == 1
            && counted("mainstay_tier_quarantined_total", &tier) == 1
    })
    .await;
    assert_eq!(second.drain().await, Ok(()));
    // It is whole again.
    let third = worker(&control, "r1", on_disk(folder.path())).await;
    assert_eq!(cached(&third).await, WHOLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_cluster_finds_packs_in_the_store_and_computes_what_was_damaged() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let control = FakeControl::start().await;
    let first = worker(&control, "r1", in_store(folder.path())).await;
    assert_eq!(cached(&first).await, 0);
    assert_eq!(first.drain().await, Ok(()));
    assert_eq!(objects(folder.path()).len(), 1, "a pack, and no tail");

    let control = FakeControl::start().await;
    let second = worker(&control, "r1", in_store(folder.path())).await;
    assert_eq!(cached(&second).await, PACK_TOKENS);
    assert_eq!(second.drain().await, Ok(()));

    flip(&objects(folder.path())[0], 1_000);
    let third = worker(&control, "r1", in_store(folder.path())).await;
    assert_eq!(cached(&third).await, 0);
    eventually("counted", || {
        counted("mainstay_tier_corrupt_total", &["tier=\"remote\""]) == 1
            && counted("mainstay_tier_quarantined_total", &["tier=\"remote\""]) == 1
    })
    .await;
    assert_eq!(third.drain().await, Ok(()));
    assert_eq!(objects(folder.path()).len(), 1, "written anew");
    let fourth = worker(&control, "r1", in_store(folder.path())).await;
    assert_eq!(cached(&fourth).await, PACK_TOKENS);
    let other = worker(&control, "r2", in_store(folder.path())).await;
    assert_eq!(cached(&other).await, 0, "another model's blocks are not served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_that_can_not_be_opened_end_the_start_with_what_to_change() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let control = FakeControl::start().await;
    let refused = |tiers: TierConfig| {
        let source = Source::Linked(entry_point::<Parrot>());
        let config =
            WorkerConfig { tiers, ..WorkerConfig::new("w", vec![control.address.clone()], source) };
        async move { start(config).await.err().expect("can't work").to_string() }
    };
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("writable");
    for (tiers, word) in [
        (TierConfig { host_bytes: 5, ..TierConfig::default() }, "--host-memory"),
        (on_disk(&file), "cannot make the folder"),
        (
            TierConfig {
                remote: Some(RemoteConfig {
                    address: "ftp://somewhere".to_owned(),
                    endpoint: None,
                    region: None,
                }),
                ..TierConfig::default()
            },
            "s3://BUCKET/PREFIX",
        ),
    ] {
        let said = refused(tiers).await;
        assert!(said.contains(word), "{said}");
    }
    let taken = worker(&control, "r1", on_disk(folder.path())).await;
    let said = refused(on_disk(folder.path())).await;
    assert!(said.contains("a folder of its own"), "{said}");
    assert_eq!(taken.drain().await, Ok(()));
}
