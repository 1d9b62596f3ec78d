//! Host memory: what goes in comes out, what is too much goes by worth, what breaks is not served.

use mainstay_types::{NamespaceId, SequenceHash};

use super::*;
use crate::sum;

const BLOCK_BYTES: u32 = 5000;

fn layout() -> Layout {
    Layout::new("m", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid")
}

fn tier(blocks: u64, check_reads: bool) -> HostTier {
    let settings = HostSettings { budget_bytes: blocks * 8192 + 100, check_reads };
    HostTier::new(layout(), settings).expect("opens")
}

fn key(number: u128) -> BlockKey {
    BlockKey { namespace: NamespaceId(1), hash: SequenceHash(number), layout: layout().id }
}

fn payload(number: u128) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i as u8).wrapping_mul(31).wrapping_add(number as u8)).collect()
}

fn put(tier: &HostTier, number: u128, parent: u128, retention: Retention, now_ms: u64) -> Put {
    let bytes = payload(number);
    let parent = SequenceHash(parent);
    let record = Record { key: key(number), parent, retention, payload: &bytes, sum: None };
    tier.put(&record, now_ms).expect("the call is right")
}

fn get(tier: &HostTier, number: u128) -> Option<Vec<u8>> {
    let mut into = vec![0; BLOCK_BYTES as usize];
    let got = tier.get(&key(number), &mut into).expect("the call is right");
    got.is_hit().then_some(into)
}

#[test]
fn blocks_come_back_and_leaves_go_first() {
    let tier = tier(3, false);
    assert_eq!(tier.capacity(), 3);
    for number in 1..=3 {
        assert_eq!(put(&tier, number, number - 1, Retention::default(), 0), Put::Stored);
    }
    assert_eq!(put(&tier, 2, 1, Retention::default(), 0), Put::Present);
    for number in 1..=3 {
        assert_eq!(get(&tier, number), Some(payload(number)));
    }
    // 3 was used last and goes nevertheless: the others are before it in its chain.
    assert_eq!(put(&tier, 4, 99, Retention::default(), 0), Put::Stored);
    assert_eq!(get(&tier, 3), None);
    assert_eq!(get(&tier, 1), Some(payload(1)));
    let figures = tier.figures().view();
    assert_eq!((figures.stored, figures.evicted, figures.present), (4, 1, 1));
    assert_eq!((figures.hits, figures.misses), (4, 1));
}

#[test]
fn worth_decides_until_its_time_is_over() {
    let tier = tier(2, false);
    let high = Retention { priority: 80, after: 5, until_ms: 100, pinned_until_ms: 0 };
    let pinned = Retention { pinned_until_ms: 50, ..Retention::default() };
    assert_eq!(put(&tier, 1, 0, high, 0), Put::Stored);
    assert_eq!(put(&tier, 2, 0, pinned, 0), Put::Stored);
    assert_eq!(put(&tier, 3, 0, Retention::default(), 0), Put::Refused(Refusal::Full));
    assert_eq!(put(&tier, 3, 0, Retention::default(), 50), Put::Stored);
    assert_eq!(get(&tier, 2), None);
    assert!(tier.retain(&key(3), high, 60));
    assert_eq!(put(&tier, 4, 0, Retention::default(), 99), Put::Refused(Refusal::Full));
    assert_eq!(put(&tier, 4, 0, Retention::default(), 100), Put::Stored);
    assert!(tier.remove(&key(4)));
    assert!(!tier.remove(&key(4)));
    assert_eq!(tier.len(), 1);
}

#[test]
fn broken_bytes_are_refused_and_quarantined() {
    let tier = tier(2, true);
    let bytes = payload(1);
    let parent = SequenceHash(0);
    let retention = Retention::default();
    let sum = Some(sum(&bytes) ^ 1);
    let record = Record { key: key(1), parent, retention, payload: &bytes, sum };
    assert_eq!(tier.put(&record, 0).expect("right"), Put::Refused(Refusal::Broken));
    assert_eq!(get(&tier, 1), None);
    assert_eq!(put(&tier, 1, 0, retention, 0), Put::Stored);
    tier.flip(&key(1), 12_345);
    let mut into = bytes.clone();
    assert_eq!(tier.get(&key(1), &mut into).expect("right"), Get::Bad);
    assert_eq!(tier.get(&key(1), &mut into).expect("right"), Get::Miss);
    assert_eq!(tier.figures().view().quarantined, 1);
    // The slot is lost, the tier goes on with what is left.
    assert_eq!(put(&tier, 1, 0, retention, 0), Put::Stored);
    assert_eq!(put(&tier, 2, 0, retention, 0), Put::Stored);
    assert_eq!(tier.len(), 1);
}

#[test]
fn wrong_calls_are_told() {
    let tier = tier(1, false);
    let mut short = vec![0; 3];
    assert!(matches!(tier.get(&key(1), &mut short), Err(TierError::WrongLength { .. })));
    let other = BlockKey { layout: crate::LayoutId(5), ..key(1) };
    let mut whole = payload(1);
    assert!(matches!(tier.get(&other, &mut whole), Err(TierError::WrongLayout)));
    let none = HostSettings { budget_bytes: 4096, check_reads: false };
    assert!(HostTier::new(layout(), none).is_err());
}

#[test]
fn many_at_once_never_see_each_others_bytes() {
    let tier = tier(8, false);
    std::thread::scope(|scope| {
        for start in 0..4u128 {
            let tier = &tier;
            scope.spawn(move || {
                let mut state = start as u64;
                for _ in 0..3_000 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let number = u128::from((state >> 33) % 12);
                    if let Some(bytes) = get(tier, number) {
                        assert_eq!(bytes, payload(number));
                    }
                    let _ = put(tier, number, 1000 + number, Retention::default(), 0);
                }
            });
        }
    });
    let figures = tier.figures().view();
    assert!(figures.hits > 100 && figures.evicted > 100, "{figures:?}");
    assert_eq!(tier.len(), 8);
}

#[test]
fn a_chain_that_fills_memory_does_not_eat_itself() {
    let tier = tier(3, false);
    for number in 1..=3 {
        assert_eq!(put(&tier, number, number - 1, Retention::default(), 0), Put::Stored);
    }
    assert_eq!(put(&tier, 4, 3, Retention::default(), 0), Put::Refused(Refusal::Full));
    // Nor where all that is no parent of others is pinned.
    let pinned = Retention { pinned_until_ms: 9, ..Retention::default() };
    assert!(tier.retain(&key(3), pinned, 0));
    assert_eq!(put(&tier, 4, 3, Retention::default(), 0), Put::Refused(Refusal::Full));
    assert_eq!(tier.len(), 3);
}

#[test]
fn what_is_said_while_a_block_is_written_counts() {
    let tier = tier(3, false);
    let bytes = payload(1);
    let (parent, retention) = (SequenceHash(0), Retention::default());
    let record = Record { key: key(1), parent, retention, payload: &bytes, sum: None };
    let Ok((slot, None)) = tier.reserve(&record, 0) else { panic!("there is room") };
    let pinned = Retention { pinned_until_ms: 900, ..Retention::default() };
    assert_eq!(put(&tier, 1, 0, pinned, 0), Put::Present);
    let mut table = tier.table.lock();
    table.shelf.publish(slot, 0);
    assert_eq!(table.shelf.retention_of(slot), Some(pinned));
}

#[test]
fn a_layout_without_bytes_is_refused() {
    let layout = Layout { block_bytes: 0, ..layout() };
    let settings = HostSettings { budget_bytes: 1 << 20, check_reads: false };
    assert!(matches!(HostTier::new(layout, settings), Err(TierError::Setting(_))));
}
