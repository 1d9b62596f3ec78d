//! The handle to an open engine, the same whether it runs here or in a child.
//!
//! A handle is cheap to clone. When the last one is dropped the engine is stopped: requests that are
//! still live end with an error, the lanes close, and the engine is destroyed on a thread of its own.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mainstay_engine_abi::sdk::{
    Code, EngineError, Health, Info, LeaseChange, OpDone, Output, Pin, Request, Stats, caps,
};
use tokio::sync::{mpsc, oneshot};

use crate::KvBatch;
use crate::error::{ExitReason, HostError};
use crate::instance::Instance;
use crate::magic::EngineIdentity;
use crate::remote::Remote;
use crate::shared::Shared;
use crate::transfer::{self, KvImport, Whole, users_own};
use crate::wire::{Answer, Call};

/// What comes out of an engine.
#[derive(Debug)]
pub struct Receivers {
    /// Outputs, in the order of each request. Read it until it ends, also after `exit` has fired: the
    /// last batches hold the final outputs of what was live.
    pub outputs: mpsc::Receiver<Vec<Output>>,
    pub kv: mpsc::Receiver<KvBatch>,
    pub ops: mpsc::Receiver<OpDone>,
    /// Fires once, when the engine has ended and why.
    pub exit: oneshot::Receiver<ExitReason>,
}

pub(crate) enum Link {
    Local(Option<Arc<Instance>>),
    Remote(Remote),
}

struct Inner {
    identity: EngineIdentity,
    info: Info,
    caps: u64,
    shared: Arc<Shared>,
    link: Link,
}

/// An open engine.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

/// What a call got back: nothing from the engine, or its answer.
type Outcome = Result<Result<Answer, EngineError>, HostError>;

impl EngineHandle {
    pub(crate) fn new(
        identity: EngineIdentity,
        info: Info,
        caps: u64,
        shared: Arc<Shared>,
        link: Link,
    ) -> Self {
        Self { inner: Arc::new(Inner { identity, info, caps, shared, link }) }
    }

    pub fn identity(&self) -> &EngineIdentity {
        &self.inner.identity
    }

    pub fn info(&self) -> &Info {
        &self.inner.info
    }

    /// The bits of [`sdk::caps`](crate::sdk::caps).
    pub fn caps(&self) -> u64 {
        self.inner.caps
    }

    /// The process that the engine runs in, when it is not this one.
    pub fn process_id(&self) -> Option<u32> {
        match &self.inner.link {
            Link::Local(_) => None,
            Link::Remote(remote) => Some(remote.process_id),
        }
    }

    /// Hands a request to the engine. Once this returns `Ok`, outputs follow that end in exactly one
    /// with a `finish`, even if the engine dies; after an error none do. Outputs may come before this
    /// returns.
    ///
    /// # Errors
    /// `Refused` with the engine's own reason (or `Exists` for a live id), `Busy`, `Ended`. Dropping
    /// the future before it is done leaves it open whether the engine has the request; cancel it by
    /// its id, and don't count on an output.
    pub async fn submit(&self, request: Request) -> Result<(), HostError> {
        if request.guided.is_some() {
            self.demand(caps::GUIDED, "GUIDED")?;
        }
        if !request.leases.is_empty() {
            self.demand(caps::LEASE, "LEASE")?;
        }
        let live = &self.inner.shared.live;
        let id = request.id;
        live.enter(id)?;
        let entered = Entered { handle: self, id: Some(id) };
        let outcome = match &self.inner.link {
            Link::Local(_) => self.local(|instance| instance.submit(&request)),
            Link::Remote(remote) => {
                remote.call(Call::Submit(Box::new(request)), &self.inner.shared).await
            }
        };
        entered.leave();
        match self.settle(outcome) {
            Ok(_) => self.accept(id),
            Err(error @ HostError::Ended(_)) if !live.unanswered(id) => Err(error),
            Err(HostError::Ended(_)) => Ok(()),
            Err(error) => {
                live.refuse(id);
                Err(error)
            }
        }
    }

    /// Asks the engine to end a request; its final output follows. Does nothing for one that is not
    /// live. Never waits.
    pub fn cancel(&self, id: u64) {
        if self.inner.shared.live.cancel(id) {
            self.pass_cancel_on(id);
        }
    }

    /// Takes or renews a lease; its result comes through [`Receivers::ops`].
    ///
    /// # Errors
    /// `Unsupported` without the capability, else as [`EngineHandle::submit`].
    pub async fn pin(&self, pin: Pin) -> Result<(), HostError> {
        self.demand(caps::PIN, "PIN")?;
        users_own(pin.op_id)?;
        let outcome = match &self.inner.link {
            Link::Local(_) => self.local(|instance| instance.pin(&pin)),
            Link::Remote(remote) => remote.call(Call::Pin(pin), &self.inner.shared).await,
        };
        self.settle(outcome).map(drop)
    }

    /// Ends a lease; its result comes through [`Receivers::ops`].
    ///
    /// # Errors
    /// As [`EngineHandle::pin`].
    pub async fn unpin(&self, op_id: u64, pin_id: u128) -> Result<(), HostError> {
        self.demand(caps::PIN, "PIN")?;
        users_own(op_id)?;
        let outcome = match &self.inner.link {
            Link::Local(_) => self.local(|instance| instance.unpin(op_id, pin_id)),
            Link::Remote(remote) => {
                remote.call(Call::Unpin { op_id, pin_id }, &self.inner.shared).await
            }
        };
        self.settle(outcome).map(drop)
    }

    /// Changes or ends a lease; an engine that does not know it does nothing.
    ///
    /// # Errors
    /// `Unsupported` without the capability, else as [`EngineHandle::submit`].
    pub async fn lease(&self, change: LeaseChange) -> Result<(), HostError> {
        self.demand(caps::LEASE, "LEASE")?;
        let outcome = match &self.inner.link {
            Link::Local(_) => self.local(|instance| instance.lease(&change)),
            Link::Remote(remote) => remote.call(Call::Lease(change), &self.inner.shared).await,
        };
        self.settle(outcome).map(drop)
    }

    /// Has the engine tell everything that its cache holds, under a new epoch; the op follows.
    ///
    /// # Errors
    /// As [`EngineHandle::pin`].
    pub async fn kv_snapshot(&self, op_id: u64) -> Result<(), HostError> {
        self.demand(caps::KV_SNAPSHOT, "KV_SNAPSHOT")?;
        users_own(op_id)?;
        let outcome = match &self.inner.link {
            Link::Local(_) => self.local(|instance| instance.kv_snapshot(op_id)),
            Link::Remote(remote) => {
                remote.call(Call::KvSnapshot { op_id }, &self.inner.shared).await
            }
        };
        self.settle(outcome).map(drop)
    }

    /// Copies blocks out of the engine's cache, a chain first to last: the bytes of those before the first that it
    /// does not hold, `Info::block_bytes` each.
    ///
    /// # Errors
    /// `Unsupported` without the capability, else as [`EngineHandle::submit`].
    pub async fn kv_export(&self, blocks: Vec<u128>) -> Result<Vec<u8>, HostError> {
        self.demand(caps::TRANSFER, "TRANSFER")?;
        let asked = blocks.len();
        transfer::check_export(asked, &self.inner.info)?;
        let outcome = match &self.inner.link {
            Link::Local(_) => self.transfer(|i, told| i.kv_export(blocks, told)).await,
            Link::Remote(remote) => remote.call(Call::Export { blocks }, &self.inner.shared).await,
        };
        let of = usize::try_from(self.inner.info.block_bytes).unwrap_or(usize::MAX);
        let whole = self.whole(outcome, asked)?;
        if whole.bytes.len() != (whole.done as usize).saturating_mul(of) {
            return Err(self.other_kind());
        }
        Ok(whole.bytes)
    }

    /// Has the engine take blocks in as if it had computed them; answers with how many of them it holds now, from
    /// the first on. Requests that come after this hit them.
    ///
    /// # Errors
    /// As [`EngineHandle::kv_export`]; `Precondition` for a parent that is not held, or bytes of another layout.
    pub async fn kv_import(&self, import: KvImport) -> Result<u32, HostError> {
        self.demand(caps::TRANSFER, "TRANSFER")?;
        transfer::check_import(&import, &self.inner.info)?;
        let asked = import.blocks.len();
        let outcome = match &self.inner.link {
            Link::Local(_) => self.transfer(|i, told| i.kv_import(import, told)).await,
            Link::Remote(remote) => remote.call(Call::Import(import), &self.inner.shared).await,
        };
        Ok(self.whole(outcome, asked)?.done)
    }

    async fn transfer(
        &self,
        start: impl FnOnce(&Instance, Box<dyn FnOnce(Whole) + Send>) -> Result<(), EngineError>,
    ) -> Outcome {
        let (tell, told) = oneshot::channel();
        // Whoever asked may be gone by then.
        let done = Box::new(move |whole| drop(tell.send(whole)));
        let begun = self.local(|instance| start(instance, done))?;
        match begun {
            Ok(_) => told.await.map(|whole| Ok(Answer::Whole(whole))).map_err(|_| self.ended()),
            Err(error) => Ok(Err(error)),
        }
    }

    /// A transfer's end; a code that is not 0 is an error. A child that says more than it was asked is broken.
    fn whole(&self, outcome: Outcome, asked: usize) -> Result<Whole, HostError> {
        match self.settle(outcome)? {
            Answer::Whole(whole) if whole.done as usize > asked => Err(self.other_kind()),
            Answer::Whole(whole) if whole.rc == 0 => Ok(whole),
            Answer::Whole(whole) => {
                let message = format!("the transfer ended after {} blocks", whole.done);
                let error = EngineError::new(Code::from_rc(whole.rc), message);
                Err(HostError::Refused(error))
            }
            Answer::Done | Answer::Stats(_) => Err(self.other_kind()),
        }
    }

    fn other_kind(&self) -> HostError {
        self.end(ExitReason::Broken("an answer of another kind".into()));
        self.ended()
    }

    /// The engine's figures of now. A fatal health ends the engine.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub async fn stats(&self) -> Result<Stats, HostError> {
        let outcome = match &self.inner.link {
            Link::Local(Some(instance)) => {
                Ok(instance.stats().map(|stats| Answer::Stats(Box::new(stats))))
            }
            Link::Local(None) => Err(self.ended()),
            Link::Remote(remote) => remote.call(Call::Stats, &self.inner.shared).await,
        };
        match self.settle(outcome)? {
            Answer::Stats(stats) => {
                if stats.health == Health::Fatal {
                    self.end(ExitReason::Fatal("its health is fatal".into()));
                }
                Ok(*stats)
            }
            Answer::Done | Answer::Whole(_) => Err(self.other_kind()),
        }
    }

    /// Lets live requests end, admits no new ones, and cancels what is left at the timeout.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub async fn drain(&self, timeout: Duration) -> Result<(), HostError> {
        let outcome = match &self.inner.link {
            Link::Local(Some(instance)) => {
                let instance = Arc::clone(instance);
                let drained = tokio::task::spawn_blocking(move || instance.drain(timeout)).await;
                match drained {
                    Ok(result) => Ok(result.map(|()| Answer::Done)),
                    Err(_) => Err(self.ended()),
                }
            }
            Link::Local(None) => Err(self.ended()),
            Link::Remote(remote) => remote.drain(timeout, &self.inner.shared).await,
        };
        self.settle(outcome).map(drop)
    }

    /// Ends the engine now, without waiting for anything. Live requests end with an error.
    pub fn stop(&self) {
        self.end(ExitReason::Stopped);
    }

    fn pass_cancel_on(&self, id: u64) {
        match &self.inner.link {
            Link::Local(Some(instance)) => instance.cancel(id),
            Link::Local(None) => {}
            Link::Remote(remote) => remote.cancel(id),
        }
    }

    fn accept(&self, id: u64) -> Result<(), HostError> {
        if self.inner.shared.live.accept(id)? {
            self.pass_cancel_on(id);
        }
        Ok(())
    }

    fn local(&self, call: impl FnOnce(&Instance) -> Result<(), EngineError>) -> Outcome {
        match &self.inner.link {
            Link::Local(Some(instance)) if !self.inner.shared.stopping() => {
                Ok(call(instance).map(|()| Answer::Done))
            }
            _ => Err(self.ended()),
        }
    }

    fn demand(&self, bit: u64, name: &'static str) -> Result<(), HostError> {
        if self.inner.caps & bit == 0 { Err(HostError::Unsupported(name)) } else { Ok(()) }
    }

    fn ended(&self) -> HostError {
        HostError::Ended(self.inner.shared.reason())
    }

    /// An engine's refusal becomes an error of the host; a fatal one ends the engine.
    fn settle(&self, outcome: Outcome) -> Result<Answer, HostError> {
        outcome?.map_err(|error| {
            if error.fatal {
                self.end(ExitReason::Fatal(error.message.clone()));
            }
            HostError::Refused(error)
        })
    }

    fn end(&self, reason: ExitReason) {
        self.inner.end(reason);
    }
}

/// Keeps a request's entry honest when the submitting future is dropped before its answer: the engine
/// may have the request by then, so it counts as accepted and gets its end.
struct Entered<'a> {
    handle: &'a EngineHandle,
    id: Option<u64>,
}

impl Entered<'_> {
    fn leave(mut self) {
        self.id = None;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // When everything ended meanwhile there is nobody left to tell.
            let _ = self.handle.accept(id);
        }
    }
}

impl Inner {
    fn end(&self, reason: ExitReason) {
        self.shared.end(reason);
        if let Link::Remote(remote) = &self.link {
            remote.shut();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end(ExitReason::Stopped);
        if let Link::Local(instance) = &mut self.link
            && let Some(instance) = instance.take()
        {
            // Destroying joins the engine's threads, which an async thread must not wait for. If no
            // thread can be had, waiting here is the lesser evil, and that is what the drop of the
            // unstarted closure does.
            let _ = thread::Builder::new().name("engine-end".into()).spawn(move || drop(instance));
        }
    }
}
