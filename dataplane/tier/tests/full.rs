//! A disk that is really full: a file system of a few MiB, mounted in a namespace of the test's own.
//!
//! Where no namespaces can be made, the same is said of a disk in memory by the tests of the disk tier.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use mainstay_tier::{
    BlockKey, DiskSettings, DiskTier, Get, Health, Layout, Put, Record, Retention,
};
use mainstay_types::{NamespaceId, SequenceHash};
use rustix::fs::statvfs;

const BLOCK_BYTES: u32 = 20_000;
const RESERVE_BYTES: u64 = 4 << 20;

fn layout() -> Layout {
    Layout::new("m", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid")
}

fn open(folder: &Path) -> DiskTier {
    let settings = DiskSettings {
        reserve_bytes: RESERVE_BYTES,
        retry_ms: 1_000_000,
        ..DiskSettings::new(folder.join("tier"), 64 << 20)
    };
    DiskTier::open(layout(), settings, 0).expect("opens")
}

fn key(number: u64) -> BlockKey {
    let hash = SequenceHash(u128::from(number));
    BlockKey { namespace: NamespaceId(1), hash, layout: layout().id }
}

/// Writes blocks and reads each at once; how many were stored.
fn fill(tier: &DiskTier, numbers: std::ops::Range<u64>) -> u64 {
    let mut stored = 0;
    for number in numbers {
        let bytes = vec![number as u8; BLOCK_BYTES as usize];
        let record = Record {
            key: key(number),
            parent: SequenceHash(1 << 100),
            retention: Retention::default(),
            payload: &bytes,
            sum: None,
        };
        if tier.put(&record, 0).expect("the call is right") == Put::Stored {
            let mut into = vec![0; BLOCK_BYTES as usize];
            let got = tier.get(&key(number), &mut into, 0).expect("the call is right");
            assert!(matches!(got, Get::Hit(_)) && into == bytes, "block {number}: {got:?}");
            stored += 1;
        }
    }
    stored
}

fn free_bytes(folder: &Path) -> u64 {
    let disk = statvfs(folder).expect("a mounted folder");
    disk.f_bavail * disk.f_frsize
}

#[test]
fn child_of_full() {
    let Some(folder) = std::env::var_os("MAINSTAY_TIER_TEST_FOLDER") else { return };
    let folder = Path::new(&folder);
    let tier = open(folder);
    assert_eq!(fill(&tier, 0..2_000), 2_000, "a small disk evicts, and takes all");
    assert_eq!(tier.health(), Health::Small);
    let room = tier.len() as u64 * u64::from(BLOCK_BYTES);
    assert!(room > 8 << 20, "only {room} bytes of blocks");
    assert!(free_bytes(folder) >= RESERVE_BYTES, "{} bytes are left", free_bytes(folder));
    // Somebody else takes the rest, to the last byte.
    let mut other = std::fs::File::create(folder.join("other")).expect("room for a name");
    while other.write_all(&[1; 4096]).is_ok() {}
    assert_eq!(free_bytes(folder), 0);
    assert_eq!(fill(&tier, 2_000..4_000), 2_000);
    assert!(tier.flush(0));
    let mut here: Vec<BlockKey> = tier.keys().into_iter().map(|(key, _)| key).collect();
    drop(tier);
    let tier = open(folder);
    let mut again: Vec<BlockKey> = tier.keys().into_iter().map(|(key, _)| key).collect();
    here.sort_unstable();
    again.sort_unstable();
    assert_eq!(here, again);
    assert_eq!(fill(&tier, 4_000..5_000), 1_000);
    println!("a full disk was lived with: {} blocks", again.len());
}

#[test]
fn a_full_disk_makes_the_tier_smaller_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let script = "mount -t tmpfs -o size=24m none \"$MAINSTAY_TIER_TEST_FOLDER\" || exit 77
        exec \"$0\" --exact child_of_full --nocapture";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().expect("this test"))
        .env("MAINSTAY_TIER_TEST_FOLDER", folder.path())
        .output();
    let Ok(output) = output else { return println!("there is no unshare here") };
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || complaint.starts_with("unshare:") {
        return println!("no namespaces here: {complaint}");
    }
    assert!(output.status.success(), "{said}{complaint}");
    assert!(said.contains("a full disk was lived with"), "{said}");
    println!("{said}");
}
