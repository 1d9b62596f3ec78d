//! Memory over a disk: blocks come back from wherever they are, what is over is not written, an orderly end keeps all.

use std::sync::atomic::{AtomicBool, Ordering};

use mainstay_types::{NamespaceId, SequenceHash};

use super::*;
use crate::disk::tests::Disk;
use crate::{DiskSettings, HostSettings, Layout};

const BLOCK_BYTES: u32 = 5000;

fn layout() -> Layout {
    Layout::new("m", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid")
}

fn key(number: u128) -> BlockKey {
    BlockKey { namespace: NamespaceId(0), hash: SequenceHash(number), layout: layout().id }
}

fn payload(number: u128) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i as u8).wrapping_mul(31).wrapping_add(number as u8)).collect()
}

fn stack(folder: &std::path::Path, blocks: u64, filter: FilterSettings) -> Stack {
    let settings = HostSettings { budget_bytes: blocks * 8192, check_reads: false };
    let host = Arc::new(HostTier::new(layout(), settings).expect("opens"));
    let settings =
        DiskSettings { reserve_bytes: 0, ..DiskSettings::new(folder.to_owned(), 64 * 8192) };
    let disk = Arc::new(DiskTier::open(layout(), settings, 0).expect("opens"));
    let settings = StackSettings { filter, ..StackSettings::default() };
    Stack::new(host, disk, settings).expect("fits")
}

fn put(stack: &Stack, number: u128, retention: Retention) -> Put {
    let bytes = payload(number);
    // Chains of four below the root of the namespace.
    let parent = if number % 4 == 1 { 0 } else { number - 1 };
    let parent = SequenceHash(parent);
    let record = Record { key: key(number), parent, retention, payload: &bytes, sum: None };
    stack.put(&record, 0).expect("the call is right")
}

fn get(stack: &Stack, number: u128) -> Option<Tier> {
    let mut into = vec![0; BLOCK_BYTES as usize];
    let found = stack.get(&key(number), &mut into, 0).expect("the call is right")?;
    assert_eq!(into, payload(number));
    Some(found.tier)
}

fn all() -> FilterSettings {
    FilterSettings { uses_least: 0, ..FilterSettings::default() }
}

#[test]
fn what_leaves_memory_comes_back_from_the_disk() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let stack = stack(folder.path(), 8, all());
    for number in 1..=32 {
        assert_eq!(put(&stack, number, Retention::default()), Put::Stored);
        assert!(stack.flush(0));
    }
    assert_eq!(stack.disk().len(), 24);
    let keys: Vec<BlockKey> = (1..=4).map(key).collect();
    assert_eq!(stack.prefix(&keys), 4);
    assert_eq!(get(&stack, 1), Some(Tier::Disk));
    assert_eq!(get(&stack, 1), Some(Tier::Host));
    for number in 1..=32 {
        // What a block that came back has pushed out is found again once it is written.
        assert!(stack.flush(0));
        assert!(get(&stack, number).is_some(), "block {number}");
    }
    assert_eq!(get(&stack, 33), None);
    assert_eq!(stack.prefix(&[key(1), key(99), key(2)]), 1);
}

#[test]
fn what_is_over_or_was_never_used_is_not_written() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let stack = stack(folder.path(), 8, FilterSettings::default());
    let over = Retention { priority: 0, after: 0, ..Retention::default() };
    for number in 1..=8 {
        assert_eq!(put(&stack, number, Retention::default()), Put::Stored);
        assert!(get(&stack, number).is_some());
    }
    // The second chain's session ends; the third and fourth push both out, and are used by nobody.
    for number in 5..=8 {
        assert!(stack.retain(&key(number), over, 0));
    }
    for number in 9..=24 {
        assert_eq!(put(&stack, number, Retention::default()), Put::Stored);
        assert!(stack.flush(0));
    }
    let mut kept: Vec<u128> = stack.disk().keys().iter().map(|(key, _)| key.hash.0).collect();
    kept.sort_unstable();
    assert_eq!(kept, [1, 2, 3, 4]);
    // They left once, nobody had them, and they come again: this time they are written.
    for number in 9..=24 {
        let _ = put(&stack, number, Retention::default());
        assert!(stack.flush(0));
    }
    assert!(stack.disk().len() > 8, "{} on the disk", stack.disk().len());
}

#[test]
fn an_orderly_end_keeps_what_memory_held() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let first = stack(folder.path(), 8, all());
    let pinned = Retention { pinned_until_ms: 900, ..Retention::default() };
    for number in 1..=8 {
        assert_eq!(put(&first, number, pinned), Put::Stored);
    }
    assert!(first.close(0));
    let second = stack(folder.path(), 8, all());
    for number in 1..=8 {
        assert_eq!(get(&second, number), Some(Tier::Disk));
    }
    let mut into = vec![0; BLOCK_BYTES as usize];
    let found = second.get(&key(3), &mut into, 0).expect("right").expect("found");
    assert_eq!(found.held.retention, pinned, "retention came along, down and up again");
}

#[test]
fn a_crowd_is_served_right_while_writers_lag() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let stack = stack(folder.path(), 16, all());
    let hits = || stack.disk().figures().view().hits;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (stack, hits) = (&stack, &hits);
            scope.spawn(move || {
                let mut state = thread;
                let mut steps = 0;
                // A disk that others use may need its time before it has anything.
                while steps < 2_000 || (hits() < 200 && start.elapsed().as_secs() < 60) {
                    steps += 1;
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let number = 1 + u128::from((state >> 33) % 48);
                    if get(stack, number).is_none() {
                        let _ = put(stack, number, Retention::default());
                    }
                }
            });
        }
    });
    assert!(stack.flush(0));
    let disk = stack.disk().figures().view();
    assert!(disk.hits > 100 && disk.bad_sums == 0, "{disk:?}");
}

#[test]
fn settings_have_bounds_and_layouts_must_agree() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let settings = HostSettings { budget_bytes: 1 << 16, check_reads: false };
    let other = Layout::new("x", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid");
    let disk_settings = DiskSettings::new(folder.path().to_owned(), 64 * 8192);
    let disk = Arc::new(DiskTier::open(layout(), disk_settings, 0).expect("opens"));
    let stranger = Arc::new(HostTier::new(other, settings).expect("opens"));
    let host = Arc::new(HostTier::new(layout(), settings).expect("opens"));
    let answer = Stack::new(stranger, Arc::clone(&disk), StackSettings::default());
    assert!(matches!(answer, Err(TierError::WrongLayout)));
    let none = StackSettings { writers: 0, ..StackSettings::default() };
    let deep = FilterSettings { depth_at_once: 2, ..FilterSettings::default() };
    let deep = StackSettings { filter: deep, ..StackSettings::default() };
    let hasty = StackSettings { wait_ms: 0, ..StackSettings::default() };
    for wrong in [none, deep, hasty] {
        let answer = Stack::new(Arc::clone(&host), Arc::clone(&disk), wrong);
        assert!(matches!(answer, Err(TierError::Setting(_))), "{wrong:?}");
    }
}

#[test]
fn a_pin_on_the_disk_outlives_a_copy_that_knows_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let stack = stack(folder.path(), 1, all());
    assert_eq!(put(&stack, 1, Retention::default()), Put::Stored);
    assert_eq!(put(&stack, 5, Retention::default()), Put::Stored);
    assert!(stack.flush(0) && stack.disk().has(&key(1)) && !stack.host().has(&key(1)));
    let pinned = Retention { pinned_until_ms: 900, ..Retention::default() };
    assert!(stack.retain(&key(1), pinned, 0));
    // The engine brings it again, and it leaves again.
    assert_eq!(put(&stack, 1, Retention::default()), Put::Stored);
    assert_eq!(put(&stack, 9, Retention::default()), Put::Stored);
    let keys = stack.disk().keys();
    let (_, held) = keys.iter().find(|(own, _)| *own == key(1)).expect("on the disk");
    assert_eq!(held.retention, pinned);
}

/// One block of memory on a disk that can hang.
fn on_sim(disk: &Disk, wait_ms: u64) -> Stack {
    let settings = HostSettings { budget_bytes: 8192, check_reads: false };
    let host = Arc::new(HostTier::new(layout(), settings).expect("opens"));
    let settings = StackSettings { filter: all(), wait_ms, queue_blocks: 2, writers: 1 };
    Stack::new(host, Arc::new(disk.open(16)), settings).expect("fits")
}

#[test]
fn a_pin_reaches_a_block_that_is_on_its_way() {
    let disk = Disk::new();
    let stack = on_sim(&disk, 60_000);
    disk.hang(true);
    let pinned = Retention { pinned_until_ms: 900, ..Retention::default() };
    // One is being written, one waits for that, one is in memory.
    for number in [1, 5, 9] {
        assert_eq!(put(&stack, number, Retention::default()), Put::Stored);
    }
    for number in [1, 5] {
        assert!(stack.retain(&key(number), pinned, 0), "{number} is in no tier, and known");
    }
    disk.hang(false);
    assert!(stack.flush(0));
    let kept = stack.disk().keys();
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|(_, held)| held.retention == pinned), "{kept:?}");
    assert!(stack.shared.queued.lock().wanted.is_empty());
}

#[test]
fn nobody_waits_for_ever_for_a_disk_that_hangs() {
    let disk = Disk::new();
    let stack = on_sim(&disk, 100);
    disk.hang(true);
    let start = Instant::now();
    for number in (1..40).step_by(4) {
        assert_eq!(put(&stack, number, Retention::default()), Put::Stored);
    }
    assert!(stack.figures().view().refused > 0, "the queue has its bound");
    assert!(!stack.flush(0));
    assert!(!stack.close(0));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    disk.hang(false);
}

#[test]
fn a_flush_waits_for_what_was_before_it_alone() {
    let disk = Disk::new();
    let stack = on_sim(&disk, 60_000);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stack, done) = (&stack, &done);
        scope.spawn(move || {
            let mut number = 1;
            while !done.load(Ordering::Relaxed) {
                let _ = put(stack, number, Retention::default());
                number += 4;
            }
        });
        for _ in 0..50 {
            assert!(stack.flush(0));
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_end_writes_what_is_wanted_though_nobody_touched_it_twice() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let first = stack(folder.path(), 8, FilterSettings::default());
    let over = Retention { priority: 10, after: 10, ..Retention::default() };
    for number in 1..=6 {
        let retention = if number == 6 { over } else { Retention::default() };
        assert_eq!(put(&first, number, retention), Put::Stored);
    }
    assert!(first.save(0));
    assert_eq!(first.disk().len(), 5, "what is over is not wanted");
    drop(first);
    let second = stack(folder.path(), 8, FilterSettings::default());
    for number in 1..=5 {
        assert_eq!(get(&second, number), Some(Tier::Disk));
    }
}

#[test]
fn a_run_is_read_from_memory_and_disk_as_it_lies() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let first = stack(folder.path(), 8, all());
    for number in 1..=6 {
        assert_eq!(put(&first, number, Retention::default()), Put::Stored);
    }
    assert!(first.close(0));
    let second = stack(folder.path(), 8, all());
    let of = BLOCK_BYTES as usize;
    assert_eq!(get(&second, 1), Some(Tier::Disk));
    assert_eq!(get(&second, 4), Some(Tier::Disk));
    let keys: Vec<BlockKey> = (1..=8).map(key).collect();
    let mut into = vec![0; keys.len() * of];
    let found = second.get_run(&keys, &mut into, 0).expect("right");
    let tiers: Vec<Tier> = found.iter().map(|found| found.tier).collect();
    let (host, disk) = (Tier::Host, Tier::Disk);
    assert_eq!(tiers, [host, disk, disk, host, disk, disk]);
    for (number, bytes) in (1..=6).zip(into.chunks_exact(of)) {
        assert_eq!(bytes, payload(number), "{number}");
    }
    let again = second.get_run(&keys[..6], &mut into[..6 * of], 0).expect("right");
    assert!(again.iter().all(|found| found.tier == Tier::Host), "what was read is in memory");
    assert!(second.get_run(&keys, &mut into[1..], 0).is_err());
}

#[test]
fn moves_tell_what_a_tier_holds() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let stack = stack(folder.path(), 4, all());
    stack.host().keep_moves(100);
    let mut held = BTreeSet::new();
    for number in 1..=9 {
        assert_eq!(put(&stack, number, Retention::default()), Put::Stored);
        let moves = stack.host().take_moves();
        assert!(!moves.lost);
        for moved in moves.moves {
            match moved {
                crate::Move::Came { key, parent } => {
                    let number = key.hash.0;
                    assert_eq!(parent.0, if number % 4 == 1 { 0 } else { number - 1 });
                    assert!(held.insert(key));
                }
                crate::Move::Went { key, since_ms } => {
                    assert!(held.remove(&key) && since_ms == 0);
                }
            }
        }
        let told: BTreeSet<BlockKey> =
            stack.host().keys().into_iter().map(|(key, _)| key).collect();
        assert_eq!(held, told, "after {number}");
    }
    stack.host().keep_moves(3);
    for number in 10..=20 {
        assert_eq!(put(&stack, number, Retention::default()), Put::Stored);
    }
    assert!(stack.host().take_moves().lost, "more moved than there was room for");
    assert!(!stack.host().take_moves().lost);
}
