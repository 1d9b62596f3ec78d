//! Images and digests of earlier versions, as the programs of those versions wrote them: members of two versions share
//! one log, so both must make the same of it to the last byte.
//!
//! `golden/version-3.txt` was written by the last program of version 3, from the logs that [`Driver`] makes: for each its
//! seed, the digest of the state, and the checksums of its images with and without blocks; the last line is one whole image.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mainstay_state::{Limits, Machine, VERSION_NEWEST, VERSION_OLDEST};
use mainstay_types::{
    BlockEvent, Command, CutSource, Epoch, EventFrame, EventSequence, FenceCause, LogIndex,
    ModelSpec, NamespaceId, PinId, PinRequest, PinScope, PinState, Proposal, Region, SequenceHash,
    SessionId, Stamp, StreamMark, TenantId, Tenure, Tier, WorkerId,
};

const GOLDEN: &str = include_str!("golden/version-3.txt");
const LOGS: u64 = 200;
const ENTRIES: u64 = 250;

/// Small enough that the logs run into all of them.
fn limits() -> Limits {
    Limits {
        workers_max: 4,
        pins_max: 10,
        pins_per_tenant_max: 7,
        pin_blocks_max: 12,
        pinned_blocks_max: 60,
        pinned_blocks_per_tenant_max: 24,
        ttl_ms_max: 10_000,
        index_blocks_max: 40,
        ..Limits::standard()
    }
}

/// A generator of numbers that is the same in every version of this file.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// The first blocks of a branch of a conversation; branches part after two blocks.
fn prefix(branch: u64, length: u64) -> Vec<SequenceHash> {
    let hash = |depth: u64| if depth < 2 { depth } else { 100 * (branch + 1) + depth };
    (0..length).map(|depth| SequenceHash(u128::from(hash(depth)))).collect()
}

fn pin(dice: &mut Dice) -> Command {
    let length = dice.roll(13) + 1;
    let branch = dice.roll(3);
    Command::PutPin(PinRequest {
        id: PinId(u128::from(dice.roll(300))),
        tenant: TenantId::new(["acme", "zeta"][dice.roll(2) as usize]).unwrap(),
        namespace: NamespaceId(9),
        owner: [None, SessionId::new("s"), SessionId::new("t")][dice.roll(3) as usize].clone(),
        blocks: prefix(branch, length),
        prefix_tokens: u32::try_from(length).unwrap() * 16,
        ttl_ms: dice.roll(8_000),
        priority: if dice.roll(10) == 0 { dice.roll(110) as u8 } else { 50 },
        copies_min: dice.roll(2) as u32 + 1,
        tokens: None,
        scope: PinScope::default(),
    })
}

fn events(dice: &mut Dice) -> Vec<BlockEvent> {
    let one = |dice: &mut Dice| match dice.roll(10) {
        0..6 => BlockEvent::Stored {
            namespace: NamespaceId(9),
            parent: SequenceHash(9),
            blocks: prefix(dice.roll(3), dice.roll(12)),
            tier: Tier::Device,
        },
        6..9 => {
            let from = dice.roll(12) as usize;
            let blocks = prefix(dice.roll(3), 12).split_off(from);
            BlockEvent::Removed { blocks, tier: Tier::Device }
        }
        _ => BlockEvent::Cleared,
    };
    (0..dice.roll(4)).map(|_| one(dice)).collect()
}

/// Whom a command is about: mostly somebody who is there, in the life that it leads.
fn somebody(dice: &mut Dice, machine: &Machine) -> (WorkerId, Epoch, EventSequence) {
    let worker = WorkerId(dice.roll(6) as u32 + 1);
    match machine.worker(worker).filter(|_| dice.roll(8) > 0) {
        Some(known) => (worker, known.epoch, known.next_sequence),
        None => (worker, Epoch(dice.roll(3) + 1), EventSequence(dice.roll(6))),
    }
}

/// A pin, mostly one that lives.
fn some_pin(dice: &mut Dice, machine: &Machine) -> PinId {
    let live: Vec<PinId> = machine.pins().filter(|p| p.is_live()).map(|p| p.request.id).collect();
    if live.is_empty() || dice.roll(8) == 0 {
        return PinId(u128::from(dice.roll(300)));
    }
    live[dice.roll(live.len() as u64) as usize]
}

fn command(dice: &mut Dice, machine: &Machine) -> Command {
    let (worker, epoch, sequence) = somebody(dice, machine);
    let id = some_pin(dice, machine);
    match dice.roll(40) {
        0 => Command::Tick,
        1 => Command::Bootstrap { hash_key: [dice.roll(3) as u8; 16] },
        2..5 => Command::RegisterWorker {
            name: ["a", "b", "c", "d", "e", "f"][dice.roll(6) as usize].to_owned(),
            address: "127.0.0.1:7000".to_owned(),
            incarnation: dice.roll(3),
            model: ModelSpec {
                name: "tiny".to_owned(),
                revision: "1".to_owned(),
                block_tokens: 16,
                context_tokens_max: 4_096,
            },
            blocks_total: 100,
            region: Region::default(),
        },
        5..7 => {
            let cause = if dice.roll(2) == 0 { FenceCause::LeaseExpired } else { FenceCause::Left };
            Command::FenceWorker { worker, epoch, cause }
        }
        7..15 => Command::Blocks(EventFrame { worker, epoch, sequence, events: events(dice) }),
        15 => {
            let sequence = EventSequence(dice.roll(9));
            let mark = StreamMark { sequence, digest: dice.roll(1 << 40), blocks: dice.roll(99) };
            Command::Cut(vec![CutSource { worker, epoch, mark }])
        }
        16..27 => pin(dice),
        27..29 => Command::ExtendPin { id, ttl_ms: dice.roll(11_000) },
        29 => Command::ReleasePin { id },
        _ => {
            let blocks = machine.pin(id).map_or(9, |pin| pin.request.blocks.len() as u64);
            let held = [blocks, blocks, dice.roll(blocks + 2)][dice.roll(3) as usize];
            Command::ReportPin { worker, epoch, id, blocks_held: held as u32 }
        }
    }
}

/// Makes a log as it goes: its entries are some milliseconds apart, and led by one member after another.
struct Driver {
    dice: Dice,
    now_ms: u64,
    term: u64,
}

impl Driver {
    fn new(seed: u64) -> Self {
        Self { dice: Dice(seed), now_ms: 10_000, term: 1 }
    }

    fn proposal(&mut self, machine: &Machine) -> Proposal {
        let dice = &mut self.dice;
        self.now_ms += dice.roll(150);
        self.term += u64::from(dice.roll(20) == 0);
        let tenure = Tenure { term: self.term, node: self.term % 3, boot: 1 };
        let wall_ms = self.now_ms - 250 + dice.roll(500);
        let stamp = Stamp { tenure, mono_ms: self.now_ms, wall_ms };
        Proposal { stamp, command: command(dice, machine) }
    }
}

/// The state after the log of that seed, and who would go on with it.
fn driven(seed: u64) -> (Machine, Driver) {
    let (mut machine, mut driver) = (Machine::new(limits()), Driver::new(seed));
    for index in 1..=ENTRIES {
        let proposal = driver.proposal(&machine);
        machine.apply(LogIndex(index), &proposal);
    }
    (machine, driver)
}

fn machine(seed: u64) -> Machine {
    driven(seed).0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands in the golden file of one log.
fn line(seed: u64, machine: &Machine) -> String {
    let sum = |image: Vec<u8>| hex(&image[image.len() - 16..]);
    let (full, bare) = (sum(machine.encode()), sum(machine.encode_without_blocks()));
    format!("{seed} {:032x} {full} {bare}", machine.digest())
}

#[test]
fn the_same_log_makes_the_same_state_and_images_as_in_version_3() {
    let told: Vec<&str> = GOLDEN.lines().take(LOGS as usize).collect();
    let mine: Vec<String> = (0..LOGS).map(|seed| line(seed, &machine(seed))).collect();
    assert_eq!(mine.len(), told.len());
    for (mine, told) in mine.iter().zip(told) {
        assert_eq!(mine, told);
    }
}

#[test]
fn an_image_of_version_3_is_read_and_written_to_the_byte() {
    let told = GOLDEN.lines().last().expect("the image is the last line");
    let bytes: Vec<u8> = (0..told.len() / 2)
        .map(|at| u8::from_str_radix(&told[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect();
    let read = Machine::decode(&bytes, limits()).expect("an image of an earlier version");
    assert_eq!(read.version(), VERSION_OLDEST);
    assert_eq!(hex(&read.encode()), told);
    let built = machine(145);
    assert_eq!(read.digest(), built.digest());
    // The fixture holds what it should test.
    for state in PinState::ALL.into_iter().filter(|s| *s != PinState::Denied) {
        assert!(read.pins().any(|pin| pin.state == state), "{}", state.name());
    }
    assert!(read.pins().any(|pin| !pin.holders.is_empty()));
    assert!(read.workers().any(|w| !w.is_live()) && read.workers().any(|w| w.is_live()));
    assert!(read.index().block_count() > 0 && read.hash_key().is_some());
    // Any cut or changed byte of it is found.
    for at in 0..bytes.len() {
        assert!(Machine::decode(&bytes[..at], limits()).is_err());
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(Machine::decode(&changed, limits()).is_err(), "byte {at}");
    }
}

#[test]
fn whoever_read_an_old_image_agrees_with_whoever_applied_all_once_the_version_is_raised() {
    for seed in 0..LOGS {
        let (mut applied, mut driver) = driven(seed);
        let mut read = Machine::decode(&applied.encode(), limits()).expect("its own image");
        assert_eq!((read.version(), read.digest()), (VERSION_OLDEST, applied.digest()));
        for index in ENTRIES + 1..=ENTRIES * 2 {
            let mut proposal = driver.proposal(&applied);
            if index == ENTRIES + 1 {
                proposal.command = Command::RaiseVersion { version: VERSION_NEWEST };
            }
            let index = LogIndex(index);
            assert_eq!(applied.apply(index, &proposal), read.apply(index, &proposal));
        }
        assert_eq!(applied.version(), VERSION_NEWEST);
        assert_eq!(applied.encode(), read.encode(), "seed {seed}");
        let again = Machine::decode(&applied.encode(), limits()).expect("its own image");
        assert_eq!((again.version(), again.digest()), (VERSION_NEWEST, applied.digest()));
        assert!(again.pins().eq(applied.pins()));
    }
}
