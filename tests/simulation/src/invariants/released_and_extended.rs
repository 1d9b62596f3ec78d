//! P6: a released pin stays gone, and no extension shortens a pin.

use super::{STEP_MS, stories};
use crate::history::History;

pub(crate) fn check(history: &History) -> Vec<String> {
    let stories = stories(history);
    let mut found = Vec::new();
    for attempt in &history.attempts {
        let Some((over_ms, seen)) = attempt.read() else { continue };
        for view in seen.pins.iter().filter(|view| view.live) {
            let Some(story) = stories.get(&view.id) else { continue };
            for (acked_ms, index) in &story.releases_acked {
                if attempt.asked_ms >= acked_ms + STEP_MS {
                    found.push(format!(
                        "pin {} lived at {over_ms} at entry {}, though its release at entry {index} was acknowledged at {acked_ms}",
                        view.id, seen.applied
                    ));
                }
            }
        }
    }
    for (id, story) in &stories {
        let mut grants = story.grants.clone();
        grants.sort_by_key(|g| g.index);
        for pair in grants.windows(2) {
            if pair[1].expires_ms < pair[0].expires_ms {
                found.push(format!("pin {id} was shortened: {pair:?}"));
            }
        }
        for (_, released) in &story.releases_acked {
            if let Some(grant) = grants.iter().find(|g| g.index > *released) {
                found.push(format!(
                    "pin {id} was released at entry {released} and then granted: {grant:?}"
                ));
            }
        }
    }
    found
}
