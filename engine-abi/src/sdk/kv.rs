//! The KV lane's queue: cache events of one epoch, which may overflow but never silently.
//!
//! Its limit is in blocks, since that is what the memory goes into. On overflow all that is queued
//! gives way to one RESET under the next epoch, so the host learns at once that it knows nothing,
//! and events are dropped until the engine begins a snapshot.

use std::collections::VecDeque;

use super::KvEvent;

/// The least limit of the lane, in blocks plus events (1 MiB of hashes).
const LIMIT_MIN: u64 = 1 << 16;
/// The greatest limit of the lane, in blocks plus events (1 GiB of hashes).
const LIMIT_MAX: u64 = 1 << 26;
/// Room for a snapshot of single-block events (2 each) and as much again of news.
const LIMIT_PER_BLOCK: u64 = 4;

/// Blocks of one event; a longer one is split, so that every batch and frame has a bound.
const EVENT_BLOCKS_MAX: usize = 1 << 14;
/// Blocks and events from which on a batch is full.
const BATCH_WEIGHT_SOFT: u64 = 1 << 18;

/// A stretch of the event stream; all of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvTaken {
    pub epoch: u64,
    /// The sequence number of the first item, which is the RESET where there is one.
    pub first_seq: u64,
    /// The stretch begins with a RESET: the engine holds nothing but what follows.
    pub reset: bool,
    pub events: Vec<KvEvent>,
}

pub(super) struct KvQueue {
    epoch: u64,
    /// The sequence number of the first queued item.
    first_seq: u64,
    /// A RESET stands before the first of `events`.
    reset: bool,
    events: VecDeque<KvEvent>,
    queued: u64,
    limit: u64,
    overflowed: bool,
}

impl Default for KvQueue {
    fn default() -> Self {
        Self {
            epoch: 0,
            first_seq: 0,
            reset: false,
            events: VecDeque::new(),
            queued: 0,
            limit: LIMIT_MIN,
            overflowed: false,
        }
    }
}

fn weight(event: &KvEvent) -> u64 {
    match event {
        KvEvent::Stored { blocks, .. } | KvEvent::Removed { blocks, .. } => 1 + blocks.len() as u64,
        KvEvent::PinExpired { .. } => 1,
    }
}

impl KvQueue {
    pub(super) fn size_for(&mut self, blocks_total: u64) {
        self.limit = blocks_total.saturating_mul(LIMIT_PER_BLOCK).clamp(LIMIT_MIN, LIMIT_MAX);
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.reset && self.events.is_empty()
    }

    pub(super) fn overflowed(&self) -> bool {
        self.overflowed
    }

    pub(super) fn position(&self) -> (u64, u64) {
        (self.epoch, self.first_seq + u64::from(self.reset) + self.events.len() as u64)
    }

    pub(super) fn push(&mut self, event: KvEvent) {
        match event {
            KvEvent::Stored { namespace, mut parent, blocks, tier, snapshot }
                if blocks.len() > EVENT_BLOCKS_MAX =>
            {
                for part in blocks.chunks(EVENT_BLOCKS_MAX) {
                    let blocks = part.to_vec();
                    self.push_one(KvEvent::Stored { namespace, parent, blocks, tier, snapshot });
                    parent = part.last().copied().unwrap_or(parent);
                }
            }
            KvEvent::Removed { blocks, tier, cause } if blocks.len() > EVENT_BLOCKS_MAX => {
                for part in blocks.chunks(EVENT_BLOCKS_MAX) {
                    self.push_one(KvEvent::Removed { blocks: part.to_vec(), tier, cause });
                }
            }
            event => self.push_one(event),
        }
    }

    fn push_one(&mut self, event: KvEvent) {
        if self.overflowed {
            return;
        }
        let weight = weight(&event);
        if self.queued + weight > self.limit {
            self.begin_epoch();
            self.overflowed = true;
            return;
        }
        self.queued += weight;
        self.events.push_back(event);
    }

    pub(super) fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.first_seq = 0;
        self.reset = true;
        self.events.clear();
        self.queued = 0;
        self.overflowed = false;
    }

    pub(super) fn take(&mut self, items_max: usize) -> KvTaken {
        let (epoch, first_seq) = (self.epoch, self.first_seq);
        let reset = self.reset && items_max > 0;
        if reset {
            self.reset = false;
        }
        let events_max = items_max - usize::from(reset);
        let mut sum = 0;
        let fits = |event: &&KvEvent| {
            let is_first = sum == 0;
            sum += weight(event);
            is_first || sum <= BATCH_WEIGHT_SOFT
        };
        let len = self.events.iter().take(events_max).take_while(fits).count();
        let events: Vec<KvEvent> = self.events.drain(..len).collect();
        self.queued -= events.iter().map(weight).sum::<u64>();
        self.first_seq += u64::from(reset) + events.len() as u64;
        KvTaken { epoch, first_seq, reset, events }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sdk::Cause;

    fn removed(block: u128) -> KvEvent {
        KvEvent::Removed { blocks: vec![block], tier: 0, cause: Cause::Capacity }
    }

    #[test]
    fn an_overflow_is_one_reset_and_then_silence_until_the_snapshot() {
        let mut queue = KvQueue::default();
        for n in 0..LIMIT_MIN / 2 {
            queue.push(removed(u128::from(n)));
        }
        assert!(!queue.overflowed(), "the limit itself still fits");
        queue.push(removed(1));
        assert!(queue.overflowed());
        queue.push(removed(2));
        let taken = queue.take(100);
        assert_eq!(taken, KvTaken { epoch: 1, first_seq: 0, reset: true, events: Vec::new() });
        assert!(queue.is_empty());
        queue.begin_epoch();
        queue.push(removed(3));
        let taken = queue.take(100);
        assert_eq!((taken.epoch, taken.reset, taken.events), (2, true, vec![removed(3)]));
        assert_eq!(queue.position(), (2, 2));
    }

    #[test]
    fn a_stretch_of_one_item_is_the_reset_alone() {
        let mut queue = KvQueue::default();
        queue.begin_epoch();
        queue.push(removed(1));
        assert_eq!(queue.take(0).events.len(), 0);
        let first = queue.take(1);
        assert!(first.reset && first.events.is_empty());
        let second = queue.take(1);
        assert_eq!((second.first_seq, second.reset, second.events.len()), (1, false, 1));
    }

    #[test]
    fn a_long_chain_is_split_into_linked_events() {
        let mut queue = KvQueue::default();
        let blocks: Vec<u128> = (1..=EVENT_BLOCKS_MAX as u128 + 5).collect();
        let (namespace, parent) = (9, 9);
        let sent = blocks.clone();
        queue.push(KvEvent::Stored { namespace, parent, blocks, tier: 0, snapshot: false });
        let taken = queue.take(100);
        let mut back = Vec::new();
        let mut before = 9;
        for event in &taken.events {
            let KvEvent::Stored { parent, blocks, .. } = event else { panic!("{event:?}") };
            assert_eq!(*parent, before);
            before = *blocks.last().unwrap();
            back.extend_from_slice(blocks);
        }
        assert_eq!((taken.events.len(), back), (2, sent));
    }

    proptest::proptest! {
        /// A reader that follows the sequence numbers sees all events in order, or a reset.
        #[test]
        fn a_reader_never_misses_an_event_unknowingly(
            steps in proptest::collection::vec((0..4_u8, 0..200_u64), 0..200),
        ) {
            let mut queue = KvQueue { limit: 300, ..KvQueue::default() };
            let (mut written, mut sent) = (Vec::new(), 0_u128);
            let (mut epoch, mut next, mut read) = (0, 0, Vec::new());
            for (kind, amount) in steps {
                match kind {
                    0 | 1 => for _ in 0..amount {
                        let lost_before = queue.overflowed();
                        queue.push(removed(sent));
                        if lost_before || queue.overflowed() {
                            written.clear();
                        } else {
                            written.push(removed(sent));
                        }
                        sent += 1;
                    },
                    2 => {
                        let taken = queue.take(amount as usize);
                        if taken.reset {
                            proptest::prop_assert!(taken.epoch > epoch && taken.first_seq == 0);
                            read.clear();
                        } else if !taken.events.is_empty() {
                            proptest::prop_assert_eq!((taken.epoch, taken.first_seq), (epoch, next));
                        }
                        if taken.reset || !taken.events.is_empty() {
                            epoch = taken.epoch;
                            next = taken.first_seq + u64::from(taken.reset);
                            next += taken.events.len() as u64;
                        }
                        read.extend(taken.events);
                    }
                    _ => if amount < 20 {
                        queue.begin_epoch();
                        written.clear();
                    },
                }
            }
            let rest = queue.take(usize::MAX);
            if rest.reset {
                read.clear();
            }
            read.extend(rest.events);
            proptest::prop_assert_eq!(read, written);
        }
    }

    #[test]
    fn a_whole_snapshot_of_single_blocks_fits() {
        let mut queue = KvQueue::default();
        queue.size_for(100_000);
        queue.begin_epoch();
        for n in 0..100_000_u64 {
            queue.push(removed(u128::from(n)));
        }
        assert!(!queue.overflowed());
    }
}
