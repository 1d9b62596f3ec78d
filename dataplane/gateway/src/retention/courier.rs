//! Brings changes of leases to workers: those for one worker together, and nobody waits for another.
//!
//! A change that does not arrive is lost: its lease runs out by its time.

use std::collections::HashMap;
use std::time::Duration;

use mainstay_proto::v1;
use mainstay_types::WorkerId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Letter;
use crate::workers::Workers;

/// Changes waiting to be sent.
pub(crate) type Letters = mpsc::Receiver<Letter>;

/// How many are taken at once; a worker takes as many in one call.
const BATCH_MAX: usize = 512;
/// Calls under way.
const CALLS_MAX: usize = 64;
/// Longer than this a worker is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs for as long as the gateway.
pub(crate) async fn deliver(mut letters: Letters, workers: Workers) {
    let mut calls = JoinSet::new();
    // Changes of one lease must not overtake each other, so a worker has one call at a time.
    let mut waiting: HashMap<WorkerId, Vec<v1::LeaseChange>> = HashMap::new();
    let mut busy: std::collections::HashSet<WorkerId> = std::collections::HashSet::new();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let held: usize = waiting.values().map(Vec::len).sum();
        tokio::select! {
            taken = letters.recv_many(&mut batch, BATCH_MAX), if held < BATCH_MAX => {
                if taken == 0 {
                    return;
                }
                for letter in batch.drain(..) {
                    waiting.entry(letter.worker).or_default().push(letter.change);
                }
            }
            Some(done) = calls.join_next(), if !calls.is_empty() => {
                if let Ok(worker) = done {
                    busy.remove(&worker);
                }
            }
        }
        let free: Vec<WorkerId> = waiting
            .keys()
            .filter(|worker| !busy.contains(worker))
            .take(CALLS_MAX.saturating_sub(busy.len()))
            .copied()
            .collect();
        for worker in free {
            let Some(changes) = waiting.remove(&worker) else { continue };
            busy.insert(worker);
            calls.spawn(send(workers.clone(), worker, changes));
        }
    }
}

async fn send(workers: Workers, worker: WorkerId, changes: Vec<v1::LeaseChange>) -> WorkerId {
    let count = changes.len() as u64;
    let ended = match workers.get(worker) {
        None => "gone",
        Some(entry) => {
            let mut client = entry.client.clone();
            let call = client.change_leases(v1::ChangeLeasesRequest { changes });
            match tokio::time::timeout(PATIENCE, call).await {
                Ok(Ok(_)) => "told",
                Ok(Err(status)) => {
                    tracing::debug!(worker = worker.0, %status, "changes of leases were refused");
                    "refused"
                }
                Err(_) => "late",
            }
        }
    };
    metrics::counter!("mainstay_gateway_lease_changes_total", "ended" => ended).increment(count);
    worker
}
