//! From what becomes of sessions to what becomes of their blocks.
//!
//! Whoever follows sessions tells their changes one after the other, and gets orders for the pools
//! that hold their blocks: hold them while tools run, bring them back before somebody returns, let
//! them go when their history is dead. A session's requests take their leases from here too, so that
//! an order and a lease mean the same blocks: after a compaction or an end there is a new *window*,
//! whose lease has another name that no window had before, and the end of the old one can't reach
//! the new one's blocks however late it comes.
//!
//! What is remembered of a session is a window and a pause; the window also of one that has ended,
//! since it may come back, until others of its tenant need the room. Where there is no room for that, or a
//! gateway has died, leases run out by their time, and a pause is held for as long as any other but
//! not learnt from: orders make memory better used, and no answer rests on them.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use foldhash::fast::RandomState;

use super::policy::{Next, Pause, Policy, PolicySettings, Stakes};
use super::tenants::is_within_share;
use super::{Amendment, Class, End, LeaseId, SpanTerms, TenantSlot};

/// The most sessions of which something is remembered. A tenant may have as many as are left for others.
pub const SESSIONS_MAX: usize = 1 << 17;

/// A session's name within its tenant: a hash of whatever its client calls it, which nobody can make collide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct SessionId(pub u128);

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Its first request came.
    Started,
    /// It waits for the results of calls.
    Paused {
        /// Of these tools.
        tools: &'a [&'a str],
        /// What its blocks are worth to it, and their room to others.
        stakes: Stakes,
    },
    /// A turn was answered without a call: its loop is over, and somebody has to say something.
    Rested {
        /// Whether the loop had thoughts, and the next prompt will not repeat them.
        thoughts_fall: bool,
    },
    /// It is back, from a pause or from an end that was none.
    Resumed,
    /// A summary has replaced its history.
    Compacted,
    /// It goes on from another session's history, which stays alive.
    Forked,
    /// It will hardly come back.
    Ended(Ending),
}

/// Why a session is thought to have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its client said so, its parent closed it or has taken its result.
    Finished,
    /// It was silent for long.
    Idle,
    /// Nobody follows it any more, for want of room; it may well go on.
    Untracked,
}

/// What a request is to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A turn of its conversation.
    Conversation,
    /// Something beside it, such as a title.
    Side,
}

/// What is to be done with a session's blocks, wherever they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// [`super::BlockManager::amend_lease`].
    Amend {
        /// Which.
        lease: LeaseId,
        /// What it claims from here on.
        amendments: Vec<Amendment>,
    },
    /// [`super::BlockManager::end_lease`].
    End {
        /// Which.
        lease: LeaseId,
        /// How.
        end: End,
    },
    /// Its prefix is to be brought back to where its next turn will run: somebody is about to return.
    Prefetch {
        /// Whose.
        session: SessionId,
    },
}

#[derive(Debug, Default)]
struct Session {
    /// Which of its histories it is, by a number that no other one has; 0 for the first.
    window: u64,
    pause: Option<Pause>,
    /// When its prefetch is due, as it stands in the list of those.
    due_ms: Option<u64>,
    /// Order of changes.
    seen: u64,
}

type Key = (u32, SessionId);

/// The leases of sessions, and what becomes of them.
#[derive(Debug)]
pub struct Retention {
    policy: Policy,
    sessions_max: usize,
    sessions: HashMap<Key, Session, RandomState>,
    counts: HashMap<u32, usize, RandomState>,
    /// Each tenant's, the one that changed longest ago first.
    order: BTreeSet<(u32, u64, SessionId)>,
    clock: u64,
    due: BTreeSet<(u64, u32, SessionId)>,
    /// Windows that were begun, of all sessions.
    windows: u64,
}

/// Which of a session's leases.
#[derive(Clone, Copy)]
enum Part {
    Shared,
    Own { window: u64 },
    Side,
}

/// A lease's name. Sessions' names are hashes, so what is mixed in can't make two of them one.
fn lease_of(session: SessionId, part: Part) -> LeaseId {
    let part = match part {
        Part::Shared => 1,
        Part::Side => 2,
        Part::Own { window } => 3 | u128::from(window) << 2,
    };
    LeaseId(session.0.rotate_left(64) ^ part)
}

impl Default for Retention {
    fn default() -> Self {
        Self::new(PolicySettings::default(), SESSIONS_MAX)
    }
}

impl Retention {
    /// One that has seen nothing yet and remembers so many sessions, up to [`SESSIONS_MAX`].
    #[must_use]
    pub fn new(settings: PolicySettings, sessions_max: usize) -> Self {
        Self {
            policy: Policy::new(settings),
            sessions_max: sessions_max.min(SESSIONS_MAX),
            sessions: HashMap::default(),
            counts: HashMap::default(),
            order: BTreeSet::new(),
            clock: 0,
            due: BTreeSet::new(),
            windows: 0,
        }
    }

    /// The rules, and what was learnt for them.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How many sessions are remembered.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The leases with which a request goes to a worker. `parts` are its stretches in order, by blocks. To be asked for
    /// after the changes that the request itself has made were told.
    #[must_use]
    pub fn leases(
        &self,
        tenant: TenantSlot,
        session: SessionId,
        turn: Turn,
        parts: &[(Class, Range<usize>)],
    ) -> Vec<(LeaseId, Vec<SpanTerms>)> {
        let (next, own) = match turn {
            Turn::Conversation => {
                // Its thoughts live until it is known that their loop is over.
                (Next::Unknown, self.own_lease(tenant, session))
            }
            Turn::Side => (Next::Nothing, lease_of(session, Part::Side)),
        };
        let terms = self.policy.terms(parts, next);
        [(lease_of(session, Part::Shared), terms.shared), (own, terms.own)]
            .into_iter()
            .filter(|(_, spans)| !spans.is_empty())
            .collect()
    }

    fn own_lease(&self, tenant: TenantSlot, session: SessionId) -> LeaseId {
        let window = self.sessions.get(&(tenant.0, session)).map_or(0, |session| session.window);
        lease_of(session, Part::Own { window })
    }

    /// Takes a change. Answers with what is to be done, in order.
    pub fn told(
        &mut self,
        tenant: TenantSlot,
        session: SessionId,
        event: Event<'_>,
        now_ms: u64,
    ) -> Vec<Order> {
        let key = (tenant.0, session);
        let lease = self.own_lease(tenant, session);
        match event {
            // What a fork goes on from is its own session's to keep.
            Event::Started | Event::Forked => Vec::new(),
            Event::Paused { tools, stakes } => {
                let pause = self.policy.pause(tenant, tools, stakes, now_ms);
                let next = pause.hold_ms.map(|hold_ms| Next::Tools { hold_ms });
                self.wait(key, pause, now_ms);
                // What the lease claims already is more than what it would claim after a hold that nothing needs.
                let amend = |next| Order::Amend { lease, amendments: self.policy.amendments(next) };
                next.map(amend).into_iter().collect()
            }
            Event::Rested { thoughts_fall } => {
                self.end_pause(key, |policy, pause| policy.resume(pause, now_ms));
                // Without a thought nothing has to fall, but holds of where it was served before end.
                let next = if thoughts_fall { Next::User } else { Next::Unknown };
                vec![Order::Amend { lease, amendments: self.policy.amendments(next) }]
            }
            // The request that came takes its lease anew.
            Event::Resumed => {
                self.end_pause(key, |policy, pause| policy.resume(pause, now_ms));
                Vec::new()
            }
            Event::Compacted => {
                self.end_pause(key, |policy, pause| policy.resume(pause, now_ms));
                self.begin_window(key);
                vec![Order::End { lease, end: End::Compacted }]
            }
            Event::Ended(ending) => {
                self.end_pause(key, |policy, pause| match ending {
                    Ending::Finished | Ending::Idle => policy.abandon(pause),
                    Ending::Untracked => {}
                });
                let end = match ending {
                    Ending::Finished => End::Finished,
                    Ending::Idle => End::Released,
                    // It goes on under the names that it has.
                    Ending::Untracked => return Vec::new(),
                };
                self.begin_window(key);
                vec![Order::End { lease, end }]
            }
        }
    }

    /// Lets time pass: answers with the prefetches that are due, each of a session that is still away.
    pub fn due(&mut self, now_ms: u64) -> Vec<(TenantSlot, Order)> {
        let mut orders = Vec::new();
        while let Some((due_ms, tenant, session)) = self.due.first().copied() {
            if due_ms > now_ms {
                break;
            }
            self.due.pop_first();
            if let Some(known) = self.sessions.get_mut(&(tenant, session)) {
                known.due_ms = None;
                orders.push((TenantSlot(tenant), Order::Prefetch { session }));
            }
        }
        orders
    }

    /// When [`Retention::due`] has something to tell next.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|due| due.0)
    }

    /// What is remembered of a session, if there is room for it; a tenant's own that changed longest ago makes some.
    fn entry(&mut self, key: Key) -> Option<&mut Session> {
        let tenant = key.0;
        if tenant >= super::TENANTS_MAX {
            return None;
        }
        if !self.sessions.contains_key(&key) {
            let own = self.counts.get(&tenant).copied().unwrap_or(0);
            if !is_within_share(own, 1, self.sessions.len(), self.sessions_max) {
                let oldest = self.order.range((tenant, 0, SessionId(0))..).next().copied();
                let oldest = oldest.filter(|oldest| oldest.0 == tenant)?;
                self.forget((tenant, oldest.2));
            }
            *self.counts.entry(tenant).or_insert(0) += 1;
        }
        self.clock += 1;
        let session = self.sessions.entry(key).or_default();
        self.order.remove(&(tenant, session.seen, key.1));
        session.seen = self.clock;
        self.order.insert((tenant, session.seen, key.1));
        Some(session)
    }

    /// What the session claims from here on has another name.
    fn begin_window(&mut self, key: Key) {
        self.windows += 1;
        let window = self.windows;
        if let Some(session) = self.entry(key) {
            session.window = window;
        }
    }

    fn forget(&mut self, key: Key) {
        let Some(session) = self.sessions.remove(&key) else { return };
        self.order.remove(&(key.0, session.seen, key.1));
        if let Some(due_ms) = session.due_ms {
            self.due.remove(&(due_ms, key.0, key.1));
        }
        if let Some(own) = self.counts.get_mut(&key.0) {
            *own -= 1;
            if *own == 0 {
                self.counts.remove(&key.0);
            }
        }
    }

    fn wait(&mut self, key: Key, pause: Pause, now_ms: u64) {
        // One that was told to pause twice has come back in between.
        self.end_pause(key, |policy, pause| policy.resume(pause, now_ms));
        let due_ms = pause.prefetch_after_ms.map(|after_ms| now_ms.saturating_add(after_ms));
        let Some(session) = self.entry(key) else { return };
        session.pause = Some(pause);
        session.due_ms = due_ms;
        if let Some(due_ms) = due_ms {
            self.due.insert((due_ms, key.0, key.1));
        }
    }

    fn end_pause(&mut self, key: Key, learn: impl FnOnce(&mut Policy, &Pause)) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if let Some(due_ms) = session.due_ms.take() {
            self.due.remove(&(due_ms, key.0, key.1));
        }
        if let Some(pause) = session.pause.take() {
            learn(&mut self.policy, &pause);
        }
        // Nothing is left to remember of most.
        if session.window == 0 {
            self.forget(key);
        }
    }
}

#[cfg(test)]
mod tests;
