//! The door: who is live, what was asked for, what the figures are.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::vec::Drain;

use mainstay_engine_abi::sdk::{
    EngineError, Export, Finish, Health, Import, Lanes, LeaseChange, Output, Pin, Request, Stats,
};

use crate::Work;
use crate::roster::{self, Roster, Rostered};

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

pub(crate) struct Inbox<W> {
    pub(crate) commands: VecDeque<Command<W>>,
    roster: Roster,
    pub(crate) is_stopping: bool,
    pub(crate) is_dead: bool,
    stats: Stats,
    backlog_ms: u32,
}

impl<W> Rostered for Inbox<W> {
    fn roster(&mut self) -> &mut Roster {
        &mut self.roster
    }
}

impl<W> Inbox<W> {
    fn check_alive(&self) -> Result<(), EngineError> {
        if self.is_dead {
            return Err(EngineError::unavailable("the engine's thread has died").fatal());
        }
        Ok(())
    }
}

/// What the host's threads see of an engine. Every method may be called from any of them.
pub struct Door<W> {
    inbox: Mutex<Inbox<W>>,
    /// Rung for the thread.
    bell: Condvar,
    /// Rung when no request is live.
    quiet: Condvar,
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
            roster: Roster::new(requests_max),
            is_stopping: false,
            is_dead: false,
            stats,
            backlog_ms: 0,
        };
        let (bell, quiet) = (Condvar::new(), Condvar::new());
        Self { inbox: Mutex::new(inbox), bell, quiet }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox<W>> {
        roster::lock(&self.inbox)
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
        let health = match (inbox.is_dead, inbox.roster.is_closed()) {
            (true, _) => Health::Fatal,
            (false, true) => Health::Draining,
            (false, false) => inbox.stats.health,
        };
        Stats { health, ..inbox.stats }
    }

    fn enter(&self, request: &Request) -> Result<MutexGuard<'_, Inbox<W>>, EngineError> {
        let mut inbox = self.lock();
        inbox.check_alive()?;
        let retry_after_ms = inbox.backlog_ms.max(1);
        inbox.roster.enter(request, retry_after_ms)?;
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
        !inbox.is_stopping && !inbox.is_dead && inbox.roster.wants(id)
    }

    /// An announced request is ready: `submit` queues it. It ends with `Cancelled` if nobody waits for it any more.
    pub fn hand_in(&self, id: u64, submit: impl FnOnce(&mut W, u64) + Send + 'static) {
        let inbox = self.lock();
        // Under the lock: a cancel before this is seen here, one after it finds the request queued.
        let command = if inbox.roster.wants(id) {
            Command::HandIn(Box::new(submit))
        } else {
            Command::End(id, Finish::Cancelled)
        };
        self.push(inbox, command);
    }

    /// Ends an announced request that the work will never see; with `Cancelled` if nobody waits for it any more.
    pub fn end(&self, id: u64, finish: Finish) {
        let inbox = self.lock();
        let finish = if inbox.roster.wants(id) { finish } else { Finish::Cancelled };
        self.push(inbox, Command::End(id, finish));
    }

    /// The request's end follows, unless it has ended.
    pub fn cancel(&self, id: u64) {
        let mut inbox = self.lock();
        if inbox.roster.cancel(id) {
            self.push(inbox, Command::Cancel(id));
        }
    }

    /// Waits until all has ended, cancels what is left, and waits a little for its end.
    ///
    /// # Errors
    /// `Internal` when requests do not end even so.
    pub fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        roster::drain(&self.inbox, &self.quiet, [timeout, CANCEL_GRACE], |id| self.cancel(id))
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
        let mut inbox = self.lock();
        inbox.roster.close();
        inbox.is_stopping = true;
        drop(inbox);
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
            inbox.roster.leave(output.id);
        }
        let is_quiet = inbox.roster.is_empty();
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
        inbox.roster.leave_all(finish).for_each(|output| lanes.output(output));
        drop(inbox);
        self.quiet.notify_all();
    }
}
