//! The step of a chain with the AES and PMULL instructions of ARMv8.
//!
//! Only `hardware.rs` may call it from outside. It is the same computation as `x86_64.rs`, with AES cut up the way
//! this architecture does it: `AESE` and `AESD` take their key before the S-box, so the last key stands alone.

use core::arch::aarch64::*;
use core::slice::ChunksExact;

use super::SequenceHash;
use super::key::{PAIR_TOKENS, Subkeys};

/// Whether this processor has the instruction sets that the functions here are compiled for: "aes" stands for both.
pub(super) fn detected() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

/// AES-128's keys of rounds.
#[derive(Clone)]
pub(super) struct Cipher([uint8x16_t; 11]);

/// A sum of products of 128-bit polynomials, not reduced yet: 256 bits in three overlapping parts.
#[derive(Clone, Copy)]
struct Sum {
    low: uint64x2_t,
    /// Products of the sums of halves, from which `low` and `high` have to be taken (Karatsuba).
    middle: uint64x2_t,
    high: uint64x2_t,
}

#[inline]
#[target_feature(enable = "aes")]
fn from_u128(number: u128) -> uint64x2_t {
    vcombine_u64(vcreate_u64(number as u64), vcreate_u64((number >> 64) as u64))
}

#[inline]
#[target_feature(enable = "aes")]
fn to_u128(vector: uint64x2_t) -> u128 {
    u128::from(vgetq_lane_u64::<1>(vector)) << 64 | u128::from(vgetq_lane_u64::<0>(vector))
}

#[inline]
#[target_feature(enable = "aes")]
fn multiply_64(a: u64, b: u64) -> uint64x2_t {
    vreinterpretq_u64_p128(vmull_p64(a, b))
}

/// Moves the low half up, zeros below it.
#[inline]
#[target_feature(enable = "aes")]
fn up(vector: uint64x2_t) -> uint64x2_t {
    vextq_u64::<1>(vdupq_n_u64(0), vector)
}

impl Sum {
    #[inline]
    #[target_feature(enable = "aes")]
    fn zero() -> Self {
        let zero = vdupq_n_u64(0);
        Self { low: zero, middle: zero, high: zero }
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn plus_product(self, a: uint64x2_t, b: uint64x2_t) -> Self {
        let (a_low, a_high) = (vgetq_lane_u64::<0>(a), vgetq_lane_u64::<1>(a));
        let (b_low, b_high) = (vgetq_lane_u64::<0>(b), vgetq_lane_u64::<1>(b));
        Self {
            low: veorq_u64(self.low, multiply_64(a_low, b_low)),
            middle: veorq_u64(self.middle, multiply_64(a_low ^ a_high, b_low ^ b_high)),
            high: veorq_u64(self.high, multiply_64(a_high, b_high)),
        }
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn plus_pair(self, tokens: &[u32; PAIR_TOKENS], key: &[u128; 2]) -> Self {
        let [a, b, c, d, e, f, g, h] = tokens.map(u64::from);
        let first = vcombine_u64(vcreate_u64(b << 32 | a), vcreate_u64(d << 32 | c));
        let second = vcombine_u64(vcreate_u64(f << 32 | e), vcreate_u64(h << 32 | g));
        self.plus_product(veorq_u64(first, from_u128(key[0])), veorq_u64(second, from_u128(key[1])))
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn plus_pairs(self, subkeys: &Subkeys, pairs: &[[u32; PAIR_TOKENS]]) -> Self {
        let mut sum = self;
        for (pair, key) in pairs.iter().zip(&subkeys.pairs) {
            sum = sum.plus_pair(pair, key);
        }
        sum
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn plus_tokens(self, subkeys: &Subkeys, segment: &[u32]) -> Self {
        let (pairs, rest) = segment.as_chunks::<PAIR_TOKENS>();
        let sum = self.plus_pairs(subkeys, pairs);
        if let (false, Some(key)) = (rest.is_empty(), subkeys.pairs.get(pairs.len())) {
            let mut pair = [0; PAIR_TOKENS];
            pair[..rest.len()].copy_from_slice(rest);
            return sum.plus_pair(&pair, key);
        }
        sum
    }

    /// Folds the uppermost 64 bits.
    #[inline]
    #[target_feature(enable = "aes")]
    fn folded(self) -> Folded {
        let middle = veorq_u64(self.middle, veorq_u64(self.low, self.high));
        let upper = multiply_64(vgetq_lane_u64::<1>(self.high), FOLD);
        let middle = veorq_u64(middle, up(self.high));
        Folded { low: self.low, middle: veorq_u64(middle, upper) }
    }
}

/// x^128 = x^7 + x^2 + x + 1.
const FOLD: u64 = 0x87;

/// 192 bits of a sum: `middle` lies 64 bits above `low`.
#[derive(Clone, Copy)]
struct Folded {
    low: uint64x2_t,
    middle: uint64x2_t,
}

/// The key of states, and its multiple by x^64: with it the upper half of a state is multiplied like the lower one,
/// and 192 bits hold the product instead of 256.
struct Turn {
    lower: uint64x2_t,
    upper: uint64x2_t,
}

impl Turn {
    #[inline]
    #[target_feature(enable = "aes")]
    fn new(subkeys: &Subkeys) -> Self {
        let lower = from_u128(subkeys.turn);
        Self { lower, upper: Folded { low: vdupq_n_u64(0), middle: lower }.reduced() }
    }
}

impl Folded {
    #[inline]
    #[target_feature(enable = "aes")]
    fn plus(self, reduced: uint64x2_t) -> Self {
        Self { low: veorq_u64(self.low, reduced), middle: self.middle }
    }

    /// Adds a state times its key.
    #[inline]
    #[target_feature(enable = "aes")]
    fn plus_turned(self, state: uint64x2_t, turn: &Turn) -> Self {
        let (low, high) = (vgetq_lane_u64::<0>(state), vgetq_lane_u64::<1>(state));
        let of_low = veorq_u64(self.low, multiply_64(low, vgetq_lane_u64::<0>(turn.lower)));
        let of_middle = veorq_u64(self.middle, multiply_64(low, vgetq_lane_u64::<1>(turn.lower)));
        Self {
            low: veorq_u64(of_low, multiply_64(high, vgetq_lane_u64::<0>(turn.upper))),
            middle: veorq_u64(of_middle, multiply_64(high, vgetq_lane_u64::<1>(turn.upper))),
        }
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn reduced(self) -> uint64x2_t {
        let upper = multiply_64(vgetq_lane_u64::<1>(self.middle), FOLD);
        veorq_u64(upper, veorq_u64(self.low, up(self.middle)))
    }
}

#[target_feature(enable = "aes")]
pub(super) fn step(subkeys: &Subkeys, state: u128, header: u64, segment: &[u32]) -> u128 {
    let sum = Sum::zero()
        .plus_product(from_u128(u128::from(header)), from_u128(subkeys.header))
        .plus_tokens(subkeys, segment)
        .folded();
    let turn = Turn::new(subkeys);
    to_u128(sum.plus_turned(from_u128(state), &turn).reduced())
}

impl Cipher {
    /// Expands a key. The S-box comes from `AESE`, which on four equal columns is nothing else.
    #[target_feature(enable = "aes")]
    pub(super) fn new(key: u128) -> Self {
        let mut words = [key as u32, (key >> 32) as u32, (key >> 64) as u32, (key >> 96) as u32];
        let mut keys = [vreinterpretq_u8_u64(from_u128(key)); 11];
        let rounds = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36];
        for (slot, constant) in keys[1..].iter_mut().zip(rounds) {
            let turned = vreinterpretq_u8_u32(vdupq_n_u32(words[3].rotate_right(8)));
            let boxed = vreinterpretq_u32_u8(vaeseq_u8(turned, vdupq_n_u8(0)));
            words[0] ^= vgetq_lane_u32::<0>(boxed) ^ constant;
            words[1] ^= words[0];
            words[2] ^= words[1];
            words[3] ^= words[2];
            let [a, b, c, d] = words.map(u128::from);
            *slot = vreinterpretq_u8_u64(from_u128(d << 96 | c << 64 | b << 32 | a));
        }
        Self(keys)
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn encrypted(&self, block: uint64x2_t) -> uint64x2_t {
        let mut block = vreinterpretq_u8_u64(block);
        for key in &self.0[..9] {
            block = vaesmcq_u8(vaeseq_u8(block, *key));
        }
        vreinterpretq_u64_u8(veorq_u8(vaeseq_u8(block, self.0[9]), self.0[10]))
    }

    #[target_feature(enable = "aes")]
    pub(super) fn encrypt(&self, block: u128) -> u128 {
        to_u128(self.encrypted(from_u128(block)))
    }

    #[target_feature(enable = "aes")]
    pub(super) fn decrypt(&self, block: u128) -> u128 {
        let mut block = vaesdq_u8(vreinterpretq_u8_u64(from_u128(block)), self.0[10]);
        for key in self.0[1..10].iter().rev() {
            block = vaesdq_u8(vaesimcq_u8(block), vaesimcq_u8(*key));
        }
        to_u128(vreinterpretq_u64_u8(veorq_u8(block, self.0[0])))
    }

    #[target_feature(enable = "aes")]
    pub(super) fn chain(
        &self,
        subkeys: &Subkeys,
        state: u128,
        header: u64,
        blocks: ChunksExact<'_, u32>,
        out: &mut [SequenceHash],
    ) -> u128 {
        // Blocks of whole pairs get a loop of their own. What fills up the others takes a call, across which nothing
        // stays in registers, least of all the state.
        match header as usize % PAIR_TOKENS {
            0 => self.chain_of::<true>(subkeys, state, header, blocks, out),
            _ => self.chain_of::<false>(subkeys, state, header, blocks, out),
        }
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn chain_of<const WHOLE_PAIRS: bool>(
        &self,
        subkeys: &Subkeys,
        state: u128,
        header: u64,
        blocks: ChunksExact<'_, u32>,
        out: &mut [SequenceHash],
    ) -> u128 {
        let turn = Turn::new(subkeys);
        let header = Sum::zero()
            .plus_product(from_u128(u128::from(header)), from_u128(subkeys.header))
            .folded()
            .reduced();
        let mut state = from_u128(state);
        for (slot, block) in out.iter_mut().zip(blocks) {
            let sum = match WHOLE_PAIRS {
                true => Sum::zero().plus_pairs(subkeys, block.as_chunks().0),
                false => Sum::zero().plus_tokens(subkeys, block),
            };
            state = sum.folded().plus(header).plus_turned(state, &turn).reduced();
            slot.0 = to_u128(self.encrypted(state));
        }
        to_u128(state)
    }
}
