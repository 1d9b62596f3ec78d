//! Cluster time: what TTLs are measured in. It moves only by stamps inside log entries, never by a member's
//! own clock, so that every member expires a pin at the same log index.
//!
//! A stamp carries the leader's monotonic and wall clocks. Within one tenure time advances by the monotonic
//! difference; across tenures by the wall clock less [`ClusterTime::SKEW_MS_MAX`]. If every member's wall clock
//! is within that skew of the truth, a pin that is kept for `ttl + 2 * skew` never ends early.

/// One leadership in one process life. The nonce tells a leader that restarted within its term from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tenure {
    /// Raft term.
    pub term: u64,
    /// Member.
    pub node: u64,
    /// Random for each process start.
    pub boot: u64,
}

/// The clocks of the leader that proposed an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Whose clocks.
    pub tenure: Tenure,
    /// Milliseconds since that process started.
    pub mono_ms: u64,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// The time that the state machine goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterTime {
    /// Milliseconds, near wall time and never going back.
    pub now_ms: u64,
    /// The last stamp's tenure.
    pub tenure: Tenure,
    /// The last stamp's monotonic clock.
    pub mono_ms: u64,
}

impl ClusterTime {
    /// How far a member's wall clock may be off.
    pub const SKEW_MS_MAX: u64 = 250;

    /// Moves on by a stamp; the result is never less than before.
    #[must_use]
    pub fn advance(self, stamp: Stamp) -> Self {
        let elapsed_ms = if stamp.tenure == self.tenure {
            stamp.mono_ms.saturating_sub(self.mono_ms)
        } else {
            0
        };
        let by_mono = self.now_ms.saturating_add(elapsed_ms);
        let by_wall = stamp.wall_ms.saturating_sub(Self::SKEW_MS_MAX);
        let mono_ms = if stamp.tenure == self.tenure {
            self.mono_ms.max(stamp.mono_ms)
        } else {
            stamp.mono_ms
        };
        Self { now_ms: by_mono.max(by_wall), tenure: stamp.tenure, mono_ms }
    }

    /// When a lease that starts now and lasts `ttl_ms` ends.
    #[must_use]
    pub fn expiry(self, ttl_ms: u64) -> u64 {
        self.now_ms.saturating_add(ttl_ms).saturating_add(2 * Self::SKEW_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(term: u64, mono_ms: u64, wall_ms: u64) -> Stamp {
        Stamp { tenure: Tenure { term, node: 1, boot: 1 }, mono_ms, wall_ms }
    }

    #[test]
    fn a_wall_clock_that_jumps_back_does_not_stop_time() {
        let t = ClusterTime::default().advance(stamp(1, 0, 10_000));
        let t = t.advance(stamp(1, 500, 1_000));
        assert_eq!(t.now_ms, 10_250);
    }

    #[test]
    fn a_new_leader_whose_clock_is_behind_never_moves_time_back() {
        let t = ClusterTime::default().advance(stamp(1, 0, 10_000));
        let u = t.advance(stamp(2, 99_999, 9_600));
        assert_eq!(u.now_ms, t.now_ms);
        assert_eq!(u.advance(stamp(2, 100_099, 9_700)).now_ms, t.now_ms + 100);
    }

    #[test]
    fn reordered_stamps_of_one_tenure_count_once() {
        let t = ClusterTime::default().advance(stamp(1, 100, 5_000));
        let t = t.advance(stamp(1, 90, 4_990)).advance(stamp(1, 110, 5_010));
        assert_eq!(t.now_ms, 4_760);
    }
}
