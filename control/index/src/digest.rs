//! A digest of what a worker holds that does not depend on the order in which it came to hold it.
//!
//! It is the wrapping sum of one scrambled number per (block, tier), so that adding and removing cost one
//! addition each and a worker can keep the same sum beside its engine without sorting anything. It finds drift,
//! not malice: whoever can choose sequence hashes at will could make two sums meet.

use mainstay_types::{SequenceHash, Tier};

use crate::TierSet;

/// What one block in one tier adds to a worker's digest.
#[must_use]
pub fn entry_digest(hash: SequenceHash, tier: Tier) -> u128 {
    let tagged = hash.0 ^ u128::from(tier.number() + 1) << 59;
    let low = scramble(tagged as u64 ^ 0x9e37_79b9_7f4a_7c15);
    let high = scramble((tagged >> 64) as u64 ^ low);
    u128::from(scramble(low ^ high.rotate_left(32))) << 64 | u128::from(high)
}

/// What one block in several tiers adds.
pub(crate) fn tiers_digest(hash: SequenceHash, tiers: TierSet) -> u128 {
    tiers.iter().fold(0, |sum, tier| sum.wrapping_add(entry_digest(hash, tier)))
}

/// A bijection on 64 bits in which every input bit reaches every output bit (two rounds of shift and multiply).
fn scramble(mut word: u64) -> u64 {
    word ^= word >> 32;
    word = word.wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^= word >> 32;
    word = word.wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ word >> 32
}
