//! P1: a pin that was acknowledged is there in every linearizable read that began after that and was over before
//! its time, counted from when it was asked for.
//!
//! A retry of a pin that is there begins nothing anew, so that only the first grant of its making counts, which is
//! the one with the lowest log index.

use super::{STEP_MS, stories};
use crate::history::History;

pub(crate) fn check(history: &History) -> Vec<String> {
    let stories = stories(history);
    let mut found = Vec::new();
    for attempt in &history.attempts {
        let Some((over_ms, seen)) = attempt.read() else { continue };
        for view in seen.pins.iter().filter(|view| !view.live) {
            let Some(story) = stories.get(&view.id) else { continue };
            if story.releases_asked_ms.iter().any(|asked_ms| *asked_ms <= over_ms) {
                continue;
            }
            // Earlier unanswered tries may have made it, so that its time may run since then.
            let since_ms = story.unknown_grants_ms.first().copied().unwrap_or(u64::MAX);
            let first = story.grants.iter().filter(|g| g.makes).map(|g| g.index).min();
            for grant in story.grants.iter().filter(|g| !g.makes || Some(g.index) == first) {
                let from_ms =
                    if grant.makes { grant.asked_ms.min(since_ms) } else { grant.asked_ms };
                let promised = attempt.asked_ms >= grant.acked_ms + STEP_MS
                    && over_ms + STEP_MS < from_ms + grant.ttl_ms;
                if promised {
                    found.push(format!(
                        "pin {} was gone at {over_ms} for member {} at entry {} ({:?}): {grant:?}",
                        view.id, seen.node, seen.applied, seen.time
                    ));
                }
            }
        }
    }
    found
}
