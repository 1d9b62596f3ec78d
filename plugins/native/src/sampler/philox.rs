//! Philox 4x32-10, a counter-based random function: its output depends on key and counter alone, so
//! that a draw can be repeated anywhere without the state of a generator.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four random words of a 128-bit counter under a 64-bit key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let low = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let high = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

/// A number in 0..1 for the `count`-th draw under `seed`.
pub(super) fn uniform(seed: u64, count: u64) -> f64 {
    let counter = [count as u32, (count >> 32) as u32, 0, 0];
    let words = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    // The known answers that come with the function's publication.
    #[test]
    fn known_answers_hold() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn draws_fill_the_unit_interval_evenly() {
        let mut bins = [0u32; 10];
        for count in 0..100_000 {
            let draw = uniform(7, count);
            assert!((0.0..1.0).contains(&draw));
            bins[(draw * 10.0) as usize] += 1;
        }
        assert!(bins.iter().all(|n| (9_500..10_500).contains(n)), "{bins:?}");
    }
}
