//! Lives of sessions, read from requests and answers.
//!
//! What a cache should keep depends on what an agent does next: one that waits for a tool comes back, one whose parent
//! has taken its result does not, and after a compaction the old history is dead. Harnesses never say so in so many
//! words, but what they send anyway shows it. This table follows each session from request to request and tells the
//! changes; it decides nothing.
//!
//! Everything is a tenant's own: a session's id means nothing beside another credential, however equal. An id is a
//! claim all the same, so a change is a hint to whoever evicts and never a right. The table is bounded for each tenant
//! and overall; what it lets go is told as ended. A disconnect is no end: the same body comes again within seconds.

mod signs;
mod table;

use std::sync::Arc;

use crate::encode::{Finish, Transcript, Usage};
use crate::limits::{
    SESSION_ENDED_KEPT_MS, SESSION_IDLE_MS, SESSIONS_MAX, SESSIONS_PER_TENANT_MAX,
};
use crate::request::Request;
use crate::session::Harness;
use signs::{News, Part};
use table::{Session, Table};

/// Children that are told of a session in a list.
const CHILDREN_LISTED_MAX: usize = 16;

/// What became of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lived {
    /// Whose session.
    pub tenant: Arc<str>,
    /// The session's id within its tenant: the agent's, else the session's.
    pub key: Arc<str>,
    /// What happened.
    pub change: Change,
}

/// A change in a session's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its first request came.
    Started,
    /// It waits for the results of calls and will be back.
    Paused {
        /// The tools that were called, the first few of them.
        tools: Vec<String>,
    },
    /// A turn was answered without a call: somebody has to say something.
    Rested {
        /// Whether there were thoughts since the user spoke last.
        thought: bool,
    },
    /// It is back, from a pause or from an end that was none.
    Resumed,
    /// Its history was replaced by a summary: what came after the system prompt is dead.
    Compacted,
    /// It goes on from another session's history, which stays alive.
    Forked {
        /// That session.
        from: String,
    },
    /// It will hardly come back.
    Ended {
        /// Why.
        why: EndCause,
    },
}

impl Change {
    /// A word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Change::Started => "started",
            Change::Paused { .. } => "paused",
            Change::Rested { .. } => "rested",
            Change::Resumed => "resumed",
            Change::Compacted => "compacted",
            Change::Forked { .. } => "forked",
            Change::Ended { .. } => "ended",
        }
    }
}

/// Why a session is thought to have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// Its client said so.
    Final,
    /// Its parent closed it.
    Closed,
    /// Its parent has taken its result.
    Finished,
    /// It was silent for too long.
    Idle,
    /// The table had no room for it.
    Crowded,
}

impl EndCause {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            EndCause::Final => "final",
            EndCause::Closed => "closed",
            EndCause::Finished => "finished",
            EndCause::Idle => "idle",
            EndCause::Crowded => "crowded",
        }
    }
}

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// A request of it is being answered.
    Active,
    /// It was answered and waits for somebody to say something.
    Waiting,
    /// It waits for the results of calls.
    Paused,
    /// It has ended, as far as is known.
    Ended,
}

impl SessionState {
    /// All of them, in the order in which [`Lifecycle::counts`] has them.
    pub const ALL: [SessionState; 4] =
        [SessionState::Active, SessionState::Waiting, SessionState::Paused, SessionState::Ended];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            SessionState::Active => "active",
            SessionState::Waiting => "waiting",
            SessionState::Paused => "paused",
            SessionState::Ended => "ended",
        }
    }
}

/// A session as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its id within its tenant.
    pub key: String,
    /// The program that it belongs to, if known.
    pub harness: Harness,
    /// That program's name and version in its own words.
    pub client: Option<String>,
    /// The member or header that named it.
    pub named_by: Option<&'static str>,
    /// The session that its agent belongs to.
    pub session: Option<String>,
    /// Its agent, where that is not the session's main one.
    pub agent: Option<String>,
    /// The [`key`](SessionView::key) of whoever started it.
    pub parent: Option<String>,
    /// The session that it goes on from.
    pub forked_from: Option<String>,
    /// Those that it started and that are still told of, or the first few of them.
    pub children: Vec<String>,
    /// How many they are.
    pub children_count: usize,
    /// How it stands.
    pub state: SessionState,
    /// The tools that it waits for.
    pub tools: Vec<String>,
    /// Why it ended.
    pub ended: Option<EndCause>,
    /// Requests that were turns of its conversation.
    pub turns: u64,
    /// Requests beside its conversation, like a title.
    pub side_requests: u64,
    /// How often its history was replaced by a summary.
    pub compactions: u64,
    /// Prompt tokens of all its requests that were answered.
    pub prompt_tokens: u64,
    /// Those of them found in a cache.
    pub cached_tokens: u64,
    /// Tokens generated for it.
    pub completion_tokens: u64,
    /// Prompt tokens of its last turn.
    pub context_tokens: u64,
    /// Milliseconds since its first request.
    pub age_ms: u64,
    /// Milliseconds since its last request or answer.
    pub seen_ms_ago: u64,
}

/// How an answer ended.
#[derive(Clone, Copy)]
pub struct Outcome<'a> {
    /// What was said.
    pub transcript: &'a Transcript,
    /// Why it ended.
    pub finish: &'a Finish,
    /// What it took.
    pub usage: Usage,
}

/// A request of a session that was not answered yet, to be given back with its answer.
#[derive(Debug)]
pub struct Ticket {
    tenant: Arc<str>,
    key: Arc<str>,
    /// Which of several lives under this key.
    born: u64,
    part: Part,
    /// Its prompt has thoughts of since the user spoke last.
    thought: bool,
    ends_session: bool,
}

impl Ticket {
    /// The session's key.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Whether it is a request beside its session's conversation, like one for a title.
    pub fn is_aside(&self) -> bool {
        self.part == Part::Side
    }

    /// Whether the request is a turn of the session's conversation.
    pub fn is_turn(&self) -> bool {
        self.part == Part::Turn
    }
}

/// How a session stood before something changed it: what figures are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Prompt tokens of its last turn that was answered; 0 before the first.
    pub context_tokens: u64,
    /// Whether another session started it.
    pub is_subagent: bool,
    /// For how long it has waited for the results of calls.
    pub paused_ms: Option<u64>,
}

/// What a request comes to.
#[derive(Debug, Default)]
pub struct Asked {
    /// To be given back with the answer; `None` for a request of no session.
    pub ticket: Option<Ticket>,
    /// What it changed.
    pub lived: Vec<Lived>,
    /// Its subagents that have given what may be their last answer.
    resting: Vec<Arc<str>>,
}

impl Asked {
    /// The subagents whose results the request brings back: what is new in it speaks of them. Reading takes longer
    /// than everything else, and needs no table.
    pub fn spoken_of(&self, request: &Request) -> Vec<Arc<str>> {
        if self.resting.is_empty() {
            return Vec::new();
        }
        let news = News::of(&request.conversation);
        self.resting.iter().filter(|child| news.mentions(child)).cloned().collect()
    }
}

/// How much is remembered, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct LifecycleLimits {
    /// Most sessions of a tenant.
    pub sessions_per_tenant_max: usize,
    /// Most sessions of all tenants.
    pub sessions_max: usize,
    /// Silence that ends a session.
    pub idle_ms: u64,
    /// How long an ended one is still told of.
    pub ended_kept_ms: u64,
}

impl Default for LifecycleLimits {
    fn default() -> Self {
        LifecycleLimits {
            sessions_per_tenant_max: SESSIONS_PER_TENANT_MAX,
            sessions_max: SESSIONS_MAX,
            idle_ms: SESSION_IDLE_MS,
            ended_kept_ms: SESSION_ENDED_KEPT_MS,
        }
    }
}

/// The sessions of all tenants. `now_ms` may count from anywhere but must not go back.
#[derive(Debug, Default)]
pub struct Lifecycle {
    table: Table,
}

impl Lifecycle {
    /// An empty table with limits of its own.
    pub fn with_limits(limits: LifecycleLimits) -> Lifecycle {
        Lifecycle { table: Table::new(limits) }
    }

    /// Takes a request that is about to be answered, with its whole conversation.
    pub fn asked(&mut self, now_ms: u64, tenant: &str, request: &Request) -> Asked {
        let Some(key) = request.session.key() else { return Asked::default() };
        let (mut lived, mut resting) = (Vec::new(), Vec::new());
        let known = self.table.get(tenant, key);
        let part = signs::part_of(request, known.is_some_and(|session| session.offers_tools));
        let is_new = known.is_none();
        let (tenant, key) = self.table.enter(now_ms, tenant, key, &request.session, &mut lived);
        let mut tell = |change| lived.push(Lived::of(&tenant, &key, change));
        if is_new {
            tell(Change::Started);
        }
        let first_turn = part == Part::Turn
            && self.table.get(&tenant, &key).is_some_and(|session| session.turns == 0);
        let born = self.table.update(&tenant, &key, |session| {
            if part != Part::Side && (session.ended.take().is_some() || session.is_paused()) {
                tell(Change::Resumed);
            }
            let compacted = session.compactions;
            session.ask(now_ms, request, part);
            if session.compactions > compacted {
                tell(Change::Compacted);
            }
            session.born
        });
        self.table.rearm(now_ms, &tenant, &key);
        if part == Part::Turn {
            let told = request.session.forked_from.clone();
            if let Some(from) = self.table.origin(&tenant, &key, request, first_turn, told) {
                lived.push(Lived::of(&tenant, &key, Change::Forked { from }));
            }
            resting = self.table.resting(&tenant, &key);
        }
        let ends_session = request.session.session_final;
        let (born, thought) = (born.unwrap_or_default(), request.conversation.open_loop().thought);
        let ticket = Ticket { tenant, key, born, part, thought, ends_session };
        Asked { ticket: Some(ticket), lived, resting }
    }

    /// Takes the subagents whose results a turn brings back, as [`Asked::spoken_of`] found them: they have ended.
    pub fn consumed(&mut self, now_ms: u64, tenant: &str, children: &[Arc<str>]) -> Vec<Lived> {
        let mut lived = Vec::new();
        self.table.end_resting(now_ms, &tenant.into(), children, &mut lived);
        lived
    }

    /// Takes the end of an answer. One that failed or whose client left changes nothing but the tokens: its request
    /// comes again.
    pub fn answered(&mut self, now_ms: u64, ticket: Ticket, outcome: &Outcome<'_>) -> Vec<Lived> {
        let Ticket { tenant, key, born, part, thought, ends_session } = ticket;
        let mut lived = Vec::new();
        if self.table.get(&tenant, &key).is_none_or(|session| session.born != born) {
            return lived;
        }
        let served = !matches!(outcome.finish, Finish::Error(_) | Finish::Cancelled);
        self.table.update(&tenant, &key, |session| {
            session.answer(now_ms, part, outcome);
            if !served || session.ended.is_some() {
                return;
            }
            if part == Part::Compaction {
                session.compacted_by_request();
                lived.push(Lived::of(&tenant, &key, Change::Compacted));
            } else if part == Part::Turn && outcome.transcript.has_calls() {
                let tools = session.pause(outcome.transcript);
                lived.push(Lived::of(&tenant, &key, Change::Paused { tools }));
            } else if part == Part::Turn {
                session.rest();
                // An end says more.
                if !ends_session {
                    let thought = thought || outcome.transcript.has_thoughts();
                    lived.push(Lived::of(&tenant, &key, Change::Rested { thought }));
                }
            }
        });
        self.table.rearm(now_ms, &tenant, &key);
        if served {
            for target in signs::closed_agents(outcome.transcript) {
                if self.table.is_subagent_of(&tenant, &target, &key) {
                    self.table.end(now_ms, &tenant, &target, EndCause::Closed, &mut lived);
                }
            }
        }
        if ends_session && served {
            self.table.end(now_ms, &tenant, &key, EndCause::Final, &mut lived);
        }
        lived
    }

    /// Ends a session because its client says so; nothing for one that has ended.
    pub fn end(&mut self, now_ms: u64, tenant: &str, key: &str) -> Vec<Lived> {
        let mut lived = Vec::new();
        self.table.end(now_ms, &tenant.into(), key, EndCause::Final, &mut lived);
        lived
    }

    /// Ends a session and forgets it: the next request of that name begins another one.
    pub fn reset(&mut self, now_ms: u64, tenant: &str, key: &str) -> Vec<Lived> {
        let lived = self.end(now_ms, tenant, key);
        self.table.forget(&tenant.into(), &key.into());
        lived
    }

    /// The keys that a client's name for a session may stand for: the one of that very key, else those of agents of that
    /// session that have not ended, `most` at most.
    pub fn named(&self, tenant: &str, name: &str, most: usize) -> Vec<Arc<str>> {
        if let Some((key, _)) = self.table.known(tenant, name) {
            return vec![Arc::clone(key)];
        }
        let of_it = self.table.of(tenant).filter(|(_, session)| session.is_alive_in(name));
        of_it.map(|(key, _)| Arc::clone(key)).take(most).collect()
    }

    /// Lets time pass: silent sessions end, and ended ones are forgotten. One with a request on its way or with a
    /// living subagent is not silent.
    pub fn ticked(&mut self, now_ms: u64) -> Vec<Lived> {
        let mut lived = Vec::new();
        self.table.tick(now_ms, &mut lived);
        lived
    }

    /// A tenant's sessions, the one seen last first, and whether there are more than `most`. Those that have ended are
    /// told with `all` only; of each one's children the first few.
    pub fn list(
        &self,
        now_ms: u64,
        tenant: &str,
        all: bool,
        most: usize,
    ) -> (Vec<SessionView>, bool) {
        let wanted = |session: &Session| all || session.ended.is_none();
        let mut sessions: Vec<(&Arc<str>, &Session)> =
            self.table.of(tenant).filter(|(_, session)| wanted(session)).collect();
        sessions.sort_unstable_by(|a, b| (b.1.seen_ms, b.0).cmp(&(a.1.seen_ms, a.0)));
        let more = sessions.len() > most;
        let told = sessions.into_iter().take(most);
        let view = |(key, session): (&Arc<str>, &Session)| {
            self.table.view(now_ms, tenant, key, session, CHILDREN_LISTED_MAX)
        };
        (told.map(view).collect(), more)
    }

    /// One session of a tenant, with all its children.
    pub fn get(&self, now_ms: u64, tenant: &str, key: &str) -> Option<SessionView> {
        let session = self.table.get(tenant, key)?;
        Some(self.table.view(now_ms, tenant, key, session, usize::MAX))
    }

    /// How the session of a request stands that is about to be asked.
    pub fn standing(&self, now_ms: u64, tenant: &str, key: &str) -> Option<Standing> {
        self.table.get(tenant, key).map(|session| session.standing(now_ms))
    }

    /// How the session stands whose request is about to be answered, if it is still the one that asked.
    pub fn standing_of(&self, now_ms: u64, ticket: &Ticket) -> Option<Standing> {
        let session = self.table.get(&ticket.tenant, &ticket.key)?;
        (session.born == ticket.born).then(|| session.standing(now_ms))
    }

    /// How many sessions there are of each of [`SessionState::ALL`].
    pub fn counts(&self) -> [usize; 4] {
        self.table.counts()
    }
}

impl Lived {
    fn of(tenant: &Arc<str>, key: &Arc<str>, change: Change) -> Lived {
        Lived { tenant: Arc::clone(tenant), key: Arc::clone(key), change }
    }
}

#[cfg(test)]
mod tests;
