//! The ring's bounds and what watchers see at its edges.

use super::*;

fn entry(index: u64, bytes: usize) -> Applied {
    Applied { index, proposal: None, bytes }
}

fn indexes(read: Read) -> Vec<u64> {
    match read {
        Read::Entries(entries) => entries.iter().map(|e| e.index).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn entries_come_out_in_order_from_any_point() {
    let feed = Feed::new();
    feed.push((1..=10).map(|i| entry(i, 1)).collect());
    assert_eq!(indexes(feed.read(4, 3)), vec![4, 5, 6]);
    assert_eq!(indexes(feed.read(10, 100)), vec![10]);
    assert!(matches!(feed.read(11, 1), Read::UpToDate));
    assert!(matches!(feed.read(0, 1), Read::Lagged));
}

#[test]
fn the_ring_is_bounded_by_entries_and_by_bytes() {
    let feed = Feed::new();
    let count = ENTRIES_MAX as u64 + 5;
    feed.push((1..=count).map(|i| entry(i, 1)).collect());
    assert!(matches!(feed.read(5, 1), Read::Lagged));
    assert_eq!(indexes(feed.read(6, 1)), vec![6]);

    let feed = Feed::new();
    feed.push(vec![entry(1, BYTES_MAX / 2), entry(2, BYTES_MAX / 2), entry(3, 1)]);
    assert!(matches!(feed.read(1, 1), Read::Lagged));
    assert_eq!(indexes(feed.read(2, 9)), vec![2, 3]);
    // One entry that is larger than the whole ring leaves nothing behind, and nothing is wrong with that.
    feed.push(vec![entry(4, BYTES_MAX + 1)]);
    assert!(matches!(feed.read(4, 1), Read::Lagged));
    assert!(matches!(feed.read(5, 1), Read::UpToDate));
}

#[test]
fn an_image_makes_watchers_start_anew() {
    let feed = Feed::new();
    let applied = feed.watch();
    feed.push((1..=3).map(|i| entry(i, 1)).collect());
    feed.reset(100);
    assert_eq!(*applied.borrow(), 100);
    assert!(matches!(feed.read(3, 1), Read::Lagged));
    assert!(matches!(feed.read(101, 1), Read::UpToDate));
    feed.push(vec![entry(101, 1)]);
    assert_eq!(indexes(feed.read(101, 1)), vec![101]);
}

#[test]
fn a_jump_in_indexes_never_looks_like_a_continuation() {
    let feed = Feed::new();
    feed.push(vec![entry(1, 1)]);
    feed.push(vec![entry(7, 1)]);
    assert!(matches!(feed.read(2, 1), Read::Lagged));
    assert_eq!(indexes(feed.read(7, 1)), vec![7]);
}
