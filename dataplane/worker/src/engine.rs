//! The engine as this crate sees it: the host's handle behind a trait.
//!
//! The trait exists so that the tests can put an engine of their own in place, which crashes, refuses and
//! stalls on command; in a running worker there is one implementation.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use mainstay_engine_abi::sdk::{EngineError, Info, LeaseChange, Pin, Request, Stats};
use mainstay_engine_host::{EngineHandle, HostError, Source};

pub(crate) use mainstay_engine_host::{KvBatch, KvImport, OpDone, Receivers};

/// What a call into an engine comes to.
pub(crate) type Answer<'a, T> = BoxFuture<'a, Result<T, EngineError>>;

/// A running engine.
pub(crate) trait Engine: Send + Sync + 'static {
    fn info(&self) -> Info;
    fn caps(&self) -> u64;
    /// Vendor, name and version, for people.
    fn name(&self) -> String;
    fn stats(&self) -> Answer<'_, Stats>;
    fn submit(&self, request: Request) -> Answer<'_, ()>;
    /// Never waits; the request's final output follows.
    fn cancel(&self, id: u64);
    fn pin(&self, pin: Pin) -> Answer<'_, ()>;
    fn unpin(&self, op_id: u64, pin_id: u128) -> Answer<'_, ()>;
    fn kv_snapshot(&self, op_id: u64) -> Answer<'_, ()>;
    fn lease(&self, change: LeaseChange) -> Answer<'_, ()>;
    /// The bytes of a chain's blocks, up to the first that is not held.
    fn kv_export(&self, blocks: Vec<u128>) -> Answer<'_, Vec<u8>>;
    /// Takes blocks in; how many of them are held then.
    fn kv_import(&self, import: KvImport) -> Answer<'_, u32>;
    /// Ends the engine without waiting; live requests end with an error.
    fn stop(&self);
}

/// What opening an engine gives, or why it does not open, for the operator.
pub(crate) type Opening = Result<(Arc<dyn Engine>, Receivers), String>;

/// Opens engines, the first one and those after a crash.
pub(crate) trait Opener: Send + Sync + 'static {
    /// May take as long as loading takes.
    fn open(&self, config_json: String) -> BoxFuture<'_, Opening>;
}

/// Opens what the configuration names.
pub(crate) struct HostOpener(pub(crate) Source);

impl Opener for HostOpener {
    fn open(&self, config_json: String) -> BoxFuture<'_, Opening> {
        async move {
            let opened = mainstay_engine_host::open(self.0.clone(), &config_json).await;
            let (handle, receivers) = opened.map_err(|error| error.to_string())?;
            Ok((Arc::new(handle) as Arc<dyn Engine>, receivers))
        }
        .boxed()
    }
}

fn refusal(error: HostError) -> EngineError {
    match error {
        HostError::Refused(error) => error,
        other => EngineError {
            retry_after_ms: other.retry_after_ms().unwrap_or(0),
            ..EngineError::new(other.code(), other.to_string())
        },
    }
}

impl Engine for EngineHandle {
    fn info(&self) -> Info {
        Self::info(self).clone()
    }

    fn caps(&self) -> u64 {
        Self::caps(self)
    }

    fn name(&self) -> String {
        let identity = self.identity();
        format!("{} {} {}", identity.vendor, identity.name, identity.version)
    }

    fn stats(&self) -> Answer<'_, Stats> {
        Self::stats(self).map(|stats| stats.map_err(refusal)).boxed()
    }

    fn submit(&self, request: Request) -> Answer<'_, ()> {
        Self::submit(self, request).map(|done| done.map_err(refusal)).boxed()
    }

    fn cancel(&self, id: u64) {
        Self::cancel(self, id);
    }

    fn pin(&self, pin: Pin) -> Answer<'_, ()> {
        Self::pin(self, pin).map(|done| done.map_err(refusal)).boxed()
    }

    fn unpin(&self, op_id: u64, pin_id: u128) -> Answer<'_, ()> {
        Self::unpin(self, op_id, pin_id).map(|done| done.map_err(refusal)).boxed()
    }

    fn lease(&self, change: LeaseChange) -> Answer<'_, ()> {
        Self::lease(self, change).map(|done| done.map_err(refusal)).boxed()
    }

    fn kv_snapshot(&self, op_id: u64) -> Answer<'_, ()> {
        Self::kv_snapshot(self, op_id).map(|done| done.map_err(refusal)).boxed()
    }

    fn kv_export(&self, blocks: Vec<u128>) -> Answer<'_, Vec<u8>> {
        Self::kv_export(self, blocks).map(|done| done.map_err(refusal)).boxed()
    }

    fn kv_import(&self, import: KvImport) -> Answer<'_, u32> {
        Self::kv_import(self, import).map(|done| done.map_err(refusal)).boxed()
    }

    fn stop(&self) {
        Self::stop(self);
    }
}
