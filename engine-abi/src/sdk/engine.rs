//! The trait that a Rust engine implements; the shims turn it into the C vtable.
//!
//! Methods marked `any` may be called from any thread and must return within 50 us: they queue work
//! for the engine's own threads. A panic in any method is caught at the boundary, answered with
//! `MSE_E_INTERNAL`, and makes the engine's health fatal.

use std::sync::Arc;
use std::time::Duration;

use super::{
    EngineError, Export, HostLog, Identity, Import, Info, Lanes, LeaseChange, Pin, Request, Stats,
};

/// One engine instance. `Drop` stops and joins every thread that the engine made.
pub trait Engine: Send + Sync + Sized + 'static {
    const IDENTITY: Identity;

    /// The bits of [`caps`](super::caps). `KV_SNAPSHOT` and `PIN` open the methods of those names.
    const CAPS: u64;

    /// What this instance can do of [`Engine::CAPS`]: an engine that stands for several others learns in `create`
    /// which it is. Bits with methods of their own (`KV_SNAPSHOT`, `PIN`, `TRANSFER`) stay as they are there.
    fn caps(&self) -> u64 {
        Self::CAPS
    }

    /// Starts an engine. It may take long (loading weights). `config_json` is a JSON object of at
    /// most 1 MiB; outputs, events and op results go to `lanes` from the engine's threads.
    ///
    /// # Errors
    /// Whatever is wrong with the configuration, in words the operator can act on.
    fn create(config_json: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError>;

    /// What the engine is; asked for once after `create`.
    fn info(&self) -> Info;

    /// `any`. Figures of now; `epoch` and `kv_seq` are overwritten from the lanes.
    fn stats(&self) -> Stats;

    /// `any`. Queues a request; once accepted it ends in exactly one output with a `finish`.
    ///
    /// # Errors
    /// `Exists` for a live id, `Exhausted` when the queue is full, `Unavailable` while draining.
    fn submit(&self, request: Request) -> Result<(), EngineError>;

    /// `any`, idempotent. The request's final output follows, `Cancelled` unless it ended before.
    fn cancel(&self, id: u64);

    /// Admits nothing more, returns once all requests have ended; what is left at the timeout is
    /// cancelled. Blocks up to `timeout` and a little.
    ///
    /// # Errors
    /// `Internal` when requests are stuck even so.
    fn drain(&self, timeout: Duration) -> Result<(), EngineError>;

    /// `any`. Calls [`Lanes::begin_snapshot`], emits everything stored with `snapshot: true`, then
    /// [`Lanes::op`] with the number of blocks. Normally queued to the thread that owns the cache.
    ///
    /// # Errors
    /// `Unavailable` when the engine is dead.
    fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        let _ = op_id;
        Err(EngineError::unimplemented("this engine makes no snapshots"))
    }

    /// `any`. Takes or renews a lease; `done` of the op is the number of its blocks held now.
    ///
    /// # Errors
    /// `Exhausted` when the pin budget is full.
    fn pin(&self, pin: Pin) -> Result<(), EngineError> {
        let _ = pin;
        Err(EngineError::unimplemented("this engine has no pins"))
    }

    /// `any`. Ends a lease; an unknown `pin_id` is answered with an op of `NotFound`.
    ///
    /// # Errors
    /// `Unavailable` when the engine is dead.
    fn unpin(&self, op_id: u64, pin_id: u128) -> Result<(), EngineError> {
        let _ = (op_id, pin_id);
        Err(EngineError::unimplemented("this engine has no pins"))
    }

    /// `any`. Copies blocks out, first to last and up to the first that is not held, and ends the export.
    ///
    /// # Errors
    /// `Unavailable` when the engine is dead.
    fn kv_export(&self, export: Export) -> Result<(), EngineError> {
        let _ = export;
        Err(EngineError::unimplemented("this engine's blocks stay where they are"))
    }

    /// `any`. Takes blocks in as if they had been computed, first to last as far as there is room, and ends the
    /// import. Their layout is this engine's.
    ///
    /// # Errors
    /// `Unavailable` when the engine is dead.
    fn kv_import(&self, import: Import) -> Result<(), EngineError> {
        let _ = import;
        Err(EngineError::unimplemented("this engine takes no blocks"))
    }

    /// `any`. Changes or ends a lease, after the requests that were submitted before; one that is not known is nothing.
    ///
    /// # Errors
    /// `Unavailable` when the engine is dead, `Exhausted` when it can't queue more.
    fn lease(&self, change: LeaseChange) -> Result<(), EngineError> {
        let _ = change;
        Err(EngineError::unimplemented("this engine has no leases"))
    }
}
