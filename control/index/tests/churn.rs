//! A day of agents in fast motion: the index must not grow while what it holds does not.
//!
//! Stretches split, shrink, are freed and found again millions of times; an arena that leaks a little each time, or
//! runs that never merge again, would show as memory that is higher at the end than after the first tenth.
//! MAINSTAY_LONG=1 asks for a thousand million block operations on 64 workers, MAINSTAY_OPS=N for N.

use std::time::Instant;

use mainstay_index::BlockIndex;
use mainstay_index::churn::{Churn, ChurnConfig, ChurnOp};
use mainstay_types::Tier;

fn apply(index: &mut BlockIndex, op: ChurnOp<'_>) {
    match op {
        ChurnOp::Stored { worker, namespace, parent, blocks } => {
            index.store(worker, namespace, parent, blocks, Tier::Device);
        }
        ChurnOp::Removed { worker, blocks } => {
            index.remove(worker, blocks, Tier::Device);
        }
        ChurnOp::Cleared { worker } => {
            index.remove_worker(worker);
        }
    }
}

fn plan() -> (ChurnConfig, u64) {
    let long = std::env::var("MAINSTAY_LONG").is_ok_and(|text| text == "1");
    let ops = std::env::var("MAINSTAY_OPS").ok().and_then(|text| text.parse().ok());
    if long {
        return (ChurnConfig::default(), ops.unwrap_or(1_000_000_000));
    }
    let config = ChurnConfig {
        workers: 16,
        worker_blocks_max: 8_192,
        sessions: 300,
        ..ChurnConfig::default()
    };
    (config, ops.unwrap_or(if cfg!(miri) { 3_000 } else { 20_000_000 }))
}

#[test]
fn memory_does_not_creep() {
    let (config, block_ops) = plan();
    let mut churn = Churn::new(config);
    let mut index = BlockIndex::new(u64::MAX);
    let (mut done, mut early, mut highest) = (0, None, 0);
    let start = Instant::now();
    let mut next_look = block_ops / 100;
    while done < block_ops {
        let op = churn.next_op();
        done += op.block_count().max(1);
        apply(&mut index, op);
        if done >= next_look {
            next_look += block_ops / 100;
            let now = index.memory().total();
            highest = now.max(highest);
            if early.is_none() && done >= block_ops / 10 {
                early = Some((now, index.held_count()));
            }
        }
    }
    let (early, early_held) = early.unwrap_or_default();
    let (late, late_held) = (index.memory().total(), index.held_count());
    println!(
        "{done} block operations in {:?}; bytes after a tenth {early} ({early_held} entries), at the end {late} ({late_held} entries), most {highest}",
        start.elapsed()
    );
    let capacity = u64::from(config.workers) * u64::from(config.worker_blocks_max);
    assert!(cfg!(miri) || late_held > capacity / 2, "only {late_held} entries: this is no churn");
    // Occupancy moves a little; memory may move with it and by a tenth more.
    let allowed = early as f64 * 1.1 * (late_held as f64 / early_held as f64).max(1.0);
    assert!(late as f64 <= allowed, "{late} bytes at the end, {early} after a tenth");
    for worker in index.workers().collect::<Vec<_>>() {
        index.remove_worker(worker);
    }
    assert_eq!((index.held_count(), index.block_count()), (0, 0));
}

/// Twice the same seed is twice the same stream, and another seed is another.
#[test]
fn the_stream_follows_from_its_seed() {
    let digest = |seed: u64| {
        let mut churn =
            Churn::new(ChurnConfig { seed, sessions: 20, workers: 3, ..ChurnConfig::default() });
        let mut sum = 0_u64;
        for _ in 0..2_000 {
            if let ChurnOp::Stored { blocks, .. } | ChurnOp::Removed { blocks, .. } =
                churn.next_op()
            {
                sum = blocks.iter().fold(sum, |sum, key| sum.rotate_left(5) ^ key.0);
            }
        }
        sum
    };
    assert_eq!(digest(3), digest(3));
    assert_ne!(digest(3), digest(4));
}
