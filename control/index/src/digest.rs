//! A digest of what a worker holds that does not depend on the order in which it came to hold it.
//!
//! It is the wrapping sum of one number per (block, tier): a factor of the tier times the block's key less its
//! parent's. Over a stretch of a chain the sum telescopes, so the index pays two multiplications for a run of any
//! length, and a worker can keep the same sum beside its engine. No two different sets sum alike by structure: in
//! what one has and the other lacks, the deepest block is nobody's parent. It finds drift, not malice.

use mainstay_types::Tier;

/// Odd, so that no bit of a key is lost.
const FACTORS: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0xd6e8_feb8_6659_fd93, 0xff51_afd7_ed55_8ccd];

/// What the blocks after `before` up to `last`, a stretch of one chain, add in one tier.
#[must_use]
#[inline]
pub fn stretch_digest(last: u64, before: u64, tier: Tier) -> u64 {
    last.wrapping_sub(before).wrapping_mul(FACTORS[tier.number() as usize])
}

/// What one block adds in one tier.
#[must_use]
pub fn entry_digest(key: u64, parent: u64, tier: Tier) -> u64 {
    stretch_digest(key, parent, tier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_the_sum_of_its_blocks() {
        let keys = [3, 99, 12, u64::MAX, 7];
        for tier in Tier::ALL {
            let sum = keys
                .windows(2)
                .fold(0_u64, |sum, pair| sum.wrapping_add(entry_digest(pair[1], pair[0], tier)));
            assert_eq!(stretch_digest(7, 3, tier), sum);
        }
    }

    #[test]
    fn tiers_differ() {
        let all: std::collections::BTreeSet<u64> =
            Tier::ALL.into_iter().map(|tier| entry_digest(5, 1, tier)).collect();
        assert_eq!(all.len(), 4);
    }
}
