//! The desk between the host's calls and the engine's threads: who is live, who has ended, what the figures are.
//!
//! Its lock is held for a few instructions only. An id is free again before its final output can be seen, and
//! whoever sees that nothing is live finds every final output in the lane.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Health, Lanes, Output, Request, Stats};
/// Requests that may wait besides those at the server.
const WAITING_REQUESTS_MAX: usize = 1024;
/// Prompt tokens of all live requests together.
const LIVE_TOKENS_MAX: u64 = 1 << 26;
/// How soon to come again while the server is away.
const AWAY_RETRY_MS: u32 = 1000;

/// What the host asks for.
#[derive(Debug)]
pub enum Command {
    Submit(Box<Request>),
    Cancel(u64),
    /// Everything that is held, for the operation of this number.
    Snapshot(u64),
}

type Sender = Box<dyn Fn(Command) -> bool + Send + Sync>;

struct Live {
    tokens: u64,
    is_cancelled: bool,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
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
pub struct Desk {
    inbox: Mutex<Inbox>,
    /// Rung when no request is live.
    quiet: Condvar,
    commands: Mutex<Option<Sender>>,
    lanes: Arc<Lanes>,
    requests_max: usize,
}

impl Desk {
    /// A desk whose commands go to `send`, which answers whether anybody takes them. There are no more of them at a
    /// time than live requests and open operations, which are both bounded.
    pub fn new(
        lanes: Arc<Lanes>,
        requests_max: u32,
        send: impl Fn(Command) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inbox: Mutex::new(Inbox::default()),
            quiet: Condvar::new(),
            commands: Mutex::new(Some(Box::new(send))),
            lanes,
            requests_max: requests_max as usize,
        })
    }

    // Each change under the lock is one whole step, so a poisoned inbox is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        let sender = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender.as_ref().is_some_and(|send| send(command));
        if sent { Ok(()) } else { Err(EngineError::unavailable("the engine has ended").fatal()) }
    }

    /// # Errors
    /// As `Engine::submit`.
    pub fn submit(&self, request: Request) -> Result<(), EngineError> {
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

    /// The request's end follows, unless it has ended.
    pub fn cancel(&self, id: u64) {
        let mut inbox = self.lock();
        let Some(live) = inbox.live.get_mut(&id).filter(|live| !live.is_cancelled) else { return };
        live.is_cancelled = true;
        // An engine that has ended ends its requests by itself.
        let _ = self.send(Command::Cancel(id));
    }

    /// # Errors
    /// `Unavailable` when the engine has ended.
    pub fn snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.send(Command::Snapshot(op_id))
    }

    /// No more commands: the thread's loop ends.
    pub fn close(&self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until all has ended, cancels what is left, and waits `grace` for its end.
    ///
    /// # Errors
    /// `Internal` when requests do not end even so.
    pub fn drain(&self, timeout: Duration, grace: Duration) -> Result<(), EngineError> {
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

    /// The figures, and how the engine is.
    pub fn stats(&self) -> Stats {
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

    /// Whether what computes does not answer: requests are refused meanwhile.
    pub fn set_away(&self, is_away: bool) {
        self.lock().is_away = is_away;
    }

    pub fn is_away(&self) -> bool {
        self.lock().is_away
    }

    /// Whether somebody wants this live request to end.
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.lock().live.get(&id).is_some_and(|live| live.is_cancelled)
    }

    pub fn is_draining(&self) -> bool {
        self.lock().is_draining
    }

    /// How many requests are at the server.
    pub fn set_running(&self, running: usize) {
        self.lock().running = running as u32;
    }

    /// Changes the figures.
    pub fn count(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.lock().stats);
    }

    /// Tokens that are not the last.
    pub fn output(&self, output: Output) {
        self.lanes.output(output);
    }

    pub fn has_room(&self) -> bool {
        self.lanes.output_has_room()
    }

    /// A request's end. A second one is nothing.
    pub fn end(&self, last: Output, finish: Finish, was_running: bool) {
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
    pub fn end_all(&self, finish: &Finish) {
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
    pub fn die(&self, reason: &str) {
        self.lock().dead = Some(reason.to_owned());
        let rc = Code::Unavailable.rc();
        self.end_all(&Finish::Error { rc, message: reason.to_owned() });
        self.lanes.close();
    }
}
