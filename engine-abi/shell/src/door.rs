//! The door: who is live, what was asked for, what the figures are.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::vec::Drain;

use mainstay_engine_abi::sdk::{
    Code, EngineError, Export, Finish, Health, Import, Lanes, LeaseChange, Output, Pin, Request,
    Stats,
};

use crate::Work;

/// Requests that may wait besides those that run.
const WAITING_REQUESTS_MAX: usize = 1024;
/// Prompt tokens of all live requests together.
const LIVE_TOKENS_MAX: u64 = 1 << 26;
/// Commands that may wait where leases are changed; each change is as large as a request's ranges at most.
const COMMANDS_MAX: usize = 8_192;
const LEASE_RETRY_MS: u32 = 100;
/// How long `drain` waits for the ends of what it cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// What the host asks for beside requests.
#[derive(Debug)]
pub enum Ask {
    /// `Engine::pin`.
    Pin(Pin),
    /// `Engine::unpin`: operation and pin.
    Unpin(u64, u128),
    /// `Engine::kv_snapshot`: the operation.
    Snapshot(u64),
    /// `Engine::kv_export`.
    Export(Export),
    /// `Engine::kv_import`.
    Import(Import),
    /// `Engine::lease`.
    Lease(LeaseChange),
}

type Submit<W> = Box<dyn FnOnce(&mut W, u64) + Send>;

pub(crate) enum Command<W> {
    Submit(Box<Request>),
    /// A request that was made ready elsewhere.
    HandIn(Submit<W>),
    /// A request that never comes to the work.
    End(u64, Finish),
    Cancel(u64),
    Ask(Ask),
}

struct Live {
    tokens: u64,
    is_cancelled: bool,
}

pub(crate) struct Inbox<W> {
    pub(crate) commands: VecDeque<Command<W>>,
    live: HashMap<u64, Live>,
    live_tokens: u64,
    is_draining: bool,
    pub(crate) is_stopping: bool,
    pub(crate) is_dead: bool,
    stats: Stats,
    backlog_ms: u32,
}

impl<W> Inbox<W> {
    fn check_alive(&self) -> Result<(), EngineError> {
        if self.is_dead {
            return Err(EngineError::unavailable("the engine's thread has died").fatal());
        }
        Ok(())
    }

    fn wants(&self, id: u64) -> bool {
        self.live.get(&id).is_some_and(|live| !live.is_cancelled)
    }
}

/// What the host's threads see of an engine. Every method may be called from any of them.
pub struct Door<W> {
    inbox: Mutex<Inbox<W>>,
    /// Rung for the thread.
    bell: Condvar,
    /// Rung when no request is live.
    quiet: Condvar,
    requests_max: usize,
}

impl<W> std::fmt::Debug for Door<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl<W: Work> Door<W> {
    pub(crate) fn new(stats: Stats, requests_max: usize) -> Self {
        let inbox = Inbox {
            commands: VecDeque::new(),
            live: HashMap::new(),
            live_tokens: 0,
            is_draining: false,
            is_stopping: false,
            is_dead: false,
            stats,
            backlog_ms: 0,
        };
        let (bell, quiet) = (Condvar::new(), Condvar::new());
        Self { inbox: Mutex::new(inbox), bell, quiet, requests_max }
    }

    // Each change under the lock is one whole step, so a poisoned inbox is as good as any.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox<W>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a command and lets go of the inbox.
    fn push(&self, mut inbox: MutexGuard<'_, Inbox<W>>, command: Command<W>) {
        inbox.commands.push_back(command);
        drop(inbox);
        self.bell.notify_one();
    }

    /// Queues what the host asks for.
    ///
    /// # Errors
    /// `Unavailable` when the engine is dead, `Exhausted` when too much waits.
    pub fn ask(&self, ask: Ask) -> Result<(), EngineError> {
        let inbox = self.lock();
        // Requests and operations are bounded before they come here.
        if matches!(ask, Ask::Lease(_)) && inbox.commands.len() >= COMMANDS_MAX {
            return Err(EngineError::exhausted("too many changes at once", LEASE_RETRY_MS));
        }
        inbox.check_alive()?;
        self.push(inbox, Command::Ask(ask));
        Ok(())
    }

    /// The figures, and how the engine is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let inbox = self.lock();
        let health = match (inbox.is_dead, inbox.is_draining) {
            (true, _) => Health::Fatal,
            (false, true) => Health::Draining,
            (false, false) => inbox.stats.health,
        };
        Stats { health, ..inbox.stats }
    }

    fn enter(&self, request: &Request) -> Result<MutexGuard<'_, Inbox<W>>, EngineError> {
        let tokens = request.tokens.len() as u64;
        let mut inbox = self.lock();
        inbox.check_alive()?;
        if inbox.is_draining || inbox.is_stopping {
            return Err(EngineError::unavailable("the engine is draining; use another"));
        }
        if inbox.live.contains_key(&request.id) {
            let message = format!("request {} is live already; choose another id", request.id);
            return Err(EngineError::new(Code::Exists, message));
        }
        let live_max = self.requests_max + WAITING_REQUESTS_MAX;
        if inbox.live.len() >= live_max || inbox.live_tokens + tokens > LIVE_TOKENS_MAX {
            let message = format!("{} requests are live; come again later", inbox.live.len());
            return Err(EngineError::exhausted(message, inbox.backlog_ms.max(1)));
        }
        inbox.live.insert(request.id, Live { tokens, is_cancelled: false });
        inbox.live_tokens += tokens;
        Ok(inbox)
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// As `Engine::submit`.
    pub fn submit(&self, request: Request) -> Result<(), EngineError> {
        let inbox = self.enter(&request)?;
        self.push(inbox, Command::Submit(Box::new(request)));
        Ok(())
    }

    /// Takes a request in that is made ready elsewhere first. [`Door::hand_in`] or [`Door::end`] follows.
    ///
    /// # Errors
    /// As `Engine::submit`.
    pub fn announce(&self, request: &Request) -> Result<(), EngineError> {
        self.enter(request).map(drop)
    }

    /// Whether anybody still waits for an announced request.
    #[must_use]
    pub fn is_wanted(&self, id: u64) -> bool {
        let inbox = self.lock();
        !inbox.is_stopping && !inbox.is_dead && inbox.wants(id)
    }

    /// An announced request is ready: `submit` queues it. It ends with `Cancelled` if nobody waits for it any more.
    pub fn hand_in(&self, id: u64, submit: impl FnOnce(&mut W, u64) + Send + 'static) {
        let inbox = self.lock();
        // Under the lock: a cancel before this is seen here, one after it finds the request queued.
        let command = if inbox.wants(id) {
            Command::HandIn(Box::new(submit))
        } else {
            Command::End(id, Finish::Cancelled)
        };
        self.push(inbox, command);
    }

    /// Ends an announced request that the work will never see; with `Cancelled` if nobody waits for it any more.
    pub fn end(&self, id: u64, finish: Finish) {
        let inbox = self.lock();
        let finish = if inbox.wants(id) { finish } else { Finish::Cancelled };
        self.push(inbox, Command::End(id, finish));
    }

    /// The request's end follows, unless it has ended.
    pub fn cancel(&self, id: u64) {
        let mut inbox = self.lock();
        let Some(live) = inbox.live.get_mut(&id).filter(|live| !live.is_cancelled) else { return };
        live.is_cancelled = true;
        self.push(inbox, Command::Cancel(id));
    }

    /// Waits until all has ended, cancels what is left, and waits a little for its end.
    ///
    /// # Errors
    /// `Internal` when requests do not end even so.
    pub fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        self.lock().is_draining = true;
        let inbox = self.wait_quiet(timeout);
        let left: Vec<u64> = inbox.live.keys().copied().collect();
        drop(inbox);
        left.into_iter().for_each(|id| self.cancel(id));
        let inbox = self.wait_quiet(CANCEL_GRACE);
        if inbox.live.is_empty() {
            return Ok(());
        }
        Err(EngineError::internal(format!("{} requests do not end", inbox.live.len())))
    }

    fn wait_quiet(&self, timeout: Duration) -> MutexGuard<'_, Inbox<W>> {
        let busy = |inbox: &mut Inbox<W>| !inbox.live.is_empty();
        let waited = self.quiet.wait_timeout_while(self.lock(), timeout, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The queued commands; waits for some where there is nothing else to do. `None` when the engine is dropped.
    pub(crate) fn take(&self, wait: Option<Duration>) -> Option<VecDeque<Command<W>>> {
        let idle = |inbox: &mut Inbox<W>| inbox.commands.is_empty() && !inbox.is_stopping;
        let mut inbox = match wait {
            Some(Duration::ZERO) => self.lock(),
            Some(wait) => {
                let waited = self.bell.wait_timeout_while(self.lock(), wait, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.bell.wait_while(self.lock(), idle);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
        (!inbox.is_stopping).then(|| std::mem::take(&mut inbox.commands))
    }

    /// The thread's loop ends.
    pub(crate) fn stop(&self) {
        self.lock().is_stopping = true;
        self.bell.notify_one();
    }

    /// Publishes the figures and carries outputs away.
    pub(crate) fn report(
        &self,
        (stats, backlog_ms): (Stats, u32),
        outputs: Drain<'_, Output>,
        lanes: &Lanes,
    ) {
        let mut inbox = self.lock();
        inbox.stats = stats;
        inbox.backlog_ms = backlog_ms;
        self.carry_away(inbox, outputs, lanes);
    }

    /// Ends a request that the work never saw.
    pub(crate) fn end_one(&self, id: u64, finish: Finish, lanes: &Lanes) {
        let output = Output { id, finish: Some(finish), ..Output::default() };
        self.carry_away(self.lock(), vec![output].drain(..), lanes);
    }

    fn carry_away(
        &self,
        mut inbox: MutexGuard<'_, Inbox<W>>,
        outputs: Drain<'_, Output>,
        lanes: &Lanes,
    ) {
        // An id is free before its final output can be seen, so that it can be used again at once.
        for output in outputs.as_slice().iter().filter(|output| output.finish.is_some()) {
            if let Some(live) = inbox.live.remove(&output.id) {
                inbox.live_tokens -= live.tokens;
            }
        }
        let is_quiet = inbox.live.is_empty();
        // Under the lock, so that whoever sees the engine quiet finds every final in the lane.
        outputs.for_each(|output| lanes.output(output));
        drop(inbox);
        if is_quiet {
            self.quiet.notify_all();
        }
    }

    /// Ends all that is live.
    pub(crate) fn end_left(&self, lanes: &Lanes, finish: &Finish) {
        let mut inbox = self.lock();
        for id in std::mem::take(&mut inbox.live).into_keys() {
            lanes.output(Output { id, finish: Some(finish.clone()), ..Output::default() });
        }
        drop(inbox);
        self.quiet.notify_all();
    }
}
