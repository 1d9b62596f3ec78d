//! P5: a pin that is asked for again is the same pin: it does not live longer for it, nor shorter.

use super::stories;
use crate::history::History;

pub(crate) fn check(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for (id, story) in stories(history) {
        let mut made: Vec<_> = story.grants.iter().filter(|g| g.makes).collect();
        made.sort_by_key(|g| g.index);
        for pair in made.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            // Only an extension between the two lets it end later.
            let extended = story.grants.iter().any(|g| !g.makes && g.index < second.index)
                || !story.unknown_grants_ms.is_empty();
            if second.expires_ms < first.expires_ms
                || (second.expires_ms > first.expires_ms && !extended)
            {
                found
                    .push(format!("pin {id} ended at another time when asked for again: {pair:?}"));
            }
        }
    }
    found
}
