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
pub(crate) async fn deliver(letters: Letters, workers: Workers) {
    deliver_by(letters, |worker, changes| send(workers.clone(), worker, changes)).await;
}

/// Brings changes to workers by `call`, of which each worker has one at a time.
async fn deliver_by<F>(
    mut letters: Letters,
    mut call: impl FnMut(WorkerId, Vec<v1::LeaseChange>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut calls = JoinSet::new();
    // Changes of one lease must not overtake each other, so a worker has one call at a time.
    let mut waiting: HashMap<WorkerId, Vec<v1::LeaseChange>> = HashMap::new();
    let mut busy: HashMap<tokio::task::Id, WorkerId> = HashMap::new();
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
            Some(done) = calls.join_next_with_id(), if !calls.is_empty() => {
                // One that panicked has ended, too: its worker would wait for ever, and in the end all would.
                let ended = match done {
                    Ok((id, ())) => id,
                    Err(error) => {
                        tracing::error!(%error, "a call with changes of leases broke");
                        error.id()
                    }
                };
                busy.remove(&ended);
            }
        }
        let free: Vec<WorkerId> = waiting
            .keys()
            .filter(|worker| !busy.values().any(|other| other == *worker))
            .take(CALLS_MAX.saturating_sub(busy.len()))
            .copied()
            .collect();
        for worker in free {
            let Some(changes) = waiting.remove(&worker) else { continue };
            let task = calls.spawn(call(worker, changes));
            busy.insert(task.id(), worker);
        }
    }
}

async fn send(workers: Workers, worker: WorkerId, changes: Vec<v1::LeaseChange>) {
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    fn letter(worker: u32) -> Letter {
        Letter { worker: WorkerId(worker), change: v1::LeaseChange::default() }
    }

    #[tokio::test]
    async fn a_call_that_breaks_stops_nobody() {
        let (sender, letters) = mpsc::channel(8 * BATCH_MAX);
        let told: Arc<Mutex<HashMap<WorkerId, usize>>> = Arc::default();
        let (hearing, mut broken) = (Arc::clone(&told), false);
        let call = move |worker: WorkerId, changes: Vec<v1::LeaseChange>| {
            let breaks = worker == WorkerId(1) && !std::mem::replace(&mut broken, true);
            let told = Arc::clone(&hearing);
            async move {
                // Long enough for as many to wait as may.
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(!breaks, "on purpose");
                *told.lock().entry(worker).or_default() += changes.len();
            }
        };
        let delivering = tokio::spawn(deliver_by(letters, call));
        sender.send(letter(1)).await.expect("room");
        tokio::task::yield_now().await;
        for _ in 0..2 * BATCH_MAX {
            sender.send(letter(1)).await.expect("room");
        }
        sender.send(letter(2)).await.expect("room");
        let all = async {
            while told.lock().get(&WorkerId(2)).is_none()
                || told.lock().get(&WorkerId(1)).is_none_or(|count| *count < BATCH_MAX)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(20), all).await;
        assert!(done.is_ok(), "it stands still: {:?}", told.lock());
        drop(sender);
        tokio::time::timeout(Duration::from_secs(20), delivering)
            .await
            .expect("ends")
            .expect("well");
    }
}
