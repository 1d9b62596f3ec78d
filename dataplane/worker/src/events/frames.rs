//! The worker's side of the numbered event stream: what waits, what is on its way, what must be told again.
//!
//! A number is given to a frame when it is first sent, and from then on the frame is kept until it is
//! acknowledged: a frame whose answer was lost may still arrive, and other content under its number would part
//! the index from the truth without a trace. What was never sent may be dropped when too much of it waits; the
//! next frame then says `Cleared` and tells everything. Both queues are bounded.

use std::collections::VecDeque;

use mainstay_proto::convert::event_to_wire;
use mainstay_proto::v1;
use mainstay_types::{BlockEvent, Epoch, WorkerId};

use super::local_map::LocalMap;

/// How much may wait and be on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameLimits {
    /// Blocks in one frame.
    pub(crate) frame_blocks_max: usize,
    /// Events in one frame.
    pub(crate) frame_events_max: usize,
    /// Frames sent and not acknowledged.
    pub(crate) frames_unacknowledged_max: usize,
    /// Blocks (and events, an event counts as one) waiting to be sent, beside a snapshot.
    pub(crate) waiting_max: usize,
}

impl FrameLimits {
    /// What a worker uses: 64 KiB of hashes a frame, 1 MiB on its way, 16 MiB waiting.
    pub(crate) const fn standard() -> Self {
        Self {
            frame_blocks_max: 4_096,
            frame_events_max: 1_024,
            frames_unacknowledged_max: 16,
            waiting_max: 1 << 20,
        }
    }
}

/// What an acknowledgement meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// Everything sent has arrived.
    All,
    /// The rest is to be sent again, from the number that the control plane named.
    Gap,
    /// It asks for frames that are gone; everything will be told again.
    Resync,
    /// It has seen frames that were never sent: somebody else writes under this epoch.
    Ahead,
}

/// The stream of one epoch.
pub(crate) struct FrameLog {
    limits: FrameLimits,
    worker: WorkerId,
    epoch: Epoch,
    /// The number that the next new frame gets.
    next: u64,
    sent: VecDeque<v1::EventFrame>,
    waiting: VecDeque<BlockEvent>,
    waiting_weight: usize,
    /// The part of the waiting weight that is a snapshot, which must not count as an overflow.
    snapshot_weight: usize,
    /// The next frame clears and tells everything; until then the map alone remembers.
    resync: bool,
    /// Resynchronisations begun since the start.
    pub(crate) resyncs: u64,
}

fn weight(event: &BlockEvent) -> usize {
    1 + event.block_count()
}

impl FrameLog {
    /// A stream without an epoch: it takes nothing in until [`FrameLog::begin_epoch`].
    pub(crate) fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            worker: WorkerId(0),
            epoch: Epoch(0),
            next: 1,
            sent: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_weight: 0,
            snapshot_weight: 0,
            resync: true,
            resyncs: 0,
        }
    }

    /// Starts over under a new epoch: frame 1 will tell everything.
    pub(crate) fn begin_epoch(&mut self, worker: WorkerId, epoch: Epoch) {
        (self.worker, self.epoch) = (worker, epoch);
        self.next = 1;
        self.sent.clear();
        self.tell_all_again();
    }

    /// Forgets what waits; the next frame clears and tells everything.
    pub(crate) fn tell_all_again(&mut self) {
        self.waiting.clear();
        self.waiting_weight = 0;
        self.snapshot_weight = 0;
        self.resyncs += u64::from(!self.resync);
        self.resync = true;
    }

    /// Whether there is something to send.
    pub(crate) fn due(&self) -> bool {
        self.resync || !self.sent.is_empty() || !self.waiting.is_empty()
    }

    /// Whether enough waits to send without lingering for more.
    pub(crate) fn full(&self) -> bool {
        self.waiting_weight >= self.limits.frame_blocks_max
    }

    /// Queues a change that the map has taken in already.
    pub(crate) fn push(&mut self, event: BlockEvent) {
        if self.resync {
            return;
        }
        let added = weight(&event);
        if self.waiting_weight + added > self.limits.waiting_max + self.snapshot_weight {
            tracing::warn!(
                waiting = self.waiting_weight,
                "block events overflow; all blocks will be told again"
            );
            return self.tell_all_again();
        }
        let merged = self.waiting.back_mut().is_some_and(|last| merge(last, &event));
        if merged {
            self.waiting_weight += event.block_count();
        } else {
            self.waiting_weight += added;
            self.waiting.push_back(event);
        }
    }

    /// The frames to send now, oldest first: those not acknowledged, then new ones as far as the window goes.
    pub(crate) fn frames(&mut self, map: &LocalMap) -> Vec<v1::EventFrame> {
        if self.resync && self.sent.len() < self.limits.frames_unacknowledged_max {
            self.resync = false;
            self.waiting.push_back(BlockEvent::Cleared);
            self.waiting.extend(map.runs());
            self.waiting_weight = self.waiting.iter().map(weight).sum();
            self.snapshot_weight = self.waiting_weight;
        }
        while !self.waiting.is_empty() && self.sent.len() < self.limits.frames_unacknowledged_max {
            let frame = self.seal();
            self.sent.push_back(frame);
        }
        self.sent.iter().cloned().collect()
    }

    fn seal(&mut self) -> v1::EventFrame {
        let before = self.waiting_weight;
        let mut events = Vec::new();
        let mut room = self.limits.frame_blocks_max.max(1);
        while events.len() < self.limits.frame_events_max.max(1) && room > 0 {
            let Some(mut event) = self.waiting.pop_front() else { break };
            self.waiting_weight -= weight(&event);
            if event.block_count() > room {
                let rest = split(&mut event, room);
                self.waiting_weight += weight(&rest);
                self.waiting.push_front(rest);
            }
            room -= event.block_count();
            events.push(event_to_wire(&event));
        }
        // A snapshot is the oldest that waits, so what leaves the queue is the snapshot's share first.
        let left = before - self.waiting_weight;
        self.snapshot_weight = self.snapshot_weight.saturating_sub(left);
        let sequence = self.next;
        self.next += 1;
        v1::EventFrame { worker: self.worker.0, epoch: self.epoch.0, sequence, events }
    }

    /// Takes in the number that the control plane expects next.
    pub(crate) fn acknowledge(&mut self, next_sequence: u64) -> Acknowledged {
        if next_sequence > self.next {
            return Acknowledged::Ahead;
        }
        let oldest = self.next - self.sent.len() as u64;
        if next_sequence < oldest {
            self.sent.clear();
            self.next = next_sequence.max(1);
            self.tell_all_again();
            return Acknowledged::Resync;
        }
        self.sent.drain(..(next_sequence - oldest) as usize);
        if self.sent.is_empty() { Acknowledged::All } else { Acknowledged::Gap }
    }
}

/// Joins an event to the one before it where they say the same thing, which keeps runs long.
fn merge(last: &mut BlockEvent, event: &BlockEvent) -> bool {
    match (last, event) {
        (
            BlockEvent::Stored { namespace: n, blocks: b, tier: t, .. },
            BlockEvent::Stored { namespace, parent, blocks, tier },
        ) if n == namespace && t == tier && b.last() == Some(parent) => {
            b.extend_from_slice(blocks);
            true
        }
        (BlockEvent::Removed { blocks: b, tier: t }, BlockEvent::Removed { blocks, tier })
            if t == tier =>
        {
            b.extend_from_slice(blocks);
            true
        }
        _ => false,
    }
}

/// Cuts an event after `at` blocks, 1 or more, and answers with the rest.
fn split(event: &mut BlockEvent, at: usize) -> BlockEvent {
    match event {
        BlockEvent::Stored { namespace, blocks, tier, .. } => {
            let rest = blocks.split_off(at);
            let parent = blocks[at - 1];
            BlockEvent::Stored { namespace: *namespace, parent, blocks: rest, tier: *tier }
        }
        BlockEvent::Removed { blocks, tier } => {
            BlockEvent::Removed { blocks: blocks.split_off(at), tier: *tier }
        }
        BlockEvent::Cleared => BlockEvent::Cleared,
    }
}

#[cfg(test)]
mod tests;
