//! The replicated machine beneath openraft: applies committed entries in memory, and builds and installs images.
//!
//! While the state is small, an image is its copy, taken between two entries. A large one would hold up applying for
//! too long: then an image is built from the last image and the log after it, while applying goes on, which also
//! proves that image and log still lead to the live state. The price is a second copy of the state while it lasts, and
//! that each entry is applied twice.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use mainstay_proto::convert::proposal_from_wire;
use mainstay_proto::v1;
use mainstay_state::{Limits, Machine, Outcome, VERSION_NEWEST};
use mainstay_types::{Command, LogIndex, Proposal};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::RwLock;
use prost::Message;
use tokio::time::Instant;

use crate::feed::{Applied, Feed};
use crate::snapshot::SnapshotStore;
use crate::store::{Folder, Log};
use crate::streams::StreamHub;
use crate::types::{Answer, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};

/// How many entries are applied under one lock.
const APPLY_ENTRIES_MAX: usize = 256;
/// How many bytes of log a build reads at a time.
const BUILD_READ_BYTES: usize = 8 << 20;
/// The largest image that is copied from the live state: some ten milliseconds.
const COPIED_IMAGE_BYTES_MAX: u64 = 16 << 20;

/// What readers share with the task that applies.
pub(crate) struct Shared {
    pub(crate) machine: RwLock<Machine>,
    pub(crate) feed: Feed,
    pub(crate) streams: StreamHub,
    pub(crate) limits: Limits,
    /// Bytes of proposals that were applied since an image was last asked for.
    pub(crate) bytes_since_image: AtomicU64,
    /// The machine's, to be looked at without its lock.
    pub(crate) version: AtomicU8,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        let machine = Machine::new(limits);
        let (feed, streams) = (Feed::new(), StreamHub::new(&limits));
        let (bytes_since_image, version) = (AtomicU64::new(0), AtomicU8::new(machine.version()));
        let machine = RwLock::new(machine);
        Self { machine, feed, streams, limits, bytes_since_image, version }
    }
}

pub(crate) struct StateMachine {
    shared: Arc<Shared>,
    snapshots: Arc<SnapshotStore>,
    log: Log,
    applied: Option<LogId>,
    membership: StoredMembership,
    copied_bytes_max: u64,
    /// Where it is written that older programs can't read what is here; none in memory.
    pub(crate) folder: Option<Folder>,
}

impl StateMachine {
    pub(crate) fn new(shared: Arc<Shared>, snapshots: Arc<SnapshotStore>, log: Log) -> Self {
        let membership = StoredMembership::default();
        let copied_bytes_max = COPIED_IMAGE_BYTES_MAX;
        Self { shared, snapshots, log, applied: None, membership, copied_bytes_max, folder: None }
    }

    /// Notes the version of the state, in the data directory too.
    fn reached(&self, version: u8) -> io::Result<()> {
        if self.shared.version.load(Ordering::Acquire) == version {
            return Ok(());
        }
        if let Some(folder) = &self.folder {
            folder.stamp(version).map_err(io::Error::other)?;
        }
        self.shared.version.store(version, Ordering::Release);
        tracing::info!(version, "the cluster's version");
        Ok(())
    }

    fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let applying = Instant::now();
        let mut opened = Vec::with_capacity(batch.len());
        for (entry, responder) in batch {
            opened.push((open(&entry)?, entry, responder));
        }
        let mut answers = Vec::with_capacity(opened.len());
        let mut applied = Vec::with_capacity(opened.len());
        let (mut cuts, mut epochs) = (Vec::new(), false);
        let version = {
            let mut machine = self.shared.machine.write();
            for (proposal, entry, responder) in opened {
                let index = entry.log_id.index;
                let outcome = proposal.as_ref().map(|p| machine.apply(LogIndex(index), &p.words));
                note_membership(&mut self.membership, &entry);
                self.applied = Some(entry.log_id);
                epochs |= matches!(outcome, Some(Outcome::Registered { .. } | Outcome::Fenced));
                if let Some(Command::Cut(sources)) = proposal.as_ref().map(|p| &p.words.command) {
                    cuts.extend_from_slice(sources);
                }
                let (proposal, bytes) = proposal.map_or((None, 0), |p| (Some(p.wire), p.bytes));
                applied.push(Applied { index, proposal, bytes });
                answers.extend(responder.map(|r| (r, outcome)));
            }
            machine.version()
        };
        // Before the answers: nothing newer is written until somebody has one.
        self.reached(version)?;
        let bytes: u64 = applied.iter().map(|a| a.bytes as u64).sum();
        self.shared.bytes_since_image.fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("mainstay_control_entries_applied_total").increment(applied.len() as u64);
        // Watchers first: who has the answer may look for the entry.
        self.shared.feed.push(applied);
        // After the entries that begin an epoch, so that no watcher sees frames of one that it does not know; before
        // the answers, so that whoever has an epoch may use it.
        if epochs {
            self.shared.streams.follow(&self.shared.machine.read());
        }
        if !cuts.is_empty() {
            self.shared.streams.check_cut(&cuts);
        }
        let applied = Instant::now();
        for (responder, outcome) in answers {
            responder.send(Answer { outcome, applying, applied });
        }
        Ok(())
    }
}

/// A proposal in both of its forms.
pub(crate) struct Opened {
    pub(crate) wire: Arc<v1::Proposal>,
    pub(crate) words: Proposal,
    bytes: usize,
}

pub(crate) fn open(entry: &Entry) -> io::Result<Option<Opened>> {
    let EntryPayload::Normal(body) = &entry.payload else { return Ok(None) };
    let malformed = |detail: String| {
        let index = entry.log_id.index;
        io::Error::new(io::ErrorKind::InvalidData, format!("entry {index}: {detail}"))
    };
    let bytes = body.0.len();
    let wire = v1::Proposal::decode(body.0.clone()).map_err(|e| malformed(e.to_string()))?;
    let words = proposal_from_wire(&wire).map_err(|e| malformed(e.to_string()))?;
    if let Command::RaiseVersion { version } = words.command
        && version > VERSION_NEWEST
    {
        return Err(malformed(format!(
            "the cluster is at version {version}, this program knows version {VERSION_NEWEST}; start a newer one"
        )));
    }
    Ok(Some(Opened { wire: Arc::new(wire), words, bytes }))
}

fn note_membership(current: &mut StoredMembership, entry: &Entry) {
    if let EntryPayload::Membership(membership) = &entry.payload {
        *current = StoredMembership::new(Some(entry.log_id), membership.clone());
    }
}

pub(crate) fn decode_image(state: &[u8], limits: &Limits) -> io::Result<Machine> {
    Machine::decode(state, *limits)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("state image: {e}")))
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(APPLY_ENTRIES_MAX);
        while let Some(batch) = batches.next().await {
            self.apply_batch(batch.into_iter().collect::<io::Result<_>>()?)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.shared.bytes_since_image.store(0, Ordering::Relaxed);
        let machine = self.shared.machine.read();
        let source = if machine.image_bytes() <= self.copied_bytes_max {
            Source::Copy(Bytes::from(machine.encode()), self.membership.clone())
        } else {
            Source::Log { digest: machine.digest() }
        };
        drop(machine);
        Builder {
            snapshots: Arc::clone(&self.snapshots),
            log: self.log.clone(),
            limits: self.shared.limits,
            target: self.applied,
            source,
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: Bytes) -> io::Result<()> {
        let snapshots = Arc::clone(&self.snapshots);
        let limits = self.shared.limits;
        let (saved, folder) = (meta.clone(), self.folder.clone());
        let machine = blocking(&self.snapshots, move || {
            // Decoded first, so that an image that can't be read never replaces one that can.
            let machine = decode_image(&state, &limits)?;
            if let Some(folder) = folder {
                folder.stamp(machine.version()).map_err(io::Error::other)?;
            }
            snapshots.save(&saved, &state)?;
            Ok(machine)
        })
        .await?;
        self.shared.version.store(machine.version(), Ordering::Release);
        *self.shared.machine.write() = machine;
        self.shared.streams.follow(&self.shared.machine.read());
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.shared.feed.reset(meta.last_log_id.map_or(0, |id| id.index));
        metrics::counter!("mainstay_control_snapshots_installed_total").increment(1);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshots = Arc::clone(&self.snapshots);
        blocking(&self.snapshots, move || snapshots.load()).await
    }
}

/// Builds one image, in a task of its own.
#[derive(Clone)]
pub(crate) struct Builder {
    snapshots: Arc<SnapshotStore>,
    log: Log,
    limits: Limits,
    /// Where the live machine stood when the build was asked for.
    target: Option<LogId>,
    source: Source,
}

/// What an image is made of.
#[derive(Clone)]
enum Source {
    /// What the live state was there, and who were members.
    Copy(Bytes, StoredMembership),
    /// The last image and the log after it, which have to lead to this digest.
    Log { digest: u128 },
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let work = self.clone();
        blocking(&self.snapshots, move || work.run()).await
    }
}

impl Builder {
    fn run(self) -> io::Result<Snapshot> {
        let start = std::time::Instant::now();
        let base = self.snapshots.load()?;
        if let Some(current) = self.newer(base.as_ref()) {
            return Ok(current);
        }
        let made = match &self.source {
            Source::Copy(state, membership) => {
                let mut meta = base.map_or_else(SnapshotMeta::default, |base| base.meta);
                (meta.last_log_id, meta.last_membership) = (self.target, membership.clone());
                Ok((meta, state.clone()))
            }
            Source::Log { digest } => self
                .replay(base, *digest)
                .map(|(meta, machine)| (meta, Bytes::from(machine.encode()))),
        };
        match made {
            Ok((meta, state)) => {
                self.snapshots.save(&meta, &state)?;
                let seconds = start.elapsed().as_secs_f64();
                tracing::info!(
                    index = meta.last_log_id.map(|i| i.index),
                    bytes = state.len(),
                    seconds,
                    "snapshot built"
                );
                metrics::gauge!("mainstay_control_snapshot_bytes").set(state.len() as f64);
                metrics::histogram!("mainstay_control_snapshot_build_seconds").record(seconds);
                Ok(Snapshot { meta, snapshot: state })
            }
            // An image that was installed meanwhile has taken the log from under the replay.
            Err(error) => self.newer(self.snapshots.load()?.as_ref()).ok_or(error),
        }
    }

    fn newer(&self, current: Option<&Snapshot>) -> Option<Snapshot> {
        current.filter(|c| c.meta.last_log_id >= self.target).cloned()
    }

    fn replay(&self, base: Option<Snapshot>, digest: u128) -> io::Result<(SnapshotMeta, Machine)> {
        let (mut meta, mut machine) = match base {
            Some(base) => (base.meta, decode_image(&base.snapshot, &self.limits)?),
            None => (SnapshotMeta::default(), Machine::new(self.limits)),
        };
        let end = self.target.map_or(0, |id| id.index + 1);
        let mut next = meta.last_log_id.map_or(0, |id| id.index + 1);
        while next < end {
            let entries = self.log.read(next, end, BUILD_READ_BYTES)?;
            if entries.first().map(|e| e.log_id.index) != Some(next) {
                return Err(io::Error::other(format!("the log lacks entry {next}")));
            }
            for entry in entries {
                if let Some(proposal) = open(&entry)? {
                    let _: Outcome = machine.apply(LogIndex(entry.log_id.index), &proposal.words);
                }
                note_membership(&mut meta.last_membership, &entry);
                meta.last_log_id = Some(entry.log_id);
                next = entry.log_id.index + 1;
            }
        }
        if machine.digest() != digest {
            // The log is the truth; the image is built from it alone. The live state needs a restart.
            tracing::error!(
                index = end.saturating_sub(1),
                "the live state differs from the replayed log; restart this member"
            );
            metrics::counter!("mainstay_control_divergence_total").increment(1);
        }
        Ok((meta, machine))
    }
}

/// Does what waits for a disk where it holds nobody up; at once if there is no disk to wait for.
async fn blocking<T: Send + 'static>(
    snapshots: &SnapshotStore,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if snapshots.is_in_memory() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
