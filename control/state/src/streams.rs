//! The index as streams tell it: numbered frames of each worker's epoch, snapshots where frames are missing, and
//! the cuts of the log that say what is right.
//!
//! What a worker holds after a frame is a pure function of its own frames, so members and gateways that are at the
//! same sequence hold the same, and a digest says whether they do. Which epochs live is the log's to say: call
//! [`Streams::follow`] whenever workers came or went. A stream that is found to differ is not trusted to mend
//! itself: it stands still until a snapshot replaces it, and counts as drift.

use std::collections::{BTreeMap, VecDeque};

use mainstay_index::{BlockIndex, IndexReader};
use mainstay_types::{CutSource, Epoch, EventSequence, EventView, StreamMark, WorkerId};

use crate::limits::Limits;
use crate::machine::Machine;

/// Marks that are remembered of each stream, to be compared with cuts: a few seconds of a busy one.
pub const MARKS_MAX: usize = 512;

/// What became of a frame or of a part of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is in the index; the stream goes on with this one.
    Applied {
        /// The next frame.
        next: EventSequence,
    },
    /// It was there before.
    Known {
        /// The next frame.
        next: EventSequence,
    },
    /// Frames before it are missing.
    Gap {
        /// The first that is.
        next: EventSequence,
    },
    /// Only a snapshot, from its first part on, helps.
    SnapshotNeeded,
    /// The log has not told of this worker's epoch yet; later it may.
    EpochUnknown,
    /// The epoch is over.
    EpochOver,
}

impl Taken {
    /// What the worker is told to send next; 0 asks for a snapshot. `None` if its epoch does not live here.
    #[must_use]
    pub fn next_sequence(self) -> Option<EventSequence> {
        match self {
            Self::Applied { next } | Self::Known { next } | Self::Gap { next } => Some(next),
            Self::SnapshotNeeded => Some(EventSequence(0)),
            Self::EpochUnknown | Self::EpochOver => None,
        }
    }
}

/// How a stream compares with a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutCheck {
    /// It held exactly that at that sequence.
    Equal,
    /// It is not there yet, or has lost its way already.
    Behind,
    /// It has moved on so far that it does not remember.
    Passed,
    /// It held something else. It needs a snapshot now.
    Differs,
    /// The cut is about an epoch that does not live here.
    Elsewhere,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Whose.
    pub worker: WorkerId,
    /// Which life of its cache.
    pub epoch: Epoch,
    /// The next frame that is missing; 0 if a snapshot is.
    pub next: EventSequence,
}

/// A snapshot that is arriving.
#[derive(Debug, Clone, Copy)]
struct Loading {
    mark: StreamMark,
    part: u32,
}

#[derive(Debug, Clone)]
struct Source {
    epoch: Epoch,
    live: bool,
    /// 0 while only a snapshot helps.
    next: EventSequence,
    loading: Option<Loading>,
    marks: VecDeque<StreamMark>,
}

impl Source {
    fn new(epoch: Epoch, next: EventSequence) -> Self {
        Self { epoch, live: true, next, loading: None, marks: VecDeque::new() }
    }

    fn remember(&mut self, mark: StreamMark) {
        if self.marks.len() >= MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(mark);
        self.next = EventSequence(mark.sequence.0.saturating_add(1));
    }

    fn lose(&mut self) {
        (self.next, self.loading) = (EventSequence(0), None);
        self.marks.clear();
    }
}

/// The index of one member or gateway, and where each stream stands.
#[derive(Debug)]
pub struct Streams {
    index: BlockIndex,
    sources: BTreeMap<WorkerId, Source>,
    drift: u64,
}

impl Streams {
    /// An empty index without streams.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let index = BlockIndex::new(limits.index_blocks_max);
        Self { index, sources: BTreeMap::new(), drift: 0 }
    }

    /// Takes over which epochs live. Blocks of epochs that do not are gone afterwards.
    pub fn follow(&mut self, machine: &Machine) {
        let (index, sources) = (&mut self.index, &mut self.sources);
        sources.retain(|id, _| {
            let known = machine.worker(*id).is_some();
            if !known {
                index.remove_worker(*id);
            }
            known
        });
        for worker in machine.workers() {
            let source = sources.get_mut(&worker.id);
            let same = source.as_ref().is_some_and(|s| s.epoch == worker.epoch);
            if same && source.is_some_and(|s| s.live == worker.is_live()) {
                continue;
            }
            index.remove_worker(worker.id);
            let mut fresh = Source::new(worker.epoch, EventSequence(1));
            fresh.live = worker.is_live();
            sources.insert(worker.id, fresh);
        }
    }

    fn living(&mut self, worker: WorkerId, epoch: Epoch) -> Result<&mut Source, Taken> {
        match self.sources.get_mut(&worker) {
            Some(source) if source.epoch == epoch && source.live => Ok(source),
            Some(source) if epoch <= source.epoch => Err(Taken::EpochOver),
            _ => Err(Taken::EpochUnknown),
        }
    }

    /// Takes in a frame. `mark` is what the worker held after it.
    pub fn take_frame(
        &mut self,
        worker: WorkerId,
        epoch: Epoch,
        mark: StreamMark,
        events: &[EventView<'_>],
    ) -> Taken {
        let source = match self.living(worker, epoch) {
            Ok(source) => source,
            Err(taken) => return taken,
        };
        let next = source.next;
        if next.0 == 0 {
            return Taken::SnapshotNeeded;
        }
        if mark.sequence != next {
            let known = mark.sequence < next;
            return if known { Taken::Known { next } } else { Taken::Gap { next } };
        }
        self.index.apply_views(worker, events);
        self.settle(worker, mark)
    }

    /// Takes in a part of a snapshot: all that the worker held at `mark`, from part 0 to the last.
    pub fn take_snapshot(
        &mut self,
        worker: WorkerId,
        epoch: Epoch,
        mark: StreamMark,
        (part, last): (u32, bool),
        events: &[EventView<'_>],
    ) -> Taken {
        let source = match self.living(worker, epoch) {
            Ok(source) => source,
            Err(taken) => return taken,
        };
        if part == 0 {
            source.lose();
        } else if !source.loading.is_some_and(|l| l.mark == mark && l.part == part) {
            // Parts of another snapshot, or out of order: what is there may be half of something.
            source.lose();
            return Taken::SnapshotNeeded;
        }
        source.loading = Some(Loading { mark, part: part.saturating_add(1) });
        if part == 0 {
            self.index.remove_worker(worker);
        }
        self.index.apply_views(worker, events);
        if last { self.settle(worker, mark) } else { Taken::Applied { next: EventSequence(0) } }
    }

    /// The stream stands at `mark`; is that what the index has?
    fn settle(&mut self, worker: WorkerId, mark: StreamMark) -> Taken {
        let held = self.mark_now(worker, mark.sequence);
        let complete = self.is_complete();
        let Some(source) = self.sources.get_mut(&worker) else { return Taken::EpochUnknown };
        source.loading = None;
        if held != mark && complete {
            self.drift += 1;
            source.lose();
            return Taken::SnapshotNeeded;
        }
        source.remember(mark);
        Taken::Applied { next: source.next }
    }

    fn mark_now(&self, worker: WorkerId, sequence: EventSequence) -> StreamMark {
        let digest = self.index.digest(worker);
        StreamMark { sequence, digest, blocks: self.index.worker_block_count(worker) }
    }

    /// Whether the index could keep all that it was told. One that is full holds less than workers do, and nothing can be compared.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.index.refused_blocks() == 0 && self.index.forgotten_blocks() == 0
    }

    /// Compares a stream with its part of a cut.
    pub fn check_cut(&mut self, cut: &CutSource) -> CutCheck {
        let Some(source) = self.sources.get_mut(&cut.worker) else { return CutCheck::Elsewhere };
        if source.epoch != cut.epoch || !source.live {
            return CutCheck::Elsewhere;
        }
        if source.next <= cut.mark.sequence {
            return CutCheck::Behind;
        }
        let at = source.marks.binary_search_by_key(&cut.mark.sequence, |mark| mark.sequence);
        match at.ok().and_then(|at| source.marks.get(at)) {
            None => CutCheck::Passed,
            Some(mark) if *mark == cut.mark => CutCheck::Equal,
            Some(_) => {
                self.drift += 1;
                source.lose();
                CutCheck::Differs
            }
        }
    }

    /// What a cut of now would say of the streams that moved since the last: `known` is what that said.
    #[must_use]
    pub fn cut(&self, machine: &Machine) -> Vec<CutSource> {
        let live = self.sources.iter().filter(|(_, source)| source.live && source.next.0 > 0);
        live.filter_map(|(worker, source)| {
            let mark = *source.marks.back()?;
            let known = machine.worker(*worker).filter(|w| w.epoch == source.epoch)?;
            let news = known.cut.is_none_or(|cut| cut.sequence < mark.sequence);
            news.then_some(CutSource { worker: *worker, epoch: source.epoch, mark })
        })
        .collect()
    }

    /// Where all living streams stand, by worker.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        let live = self.sources.iter().filter(|(_, source)| source.live);
        live.map(|(worker, s)| Position { worker: *worker, epoch: s.epoch, next: s.next }).collect()
    }

    /// Where one living stream stands.
    #[must_use]
    pub fn position(&self, worker: WorkerId, epoch: Epoch) -> Option<EventSequence> {
        let source = self.sources.get(&worker)?;
        (source.epoch == epoch && source.live).then_some(source.next)
    }

    /// The index.
    #[must_use]
    pub fn index(&self) -> &BlockIndex {
        &self.index
    }

    /// A reader of the index, for any thread.
    #[must_use]
    pub fn reader(&self) -> IndexReader {
        self.index.reader()
    }

    /// The index in parts of about `bytes` each, for [`crate::IndexLoader`].
    #[must_use]
    pub fn encode_parts(&self, bytes: usize) -> Vec<Vec<u8>> {
        crate::image::encode_parts(&self.index, bytes)
    }

    /// How often a stream was found to differ from its worker or from a cut. 0 when all is well.
    #[must_use]
    pub fn drift(&self) -> u64 {
        self.drift
    }

    pub(crate) fn restored(index: BlockIndex, positions: &[Position]) -> Self {
        let source = |p: &Position| (p.worker, Source::new(p.epoch, p.next));
        Self { index, sources: positions.iter().map(source).collect(), drift: 0 }
    }
}

#[cfg(test)]
mod tests;
