//! Who served which session, and the prefix that its next turn will begin with: bounded, and names only.
//!
//! A gateway knows the sessions that it served itself. Of each it keeps the names of its last turn's blocks, no tokens;
//! where those of all take too much, the session that was served longest ago loses its own first.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use mainstay_block::{Event, SessionId, Stakes};
use mainstay_types::{NamespaceId, SequenceHash, TenantId, WorkerId};

use crate::model::PromptMemory;
use crate::workers::Workers;

/// Workers of a session that are told of its changes: those that served it last.
const WORKERS_MAX: usize = 4;

/// What one turn of a session was.
#[derive(Clone)]
pub(super) struct Turned {
    pub(super) session: SessionId,
    pub(super) tenant: TenantId,
    pub(super) namespace: NamespaceId,
    pub(super) blocks: Arc<[SequenceHash]>,
    pub(super) block_tokens: u32,
    /// Tokens of the prompt with which its loop of calls began.
    pub(super) loop_from: u32,
    /// Whether thoughts are in no prompt any more once the loop is over.
    pub(super) thoughts_fall: bool,
}

/// A session's last turn, as far as it is known.
#[derive(Debug, Clone)]
pub(crate) struct Prefix {
    pub(crate) tenant: TenantId,
    pub(crate) namespace: NamespaceId,
    /// Its prompt's whole blocks; none where their names had to make room.
    pub(crate) blocks: Arc<[SequenceHash]>,
    pub(crate) block_tokens: u32,
    /// Tokens of the prompt with which its loop of calls began.
    loop_from: u32,
    /// Whether thoughts are in no prompt any more once the loop is over.
    pub(super) thoughts_fall: bool,
    /// Whose blocks they are; empty where the worker had gone already.
    pub(crate) model: Arc<str>,
    pub(crate) revision: Arc<str>,
    /// Who served it, the last one last.
    pub(crate) workers: Vec<WorkerId>,
}

impl Prefix {
    /// Where its loop began, for a prompt that goes on from it; `None` where that is not known.
    pub(super) fn loop_of(
        &self,
        namespace: NamespaceId,
        block_tokens: u32,
        blocks: &[SequenceHash],
    ) -> Option<u32> {
        if (self.namespace, self.block_tokens) != (namespace, block_tokens) {
            return None;
        }
        let whole = (self.loop_from / block_tokens.max(1)) as usize;
        let goes_on = match whole.checked_sub(1) {
            // A name says all that is before it.
            Some(last) => self.blocks.get(last).is_some_and(|name| blocks.get(last) == Some(name)),
            None => true,
        };
        goes_on.then_some(self.loop_from)
    }

    /// The workers that are told of what became of the session. Where only holds end, the one that has just served it
    /// needs no word: its lease was taken anew.
    pub(super) fn told_of(&self, event: Event<'_>) -> &[WorkerId] {
        match (event, self.workers.split_last()) {
            (Event::Rested { thoughts_fall: false }, Some((_, others))) => others,
            _ => &self.workers,
        }
    }
}

struct Served {
    prefix: Prefix,
    stamp: u64,
}

/// See the module.
pub(super) struct ServedTable {
    sessions: HashMap<SessionId, Served, RandomState>,
    /// In the order in which they were served; one that was served again stands in it twice.
    order: VecDeque<(SessionId, u64)>,
    /// Those whose blocks' names are known, by when they were served.
    named: BTreeMap<u64, SessionId>,
    /// Sessions whose workers are known, of all tenants; the one that was served longest ago makes room.
    sessions_max: usize,
    names: usize,
    /// Names of blocks that are remembered, of all sessions.
    names_max: usize,
    clock: u64,
}

impl ServedTable {
    /// Keeps as much of sessions as fits what may be remembered of their prompts.
    pub(super) fn new(memory: PromptMemory) -> Self {
        Self::with_limits(memory.sessions(), memory.session_names())
    }

    fn with_limits(sessions_max: usize, names_max: usize) -> Self {
        Self {
            sessions: HashMap::default(),
            order: VecDeque::new(),
            named: BTreeMap::new(),
            sessions_max,
            names: 0,
            names_max,
            clock: 0,
        }
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&Prefix> {
        self.sessions.get(&session).map(|served| &served.prefix)
    }

    /// A worker has taken a session's turn.
    pub(super) fn serve(&mut self, turn: &Turned, worker: WorkerId, workers: &Workers) {
        self.clock += 1;
        let stamp = self.clock;
        let mut before = self.remove(turn.session).map(|served| served.prefix);
        // Blocks of another model run out by their time.
        before = before.filter(|before| before.namespace == turn.namespace);
        let (model, revision, mut known) = match before {
            Some(before) if !before.model.is_empty() => {
                (before.model, before.revision, before.workers)
            }
            before => {
                let entry = workers.get(worker);
                let (model, revision) = entry
                    .map(|entry| (entry.model.clone(), entry.revision.clone()))
                    .unwrap_or_default();
                (model.into(), revision.into(), before.map(|b| b.workers).unwrap_or_default())
            }
        };
        known.retain(|other| *other != worker);
        if known.len() >= WORKERS_MAX {
            known.remove(0);
        }
        known.push(worker);
        let prefix = Prefix {
            tenant: turn.tenant.clone(),
            namespace: turn.namespace,
            blocks: Arc::clone(&turn.blocks),
            block_tokens: turn.block_tokens,
            loop_from: turn.loop_from,
            thoughts_fall: turn.thoughts_fall,
            model,
            revision,
            workers: known,
        };
        self.names += prefix.blocks.len();
        if !prefix.blocks.is_empty() {
            self.named.insert(stamp, turn.session);
        }
        self.sessions.insert(turn.session, Served { prefix, stamp });
        self.order.push_back((turn.session, stamp));
        self.tidy();
    }

    /// Forgets a session.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.remove(session);
    }

    fn remove(&mut self, session: SessionId) -> Option<Served> {
        let served = self.sessions.remove(&session)?;
        self.names -= served.prefix.blocks.len();
        self.named.remove(&served.stamp);
        Some(served)
    }

    /// Forgets whoever was served longest ago beyond the limits, and places in the order that are none any more.
    fn tidy(&mut self) {
        while self.names > self.names_max {
            let Some((_, session)) = self.named.pop_first() else { break };
            if let Some(served) = self.sessions.get_mut(&session) {
                self.names -= served.prefix.blocks.len();
                served.prefix.blocks = Arc::default();
            }
        }
        while self.sessions.len() > self.sessions_max || self.order.len() > 2 * self.sessions_max {
            let Some((session, stamp)) = self.order.pop_front() else { return };
            if self.sessions.get(&session).is_some_and(|served| served.stamp == stamp) {
                self.remove(session);
            }
        }
    }

    /// What it costs to lose a session's blocks, as far as is known of the worker that served it last.
    pub(super) fn stakes(&self, session: SessionId, workers: &Workers) -> Stakes {
        let last = self.get(session).and_then(|prefix| Some((prefix, prefix.workers.last()?)));
        let Some((prefix, entry)) = last.and_then(|(p, id)| Some((p, workers.get(*id)?))) else {
            return Stakes { reload_ms: 0.0, price_per_ms: 0.0, kept_ms: mainstay_block::NEVER_MS };
        };
        let (load, _) = entry.load();
        let token_ms = f64::from(load.prefill_us_per_token) / 1000.0;
        let wait_ms = load.waiting_prefill_tokens as f64 * token_ms;
        let block_ms = token_ms * f64::from(prefix.block_tokens);
        let blocks = u32::try_from(prefix.blocks.len()).unwrap_or(u32::MAX);
        Stakes::of(blocks, block_ms, wait_ms, entry.pressure())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers() -> Workers {
        let open = Arc::new(mainstay_proto::client::channel);
        Workers::new(crate::replica::Replica::new(), open, PromptMemory::default())
    }

    fn turned(session: u128, blocks: u128) -> Turned {
        Turned {
            session: SessionId(session),
            tenant: TenantId::new("a").expect("a name"),
            namespace: NamespaceId(5),
            blocks: (0..blocks).map(SequenceHash).collect(),
            block_tokens: 16,
            loop_from: 0,
            thoughts_fall: false,
        }
    }

    #[test]
    fn those_served_longest_ago_make_room() {
        let (mut table, workers) = (ServedTable::with_limits(500, 1_000), workers());
        for n in 0..510 {
            table.serve(&turned(n, 1), WorkerId(1), &workers);
        }
        assert_eq!((table.sessions.len(), table.names), (500, 500));
        assert!(table.get(SessionId(9)).is_none() && table.get(SessionId(10)).is_some());
        for _ in 0..1_500 {
            table.serve(&turned(77, 1), WorkerId(1), &workers);
        }
        assert!(table.order.len() <= 1_000);
        assert!(table.get(SessionId(77)).is_some(), "the last one stays");
    }

    #[test]
    fn names_are_forgotten_before_sessions_are() {
        let (mut table, workers) = (ServedTable::with_limits(500, 25), workers());
        for session in 1..=3 {
            table.serve(&turned(session, 10), WorkerId(1), &workers);
        }
        let known = |table: &ServedTable, n| table.get(SessionId(n)).map(|p| p.blocks.len());
        assert_eq!([1, 2, 3].map(|n| known(&table, n)), [Some(0), Some(10), Some(10)]);
        // Its next turn brings them back, at another's cost.
        table.serve(&turned(1, 12), WorkerId(2), &workers);
        assert_eq!([1, 2, 3].map(|n| known(&table, n)), [Some(12), Some(0), Some(10)]);
        assert_eq!((table.names, table.named.len()), (22, 2));
        let workers_of = |n| table.get(SessionId(n)).map(|p| p.workers.clone());
        assert_eq!(workers_of(1), Some(vec![WorkerId(1), WorkerId(2)]));
        table.forget(SessionId(1));
        assert_eq!((table.names, table.named.len(), known(&table, 1)), (10, 1, None));
        // One that alone is too long is not remembered.
        table.serve(&turned(4, 100), WorkerId(1), &workers);
        assert_eq!((table.names, known(&table, 4)), (0, Some(0)));
    }
}
