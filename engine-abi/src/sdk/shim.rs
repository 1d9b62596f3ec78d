//! The C functions of the vtable, generic over the engine.
//!
//! Every function catches panics, since unwinding across the boundary aborts the process (R5). A
//! panic marks the instance broken: its health is fatal from then on, and the host replaces it.
//! Arguments are judged before the engine sees them; outputs stay untouched on every error (R3).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::lanes::{Lanes, Waited};
use super::types::{Ages, Health, Info, caps};
use super::{Code, Engine, EngineError, HostLog, batch, decode};
use crate::limits;
use crate::raw::{
    AGES_TOLD, HEALTH_DRAINING, HEALTH_FATAL, HEALTH_OK, HEALTH_STARTING, LANE_KV, LANE_OP,
    LANE_OUT, MseAges, MseBatch, MseEngine, MseErr, MseExport, MseHdr, MseHost, MseImport, MseInfo,
    MseLease, MsePin, MseRequest, MseStats, MseStr, MseU128, MseVtable, OK,
};
use crate::read::{read_struct, string, write_error, write_struct};

/// How soon to come again when the OUT lane is full: about a decode step.
const OUT_FULL_RETRY_MS: u32 = 20;
/// How soon to come again when too many operations are outstanding.
const OPS_FULL_RETRY_MS: u32 = 50;

/// What an `mse_engine` pointer of this SDK points at.
struct Instance<E> {
    engine: E,
    lanes: Arc<Lanes>,
    /// Kept here so that the strings of `mse_info` live as long as the engine.
    info: Info,
    broken: AtomicBool,
}

impl<E: Engine> Instance<E> {
    /// The type's capabilities, without those bits that this instance lacks and that no slot stands for.
    fn caps(&self) -> u64 {
        const SLOTS: u64 = caps::KV_SNAPSHOT | caps::PIN | caps::TRANSFER;
        E::CAPS & (SLOTS | self.engine.caps())
    }
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let text = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without words".to_owned()
    };
    // The payload's own drop could panic, which nothing could catch any more.
    std::mem::forget(payload);
    text
}

/// Runs `body`; errors and panics go into `err` and become the returned code.
unsafe fn guard(err: *mut MseErr, body: impl FnOnce() -> Result<(), EngineError>) -> i32 {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(error)) => error,
        Err(payload) => {
            EngineError::internal(format!("the engine panicked: {}", panic_text(payload))).fatal()
        }
    };
    // SAFETY: `err` is the caller's, null or whole.
    unsafe { write_error(err, &error) };
    error.rc.rc()
}

/// As [`guard`], for a live instance; a panic breaks it.
unsafe fn with<E: Engine>(
    engine: *const MseEngine,
    err: *mut MseErr,
    body: impl FnOnce(&Instance<E>) -> Result<(), EngineError>,
) -> i32 {
    let instance = engine.cast::<Instance<E>>();
    // SAFETY: `err` is the caller's.
    unsafe {
        guard(err, || {
            if instance.is_null() || !instance.is_aligned() {
                return Err(EngineError::invalid("the engine pointer is null or misaligned"));
            }
            // SAFETY: the host passes only what `create` gave it and `destroy` has not taken.
            let instance = &*instance;
            match catch_unwind(AssertUnwindSafe(|| body(instance))) {
                Ok(result) => result,
                Err(payload) => {
                    instance.broken.store(true, Ordering::Release);
                    let text = panic_text(payload);
                    Err(EngineError::internal(format!("the engine panicked: {text}")).fatal())
                }
            }
        })
    }
}

fn broken_means_unavailable<E>(instance: &Instance<E>) -> Result<(), EngineError> {
    if instance.broken.load(Ordering::Acquire) {
        return Err(EngineError::unavailable("the engine panicked before").fatal());
    }
    Ok(())
}

unsafe extern "C" fn create<E: Engine>(
    host: *const MseHost,
    config_json: MseStr,
    out: *mut *mut MseEngine,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: all four are the caller's, borrowed for this call (R4).
    unsafe {
        guard(err, || {
            if out.is_null() || !out.is_aligned() {
                return Err(EngineError::invalid("out is null or misaligned"));
            }
            let host = read_struct(host)?;
            let config = string(config_json, limits::CONFIG_BYTES_MAX, "the configuration")?;
            let lanes = Arc::new(Lanes::new());
            let log = HostLog::from_raw(host.ctx, host.log);
            let engine = E::create(config, Arc::clone(&lanes), log)?;
            let info = engine.info();
            lanes.size_for(&info);
            let instance = Instance { engine, lanes, info, broken: AtomicBool::new(false) };
            out.write(Box::into_raw(Box::new(instance)).cast());
            Ok(())
        })
    }
}

unsafe extern "C" fn destroy<E: Engine>(engine: *mut MseEngine) {
    if engine.is_null() {
        return;
    }
    let body = || {
        // SAFETY: made by `create`; the host destroys once and makes no other call meanwhile.
        let instance = unsafe { Box::from_raw(engine.cast::<Instance<E>>()) };
        instance.lanes.close();
        drop(instance);
        Ok(())
    };
    // SAFETY: null is allowed for `err`. A panic in the engine's drop leaks what was left of it.
    let _ = unsafe { guard(std::ptr::null_mut(), body) };
}

unsafe extern "C" fn info<E: Engine>(
    engine: *const MseEngine,
    out: *mut MseInfo,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            let info = &instance.info;
            let value = MseInfo {
                h: MseHdr::of::<MseInfo>(),
                caps: instance.caps(),
                block_tokens: info.block_tokens,
                vocab: info.vocab,
                context_tokens_max: info.context_tokens_max,
                requests_max: info.requests_max,
                blocks_total: info.blocks_total,
                block_bytes: info.block_bytes,
                model: MseStr::of(&info.model),
                model_dir: MseStr::of(&info.model_dir),
                device: MseStr::of(&info.device),
                kv_layout: info.kv_layout,
            };
            write_struct(out, &value)
        })
    }
}

unsafe extern "C" fn stats<E: Engine>(
    engine: *const MseEngine,
    out: *mut MseStats,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            let stats = instance.engine.stats();
            let (epoch, kv_seq) = instance.lanes.kv_position();
            let broken = instance.broken.load(Ordering::Acquire) || instance.lanes.is_closed();
            let health = match stats.health {
                _ if broken => HEALTH_FATAL,
                Health::Starting => HEALTH_STARTING,
                Health::Ok => HEALTH_OK,
                Health::Draining => HEALTH_DRAINING,
                Health::Fatal => HEALTH_FATAL,
            };
            let ages = stats.ages.unwrap_or_default();
            let value = MseStats {
                h: MseHdr::of::<MseStats>(),
                epoch,
                kv_seq,
                running: stats.running,
                waiting: stats.waiting,
                health,
                _reserved: 0,
                blocks_used: stats.blocks_used,
                blocks_cached: stats.blocks_cached,
                blocks_pinned: stats.blocks_pinned,
                hit_tokens: stats.hit_tokens,
                query_tokens: stats.query_tokens,
                prefill_tokens: stats.prefill_tokens,
                decode_tokens: stats.decode_tokens,
                preemptions: stats.preemptions,
                evictions: stats.evictions,
                waiting_prefill_tokens: stats.waiting_prefill_tokens,
                ages: if stats.ages.is_some() { AGES_TOLD } else { 0 },
                _reserved2: 0,
                age_at_hit: raw_ages(&ages.at_hit),
                age_at_eviction: ages.at_eviction.each_ref().map(raw_ages),
                draft_tokens: stats.draft_tokens,
                accepted_tokens: stats.accepted_tokens,
            };
            write_struct(out, &value)
        })
    }
}

fn raw_ages(ages: &Ages) -> MseAges {
    MseAges { by_power: ages.by_power, sum_ms: ages.sum_ms }
}

unsafe extern "C" fn submit<E: Engine>(
    engine: *mut MseEngine,
    request: *const MseRequest,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            broken_means_unavailable(instance)?;
            let request = decode::request(request, &instance.info)?;
            if instance.lanes.is_closed() {
                return Err(EngineError::unavailable("the engine has ended").fatal());
            }
            if !instance.lanes.output_has_room() {
                let message = "the host does not keep up with the outputs";
                return Err(EngineError::exhausted(message, OUT_FULL_RETRY_MS));
            }
            if request.guided.is_some() && instance.caps() & caps::GUIDED == 0 {
                let message = "this engine gives its outputs no form";
                return Err(EngineError::new(Code::Unimplemented, message));
            }
            if !request.leases.is_empty() && E::CAPS & caps::LEASE == 0 {
                return Err(EngineError::unimplemented("this engine has no leases"));
            }
            instance.engine.submit(request)
        })
    }
}

unsafe extern "C" fn cancel<E: Engine>(engine: *mut MseEngine, id: u64) -> i32 {
    // SAFETY: the pointer is the caller's.
    unsafe {
        with::<E>(engine, std::ptr::null_mut(), |instance| {
            broken_means_unavailable(instance)?;
            instance.engine.cancel(id);
            Ok(())
        })
    }
}

fn unknown_lane(lane: u32) -> EngineError {
    EngineError::invalid(format!("there is no lane {lane}"))
}

unsafe extern "C" fn wait<E: Engine>(engine: *mut MseEngine, lane: u32, timeout_us: u64) -> i32 {
    // SAFETY: the pointer is the caller's.
    unsafe {
        with::<E>(engine, std::ptr::null_mut(), |instance| {
            let timeout = Duration::from_micros(timeout_us);
            let waited = match lane {
                LANE_OUT => instance.lanes.wait_outputs(timeout),
                LANE_KV => instance.lanes.wait_kv(timeout),
                LANE_OP => instance.lanes.wait_ops(timeout),
                _ => return Err(unknown_lane(lane)),
            };
            match waited {
                Waited::Ready => Ok(()),
                Waited::TimedOut => Err(EngineError::new(Code::NotFound, "timed out")),
                Waited::Closed => Err(EngineError::unavailable("the lane is closed")),
            }
        })
    }
}

unsafe extern "C" fn poll<E: Engine>(
    engine: *mut MseEngine,
    lane: u32,
    items_max: u32,
    out: *mut MseBatch,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            // Judged before anything is taken: what is taken and can't be handed over would be lost.
            if read_struct(out.cast_const())?.h.size < size_of::<MseBatch>() as u32 {
                return Err(EngineError::invalid("mse_batch is too small to hold a batch"));
            }
            let items_max = items_max.min(limits::BATCH_ITEMS_MAX) as usize;
            let taken = match lane {
                LANE_OUT => batch::of_outputs(instance.lanes.take_outputs(items_max)),
                LANE_KV => batch::of_kv(instance.lanes.take_kv(items_max)),
                LANE_OP => batch::of_ops(instance.lanes.take_ops(items_max)),
                _ => return Err(unknown_lane(lane)),
            };
            write_struct(out, &taken)
        })
    }
}

unsafe extern "C" fn batch_release(_engine: *mut MseEngine, taken: *mut MseBatch) {
    let body = || {
        if !taken.is_null() && taken.is_aligned() {
            // SAFETY: a batch that `poll` filled; clearing it makes a second release harmless.
            unsafe {
                batch::release((*taken).opaque);
                let lane = (*taken).lane;
                return write_struct(taken, &batch::empty(lane));
            }
        }
        Ok(())
    };
    // SAFETY: null is allowed for `err`.
    let _ = unsafe { guard(std::ptr::null_mut(), body) };
}

unsafe extern "C" fn drain<E: Engine>(
    engine: *mut MseEngine,
    timeout_us: u64,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            broken_means_unavailable(instance)?;
            instance.engine.drain(Duration::from_micros(timeout_us))
        })
    }
}

/// Counts the operation in, and out again when the engine refuses it.
fn operate<E: Engine>(
    instance: &Instance<E>,
    body: impl FnOnce(&E) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    broken_means_unavailable(instance)?;
    if !instance.lanes.begin_op() {
        return Err(EngineError::exhausted("too many operations at once", OPS_FULL_RETRY_MS));
    }
    let result = body(&instance.engine);
    if result.is_err() {
        instance.lanes.abandon_op();
    }
    result
}

unsafe extern "C" fn kv_snapshot<E: Engine>(
    engine: *mut MseEngine,
    op_id: u64,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| operate(instance, |engine| engine.kv_snapshot(op_id)))
    }
}

unsafe extern "C" fn pin<E: Engine>(
    engine: *mut MseEngine,
    pin: *const MsePin,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            let pin = decode::pin(pin)?;
            operate(instance, |engine| engine.pin(pin))
        })
    }
}

unsafe extern "C" fn unpin<E: Engine>(
    engine: *mut MseEngine,
    op_id: u64,
    pin_id: MseU128,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            operate(instance, |engine| engine.unpin(op_id, pin_id.into()))
        })
    }
}

unsafe extern "C" fn kv_export<E: Engine>(
    engine: *mut MseEngine,
    export: *const MseExport,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            let export = decode::export(export, &instance.info)?;
            operate(instance, |engine| engine.kv_export(export))
        })
    }
}

unsafe extern "C" fn kv_import<E: Engine>(
    engine: *mut MseEngine,
    import: *const MseImport,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            let import = decode::import(import, &instance.info)?;
            operate(instance, |engine| engine.kv_import(import))
        })
    }
}

unsafe extern "C" fn lease<E: Engine>(
    engine: *mut MseEngine,
    lease: *const MseLease,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the pointers are the caller's.
    unsafe {
        with::<E>(engine, err, |instance| {
            let change = decode::lease(lease)?;
            broken_means_unavailable(instance)?;
            instance.engine.lease(change)
        })
    }
}

/// The vtable of `E`; optional slots are null exactly when their capability is off.
pub(super) const fn vtable<E: Engine>() -> MseVtable {
    let has_pin = E::CAPS & caps::PIN != 0;
    let has_snapshot = E::CAPS & caps::KV_SNAPSHOT != 0;
    let has_transfer = E::CAPS & caps::TRANSFER != 0;
    let has_lease = E::CAPS & caps::LEASE != 0;
    MseVtable {
        h: MseHdr::of::<MseVtable>(),
        create: Some(create::<E>),
        destroy: Some(destroy::<E>),
        info: Some(info::<E>),
        stats: Some(stats::<E>),
        submit: Some(submit::<E>),
        cancel: Some(cancel::<E>),
        wait: Some(wait::<E>),
        poll: Some(poll::<E>),
        batch_release: Some(batch_release),
        drain: Some(drain::<E>),
        kv_snapshot: if has_snapshot { Some(kv_snapshot::<E>) } else { None },
        pin: if has_pin { Some(pin::<E>) } else { None },
        unpin: if has_pin { Some(unpin::<E>) } else { None },
        kv_export: if has_transfer { Some(kv_export::<E>) } else { None },
        kv_import: if has_transfer { Some(kv_import::<E>) } else { None },
        lease: if has_lease { Some(lease::<E>) } else { None },
    }
}

#[cfg(test)]
mod tests;
