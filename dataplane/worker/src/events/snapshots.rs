//! The whole state of a worker as messages, made once for all members that need it at the same time.
//!
//! After a fence every member asks at once, so whoever comes while a snapshot is being made, or still sent to
//! somebody, shares it; it is kept no longer than that. The engine's reports wait only while the map is copied.

use std::sync::{Arc, Weak};

use mainstay_proto::convert::{event_to_wire, mark_to_wire};
use mainstay_proto::v1;
use mainstay_types::{BlockEvent, StreamMark};

use super::Events;
use super::frames::FrameLimits;
use crate::shared::Registration;

/// Everything a worker held after a frame.
pub(crate) struct Snapshot {
    pub(crate) registration: Registration,
    pub(crate) mark: StreamMark,
    /// In the order in which they are sent; never empty.
    pub(crate) parts: Vec<v1::StreamSnapshot>,
}

/// The snapshot that is being sent.
#[derive(Default)]
pub(crate) struct Snapshots {
    latest: tokio::sync::Mutex<Weak<Snapshot>>,
}

impl Events {
    /// A snapshot after which the ring goes on. `None` when the epoch is over.
    pub(crate) async fn snapshot(&self, registration: Registration) -> Option<Arc<Snapshot>> {
        // Held while one is made, so that a second is not made beside it.
        let mut latest = self.snapshots.latest.lock().await;
        let known = latest.upgrade().filter(|known| known.registration == registration);
        let (mark, copy, limits) = {
            let mut state = self.lock();
            let state = &mut *state;
            if state.log.epoch() != registration.epoch {
                return None;
            }
            if let Some(known) = known
                && state.log.continues(known.mark.sequence.0 + 1)
            {
                return Some(known);
            }
            let (mark, copy) = state.log.snapshot(&state.map);
            (mark, copy, *state.log.limits())
        };
        let put_in_order = move || {
            let runs = copy.runs(limits.part_blocks_max);
            Arc::new(Snapshot {
                registration,
                mark,
                parts: parts(registration, mark, &runs, &limits),
            })
        };
        let made = tokio::task::spawn_blocking(put_in_order).await.ok()?;
        *latest = Arc::downgrade(&made);
        Some(made)
    }
}

/// Cuts a state into messages.
pub(crate) fn parts(
    registration: Registration,
    mark: StreamMark,
    runs: &[BlockEvent],
    limits: &FrameLimits,
) -> Vec<v1::StreamSnapshot> {
    let empty = |part: usize| v1::StreamSnapshot {
        worker: registration.worker.0,
        epoch: registration.epoch.0,
        mark: Some(mark_to_wire(mark)),
        part: part as u32,
        last: false,
        events: Vec::new(),
    };
    let mut parts = Vec::new();
    let (mut part, mut blocks) = (empty(0), 0);
    for run in runs {
        let more = run.block_count();
        let fits =
            blocks + more <= limits.part_blocks_max && part.events.len() < limits.part_events_max;
        if !fits && !part.events.is_empty() {
            parts.push(part);
            (part, blocks) = (empty(parts.len()), 0);
        }
        blocks += more;
        part.events.push(event_to_wire(run));
    }
    part.last = true;
    parts.push(part);
    parts
}
