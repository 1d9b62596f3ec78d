//! What must hold in every run, one file each: each reads the history and says what it finds broken.

mod agreement;
mod idempotent_writes;
mod leaders;
mod log_replay;
mod monotonic_reads;
mod never_early;
mod not_late;
mod progress;
mod released_and_extended;
mod served_by_its_leader;

use std::collections::BTreeMap;

use mainstay_state::Outcome;
use mainstay_types::{Command, PinId};

use crate::history::{Attempt, History};
use crate::run::Counts;

/// How far the clocks by which the history is written may be apart: hosts step one after another.
pub(crate) const STEP_MS: u64 = 3;
/// What it may take until all is well after the last fault: to give up connections that lost a message, to hold an
/// election, to drain a stalled disk.
const RECOVERY_MS: u64 = 4_500;
/// Findings of one kind that are told; the rest is counted.
const TOLD_MAX: usize = 3;

/// All that is broken, and how much happened.
#[must_use]
pub fn check(history: &History) -> (Vec<String>, Counts) {
    let replay = log_replay::replay(history);
    let mut broken = Vec::new();
    for (name, found) in [
        ("agreement", agreement::check(history, &replay)),
        ("leaders", leaders::check(history)),
        ("quotas", replay.quotas.clone()),
        ("time", replay.times.clone()),
        ("never early (P1)", never_early::check(history)),
        ("not late (P2)", not_late::check(history)),
        ("idempotent writes (P5)", idempotent_writes::check(history)),
        ("released and extended (P6)", released_and_extended::check(history)),
        ("monotonic reads (P8)", monotonic_reads::check(history)),
        ("served by its leader", served_by_its_leader::check(history)),
        ("progress", progress::check(history)),
        ("members that ended", history.ends.clone()),
    ] {
        let more = found.len().saturating_sub(TOLD_MAX);
        broken.extend(found.into_iter().take(TOLD_MAX).map(|text| format!("{name}: {text}")));
        if more > 0 {
            broken.push(format!("{name}: and {more} more"));
        }
    }
    let written = history.attempts.iter().filter(|a| a.written().is_some()).count();
    let read = history.attempts.iter().filter(|a| a.read().is_some()).count();
    let counts = Counts {
        writes: written,
        reads: read,
        unanswered: history.attempts.len() - written - read,
        entries: replay.digests.len(),
        lives: history.lives.len(),
        leaderships: replay.leaderships,
    };
    (broken, counts)
}

/// An accepted write that lets a pin live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) asked_ms: u64,
    pub(crate) acked_ms: u64,
    pub(crate) index: u64,
    pub(crate) ttl_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) makes: bool,
}

/// What is known of one pin.
#[derive(Debug, Default)]
pub(crate) struct Story {
    /// Acknowledged, in the order in which they were asked.
    pub(crate) grants: Vec<Grant>,
    /// When a grant was asked for that nobody answered.
    pub(crate) unknown_grants_ms: Vec<u64>,
    /// When its release was asked for, answered or not.
    pub(crate) releases_asked_ms: Vec<u64>,
    /// When its release was there, and at which index.
    pub(crate) releases_acked: Vec<(u64, u64)>,
}

/// The story of each pin.
pub(crate) fn stories(history: &History) -> BTreeMap<PinId, Story> {
    let mut stories: BTreeMap<PinId, Story> = BTreeMap::new();
    for attempt in &history.attempts {
        tell(&mut stories, attempt);
    }
    stories
}

fn tell(stories: &mut BTreeMap<PinId, Story>, attempt: &Attempt) {
    let crate::history::Ask::Write(command) = &attempt.ask else { return };
    let answer = attempt.written().map(|(_, at_ms, index, outcome)| (at_ms, index, outcome));
    let (id, ttl_ms, makes) = match command {
        Command::PutPin(request) => (request.id, request.ttl_ms, true),
        Command::ExtendPin { id, ttl_ms } => (*id, *ttl_ms, false),
        Command::ReleasePin { id } => {
            let story = stories.entry(*id).or_default();
            story.releases_asked_ms.push(attempt.asked_ms);
            if let Some((at_ms, index, Outcome::Pin { .. })) = answer {
                story.releases_acked.push((at_ms, index));
            }
            return;
        }
        _ => return,
    };
    let story = stories.entry(id).or_default();
    match answer {
        None => story.unknown_grants_ms.push(attempt.asked_ms),
        Some((acked_ms, index, Outcome::Pin { state, expires_ms, .. })) if lives(*state) => {
            let asked_ms = attempt.asked_ms;
            let expires_ms = *expires_ms;
            story.grants.push(Grant { asked_ms, acked_ms, index, ttl_ms, expires_ms, makes });
        }
        Some(_) => {}
    }
}

/// Whether a pin in this state is promised.
pub(crate) fn lives(state: mainstay_types::PinState) -> bool {
    use mainstay_types::PinState;
    !matches!(state, PinState::Expired | PinState::Released | PinState::Denied)
}
