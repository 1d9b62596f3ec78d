//! How old what a replica knows may be, without trusting any two clocks to agree.
//!
//! A replica asks somebody nearer to the leader, notes on its own monotonic clock when it asked, and is told a log
//! index and an age: everything acknowledged until that long before the answer lies at or before that index. Whatever
//! the way took, everything acknowledged until *asked minus age* does, and once the replica has applied that index it
//! has it all. Ages only ever come out too high, by the way there and back; a replica that is cut off hears no answers,
//! and its age grows with its clock.

use std::collections::VecDeque;

use mainstay_types::LogIndex;

/// Answers that wait for the replica to apply what they tell of.
const TOLD_MAX: usize = 64;

/// What a replica was told, and what of it has arrived. Times are milliseconds of one clock of the replica's own.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    /// Everything acknowledged until then is applied.
    known_ms: Option<u64>,
    told: VecDeque<(LogIndex, u64)>,
}

impl Freshness {
    /// Takes an answer: everything acknowledged until `until_ms` lies at or before `log_index`.
    pub fn note(&mut self, log_index: LogIndex, until_ms: u64) {
        let full = self.told.len() >= TOLD_MAX;
        match self.told.back_mut() {
            Some((last, known_ms)) if *last == log_index => *known_ms = until_ms.max(*known_ms),
            // A replica that is far behind has enough to wait for; what it missed here it is told again.
            Some(_) if full => {}
            _ => self.told.push_back((log_index, until_ms)),
        }
    }

    /// How old the state at `applied` is at most; `None` before the first answer that it has caught up with.
    #[must_use]
    pub fn age_ms(&mut self, applied: LogIndex, now_ms: u64) -> Option<u64> {
        self.told.retain(|(log_index, until_ms)| {
            let reached = *log_index <= applied;
            if reached {
                self.known_ms = self.known_ms.max(Some(*until_ms));
            }
            !reached
        });
        self.known_ms.map(|known_ms| now_ms.saturating_sub(known_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_once_its_index_is_applied() {
        let mut fresh = Freshness::default();
        assert_eq!(fresh.age_ms(LogIndex(9), 5_000), None);
        fresh.note(LogIndex(10), 1_000);
        assert_eq!(fresh.age_ms(LogIndex(9), 1_100), None);
        assert_eq!(fresh.age_ms(LogIndex(10), 1_200), Some(200));
        fresh.note(LogIndex(12), 1_250);
        assert_eq!(fresh.age_ms(LogIndex(11), 1_300), Some(300));
        assert_eq!(fresh.age_ms(LogIndex(12), 1_300), Some(50));
    }

    #[test]
    fn a_replica_that_hears_nothing_grows_older() {
        let mut fresh = Freshness::default();
        fresh.note(LogIndex(1), 1_000);
        for now_ms in [1_000, 2_000, 60_000] {
            assert_eq!(fresh.age_ms(LogIndex(7), now_ms), Some(now_ms - 1_000));
        }
        // Somebody staler than itself makes it no younger, and no older.
        fresh.note(LogIndex(5), 500);
        assert_eq!(fresh.age_ms(LogIndex(7), 60_000), Some(59_000));
    }

    #[test]
    fn a_replica_far_behind_keeps_few_answers_and_never_claims_too_much() {
        let mut fresh = Freshness::default();
        for n in 1..10_000 {
            fresh.note(LogIndex(n * 10), n);
        }
        assert!(fresh.told.len() <= TOLD_MAX);
        assert_eq!(fresh.age_ms(LogIndex(25), 20_000), Some(20_000 - 2));
        assert_eq!(fresh.age_ms(LogIndex(100_000), 20_000), Some(20_000 - TOLD_MAX as u64));
        fresh.note(LogIndex(100_000), 15_000);
        assert_eq!(fresh.age_ms(LogIndex(100_000), 20_000), Some(5_000));
    }
}
