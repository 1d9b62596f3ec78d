//! A small seeded generator, so that a run's faults and requests can be drawn again from the seed it printed.

use std::ops::Range;
use std::time::Duration;

/// SplitMix64: every seed is a good one.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed that `MAINSTAY_SEED` names, else one of the clock's.
    pub fn seed_of_run() -> u64 {
        let asked = std::env::var("MAINSTAY_SEED").ok();
        asked.map_or_else(
            || {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.map_or(1, |d| u64::from(d.subsec_nanos()) ^ d.as_secs())
            },
            |text| text.parse().expect("MAINSTAY_SEED is a number"),
        )
    }

    /// A generator whose numbers have nothing to do with this one's.
    pub fn fork(&mut self) -> Self {
        Self(self.draw())
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next 128 bits.
    pub fn next_u128(&mut self) -> u128 {
        u128::from(self.draw()) << 64 | u128::from(self.draw())
    }

    /// A number of a range that is not empty.
    pub fn pick(&mut self, range: Range<u64>) -> u64 {
        range.start + self.draw() % (range.end - range.start)
    }

    /// A time of a range in milliseconds.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.pick(range))
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.pick(0..100) < chance
    }

    /// One of a list that is not empty.
    pub fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        let at = usize::try_from(self.pick(0..list.len() as u64)).expect("lists fit memory");
        &list[at]
    }
}
