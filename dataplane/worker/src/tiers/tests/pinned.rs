//! Pins below the engine: what the cluster has pinned outlives a flood of a tier, and goes with the others once it is
//! not pinned any more.

use super::worker as begin;
use super::*;
use crate::lifecycle::WorkerHandle;

/// Prompts of 225 blocks each, of numbers of their own.
async fn flood(worker: &WorkerHandle, from: u32, prompts: u32) {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let client = WorkerClient::new(channel.expect("an address"));
    for number in from..from + prompts {
        let tokens: Vec<u32> =
            (0..900).map(|at| (number * 37 + at * (1 + number % 7)) % 1_000).collect();
        let tokens: Vec<u32> = std::iter::once(number % 1_000).chain(tokens).collect();
        let request = v1::GenerateRequest {
            tokens: pack(&tokens),
            // At once on the disk when it leaves memory.
            ranges: vec![v1::RetentionRange { end: 1_000, priority: 85, ..Default::default() }],
            ..Stage::request()
        };
        let mut events = client.clone().generate(request).await.expect("taken").into_inner();
        while events.message().await.expect("an event").is_some() {}
    }
    worker.shared().tiers().expect("it has some").settle(std::time::Duration::from_secs(20)).await;
}

/// How many of the prompt's blocks the tiers have.
fn here(worker: &WorkerHandle, names: &[SequenceHash]) -> usize {
    let tiers = worker.shared().tiers().expect("it has some");
    let local = tiers.local().expect("on this machine");
    let namespace = NamespaceId(u128::from_le_bytes([1; 16]));
    tiers.keys(namespace, names).iter().filter(|key| local.has(key)).count()
}

/// How many blocks its lowest tier let go.
fn evicted(worker: &WorkerHandle) -> u64 {
    let tiers = worker.shared().tiers().expect("it has some");
    let local = tiers.local().expect("on this machine");
    local.disk().map_or_else(|| local.host().figures().view(), |disk| disk.figures().view()).evicted
}

/// How many of its blocks pins hold.
fn held(worker: &WorkerHandle) -> usize {
    worker.shared().tiers().expect("it has some").pinned.lock().len()
}

async fn outlives(tiers: impl Fn() -> TierConfig, prompts: u32, restart: bool) {
    let control = FakeControl::start().await;
    let mut worker = begin(&control, "r1", tiers()).await;
    assert_eq!(cached(&worker).await, 0);
    let names = names();
    let blocks: Vec<u128> = names.iter().map(|name| name.0).collect();
    eventually("copied", || here(&worker, &names) == names.len()).await;
    control.put_pin_in(5, NamespaceId(u128::from_le_bytes([1; 16])), &blocks, 600_000);
    eventually("marked", || held(&worker) == names.len()).await;
    if restart {
        // The memory is gone, and the marks of the former life with it.
        assert_eq!(worker.drain().await, Ok(()));
        worker = begin(&control, "r1", tiers()).await;
        eventually("marked again", || held(&worker) == names.len()).await;
    }
    flood(&worker, 0, prompts).await;
    assert!(evicted(&worker) > 100, "nothing had to go");
    assert_eq!(here(&worker, &names), names.len(), "pinned blocks stay");
    control.release_pin(5);
    eventually("unmarked", || held(&worker) == 0).await;
    flood(&worker, 200, prompts).await;
    assert!(here(&worker, &names) < names.len() / 2, "nothing holds them any more");
    assert_eq!(worker.drain().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_outlives_a_flood_in_host_memory() {
    // The least that can be set: 16,384 blocks of this engine, and 90 prompts have 20,000.
    outlives(|| TierConfig { host_bytes: 1 << 20, ..TierConfig::default() }, 90, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_outlives_a_flood_on_a_disk_and_the_end_of_its_worker() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let disk = || DiskConfig { folder: folder.path().to_owned(), bytes: 1 << 20 };
    // 256 slots, behind the 16,384 of the memory.
    let tiers = || TierConfig { host_bytes: 1 << 20, disk: Some(disk()), remote: None };
    outlives(tiers, 150, true).await;
}
