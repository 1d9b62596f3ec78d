//! One engine in this process: its vtable behind safe calls.
//!
//! It keeps the caller's half of the header's rules: one thread at a time per lane, control calls one
//! after another, every batch released, `destroy` last. The engine's half is checked where it can be:
//! slots against capabilities at the start, sequence numbers and batches as they come.

use std::ptr::{self, NonNull};
use std::time::Duration;

use mainstay_engine_abi::limits::{CONFIG_BYTES_MAX, STRING_BYTES_MAX};
use mainstay_engine_abi::raw::{
    AGES_TOLD, HEALTH_DRAINING, HEALTH_FATAL, HEALTH_OK, HEALTH_STARTING, LANE_KV, LANE_OP,
    LANE_OUT, MseAges, MseBatch, MseEngine, MseErr, MseHdr, MseInfo, MseStats, MseStr, MseVtable,
    OK,
};
use mainstay_engine_abi::read::{self, Headed};
use mainstay_engine_abi::sdk::{
    Ages, BlockAges, Code, EngineError, EntryPoint, Health, Info, LeaseChange, OpDone, Output, Pin,
    Request, Stats, caps,
};
use parking_lot::Mutex;

use crate::decode::{self, Broken};
use crate::error::LoadError;
use crate::log::LogTarget;
use crate::magic::{self, EngineIdentity};
use crate::transfer::{KvImport, Lent, Transfers, Whole};
use crate::{KvBatch, encode};

/// Items asked for in one poll.
const POLL_ITEMS: u32 = 1024;

/// What a look at a lane gave.
pub(crate) enum Next<T> {
    Items(T),
    TimedOut,
    Closed,
}

/// Where a lane's reader stands.
#[derive(Default)]
struct Cursor {
    epoch: u64,
    next_seq: u64,
}

pub(crate) struct Instance {
    vtable: MseVtable,
    engine: NonNull<MseEngine>,
    pub(crate) identity: EngineIdentity,
    pub(crate) info: Info,
    pub(crate) caps: u64,
    lanes: [Mutex<Cursor>; 3],
    control: Mutex<()>,
    /// What is lent to the engine. A field, so that it outlives `destroy`, which this struct's drop calls.
    transfers: Transfers,
}

// SAFETY: the header tags each slot with its threads; `lanes` and `control` keep the two tags that
// are not [any], and the engine pointer is only ever handed to those slots.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

/// A slot that `check_slots` has seen; the error can't happen after that, but costs no panic either.
fn slot<T>(slot: Option<T>, name: &str) -> Result<T, EngineError> {
    slot.ok_or_else(|| EngineError::unimplemented(format!("the engine has no {name}")))
}

fn check(rc: i32, err: &MseErr) -> Result<(), EngineError> {
    if rc == OK { Ok(()) } else { Err(read::read_error(rc, err)) }
}

/// The ages that the engine keeps, if it does.
fn block_ages(stats: &MseStats) -> Result<Option<BlockAges>, EngineError> {
    let ages = |raw: &MseAges| Ages { by_power: raw.by_power, sum_ms: raw.sum_ms };
    match stats.ages {
        0 => Ok(None),
        AGES_TOLD => Ok(Some(BlockAges {
            at_hit: ages(&stats.age_at_hit),
            at_eviction: stats.age_at_eviction.each_ref().map(ages),
        })),
        other => Err(EngineError::internal(format!("unknown flags of ages: {other:#x}"))),
    }
}

impl Instance {
    /// Checks the engine behind `entry` and creates an instance. It may block for long.
    pub(crate) fn open(
        entry: &EntryPoint,
        name: &str,
        config_json: &str,
        log: &'static LogTarget,
    ) -> Result<Self, LoadError> {
        if config_json.len() as u64 > CONFIG_BYTES_MAX {
            return Err(LoadError::ConfigTooLong { max: CONFIG_BYTES_MAX });
        }
        let identity = magic::check(entry, name)?;
        let contract = |reason: String| LoadError::Contract { engine: name.into(), reason };
        let not_created = |error| LoadError::Create { engine: name.into(), error };
        let (host, mut err) = (log.host(), MseErr::empty());
        let mut vtable = ptr::null();
        // SAFETY: whole structs, borrowed for the call; the log target lives for ever.
        let rc = unsafe { (entry.open)(&raw const host, &raw mut vtable, &raw mut err) };
        check(rc, &err).map_err(not_created)?;
        // SAFETY: the engine vouches for the vtable it returned, which lives as long as the library.
        let vtable = unsafe { read::read_struct(vtable) }.map_err(|e| contract(e.message))?;
        let create = slot(vtable.create, "create").map_err(|e| contract(e.message))?;
        let (mut engine, mut err) = (ptr::null_mut(), MseErr::empty());
        let config = MseStr::of(config_json);
        // SAFETY: as above; the configuration is borrowed for the call.
        let rc = unsafe { create(&raw const host, config, &raw mut engine, &raw mut err) };
        check(rc, &err).map_err(not_created)?;
        let engine =
            NonNull::new(engine).ok_or_else(|| contract("create gave no engine".into()))?;
        let mut instance = Self {
            vtable,
            engine,
            identity,
            info: Info::default(),
            caps: 0,
            lanes: Default::default(),
            control: Mutex::new(()),
            transfers: Transfers::default(),
        };
        (instance.caps, instance.info) =
            instance.read_info().map_err(|error| contract(error.message))?;
        check_slots(&instance.vtable, instance.caps).map_err(contract)?;
        check_info(&instance.info).map_err(contract)?;
        if instance.caps & caps::NAMESPACE == 0 {
            let capability = "NAMESPACE".into();
            return Err(LoadError::MissingCapability { engine: name.into(), capability });
        }
        Ok(instance)
    }

    fn read_info(&self) -> Result<(u64, Info), EngineError> {
        let call = slot(self.vtable.info, "info")?;
        let (mut out, mut err) = (zeroed_out::<MseInfo>(), MseErr::empty());
        out.h = MseHdr::of::<MseInfo>();
        // SAFETY: a live engine and whole structs.
        let rc = unsafe { call(self.engine.as_ptr(), &raw mut out, &raw mut err) };
        check(rc, &err)?;
        // SAFETY: the engine vouches for its strings, which live as long as it does.
        let owned =
            |text, what| unsafe { read::string(text, STRING_BYTES_MAX, what).map(str::to_owned) };
        let info = Info {
            block_tokens: out.block_tokens,
            vocab: out.vocab,
            context_tokens_max: out.context_tokens_max,
            requests_max: out.requests_max,
            blocks_total: out.blocks_total,
            block_bytes: out.block_bytes,
            model: owned(out.model, "the model's name")?,
            model_dir: owned(out.model_dir, "the model's folder")?,
            device: owned(out.device, "the device's name")?,
            kv_layout: out.kv_layout,
        };
        Ok((out.caps, info))
    }

    pub(crate) fn stats(&self) -> Result<Stats, EngineError> {
        let call = slot(self.vtable.stats, "stats")?;
        let (mut out, mut err) = (zeroed_out::<MseStats>(), MseErr::empty());
        out.h = MseHdr::of::<MseStats>();
        // SAFETY: a live engine and whole structs.
        let rc = unsafe { call(self.engine.as_ptr(), &raw mut out, &raw mut err) };
        check(rc, &err)?;
        let health = match out.health {
            HEALTH_STARTING => Health::Starting,
            HEALTH_OK => Health::Ok,
            HEALTH_DRAINING => Health::Draining,
            HEALTH_FATAL => Health::Fatal,
            other => return Err(EngineError::internal(format!("unknown health {other}"))),
        };
        Ok(Stats {
            epoch: out.epoch,
            kv_seq: out.kv_seq,
            running: out.running,
            waiting: out.waiting,
            health,
            blocks_used: out.blocks_used,
            blocks_cached: out.blocks_cached,
            blocks_pinned: out.blocks_pinned,
            hit_tokens: out.hit_tokens,
            query_tokens: out.query_tokens,
            prefill_tokens: out.prefill_tokens,
            decode_tokens: out.decode_tokens,
            preemptions: out.preemptions,
            evictions: out.evictions,
            waiting_prefill_tokens: out.waiting_prefill_tokens,
            draft_tokens: out.draft_tokens,
            accepted_tokens: out.accepted_tokens,
            ages: block_ages(&out)?,
        })
    }

    pub(crate) fn submit(&self, request: &Request) -> Result<(), EngineError> {
        let call = slot(self.vtable.submit, "submit")?;
        let mut err = MseErr::empty();
        let rc = encode::request(request, |raw| {
            // SAFETY: a live engine; the request is borrowed for the call.
            unsafe { call(self.engine.as_ptr(), raw, &raw mut err) }
        });
        check(rc, &err)
    }

    pub(crate) fn cancel(&self, id: u64) {
        if let Some(call) = self.vtable.cancel {
            // SAFETY: a live engine. The code says nothing: the final output does.
            unsafe { call(self.engine.as_ptr(), id) };
        }
    }

    pub(crate) fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        let call = slot(self.vtable.drain, "drain")?;
        let _one_at_a_time = self.control.lock();
        let mut err = MseErr::empty();
        // SAFETY: a live engine and a whole struct.
        let rc = unsafe { call(self.engine.as_ptr(), micros(timeout), &raw mut err) };
        check(rc, &err)
    }

    pub(crate) fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        let call = slot(self.vtable.kv_snapshot, "kv_snapshot")?;
        let mut err = MseErr::empty();
        // SAFETY: a live engine and a whole struct.
        let rc = unsafe { call(self.engine.as_ptr(), op_id, &raw mut err) };
        check(rc, &err)
    }

    pub(crate) fn pin(&self, pin: &Pin) -> Result<(), EngineError> {
        let call = slot(self.vtable.pin, "pin")?;
        let mut err = MseErr::empty();
        let rc = encode::pin(pin, |raw| {
            // SAFETY: a live engine; the pin is borrowed for the call.
            unsafe { call(self.engine.as_ptr(), raw, &raw mut err) }
        });
        check(rc, &err)
    }

    pub(crate) fn unpin(&self, op_id: u64, pin_id: u128) -> Result<(), EngineError> {
        let call = slot(self.vtable.unpin, "unpin")?;
        let mut err = MseErr::empty();
        // SAFETY: a live engine and a whole struct.
        let rc = unsafe { call(self.engine.as_ptr(), op_id, pin_id.into(), &raw mut err) };
        check(rc, &err)
    }

    pub(crate) fn lease(&self, change: &LeaseChange) -> Result<(), EngineError> {
        let call = slot(self.vtable.lease, "lease")?;
        let mut err = MseErr::empty();
        let rc = encode::lease(change, |raw| {
            // SAFETY: a live engine; the change is borrowed for the call.
            unsafe { call(self.engine.as_ptr(), raw, &raw mut err) }
        });
        check(rc, &err)
    }

    /// Copies blocks out; `done` hears how it ended, on the thread of the OP lane.
    pub(crate) fn kv_export(
        &self,
        blocks: Vec<u128>,
        done: impl FnOnce(Whole) + Send + 'static,
    ) -> Result<(), EngineError> {
        let call = slot(self.vtable.kv_export, "kv_export")?;
        let bytes = blocks.len().saturating_mul(self.info.block_bytes as usize);
        let export = Lent::of_export(blocks, bytes)?;
        let mut err = MseErr::empty();
        let lend = |op_id, lent: &mut Lent| lent.export(op_id);
        self.transfers.lend(export, Box::new(done), lend, |raw| {
            // SAFETY: a live engine; the bytes stay in `transfers` until the op ends or the engine is destroyed.
            let rc = unsafe { call(self.engine.as_ptr(), &raw const raw, &raw mut err) };
            check(rc, &err)
        })
    }

    /// Takes blocks in; `done` hears how it ended, on the thread of the OP lane.
    pub(crate) fn kv_import(
        &self,
        import: KvImport,
        done: impl FnOnce(Whole) + Send + 'static,
    ) -> Result<(), EngineError> {
        let call = slot(self.vtable.kv_import, "kv_import")?;
        let mut err = MseErr::empty();
        let lend = |op_id, lent: &mut Lent| lent.import(op_id);
        self.transfers.lend(Lent::of_import(import), Box::new(done), lend, |raw| {
            // SAFETY: as above.
            let rc = unsafe { call(self.engine.as_ptr(), &raw const raw, &raw mut err) };
            check(rc, &err)
        })
    }

    /// Nobody reads lane OP any more: those who wait for a transfer are told so.
    pub(crate) fn close_transfers(&self) {
        self.transfers.close();
    }

    /// The next outputs; waits for them up to `timeout`.
    pub(crate) fn next_outputs(&self, timeout: Duration) -> Result<Next<Vec<Output>>, Broken> {
        self.next(LANE_OUT, timeout, |batch, cursor| {
            // SAFETY: `next` calls this between poll and release.
            let outputs = unsafe { decode::outputs(batch)? };
            cursor.advance_without_gaps(batch, "OUT")?;
            Ok(outputs)
        })
    }

    /// The next cache events; waits for them up to `timeout`.
    pub(crate) fn next_kv(&self, timeout: Duration) -> Result<Next<KvBatch>, Broken> {
        self.next(LANE_KV, timeout, |batch, cursor| {
            // SAFETY: `next` calls this between poll and release.
            let items = unsafe { decode::kv(batch)? };
            Ok(cursor.advance_kv(batch, items))
        })
    }

    /// The next ended operations; waits for them up to `timeout`.
    pub(crate) fn next_ops(&self, timeout: Duration) -> Result<Next<Vec<OpDone>>, Broken> {
        self.next(LANE_OP, timeout, |batch, cursor| {
            // SAFETY: `next` calls this between poll and release.
            let ops = unsafe { decode::ops(batch)? };
            cursor.advance_without_gaps(batch, "OP")?;
            Ok(self.transfers.end(ops))
        })
    }

    fn next<T>(
        &self,
        lane: u32,
        timeout: Duration,
        decode: impl FnOnce(&MseBatch, &mut Cursor) -> Result<T, Broken>,
    ) -> Result<Next<T>, Broken> {
        let missing = |name: &str| format!("its {name} is null");
        let wait = self.vtable.wait.ok_or_else(|| missing("wait"))?;
        let poll = self.vtable.poll.ok_or_else(|| missing("poll"))?;
        let release = self.vtable.batch_release.ok_or_else(|| missing("batch_release"))?;
        let mut cursor = self.lanes[lane as usize].lock();
        // SAFETY: a live engine; the lock makes this the lane's only thread.
        match unsafe { wait(self.engine.as_ptr(), lane, micros(timeout)) } {
            OK => {}
            rc if rc == Code::NotFound.rc() => return Ok(Next::TimedOut),
            rc if rc == Code::Unavailable.rc() => return Ok(Next::Closed),
            rc => return Err(format!("wait on lane {lane} failed with {rc}")),
        }
        let (mut batch, mut err) = (zeroed_out::<MseBatch>(), MseErr::empty());
        batch.h = MseHdr::of::<MseBatch>();
        // SAFETY: as above, and whole structs.
        let rc =
            unsafe { poll(self.engine.as_ptr(), lane, POLL_ITEMS, &raw mut batch, &raw mut err) };
        check(rc, &err).map_err(|error| format!("poll on lane {lane} failed, {error}"))?;
        if batch.len == 0 {
            // SAFETY: the batch that was just polled, released once.
            unsafe { release(self.engine.as_ptr(), &raw mut batch) };
            return Ok(Next::TimedOut);
        }
        let decoded = if batch.lane == lane {
            decode(&batch, &mut cursor)
        } else {
            Err(format!("a batch of lane {} came from lane {lane}", batch.lane))
        };
        // SAFETY: as above; the views are not used any more.
        unsafe { release(self.engine.as_ptr(), &raw mut batch) };
        decoded.map(Next::Items)
    }
}

impl Cursor {
    fn advance_without_gaps(&mut self, batch: &MseBatch, lane: &str) -> Result<(), Broken> {
        if batch.first_seq != self.next_seq {
            let (expected, found) = (self.next_seq, batch.first_seq);
            return Err(format!("lane {lane} went from {expected} to {found}; it must not drop"));
        }
        self.next_seq += u64::from(batch.len);
        Ok(())
    }

    fn advance_kv(&mut self, batch: &MseBatch, items: decode::KvItems) -> KvBatch {
        let follows = batch.epoch == self.epoch && batch.first_seq == self.next_seq;
        let begins = items.reset && batch.epoch > self.epoch && batch.first_seq == 0;
        let gap = !follows && !begins;
        self.epoch = batch.epoch;
        self.next_seq = batch.first_seq.saturating_add(u64::from(items.len));
        KvBatch {
            epoch: batch.epoch,
            first_seq: batch.first_seq,
            reset: items.reset || gap,
            gap,
            events: items.events,
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(destroy) = self.vtable.destroy {
            // SAFETY: made by `create`; no other call runs, since this is the last owner.
            unsafe { destroy(self.engine.as_ptr()) };
        }
    }
}

fn zeroed_out<T: Headed>() -> T {
    // SAFETY: `Headed` says that all zero bytes are a value.
    unsafe { std::mem::zeroed() }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Slots and capabilities must agree, and nothing mandatory may be missing.
fn check_slots(vtable: &MseVtable, bits: u64) -> Result<(), String> {
    let mandatory = [
        ("destroy", vtable.destroy.is_some()),
        ("info", vtable.info.is_some()),
        ("stats", vtable.stats.is_some()),
        ("submit", vtable.submit.is_some()),
        ("cancel", vtable.cancel.is_some()),
        ("wait", vtable.wait.is_some()),
        ("poll", vtable.poll.is_some()),
        ("batch_release", vtable.batch_release.is_some()),
        ("drain", vtable.drain.is_some()),
    ];
    if let Some((name, _)) = mandatory.iter().find(|(_, is_there)| !is_there) {
        return Err(format!("its {name} is null"));
    }
    let optional = [
        ("kv_snapshot", vtable.kv_snapshot.is_some(), caps::KV_SNAPSHOT),
        ("pin", vtable.pin.is_some(), caps::PIN),
        ("unpin", vtable.unpin.is_some(), caps::PIN),
        ("kv_export", vtable.kv_export.is_some(), caps::TRANSFER),
        ("kv_import", vtable.kv_import.is_some(), caps::TRANSFER),
        ("lease", vtable.lease.is_some(), caps::LEASE),
    ];
    match optional.iter().find(|(_, is_there, bit)| *is_there != (bits & bit != 0)) {
        Some((name, _, _)) => Err(format!("its {name} does not agree with its capabilities")),
        None => Ok(()),
    }
}

fn check_info(info: &Info) -> Result<(), String> {
    let counts = [
        ("block_tokens", info.block_tokens),
        ("vocab", info.vocab),
        ("context_tokens_max", info.context_tokens_max),
        ("requests_max", info.requests_max),
    ];
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((name, _)) => Err(format!("its {name} is 0")),
        None => Ok(()),
    }
}
