//! Copies what the engine has stored to the tiers, while nobody waits for it.
//!
//! Stored blocks are noted as the engine reports them and exported a little at a time: an export is a command between
//! two of the engine's steps, so each is small, and after each this task rests for as long as it took. A block that
//! left the engine before its turn is lost to the tiers, and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::limits::TRANSFER_BLOCKS_MAX;
use mainstay_engine_abi::sdk::KvEvent;
use mainstay_tier::{Put, Record, Retention};
use mainstay_types::{NamespaceId, SequenceHash, Tier};

use super::local::Local;
use super::upload::Pack;
use super::{PACKS_MAX, Tiers};
use crate::shared::{Life, Shared};

/// Bytes of one export, as far as single blocks allow.
const EXPORT_BYTES: usize = 1 << 20;
/// An engine that refuses is asked again after so long, so often.
const RETRY_AFTER: Duration = Duration::from_millis(20);
const RETRIES_MAX: usize = 5;

/// What there is to do.
pub(crate) enum Job {
    /// The engine stored a run.
    Stored { namespace: NamespaceId, parent: SequenceHash, blocks: Vec<SequenceHash> },
    /// A request found blocks in the engine.
    Used { namespace: NamespaceId, blocks: Vec<SequenceHash> },
}

impl Job {
    /// What an event gives to do, if anything.
    pub(super) fn of_event(event: &KvEvent) -> Option<Self> {
        let KvEvent::Stored { namespace, parent, blocks, tier, .. } = event else { return None };
        if Tier::from_number(*tier) != Some(Tier::Device) || blocks.is_empty() {
            return None;
        }
        Some(Self::Stored {
            namespace: NamespaceId(*namespace),
            parent: SequenceHash(*parent),
            blocks: blocks.iter().map(|block| SequenceHash(*block)).collect(),
        })
    }

    /// Blocks that it names.
    pub(super) const fn weight(&self) -> usize {
        match self {
            Self::Stored { blocks, .. } | Self::Used { blocks, .. } => blocks.len(),
        }
    }
}

/// Does the jobs of one engine until the task is aborted. Those of an engine before it find nothing and end.
pub(crate) async fn offload(shared: Arc<Shared>, life: Arc<Life>, tiers: Arc<Tiers>) {
    let mut jobs = tiers.jobs.from.lock().await;
    while let Some(job) = jobs.recv().await {
        let open = Open { tiers: &tiers, weight: job.weight() };
        match job {
            Job::Stored { namespace, parent, blocks } => {
                if let Some(local) = tiers.local() {
                    let run = Run { namespace, parent, blocks: &blocks };
                    keep(&shared, &life, &tiers, local, &run).await;
                }
                note_packs(&shared, &tiers, namespace, &blocks);
            }
            Job::Used { namespace, blocks } => {
                if let Some(local) = tiers.local() {
                    local.host().touch(&tiers.keys(namespace, &blocks));
                }
            }
        }
        drop(open);
    }
}

/// A job is open until this goes, also where the task is aborted in the middle of it.
struct Open<'a> {
    tiers: &'a Tiers,
    weight: usize,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.tiers.jobs.leave(self.weight);
    }
}

fn count(ended: &'static str, blocks: usize) {
    metrics::counter!("mainstay_worker_offload_blocks_total", "ended" => ended)
        .increment(blocks as u64);
}

/// Blocks that follow each other.
struct Run<'a> {
    namespace: NamespaceId,
    parent: SequenceHash,
    blocks: &'a [SequenceHash],
}

/// Copies the blocks of a run that the local tiers lack.
async fn keep(shared: &Shared, life: &Life, tiers: &Tiers, local: &Local, run: &Run<'_>) {
    let Run { namespace, parent, blocks } = *run;
    let of = usize::try_from(life.info.block_bytes).unwrap_or(usize::MAX).max(1);
    let step = (EXPORT_BYTES / of).clamp(1, TRANSFER_BLOCKS_MAX as usize);
    let keys = tiers.keys(namespace, blocks);
    let mut at = 0;
    while at < blocks.len() {
        let known = keys[at..].iter().take_while(|key| local.has(key)).count();
        count("present", known);
        at += known;
        let lacking = keys[at..].iter().take(step).take_while(|key| !local.has(key)).count();
        if lacking == 0 {
            continue;
        }
        let run = &blocks[at..at + lacking];
        let begun = Instant::now();
        let bytes = export(shared, life, run).await;
        let took = begun.elapsed();
        let came = bytes.len() / of;
        let mut before = if at == 0 { parent } else { blocks[at - 1] };
        let pinned = tiers.pinned_until(shared, namespace, run);
        let came_in = keys[at..].iter().zip(pinned).zip(bytes.chunks_exact(of));
        for ((key, pinned_until_ms), payload) in came_in {
            let retention = Retention { pinned_until_ms, ..shared.wanted(key.hash) };
            let record = Record { key: *key, parent: before, retention, payload, sum: None };
            match local.put(&record) {
                Ok(Put::Stored | Put::Present) => count("stored", 1),
                Ok(Put::Refused(_)) => count("refused", 1),
                Err(error) => {
                    tracing::error!(%error, "a block of the engine does not fit the tiers");
                    count("refused", 1);
                }
            }
            before = key.hash;
        }
        // A pin that came in between found them nowhere.
        shared.events.lock().pins.mark_again(namespace, run);
        count("gone", lacking - came.min(lacking));
        at += lacking;
        tokio::time::sleep(took).await;
    }
}

/// The bytes of leading blocks; none if the engine does not answer. It is asked again where it had too much to do.
pub(super) async fn export(shared: &Shared, life: &Life, blocks: &[SequenceHash]) -> Vec<u8> {
    let names: Vec<u128> = blocks.iter().map(|block| block.0).collect();
    for _ in 0..RETRIES_MAX {
        match shared.transfers.export(life, names.clone()).await {
            Ok(bytes) => return bytes,
            Err(error) if error.retry_after_ms > 0 => {
                let pause = Duration::from_millis(error.retry_after_ms.into()).max(RETRY_AFTER);
                tokio::time::sleep(pause).await;
            }
            Err(error) => {
                tracing::debug!(%error, "the engine gives no blocks now");
                break;
            }
        }
    }
    Vec::new()
}

/// Notes the packs of the store that a run completes.
fn note_packs(shared: &Shared, tiers: &Tiers, namespace: NamespaceId, blocks: &[SequenceHash]) {
    let Some(remote) = tiers.remote() else { return };
    let pack = remote.pack_blocks();
    let found: Vec<(SequenceHash, Vec<SequenceHash>)> = {
        let state = shared.events.lock();
        let ends = blocks.iter().filter(|block| {
            let depth = state.map.depth(**block).unwrap_or(1);
            (depth as usize).is_multiple_of(pack) && !tiers.knows(**block)
        });
        ends.filter_map(|block| state.map.chain_to(*block, pack)).collect()
    };
    for (parent, blocks) in found {
        if !tiers.packs.enter(Pack { namespace, parent, blocks }, 1, PACKS_MAX) {
            metrics::counter!("mainstay_worker_uploads_total", "ended" => "dropped").increment(1);
        }
    }
}
