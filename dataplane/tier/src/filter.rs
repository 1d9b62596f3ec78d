//! What is worth an SSD's wear: a pure decision, and a sketch of what was seen once.
//!
//! It is asked when a block leaves host memory, not when it was computed: by then most agents that will come back soon
//! have, many sessions are over, and what is over is never written. The lifecycle is what saves writes among
//! agents, whose blocks are nearly all used again: an ended session's have a low priority. Where it is not known,
//! the second touch is what there is: a block that nobody used while it was in memory leaves its name in
//! a sketch of bounded size, and is written if it leaves again. What is known to come back (a pin, a high priority, the
//! very start of prompts) is always written, and what has no parent in reach never, since it would serve nobody.
//!
//! The sketch is two Bloom filters, the younger one filled, the older one asked only; when the younger is full,
//! the older is dropped. It can say "seen" of what was not (once in hundreds), which costs one write.

use xxhash_rust::xxh3::xxh3_64;

use crate::{BlockKey, PRIORITY_MAX, Retention, TierError};

/// Bits of the sketch for each name: 16 bits and 4 places make about one error in 400.
const BITS_PER_NAME: u64 = 16;
const PLACES: u64 = 4;
/// The most names that a filter may be asked to remember.
const GHOSTS_MAX: u32 = 1 << 28;

/// The settings of a [`Filter`].
#[derive(Debug, Clone, Copy)]
pub struct FilterSettings {
    /// Touches that the sketch remembers at least; it takes 4 bytes for each.
    pub ghosts: u32,
    /// Below this priority nothing is written.
    pub priority_least: u8,
    /// From this priority on all is written at the first touch.
    pub priority_at_once: u8,
    /// Blocks at the start of prompts that are written at the first touch.
    pub depth_at_once: u32,
    /// Uses since it came to memory from which on a block is written; 0 asks for none.
    pub uses_least: u32,
}

impl Default for FilterSettings {
    fn default() -> Self {
        Self {
            ghosts: 1 << 20,
            priority_least: 30,
            priority_at_once: 80,
            depth_at_once: 0,
            uses_least: 1,
        }
    }
}

/// A block that is about to leave memory.
#[derive(Debug, Clone, Copy)]
pub struct Touch {
    /// Which.
    pub key: BlockKey,
    /// How much it is wanted.
    pub retention: Retention,
    /// How many blocks come before it.
    pub depth: u32,
    /// How often it was used since it came.
    pub uses: u32,
    /// Whether the block before it is in the tier, or may still come there; or there is none.
    pub parent_held: bool,
}

/// Why a block is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Nobody used it, and it was not seen before.
    First,
    /// Its priority is too low.
    Unwanted,
    /// Its parent is not in the tier.
    Orphan,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Write it.
    Write,
    /// Leave it.
    Skip(Skip),
}

/// See the module.
#[derive(Debug)]
pub struct Filter {
    settings: FilterSettings,
    young: Vec<u64>,
    old: Vec<u64>,
    names: u32,
}

impl Filter {
    /// An empty sketch.
    pub fn new(settings: FilterSettings) -> Result<Self, TierError> {
        if !(1..=GHOSTS_MAX).contains(&settings.ghosts) || settings.priority_least > PRIORITY_MAX {
            return Err(TierError::Setting(format!(
                "a filter for {} touches from priority {}; it takes 1 to {GHOSTS_MAX} touches and priorities up to {PRIORITY_MAX}",
                settings.ghosts, settings.priority_least
            )));
        }
        let words = (u64::from(settings.ghosts) * BITS_PER_NAME).div_ceil(64) as usize;
        Ok(Self { settings, young: vec![0; words], old: vec![0; words], names: 0 })
    }

    /// Decides about a touch, and remembers it.
    pub fn decide(&mut self, touch: &Touch, now_ms: u64) -> Verdict {
        let seen = self.note(&touch.key);
        if touch.retention.pinned_at(now_ms) {
            return Verdict::Write;
        }
        let priority = touch.retention.priority_at(now_ms);
        if priority < self.settings.priority_least {
            Verdict::Skip(Skip::Unwanted)
        } else if !touch.parent_held && touch.depth > 0 {
            Verdict::Skip(Skip::Orphan)
        } else if touch.uses >= self.settings.uses_least
            || seen
            || priority >= self.settings.priority_at_once
            || touch.depth < self.settings.depth_at_once
        {
            Verdict::Write
        } else {
            Verdict::Skip(Skip::First)
        }
    }

    /// Decides about a block whose memory ends with the process: a second touch can't come any more, so all that is
    /// wanted and has its parent is written.
    #[must_use]
    pub fn decides_at_end(&self, touch: &Touch, now_ms: u64) -> bool {
        let wanted = touch.retention.priority_at(now_ms) >= self.settings.priority_least;
        touch.retention.pinned_at(now_ms) || wanted && (touch.parent_held || touch.depth == 0)
    }

    /// Remembers a name; whether it was there.
    fn note(&mut self, key: &BlockKey) -> bool {
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&key.namespace.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&key.hash.0.to_le_bytes());
        bytes[32..].copy_from_slice(&key.layout.0.to_le_bytes());
        let first = xxh3_64(&bytes);
        let step = first.rotate_left(32) | 1;
        let bits = self.young.len() as u64 * 64;
        let (mut in_young, mut in_old) = (true, true);
        for place in 0..PLACES {
            let bit = first.wrapping_add(step.wrapping_mul(place)) % bits;
            let (word, mask) = ((bit / 64) as usize, 1 << (bit % 64));
            in_young &= self.young[word] & mask != 0;
            in_old &= self.old[word] & mask != 0;
            self.young[word] |= mask;
        }
        if !in_young {
            self.names += 1;
            if self.names >= self.settings.ghosts {
                std::mem::swap(&mut self.young, &mut self.old);
                self.young.fill(0);
                self.names = 0;
            }
        }
        in_young || in_old
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::{NamespaceId, SequenceHash};

    use super::*;
    use crate::LayoutId;

    fn touch(hash: u128) -> Touch {
        Touch {
            key: BlockKey {
                namespace: NamespaceId(7),
                hash: SequenceHash(hash),
                layout: LayoutId(1),
            },
            retention: Retention::default(),
            depth: 3,
            uses: 0,
            parent_held: true,
        }
    }

    fn filter(ghosts: u32) -> Filter {
        Filter::new(FilterSettings { ghosts, ..FilterSettings::default() }).expect("valid")
    }

    #[test]
    fn the_second_touch_is_written() {
        let mut filter = filter(1000);
        for hash in 0..500 {
            assert_eq!(filter.decide(&touch(hash), 0), Verdict::Skip(Skip::First), "{hash}");
        }
        for hash in 0..500 {
            assert_eq!(filter.decide(&touch(hash), 0), Verdict::Write, "{hash}");
        }
    }

    #[test]
    fn what_is_known_needs_no_second_touch() {
        let mut filter = filter(1000);
        let high = Retention { priority: 90, until_ms: 10, ..Retention::default() };
        let used = Touch { uses: 1, ..touch(9) };
        assert_eq!(filter.decide(&used, 0), Verdict::Write);
        let pinned = Retention { priority: 0, after: 0, until_ms: 0, pinned_until_ms: 10 };
        let low = Retention { after: 10, ..Retention::default() };
        assert_eq!(filter.decide(&Touch { retention: high, ..touch(1) }, 9), Verdict::Write);
        assert_eq!(
            filter.decide(&Touch { retention: high, ..touch(2) }, 10),
            Verdict::Skip(Skip::First)
        );
        let orphan = Touch { parent_held: false, ..touch(3) };
        assert_eq!(filter.decide(&Touch { retention: pinned, ..orphan }, 9), Verdict::Write);
        assert_eq!(filter.decide(&orphan, 9), Verdict::Skip(Skip::Orphan));
        assert_eq!(filter.decide(&Touch { depth: 0, ..orphan }, 9), Verdict::Write);
        for _ in 0..3 {
            let unwanted = Touch { retention: low, ..touch(4) };
            assert_eq!(filter.decide(&unwanted, 0), Verdict::Skip(Skip::Unwanted));
        }
    }

    #[test]
    fn it_forgets_and_seldom_errs() {
        let mut filter = filter(10_000);
        let mut wrong = 0;
        for hash in 0..200_000 {
            wrong += u32::from(filter.decide(&touch(hash), 0) == Verdict::Write);
        }
        assert!(wrong < 2_000, "{wrong} of 200000 were taken for seen");
        assert_eq!(filter.decide(&touch(199_990), 0), Verdict::Write);
        let old = (0..1000).filter(|h| filter.decide(&touch(*h), 0) == Verdict::Write).count();
        assert!(old < 50, "{old} of 1000 old ones are remembered");
    }

    #[test]
    fn settings_have_bounds() {
        for ghosts in [0, GHOSTS_MAX + 1] {
            assert!(Filter::new(FilterSettings { ghosts, ..FilterSettings::default() }).is_err());
        }
    }
}
