//! The end of a lease below the engine: what nobody else claims is worth nothing to a tier any more.

use super::worker as begin;
use super::*;
use crate::lifecycle::WorkerHandle;

const HEAD_TOKENS: u32 = 80;

/// Generates the prompt with a shared lease on its head and an own one on the rest.
async fn turn(worker: &WorkerHandle, shared: u8, own: u8) {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    let range = |start, end, lease| v1::RetentionRange {
        start,
        end,
        priority: 85,
        after: 36,
        duration_ms: 600_000,
        lease,
        ..Default::default()
    };
    let request = v1::GenerateRequest {
        tokens: pack(&prompt()),
        ranges: vec![range(0, HEAD_TOKENS, 1), range(HEAD_TOKENS, u32::MAX, 2)],
        leases: vec![vec![shared; 16].into(), vec![own; 16].into()],
        ..Stage::request()
    };
    let mut events = client.generate(request).await.expect("taken").into_inner();
    while events.message().await.expect("an event").is_some() {}
    worker.shared().tiers().expect("it has some").settle(std::time::Duration::from_secs(20)).await;
}

async fn end(worker: &WorkerHandle, lease: u8, end: v1::LeaseEnd) {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    let change = v1::LeaseChange {
        namespace: vec![1; 16].into(),
        lease: vec![lease; 16].into(),
        end: end.into(),
        ranges: Vec::new(),
    };
    let request = v1::ChangeLeasesRequest { changes: vec![change] };
    client.change_leases(request).await.expect("taken");
}

/// What host memory says that each of the prompt's blocks is worth now.
async fn worth(worker: &WorkerHandle) -> Vec<u8> {
    let tiers = worker.shared().tiers().expect("it has some");
    let keys = tiers.keys(NamespaceId(u128::from_le_bytes([1; 16])), &names());
    let read = tokio::task::spawn_blocking(move || tiers.local().map(|local| local.read(&keys)));
    let read = read.await.expect("it reads").expect("on this machine");
    read.found
        .iter()
        .map(|found| found.held.retention.priority_at(crate::tiers::now_ms()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_over_goes_first_in_its_tiers_and_what_others_claim_stays() {
    let control = FakeControl::start().await;
    let tiers = TierConfig { host_bytes: 1 << 20, ..TierConfig::default() };
    let worker = begin(&control, "r1", tiers).await;
    let all = names().len();
    let (head, whole) = ((HEAD_TOKENS / BLOCK_TOKENS) as usize, (WHOLE / BLOCK_TOKENS) as usize);
    turn(&worker, 1, 2).await;
    turn(&worker, 1, 3).await;
    assert_eq!(worth(&worker).await.len(), all, "copied");
    let is = |from: usize, to: usize, worth: &[u8]| worth[from..to].to_vec();
    // Another session claims the same.
    end(&worker, 2, v1::LeaseEnd::Finished).await;
    assert_eq!(is(0, whole, &worth(&worker).await), vec![85; whole]);
    // One that is released leaves them as they are; its name comes again.
    end(&worker, 3, v1::LeaseEnd::Released).await;
    assert_eq!(is(0, whole, &worth(&worker).await), vec![85; whole]);
    turn(&worker, 1, 3).await;
    end(&worker, 3, v1::LeaseEnd::Compacted).await;
    let after = worth(&worker).await;
    assert_eq!(is(0, head, &after), vec![85; head], "what sessions share");
    assert_eq!(is(head, whole, &after), vec![0; whole - head]);
    // Whoever asks for it again claims it anew.
    turn(&worker, 1, 4).await;
    assert_eq!(is(0, whole, &worth(&worker).await), vec![85; whole]);
    assert_eq!(worker.drain().await, Ok(()));
}
