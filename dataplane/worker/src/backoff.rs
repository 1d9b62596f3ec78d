//! Pauses that grow while something keeps failing, so that a fault elsewhere is not answered with a storm.

use std::time::Duration;

/// A pause that doubles up to a limit.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Starts at `first_ms`, ends at `most_ms`.
    pub(crate) const fn new(first_ms: u64, most_ms: u64) -> Self {
        let first = Duration::from_millis(first_ms);
        Self { next: first, first, most: Duration::from_millis(most_ms) }
    }

    /// The pause to make now; the next one is longer.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.most);
        pause
    }

    /// It works again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let mut backoff = Backoff::new(100, 300);
        let pauses: Vec<u128> = (0..4).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.next_pause().as_millis(), 100);
    }
}
