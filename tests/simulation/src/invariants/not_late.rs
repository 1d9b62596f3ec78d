//! P2: a pin ends at last. By the clocks: no read whose state has a stamp that was made `4 * skew` after the last
//! grant's time was over sees it live. By what clients feel: while nothing is broken, stamps are fresh, so that a
//! pin is gone that much and one tick after its time.

use mainstay_types::ClusterTime;

use super::{RECOVERY_MS, STEP_MS, stories};
use crate::history::History;
use crate::member::TICK;

/// What a tick may take on its way into the state, in calm times.
const WAY_MS: u64 = 200;

pub(crate) fn check(history: &History) -> Vec<String> {
    let stories = stories(history);
    let mut found = Vec::new();
    let slack_ms = 4 * ClusterTime::SKEW_MS_MAX;
    let tick_ms = u64::try_from(TICK.as_millis()).expect("a small constant");
    for attempt in &history.attempts {
        let Some((over_ms, seen)) = attempt.read() else { continue };
        let calm = attempt.asked_ms > history.whole_from_ms + RECOVERY_MS;
        for view in seen.pins.iter().filter(|view| view.live) {
            let Some(story) = stories.get(&view.id) else { continue };
            // What nobody answered may be granted at any time.
            if story.unknown_grants_ms.iter().any(|asked_ms| *asked_ms <= over_ms) {
                continue;
            }
            // A pin that nobody was told of yet may be seen already.
            let open = |g: &super::Grant| {
                g.asked_ms <= over_ms && g.acked_ms + STEP_MS >= attempt.asked_ms
            };
            if story.grants.is_empty() || story.grants.iter().any(open) {
                continue;
            }
            let until = |g: &super::Grant| g.acked_ms + g.ttl_ms + slack_ms;
            let latest_ms = story.grants.iter().map(until).max().unwrap_or(u64::MAX) + 10 * STEP_MS;
            if let Some(stamped_ms) = history.stamped_ms(&seen.time)
                && stamped_ms > latest_ms
            {
                found.push(format!(
                    "pin {} lived at entry {}, stamped at {stamped_ms}, though its time was over at {latest_ms}",
                    view.id, seen.applied
                ));
            }
            if calm && attempt.asked_ms > latest_ms + tick_ms + WAY_MS {
                found.push(format!(
                    "pin {} lived at {}, in calm times, though its time was over at {latest_ms}",
                    view.id, attempt.asked_ms
                ));
            }
        }
    }
    found
}
