//! Which requests are live, with how many prompt tokens, and whom nobody waits for any more: plain state, for whoever
//! stands between the host's calls and an engine's threads. It has no lock and computes nothing.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Output, Request};

/// Requests that may wait besides those that run.
const WAITING_REQUESTS_MAX: usize = 1024;
/// Prompt tokens of all live requests together.
const LIVE_TOKENS_MAX: u64 = 1 << 26;

#[derive(Debug)]
struct Live {
    tokens: u64,
    is_cancelled: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Roster {
    live: HashMap<u64, Live>,
    tokens: u64,
    live_max: usize,
    is_closed: bool,
}

impl Roster {
    /// Of an engine that runs so many requests at a time.
    #[must_use]
    pub fn new(requests_max: usize) -> Self {
        let live_max = requests_max.saturating_add(WAITING_REQUESTS_MAX);
        Self { live: HashMap::new(), tokens: 0, live_max, is_closed: false }
    }

    /// Nobody enters from here on.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// Whether nobody enters any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether a request of that id could enter, were there room.
    ///
    /// # Errors
    /// `Unavailable` where nobody enters any more, `Exists` where the id is live.
    pub fn check(&self, id: u64) -> Result<(), EngineError> {
        if self.is_closed {
            return Err(EngineError::unavailable("the engine is draining; use another"));
        }
        if self.live.contains_key(&id) {
            let message = format!("request {id} is live already; choose another id");
            return Err(EngineError::new(Code::Exists, message));
        }
        Ok(())
    }

    /// A request is live from here on.
    ///
    /// # Errors
    /// As [`Roster::check`]; `Exhausted` where there is no room, with when to come again.
    pub fn enter(&mut self, request: &Request, retry_after_ms: u32) -> Result<(), EngineError> {
        self.check(request.id)?;
        let tokens = request.tokens.len() as u64;
        if self.live.len() >= self.live_max || self.tokens + tokens > LIVE_TOKENS_MAX {
            let message = format!("{} requests are live; come again later", self.live.len());
            return Err(EngineError::exhausted(message, retry_after_ms));
        }
        self.live.insert(request.id, Live { tokens, is_cancelled: false });
        self.tokens += tokens;
        Ok(())
    }

    /// A request has ended, and its id is free; whether it was live.
    pub fn leave(&mut self, id: u64) -> bool {
        let Some(live) = self.live.remove(&id) else { return false };
        self.tokens -= live.tokens;
        true
    }

    /// All have ended: their last outputs.
    pub fn leave_all(&mut self, finish: &Finish) -> impl Iterator<Item = Output> + use<> {
        self.tokens = 0;
        let finish = finish.clone();
        let ended = std::mem::take(&mut self.live).into_keys();
        ended.map(move |id| Output { id, finish: Some(finish.clone()), ..Output::default() })
    }

    /// Nobody waits for it any more; whether that is news of a live request.
    pub fn cancel(&mut self, id: u64) -> bool {
        let live = self.live.get_mut(&id).filter(|live| !live.is_cancelled);
        live.map(|live| live.is_cancelled = true).is_some()
    }

    /// Whether it is live and nobody waits for it.
    #[must_use]
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.live.get(&id).is_some_and(|live| live.is_cancelled)
    }

    /// Whether it is live and somebody waits for it.
    #[must_use]
    pub fn wants(&self, id: u64) -> bool {
        self.live.get(&id).is_some_and(|live| !live.is_cancelled)
    }

    /// How many are live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

/// What holds a roster.
pub trait Rostered {
    /// It.
    fn roster(&mut self) -> &mut Roster;
}

/// Lets nobody enter any more, waits for `timeout` until all have ended, cancels who is left, and waits for `grace` for
/// their ends. `quiet` is rung whenever nobody is live.
///
/// # Errors
/// `Internal` when requests do not end even so.
pub fn drain<S: Rostered>(
    state: &Mutex<S>,
    quiet: &Condvar,
    [timeout, grace]: [Duration; 2],
    cancel: impl Fn(u64),
) -> Result<(), EngineError> {
    lock(state).roster().close();
    let wait = |limit| {
        let busy = |state: &mut S| !state.roster().is_empty();
        let waited = quiet.wait_timeout_while(lock(state), limit, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0
    };
    let left: Vec<u64> = wait(timeout).roster().live.keys().copied().collect();
    left.into_iter().for_each(cancel);
    match wait(grace).roster().len() {
        0 => Ok(()),
        left => Err(EngineError::internal(format!("{left} requests do not end"))),
    }
}

/// A lock under which each change is one whole step, so that a poisoned state is as good as any.
pub fn lock<S>(state: &Mutex<S>) -> MutexGuard<'_, S> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, tokens: usize) -> Request {
        Request { id, tokens: vec![0; tokens], ..Request::default() }
    }

    impl Rostered for Roster {
        fn roster(&mut self) -> &mut Roster {
            self
        }
    }

    #[test]
    fn an_id_is_live_once_and_free_again_after_its_end() {
        let mut roster = Roster::new(1);
        roster.enter(&request(7, 3), 5).unwrap();
        assert_eq!(roster.enter(&request(7, 3), 5).unwrap_err().rc, Code::Exists);
        assert!(roster.wants(7) && roster.cancel(7) && !roster.cancel(7));
        assert!(roster.is_cancelled(7) && !roster.wants(7));
        assert!(roster.leave(7) && !roster.leave(7));
        assert_eq!((roster.len(), roster.tokens), (0, 0));
        roster.enter(&request(7, 3), 5).unwrap();
        let ended: Vec<Output> = roster.leave_all(&Finish::Cancelled).collect();
        assert_eq!((ended.len(), ended[0].id), (1, 7));
        assert!(roster.is_empty() && roster.tokens == 0);
    }

    #[test]
    fn there_is_room_for_so_many_and_they_are_told_when_to_come_again() {
        let mut roster = Roster::new(1);
        for id in 0..=WAITING_REQUESTS_MAX as u64 {
            roster.enter(&request(id, 0), 5).unwrap();
        }
        let full = roster.enter(&request(9_999, 0), 5).unwrap_err();
        assert_eq!((full.rc, full.retry_after_ms), (Code::Exhausted, 5));
        roster.close();
        assert_eq!(roster.enter(&request(9_999, 0), 5).unwrap_err().rc, Code::Unavailable);
    }

    #[test]
    fn a_drain_cancels_who_is_left_and_says_who_does_not_end() {
        let (state, quiet) = (Mutex::new(Roster::new(4)), Condvar::new());
        for id in [1, 2] {
            lock(&state).enter(&request(id, 1), 5).unwrap();
        }
        let limits = [Duration::ZERO, Duration::from_millis(20)];
        let error = drain(&state, &quiet, limits, |id| {
            assert!(lock(&state).cancel(id));
            // The second one never ends.
            if id == 1 {
                lock(&state).leave(id);
            }
        });
        assert_eq!(error.unwrap_err().rc, Code::Internal);
        let ended = drain(&state, &quiet, limits, |id| assert!(lock(&state).leave(id)));
        ended.unwrap();
        assert!(lock(&state).is_closed());
    }
}
