//! One pin's part of a history, and between which times it must be there and may be there.

use std::sync::Arc;

use super::check::Bounds;
use super::{Answer, Asked, Op, Refusal, Spec, Standing};

/// A pin and all that was asked about it alone.
pub(super) struct Life<'a> {
    pub(super) spec: Arc<Spec>,
    /// In the order of invocation.
    pub(super) ops: Vec<&'a Op>,
}

/// What an answer says about a pin's being there; nothing if it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Live,
    Ended(Standing),
    /// Not known, or forgotten.
    Absent,
}

pub(super) fn seen(op: &Op) -> Option<Seen> {
    match &op.answer {
        Answer::Pin { view, .. } if view.standing == Standing::Live => Some(Seen::Live),
        Answer::Pin { view, .. } => Some(Seen::Ended(view.standing)),
        Answer::Refused(Refusal::NotFound) => Some(Seen::Absent),
        Answer::Refused(Refusal::Ended) => Some(Seen::Absent),
        _ => None,
    }
}

impl Life<'_> {
    fn ttl_us(&self) -> u64 {
        self.spec.ttl_ms * 1_000
    }

    fn creates(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().copied().filter(|op| matches!(op.asked, Asked::Create(_)))
    }

    /// Extensions and their TTLs in microseconds.
    fn extensions(&self) -> impl Iterator<Item = (&Op, u64)> {
        self.ops.iter().filter_map(|op| match op.asked {
            Asked::Extend { ttl_ms, .. } => Some((*op, ttl_ms * 1_000)),
            _ => None,
        })
    }

    /// When its first creation was sent; it can't have been there before.
    pub(super) fn first_sent_us(&self) -> u64 {
        self.creates().map(|op| op.invoked_us).min().unwrap_or(0)
    }

    /// When somebody first knew that it is there.
    pub(super) fn known_us(&self) -> Option<u64> {
        let live = self.ops.iter().filter(|op| seen(op) == Some(Seen::Live));
        live.map(|op| op.returned_us).min()
    }

    /// Whether a creation was acknowledged.
    pub(super) fn acknowledged(&self) -> bool {
        self.creates().any(|op| seen(op) == Some(Seen::Live))
    }

    /// Until when it must be there for a question asked at `asked_us`, by what was acknowledged before; nothing
    /// if it was not known to exist then.
    pub(super) fn must_until_us(&self, asked_us: u64) -> Option<u64> {
        if self.known_us().is_none_or(|known| known >= asked_us) {
            return None;
        }
        let made = self.first_sent_us() + self.ttl_us();
        let extended = self
            .extensions()
            .filter(|(op, _)| seen(op) == Some(Seen::Live) && op.returned_us < asked_us)
            .map(|(op, ttl_us)| op.invoked_us + ttl_us);
        Some(extended.fold(made, u64::max))
    }

    /// Until when it may be there for a question answered at `answered_us`, lateness not counted. Requests of
    /// unknown outcome, and lost copies of repeated ones, may still have arrived for a while after.
    pub(super) fn may_until_us(&self, answered_us: u64, bounds: &Bounds) -> u64 {
        let stray_us = bounds.stray_ms * 1_000;
        let known = self.creates().filter(|op| seen(op).is_some_and(|s| s != Seen::Absent));
        // A creation happens once: it was in force when the first of its answers came.
        let made = known.map(|op| op.returned_us).min().unwrap_or_else(|| {
            self.creates().map(|op| op.returned_us + stray_us).max().unwrap_or(u64::MAX)
        });
        let extended = self.extensions().filter(|(op, _)| op.invoked_us < answered_us).filter_map(
            |(op, ttl_us)| match (&op.answer, op.attempts) {
                (Answer::Refused(_), 1) => None,
                (Answer::Pin { .. }, 1) => Some(op.returned_us + ttl_us),
                _ => Some(op.returned_us + stray_us + ttl_us),
            },
        );
        extended.fold(made.saturating_add(self.ttl_us()), u64::max)
    }

    /// Whether its owner may have given it back before an answer at `answered_us`.
    pub(super) fn release_sent(&self, answered_us: u64) -> bool {
        let mut releases = self.ops.iter().filter(|op| matches!(op.asked, Asked::Release { .. }));
        releases.any(|op| op.invoked_us < answered_us)
    }

    /// When somebody first knew that it has ended: from a release's answer, or from any other.
    pub(super) fn ended_us(&self) -> Option<u64> {
        let known = self.first_known_or_max();
        let ended = self.ops.iter().filter(|op| match seen(op) {
            Some(Seen::Ended(_)) => true,
            // Not being there means an end only after having been there.
            Some(Seen::Absent) => op.invoked_us > known,
            _ => false,
        });
        ended.map(|op| op.returned_us).min()
    }

    fn first_known_or_max(&self) -> u64 {
        self.known_us().unwrap_or(u64::MAX)
    }
}

/// Whether `later` promises all of `earlier`'s blocks, priority and copies, for the same session.
pub(super) fn covers(later: &Spec, earlier: &Spec) -> bool {
    later.id != earlier.id
        && later.blocks.starts_with(&earlier.blocks)
        && later.priority >= earlier.priority
        && later.copies_min >= earlier.copies_min
}
