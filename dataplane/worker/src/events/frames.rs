//! The worker's numbered stream of block events: what waits, and one ring of frames for all who follow it.
//!
//! A frame gets its number when it is sealed and never changes after, so that every member is told the same under
//! the same number. Beside each waiting event stands the sum of the map after it, hence a frame may end behind any
//! event and still say exactly what the worker held there. Who asks for a frame that the ring has let go of gets
//! the whole state instead. Both queues are bounded: what overflows while nobody asks is forgotten, the sequence
//! moves on by one, and everybody needs the whole state.
//!
//! In the plain form each frame becomes an entry of the log and nobody takes snapshots: then the frames in the
//! ring stay, and a frame that clears, with frames that tell everything behind it, stands for what was forgotten.

use std::collections::VecDeque;
use std::sync::Arc;

use mainstay_proto::convert::event_to_wire;
use mainstay_proto::v1;
use mainstay_types::{BlockEvent, Epoch, EventSequence, StreamMark, WorkerId};

use super::local_map::{LocalMap, Sum};
use super::map_copy::MapCopy;

/// How much may wait, be kept, and travel in one message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameLimits {
    /// Blocks in one frame; a run record weighs one.
    pub(crate) frame_blocks_max: usize,
    /// Events in one frame.
    pub(crate) frame_events_max: usize,
    /// Blocks that one frame may name, those of run records included.
    pub(crate) frame_named_max: usize,
    /// Frames in the ring.
    pub(crate) ring_frames_max: usize,
    /// Blocks and events in the ring.
    pub(crate) ring_weight_max: usize,
    /// Frames in one message.
    pub(crate) message_frames_max: usize,
    /// Blocks and events in one message.
    pub(crate) message_weight_max: usize,
    /// Blocks that the frames of one message may name.
    pub(crate) message_named_max: usize,
    /// Frames on their way in the plain form.
    pub(crate) plain_window_frames_max: usize,
    /// Blocks in one part of a snapshot.
    pub(crate) part_blocks_max: usize,
    /// Events in one part of a snapshot.
    pub(crate) part_events_max: usize,
    /// Blocks and events that wait to be sealed, beside what is told again.
    pub(crate) waiting_max: usize,
}

impl FrameLimits {
    /// What a worker uses: 64 KiB of hashes a frame, 1 MiB a message, 16 MiB in the ring and as much waiting. The
    /// blocks named are bounded for the sake of whoever applies them under a lock.
    pub(crate) const fn standard() -> Self {
        Self {
            frame_blocks_max: 4_096,
            frame_events_max: 1_024,
            frame_named_max: 65_536,
            ring_frames_max: 16_384,
            ring_weight_max: 1 << 20,
            message_frames_max: 256,
            message_weight_max: 65_536,
            message_named_max: 262_144,
            plain_window_frames_max: 16,
            part_blocks_max: 32_768,
            part_events_max: 16_384,
            waiting_max: 1 << 20,
        }
    }
}

/// What the ring has for one who follows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Frames {
    /// The next ones, oldest first.
    Next(Vec<Arc<v1::EventFrame>>),
    /// Nothing new.
    UpToDate,
    /// That frame is kept no more, or was never made: the whole state is needed.
    Lost,
}

struct Waiting {
    event: BlockEvent,
    /// What the map held after it.
    sum: Sum,
}

struct Sealed {
    frame: Arc<v1::EventFrame>,
    weight: usize,
    named: usize,
}

/// The stream of one epoch.
pub(crate) struct FrameLog {
    limits: FrameLimits,
    worker: WorkerId,
    epoch: Epoch,
    plain: bool,
    /// The number that the next new frame gets.
    next: u64,
    /// What the map held after the last frame.
    told: Sum,
    ring: VecDeque<Sealed>,
    ring_weight: usize,
    waiting: VecDeque<Waiting>,
    waiting_weight: usize,
    /// The part of the waiting weight that is told again, which must not count as an overflow.
    retold_weight: usize,
    /// Something was forgotten: until everything is told, the map alone remembers.
    untold: bool,
    /// How often something was forgotten since the start.
    pub(crate) resyncs: u64,
}

/// Blocks as they lie in a message.
fn block_weight(event: &BlockEvent) -> usize {
    match event {
        BlockEvent::Stored { blocks, .. } | BlockEvent::Removed { blocks, .. } => blocks.len(),
        BlockEvent::Truncated { .. } => 1,
        BlockEvent::Cleared => 0,
    }
}

fn weight(event: &BlockEvent) -> usize {
    1 + block_weight(event)
}

impl FrameLog {
    /// A stream without an epoch: it takes nothing in until [`FrameLog::begin_epoch`].
    pub(crate) fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            worker: WorkerId(0),
            epoch: Epoch(0),
            plain: false,
            next: 1,
            told: Sum::default(),
            ring: VecDeque::new(),
            ring_weight: 0,
            waiting: VecDeque::new(),
            waiting_weight: 0,
            retold_weight: 0,
            untold: true,
            resyncs: 0,
        }
    }

    /// Starts over under a new epoch, of which nobody holds anything. What the map holds already is told like
    /// something that was forgotten.
    pub(crate) fn begin_epoch(
        &mut self,
        worker: WorkerId,
        epoch: Epoch,
        plain: bool,
        map: &LocalMap,
    ) {
        (self.worker, self.epoch, self.plain) = (worker, epoch, plain);
        (self.next, self.told) = (1, Sum::default());
        self.drop_ring();
        self.drop_waiting();
        self.untold = map.sum() != Sum::default();
    }

    pub(crate) fn limits(&self) -> &FrameLimits {
        &self.limits
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The number that the next new frame gets.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next
    }

    /// How many frames are kept.
    pub(crate) fn ring_frames(&self) -> usize {
        self.ring.len()
    }

    /// Whether events wait to be sealed.
    pub(crate) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether one who has everything before `from` can go on with frames.
    pub(crate) fn continues(&self, from: u64) -> bool {
        !self.untold && (self.first()..=self.next).contains(&from)
    }

    fn first(&self) -> u64 {
        self.next - self.ring.len() as u64
    }

    fn drop_ring(&mut self) {
        self.ring.clear();
        self.ring_weight = 0;
    }

    fn drop_waiting(&mut self) {
        self.waiting.clear();
        (self.waiting_weight, self.retold_weight) = (0, 0);
    }

    /// Forgets what waits, and outside the plain form what is kept.
    fn forget(&mut self) {
        self.drop_waiting();
        if !self.plain {
            self.drop_ring();
        }
        self.untold = true;
        self.resyncs += 1;
    }

    /// Queues a change that the map has taken in already, with what the map held right after it. An event has no
    /// more blocks than a frame may.
    pub(crate) fn push(&mut self, event: BlockEvent, sum: Sum) {
        if self.untold {
            return;
        }
        let added = weight(&event);
        if self.waiting_weight + added > self.limits.waiting_max + self.retold_weight {
            tracing::warn!(
                waiting = self.waiting_weight,
                "block events overflow; all blocks will be told again"
            );
            return self.forget();
        }
        let most = self.limits.frame_blocks_max;
        if let Some(last) = self.waiting.back_mut()
            && merge(&mut last.event, &event, most)
        {
            last.sum = sum;
            self.waiting_weight += block_weight(&event);
        } else {
            self.waiting_weight += added;
            self.waiting.push_back(Waiting { event, sum });
        }
    }

    /// The map holds nothing any more: whatever waits need not be told.
    pub(crate) fn cleared(&mut self) {
        if !self.untold {
            self.drop_waiting();
            self.push(BlockEvent::Cleared, Sum::default());
        }
    }

    /// Makes frames of all that waits.
    pub(crate) fn seal(&mut self) {
        while self.waits() {
            self.seal_one();
        }
    }

    fn seal_one(&mut self) {
        let before = self.waiting_weight;
        let (mut blocks, mut named) = (0, 0);
        let mut events = Vec::new();
        while let Some(front) = self.waiting.front() {
            blocks += block_weight(&front.event);
            named += front.event.block_count();
            let fits = blocks <= self.limits.frame_blocks_max
                && named <= self.limits.frame_named_max
                && events.len() < self.limits.frame_events_max;
            if !fits && !events.is_empty() {
                named -= front.event.block_count();
                break;
            }
            self.waiting_weight -= weight(&front.event);
            self.told = front.sum;
            events.push(event_to_wire(&front.event));
            self.waiting.pop_front();
        }
        // What is told again is the oldest that waits, so what leaves the queue is its share first.
        let weight = before - self.waiting_weight;
        self.retold_weight = self.retold_weight.saturating_sub(weight);
        self.keep(events, weight, named);
    }

    /// Numbers a frame and puts it into the ring.
    fn keep(&mut self, events: Vec<v1::BlockEvent>, weight: usize, named: usize) {
        let frame = Arc::new(v1::EventFrame {
            worker: self.worker.0,
            epoch: self.epoch.0,
            sequence: self.next,
            events,
            digest: self.told.digest,
            blocks: self.told.blocks,
        });
        self.next += 1;
        self.ring_weight += weight;
        self.ring.push_back(Sealed { frame, weight, named });
        while self.ring.len() > self.limits.ring_frames_max.max(1)
            || (self.ring_weight > self.limits.ring_weight_max && self.ring.len() > 1)
        {
            self.ring_weight -= self.ring.pop_front().map_or(0, |oldest| oldest.weight);
        }
    }

    /// The frames from a number on, as many as fit a message.
    pub(crate) fn frames_from(&self, next_sequence: u64) -> Frames {
        if !self.continues(next_sequence) || next_sequence == 0 {
            return Frames::Lost;
        }
        if next_sequence == self.next {
            return Frames::UpToDate;
        }
        Frames::Next(self.kept_from(next_sequence, self.limits.message_frames_max))
    }

    fn kept_from(&self, next_sequence: u64, frames_max: usize) -> Vec<Arc<v1::EventFrame>> {
        let (mut weight, mut named) = (0, 0);
        let from = next_sequence.saturating_sub(self.first()) as usize;
        let fits = |sealed: &&Sealed| {
            let first = weight == 0;
            weight += sealed.weight.max(1);
            named += sealed.named;
            first
                || (weight <= self.limits.message_weight_max
                    && named <= self.limits.message_named_max)
        };
        let kept = self.ring.range(from.min(self.ring.len())..).take(frames_max.max(1));
        kept.take_while(fits).map(|sealed| Arc::clone(&sealed.frame)).collect()
    }

    /// A frame that one who has everything has already: its answer says whether it still does. `None` while there
    /// is nothing that it could have.
    pub(crate) fn newest(&mut self) -> Option<Arc<v1::EventFrame>> {
        if self.untold || self.next == 1 {
            return None;
        }
        if self.ring.is_empty() {
            // After a snapshot that began the ring anew. That nothing has happened is also news.
            self.keep(Vec::new(), 1, 0);
        }
        self.ring.back().map(|sealed| Arc::clone(&sealed.frame))
    }

    /// The whole state, and the frame after which it is exactly that. Seals what waits.
    pub(crate) fn snapshot(&mut self, map: &LocalMap) -> (StreamMark, MapCopy) {
        if self.untold {
            // The frame that would have told what was forgotten is never made.
            self.drop_ring();
            self.next += 1;
            self.told = map.sum();
            self.untold = false;
        } else {
            self.seal();
        }
        debug_assert_eq!(self.told, map.sum(), "frames and map part");
        let Sum { digest, blocks } = self.told;
        (StreamMark { sequence: EventSequence(self.next - 1), digest, blocks }, map.copy())
    }

    /// Whether the plain form has something to send to one who expects `next_sequence`.
    pub(crate) fn plain_due(&self, next_sequence: u64) -> bool {
        self.untold || self.waits() || next_sequence < self.next
    }

    /// The frames of the plain form: those not acknowledged, then new ones as far as the window goes. A frame that
    /// is gone is made anew, as one that clears and is followed by everything.
    pub(crate) fn plain_frames(
        &mut self,
        next_sequence: u64,
        map: &LocalMap,
    ) -> Vec<Arc<v1::EventFrame>> {
        let next_sequence = next_sequence.max(1);
        if !(self.first()..=self.next).contains(&next_sequence) {
            self.drop_ring();
            self.next = next_sequence;
            self.forget();
        }
        if self.untold {
            self.tell_again(map);
        }
        let window = self.limits.plain_window_frames_max.max(1);
        while self.waits() && self.next - next_sequence < window as u64 {
            self.seal_one();
        }
        self.kept_from(next_sequence, window)
    }

    fn tell_again(&mut self, map: &LocalMap) {
        self.untold = false;
        self.waiting.push_back(Waiting { event: BlockEvent::Cleared, sum: Sum::default() });
        let mut retold = LocalMap::new(usize::MAX);
        for run in map.copy().runs(self.limits.frame_blocks_max) {
            if let BlockEvent::Stored { namespace, parent, blocks, tier } = &run {
                retold.store(*namespace, *parent, blocks, *tier, |_| {});
            }
            self.waiting.push_back(Waiting { event: run, sum: retold.sum() });
        }
        self.waiting_weight = self.waiting.iter().map(|waiting| weight(&waiting.event)).sum();
        self.retold_weight = self.waiting_weight;
    }
}

/// Joins an event to the one before it where they say the same thing, which keeps runs long.
fn merge(last: &mut BlockEvent, event: &BlockEvent, blocks_max: usize) -> bool {
    match (last, event) {
        (
            BlockEvent::Stored { namespace: n, blocks: b, tier: t, .. },
            BlockEvent::Stored { namespace, parent, blocks, tier },
        ) if n == namespace
            && t == tier
            && b.last() == Some(parent)
            && b.len() + blocks.len() <= blocks_max =>
        {
            b.extend_from_slice(blocks);
            true
        }
        (BlockEvent::Removed { blocks: b, tier: t }, BlockEvent::Removed { blocks, tier })
            if t == tier && b.len() + blocks.len() <= blocks_max =>
        {
            b.extend_from_slice(blocks);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
