//! Sessions as this gateway sees them: the table of their lives, its clock, and whoever wants to know of changes.
//!
//! A gateway knows the sessions whose requests it served since it started; another one has its own table, and no
//! promise rests on either. Requests tell the table in passing and wait for nobody: changes go into a bounded queue,
//! and past it they are counted and lost, as the next ones will come.

mod figures;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_chat::{
    Change, Finish, Lifecycle, Lived, Outcome, Request, SessionState, SessionView, Ticket,
    Transcript, Usage,
};
use mainstay_types::TenantId;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::history::unix_ms;
use crate::lanes::{Lanes, OpenTurn, Taken, TurnEnd};
use crate::retention::Retainer;

/// Changes on their way to observers.
const CHANGES_MAX: usize = 8_192;
/// How often silence is looked for.
const TICK: Duration = Duration::from_secs(5);

/// Somebody who is told what becomes of sessions, one change after the other. It must not wait: the queue fills up
/// behind it.
pub(crate) trait Observer: Send + 'static {
    fn lived(&mut self, lived: &Lived);
}

/// Changes waiting for observers.
pub(crate) type Changes = mpsc::Receiver<Lived>;

/// The sessions of all tenants.
#[derive(Clone)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    started: Instant,
    started_unix_ms: u64,
    table: Mutex<Lifecycle>,
    lanes: Lanes,
    changes: mpsc::Sender<Lived>,
    retainer: Retainer,
}

impl Sessions {
    /// An empty table, and the end of the queue that [`follow`](Self::follow) takes.
    pub(crate) fn new(retainer: Retainer) -> (Self, Changes) {
        Self::with(Lifecycle::default(), CHANGES_MAX, retainer)
    }

    fn with(table: Lifecycle, changes_max: usize, retainer: Retainer) -> (Self, Changes) {
        let (changes, receiver) = mpsc::channel(changes_max);
        let (started, lanes) = (Instant::now(), Lanes::default());
        let started_unix_ms = unix_ms();
        let table = Mutex::new(table);
        let shared = Shared { started, started_unix_ms, table, lanes, changes, retainer };
        (Self { shared: Arc::new(shared) }, receiver)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes a request that is about to be placed.
    pub(crate) fn asked(&self, tenant: &TenantId, request: &Request) -> Life {
        let asked = self.change(|table, now_ms| {
            let key = request.session.key();
            let before = key.and_then(|key| table.standing(now_ms, tenant.as_str(), key));
            let mut asked = table.asked(now_ms, tenant.as_str(), request);
            figures::resumed(before, &asked.lived);
            (std::mem::take(&mut asked.lived), asked)
        });
        let finished = asked.spoken_of(request);
        if !finished.is_empty() {
            self.change(|table, now_ms| (table.consumed(now_ms, tenant.as_str(), &finished), ()));
        }
        let begun = |ticket: &Ticket| {
            self.shared.lanes.begun(tenant, Arc::clone(ticket.key()), ticket.is_aside())
        };
        let turn = asked.ticket.as_ref().map(begun);
        Life { sessions: self.clone(), ticket: asked.ticket, turn }
    }

    /// The latest turns of each session.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.shared.lanes
    }

    /// Changes the table and tells what came of it, in one step: an observer must not hear of a change before those
    /// that it followed.
    fn change<T>(&self, how: impl FnOnce(&mut Lifecycle, u64) -> (Vec<Lived>, T)) -> T {
        let mut table = self.shared.table.lock();
        let (lived, out) = how(&mut table, self.now_ms());
        for change in lived {
            // Before the request that made it takes its leases, which a queue could not promise.
            self.shared.retainer.told(&change);
            if self.shared.changes.try_send(change).is_err() {
                metrics::counter!("mainstay_gateway_session_changes_lost_total").increment(1);
            }
        }
        out
    }

    /// A tenant's sessions, the one seen last first, and whether there are more than `most`.
    pub(crate) fn list(
        &self,
        tenant: &TenantId,
        all: bool,
        most: usize,
    ) -> (Vec<SessionView>, bool) {
        self.shared.table.lock().list(self.now_ms(), tenant.as_str(), all, most)
    }

    /// The same with the time that their ages are counted from, in milliseconds since 1970 and steady.
    pub(crate) fn list_at(&self, tenant: &TenantId, most: usize) -> (u64, Vec<SessionView>, bool) {
        let now_ms = self.now_ms();
        let (sessions, more) = self.shared.table.lock().list(now_ms, tenant.as_str(), true, most);
        (self.shared.started_unix_ms.saturating_add(now_ms), sessions, more)
    }

    /// One of them.
    pub(crate) fn get(&self, tenant: &TenantId, key: &str) -> Option<SessionView> {
        self.shared.table.lock().get(self.now_ms(), tenant.as_str(), key)
    }

    /// The keys that a client's name for a session may stand for, `most` at most.
    pub(crate) fn named(&self, tenant: &TenantId, name: &str, most: usize) -> Vec<Arc<str>> {
        self.shared.table.lock().named(tenant.as_str(), name, most)
    }

    /// Ends a session because its client says so; answers with how it stands then.
    pub(crate) fn end(&self, tenant: &TenantId, key: &str) -> Option<SessionView> {
        self.change(|table, now_ms| (table.end(now_ms, tenant.as_str(), key), ()));
        self.get(tenant, key)
    }

    /// Ends a session and forgets it; answers with how it stood at its end.
    pub(crate) fn reset(&self, tenant: &TenantId, key: &str) -> Option<SessionView> {
        let ended = self.end(tenant, key);
        self.change(|table, now_ms| (table.reset(now_ms, tenant.as_str(), key), ()));
        ended
    }

    /// Lets time pass for the table, and passes changes on; runs for as long as the gateway.
    pub(crate) async fn follow(self, mut changes: Changes, mut observers: Vec<Box<dyn Observer>>) {
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => {
                    let Some(change) = change else { return };
                    observers.iter_mut().for_each(|observer| observer.lived(&change));
                }
                _ = clock.tick() => self.tick(),
            }
        }
    }

    fn tick(&self) {
        let counts = self.change(|table, now_ms| (table.ticked(now_ms), table.counts()));
        for (state, count) in SessionState::ALL.into_iter().zip(counts) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            metrics::gauge!("mainstay_gateway_sessions", "state" => state.name()).set(count);
        }
    }
}

/// A request of a session on its way. Dropped without an answer, it was given up: its client left, or nobody took it.
pub(crate) struct Life {
    sessions: Sessions,
    ticket: Option<Ticket>,
    turn: Option<OpenTurn>,
}

impl Life {
    /// Whether the request is one beside its session's conversation.
    pub(crate) fn is_side(&self) -> bool {
        self.ticket.as_ref().is_some_and(Ticket::is_aside)
    }

    /// A worker has taken it, and its first token is here.
    pub(crate) fn taken(&self, taken: Taken<'_>) {
        if let Some(turn) = &self.turn {
            self.sessions.shared.lanes.taken(turn, taken);
        }
    }

    /// Takes the end of the answer; only the first one counts.
    pub(crate) fn answered(&mut self, transcript: &Transcript, finish: &Finish, usage: Usage) {
        let Some(ticket) = self.ticket.take() else { return };
        if let Some(turn) = self.turn.take() {
            let end = match finish {
                Finish::Error(_) => TurnEnd::Failed,
                Finish::Cancelled => TurnEnd::GivenUp,
                _ => TurnEnd::Served,
            };
            self.sessions.shared.lanes.ended(&turn, end, usage);
        }
        let outcome = Outcome { transcript, finish, usage };
        self.sessions.change(|table, now_ms| {
            if ticket.is_turn() {
                figures::turned(table.standing_of(now_ms, &ticket), &usage);
            }
            (table.answered(now_ms, ticket, &outcome), ())
        });
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.answered(&Transcript::default(), &Finish::Cancelled, Usage::default());
    }
}

/// Counts changes, and tells them to whoever reads the log.
pub(crate) struct Counted;

impl Observer for Counted {
    fn lived(&mut self, lived: &Lived) {
        let change = lived.change.name();
        let why = match &lived.change {
            Change::Ended { why } => why.name(),
            _ => "",
        };
        tracing::debug!(tenant = %lived.tenant, session = %lived.key, change, why, "a session changed");
        metrics::counter!("mainstay_gateway_session_changes_total", "change" => change, "why" => why)
            .increment(1);
    }
}

#[cfg(test)]
mod tests {
    use mainstay_chat::{OutputEvent, parse_chat};

    use super::*;
    use crate::model::PromptMemory;

    fn retainer() -> Retainer {
        let replica = crate::replica::Replica::new();
        let open = Arc::new(mainstay_proto::client::channel);
        Retainer::new(false, crate::workers::Workers::new(replica, open, PromptMemory::default())).0
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    fn request(session: &str) -> Request {
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
        let mut request = parse_chat(body).expect("a request");
        request.apply_headers([("x-dynamo-session-id", session)]);
        request
    }

    /// Hands on what it is told.
    struct Told(mpsc::UnboundedSender<String>);

    impl Observer for Told {
        fn lived(&mut self, lived: &Lived) {
            let _ = self.0.send(format!("{} {} {}", lived.tenant, lived.key, lived.change.name()));
        }
    }

    #[tokio::test]
    async fn observers_hear_of_changes_in_order() {
        let (sessions, changes) = Sessions::new(retainer());
        let (sender, mut heard) = mpsc::unbounded_channel();
        let following = tokio::spawn(
            sessions.clone().follow(changes, vec![Box::new(Counted), Box::new(Told(sender))]),
        );
        let mut life = sessions.asked(&tenant("a"), &request("s"));
        let mut transcript = Transcript::default();
        transcript.push(&OutputEvent::ToolCallStart { index: 0, name: "Read".to_owned() });
        life.answered(&transcript, &Finish::Stop, Usage::default());
        drop(life);
        drop(sessions.asked(&tenant("b"), &request("s")));
        for expected in ["a s started", "a s paused", "b s started"] {
            assert_eq!(heard.recv().await.as_deref(), Some(expected));
        }
        // The end of a life that was answered is not told twice.
        assert_eq!(sessions.get(&tenant("a"), "s").map(|s| s.state), Some(SessionState::Paused));
        assert_eq!(sessions.get(&tenant("b"), "s").map(|s| s.state), Some(SessionState::Waiting));
        assert_eq!(sessions.list(&tenant("c"), true, 9).0.len(), 0);
        following.abort();
    }

    #[tokio::test]
    async fn a_full_queue_loses_changes_and_no_session() {
        let (sessions, mut changes) = Sessions::with(Lifecycle::default(), 2, retainer());
        for n in 0..5 {
            drop(sessions.asked(&tenant("a"), &request(&format!("s{n}"))));
        }
        assert_eq!(sessions.list(&tenant("a"), true, 9).0.len(), 5);
        let mut kept = Vec::new();
        while let Ok(change) = changes.try_recv() {
            kept.push(change.key.to_string());
        }
        assert_eq!(kept, ["s0", "s1"]);
    }

    #[test]
    fn a_request_of_nobody_leaves_no_trace() {
        let (sessions, mut changes) = Sessions::new(retainer());
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
        drop(sessions.asked(&tenant("a"), &parse_chat(body).expect("a request")));
        assert!(sessions.list(&tenant("a"), true, 9).0.is_empty() && changes.try_recv().is_err());
    }
}
