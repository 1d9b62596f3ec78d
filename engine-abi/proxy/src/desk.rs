//! The desk between the host's calls and the engine's threads: who is live, who has ended, what the figures are.
//!
//! Its lock is held for a few instructions only. An id is free again before its final output can be seen, and
//! whoever sees that nothing is live finds every final output in the lane.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Health, Lanes, Output, Request, Stats};
use mainstay_engine_shell::roster::{self, Roster, Rostered};

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

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

struct Inbox {
    roster: Roster,
    /// How many of them are at the server.
    running: u32,
    /// Why the engine has ended.
    dead: Option<String>,
    /// The server does not answer.
    is_away: bool,
    stats: Stats,
}

impl Rostered for Inbox {
    fn roster(&mut self) -> &mut Roster {
        &mut self.roster
    }
}

/// The desk.
pub struct Desk {
    inbox: Mutex<Inbox>,
    /// Rung when no request is live.
    quiet: Condvar,
    commands: Mutex<Option<Sender>>,
    lanes: Arc<Lanes>,
}

impl Desk {
    /// A desk whose commands go to `send`, which answers whether anybody takes them. There are no more of them at a
    /// time than live requests and open operations, which are both bounded.
    pub fn new(
        lanes: Arc<Lanes>,
        requests_max: u32,
        send: impl Fn(Command) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        let inbox = Inbox {
            roster: Roster::new(requests_max as usize),
            running: 0,
            dead: None,
            is_away: false,
            stats: Stats::default(),
        };
        Arc::new(Self {
            inbox: Mutex::new(inbox),
            quiet: Condvar::new(),
            commands: Mutex::new(Some(Box::new(send))),
            lanes,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        roster::lock(&self.inbox)
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        let sender = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender.as_ref().is_some_and(|send| send(command));
        if sent { Ok(()) } else { Err(EngineError::unavailable("the engine has ended").fatal()) }
    }

    /// # Errors
    /// As `Engine::submit`.
    pub fn submit(&self, request: Request) -> Result<(), EngineError> {
        let id = request.id;
        let mut inbox = self.lock();
        if let Some(reason) = &inbox.dead {
            return Err(EngineError::unavailable(reason.clone()).fatal());
        }
        inbox.roster.check(id)?;
        if inbox.is_away {
            let away = EngineError::unavailable("the server does not answer; use another worker");
            return Err(EngineError { retry_after_ms: AWAY_RETRY_MS, ..away });
        }
        inbox.roster.enter(&request, AWAY_RETRY_MS / 4)?;
        let sent = self.send(Command::Submit(Box::new(request)));
        if sent.is_err() {
            inbox.roster.leave(id);
        }
        sent
    }

    /// The request's end follows, unless it has ended.
    pub fn cancel(&self, id: u64) {
        let mut inbox = self.lock();
        if inbox.roster.cancel(id) {
            // An engine that has ended ends its requests by itself.
            let _ = self.send(Command::Cancel(id));
        }
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
        roster::drain(&self.inbox, &self.quiet, [timeout, grace], |id| self.cancel(id))
    }

    /// The figures, and how the engine is.
    pub fn stats(&self) -> Stats {
        let inbox = self.lock();
        let health = match (&inbox.dead, inbox.roster.is_closed(), inbox.is_away) {
            (Some(_), _, _) => Health::Fatal,
            (None, true, _) => Health::Draining,
            (None, false, true) => Health::Starting,
            (None, false, false) => Health::Ok,
        };
        let waiting = (inbox.roster.len() as u32).saturating_sub(inbox.running);
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
        self.lock().roster.is_cancelled(id)
    }

    pub fn is_draining(&self) -> bool {
        self.lock().roster.is_closed()
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
        if !inbox.roster.leave(last.id) {
            return;
        }
        if was_running {
            inbox.running = inbox.running.saturating_sub(1);
        }
        let is_quiet = inbox.roster.is_empty();
        self.lanes.output(Output { finish: Some(finish), ..last });
        drop(inbox);
        if is_quiet {
            self.quiet.notify_all();
        }
    }

    /// Ends all that is live.
    pub fn end_all(&self, finish: &Finish) {
        let mut inbox = self.lock();
        inbox.roster.leave_all(finish).for_each(|output| self.lanes.output(output));
        inbox.running = 0;
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
