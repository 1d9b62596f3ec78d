//! A leader serves reads only after an entry of its own was applied, which moved time past whatever the one before
//! it had promised: the state it answers from was stamped in its term, or a later one.

use crate::history::History;

pub(crate) fn check(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for attempt in &history.attempts {
        let Some((over_ms, seen)) = attempt.read() else { continue };
        let Some(term) = seen.serving_term else { continue };
        let tenure = seen.time.tenure;
        if (tenure.term, tenure.node) < (term, seen.node) {
            found.push(format!(
                "member {} answered at {over_ms} in term {term} from a state that was stamped by {tenure:?}",
                seen.node
            ));
        }
    }
    found
}
