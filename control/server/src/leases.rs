//! When each worker was last heard, by this member's monotonic clock.
//!
//! Leases are the leader's alone and are not replicated: a new leader grants everybody a full one, so that a
//! failover never fences a worker that is alive.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mainstay_types::{Epoch, WorkerId};
use parking_lot::Mutex;

/// The leases that this member has granted. As many as there are workers in the state, which has a limit.
pub(crate) struct Leases {
    ttl: Duration,
    heard: Mutex<HashMap<WorkerId, (Epoch, Instant)>>,
}

impl Leases {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, heard: Mutex::default() }
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn ttl_ms(&self) -> u64 {
        u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX)
    }

    /// A worker was heard in an epoch that lives.
    pub(crate) fn renew(&self, worker: WorkerId, epoch: Epoch, now: Instant) {
        self.heard.lock().insert(worker, (epoch, now));
    }

    /// Forgets everything: another leadership starts, and all leases with it.
    pub(crate) fn clear(&self) {
        self.heard.lock().clear();
    }

    /// Drops leases of workers that live no more, starts those of workers not heard yet, and answers with the
    /// workers whose lease is over.
    pub(crate) fn sweep(&self, live: &[(WorkerId, Epoch)], now: Instant) -> Vec<(WorkerId, Epoch)> {
        let mut heard = self.heard.lock();
        let known: HashMap<WorkerId, Epoch> = live.iter().copied().collect();
        heard.retain(|worker, (epoch, _)| known.get(worker) == Some(epoch));
        let mut over = Vec::new();
        for &(worker, epoch) in live {
            let (_, at) = heard.entry(worker).or_insert((epoch, now));
            if now.saturating_duration_since(*at) > self.ttl {
                over.push((worker, epoch));
            }
        }
        over
    }

    /// How much of a worker's lease is left; a full one if it was not heard yet.
    pub(crate) fn left_ms(&self, worker: WorkerId, now: Instant) -> u64 {
        let heard = self.heard.lock();
        let Some((_, at)) = heard.get(&worker) else { return self.ttl_ms() };
        let left = self.ttl.saturating_sub(now.saturating_duration_since(*at));
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(2);

    #[test]
    fn silence_for_longer_than_the_lease_ends_it() {
        let leases = Leases::new(TTL);
        let start = Instant::now();
        let worker = (WorkerId(1), Epoch(1));
        assert!(leases.sweep(&[worker], start).is_empty());
        assert!(leases.sweep(&[worker], start + TTL).is_empty());
        leases.renew(worker.0, worker.1, start + TTL);
        assert!(leases.sweep(&[worker], start + TTL * 2).is_empty());
        let late = start + TTL * 2 + Duration::from_millis(1);
        assert_eq!(leases.sweep(&[worker], late), vec![worker]);
    }

    #[test]
    fn a_new_epoch_has_a_lease_of_its_own() {
        let leases = Leases::new(TTL);
        let start = Instant::now();
        leases.renew(WorkerId(1), Epoch(1), start);
        let later = start + TTL * 3;
        assert!(leases.sweep(&[(WorkerId(1), Epoch(2))], later).is_empty());
        assert_eq!(leases.left_ms(WorkerId(1), later + TTL / 2), 1_000);
    }

    #[test]
    fn a_new_leadership_grants_full_leases() {
        let leases = Leases::new(TTL);
        let start = Instant::now();
        leases.renew(WorkerId(1), Epoch(1), start);
        leases.clear();
        assert!(leases.sweep(&[(WorkerId(1), Epoch(1))], start + TTL * 9).is_empty());
    }

    #[test]
    fn dead_workers_are_forgotten() {
        let leases = Leases::new(TTL);
        let start = Instant::now();
        leases.renew(WorkerId(1), Epoch(1), start);
        leases.sweep(&[], start);
        assert!(leases.heard.lock().is_empty());
    }
}
