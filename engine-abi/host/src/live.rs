//! The requests that an engine holds, so that each one ends exactly once whatever the engine does.
//!
//! A request is entered before it is submitted, counts as accepted once the engine said so or once an
//! output came for it, and leaves with its final output. What the engine says about unknown or ended
//! requests is dropped. When the engine ends, [`Live::close`] gives back those still owed an end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Output};
use parking_lot::Mutex;

use crate::error::{ExitReason, HostError};

/// Requests that one engine may hold, whatever it says of itself.
const REQUESTS_MAX: usize = 1 << 16;
const RETRY_AFTER_MS: u32 = 50;

#[derive(Clone, Copy, Default)]
struct State {
    accepted: bool,
    cancelled: bool,
    /// The cancellation came before the engine could know the request, and is still to be passed on.
    cancel_due: bool,
}

#[derive(Default)]
struct Table {
    requests: HashMap<u64, State>,
    ended: Option<ExitReason>,
}

#[derive(Default)]
pub(crate) struct Live {
    table: Mutex<Table>,
}

impl Live {
    /// Enters a request that is about to be submitted.
    pub(crate) fn enter(&self, id: u64) -> Result<(), HostError> {
        let mut table = self.table.lock();
        if let Some(reason) = &table.ended {
            return Err(HostError::Ended(reason.clone()));
        }
        if table.requests.len() >= REQUESTS_MAX {
            let message = format!("{REQUESTS_MAX} requests are live already");
            return Err(HostError::Refused(EngineError::exhausted(message, RETRY_AFTER_MS)));
        }
        match table.requests.entry(id) {
            Entry::Occupied(_) => {
                let message = format!("request {id} is live already");
                Err(HostError::Refused(EngineError::new(Code::Exists, message)))
            }
            Entry::Vacant(vacant) => {
                vacant.insert(State::default());
                Ok(())
            }
        }
    }

    /// The engine took the request; true when a cancellation has been waiting for that. An error
    /// when everything ended just before, so that the request was given no end and gets none.
    pub(crate) fn accept(&self, id: u64) -> Result<bool, HostError> {
        let mut guard = self.table.lock();
        let table = &mut *guard;
        match (table.requests.get_mut(&id), &table.ended) {
            (Some(state), None) => {
                state.accepted = true;
                Ok(std::mem::take(&mut state.cancel_due))
            }
            (Some(_), Some(reason)) => {
                let reason = reason.clone();
                table.requests.remove(&id);
                Err(HostError::Ended(reason))
            }
            // Its final output has been here already.
            (None, _) => Ok(false),
        }
    }

    /// The engine refused the request.
    pub(crate) fn refuse(&self, id: u64) {
        self.table.lock().requests.remove(&id);
    }

    /// The engine ended before it answered. True when the request counts as accepted all the same,
    /// because outputs have come for it.
    pub(crate) fn unanswered(&self, id: u64) -> bool {
        let mut table = self.table.lock();
        match table.requests.get(&id) {
            Some(state) if !state.accepted => {
                table.requests.remove(&id);
                false
            }
            _ => true,
        }
    }

    /// Whether a cancellation has to be passed on now: the first one of a request that the engine
    /// has. One that comes earlier waits for [`Live::accept`].
    pub(crate) fn cancel(&self, id: u64) -> bool {
        match self.table.lock().requests.get_mut(&id) {
            Some(state) if !state.cancelled => {
                state.cancelled = true;
                state.cancel_due = !state.accepted;
                state.accepted
            }
            _ => false,
        }
    }

    /// Drops what belongs to no live request, and lets go of those that end here.
    pub(crate) fn pass(&self, outputs: &mut Vec<Output>) {
        let mut table = self.table.lock();
        outputs.retain(|output| {
            let Some(state) = table.requests.get_mut(&output.id) else {
                tracing::warn!(id = output.id, "the engine sent an output for no live request");
                return false;
            };
            state.accepted = true;
            if output.finish.is_some() {
                table.requests.remove(&output.id);
            }
            true
        });
    }

    /// Ends everything: nothing is entered any more, and each accepted request gets its end.
    pub(crate) fn close(&self, reason: &ExitReason) -> Vec<Output> {
        let mut table = self.table.lock();
        table.ended.get_or_insert_with(|| reason.clone());
        let owed: Vec<u64> =
            table.requests.iter().filter(|(_, s)| s.accepted).map(|(id, _)| *id).collect();
        owed.into_iter()
            .map(|id| {
                table.requests.remove(&id);
                let message = format!("the engine has ended, {reason}");
                let finish = Some(Finish::Error { rc: Code::Unavailable.rc(), message });
                Output { id, finish, ..Output::default() }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
