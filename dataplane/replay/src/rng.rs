//! Seeded randomness: one small generator, so that a seed means the same in every version of every library.

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads the bits of a number over all of another; never maps two numbers to one.
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// A generator with 64 bits of state.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(STEP)))
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(end)) >> 64) as u64
    }

    /// A number in (0, 1].
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.draw() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A draw around `median`: its logarithm is spread by `sigma`. Between 1 and `most`.
    pub(crate) fn around(&mut self, median: f64, sigma: f64, most: u32) -> u32 {
        let turn = core::f64::consts::TAU * self.unit();
        let normal = (-2.0 * self.unit().ln()).sqrt() * turn.cos();
        (median * (sigma * normal).exp()).clamp(1.0, f64::from(most)) as u32
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_repeat_and_keep_their_bounds() {
        let draws = |seed| (0..8).map(|_| 0).scan(Rng::new(seed), |rng, _: u64| Some(rng.draw()));
        assert!(draws(1).eq(draws(1)) && !draws(1).eq(draws(2)));
        let mut rng = Rng::new(3);
        assert_eq!(rng.below(0), 0);
        assert!((0..1_000).all(|_| rng.below(7) < 7 && rng.unit() > 0.0 && rng.unit() <= 1.0));
        let mut sizes: Vec<u32> = (0..2_001).map(|_| rng.around(100.0, 1.0, 5_000)).collect();
        sizes.sort_unstable();
        assert!((85..118).contains(&sizes[1_000]), "median {}", sizes[1_000]);
        assert!(sizes[0] >= 1 && sizes[2_000] <= 5_000);
    }
}
