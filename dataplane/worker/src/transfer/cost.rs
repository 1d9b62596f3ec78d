//! What it costs to bring blocks in, beside computing them: pure.
//!
//! Each kind of source has a time to its first byte, a time per byte, and how much of what it was asked for it gave.
//! They are measured with every load, and fade: after a while without a load what serves most counts again,
//! so that one bad moment keeps nobody from a source for good.

use std::time::Duration;

use parking_lot::Mutex;

/// How long a measurement counts.
const FADES_MS: u64 = 30_000;
/// The weight of a new measurement.
const WEIGHT: f32 = 0.3;
/// The least that a load may hold a request up, and the most.
const LIMIT_MIN: Duration = Duration::from_millis(50);
const LIMIT_MAX: Duration = Duration::from_secs(3);

/// A kind of source that is not of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    /// Another worker.
    Peer,
    /// The store of objects.
    Remote,
}

/// What one kind of source takes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    first_us: f32,
    us_per_mib: f32,
    /// Part of the blocks asked for that came.
    gave: f32,
    measured_ms: u64,
}

impl Rate {
    /// What is taken for true before anything was measured: a neighbour over TCP, a store some milliseconds away.
    const fn usual(kind: Far) -> Self {
        match kind {
            Far::Peer => Self { first_us: 5_000.0, us_per_mib: 2_000.0, gave: 1.0, measured_ms: 0 },
            Far::Remote => {
                Self { first_us: 30_000.0, us_per_mib: 5_000.0, gave: 0.5, measured_ms: 0 }
            }
        }
    }
}

/// One load that was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) asked_blocks: usize,
    pub(crate) got_blocks: usize,
    pub(crate) bytes: usize,
    /// Until the first bytes, where that was seen, or the word that there are none.
    pub(crate) first: Option<Duration>,
    pub(crate) total: Duration,
}

/// What is known of both kinds.
pub(crate) struct Rates {
    rates: Mutex<[Rate; 2]>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { rates: Mutex::new([Rate::usual(Far::Peer), Rate::usual(Far::Remote)]) }
    }
}

/// A source that could be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) kind: Far,
    /// Blocks that it may give.
    pub(crate) blocks: usize,
}

/// What the request is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    pub(crate) block_tokens: u32,
    pub(crate) block_bytes: u64,
    /// As measured; 0 before that.
    pub(crate) prefill_us_per_token: f32,
}

impl Need {
    /// What computing so many blocks takes, where it is known.
    fn compute_us(&self, blocks: usize) -> Option<f32> {
        let known = self.prefill_us_per_token > 0.0;
        known.then_some(blocks as f32 * self.block_tokens as f32 * self.prefill_us_per_token)
    }

    /// How long bringing `blocks` in may hold the request up: no longer than computing them would.
    pub(crate) fn limit(&self, blocks: usize) -> Duration {
        let computing = self.compute_us(blocks).map(|us| Duration::from_micros(us as u64));
        computing.unwrap_or(LIMIT_MAX).clamp(LIMIT_MIN, LIMIT_MAX)
    }
}

impl Rates {
    /// Learns from a load.
    pub(crate) fn learn(&self, kind: Far, made: &Made, now_ms: u64) {
        let mut rates = self.rates.lock();
        let rate = &mut rates[kind as usize];
        if now_ms.saturating_sub(rate.measured_ms) > FADES_MS {
            *rate = Rate::usual(kind);
        }
        let blend = |old: &mut f32, new: f32| *old += WEIGHT * (new - *old);
        let first = match made.first {
            Some(first) => {
                let first = first.as_secs_f32() * 1e6;
                blend(&mut rate.first_us, first);
                first
            }
            None => rate.first_us,
        };
        if made.bytes > 0 {
            let rest = (made.total.as_secs_f32() * 1e6 - first).max(0.0);
            blend(&mut rate.us_per_mib, rest / (made.bytes as f32 / (1 << 20) as f32));
        }
        if made.asked_blocks > 0 {
            blend(&mut rate.gave, made.got_blocks as f32 / made.asked_blocks as f32);
        }
        rate.measured_ms = now_ms.max(1);
    }

    /// What bringing in what an offer promises would take, in microseconds, and how many blocks are likely to come.
    fn expect(&self, offer: Offer, need: &Need, now_ms: u64) -> (f32, f32) {
        let rate = self.rates.lock()[offer.kind as usize];
        let fresh = now_ms.saturating_sub(rate.measured_ms) <= FADES_MS;
        let rate = if fresh { rate } else { Rate::usual(offer.kind) };
        let blocks = offer.blocks as f32 * rate.gave;
        let mib = blocks * need.block_bytes as f32 / (1 << 20) as f32;
        (rate.first_us + mib * rate.us_per_mib, blocks)
    }

    /// The offers worth asking, the best first, as their places in `offers`: those that save most of the time that
    /// computing would take. While nobody knows what computing takes, all are worth it, and most blocks a microsecond
    /// is best.
    pub(crate) fn order(&self, offers: &[Offer], need: &Need, now_ms: u64) -> Vec<usize> {
        let worth = |(at, offer): (usize, &Offer)| {
            let (takes_us, blocks) = self.expect(*offer, need, now_ms);
            let saved = match need.compute_us(1) {
                Some(block_us) => blocks * block_us - takes_us,
                None => blocks / takes_us.max(1.0),
            };
            (saved > 0.0).then_some((saved, at))
        };
        let mut worth: Vec<(f32, usize)> = offers.iter().enumerate().filter_map(worth).collect();
        worth.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        worth.into_iter().map(|(_, at)| at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: Need =
        Need { block_tokens: 16, block_bytes: 2 << 20, prefill_us_per_token: 1_000.0 };

    const fn offer(kind: Far, blocks: usize) -> Offer {
        Offer { kind, blocks }
    }

    fn made(blocks: usize, first_ms: u64, total_ms: u64) -> Made {
        Made {
            asked_blocks: 100,
            got_blocks: blocks,
            bytes: blocks << 21,
            first: Some(Duration::from_millis(first_ms)),
            total: Duration::from_millis(total_ms),
        }
    }

    #[test]
    fn a_load_holds_a_request_no_longer_than_computing_would() {
        assert_eq!(NEED.limit(10), Duration::from_millis(160));
        assert_eq!(NEED.limit(1), LIMIT_MIN);
        assert_eq!(NEED.limit(100_000), LIMIT_MAX);
        assert_eq!(Need { prefill_us_per_token: 0.0, ..NEED }.limit(10), LIMIT_MAX);
    }

    #[test]
    fn the_cheaper_is_asked_first_and_what_computing_beats_is_not() {
        let rates = Rates::default();
        let offers = [offer(Far::Remote, 100), offer(Far::Peer, 100)];
        assert_eq!(rates.order(&offers, &NEED, 1), [1, 0]);
        for _ in 0..20 {
            rates.learn(Far::Peer, &made(100, 500, 5_000), 1);
            rates.learn(Far::Remote, &made(100, 10, 100), 1);
        }
        assert_eq!(rates.order(&offers, &NEED, 2), [0], "a peer takes longer than computing");
        assert_eq!(rates.order(&offers, &NEED, FADES_MS + 2), [1, 0], "it is tried again");
        let quick = Need { prefill_us_per_token: 1.0, ..NEED };
        assert!(rates.order(&offers, &quick, 2).is_empty());
        let unknown = Need { prefill_us_per_token: 0.0, ..NEED };
        assert_eq!(rates.order(&offers, &unknown, 2), [0, 1]);
    }

    #[test]
    fn a_store_that_has_nothing_is_asked_after_those_that_do() {
        let rates = Rates::default();
        for _ in 0..20 {
            rates.learn(Far::Remote, &made(0, 1, 1), 1);
        }
        let offers = [offer(Far::Remote, 100), offer(Far::Peer, 20)];
        assert_eq!(rates.order(&offers, &NEED, 2)[0], 1);
    }
}
