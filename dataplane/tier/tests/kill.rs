//! A process that writes to a disk tier is killed at any moment, again and again: what is claimed afterwards is
//! there and right, and what a flush promised is claimed.
//!
//! `MAINSTAY_TIER_KILLS` says how often; a continuous build does a few dozen.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mainstay_tier::{
    BlockKey, DiskSettings, DiskTier, Get, Health, Layout, Put, Record, Retention,
};
use mainstay_types::{NamespaceId, SequenceHash};
use random::random_from;

#[path = "support/random.rs"]
mod random;

const BLOCK_BYTES: u32 = 20_000;
const SLOT_BYTES: u64 = 20_480;
const SLOTS: u64 = 200;

fn layout() -> Layout {
    Layout::new("m", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid")
}

fn key(number: u64) -> BlockKey {
    let hash = SequenceHash(u128::from(number));
    BlockKey { namespace: NamespaceId(1), hash, layout: layout().id }
}

fn payload(number: u64) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i as u8).wrapping_mul(31).wrapping_add(number as u8)).collect()
}

fn open(folder: &Path) -> DiskTier {
    let settings = DiskSettings {
        commit_blocks: 8,
        reserve_bytes: 0,
        ..DiskSettings::new(folder.to_owned(), SLOTS * SLOT_BYTES)
    };
    DiskTier::open(layout(), settings, 0).expect("opens")
}

fn put(tier: &DiskTier, number: u64) -> Put {
    let bytes = payload(number);
    let record = Record {
        key: key(number),
        parent: SequenceHash(1 << 100),
        retention: Retention::default(),
        payload: &bytes,
        sum: None,
    };
    tier.put(&record, 0).expect("the call is right")
}

/// Says which blocks are promised: one line after each flush, of those that will not leave in this life.
fn grow(tier: &DiskTier, mut random: impl FnMut() -> u64) {
    let first = tier.len() as u64;
    for number in first.. {
        if tier.len() as u64 >= SLOTS {
            break;
        }
        let _ = put(tier, number);
        if random().is_multiple_of(5) && tier.flush(0) {
            println!("promised {}", number + 1);
        }
    }
}

/// Writes, forgets and evicts with two threads.
fn churn(tier: &DiskTier, seed: u64) {
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let mut random = random_from(seed * 2 + thread);
                loop {
                    let number = random() % 400;
                    match random() % 10 {
                        0 => drop(tier.remove(&key(number))),
                        1 => drop(tier.flush(0)),
                        _ => drop(put(tier, number)),
                    }
                }
            });
        }
    });
}

#[test]
fn child_of_kills() {
    let Some(folder) = std::env::var_os("MAINSTAY_TIER_TEST_FOLDER") else { return };
    let seed = std::env::var("MAINSTAY_TIER_TEST_SEED").expect("set with the folder");
    let seed: u64 = seed.parse().expect("a number");
    println!("going");
    let tier = open(&PathBuf::from(folder));
    println!("opened");
    if seed.is_multiple_of(2) { grow(&tier, random_from(seed)) } else { churn(&tier, seed) }
}

/// Runs one life and kills it; how many blocks, from the first on, it promised.
fn life(folder: &Path, seed: u64, after: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_of_kills", "--nocapture"])
        .env("MAINSTAY_TIER_TEST_FOLDER", folder)
        .env("MAINSTAY_TIER_TEST_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut said = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    // Half of the kills may come while it opens.
    let sign = if seed % 4 < 2 { "going" } else { "opened" };
    while !line.contains(sign) {
        line.clear();
        assert!(said.read_line(&mut line).expect("readable") > 0, "the child said nothing");
    }
    std::thread::sleep(after);
    child.kill().expect("a child can be killed");
    child.wait().expect("a child ends");
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    let mut promises = rest.lines().filter_map(|line| line.strip_prefix("promised ")?.parse().ok());
    promises.next_back().unwrap_or(0)
}

#[test]
fn a_kill_at_any_moment_makes_no_block_wrong_and_none_up() {
    let kills: u64 = std::env::var("MAINSTAY_TIER_KILLS")
        .map_or(40, |text| text.parse().expect("MAINSTAY_TIER_KILLS is a number of kills"));
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folders = ["grown", "churned"].map(|name| scratch.path().join(name));
    let mut random = random_from(3);
    let (mut claimed, mut promised) = (0, 0);
    let mut most_us = 25_000;
    let mut into = vec![0; BLOCK_BYTES as usize];
    for seed in 0..kills {
        let folder = &folders[(seed % 2) as usize];
        let after = Duration::from_micros(random() % most_us);
        let first = life(folder, seed, after);
        let tier = open(folder);
        assert_eq!(tier.health(), Health::Good);
        let here = tier.keys();
        for (key, _) in &here {
            let got = tier.get(key, &mut into, 0).expect("the call is right");
            assert!(matches!(got, Get::Hit(_)), "kill {seed}: {key:?} is claimed, not there");
            assert_eq!(into, payload(key.hash.0 as u64), "kill {seed}: {key:?} is wrong");
        }
        for number in 0..first {
            assert!(tier.has(&key(number)), "kill {seed}: {number} was promised");
        }
        // On a slow disk lives must be longer for anything to come of them.
        if seed % 4 == 2 && first == 0 {
            most_us = (most_us * 2).min(1_000_000);
        }
        claimed += here.len();
        promised += first;
        drop(tier);
        if here.len() as u64 >= SLOTS - 8 && seed.is_multiple_of(2) {
            std::fs::remove_dir_all(folder).expect("a folder that nobody uses");
        }
    }
    println!("{kills} kills: {claimed} blocks claimed, all right; {promised} promised, all there");
    assert!(claimed as u64 > kills && promised > 0);
}
