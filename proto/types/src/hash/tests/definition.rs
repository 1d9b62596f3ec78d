//! The definition of names, written as it is read: one bit at a time, one token at a time. It shares nothing with the
//! code that it judges but the crate for AES.

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use crate::{HashKey, NamespaceId};

fn aes(key: u128, block: u128) -> u128 {
    let mut bytes = Array::from(block.to_le_bytes());
    Aes128::new(&Array::from(key.to_le_bytes())).encrypt_block(&mut bytes);
    u128::from_le_bytes(bytes.into())
}

pub(super) fn multiply(a: u128, b: u128) -> u128 {
    let (mut product, mut a) = (0, a);
    for bit in 0..128 {
        if b >> bit & 1 == 1 {
            product ^= a;
        }
        a = a << 1 ^ if a >> 127 == 1 { 0x87 } else { 0 };
    }
    product
}

fn derived(key: HashKey, counter: u64) -> u128 {
    let mut block = *b"block-v2________";
    block.rotate_left(8);
    block[..8].copy_from_slice(&counter.to_le_bytes());
    aes(u128::from_le_bytes(key.0), u128::from_le_bytes(block))
}

fn step(key: HashKey, state: u128, kind: u64, tokens: &[u32]) -> u128 {
    let mut bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    let header = u128::from(kind << 32 | tokens.len() as u64);
    let mut next = multiply(state, derived(key, 2)) ^ multiply(header, derived(key, 1));
    for (pair, halves) in bytes.chunks(32).enumerate() {
        let of = |half: usize| {
            let piece = halves[16 * half..][..16].try_into().unwrap();
            u128::from_le_bytes(piece) ^ derived(key, (3 + 2 * pair + half) as u64)
        };
        next ^= multiply(of(0), of(1));
    }
    next
}

fn name(key: HashKey, state: u128, kind: u64, tokens: &[u32]) -> u128 {
    let segments: Vec<&[u32]> = tokens.chunks(128).collect();
    let (last, before) = segments.split_last().map_or((&[][..], &[][..]), |(l, b)| (*l, b));
    let state = before.iter().fold(state, |state, segment| step(key, state, 2, segment));
    aes(derived(key, 0), step(key, state, kind, last))
}

pub(super) fn block(key: HashKey, parent: u128, tokens: &[u32]) -> u128 {
    let mut bytes = Array::from(parent.to_le_bytes());
    Aes128::new(&Array::from(derived(key, 0).to_le_bytes())).decrypt_block(&mut bytes);
    name(key, u128::from_le_bytes(bytes.into()), 1, tokens)
}

pub(super) fn namespace(key: HashKey, words: &[u32]) -> NamespaceId {
    NamespaceId(name(key, 0, 3, words))
}
