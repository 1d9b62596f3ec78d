//! The step of a chain with AES-NI and PCLMULQDQ.
//!
//! Only `hardware.rs` may call it from outside. One block waits for the one before it in `chain` for two
//! multiplications only, one after the other; the sums of later blocks and the encryption of earlier states are
//! independent of that and fill the time.

use core::arch::x86_64::*;
use core::slice::ChunksExact;

use super::SequenceHash;
use super::key::{PAIR_TOKENS, Subkeys};

/// Whether this processor has the instruction sets that the functions here are compiled for.
pub(super) fn detected() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// AES-128's keys of rounds.
#[derive(Clone)]
pub(super) struct Cipher([__m128i; 11]);

/// A sum of products of 128-bit polynomials, not reduced yet: 256 bits in three overlapping parts.
#[derive(Clone, Copy)]
struct Sum {
    low: __m128i,
    /// Products of the sums of halves, from which `low` and `high` have to be taken (Karatsuba).
    middle: __m128i,
    high: __m128i,
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq")]
fn from_u128(number: u128) -> __m128i {
    _mm_set_epi64x((number >> 64) as i64, number as i64)
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq")]
fn to_u128(vector: __m128i) -> u128 {
    let low = _mm_cvtsi128_si64(vector) as u64;
    let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(vector, vector)) as u64;
    u128::from(high) << 64 | u128::from(low)
}

impl Sum {
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn zero() -> Self {
        Self { low: _mm_setzero_si128(), middle: _mm_setzero_si128(), high: _mm_setzero_si128() }
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn plus_product(self, a: __m128i, b: __m128i) -> Self {
        let a_halves = _mm_xor_si128(a, _mm_unpackhi_epi64(a, a));
        let b_halves = _mm_xor_si128(b, _mm_unpackhi_epi64(b, b));
        Self {
            low: _mm_xor_si128(self.low, _mm_clmulepi64_si128::<0x00>(a, b)),
            middle: _mm_xor_si128(self.middle, _mm_clmulepi64_si128::<0x00>(a_halves, b_halves)),
            high: _mm_xor_si128(self.high, _mm_clmulepi64_si128::<0x11>(a, b)),
        }
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn plus_pair(self, tokens: &[u32; PAIR_TOKENS], key: &[u128; 2]) -> Self {
        let [a, b, c, d, e, f, g, h] = tokens.map(|token| token as i32);
        let first = _mm_xor_si128(_mm_set_epi32(d, c, b, a), from_u128(key[0]));
        let second = _mm_xor_si128(_mm_set_epi32(h, g, f, e), from_u128(key[1]));
        self.plus_product(first, second)
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn plus_pairs(self, subkeys: &Subkeys, pairs: &[[u32; PAIR_TOKENS]]) -> Self {
        let mut sum = self;
        for (pair, key) in pairs.iter().zip(&subkeys.pairs) {
            sum = sum.plus_pair(pair, key);
        }
        sum
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
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
    #[target_feature(enable = "aes,pclmulqdq")]
    fn folded(self) -> Folded {
        let middle = _mm_xor_si128(self.middle, _mm_xor_si128(self.low, self.high));
        let upper = _mm_clmulepi64_si128::<0x01>(self.high, from_u128(FOLD));
        let middle = _mm_xor_si128(middle, _mm_slli_si128::<8>(self.high));
        Folded { low: self.low, middle: _mm_xor_si128(middle, upper) }
    }
}

/// x^128 = x^7 + x^2 + x + 1.
const FOLD: u128 = 0x87;

/// 192 bits of a sum: `middle` lies 64 bits above `low`.
#[derive(Clone, Copy)]
struct Folded {
    low: __m128i,
    middle: __m128i,
}

/// The key of states, and its multiple by x^64: with it the upper half of a state is multiplied like the lower one,
/// and 192 bits hold the product instead of 256.
struct Turn {
    lower: __m128i,
    upper: __m128i,
}

impl Turn {
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn new(subkeys: &Subkeys) -> Self {
        let lower = from_u128(subkeys.turn);
        Self { lower, upper: Folded { low: _mm_setzero_si128(), middle: lower }.reduced() }
    }
}

impl Folded {
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn plus(self, reduced: __m128i) -> Self {
        Self { low: _mm_xor_si128(self.low, reduced), middle: self.middle }
    }

    /// Adds a state times its key.
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn plus_turned(self, state: __m128i, turn: &Turn) -> Self {
        let of_low = _mm_xor_si128(self.low, _mm_clmulepi64_si128::<0x00>(state, turn.lower));
        let of_middle = _mm_xor_si128(self.middle, _mm_clmulepi64_si128::<0x10>(state, turn.lower));
        Self {
            low: _mm_xor_si128(of_low, _mm_clmulepi64_si128::<0x01>(state, turn.upper)),
            middle: _mm_xor_si128(of_middle, _mm_clmulepi64_si128::<0x11>(state, turn.upper)),
        }
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn reduced(self) -> __m128i {
        let upper = _mm_clmulepi64_si128::<0x01>(self.middle, from_u128(FOLD));
        _mm_xor_si128(upper, _mm_xor_si128(self.low, _mm_slli_si128::<8>(self.middle)))
    }
}

#[target_feature(enable = "aes,pclmulqdq")]
pub(super) fn step(subkeys: &Subkeys, state: u128, header: u64, segment: &[u32]) -> u128 {
    let sum = Sum::zero()
        .plus_product(from_u128(u128::from(header)), from_u128(subkeys.header))
        .plus_tokens(subkeys, segment)
        .folded();
    let turn = Turn::new(subkeys);
    to_u128(sum.plus_turned(from_u128(state), &turn).reduced())
}

impl Cipher {
    /// Expands a key. The S-box comes from the last round of AES, which on four equal columns is nothing else.
    #[target_feature(enable = "aes,pclmulqdq")]
    pub(super) fn new(key: u128) -> Self {
        let mut words = [key as u32, (key >> 32) as u32, (key >> 64) as u32, (key >> 96) as u32];
        let mut keys = [from_u128(key); 11];
        let rounds = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36];
        for (slot, constant) in keys[1..].iter_mut().zip(rounds) {
            let turned = _mm_set1_epi32(words[3].rotate_right(8) as i32);
            let boxed = _mm_aesenclast_si128(turned, _mm_setzero_si128());
            words[0] ^= _mm_cvtsi128_si32(boxed) as u32 ^ constant;
            words[1] ^= words[0];
            words[2] ^= words[1];
            words[3] ^= words[2];
            let [a, b, c, d] = words.map(|word| word as i32);
            *slot = _mm_set_epi32(d, c, b, a);
        }
        Self(keys)
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    fn encrypted(&self, block: __m128i) -> __m128i {
        let mut block = _mm_xor_si128(block, self.0[0]);
        for key in &self.0[1..10] {
            block = _mm_aesenc_si128(block, *key);
        }
        _mm_aesenclast_si128(block, self.0[10])
    }

    #[target_feature(enable = "aes,pclmulqdq")]
    pub(super) fn encrypt(&self, block: u128) -> u128 {
        to_u128(self.encrypted(from_u128(block)))
    }

    #[target_feature(enable = "aes,pclmulqdq")]
    pub(super) fn decrypt(&self, block: u128) -> u128 {
        let mut block = _mm_xor_si128(from_u128(block), self.0[10]);
        for key in self.0[1..10].iter().rev() {
            block = _mm_aesdec_si128(block, _mm_aesimc_si128(*key));
        }
        to_u128(_mm_aesdeclast_si128(block, self.0[0]))
    }

    #[target_feature(enable = "aes,pclmulqdq")]
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
    #[target_feature(enable = "aes,pclmulqdq")]
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
