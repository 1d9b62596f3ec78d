//! Batches: events that are applied together, so that their waits for memory overlap.
//!
//! One event touches a handful of places that nothing else has touched for long, and waits for each. A batch asks
//! for all of them first: a round for the lines of the map, a round for what those name. It changes nothing about
//! what is applied, or in which order.

use mainstay_types::{BlockEvent, EventView, NamespaceId, SequenceHash, Tier, WorkerId};

use crate::block_index::Applied;
use crate::runs::AHEAD;
use crate::{BlockIndex, BlockName};

/// Events in flight at once; more would push each other out of the nearest cache.
const ROUND_EVENTS: usize = 32;

/// An event that borrows its blocks.
#[derive(Debug, Clone, Copy)]
pub enum EventRef<'a, N> {
    /// See [`BlockIndex::store`].
    Store {
        /// Who.
        worker: WorkerId,
        /// The namespace of the chain.
        namespace: NamespaceId,
        /// The key of the block before the first, or of the namespace.
        parent: u64,
        /// The blocks, in order.
        blocks: &'a [N],
        /// Where.
        tier: Tier,
    },
    /// See [`BlockIndex::remove`].
    Remove {
        /// Who.
        worker: WorkerId,
        /// Which.
        blocks: &'a [N],
        /// From where.
        tier: Tier,
    },
}

impl<'a> EventRef<'a, SequenceHash> {
    /// The event of a worker, unless it is a clear.
    fn of(worker: WorkerId, event: &'a BlockEvent) -> Option<Self> {
        match event {
            BlockEvent::Stored { namespace, parent, blocks, tier } => Some(Self::Store {
                worker,
                namespace: *namespace,
                parent: parent.key(),
                blocks,
                tier: *tier,
            }),
            BlockEvent::Removed { blocks, tier } => {
                Some(Self::Remove { worker, blocks, tier: *tier })
            }
            BlockEvent::Truncated { .. } | BlockEvent::Cleared => None,
        }
    }
}

impl<'a> EventRef<'a, [u8; 16]> {
    /// The event of a worker, unless it is a clear or names no blocks.
    fn of_view(worker: WorkerId, event: EventView<'a>) -> Option<Self> {
        match event {
            EventView::Stored { namespace, parent, blocks, tier } => {
                Some(Self::Store { worker, namespace, parent: parent.key(), blocks, tier })
            }
            EventView::Removed { blocks, tier } => Some(Self::Remove { worker, blocks, tier }),
            EventView::Truncated { .. } | EventView::Cleared => None,
        }
    }
}

impl BlockIndex {
    /// Takes in events of one worker, in order.
    pub fn apply_all(&mut self, worker: WorkerId, events: &[BlockEvent]) -> Applied {
        let mut sum = Applied::default();
        let alone = |event: &BlockEvent| {
            matches!(event, BlockEvent::Truncated { .. } | BlockEvent::Cleared)
        };
        for part in events.split_inclusive(alone) {
            let borrowed: Vec<EventRef<'_, SequenceHash>> =
                part.iter().filter_map(|event| EventRef::of(worker, event)).collect();
            sum.add(self.apply_batch(&borrowed));
            if let Some(event) = part.last().filter(|event| alone(event)) {
                sum.add(self.apply(worker, event));
            }
        }
        sum
    }

    /// The same for events as they lie in a message.
    pub fn apply_views(&mut self, worker: WorkerId, events: &[EventView<'_>]) -> Applied {
        let mut sum = Applied::default();
        let alone = |event: &EventView<'_>| {
            matches!(event, EventView::Truncated { .. } | EventView::Cleared)
        };
        for part in events.split_inclusive(alone) {
            let borrowed: Vec<EventRef<'_, [u8; 16]>> =
                part.iter().filter_map(|event| EventRef::of_view(worker, *event)).collect();
            sum.add(self.apply_batch(&borrowed));
            match part.last() {
                Some(EventView::Truncated { tail, count, tier }) => {
                    sum.add(self.truncate(worker, *tail, *count, *tier));
                }
                Some(EventView::Cleared) => sum.removed += self.remove_worker(worker),
                _ => {}
            }
        }
        sum
    }

    /// A run record of one who knows its own chain. What the index lacks, for it was refused or is kept no more, is
    /// not held either way.
    pub(crate) fn truncate(
        &mut self,
        worker: WorkerId,
        tail: SequenceHash,
        count: u32,
        tier: Tier,
    ) -> Applied {
        self.release(worker, tail.key(), count, tier).unwrap_or_default()
    }

    /// Applies events in order.
    pub fn apply_batch<N: BlockName>(&mut self, events: &[EventRef<'_, N>]) -> Applied {
        let mut sum = Applied::default();
        for round in events.chunks(ROUND_EVENTS) {
            if round.len() > 1 {
                round.iter().for_each(|event| self.ask_for_lines(event));
                round.iter().for_each(|event| self.ask_for_runs(event));
            }
            for event in round {
                sum.add(match *event {
                    EventRef::Store { worker, namespace, parent, blocks, tier } => {
                        self.store(worker, namespace, parent, blocks, tier)
                    }
                    EventRef::Remove { worker, blocks, tier } => self.remove(worker, blocks, tier),
                });
            }
        }
        sum
    }

    #[inline(always)]
    fn ask_for_lines<N: BlockName>(&self, event: &EventRef<'_, N>) {
        match event {
            EventRef::Store { parent, blocks, .. } => {
                self.runs.map.prefetch(*parent);
                blocks.iter().take(1).for_each(|name| self.runs.map.prefetch(name.key()));
            }
            EventRef::Remove { blocks, .. } => {
                blocks.iter().take(1).for_each(|name| self.runs.map.prefetch(name.key()));
            }
        }
    }

    #[inline(always)]
    fn ask_for_runs<N: BlockName>(&self, event: &EventRef<'_, N>) {
        match event {
            EventRef::Store { parent, blocks, .. } => {
                self.runs.prefetch_runs(*parent);
                let Some(first) = blocks.first() else { return };
                // Blocks that follow one that is not known are not known either, as a rule.
                if self.runs.prefetch_runs(first.key()).is_none() {
                    self.ask_for_blocks(blocks);
                }
            }
            EventRef::Remove { blocks, .. } => {
                let Some(first) = blocks.first() else { return };
                // What only one worker holds is about to leave the map.
                if self.runs.prefetch_runs(first.key()) == Some(true) {
                    self.ask_for_blocks(blocks);
                }
            }
        }
    }

    #[inline(always)]
    fn ask_for_blocks<N: BlockName>(&self, blocks: &[N]) {
        for name in blocks.iter().take(AHEAD).skip(1) {
            self.runs.map.prefetch(name.key());
        }
    }
}
