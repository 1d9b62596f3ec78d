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
    // A thousand looks, because memory rises and falls with compaction: levels are means over tenths.
    let (mut done, mut looks) = (0, Vec::with_capacity(1_000));
    let start = Instant::now();
    while done < block_ops {
        let op = churn.next_op();
        done += op.block_count().max(1);
        apply(&mut index, op);
        if done >= block_ops / 1_000 * (looks.len() as u64 + 1) {
            looks.push(index.memory().total());
        }
    }
    let tenth = |number: usize| {
        let part = &looks[looks.len() * number / 10..looks.len() * (number + 1) / 10];
        (part.iter().sum::<u64>() / part.len() as u64, part.iter().copied().max().unwrap_or(0))
    };
    let levels: Vec<(u64, u64)> = (0..10).map(tenth).collect();
    println!(
        "{done} block operations in {:?}; {} entries; bytes per tenth (mean, most): {levels:?}",
        start.elapsed(),
        index.held_count(),
    );
    let capacity = u64::from(config.workers) * u64::from(config.worker_blocks_max);
    assert!(cfg!(miri) || index.held_count() > capacity / 2, "this is no churn");
    let ((early, early_most), (late, late_most)) = (levels[1], levels[9]);
    assert!(late <= early + early / 10, "{late} bytes at the end, {early} after a tenth");
    assert!(late_most <= early_most + early_most / 4, "{late_most} bytes, once {early_most}");
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
