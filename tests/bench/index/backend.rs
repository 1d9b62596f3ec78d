//! Mainstay's index behind the rivals' harness: the block index and its sharded form, driven as the harness
//! drives every other.
//!
//! `rivals.sh` copies this file into the harness as its module `mainstay`; it is no part of this workspace's
//! build. Payloads are built outside the timed part and freed inside it, as for every rival. The variants differ
//! in one thing each: `mainstay` answers with a list of workers, `mainstay-groups` with words of worker bits,
//! `mainstay-128` is given 128-bit names instead of 64-bit keys, and `mainstay-runs` is given run records where
//! the index knows the blocks already. Those are folded from the same events before the clock starts: that is
//! the work of the agent beside an engine, and is not in its figures.

use crate::backends::Index;
use crate::corpus::{Corpus, Event, mix};
use mainstay_index::{
    BlockIndex, BlockKey, BlockName, EventRef, Group, IndexLimits, IndexReader, Overlap,
    ShardedIndex, ShardedReader,
};
use mainstay_types::{NamespaceId, SequenceHash, Tier, WorkerId};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Events that one lane takes at once when they are waiting; the prototype takes as many.
const BATCH_EVENTS_MAX: usize = 32;
/// All chains of the harness lie in one namespace, so its number is the parent of every first block.
const NAMESPACE: NamespaceId = NamespaceId(0x6d61_696e_7374_6179);

/// A name as the harness's 64-bit sequence hash determines it.
pub trait Name: BlockName + Send + Sync + 'static {
    fn of(hash: u64) -> Self;
}

impl Name for BlockKey {
    fn of(hash: u64) -> Self {
        Self(hash)
    }
}

impl Name for SequenceHash {
    // The upper half depends on the whole of the lower one, as in a real 128-bit hash.
    fn of(hash: u64) -> Self {
        Self(u128::from(mix(!hash)) << 64 | u128::from(hash))
    }
}

/// The payload of one event.
pub enum Record<N> {
    Store { worker: WorkerId, parent: u64, blocks: Vec<N> },
    Remove { worker: WorkerId, blocks: Vec<N> },
    Hold { worker: WorkerId, tail: u64, count: u32 },
    Release { worker: WorkerId, tail: u64, count: u32 },
    Several(Vec<Record<N>>),
    Flush(flume::Sender<()>),
}

impl<N: Name> Record<N> {
    /// The event as the harness has it: block by block.
    fn plain(event: &Event, corpus: &Corpus) -> Self {
        match event {
            Event::Store { worker, parent, blocks, .. } => Self::Store {
                worker: WorkerId(*worker),
                parent: parent.unwrap_or(NAMESPACE.0 as u64),
                blocks: corpus.stored[blocks.clone()].iter().map(|b| N::of(b.0)).collect(),
            },
            Event::Remove { worker, hashes } => Self::Remove {
                worker: WorkerId(*worker),
                blocks: corpus.removed[hashes.clone()].iter().map(|&h| N::of(h)).collect(),
            },
        }
    }

    /// The event as the index takes it in batches, unless it is a run record or a flush.
    fn plain_ref(&self) -> Option<EventRef<'_, N>> {
        match self {
            Self::Store { worker, parent, blocks } => Some(EventRef::Store {
                worker: *worker,
                namespace: NAMESPACE,
                parent: *parent,
                blocks,
                tier: Tier::Device,
            }),
            Self::Remove { worker, blocks } => {
                Some(EventRef::Remove { worker: *worker, blocks, tier: Tier::Device })
            }
            _ => None,
        }
    }

    /// The keys at which applying starts.
    fn starts(&self, visit: &mut impl FnMut(u64)) {
        match self {
            Self::Store { parent, blocks, .. } => {
                visit(*parent);
                blocks.first().into_iter().for_each(|b| visit(b.key()));
            }
            Self::Remove { blocks, .. } => blocks.first().into_iter().for_each(|b| visit(b.key())),
            Self::Hold { tail, .. } | Self::Release { tail, .. } => visit(*tail),
            Self::Several(records) => records.iter().for_each(|r| r.starts(visit)),
            Self::Flush(_) => {}
        }
    }

    fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Store { worker, .. }
            | Self::Remove { worker, .. }
            | Self::Hold { worker, .. }
            | Self::Release { worker, .. } => Some(*worker),
            Self::Several(records) => records.first().and_then(Self::worker),
            Self::Flush(_) => None,
        }
    }

    /// Applies the record and says how many run records named blocks that the index lacks.
    fn apply(self, index: &mut BlockIndex) -> u64 {
        match self {
            Self::Store { worker, parent, blocks } => {
                index.store(worker, NAMESPACE, parent, &blocks, Tier::Device);
                0
            }
            Self::Remove { worker, blocks } => {
                index.remove(worker, &blocks, Tier::Device);
                0
            }
            Self::Hold { worker, tail, count } => {
                u64::from(index.hold(worker, tail, count, Tier::Device).is_err())
            }
            Self::Release { worker, tail, count } => {
                u64::from(index.release(worker, tail, count, Tier::Device).is_err())
            }
            Self::Several(records) => records.into_iter().map(|r| r.apply(index)).sum(),
            Self::Flush(done) => {
                let _ = done.send(());
                0
            }
        }
    }
}

/// Waits for one event and takes what else is waiting; false once the channel is closed.
fn take_batch<N>(events: &flume::Receiver<Record<N>>, batch: &mut Vec<Record<N>>) -> bool {
    let Ok(first) = events.recv() else { return false };
    batch.push(first);
    while batch.len() < BATCH_EVENTS_MAX {
        match events.try_recv() {
            Ok(event) => batch.push(event),
            Err(_) => break,
        }
    }
    true
}

/// Two passes of prefetches let the cache misses of a batch overlap.
fn prefetch<'a, N: Name>(index: &BlockIndex, batch: impl Iterator<Item = &'a Record<N>> + Clone) {
    batch.clone().for_each(|r| r.starts(&mut |key| index.prefetch(key)));
    batch.for_each(|r| r.starts(&mut |key| index.prefetch_runs(key)));
}

/// Turns events into run records: what a worker-side agent would send.
#[derive(Default)]
struct Folder {
    /// Per block that somebody holds: the block before it, and by how many workers it is held.
    blocks: FxHashMap<u64, (u64, u32)>,
}

impl Folder {
    fn fold<N: Name>(&mut self, event: &Event, corpus: &Corpus) -> Record<N> {
        let mut records = match event {
            Event::Store { worker, parent, blocks, .. } => self.store(
                WorkerId(*worker),
                parent.unwrap_or(NAMESPACE.0 as u64),
                &corpus.stored[blocks.clone()],
            ),
            Event::Remove { worker, hashes } => {
                self.remove(WorkerId(*worker), &corpus.removed[hashes.clone()])
            }
        };
        if records.len() == 1 { records.remove(0) } else { Record::Several(records) }
    }

    /// Known leading blocks become one run record, the rest is named block by block.
    fn store<N: Name>(
        &mut self,
        worker: WorkerId,
        parent: u64,
        blocks: &[(u64, u64)],
    ) -> Vec<Record<N>> {
        let known = blocks.iter().take_while(|b| self.blocks.contains_key(&b.0)).count();
        let mut before = parent;
        for &(hash, _) in blocks {
            self.blocks.entry(hash).or_insert((before, 0)).1 += 1;
            before = hash;
        }
        let mut records = Vec::new();
        if known > 0 {
            let tail = blocks[known - 1].0;
            records.push(Record::Hold { worker, tail, count: known as u32 });
        }
        if known < blocks.len() {
            let parent = if known > 0 { blocks[known - 1].0 } else { parent };
            let blocks = blocks[known..].iter().map(|b| N::of(b.0)).collect();
            records.push(Record::Store { worker, parent, blocks });
        }
        records
    }

    /// Blocks that follow each other towards the root become one run record per stretch.
    fn remove<N>(&mut self, worker: WorkerId, hashes: &[u64]) -> Vec<Record<N>> {
        let mut records = Vec::new();
        let mut start = 0;
        for at in 0..hashes.len() {
            let parent = self.blocks.get(&hashes[at]).map(|b| b.0);
            if at + 1 == hashes.len() || parent != Some(hashes[at + 1]) {
                let count = (at + 1 - start) as u32;
                records.push(Record::Release { worker, tail: hashes[start], count });
                start = at + 1;
            }
        }
        for hash in hashes {
            if let Some(block) = self.blocks.get_mut(hash) {
                block.1 -= 1;
                if block.1 == 0 {
                    self.blocks.remove(hash);
                }
            }
        }
        records
    }
}

/// One index with one writer.
struct Single<N> {
    index: Mutex<BlockIndex>,
    reader: IndexReader,
    names: Arc<Vec<N>>,
    groups: bool,
    folder: Option<Mutex<Folder>>,
    unknown: AtomicU64,
}

impl<N: Name> Single<N> {
    fn new(names: &Arc<Vec<N>>, groups: bool, runs: bool) -> Self {
        let index = BlockIndex::with_limits(IndexLimits::default());
        let reader = index.reader();
        Self {
            index: Mutex::new(index),
            reader,
            names: Arc::clone(names),
            groups,
            folder: runs.then(Mutex::default),
            unknown: AtomicU64::new(0),
        }
    }
}

impl<N: Name> Index for Single<N> {
    type Ev = Record<N>;

    fn event(&self, event: &Event, corpus: &Corpus) -> Record<N> {
        match &self.folder {
            Some(folder) => folder.lock().expect("no lane panics").fold(event, corpus),
            None => Record::plain(event, corpus),
        }
    }

    fn flush(&self, done: flume::Sender<()>) -> Record<N> {
        Record::Flush(done)
    }

    fn run_lane(&self, events: flume::Receiver<Record<N>>) {
        let mut batch = Vec::with_capacity(BATCH_EVENTS_MAX);
        while take_batch(&events, &mut batch) {
            let mut index = self.index.lock().expect("no lane panics");
            let plain: Vec<EventRef<'_, N>> = batch.iter().map_while(Record::plain_ref).collect();
            if plain.len() == batch.len() {
                index.apply_batch(&plain);
                drop(plain);
                batch.clear();
                continue;
            }
            drop(plain);
            prefetch(&index, batch.iter());
            let unknown: u64 = batch.drain(..).map(|r| r.apply(&mut index)).sum();
            if unknown > 0 {
                self.unknown.fetch_add(unknown, Ordering::Relaxed);
            }
        }
    }

    fn find(&self, _: &Corpus, query: Range<usize>) -> usize {
        thread_local!(static LIST: RefCell<Vec<Overlap>> = const { RefCell::new(Vec::new()) });
        thread_local!(static GROUPS: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) });
        let prefix = &self.names[query];
        if self.groups {
            return GROUPS.with_borrow_mut(|out| {
                self.reader.groups_into(prefix, out);
                black_box(&out[..]).len()
            });
        }
        LIST.with_borrow_mut(|out| {
            self.reader.lookup_into(prefix, out);
            black_box(&out[..]).len()
        })
    }

    fn scores(&self, _: &Corpus, query: Range<usize>) -> Vec<(u32, u32)> {
        let prefix = &self.names[query];
        let mut scores = Vec::new();
        if self.groups {
            let mut groups = Vec::new();
            self.reader.groups_into(prefix, &mut groups);
            for group in groups {
                let slots = (0..64).filter(|bit| group.bits >> bit & 1 == 1);
                scores.extend(slots.map(|bit| {
                    let worker = self.reader.worker_of_slot(group.word * 64 + bit);
                    (worker.expect("a slot that answers belongs to a worker").0, group.depth)
                }));
            }
        } else {
            let mut list = Vec::new();
            self.reader.lookup_into(prefix, &mut list);
            scores.extend(list.iter().map(|o| (o.worker.0, o.blocks)));
        }
        scores.sort_unstable();
        scores
    }

    fn note(&self) -> String {
        let index = self.index.lock().expect("no lane panics");
        let (memory, stats) = (index.memory(), index.stats());
        let unknown = self.unknown.load(Ordering::Relaxed);
        // The report reads the number behind "sum".
        format!("{memory:?} {stats:?} unknown {unknown} sum {}", memory.total())
    }
}

/// One index in shards, for several writers.
struct Sharded<N> {
    index: ShardedIndex,
    reader: ShardedReader,
    shards: usize,
    names: Arc<Vec<N>>,
}

impl<N: Name> Sharded<N> {
    fn new(names: &Arc<Vec<N>>, shards: usize) -> Self {
        let index = ShardedIndex::new(shards, IndexLimits::default());
        let reader = index.reader();
        Self { index, reader, shards, names: Arc::clone(names) }
    }
}

impl<N: Name> Index for Sharded<N> {
    type Ev = Record<N>;

    fn event(&self, event: &Event, corpus: &Corpus) -> Record<N> {
        Record::plain(event, corpus)
    }

    fn flush(&self, done: flume::Sender<()>) -> Record<N> {
        Record::Flush(done)
    }

    fn run_lane(&self, events: flume::Receiver<Record<N>>) {
        let mut batch = Vec::with_capacity(BATCH_EVENTS_MAX);
        while take_batch(&events, &mut batch) {
            // The harness deals workers to lanes in its own way, so one batch may touch several shards.
            for shard in 0..self.shards {
                let mine =
                    |r: &&Record<N>| r.worker().is_some_and(|w| self.index.shard_of(w) == shard);
                if !batch.iter().any(|r| mine(&r)) {
                    continue;
                }
                self.index.with_shard(shard, |index| {
                    let all: Vec<EventRef<'_, N>> =
                        batch.iter().filter(mine).filter_map(Record::plain_ref).collect();
                    index.apply_batch(&all);
                    drop(all);
                    batch.retain(|r| !mine(&r));
                });
            }
            for record in batch.drain(..) {
                if let Record::Flush(done) = record {
                    let _ = done.send(());
                }
            }
        }
    }

    fn find(&self, _: &Corpus, query: Range<usize>) -> usize {
        thread_local!(static LIST: RefCell<Vec<Overlap>> = const { RefCell::new(Vec::new()) });
        LIST.with_borrow_mut(|out| {
            self.reader.lookup_into(&self.names[query], out);
            black_box(&out[..]).len()
        })
    }

    fn scores(&self, _: &Corpus, query: Range<usize>) -> Vec<(u32, u32)> {
        let mut list = Vec::new();
        self.reader.lookup_into(&self.names[query], &mut list);
        let mut scores: Vec<_> = list.iter().map(|o| (o.worker.0, o.blocks)).collect();
        scores.sort_unstable();
        scores
    }
}

/// Runs the variant called `name`; the names of all queries are made here, outside everything measured.
pub fn run_named(name: &str, args: &crate::Args, corpus: &Arc<Corpus>, cut: usize) {
    let keys = || Arc::new(corpus.q_seq.iter().map(|&h| BlockKey::of(h)).collect::<Vec<_>>());
    let hashes = || Arc::new(corpus.q_seq.iter().map(|&h| SequenceHash::of(h)).collect::<Vec<_>>());
    let run_keys = |groups: bool, runs: bool| {
        let names = keys();
        crate::run(args, corpus, cut, || Single::new(&names, groups, runs));
    };
    match (name, args.lanes) {
        ("mainstay", 1) => run_keys(false, false),
        ("mainstay-groups", 1) => run_keys(true, false),
        ("mainstay-runs", 1) => run_keys(false, true),
        ("mainstay-128", 1) => {
            let names = hashes();
            crate::run(args, corpus, cut, || Single::new(&names, false, false));
        }
        ("mainstay", lanes) => {
            let names = keys();
            crate::run(args, corpus, cut, || Sharded::new(&names, lanes));
        }
        ("mainstay-128", lanes) => {
            let names = hashes();
            crate::run(args, corpus, cut, || Sharded::new(&names, lanes));
        }
        _ => panic!("unknown index {name}, or it has one lane only"),
    }
}
