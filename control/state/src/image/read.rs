//! The reading half of the image: checks all that a machine guarantees, so that a state that was read is as good
//! as one that was built.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_index::{BlockIndex, BlockKey, HeldStretch, RestoreError, RunSnapshot, TierSet};
use mainstay_types::{
    ClusterTime, Epoch, EventSequence, FenceCause, HashKey, LogIndex, ModelSpec, NamespaceId,
    PinId, PinRequest, PinScope, PinState, Region, SequenceHash, SessionId, StreamMark, TenantId,
    Tenure, WorkerId,
};

use super::ImageError;
use super::kept::{read_keeping, read_mark};
use super::regions::{read_region, read_scope};
use super::responses;
use super::source::Source;
use super::tenants;
use super::write::{WORKER_LEASE_EXPIRED, WORKER_LEFT, WORKER_LIVE};
use crate::limits::Limits;
use crate::machine::Machine;
use crate::pins::{ENDED_BLOCKS_MAX, ENDED_PINS_MAX, Keeping, Pin, Pins, token_bytes};
use crate::version::TENANTS_AND_REGIONS;
use crate::workers::{
    ADDRESS_BYTES_MAX, MODEL_BYTES_MAX, NAME_BYTES_MAX, Worker, WorkerState, Workers, text_is_fine,
};

const REASON_BYTES_MAX: usize = 256;
/// The least that one element takes, with the shortest texts and lists that are allowed.
const WORKER_BYTES_MIN: usize = 89;
const PIN_BYTES_MIN: usize = 124;
const RUN_BYTES_MIN: usize = 69;
const KEY_BYTES: usize = 8;
const HOLDER_BYTES_MIN: usize = 21;
const STRETCH_BYTES: usize = 9;

/// Everything but the block index, as `version` writes it.
pub(super) fn state(
    source: &mut Source<'_>,
    limits: Limits,
    version: u8,
) -> Result<Machine, ImageError> {
    let all = version >= TENANTS_AND_REGIONS;
    let applied = LogIndex(source.u64()?);
    let time = read_time(source)?;
    let hash_key = match source.flag("hash key")? {
        true => Some(HashKey(source.array()?)),
        false => None,
    };
    let last_id = source.u32()?;
    let count = source.count("workers", u64::from(limits.workers_max), WORKER_BYTES_MIN)?;
    let mut workers = Vec::with_capacity(count);
    for _ in 0..count {
        workers.push(read_worker(source, all)?);
    }
    check_workers(&workers, last_id, applied)?;
    let workers = Workers::restore(last_id, workers);
    let pins = read_pins(source, &limits, applied, time, &workers, all)?;
    let (tenants, join_tokens, responses, raised) = match all {
        true => {
            let (tenants, join_tokens) = tenants::read(source, &limits)?;
            let responses = responses::read(source, &limits, applied, time)?;
            (tenants, join_tokens, responses, LogIndex(source.u64()?))
        }
        false => Default::default(),
    };
    if raised > applied {
        return Err(ImageError::Invalid("index of the version"));
    }
    Ok(Machine {
        limits,
        version,
        raised,
        applied,
        time,
        hash_key,
        workers,
        pins,
        tenants,
        join_tokens,
        responses,
        index: BlockIndex::new(limits.index_blocks_max),
    })
}

fn read_time(source: &mut Source<'_>) -> Result<ClusterTime, ImageError> {
    let now_ms = source.u64()?;
    let tenure = Tenure { term: source.u64()?, node: source.u64()?, boot: source.u64()? };
    Ok(ClusterTime { now_ms, tenure, mono_ms: source.u64()? })
}

fn read_worker(source: &mut Source<'_>, all: bool) -> Result<Worker, ImageError> {
    let id = WorkerId(source.u32()?);
    let name = read_text(source, "worker name", 1, NAME_BYTES_MAX)?;
    let address = read_text(source, "worker address", 1, ADDRESS_BYTES_MAX)?;
    let epoch = Epoch(source.u64()?);
    let incarnation = source.u64()?;
    let model = ModelSpec {
        name: read_text(source, "model name", 1, MODEL_BYTES_MAX)?,
        revision: read_text(source, "model revision", 0, MODEL_BYTES_MAX)?,
        block_tokens: source.u32()?,
        context_tokens_max: source.u32()?,
    };
    let blocks_total = source.u64()?;
    let state = match source.u8()? {
        WORKER_LIVE => WorkerState::Live,
        WORKER_LEASE_EXPIRED => WorkerState::Fenced(FenceCause::LeaseExpired),
        WORKER_LEFT => WorkerState::Fenced(FenceCause::Left),
        _ => return Err(ImageError::Invalid("worker state")),
    };
    let next_sequence = EventSequence(source.u64()?);
    let cut = match source.flag("cut")? {
        true => Some(StreamMark {
            sequence: EventSequence(source.u64()?),
            digest: source.u64()?,
            blocks: source.u64()?,
        }),
        false => None,
    };
    let changed_index = LogIndex(source.u64()?);
    let region = if all { read_region(source)? } else { Region::default() };
    if epoch.0 == 0 || next_sequence.0 == 0 || model.block_tokens == 0 {
        return Err(ImageError::Invalid("worker"));
    }
    Ok(Worker {
        id,
        name,
        address,
        epoch,
        incarnation,
        model,
        blocks_total,
        state,
        next_sequence,
        cut,
        changed_index,
        region,
    })
}

pub(super) fn read_text(
    source: &mut Source<'_>,
    what: &'static str,
    bytes_min: usize,
    bytes_max: usize,
) -> Result<String, ImageError> {
    let text = source.text(what, bytes_max)?;
    if text_is_fine(text, bytes_min, bytes_max) {
        Ok(text.to_owned())
    } else {
        Err(ImageError::Invalid(what))
    }
}

fn check_workers(workers: &[Worker], last_id: u32, applied: LogIndex) -> Result<(), ImageError> {
    let sorted = workers.windows(2).all(|pair| pair[0].id < pair[1].id);
    let numbered = workers.iter().all(|w| (1..=last_id).contains(&w.id.0));
    let past = workers.iter().all(|w| w.changed_index <= applied);
    let names: BTreeSet<&str> = workers.iter().map(|w| w.name.as_str()).collect();
    if sorted && numbered && past && names.len() == workers.len() {
        Ok(())
    } else {
        Err(ImageError::Invalid("table of workers"))
    }
}

fn read_pins(
    source: &mut Source<'_>,
    limits: &Limits,
    applied: LogIndex,
    time: ClusterTime,
    workers: &Workers,
    all: bool,
) -> Result<Pins, ImageError> {
    let count = source.count("live pins", u64::from(limits.pins_max), PIN_BYTES_MIN)?;
    let mut live: Vec<Pin> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut pin = read_pin(source, limits, applied, all)?;
        let lives = |id: &WorkerId| workers.get(*id).is_some_and(Worker::is_live);
        let keepers = pin.holders.keys().all(lives) && pin.keeping.orders.keys().all(lives);
        let was = (pin.ever_active, pin.keeping.clone());
        pin.derive_state(workers);
        let known = (pin.ever_active, &pin.keeping) == (was.0, &was.1)
            && pin.expires_ms > time.now_ms
            && pin.keeping.moved_ms <= time.now_ms;
        if !keepers || !known {
            return Err(ImageError::Invalid("live pin"));
        }
        live.push(pin);
    }
    if !live.windows(2).all(|pair| pair[0].request.id < pair[1].request.id) {
        return Err(ImageError::Invalid("order of pins"));
    }
    let count = source.count("ended pins", ENDED_PINS_MAX as u64, PIN_BYTES_MIN)?;
    let mut ended: Vec<Pin> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut pin = read_pin(source, limits, applied, all)?;
        let released = source.flag("pin state")?;
        pin.state = if released { PinState::Released } else { PinState::Expired };
        pin.reason = read_text(source, "reason", 1, REASON_BYTES_MAX)?;
        if !pin.holders.is_empty() || pin.keeping != Keeping::default() {
            return Err(ImageError::Invalid("ended pin"));
        }
        ended.push(pin);
    }
    check_pins(&live, &ended, limits)?;
    Ok(Pins::restore(live, ended))
}

fn check_pins(live: &[Pin], ended: &[Pin], limits: &Limits) -> Result<(), ImageError> {
    let ids: BTreeSet<PinId> = live.iter().chain(ended).map(|pin| pin.request.id).collect();
    if ids.len() != live.len() + ended.len() {
        return Err(ImageError::Invalid("pin, it is there twice"));
    }
    let blocks = |pins: &[Pin]| pins.iter().map(|pin| pin.request.blocks.len() as u64).sum::<u64>();
    let tokens = live.iter().map(|pin| token_bytes(&pin.request)).sum();
    for (what, count, limit) in [
        ("pinned blocks", blocks(live), limits.pinned_blocks_max),
        ("blocks of ended pins", blocks(ended), ENDED_BLOCKS_MAX),
        ("bytes of kept tokens", tokens, limits.kept_token_bytes_max),
    ] {
        if count > limit {
            return Err(ImageError::TooMany { what, count, limit });
        }
    }
    Ok(())
}

fn read_pin(
    source: &mut Source<'_>,
    limits: &Limits,
    applied: LogIndex,
    all: bool,
) -> Result<Pin, ImageError> {
    let mut request = read_request(source, limits, all)?;
    let (created_ms, expires_ms) = (source.u64()?, source.u64()?);
    let (created_index, changed_index) = (LogIndex(source.u64()?), LogIndex(source.u64()?));
    let ever_active = source.flag("pin")?;
    let holders = read_holders(source, limits, request.blocks.len())?;
    let keeping = match all {
        true => {
            request.tokens = read_mark(source)?;
            read_keeping(source)?
        }
        false => Keeping::default(),
    };
    if created_index > changed_index || changed_index > applied || created_ms > expires_ms {
        return Err(ImageError::Invalid("pin"));
    }
    Ok(Pin {
        request,
        state: PinState::Pending,
        created_ms,
        expires_ms,
        created_index,
        changed_index,
        holders,
        ever_active,
        keeping,
        reason: String::new(),
    })
}

fn read_request(
    source: &mut Source<'_>,
    limits: &Limits,
    all: bool,
) -> Result<PinRequest, ImageError> {
    let id = PinId(source.u128()?);
    let tenant = TenantId::new(source.text("tenant", TenantId::BYTES_MAX)?);
    let tenant = tenant.ok_or(ImageError::Invalid("tenant"))?;
    let namespace = NamespaceId(source.u128()?);
    let owner = match source.flag("owner")? {
        true => {
            let owner = SessionId::new(source.text("owner", SessionId::BYTES_MAX)?);
            Some(owner.ok_or(ImageError::Invalid("owner"))?)
        }
        false => None,
    };
    let count = source.count("blocks of a pin", u64::from(limits.pin_blocks_max), 16)?;
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        blocks.push(SequenceHash(source.u128()?));
    }
    let prefix_tokens = source.u32()?;
    let ttl_ms = source.u64()?;
    let priority = source.u8()?;
    let copies_min = source.u32()?;
    let scope = if all { read_scope(source)? } else { PinScope::default() };
    if blocks.is_empty() || ttl_ms == 0 || priority > 100 || copies_min == 0 {
        return Err(ImageError::Invalid("pin request"));
    }
    Ok(PinRequest {
        id,
        tenant,
        namespace,
        owner,
        blocks,
        prefix_tokens,
        ttl_ms,
        priority,
        copies_min,
        tokens: None,
        scope,
    })
}

fn read_holders(
    source: &mut Source<'_>,
    limits: &Limits,
    blocks: usize,
) -> Result<BTreeMap<WorkerId, u32>, ImageError> {
    let count = source.count("holders of a pin", u64::from(limits.workers_max), 8)?;
    let mut holders = BTreeMap::new();
    for _ in 0..count {
        let (worker, held) = (WorkerId(source.u32()?), source.u32()?);
        let next = holders.last_key_value().is_none_or(|(last, _)| *last < worker);
        if !next || held == 0 || held as usize > blocks {
            return Err(ImageError::Invalid("holder of a pin"));
        }
        holders.insert(worker, held);
    }
    Ok(holders)
}

/// The block index, into the machine whose workers hold the blocks.
pub(super) fn blocks(source: &mut Source<'_>, machine: &mut Machine) -> Result<(), ImageError> {
    let limits = machine.limits;
    machine.index.restore_refused(source.u64()?);
    let count = source.count("runs of blocks", limits.index_blocks_max, RUN_BYTES_MIN)?;
    let mut last = None;
    for _ in 0..count {
        let run = read_run(source, &limits)?;
        let workers = &machine.workers;
        if !run.holders.iter().all(|(id, _)| workers.get(*id).is_some_and(Worker::is_live)) {
            return Err(ImageError::Invalid("holder of a run"));
        }
        put_run(&mut machine.index, &run, &mut last)?;
    }
    Ok(())
}

/// Where a run stands in the order of runs.
pub(super) type RunPlace = Option<(NamespaceId, BlockKey)>;

/// Puts a run into an index; runs come in order.
pub(super) fn put_run(
    index: &mut BlockIndex,
    run: &RunSnapshot,
    last: &mut RunPlace,
) -> Result<(), ImageError> {
    let place = run.keys.first().map(|first| (run.namespace, *first));
    if *last >= place {
        return Err(ImageError::Invalid("order of runs"));
    }
    *last = place;
    index.restore_run(run).map_err(|error| match error {
        RestoreError::Full => ImageError::TooMany {
            what: "blocks",
            count: index.held_count().saturating_add(entries_of(run)),
            limit: index.limits().entries_max,
        },
        RestoreError::Twice => ImageError::Invalid("block, it is there twice"),
        RestoreError::Length => ImageError::Invalid("length of a run"),
        RestoreError::Holders => ImageError::Invalid("holders of a run"),
    })
}

fn entries_of(run: &RunSnapshot) -> u64 {
    let held = run.holders.iter().flat_map(|(_, held)| held);
    held.map(|stretch| u64::from(stretch.to - stretch.from)).sum()
}

pub(super) fn read_run(
    source: &mut Source<'_>,
    limits: &Limits,
) -> Result<RunSnapshot, ImageError> {
    let namespace = NamespaceId(source.u128()?);
    let parent = source.u64()?;
    let count = source.count("blocks", limits.index_blocks_max, KEY_BYTES)?;
    let mut keys = Vec::with_capacity(count);
    for _ in 0..count {
        keys.push(BlockKey(source.u64()?));
    }
    let workers = u64::from(limits.workers_max);
    let count = source.count("holders of a run", workers, HOLDER_BYTES_MIN)?;
    let mut holders = Vec::with_capacity(count);
    for _ in 0..count {
        let worker = WorkerId(source.u32()?);
        let count = source.count("stretches of a run", keys.len() as u64, STRETCH_BYTES)?;
        let mut held = Vec::with_capacity(count);
        for _ in 0..count {
            let (from, to) = (source.u32()?, source.u32()?);
            let tiers = TierSet::from_bits(source.u8()?).ok_or(ImageError::Invalid("tier"))?;
            held.push(HeldStretch { from, to, tiers });
        }
        holders.push((worker, held));
    }
    Ok(RunSnapshot { namespace, parent, keys, holders })
}
