//! Which of the traces that begin here are exported: a share of them, and so many a second at most.
//!
//! A trace costs what its spans cost, some 40 us of processor time in all processes together. A share alone would let
//! that grow with the load, so that a cluster is slowest to watch when it is slowest anyway.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How many of the traces that begin in a process are exported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The share of them, from 0 to 1.
    pub share: f64,
    /// In each second at most.
    pub per_second: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { share: 1.0, per_second: 100 }
    }
}

/// Decides for traces that begin here; what a client or another process says of its own counts without it.
///
/// It is asked before there is a span: one that nobody will see costs no number, no clock and no header.
#[derive(Debug)]
pub(crate) struct Sampler {
    share: f64,
    /// Another for each process, so that gateways behind one balancer do not take the same ones of a pattern.
    seed: RandomState,
    asked: AtomicU64,
    rate: Rate,
    start: Instant,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self {
            share: sampling.share,
            seed: RandomState::new(),
            asked: AtomicU64::new(0),
            rate: Rate { per_second: sampling.per_second, taken: AtomicU64::new(0) },
            start: Instant::now(),
        }
    }

    /// Whether the trace that would begin now is exported.
    pub(crate) fn takes(&self) -> bool {
        self.is_of_share() && self.rate.takes(self.start.elapsed().as_secs())
    }

    fn is_of_share(&self) -> bool {
        if self.share >= 1.0 {
            return true;
        }
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        // 53 bits, all of which a double can tell apart.
        let point = (self.seed.hash_one(asked) >> 11) as f64 / (1_u64 << 53) as f64;
        point < self.share
    }
}

/// So many in each second.
#[derive(Debug)]
struct Rate {
    per_second: u32,
    /// The second, and behind it in 32 bits how many it has had.
    taken: AtomicU64,
}

impl Rate {
    /// Whether one more fits into this second.
    fn takes(&self, second: u64) -> bool {
        let fresh = second << 32;
        let next = |taken: u64| {
            let taken = taken.max(fresh);
            let many = taken as u32;
            (many < self.per_second).then_some(taken + 1)
        };
        self.taken.try_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32) -> Rate {
        Rate { per_second, taken: AtomicU64::new(0) }
    }

    #[test]
    fn a_share_of_them_is_taken() {
        let took = |share| {
            let sampler = Sampler::new(Sampling { share, per_second: u32::MAX });
            (0..10_000).filter(|_| sampler.takes()).count()
        };
        assert_eq!((took(0.0), took(1.0)), (0, 10_000));
        // Six standard deviations.
        assert!((2_240..=2_760).contains(&took(0.25)), "a quarter");
    }

    #[test]
    fn each_second_has_its_own_and_none_is_saved_up() {
        let three = rate(3);
        let took = |second| (0..10).filter(|_| three.takes(second)).count();
        assert_eq!([took(0), took(1), took(1), took(9)], [3, 3, 0, 3]);
        // A thread that looked at the clock before others and comes after them.
        assert_eq!(took(8), 0);
        assert!(!rate(0).takes(5));
        let all = rate(u32::MAX);
        assert!((0..1_000).all(|_| all.takes(5)));
    }

    #[test]
    fn at_once_no_more_are_taken_than_there_are() {
        let rate = rate(1_000);
        let took = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mine = (0..1_000).filter(|_| rate.takes(7)).count();
                    took.fetch_add(mine as u64, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(took.into_inner(), 1_000);
    }
}
