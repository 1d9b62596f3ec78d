//! The desk between the host's calls and the engine's thread: who is live, who has ended, what the figures are.
//!
//! Its lock is held for a few instructions only. An id is free again before its final output can be seen, and
//! whoever sees that nothing is live finds every final output in the lane.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Health, Lanes, Output, Request, Stats};
use tokio::sync::mpsc;

use crate::kv::listen::Snapshot;
use crate::kv::mirror::Mirror;
use crate::kv::salts::Salts;

/// Requests that may wait besides those at the server.
const WAITING_REQUESTS_MAX: usize = 1024;
/// Prompt tokens of all live requests together.
const LIVE_TOKENS_MAX: u64 = 1 << 26;
/// How soon to come again while the server is away.
const AWAY_RETRY_MS: u32 = 1000;

/// What the host asks for.
pub(crate) enum Command {
    Submit(Box<Request>),
    Cancel(u64),
    Snapshot(Snapshot),
}

/// The salts, shared by those that ask and the one that listens.
#[derive(Clone)]
pub(crate) struct SharedSalts(Arc<Mutex<Salts>>);

impl SharedSalts {
    pub(crate) fn new(salts: Salts) -> Self {
        Self(Arc::new(Mutex::new(salts)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Salts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mirror of the server's cache, shared by the one that keeps it and those that ask what is held.
#[derive(Clone)]
pub(crate) struct SharedMirror(Arc<Mutex<Mirror>>);

impl SharedMirror {
    pub(crate) fn new(mirror: Mirror) -> Self {
        Self(Arc::new(Mutex::new(mirror)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Mirror> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Live {
    tokens: u64,
    is_cancelled: bool,
}

#[derive(Default)]
struct Inbox {
    live: HashMap<u64, Live>,
    live_tokens: u64,
    /// How many of them are at the server.
    running: u32,
    is_draining: bool,
    /// Why the engine has ended.
    dead: Option<String>,
    /// The server does not answer.
    is_away: bool,
    stats: Stats,
}

/// The desk.
pub(crate) struct Desk {
    inbox: Mutex<Inbox>,
    /// Rung when no request is live.
    quiet: Condvar,
    commands: Mutex<Option<mpsc::UnboundedSender<Command>>>,
    lanes: Arc<Lanes>,
    requests_max: usize,
}

impl Desk {
    /// A desk, and the end at which its commands arrive. There are no more of them than live requests and open
    /// operations, which are both bounded.
    pub(crate) fn new(
        lanes: Arc<Lanes>,
        requests_max: u32,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let desk = Self {
            inbox: Mutex::new(Inbox::default()),
            quiet: Condvar::new(),
            commands: Mutex::new(Some(sender)),
            lanes,
            requests_max: requests_max as usize,
        };
        (Arc::new(desk), receiver)
    }

    // Each change under the lock is one whole step, so a poisoned inbox is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        let sender = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender.as_ref().is_some_and(|sender| sender.send(command).is_ok());
        if sent { Ok(()) } else { Err(EngineError::unavailable("the engine has ended").fatal()) }
    }

    pub(crate) fn submit(&self, request: Request) -> Result<(), EngineError> {
        let (id, tokens) = (request.id, request.tokens.len() as u64);
        let mut inbox = self.lock();
        if let Some(reason) = &inbox.dead {
            return Err(EngineError::unavailable(reason.clone()).fatal());
        }
        if inbox.is_draining {
            return Err(EngineError::unavailable("the engine is draining; use another"));
        }
        if inbox.live.contains_key(&id) {
            let message = format!("request {id} is live already; choose another id");
            return Err(EngineError::new(Code::Exists, message));
        }
        if inbox.is_away {
            let away = EngineError::unavailable("the server does not answer; use another worker");
            return Err(EngineError { retry_after_ms: AWAY_RETRY_MS, ..away });
        }
        let live_max = self.requests_max + WAITING_REQUESTS_MAX;
        if inbox.live.len() >= live_max || inbox.live_tokens + tokens > LIVE_TOKENS_MAX {
            let message = format!("{} requests are live; come again later", inbox.live.len());
            return Err(EngineError::exhausted(message, AWAY_RETRY_MS / 4));
        }
        inbox.live.insert(id, Live { tokens, is_cancelled: false });
        inbox.live_tokens += tokens;
        let sent = self.send(Command::Submit(Box::new(request)));
        if sent.is_err() {
            inbox.live.remove(&id);
            inbox.live_tokens -= tokens;
        }
        sent
    }

    pub(crate) fn cancel(&self, id: u64) {
        let mut inbox = self.lock();
        let Some(live) = inbox.live.get_mut(&id).filter(|live| !live.is_cancelled) else { return };
        live.is_cancelled = true;
        // An engine that has ended ends its requests by itself.
        let _ = self.send(Command::Cancel(id));
    }

    pub(crate) fn snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.send(Command::Snapshot(Snapshot { op_id }))
    }

    /// No more commands: the thread's loop ends.
    pub(crate) fn close(&self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(crate) fn drain(&self, timeout: Duration, grace: Duration) -> Result<(), EngineError> {
        self.lock().is_draining = true;
        let inbox = self.wait_quiet(timeout);
        let left: Vec<u64> = inbox.live.keys().copied().collect();
        drop(inbox);
        left.into_iter().for_each(|id| self.cancel(id));
        let inbox = self.wait_quiet(grace);
        if inbox.live.is_empty() {
            return Ok(());
        }
        Err(EngineError::internal(format!("{} requests do not end", inbox.live.len())))
    }

    fn wait_quiet(&self, timeout: Duration) -> MutexGuard<'_, Inbox> {
        let busy = |inbox: &mut Inbox| !inbox.live.is_empty();
        let waited = self.quiet.wait_timeout_while(self.lock(), timeout, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn stats(&self) -> Stats {
        let inbox = self.lock();
        let health = match (&inbox.dead, inbox.is_draining, inbox.is_away) {
            (Some(_), _, _) => Health::Fatal,
            (None, true, _) => Health::Draining,
            (None, false, true) => Health::Starting,
            (None, false, false) => Health::Ok,
        };
        let waiting = (inbox.live.len() as u32).saturating_sub(inbox.running);
        Stats { health, waiting, running: inbox.running, ..inbox.stats }
    }

    pub(crate) fn set_away(&self, is_away: bool) {
        self.lock().is_away = is_away;
    }

    pub(crate) fn is_away(&self) -> bool {
        self.lock().is_away
    }

    /// How many requests are at the server.
    pub(crate) fn set_running(&self, running: usize) {
        self.lock().running = running as u32;
    }

    /// Changes the figures.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.lock().stats);
    }

    /// Tokens that are not the last.
    pub(crate) fn output(&self, output: Output) {
        self.lanes.output(output);
    }

    pub(crate) fn has_room(&self) -> bool {
        self.lanes.output_has_room()
    }

    /// A request's end. A second one is nothing.
    pub(crate) fn end(&self, last: Output, finish: Finish, was_running: bool) {
        let mut inbox = self.lock();
        let Some(live) = inbox.live.remove(&last.id) else { return };
        inbox.live_tokens -= live.tokens;
        if was_running {
            inbox.running = inbox.running.saturating_sub(1);
        }
        let is_quiet = inbox.live.is_empty();
        self.lanes.output(Output { finish: Some(finish), ..last });
        drop(inbox);
        if is_quiet {
            self.quiet.notify_all();
        }
    }

    /// Ends all that is live.
    pub(crate) fn end_all(&self, finish: &Finish) {
        let mut inbox = self.lock();
        for id in std::mem::take(&mut inbox.live).into_keys() {
            let finish = Some(finish.clone());
            self.lanes.output(Output { id, finish, ..Output::default() });
        }
        (inbox.live_tokens, inbox.running) = (0, 0);
        drop(inbox);
        self.quiet.notify_all();
    }

    /// The engine is at its end: nobody may wait for it any more.
    pub(crate) fn die(&self, reason: &str) {
        self.lock().dead = Some(reason.to_owned());
        let rc = Code::Unavailable.rc();
        self.end_all(&Finish::Error { rc, message: reason.to_owned() });
        self.lanes.close();
    }
}
