//! The disk tier on a disk in memory: power cuts, flips, full disks and faults, thousands of each.

use std::collections::{HashMap, HashSet};

use mainstay_types::{NamespaceId, SequenceHash};
use proptest::prelude::*;
use rustix::io::Errno;

use random::random_from;

use super::sim::SimDevice;
use super::*;

#[path = "../../tests/support/random.rs"]
mod random;

const BLOCK_BYTES: u32 = 5000;
const SLOT_BYTES: usize = 8192;

pub(crate) fn layout() -> Layout {
    Layout::new("m", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid")
}

fn key(number: u128) -> BlockKey {
    BlockKey { namespace: NamespaceId(1), hash: SequenceHash(number), layout: layout().id }
}

fn payload(number: u128) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i as u8).wrapping_mul(31).wrapping_add(number as u8)).collect()
}

/// A disk with the three files of a tier.
pub(crate) struct Disk {
    data: SimDevice,
    journals: [SimDevice; 2],
}

impl Disk {
    pub(crate) fn new() -> Self {
        let data = SimDevice::default();
        Self { journals: [data.beside(), data.beside()], data }
    }

    pub(crate) fn open(&self, slots: u64) -> DiskTier {
        let settings = DiskSettings {
            commit_blocks: 3,
            retry_ms: 10,
            quarantined_max: 4,
            ..DiskSettings::new(PathBuf::new(), slots * SLOT_BYTES as u64)
        };
        let journals = self.journals.clone().map(|device| Box::new(device) as Box<dyn Device>);
        let data = Box::new(self.data.clone());
        DiskTier::with_devices(layout(), settings, data, journals, None, 0).expect("opens")
    }

    /// Lets writes wait until it is told otherwise.
    pub(crate) fn hang(&self, hangs: bool) {
        self.data.hang(hangs);
    }

    fn crash(&self, mut random: impl FnMut() -> u64) {
        self.data.crash(&mut random);
        self.journals.iter().for_each(|journal| journal.crash(&mut random));
    }

    /// The journal that counts.
    fn journal(&self) -> &SimDevice {
        let opened = |device: &&SimDevice| {
            let mut first = [0; HEADER_BYTES];
            device.read_at(&mut first, 0).is_ok() && Header::decode(&first).is_some()
        };
        self.journals.iter().find(opened).expect("one of them counts")
    }
}

fn put(tier: &DiskTier, number: u128, now_ms: u64) -> Put {
    put_kept(tier, number, Retention::default(), now_ms)
}

fn put_kept(tier: &DiskTier, number: u128, retention: Retention, now_ms: u64) -> Put {
    let bytes = payload(number);
    // Chains of four.
    let parent = SequenceHash(if number.is_multiple_of(4) { 1 << 100 } else { number - 1 });
    let record = Record { key: key(number), parent, retention, payload: &bytes, sum: None };
    tier.put(&record, now_ms).expect("the call is right")
}

fn get(tier: &DiskTier, number: u128) -> Get {
    let mut into = vec![0; BLOCK_BYTES as usize];
    let got = tier.get(&key(number), &mut into, 0).expect("the call is right");
    match got {
        Get::Hit(_) => assert!(into == payload(number), "block {number} is wrong"),
        Get::Miss | Get::Bad => assert!(into.iter().all(|byte| *byte == 0), "bytes without a hit"),
    }
    got
}

fn numbers(tier: &DiskTier) -> Vec<u128> {
    tier.keys().iter().map(|(key, _)| key.hash.0).collect()
}

/// One life with a power cut in it; `promised` is what a flush said is durable and what did not leave since.
fn life(tier: &DiskTier, disk: &Disk, random: &mut impl FnMut() -> u64) -> HashSet<u128> {
    let mut promised: HashSet<u128> = numbers(tier).into_iter().collect();
    disk.data.lose_power_after(random() % 120);
    for now_ms in 0..400 {
        let number = u128::from(random() % 60);
        match random() % 16 {
            0 => {
                let _ = tier.remove(&key(number));
            }
            1 => {
                let pinned_until_ms = now_ms + random() % 40;
                let _ = tier.retain(
                    &key(number),
                    Retention { pinned_until_ms, ..Retention::default() },
                    now_ms,
                );
            }
            2 => {
                let keys: Vec<BlockKey> = (number..number + 4).map(key).collect();
                let mut into = vec![0; 4 * BLOCK_BYTES as usize];
                let told = tier.get_run(&keys, &mut into, now_ms).expect("the call is right");
                for (key, bytes) in
                    keys.iter().zip(into.chunks(BLOCK_BYTES as usize)).take(told.len())
                {
                    assert_eq!(bytes, payload(key.hash.0), "{key:?} is wrong");
                }
            }
            3..5 => {
                // What is there may be read in between, whatever the power does to writes.
                let _ = get(tier, number);
            }
            5 => {
                if tier.flush(now_ms) {
                    promised = numbers(tier).into_iter().collect();
                }
            }
            _ => {
                let _ = put(tier, number, now_ms);
            }
        }
        if !disk.data.has_power() {
            break;
        }
        let here: HashSet<u128> = numbers(tier).into_iter().collect();
        promised.retain(|number| here.contains(number));
    }
    promised
}

#[test]
fn a_power_cut_at_any_point_makes_no_block_wrong_and_none_up() {
    let cuts: u64 = std::env::var("MAINSTAY_TIER_CUTS")
        .map_or(6_000, |text| text.parse().expect("MAINSTAY_TIER_CUTS is a number of power cuts"));
    let (mut lives, mut served, mut promises) = (0, 0, 0);
    for seed in 0..cuts / 5 {
        let mut random = random_from(seed);
        let disk = Disk::new();
        for _ in 0..5 {
            let tier = disk.open(16);
            let before = life(&tier, &disk, &mut random);
            let gone: HashSet<u128> = {
                // The last step may have let some go before the power did.
                let here: HashSet<u128> = numbers(&tier).into_iter().collect();
                before.difference(&here).copied().collect()
            };
            drop(tier);
            disk.crash(&mut random);
            let tier = disk.open(16);
            let here = numbers(&tier);
            for number in &here {
                assert!(
                    get(&tier, *number).is_hit(),
                    "seed {seed}: {number} is claimed, not there"
                );
            }
            for number in before.difference(&gone) {
                assert!(here.contains(number), "seed {seed}: {number} was promised");
            }
            drop(tier);
            // The power may go while the journal is written anew, again and again.
            for _ in 0..random() % 4 {
                disk.data.lose_power_after(random() % 9);
                drop(disk.open(16));
                disk.crash(&mut random);
            }
            let after: HashSet<u128> = numbers(&disk.open(16)).into_iter().collect();
            assert_eq!(after, here.iter().copied().collect(), "seed {seed}: lost while opening");
            lives += 1;
            served += here.len();
            promises += before.len();
        }
    }
    assert_eq!(lives, cuts / 5 * 5);
    assert!(served as u64 > cuts && promises as u64 > cuts, "{served} served, {promises} promised");
}

#[derive(Debug, Clone)]
enum Step {
    Put(u128, u8),
    Get(u128),
    Remove(u128),
    Retain(u128, u8),
    Flush,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let number = || 0u128..12;
    prop_oneof![
        6 => (number(), 0u8..=100).prop_map(|(n, p)| Step::Put(n, p)),
        4 => number().prop_map(Step::Get),
        1 => number().prop_map(Step::Remove),
        1 => (number(), 0u8..=100).prop_map(|(n, p)| Step::Retain(n, p)),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
    ]
}

fn kept(priority: u8) -> Retention {
    Retention { priority, after: priority, until_ms: 0, pinned_until_ms: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// With room for all, the tier is a map; a flush before a restart keeps all of it, retention included.
    #[test]
    fn with_room_it_is_a_map(steps in prop::collection::vec(step(), 1..60)) {
        let disk = Disk::new();
        let mut tier = disk.open(24);
        let mut model: HashMap<u128, Retention> = HashMap::new();
        for step in steps {
            match step {
                Step::Put(number, priority) => {
                    let new = !model.contains_key(&number);
                    let answer = put_kept(&tier, number, kept(priority), 0);
                    prop_assert_eq!(answer, if new { Put::Stored } else { Put::Present });
                    let slot = model.entry(number).or_insert(kept(priority));
                    *slot = slot.merge(&kept(priority));
                }
                Step::Get(number) => {
                    let Get::Hit(held) = get(&tier, number) else {
                        prop_assert!(!model.contains_key(&number));
                        continue;
                    };
                    prop_assert_eq!(Some(&held.retention), model.get(&number));
                }
                Step::Remove(number) => {
                    prop_assert_eq!(tier.remove(&key(number)), model.remove(&number).is_some());
                }
                Step::Retain(number, priority) => {
                    let here = tier.retain(&key(number), kept(priority), 0);
                    prop_assert_eq!(here, model.contains_key(&number));
                    model.entry(number).and_modify(|r| *r = kept(priority));
                }
                Step::Flush => prop_assert!(tier.flush(0)),
                Step::Restart => {
                    prop_assert!(tier.flush(0));
                    let order = numbers(&tier);
                    drop(tier);
                    tier = disk.open(24);
                    let mut found = numbers(&tier);
                    let mut known: Vec<u128> = model.keys().copied().collect();
                    found.sort_unstable();
                    known.sort_unstable();
                    prop_assert_eq!(&found, &known);
                    prop_assert_eq!(order.len(), known.len());
                }
            }
            prop_assert_eq!(tier.len(), model.len());
            prop_assert_eq!(tier.health(), Health::Good);
        }
    }
}

fn filled(disk: &Disk, blocks: u128) {
    let tier = disk.open(8);
    for number in 0..blocks {
        assert_eq!(put(&tier, number, 0), Put::Stored);
    }
    assert!(tier.flush(0));
}

#[test]
fn a_flip_anywhere_in_a_slot_is_seen_and_quarantined_for_good() {
    let disk = Disk::new();
    filled(&disk, 3);
    let end = SLOT_BYTES - HEADER_BYTES;
    for byte in 0..SLOT_BYTES {
        let bit = (byte % 8) as u8;
        disk.data.flip(SLOT_BYTES + byte, bit);
        let slot_one = disk.open(8);
        let number = numbers(&slot_one)[1];
        let got = get(&slot_one, number);
        // Bytes between payload and header mean nothing.
        if (BLOCK_BYTES as usize..end).contains(&byte) {
            assert!(got.is_hit(), "byte {byte}");
            disk.data.flip(SLOT_BYTES + byte, bit);
            continue;
        }
        assert_eq!(got, Get::Bad, "byte {byte}");
        let figures = slot_one.figures().view();
        assert_eq!((figures.bad_sums, figures.quarantined), (1, 1));
        assert_eq!(get(&slot_one, number), Get::Miss);
        drop(slot_one);
        let again = disk.open(8);
        assert_eq!(again.figures().view().quarantined, 1, "byte {byte}: forgotten by a restart");
        assert_eq!(again.len(), 2);
        drop(again);
        // A fresh disk for the next one.
        if byte + 1 < SLOT_BYTES {
            let fresh = Disk::new();
            filled(&fresh, 3);
            for (old, new) in [(&disk.data, &fresh.data)]
                .into_iter()
                .chain(disk.journals.iter().zip(&fresh.journals))
            {
                old.become_like(new);
            }
        }
    }
}

#[test]
fn a_flip_anywhere_in_the_journal_makes_nothing_up() {
    let template = Disk::new();
    {
        let tier = template.open(6);
        for number in 0..9 {
            // Evicts, so that there are lines that free.
            assert_eq!(put(&tier, number * 4, 0), Put::Stored);
            assert!(tier.flush(0));
        }
    }
    let lines = {
        let tier = template.open(6);
        for number in 9..14 {
            assert_eq!(put(&tier, number * 4, 0), Put::Stored);
            assert!(tier.flush(0));
        }
        // One leaves, others are spoken of, and a new block comes to where the first was, which no line says.
        assert!(tier.remove(&key(13 * 4)) && tier.flush(0));
        for priority in [50, 60] {
            assert!(tier.retain(&key(12 * 4), kept(priority), 0) && tier.flush(0));
        }
        assert_eq!(put(&tier, 14 * 4, 0), Put::Stored);
        // 1 opening, 6 blocks, a freeing and a block for each, and what was said then.
        1 + 6 + 10 + 3
    };
    let mut forgotten = 0;
    for byte in 0..lines * HEADER_BYTES {
        let disk = Disk::new();
        for (old, new) in [(&disk.data, &template.data)]
            .into_iter()
            .chain(disk.journals.iter().zip(&template.journals))
        {
            old.become_like(new);
        }
        disk.journal().flip(byte, (byte % 8) as u8);
        let tier = disk.open(6);
        for number in numbers(&tier) {
            assert!(get(&tier, number).is_hit(), "byte {byte}: {number} is claimed, not there");
        }
        forgotten += tier.figures().view().forgotten;
        assert_eq!(put(&tier, 99, 0), Put::Stored, "byte {byte}");
        assert!(tier.flush(0));
    }
    assert!(forgotten > 0);
}

#[test]
fn a_chain_is_read_up_to_its_first_hole() {
    let disk = Disk::new();
    let tier = disk.open(24);
    for number in 0..20 {
        assert_eq!(put(&tier, number, 0), Put::Stored);
    }
    let keys: Vec<BlockKey> = (0..20).map(key).collect();
    let mut into = vec![0; 20 * BLOCK_BYTES as usize];
    let mut run = |keys: &[BlockKey]| {
        let into = &mut into[..keys.len() * BLOCK_BYTES as usize];
        let told = tier.get_run(keys, into, 0).expect("the call is right");
        for ((key, held), bytes) in keys.iter().zip(&told).zip(into.chunks(BLOCK_BYTES as usize)) {
            assert_eq!(bytes, payload(key.hash.0));
            assert_eq!(held.sum, crate::sum(bytes));
        }
        told.len()
    };
    assert_eq!(run(&keys), 20);
    // Out of order on the disk, and with one that is not there.
    let mixed: Vec<BlockKey> = [3, 4, 9, 8, 7, 0, 77, 1].map(key).to_vec();
    assert_eq!(run(&mixed), 6);
    assert_eq!(run(&[]), 0);
    disk.data.flip(12 * SLOT_BYTES + 100, 1);
    assert_eq!(run(&keys), 12, "what is before the broken one is whole");
    assert_eq!(run(&keys), 12);
    assert_eq!(tier.figures().view().quarantined, 1);
    // Nobody holds what was behind it: all of it can go.
    let high = kept(90);
    for number in 100..123 {
        assert_eq!(put_kept(&tier, number, high, 0), Put::Stored);
    }
    assert!(tier.get_run(&keys, &mut [0; 3], 0).is_err());
}

#[test]
fn a_full_disk_makes_it_small_and_room_makes_it_whole() {
    let disk = Disk::new();
    disk.data.set_room(Some(0));
    let tier = disk.open(8);
    assert_eq!(put(&tier, 0, 0), Put::Refused(Refusal::Full));
    assert_eq!(tier.health(), Health::Small);
    disk.data.set_room(None);
    assert_eq!(put(&tier, 0, 5), Put::Refused(Refusal::Full), "it is not asked at once");
    assert_eq!(put(&tier, 0, 10), Put::Stored);
    assert_eq!(tier.health(), Health::Good);
    assert!(get(&tier, 0).is_hit());
}

#[test]
fn a_journal_without_room_leaves_it_read_only() {
    let disk = Disk::new();
    filled(&disk, 4);
    for journal in &disk.journals {
        journal.set_room(Some(0));
    }
    let tier = disk.open(8);
    assert_eq!(tier.health(), Health::ReadOnly);
    assert_eq!(tier.len(), 4);
    for number in 0..4 {
        assert!(get(&tier, number).is_hit());
    }
    assert_eq!(put(&tier, 7, 1), Put::Refused(Refusal::ReadOnly));
    assert!(!tier.flush(2));
    for journal in &disk.journals {
        journal.set_room(None);
    }
    assert_eq!(put(&tier, 7, 9), Put::Refused(Refusal::ReadOnly));
    assert_eq!(put(&tier, 7, 10), Put::Stored);
    assert_eq!(tier.health(), Health::Good);
    assert!(tier.flush(10));
    drop(tier);
    assert_eq!(disk.open(8).len(), 5);
}

#[test]
fn a_sync_that_fails_breaks_no_promise() {
    let disk = Disk::new();
    let tier = disk.open(8);
    for number in 0..3 {
        assert_eq!(put(&tier, number, 0), Put::Stored);
    }
    assert!(tier.flush(0));
    assert_eq!(put(&tier, 3, 0), Put::Stored);
    disk.data.fail_after(0, Errno::IO.raw_os_error());
    assert!(!tier.flush(0));
    assert_eq!(numbers(&tier), [0, 1, 2], "what was not promised is dropped");
    assert_eq!(put(&tier, 4, 5), Put::Refused(Refusal::ReadOnly));
    disk.data.heal();
    assert_eq!(put(&tier, 4, 10), Put::Stored);
    assert!(tier.flush(10));
    drop(tier);
    disk.crash(random_from(1));
    let tier = disk.open(8);
    assert_eq!(tier.len(), 4);
    for number in [0, 1, 2, 4] {
        assert!(get(&tier, number).is_hit());
    }
}

#[test]
fn writes_that_fail_quarantine_until_it_is_enough() {
    let disk = Disk::new();
    filled(&disk, 2);
    let tier = disk.open(8);
    for number in 10..15 {
        disk.data.fail_after(0, Errno::IO.raw_os_error());
        assert_eq!(put(&tier, number, 0), Put::Refused(Refusal::Failed));
        disk.data.heal();
    }
    assert_eq!(tier.health(), Health::Failing);
    assert_eq!(put(&tier, 20, 1000), Put::Refused(Refusal::ReadOnly));
    assert!(get(&tier, 1).is_hit());
    assert!(tier.flush(0));
    drop(tier);
    let tier = disk.open(8);
    assert_eq!(tier.figures().view().quarantined, 5, "a restart does not forget bad slots");
    assert!(get(&tier, 1).is_hit());
}

#[test]
fn another_layout_or_budget_starts_with_what_fits() {
    let disk = Disk::new();
    filled(&disk, 6);
    assert_eq!(disk.open(3).len(), 3, "slots beyond the budget are given up");
    let journals = disk.journals.clone().map(|device| Box::new(device) as Box<dyn Device>);
    let other = Layout::new("other", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid");
    let settings = DiskSettings::new(PathBuf::new(), 8 * SLOT_BYTES as u64);
    let data = Box::new(disk.data.clone());
    let tier = DiskTier::with_devices(other, settings, data, journals, None, 0).expect("opens");
    assert!(tier.is_empty());
}

#[test]
fn a_folder_has_one_owner_and_keeps_its_blocks() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let settings = DiskSettings {
        reserve_bytes: 0,
        ..DiskSettings::new(folder.path().join("tier"), 64 * SLOT_BYTES as u64)
    };
    let tier = DiskTier::open(layout(), settings.clone(), 0).expect("opens");
    let second = DiskTier::open(layout(), settings.clone(), 0);
    assert!(matches!(second, Err(TierError::Locked)));
    for number in 0..100 {
        assert_eq!(put(&tier, number, 0), Put::Stored);
    }
    assert!(tier.flush(0));
    let here = numbers(&tier);
    assert!(here.len() >= 60 && here.len() <= 64, "{} blocks", here.len());
    drop(tier);
    let tier = DiskTier::open(layout(), settings, 0).expect("opens");
    assert_eq!(numbers(&tier), here, "in the same order too");
    for number in here {
        assert!(get(&tier, number).is_hit());
    }
}

#[test]
fn many_threads_read_and_write_at_once() {
    let disk = Disk::new();
    let tier = disk.open(16);
    std::thread::scope(|scope| {
        for start in 0..4u64 {
            let tier = &tier;
            scope.spawn(move || {
                let mut random = random_from(start);
                for now_ms in 0..1_500 {
                    let number = u128::from(random() % 40);
                    match random() % 12 {
                        0 => drop(tier.remove(&key(number))),
                        1 => assert!(tier.flush(now_ms)),
                        2..7 => assert_ne!(get(tier, number), Get::Bad),
                        _ => drop(put(tier, number, now_ms)),
                    }
                }
            });
        }
    });
    assert_eq!(tier.health(), Health::Good);
    let figures = tier.figures().view();
    assert!(figures.evicted > 500 && figures.hits > 500, "{figures:?}");
    assert!(tier.flush(0));
    let mut here = numbers(&tier);
    drop(tier);
    disk.crash(random_from(9));
    let tier = disk.open(16);
    let mut after = numbers(&tier);
    here.sort_unstable();
    after.sort_unstable();
    assert_eq!(here, after);
    for number in after {
        assert!(get(&tier, number).is_hit());
    }
}

/// A file of the journal fails in the middle of a rewrite, and the power goes in the middle of the next one.
#[test]
fn a_rewrite_that_fails_anywhere_loses_no_promise() {
    let (mut failed, mut cut_short) = (0, 0);
    for (which, fault, cut) in
        (0..2).flat_map(|w| (0..8).flat_map(move |f| (1..14).map(move |c| (w, f, c))))
    {
        for seed in 0..4 {
            let disk = Disk::new();
            filled(&disk, 4);
            let tier = disk.open(8);
            disk.journals[which].fail_after(fault, Errno::IO.raw_os_error());
            failed += u32::from(!tier.rewrite(&mut tier.journal.lock(), 0));
            disk.journals[which].heal();
            disk.data.lose_power_after(cut);
            cut_short += u32::from(!tier.rewrite(&mut tier.journal.lock(), 20));
            drop(tier);
            disk.crash(random_from(seed));
            let tier = disk.open(8);
            for number in 0..4 {
                let case = (which, fault, cut, seed);
                assert!(get(&tier, number).is_hit(), "{case:?}: {number} was promised");
            }
        }
    }
    assert!(failed > 100 && cut_short > 100, "{failed} failed, {cut_short} were cut short");
}

#[test]
fn what_is_said_after_a_full_disk_is_written_down() {
    let disk = Disk::new();
    filled(&disk, 3);
    let tier = disk.open(8);
    assert!(tier.retain(&key(0), kept(90), 0));
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::ROFS] {
        let now_ms = 100 * u64::from(errno.raw_os_error().unsigned_abs());
        disk.data.fail_after(0, errno.raw_os_error());
        let number = 10 + u128::from(now_ms);
        tier.table.lock().grow_at_ms = u64::MAX;
        assert_eq!(put(&tier, number, now_ms), Put::Refused(Refusal::Failed));
        assert_eq!(tier.health(), Health::ReadOnly, "{errno:?}");
        disk.data.heal();
        assert_eq!(put(&tier, number, now_ms + 10), Put::Stored);
        assert!(tier.remove(&key(number)) && tier.flush(now_ms + 10));
    }
    assert_eq!(tier.figures().view().quarantined, 0, "no slot is bad because the disk is full");
    assert!(tier.retain(&key(0), kept(50), 0) && tier.flush(0));
    drop(tier);
    disk.crash(random_from(3));
    let Get::Hit(held) = get(&disk.open(8), 0) else { panic!("it was promised") };
    assert_eq!(held.retention, kept(50));
}

#[test]
fn what_is_said_while_a_block_is_written_counts() {
    let disk = Disk::new();
    let tier = disk.open(8);
    let bytes = payload(1);
    let parent = SequenceHash(0);
    let retention = Retention::default();
    let record = Record { key: key(1), parent, retention, payload: &bytes, sum: None };
    let Ok((slot, _)) = tier.reserve(&record, 0) else { panic!("there is room") };
    let pinned = Retention { pinned_until_ms: 900, ..Retention::default() };
    assert_eq!(put_kept(&tier, 1, pinned, 0), Put::Present);
    assert!(tier.table.lock().written.is_empty(), "nothing is claimed that is not there");
    assert_eq!(tier.publish(slot, crate::sum(&bytes), 0), Put::Stored);
    let (_, held) = tier.keys()[0];
    assert_eq!(held.retention, pinned);
}

#[test]
fn a_chain_that_fills_the_disk_does_not_eat_itself() {
    let disk = Disk::new();
    let tier = disk.open(4);
    let put_after = |number, parent| {
        let bytes = payload(number);
        let (parent, retention) = (SequenceHash(parent), Retention::default());
        let record = Record { key: key(number), parent, retention, payload: &bytes, sum: None };
        tier.put(&record, 0).expect("the call is right")
    };
    for number in 1..=4 {
        assert_eq!(put_after(number, number - 1), Put::Stored);
    }
    assert_eq!(put_after(5, 4), Put::Refused(Refusal::Full));
    assert_eq!(tier.len(), 4);
    // A stranger's takes the leaf's place.
    assert_eq!(put_after(40, 39), Put::Stored);
    assert_eq!(get(&tier, 4), Get::Miss);
    assert!(get(&tier, 3).is_hit());
}
