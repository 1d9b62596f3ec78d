//! The tiers below the engine's memory, as this worker has them: host memory, a disk, a store of objects.
//!
//! What the engine computed is copied here off any request's path (`offload`, `upload`), is told to the cluster as
//! this worker's (`tell`), and is found again before a request starts (`crate::transfer`). The bytes and who goes first
//! are `mainstay-tier`'s affair. A tier that fails or is full costs hits and nothing else; one that can't be opened
//! as it was set ends the start, since whoever set it wants to know.

mod figures;
pub(crate) mod leased;
mod local;
mod offload;
mod pinned;
mod settings;
mod tell;
mod upload;
pub(crate) mod wants;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mainstay_engine_abi::sdk::{Info, caps};
use mainstay_tier::{BlockKey, Layout, RemoteSettings, RemoteTier, Retention, TierError};
use mainstay_types::{HashKey, ModelSpec, NamespaceId, SequenceHash};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::engine::KvBatch;
use crate::shared::Life;
use local::Local;
pub(crate) use offload::{Job, offload};
use pinned::Pinned;
pub use settings::{DiskConfig, RemoteConfig, TierConfig};
pub(crate) use tell::tell;
use upload::Pack;
pub(crate) use upload::upload;

/// Jobs that wait for the engine.
const JOBS_MAX: usize = 8_192;
/// Blocks of jobs that wait, together: their names take 16 MiB.
const JOB_BLOCKS_MAX: usize = 1 << 20;
/// Packs that wait to be sent to the store.
const PACKS_MAX: usize = 1_024;
/// Packs of which it is remembered that the store has them.
const KNOWN_MAX: usize = 1 << 16;
/// How long the engine's reports may take to get here.
const LAST_REPORTS: Duration = Duration::from_millis(50);
/// Bytes of one load from the store; as many loads as there are transfers may run.
const REMOTE_LOAD_BYTES: u64 = 64 << 20;
/// The longest that one call to the store may take.
const REMOTE_TIMEOUT_MS: u64 = 10_000;

/// See the module.
pub(crate) struct Tiers {
    layout: Layout,
    local: Option<Local>,
    remote: Option<RemoteTier>,
    jobs: Queue<Job>,
    packs: Queue<Pack>,
    /// Packs that the store has, by their last block.
    known: Mutex<HashSet<SequenceHash>>,
    pinned: Mutex<Pinned>,
}

/// Work that waits, bounded, and whether any is left.
struct Queue<T> {
    to: mpsc::Sender<T>,
    from: tokio::sync::Mutex<mpsc::Receiver<T>>,
    /// Jobs that wait or are at work, by the weight that each was entered with.
    open: AtomicUsize,
    done: Notify,
}

impl<T> Queue<T> {
    fn new(room: usize) -> Self {
        let (to, from) = mpsc::channel(room);
        let from = tokio::sync::Mutex::new(from);
        Self { to, from, open: AtomicUsize::new(0), done: Notify::new() }
    }

    /// Enters a job that weighs so much; `false` if there is no room.
    fn enter(&self, job: T, weight: usize, weight_max: usize) -> bool {
        let before = self.open.fetch_add(weight, Ordering::AcqRel);
        let entered = before + weight <= weight_max && self.to.try_send(job).is_ok();
        if !entered {
            self.leave(weight);
        }
        entered
    }

    /// A job of that weight is done.
    fn leave(&self, weight: usize) {
        if self.open.fetch_sub(weight, Ordering::AcqRel) == weight {
            self.done.notify_waiters();
        }
    }

    /// Returns once nothing is open.
    async fn idle(&self) {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            // Listens before it looks, so that an end in between is heard.
            done.as_mut().enable();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            done.await;
        }
    }
}

impl Tiers {
    /// Opens what the configuration names; `None` if it names nothing.
    pub(crate) async fn open(
        config: &TierConfig,
        life: &Life,
        model: &ModelSpec,
    ) -> Result<Option<Arc<Self>>, String> {
        if config.is_empty() {
            return Ok(None);
        }
        if life.caps & caps::TRANSFER == 0 || life.info.kv_layout == 0 {
            return Err(
                "this engine gives no blocks away and takes none in, so that it can have no tiers; leave out --host-memory, --disk-tier and --remote-tier"
                    .to_owned(),
            );
        }
        let told = |error: TierError| format!("a tier cannot be opened: {error}");
        let layout = layout_of(model, &life.info, life.hash_key).map_err(told)?;
        let remote = match &config.remote {
            Some(remote) => Some(open_remote(remote, layout).map_err(told)?),
            None => None,
        };
        let of_local = config.clone();
        let opened = tokio::task::spawn_blocking(move || Local::open(&of_local, layout)).await;
        let local = opened.map_err(|error| error.to_string())?.map_err(told)?;
        Ok(Some(Arc::new(Self {
            layout,
            local,
            remote,
            jobs: Queue::new(JOBS_MAX),
            packs: Queue::new(PACKS_MAX),
            known: Mutex::default(),
            pinned: Mutex::default(),
        })))
    }

    /// Whether another engine's blocks fit here, too.
    pub(crate) fn fits(&self, life: &Life, model: &ModelSpec) -> bool {
        layout_of(model, &life.info, life.hash_key).is_ok_and(|layout| layout == self.layout)
    }

    pub(crate) const fn local(&self) -> Option<&Local> {
        self.local.as_ref()
    }

    pub(crate) const fn remote(&self) -> Option<&RemoteTier> {
        self.remote.as_ref()
    }

    /// The names of blocks here.
    pub(crate) fn keys(&self, namespace: NamespaceId, blocks: &[SequenceHash]) -> Vec<BlockKey> {
        let layout = self.layout.id;
        blocks.iter().map(|hash| BlockKey { namespace, hash: *hash, layout }).collect()
    }

    /// What there is to do about the engine's reports, once they are in the map.
    pub(crate) fn jobs_of(&self, batch: &KvBatch) -> Vec<Job> {
        batch.events.iter().filter_map(Job::of_event).collect()
    }

    /// Notes what there is to do, for when there is time.
    pub(crate) fn note(&self, jobs: Vec<Job>) {
        for job in jobs {
            let blocks = job.weight();
            if !self.jobs.enter(job, blocks, JOB_BLOCKS_MAX) {
                metrics::counter!("mainstay_worker_offload_blocks_total", "ended" => "dropped")
                    .increment(blocks as u64);
            }
        }
    }

    /// Notes that a request found these blocks in the engine: what is used there is not to be the first to go here.
    pub(crate) fn touch(&self, namespace: NamespaceId, blocks: &[SequenceHash]) {
        if self.local.is_some() && !blocks.is_empty() {
            let job = Job::Used { namespace, blocks: blocks.into() };
            // One that is lost makes the order a little worse.
            let _ = self.jobs.enter(job, blocks.len(), JOB_BLOCKS_MAX);
        }
    }

    /// Notes what was said of blocks that are here.
    pub(crate) fn want(&self, namespace: NamespaceId, said: &[(SequenceHash, Retention)]) {
        let Some(local) = &self.local else { return };
        let layout = self.layout.id;
        for (hash, said) in said {
            local.want_more(&BlockKey { namespace, hash: *hash, layout }, said);
        }
    }

    /// Notes that nobody is known to claim these blocks any more.
    pub(crate) fn unclaim(&self, namespace: NamespaceId, blocks: &[SequenceHash]) {
        let Some(local) = &self.local else { return };
        let layout = self.layout.id;
        for hash in blocks {
            local.unclaim(&BlockKey { namespace, hash: *hash, layout });
        }
    }

    /// Waits until all that was noted is copied, up to a limit.
    pub(crate) async fn settle(&self, limit: Duration) {
        let idle = async {
            // The engine's last reports may be on their way.
            tokio::time::sleep(LAST_REPORTS).await;
            self.jobs.idle().await;
            self.packs.idle().await;
        };
        if tokio::time::timeout(limit, idle).await.is_err() {
            tracing::warn!("some blocks were not copied to the tiers before the end");
        }
    }

    /// Writes to the disk what only memory has; the worker is about to end.
    pub(crate) async fn save(self: Arc<Self>) {
        let saved = tokio::task::spawn_blocking(move || {
            self.local.as_ref().is_none_or(|local| local.save(now_ms()))
        });
        if !saved.await.unwrap_or(false) {
            tracing::warn!("the disk tier did not take all that memory held");
        }
    }

    fn knows(&self, pack: SequenceHash) -> bool {
        self.known.lock().contains(&pack)
    }

    /// The store has this pack.
    pub(crate) fn learn(&self, pack: SequenceHash) {
        let mut known = self.known.lock();
        // To forget them costs a question each.
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(pack);
    }
}

/// The clock of tiers: that of the wall, since it goes on over restarts.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What tells this model's blocks from all others: its name and revision, the engine's order of their numbers, and the
/// key that they are named by, of which only a name is shown.
fn layout_of(model: &ModelSpec, info: &Info, key: HashKey) -> Result<Layout, TierError> {
    let named_by = mainstay_types::hash::block_hash(key, 0, &[]);
    let arrangement = format!("{:016x} {named_by:032x}", info.kv_layout);
    let block_bytes = u32::try_from(info.block_bytes).unwrap_or(u32::MAX);
    Layout::new(&model.name, &model.revision, "", &arrangement, info.block_tokens, block_bytes)
}

fn open_remote(config: &RemoteConfig, layout: Layout) -> Result<RemoteTier, TierError> {
    let mut settings = RemoteSettings::new(&config.address);
    settings.endpoint.clone_from(&config.endpoint);
    settings.region.clone_from(&config.region);
    settings.load_bytes = REMOTE_LOAD_BYTES;
    settings.timeout_ms = REMOTE_TIMEOUT_MS;
    RemoteTier::open(layout, &settings)
}

#[cfg(test)]
mod tests;
