//! The step of a chain without any instruction of our choosing: for every processor, and as the yardstick for the
//! others.
//!
//! AES comes from the `aes` crate, which picks instructions itself where it finds them and is constant in time
//! where it does not.

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use super::field::multiply;
use super::key::{PAIR_TOKENS, Subkeys};

/// AES-128 with its keys of rounds.
#[derive(Clone)]
pub(super) struct Cipher(Aes128);

impl Cipher {
    pub(super) fn new(key: u128) -> Self {
        Self(Aes128::new(&Array::from(key.to_le_bytes())))
    }

    pub(super) fn encrypt(&self, block: u128) -> u128 {
        let mut bytes = Array::from(block.to_le_bytes());
        self.0.encrypt_block(&mut bytes);
        u128::from_le_bytes(bytes.into())
    }

    /// Encrypts each block; faster than one by one.
    pub(super) fn encrypt_all<const N: usize>(&self, blocks: [u128; N]) -> [u128; N] {
        let mut bytes = blocks.map(|block| Array::from(block.to_le_bytes()));
        self.0.encrypt_blocks(&mut bytes);
        bytes.map(|block| u128::from_le_bytes(block.into()))
    }

    pub(super) fn decrypt(&self, block: u128) -> u128 {
        let mut bytes = Array::from(block.to_le_bytes());
        self.0.decrypt_block(&mut bytes);
        u128::from_le_bytes(bytes.into())
    }
}

/// The state after a segment; see the construction in the parent module.
pub(super) fn step(subkeys: &Subkeys, state: u128, header: u64, segment: &[u32]) -> u128 {
    let mut sum = multiply(state, subkeys.turn) ^ multiply(u128::from(header), subkeys.header);
    let (pairs, rest) = segment.as_chunks::<PAIR_TOKENS>();
    for (pair, key) in pairs.iter().zip(&subkeys.pairs) {
        sum ^= product(pair, key);
    }
    if let (false, Some(key)) = (rest.is_empty(), subkeys.pairs.get(pairs.len())) {
        let mut pair = [0; PAIR_TOKENS];
        pair[..rest.len()].copy_from_slice(rest);
        sum ^= product(&pair, key);
    }
    sum
}

fn product(pair: &[u32; PAIR_TOKENS], key: &[u128; 2]) -> u128 {
    let [a, b, c, d, e, f, g, h] = *pair;
    multiply(piece([a, b, c, d]) ^ key[0], piece([e, f, g, h]) ^ key[1])
}

/// Four tokens as a number; the first lies lowest.
fn piece(tokens: [u32; 4]) -> u128 {
    tokens.iter().rev().fold(0, |number, token| number << 32 | u128::from(*token))
}
