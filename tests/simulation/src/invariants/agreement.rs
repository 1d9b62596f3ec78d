//! All members agree: an entry that one applied is never another elsewhere, nothing that was acknowledged is
//! missing or different, and states at one log index have one digest, that of a replay of the log.

use super::log_replay::Replay;
use crate::history::History;

pub(crate) fn check(history: &History, replay: &Replay) -> Vec<String> {
    let mut found = history.contradictions.clone();
    for sample in &history.samples {
        if let Some(digest) = replay.digests.get(&sample.applied)
            && *digest != sample.digest
        {
            found.push(format!(
                "member {} had digest {:032x} at entry {}, at {}; the log leads to {digest:032x}",
                sample.node, sample.digest, sample.applied, sample.at_ms
            ));
        }
    }
    for attempt in &history.attempts {
        let Some((command, at_ms, index, outcome)) = attempt.written() else { continue };
        match replay.outcomes.get(&index) {
            Some((logged, replayed)) if logged.same_as(command) && replayed == outcome => {}
            Some((_, replayed)) => found.push(format!(
                "entry {index} was acknowledged at {at_ms} as {command:?} with {outcome:?}, the log has another there: {replayed:?}"
            )),
            None => found.push(format!(
                "entry {index} was acknowledged at {at_ms}, no member has it: {command:?}"
            )),
        }
    }
    found
}
