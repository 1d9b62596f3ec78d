//! Sends whole packs to the store of objects.
//!
//! A pack is exported when its turn comes, not when it is noted, so that what waits takes names and no bytes. Whether
//! the store has it is asked first: workers that computed the same would send the same.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use mainstay_tier::{Put, Record, RemoteTier};
use mainstay_types::{NamespaceId, SequenceHash};

use super::Tiers;
use super::offload::export;
use crate::shared::{Life, Shared};

/// Packs that are sent at once.
const UPLOADS_MAX: usize = 4;
/// After the store failed, the next pack is sent so much later: it is to recover, and what waits is bounded.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// A pack that the engine may still have.
pub(super) struct Pack {
    pub(super) namespace: NamespaceId,
    /// What comes before it.
    pub(super) parent: SequenceHash,
    /// All its blocks, in order.
    pub(super) blocks: Vec<SequenceHash>,
}

/// Sends packs of one engine until the task is aborted.
pub(crate) async fn upload(shared: Arc<Shared>, life: Arc<Life>, tiers: Arc<Tiers>) {
    let Some(remote) = tiers.remote() else { return };
    let mut packs = tiers.packs.from.lock().await;
    let packs = futures::stream::poll_fn(move |context| packs.poll_recv(context));
    let (all, life, tiers) = (&shared, &life, &tiers);
    let sent = packs.for_each_concurrent(UPLOADS_MAX, |pack| async move {
        let _open = Open(tiers);
        let ended = send(all, life, tiers, remote, &pack).await;
        metrics::counter!("mainstay_worker_uploads_total", "ended" => ended).increment(1);
        if ended == "failed" {
            tokio::time::sleep(FAILED_PAUSE).await;
        }
    });
    tokio::select! {
        () = sent => {}
        () = shared.stopped() => {}
    }
}

/// A pack is open until this goes.
struct Open<'a>(&'a Tiers);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.packs.leave(1);
    }
}

/// Sends a pack unless the store has it; says what became of it.
async fn send(
    shared: &Shared,
    life: &Life,
    tiers: &Tiers,
    remote: &RemoteTier,
    pack: &Pack,
) -> &'static str {
    let Some(last) = pack.blocks.last().copied() else { return "gone" };
    let keys = tiers.keys(pack.namespace, &pack.blocks);
    if tiers.knows(last) {
        return "present";
    }
    match remote.has_pack(&keys).await {
        Ok(Some(true)) => {
            tiers.learn(last);
            return "present";
        }
        Ok(Some(false)) => {}
        Ok(None) | Err(_) => return "failed",
    }
    let bytes = export(shared, life, &pack.blocks).await;
    let of = usize::try_from(life.info.block_bytes).unwrap_or(usize::MAX).max(1);
    if bytes.len() != of * pack.blocks.len() {
        return "gone";
    }
    let parents = std::iter::once(pack.parent).chain(pack.blocks.iter().copied());
    let records: Vec<Record<'_>> = keys
        .iter()
        .zip(parents)
        .zip(bytes.chunks_exact(of))
        .map(|((key, parent), payload)| Record {
            key: *key,
            parent,
            retention: shared.wanted(key.hash),
            payload,
            sum: None,
        })
        .collect();
    match remote.put_pack(&records).await {
        Ok(Put::Stored) => {
            tiers.learn(last);
            "stored"
        }
        Ok(Put::Present) => {
            tiers.learn(last);
            "present"
        }
        Ok(Put::Refused(_)) => "failed",
        Err(error) => {
            tracing::error!(%error, "a pack does not fit the store");
            "failed"
        }
    }
}
