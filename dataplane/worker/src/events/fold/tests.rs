//! Tests of run records: what they name, where they end, and the sums beside them.

use super::*;

fn h(n: u128) -> SequenceHash {
    SequenceHash(n)
}

/// Folds blocks with their parents; the sum before the n-th removal is n.
fn fold(list: &[(u128, u128)], event_blocks_max: usize) -> Vec<(BlockEvent, u64)> {
    let mut told = Vec::new();
    let mut fold = Fold::new(Tier::Host, event_blocks_max, |event, sum: Sum| {
        told.push((event, sum.digest));
    });
    let sum = |n: usize| Sum { digest: n as u64, blocks: 0 };
    for (at, (block, parent)) in list.iter().enumerate() {
        fold.add(h(*block), h(*parent), sum(at));
    }
    fold.finish(sum(list.len()));
    told
}

fn truncated(tail: u128, count: u32) -> BlockEvent {
    BlockEvent::Truncated { tail: h(tail), count, tier: Tier::Host }
}

fn removed(blocks: &[u128]) -> BlockEvent {
    BlockEvent::Removed {
        blocks: blocks.iter().copied().map(SequenceHash).collect(),
        tier: Tier::Host,
    }
}

#[test]
fn leaf_first_and_root_first_are_records_of_their_last_block() {
    assert_eq!(fold(&[(13, 12), (12, 11), (11, 10)], 8), [(truncated(13, 3), 3)]);
    assert_eq!(fold(&[(11, 10), (12, 11), (13, 12), (14, 13)], 8), [(truncated(14, 4), 4)]);
}

#[test]
fn two_neighbours_are_no_record_and_join_what_is_loose() {
    assert_eq!(fold(&[(13, 12), (12, 11), (30, 29)], 8), [(removed(&[13, 12, 30]), 3)]);
    assert_eq!(fold(&[], 8), []);
}

#[test]
fn what_is_loose_before_a_record_is_told_with_the_sum_before_it() {
    let list =
        [(40, 1), (50, 1), (13, 12), (12, 11), (11, 10), (60, 1), (23, 22), (22, 21), (21, 20)];
    let expected = [
        (removed(&[40, 50]), 2),
        (truncated(13, 3), 5),
        (removed(&[60]), 6),
        (truncated(23, 3), 9),
    ];
    assert_eq!(fold(&list, 8), expected);
}

#[test]
fn a_chain_that_turns_is_two() {
    let list = [(13, 12), (12, 11), (11, 10), (14, 11), (15, 14), (16, 15)];
    assert_eq!(fold(&list, 8), [(truncated(13, 3), 3), (truncated(16, 3), 6)]);
}

#[test]
fn loose_events_have_no_more_blocks_than_asked_for() {
    let list: Vec<(u128, u128)> = (0..10).map(|n| (100 + 10 * n, 1)).collect();
    let told = fold(&list, 4);
    assert_eq!(told.iter().map(|(event, _)| event.block_count()).collect::<Vec<_>>(), [4, 4, 2]);
    assert_eq!(told.iter().map(|(_, sum)| *sum).collect::<Vec<_>>(), [4, 8, 10]);
}

#[test]
fn a_record_has_a_longest_length() {
    let most = RECORD_BLOCKS_MAX as u128;
    let list: Vec<(u128, u128)> = (10..10 + most + 4).rev().map(|n| (n, n - 1)).collect();
    let told = fold(&list, 8);
    assert_eq!(
        told,
        [
            (truncated(10 + most + 3, RECORD_BLOCKS_MAX as u32), RECORD_BLOCKS_MAX as u64),
            (truncated(13, 4), RECORD_BLOCKS_MAX as u64 + 4),
        ]
    );
}
