//! P8: a linearizable read knows of everything that was acknowledged before it began, writes and reads.

use super::STEP_MS;
use crate::history::{Answer, History};

pub(crate) fn check(history: &History) -> Vec<String> {
    // Answers by when they were there, with the highest index so far.
    let mut known: Vec<(u64, u64)> = history
        .attempts
        .iter()
        .filter_map(|a| match &a.answer {
            Some((at_ms, Answer::Written(index, _))) => Some((*at_ms, *index)),
            Some((at_ms, Answer::Read(seen))) => Some((*at_ms, seen.applied)),
            None => None,
        })
        .collect();
    known.sort_unstable();
    let mut highest = 0;
    for (_, index) in &mut known {
        highest = highest.max(*index);
        *index = highest;
    }
    let mut found = Vec::new();
    for attempt in &history.attempts {
        let Some((over_ms, seen)) = attempt.read() else { continue };
        let before = known.partition_point(|(at_ms, _)| at_ms + STEP_MS <= attempt.asked_ms);
        let index = before.checked_sub(1).map_or(0, |last| known[last].1);
        if seen.applied < index {
            found.push(format!(
                "member {} answered at {over_ms} as of entry {}, though entry {index} was acknowledged before {}",
                seen.node, seen.applied, attempt.asked_ms
            ));
        }
    }
    found
}
