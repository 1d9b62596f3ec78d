//! What naming a block costs: the keyed hash in use beside a plain one that anybody can compute.
//!
//! Both chain over a prompt whose tokens are in the cache, as after tokenising. Each round times all forms, so
//! that a change of the processor's clock meets all of them alike.

use std::hint::black_box;
use std::time::{Duration, Instant};

use mainstay_types::hash::BlockHashKey;
use mainstay_types::{HashKey, SequenceHash};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::measure::{Stopwatch, least, median, ratio, round};

/// Blocks of the prompt, about 30,000 tokens.
const BLOCKS: usize = 2_000;
const PROMPTS_PER_ROUND: usize = 5;
const ROUNDS_MIN: usize = 20;

/// One row per form and block size.
pub(super) fn run(budget: Duration) -> Vec<Value> {
    [16, 64].into_iter().flat_map(|block_tokens| sized(block_tokens, budget)).collect()
}

fn sized(block_tokens: usize, budget: Duration) -> [Value; 2] {
    super::say(&format!("hash: blocks of {block_tokens} tokens"));
    let tokens: Vec<u32> =
        (0..(BLOCKS * block_tokens) as u32).map(|i| i.wrapping_mul(0x9e37_79b1) >> 15).collect();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let key = BlockHashKey::new(HashKey(*b"a cluster secret"));
    let (mut plain_names, mut names) = (Vec::with_capacity(BLOCKS), Vec::with_capacity(BLOCKS));
    let mut plain = || plain_chain(black_box(&bytes), 4 * block_tokens, &mut plain_names);
    let mut keyed = || keyed_chain(&key, black_box(&tokens), block_tokens as u32, &mut names);
    let (mut plain_ns, mut keyed_ns) = (Vec::new(), Vec::new());
    let started = Instant::now();
    while plain_ns.len() < ROUNDS_MIN || started.elapsed() < budget {
        plain_ns.push(time(&mut plain));
        keyed_ns.push(time(&mut keyed));
    }
    let row = |form: &str, samples: &[f64]| {
        json!({
            "form": form, "block_tokens": block_tokens, "name_bits": if form == "keyed" { 128 } else { 64 },
            "cpu_ns_per_block": round(median(samples)), "best_cpu_ns_per_block": round(least(samples)),
            "of_plain": round(ratio(least(samples), least(&plain_ns))),
        })
    };
    [row("plain xxh3", &plain_ns), row("keyed", &keyed_ns)]
}

fn time(work: &mut impl FnMut()) -> f64 {
    work();
    let watch = Stopwatch::start();
    (0..PROMPTS_PER_ROUND).for_each(|_| work());
    watch.read().cpu_ns / (PROMPTS_PER_ROUND * BLOCKS) as f64
}

fn plain_chain(bytes: &[u8], block_bytes: usize, names: &mut Vec<u64>) {
    let mut parent = 1;
    names.clear();
    for block in bytes.chunks_exact(block_bytes) {
        parent = xxh3_64_with_seed(block, parent);
        names.push(parent);
    }
}

fn keyed_chain(key: &BlockHashKey, tokens: &[u32], size: u32, names: &mut Vec<SequenceHash>) {
    names.clear();
    key.chain(1, size, tokens, names);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_every_block_and_chain() {
        let (mut plain, mut keyed) = (Vec::new(), Vec::new());
        let mut tokens: Vec<u32> = (0..64).collect();
        let key = BlockHashKey::new(HashKey([1; 16]));
        let mut names = |tokens: &[u32]| {
            let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
            plain_chain(&bytes, 64, &mut plain);
            keyed_chain(&key, tokens, 16, &mut keyed);
            (plain.clone(), keyed.clone())
        };
        let before = names(&tokens);
        tokens[17] += 1;
        let after = names(&tokens);
        assert_eq!((before.0.len(), before.1.len()), (4, 4));
        assert!(before.0[0] == after.0[0] && before.1[0] == after.1[0]);
        assert!((1..4).all(|i| before.0[i] != after.0[i] && before.1[i] != after.1[i]));
    }
}
