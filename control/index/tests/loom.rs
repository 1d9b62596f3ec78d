//! The whole index under a model checker: one writer, one reader, every interleaving and every stale read that the
//! C11 memory model allows (up to a bound on preemptions), on ranges of a few items.
//!
//! Only built with `--cfg loom`, where the crate's atomics are loom's:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p mainstay-index --test loom` with a target folder of its own.
//! Each scenario lists the states that may be seen; what fences and orderings fail to forbid shows as another one.
#![cfg(loom)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_index::{BlockIndex, BlockKey, IndexReader, Overlap};
use mainstay_types::{NamespaceId, Tier, WorkerId};

const NAMESPACE: NamespaceId = NamespaceId(7);
const DEVICE: Tier = Tier::Device;

/// Worker and depth of each overlap.
type Answer = Vec<(u32, u32)>;

fn keys(numbers: &[u64]) -> Vec<BlockKey> {
    // Spread over both halves, as hashes are.
    numbers.iter().map(|n| BlockKey(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

fn store(index: &mut BlockIndex, worker: u32, before: Option<u64>, numbers: &[u64]) {
    let parent = before.map_or(NAMESPACE.0 as u64, |before| keys(&[before])[0].0);
    index.store(WorkerId(worker), NAMESPACE, parent, &keys(numbers), DEVICE);
}

fn remove(index: &mut BlockIndex, worker: u32, numbers: &[u64]) {
    index.remove(WorkerId(worker), &keys(numbers), DEVICE);
}

fn ask(reader: &IndexReader, numbers: &[u64]) -> Answer {
    let mut found: Vec<Overlap> = Vec::new();
    reader.lookup_into(&keys(numbers), &mut found);
    let mut answer: Answer = found.iter().map(|o| (o.worker.0, o.blocks)).collect();
    answer.sort_unstable();
    answer
}

/// Runs `before`, then `write` beside a reader that asks for each of `questions` in turn; answers all that was seen.
fn explore(
    before: fn(&mut BlockIndex),
    write: fn(&mut BlockIndex),
    questions: &'static [&'static [u64]],
) -> BTreeSet<Vec<Answer>> {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let all = Arc::clone(&seen);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 200_000;
    // Two preemptions are one more than any fault found so far has needed; LOOM_MAX_PREEMPTIONS=3 asks for more.
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_duration = builder.max_duration.or(Some(Duration::from_secs(60)));
    let start = std::time::Instant::now();
    let executions = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&executions);
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut index = BlockIndex::new(u64::MAX);
        before(&mut index);
        let reader = index.reader();
        let reading = loom::thread::spawn(move || {
            questions.iter().map(|q| ask(&reader, q)).collect::<Vec<_>>()
        });
        write(&mut index);
        let answers = reading.join().expect("the reader ends");
        let reader = index.reader();
        let last: Vec<Answer> = questions.iter().map(|q| ask(&reader, q)).collect();
        let mut seen = all.lock().expect("no thread of this model panics");
        seen.insert(answers);
        seen.insert(last);
    });
    println!(
        "{} executions in {:?}",
        executions.load(std::sync::atomic::Ordering::Relaxed),
        start.elapsed()
    );
    Arc::try_unwrap(seen).map_or_else(
        |seen| seen.lock().expect("no thread panicked").clone(),
        |seen| seen.into_inner().expect("no thread panicked"),
    )
}

/// All that was seen is allowed, and all that is allowed was seen: a model that explores too little fails too.
fn assert_seen(seen: &BTreeSet<Vec<Answer>>, allowed: &[Vec<Answer>]) {
    let allowed: BTreeSet<Vec<Answer>> = allowed.iter().cloned().collect();
    let wrong: Vec<_> = seen.difference(&allowed).collect();
    let missing: Vec<_> = allowed.difference(seen).collect();
    assert!(wrong.is_empty(), "seen but not allowed: {wrong:?}");
    assert!(missing.is_empty(), "allowed but never seen: {missing:?}");
}

/// A head is published twice, so that the line a reader may still be reading is written again.
#[test]
fn a_head_is_seen_as_it_was_or_as_it_is() {
    let seen = explore(
        |index| {
            store(index, 1, None, &[1, 2, 3]);
            store(index, 2, None, &[1, 2, 3]);
        },
        |index| {
            remove(index, 1, &[3]);
            remove(index, 2, &[3, 2]);
        },
        &[&[1, 2, 3]],
    );
    assert_seen(
        &seen,
        &[vec![vec![(1, 3), (2, 3)]], vec![vec![(1, 2), (2, 3)]], vec![vec![(1, 2), (2, 1)]]],
    );
}

/// A chain goes and another takes its run and its memory.
#[test]
fn a_run_that_is_used_again_is_never_seen_as_both() {
    let seen = explore(
        |index| store(index, 1, None, &[1, 2, 3]),
        |index| {
            remove(index, 1, &[3, 2, 1]);
            store(index, 2, None, &[4, 5]);
        },
        &[&[1, 2, 3], &[4, 5]],
    );
    let (old, new, none) = (vec![(1, 3)], vec![(2, 2)], vec![]);
    assert_seen(
        &seen,
        &[
            vec![old.clone(), none.clone()],
            vec![old, new.clone()],
            vec![none.clone(), none.clone()],
            vec![none, new],
        ],
    );
}

/// A walk over two runs: what the second says may not be newer than what the first said.
#[test]
fn a_walk_over_two_runs_was_true_at_one_instant() {
    let seen = explore(
        |index| {
            store(index, 1, None, &[1, 2]);
            store(index, 2, None, &[1, 2]);
            store(index, 1, Some(2), &[3]);
        },
        |index| {
            remove(index, 1, &[2]);
            store(index, 2, Some(2), &[3]);
        },
        &[&[1, 2, 3]],
    );
    assert_seen(
        &seen,
        &[vec![vec![(1, 3), (2, 2)]], vec![vec![(1, 1), (2, 2)]], vec![vec![(1, 1), (2, 3)]]],
    );
}

/// The head table is built anew while a reader looks at it.
#[test]
fn a_table_that_grows_loses_nothing() {
    let seen = explore(
        |index| store(index, 1, None, &[1, 2]),
        |index| {
            for number in 10..14 {
                store(index, 2, None, &[number]);
            }
        },
        &[&[1, 2]],
    );
    assert_seen(&seen, &[vec![vec![(1, 2)]]]);
}

/// A worker leaves and another gets its place in the bit sets.
#[test]
fn a_slot_that_changes_hands_names_the_right_worker() {
    let seen = explore(
        |index| store(index, 1, None, &[1, 2]),
        |index| {
            index.remove_worker(WorkerId(1));
            store(index, 2, None, &[1]);
        },
        &[&[1, 2]],
    );
    assert_seen(&seen, &[vec![vec![(1, 2)]], vec![vec![]], vec![vec![(2, 1)]]]);
}

/// A run grows under a reader that compares the end of what it asks for.
#[test]
fn a_run_that_grows_is_seen_at_one_length() {
    let seen = explore(
        |index| store(index, 1, None, &[1]),
        |index| {
            store(index, 1, Some(1), &[2]);
            store(index, 1, Some(2), &[3]);
        },
        &[&[1, 2, 3]],
    );
    assert_seen(&seen, &[vec![vec![(1, 1)]], vec![vec![(1, 2)]], vec![vec![(1, 3)]]]);
}

/// A hole gives the first block to another run, and the old run's line is written again: who reads the old slot may
/// not conclude that nobody has the block.
#[test]
fn a_first_block_that_moves_to_another_run_is_always_found() {
    let seen = explore(
        |index| store(index, 1, None, &[1, 2, 3, 4, 5]),
        |index| {
            remove(index, 1, &[2]);
            remove(index, 1, &[5]);
        },
        &[&[1, 2]],
    );
    assert_seen(&seen, &[vec![vec![(1, 2)]], vec![vec![(1, 1)]]]);
}
