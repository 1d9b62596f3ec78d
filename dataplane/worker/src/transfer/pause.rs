//! Sources that failed are left alone for a while, twice as long each time: pure.

use std::collections::HashMap;

/// The first pause, and the longest.
const PAUSE_MS: u64 = 5_000;
const PAUSE_MS_MAX: u64 = 60_000;
/// A source that was well for so long after its pause begins anew.
const FORGIVEN_MS: u64 = 60_000;
/// Sources that are remembered.
const SOURCES_MAX: usize = 256;

struct Pause {
    until_ms: u64,
    length_ms: u64,
}

/// The sources that failed.
#[derive(Default)]
pub(crate) struct Pauses {
    sources: HashMap<String, Pause>,
}

impl Pauses {
    /// Whether a source is to be left alone.
    pub(crate) fn holds(&self, source: &str, now_ms: u64) -> bool {
        self.sources.get(source).is_some_and(|pause| now_ms < pause.until_ms)
    }

    /// A source failed, or was too late with everything.
    pub(crate) fn failed(&mut self, source: &str, now_ms: u64) {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(source) {
            self.sources.retain(|_, pause| now_ms < pause.until_ms);
            if self.sources.len() >= SOURCES_MAX {
                // Each costs a try then, which is bounded, too.
                self.sources.clear();
            }
        }
        let pause = self
            .sources
            .entry(source.to_owned())
            .or_insert(Pause { until_ms: now_ms, length_ms: 0 });
        if now_ms.saturating_sub(pause.until_ms) > FORGIVEN_MS {
            pause.length_ms = 0;
        }
        pause.length_ms = (pause.length_ms * 2).clamp(PAUSE_MS, PAUSE_MS_MAX);
        pause.until_ms = now_ms + pause.length_ms;
    }

    /// A source is well.
    pub(crate) fn well(&mut self, source: &str) {
        self.sources.remove(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_end_and_are_forgiven() {
        let mut pauses = Pauses::default();
        assert!(!pauses.holds("a", 0));
        pauses.failed("a", 0);
        assert!(pauses.holds("a", PAUSE_MS - 1) && !pauses.holds("a", PAUSE_MS));
        assert!(!pauses.holds("b", 0));
        pauses.failed("a", PAUSE_MS);
        assert!(pauses.holds("a", 3 * PAUSE_MS - 1) && !pauses.holds("a", 3 * PAUSE_MS));
        for _ in 0..70 {
            pauses.failed("a", 0);
        }
        assert!(!pauses.holds("a", PAUSE_MS_MAX));
        pauses.failed("a", PAUSE_MS_MAX + FORGIVEN_MS + 1);
        assert!(!pauses.holds("a", PAUSE_MS_MAX + FORGIVEN_MS + 1 + PAUSE_MS));
        pauses.well("a");
        assert!(!pauses.holds("a", 0));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room() {
        let mut pauses = Pauses::default();
        for source in 0..3 * SOURCES_MAX {
            pauses.failed(&source.to_string(), 0);
        }
        assert!(pauses.sources.len() <= SOURCES_MAX);
    }
}
