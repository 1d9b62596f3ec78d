//! Replacing, damaging and overtaking the image on disk.

use super::*;
use crate::types::{LeaderId, LogId};

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: Some(LogId::new(LeaderId { term: 1, node_id: 1 }, index)),
        ..SnapshotMeta::default()
    }
}

#[test]
fn what_was_saved_is_loaded_and_older_images_do_not_replace_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::new(dir.path().join("snapshot"));
    assert!(store.load().unwrap().is_none());
    store.save(&meta(5), b"five").unwrap();
    store.save(&meta(9), b"nine").unwrap();
    store.save(&meta(7), b"seven").unwrap();
    let current = store.load().unwrap().unwrap();
    assert_eq!(current.meta, meta(9));
    assert_eq!(current.snapshot, Bytes::from_static(b"nine"));
}

#[test]
fn every_flipped_or_missing_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    let store = SnapshotStore::new(file.clone());
    store.save(&meta(5), b"state").unwrap();
    let good = fs::read(&file).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, bad).unwrap();
        assert!(store.load().is_err(), "byte {at}");
        fs::write(&file, &good[..at]).unwrap();
        assert!(store.load().is_err(), "cut at {at}");
    }
    // A damaged image does not keep a good one out.
    store.save(&meta(4), b"four").unwrap();
    assert_eq!(store.load().unwrap().unwrap().meta, meta(4));
}
