//! The log on disk: restarts, truncation, purging, damage, and folders that are somebody else's.

use std::fs;
use std::path::PathBuf;

use mainstay_state::{VERSION_NEWEST, VERSION_OLDEST};
use openraft::EntryPayload;
use openraft::storage::RaftLogStorageExt;

use super::*;
use crate::types::{Body, LeaderId};

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 1 }, index)
}

fn entry(term: u64, index: u64) -> Entry {
    let body = Bytes::from(format!("body {index}"));
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Body(body)) }
}

fn open(path: &Path) -> Result<LogStore, StoreError> {
    LogStore::open(&Folder::claim(path, 1)?)
}

async fn filled(path: &Path, entries: u64) -> LogStore {
    let mut store = open(path).unwrap();
    store.blocking_append((0..entries).map(|i| entry(1, i))).await.unwrap();
    store
}

async fn indexes(store: &mut LogStore) -> Vec<u64> {
    let entries = store.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|e| e.log_id.index).collect()
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 5).await;
    let vote = Vote { leader_id: LeaderId { term: 7, node_id: 3 }, committed: true };
    store.save_vote(&vote).await.unwrap();
    store.save_committed(Some(id(1, 3))).await.unwrap();
    store.close().await;

    let mut store = open(dir.path()).unwrap();
    assert_eq!(store.read_vote().await.unwrap(), Some(vote));
    assert_eq!(store.read_committed().await.unwrap(), Some(id(1, 3)));
    let entries = store.try_get_log_entries(1..3).await.unwrap();
    assert_eq!(entries, vec![entry(1, 1), entry(1, 2)]);
    let state = store.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (None, Some(id(1, 4))));
}

#[tokio::test]
async fn truncated_entries_are_gone_and_may_be_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 6).await;
    store.truncate_after(Some(id(1, 2))).await.unwrap();
    assert_eq!(indexes(&mut store).await, vec![0, 1, 2]);
    store.blocking_append([entry(2, 3)]).await.unwrap();
    store.close().await;
    let mut store = open(dir.path()).unwrap();
    assert_eq!(store.try_get_log_entries(3..).await.unwrap(), vec![entry(2, 3)]);
    store.truncate_after(None).await.unwrap();
    assert_eq!(store.get_log_state().await.unwrap(), LogState::default());
}

#[tokio::test]
async fn purged_entries_are_gone_and_their_end_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 6).await;
    store.purge(id(1, 3)).await.unwrap();
    store.close().await;
    let mut store = open(dir.path()).unwrap();
    assert_eq!(indexes(&mut store).await, vec![4, 5]);
    store.purge(id(1, 9)).await.unwrap();
    store.close().await;
    let mut store = open(dir.path()).unwrap();
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(id(1, 9)));
    assert_eq!(state.last_log_id, Some(id(1, 9)));
}

#[tokio::test]
async fn one_message_is_bounded_in_bytes_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let big = |index| Entry {
        log_id: id(1, index),
        payload: EntryPayload::Normal(Body(vec![7; READ_BYTES_MAX / 2 + 1].into())),
    };
    store.blocking_append((0..3).map(big)).await.unwrap();
    assert_eq!(store.limited_get_log_entries(0, 3).await.unwrap().len(), 1);
    assert_eq!(store.try_get_log_entries(0..3).await.unwrap().len(), 3);
    store.blocking_append([entry(1, 3), entry(1, 4)]).await.unwrap();
    assert_eq!(store.limited_get_log_entries(2, 5).await.unwrap().len(), 3);
}

#[tokio::test]
async fn appends_are_durable_in_order_whoever_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut waits = Vec::new();
    for index in 0..500 {
        let (done, wait) = <TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
        store.append([entry(1, index)], IOFlushed::signal(done)).await.unwrap();
        // Readable at once, durable or not.
        assert_eq!(store.last().unwrap(), Some(id(1, index)));
        waits.push(wait);
    }
    for wait in waits {
        wait.await.unwrap().unwrap();
    }
    store.close().await;
    assert_eq!(indexes(&mut open(dir.path()).unwrap()).await.len(), 500);
}

/// Puts `value` under `key` of the log, past all checks.
fn tamper(path: &Path, key: [u8; 8], value: Option<&[u8]>) {
    let folder = Folder::claim(path, 1).unwrap();
    let db = open_db(path, &folder.database()).unwrap();
    match value {
        Some(value) => db.put_cf(column(&db, LOG), key, value).unwrap(),
        None => db.delete_cf(column(&db, LOG), key).unwrap(),
    }
}

#[tokio::test]
async fn damaged_entries_are_noticed_when_the_log_is_opened() {
    for (what, value) in
        [("flipped", Some(&b"\0\0\0\0garbage"[..])), ("short", Some(b"x")), ("hole", None)]
    {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 5).await.close().await;
        tamper(dir.path(), 2_u64.to_be_bytes(), value);
        let error = open(dir.path()).err().expect(what);
        assert!(matches!(error, StoreError::Corrupt { .. }), "{what}: {error}");
        assert!(error.to_string().contains("mainstay control members rm"), "{error}");
    }
}

#[tokio::test]
async fn an_entry_at_another_entrys_place_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3).await.close().await;
    let key = 1_u64.to_be_bytes();
    tamper(dir.path(), 2_u64.to_be_bytes(), Some(&seal(&key, &entry(1, 1).encode())));
    assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })));
}

/// The newest write-ahead log of the database, and its length.
fn newest_wal(path: &Path) -> (PathBuf, u64) {
    let database = Folder::claim(path, 1).unwrap().database();
    let files = fs::read_dir(database).unwrap().map(|e| e.unwrap().path());
    let newest = files.filter(|f| f.extension().is_some_and(|e| e == "log")).max().unwrap();
    let length = fs::metadata(&newest).unwrap().len();
    (newest, length)
}

#[tokio::test]
async fn a_torn_tail_loses_only_what_nobody_was_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 4).await;
    let promised = dir.path().join(promised::NAME);
    let told = fs::read(&promised).unwrap();
    store.blocking_append([entry(1, 4)]).await.unwrap();
    store.close().await;
    let (wal, length) = newest_wal(dir.path());
    fs::OpenOptions::new().write(true).open(wal).unwrap().set_len(length - 3).unwrap();
    // Of this one somebody was told.
    let error = open(dir.path()).err().expect("an acknowledged entry is gone");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("ends at entry 3, and 4 was acknowledged"), "{error}");
    // And now nobody was.
    fs::write(&promised, told).unwrap();
    let mut store = open(dir.path()).unwrap();
    assert_eq!(indexes(&mut store).await, vec![0, 1, 2, 3]);
    store.blocking_append([entry(1, 4)]).await.unwrap();
}

#[tokio::test]
async fn a_vote_that_was_given_is_not_forgotten_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 2).await;
    let vote = |term| Vote { leader_id: LeaderId { term, node_id: 3 }, committed: false };
    store.save_vote(&vote(7)).await.unwrap();
    store.close().await;
    let folder = Folder::claim(dir.path(), 1).unwrap();
    let put = |vote: &Vote| {
        let db = open_db(dir.path(), &folder.database()).unwrap();
        db.put_cf(column(&db, META), VOTE, seal(VOTE, &vote.encode())).unwrap();
    };
    put(&vote(6));
    let error = open(dir.path()).err().expect("its vote is gone");
    assert!(error.to_string().contains("ends at term 6, and 7 was acknowledged"), "{error}");
    put(&vote(8));
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn what_was_cut_off_on_purpose_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 6).await;
    store.truncate_after(Some(id(1, 2))).await.unwrap();
    store.close().await;
    let mut store = open(dir.path()).unwrap();
    store.blocking_append([entry(2, 3), entry(2, 4)]).await.unwrap();
    // A snapshot from another member takes the place of all of it.
    store.purge(id(2, 90)).await.unwrap();
    store.close().await;
    let mut store = open(dir.path()).unwrap();
    store.blocking_append([entry(2, 91)]).await.unwrap();
    store.truncate_after(None).await.unwrap();
    store.close().await;
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn a_directory_that_is_older_than_promises_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3).await.close().await;
    let promised = dir.path().join(promised::NAME);
    let written = fs::read(&promised).unwrap();
    fs::remove_file(&promised).unwrap();
    let mut store = open(dir.path()).unwrap();
    store.blocking_append([entry(1, 3)]).await.unwrap();
    store.close().await;
    assert_eq!(fs::read(&promised).unwrap().len(), written.len());
    fs::write(&promised, &written[1..]).unwrap();
    let error = open(dir.path()).err().expect("a cut promise");
    assert!(error.to_string().contains("its PROMISED file"), "{error}");
}

#[tokio::test]
async fn whichever_byte_of_the_log_is_bent_nothing_acknowledged_is_lost_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let mut store = open(&whole).unwrap();
    for index in 0..8 {
        store.blocking_append([entry(1, index)]).await.unwrap();
    }
    store.close().await;
    let (wal, _) = newest_wal(&whole);
    let bytes = fs::read(&wal).unwrap();
    let mut refused = 0;
    for place in (0..bytes.len()).step_by(3) {
        let mut bent = bytes.clone();
        bent[place] ^= 0xff;
        let copy = dir.path().join("copy");
        copy_all(&whole, &copy);
        fs::write(copy.join(wal.strip_prefix(&whole).unwrap()), bent).unwrap();
        match open(&copy) {
            Ok(mut store) => {
                assert_eq!(indexes(&mut store).await, (0..8).collect::<Vec<_>>(), "byte {place}");
                store.close().await;
            }
            Err(StoreError::Corrupt { .. }) => refused += 1,
            Err(other) => panic!("byte {place}: {other}"),
        }
        fs::remove_dir_all(copy).unwrap();
    }
    assert!(refused > 0);
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let copy = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy_all(&file.path(), &copy);
        } else {
            fs::copy(file.path(), copy).unwrap();
        }
    }
}

#[tokio::test]
async fn damage_before_the_tail_is_not_taken_for_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    for index in 0..50 {
        store.blocking_append([entry(1, index)]).await.unwrap();
    }
    store.close().await;
    let (wal, length) = newest_wal(dir.path());
    let mut bytes = fs::read(&wal).unwrap();
    bytes[usize::try_from(length / 2).unwrap()] ^= 0xff;
    fs::write(&wal, bytes).unwrap();
    let error = open(dir.path()).err().expect("acknowledged entries are gone");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_folder_that_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "precious").unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let file = dir.path().join("thesis.txt");
    assert!(matches!(open(&file), Err(StoreError::Io { .. })));
}

#[tokio::test]
async fn another_members_or_versions_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().close().await;
    let error = Folder::claim(dir.path(), 2).unwrap_err();
    assert!(matches!(error, StoreError::OtherMember { found: 1, expected: 2, .. }), "{error}");
    let marker = dir.path().join("MEMBER");
    fs::write(&marker, "mainstay-control format 9 member 1\n").unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::Version { .. })));
    for text in [
        "",
        "\u{0}\u{1}",
        "mainstay-control format 1 member x\n",
        "mainstay-control format 1 member 1 instance x\n",
        "mainstay-control format 1 member 1 instance 1 more\n",
        &"long ".repeat(100),
    ] {
        fs::write(&marker, text).unwrap();
        assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })), "{text:?}");
    }
}

#[test]
fn a_folder_keeps_its_instance_and_two_never_share_one() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let instance = |dir: &tempfile::TempDir| Folder::claim(dir.path(), 1).unwrap().instance();
    let first = instance(&one);
    assert_ne!(first, 0);
    assert_eq!(instance(&one), first);
    assert_ne!(instance(&two), first);
    // A folder from before these numbers gets one, and keeps it.
    fs::write(one.path().join("MEMBER"), "mainstay-control format 1 member 1\n").unwrap();
    let given = instance(&one);
    assert_ne!(given, 0);
    assert_eq!(instance(&one), given);
    assert!(matches!(Folder::claim(one.path(), 2), Err(StoreError::OtherMember { .. })));
}

#[tokio::test]
async fn a_folder_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    store.close().await;
    open(dir.path()).unwrap();
}

#[test]
fn a_folder_of_a_raised_cluster_is_no_older_programs() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::claim(dir.path(), 1).unwrap();
    let marker = || fs::read_to_string(dir.path().join("MEMBER")).unwrap();
    // Until then the program of the last version may be started on it again.
    let first = marker();
    assert!(first.starts_with("mainstay-control format 1 member 1 instance "), "{first}");
    folder.stamp(VERSION_OLDEST).unwrap();
    assert_eq!(marker(), first);
    folder.stamp(VERSION_NEWEST).unwrap();
    assert_eq!(marker(), first.replace("format 1", "format 2"));
    for version in [0, VERSION_OLDEST, VERSION_NEWEST] {
        folder.stamp(version).unwrap();
        assert_eq!(Folder::claim(dir.path(), 1).unwrap().instance(), folder.instance());
        assert_eq!(marker(), first.replace("format 1", "format 2"));
    }
    for other in ["format 0", "format 3", "format -1"] {
        fs::write(dir.path().join("MEMBER"), first.replace("format 1", other)).unwrap();
        let error = Folder::claim(dir.path(), 1).unwrap_err();
        assert!(matches!(error, StoreError::Version { expected: 2, .. }), "{error}");
    }
}
