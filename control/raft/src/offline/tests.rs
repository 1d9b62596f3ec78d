//! Directories of members that ran: looked at without a trace, copied and made anew, damaged in many places.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_state::{Limits, Machine};
use mainstay_types::{Command, LogIndex, NodeId, PinId};
use tempfile::TempDir;

use super::*;
use crate::error::OfflineError;
use crate::group::tests::pin;
use crate::{Group, GroupConfig, Settings};

const SOON: Duration = Duration::from_secs(20);

async fn start(dir: &Path, member: u64, snapshot_entries: u64) -> Group {
    let mut config = GroupConfig::new(NodeId(member), dir);
    config.settings = Settings { snapshot_entries, kept_entries: 5, ..Settings::default() };
    Group::start(config).await.unwrap()
}

async fn led(group: &Group) {
    let until = tokio::time::Instant::now() + SOON;
    while !group.leads() {
        assert!(tokio::time::Instant::now() < until, "{:?}", group.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What matters of the pins: who lives until when.
fn pins(machine: &Machine) -> BTreeMap<PinId, (bool, u64)> {
    machine.pins().map(|p| (p.request.id, (p.is_live(), p.expires_ms))).collect()
}

/// A member's directory after some life, and its pins.
async fn lived(snapshot_entries: u64) -> (TempDir, BTreeMap<PinId, (bool, u64)>) {
    let dir = tempfile::tempdir().unwrap();
    let group = start(&dir.path().join("m"), 3, snapshot_entries).await;
    group.init_single("127.0.0.1:3").await.unwrap();
    led(&group).await;
    for id in 0..60 {
        group.propose(pin(id)).await.unwrap();
    }
    group.propose(Command::ReleasePin { id: PinId(7) }).await.unwrap();
    group.propose(Command::ExtendPin { id: PinId(8), ttl_ms: 7_200_000 }).await.unwrap();
    if snapshot_entries < 60 {
        let until = tokio::time::Instant::now() + SOON;
        while group.status().snapshot == LogIndex(0) {
            assert!(tokio::time::Instant::now() < until, "no snapshot");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let pins = group.read(pins);
    group.shutdown().await;
    (dir, pins)
}

/// Names, contents and times of all files below `dir`.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        if path.is_dir() {
            files.insert(path.clone(), (Vec::new(), changed));
            files.extend(fingerprint(&path));
        } else {
            files.insert(path.clone(), (fs::read(&path).unwrap(), changed));
        }
    }
    files
}

fn to(member: u64) -> RestoreTo {
    let address = "127.0.0.1:9".to_owned();
    RestoreTo { member: NodeId(member), address, limits: Limits::standard() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_tells_everything_and_leaves_no_trace() {
    for snapshot_entries in [1_000, 20] {
        let (dir, pins) = lived(snapshot_entries).await;
        let path = dir.path().join("m");
        let before = fingerprint(&path);
        let seen = inspect(&path, &Limits::standard()).unwrap();
        backup(&path, &dir.path().join("copy")).unwrap();
        assert_eq!(fingerprint(&path), before);

        assert_eq!((seen.member, seen.format), (3, 2));
        assert_ne!(seen.instance, 0);
        assert_eq!(seen.problems, Vec::<String>::new());
        let member = MemberSeen {
            id: 3,
            address: "127.0.0.1:3".into(),
            instance: seen.instance,
            voter: true,
        };
        assert_eq!(seen.members, vec![member]);
        assert_eq!(seen.vote.unwrap().member, 3);
        let (first, last) = (seen.log.first.unwrap(), seen.log.last.unwrap());
        assert_eq!(last.index - first.index + 1, seen.log.entries);
        assert_eq!(seen.log.kinds.values().sum::<u64>(), seen.log.entries);
        if snapshot_entries == 1_000 {
            assert_eq!((seen.snapshot, seen.purged), (None, None));
            assert_eq!(seen.log.kinds["put_pin"], 60);
            assert_eq!((seen.log.kinds["release_pin"], seen.log.kinds["extend_pin"]), (1, 1));
            assert_eq!(seen.log.kinds["membership"], 1);
        } else {
            let snapshot = seen.snapshot.unwrap();
            assert!(snapshot.at.unwrap().index >= seen.purged.unwrap().index);
            assert_eq!(first.index, seen.purged.unwrap().index + 1);
            let known = snapshot.pins.iter().all(|p| pins.contains_key(&p.request.id));
            assert!(known && !snapshot.pins.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_restored_has_every_pin_and_goes_on() {
    for snapshot_entries in [1_000, 20] {
        let (dir, kept) = lived(snapshot_entries).await;
        let (old, copy, new) =
            (dir.path().join("m"), dir.path().join("copy"), dir.path().join("sub/new"));
        let saved = backup(&old, &copy).unwrap();
        assert_eq!((saved.member, saved.bytes), (3, fs::metadata(&copy).unwrap().len()));
        let again = backup(&old, &copy).unwrap_err();
        assert_eq!(again, OfflineError::Exists { path: copy.clone() });

        fs::create_dir(dir.path().join("sub")).unwrap();
        let made = restore(&copy, &new, &to(7)).unwrap();
        assert_eq!((made.from_member, made.last_index), (3, saved.last_index));
        assert_eq!(made.pins_live, 59);
        let before = inspect(&old, &Limits::standard()).unwrap();
        let after = inspect(&new, &Limits::standard()).unwrap();
        assert_eq!(after.problems, Vec::<String>::new());
        assert_eq!((after.member, after.instance), (7, made.instance));
        assert_ne!(after.instance, before.instance);
        assert_eq!(after.members.len(), 1);
        assert_eq!(after.members[0].instance, made.instance);
        let full = restore(&copy, &new, &to(7)).unwrap_err();
        assert_eq!(full, OfflineError::Exists { path: new.clone() });
        // Nothing half made is left anywhere.
        assert_eq!(fs::read_dir(dir.path().join("sub")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);

        let group = start(&new, 7, 1_000).await;
        led(&group).await;
        let now = group.read_linearizable(pins).await.unwrap();
        assert_eq!(now, kept);
        let (at, _) = group.propose(pin(100)).await.unwrap();
        assert!(at.0 > made.index, "{at} after {}", made.index);
        let members = group.status().members;
        assert_eq!((members.len(), members[0].address.as_str()), (1, "127.0.0.1:9"));
        group.snapshot().await.unwrap();
        group.shutdown().await;
        // It is a directory like any other: it restarts with what came after.
        let group = start(&new, 7, 1_000).await;
        led(&group).await;
        assert!(group.read_linearizable(|m| m.pin(PinId(100)).is_some()).await.unwrap());
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_makes_nothing() {
    let (dir, _) = lived(20).await;
    let (copy, bad) = (dir.path().join("copy"), dir.path().join("bad"));
    backup(&dir.path().join("m"), &copy).unwrap();
    let whole = fs::read(&copy).unwrap();
    let new = dir.path().join("new");
    let mut tries: Vec<Vec<u8>> = Vec::new();
    for at in (0..whole.len()).step_by(1 + whole.len() / 300) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        tries.push(flipped);
        tries.push(whole[..at].to_vec());
    }
    tries.push(whole[..whole.len() - 1].to_vec());
    tries.push([&whole[..], b"x"].concat());
    tries.push(Vec::new());
    for bytes in tries {
        fs::write(&bad, &bytes).unwrap();
        let error = restore(&bad, &new, &to(7)).unwrap_err();
        assert!(matches!(error, OfflineError::Damaged { .. }), "{error}");
        assert!(!new.exists());
    }
    assert!(matches!(restore(&dir.path().join("no"), &new, &to(7)), Err(OfflineError::Io { .. })));
    assert!(matches!(restore(&copy, &new, &to(0)), Err(OfflineError::Request(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "something half made is left");
    restore(&copy, &new, &to(7)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_a_directory_is_told_and_not_copied() {
    let (dir, _) = lived(20).await;
    let path = dir.path().join("m");
    let snapshot = path.join("snapshot");
    let whole = fs::read(&snapshot).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&snapshot, bytes).unwrap();
    let seen = inspect(&path, &Limits::standard()).unwrap();
    assert!(seen.problems[0].contains("checksum"), "{:?}", seen.problems);
    assert!(seen.log.entries > 0, "the log is shown all the same");
    let refused = backup(&path, &dir.path().join("copy")).unwrap_err();
    assert!(matches!(refused, OfflineError::Store(StoreError::Corrupt { .. })), "{refused}");

    fs::remove_file(&snapshot).unwrap();
    let seen = inspect(&path, &Limits::standard()).unwrap();
    assert!(seen.problems[0].contains("the snapshot holds nothing"), "{:?}", seen.problems);
    let refused = backup(&path, &dir.path().join("copy")).unwrap_err();
    assert!(matches!(refused, OfflineError::Store(StoreError::Corrupt { .. })), "{refused}");
    assert!(!dir.path().join("copy").exists());
    fs::write(&snapshot, whole).unwrap();

    let database = path.join("log");
    for file in fs::read_dir(&database).unwrap().map(|e| e.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".log") || name.ends_with(".sst") {
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 0xff;
                fs::write(&file, bytes).unwrap();
            }
        }
    }
    let seen = inspect(&path, &Limits::standard()).unwrap();
    assert!(!seen.problems.is_empty(), "{seen:?}");
    assert_eq!(seen.member, 3);
    fs::remove_dir_all(&database).unwrap();
    let seen = inspect(&path, &Limits::standard()).unwrap();
    assert!(seen.problems[0].contains("no log"), "{:?}", seen.problems);
    assert!(seen.snapshot.is_some());
    // A directory that is nobody's is not a damaged one.
    let empty = tempfile::tempdir().unwrap();
    let error = inspect(empty.path(), &Limits::standard()).unwrap_err();
    assert!(matches!(error, OfflineError::Store(StoreError::Absent { .. })), "{error}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}
