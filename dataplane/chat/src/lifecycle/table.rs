//! The table behind the lives of sessions: tenants, their sessions, and who is next to be forgotten.
//!
//! Every index shares the text of a key, so that a session of a hostile client takes three kilobytes at most. Those
//! that have been silent for longest are first in line, of each tenant and overall, so that neither a look at the
//! clock nor making room walks the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::signs::{self, Mark, Part};
use super::{
    Change, EndCause, LifecycleLimits, Lived, Outcome, SessionState, SessionView, Standing,
};
use crate::encode::{Item, Transcript};
use crate::limits::{CHILDREN_SEARCHED_MAX, PAUSED_TOOLS_MAX, SESSIONS_TICKED_MAX};
use crate::request::Request;
use crate::session::{SessionIds, SessionSource};

/// How many of a tenant's sessions are looked at for one that nobody waits for.
const CROWDED_SEARCHED_MAX: usize = 16;
/// Longest name of a tool that is kept.
const TOOL_SHOWN_CHARS_MAX: usize = 64;

/// When a session is looked at next, and its place among those of the same time.
type Due = (u64, u64);

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) born: u64,
    ids: SessionIds,
    /// The agent's parent by the ids, in the form of a key.
    parent: Option<Arc<str>>,
    forked_from: Option<String>,
    /// Where it stands when no request is on its way.
    paused: bool,
    tools: Vec<String>,
    /// Its last turn was answered, and without a call.
    rested: bool,
    pub(super) ended: Option<EndCause>,
    /// Requests on their way, and those of them that are no side requests.
    in_flight: u32,
    turning: u32,
    pub(super) turns: u64,
    side_requests: u64,
    pub(super) compactions: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    context_tokens: u64,
    started_ms: u64,
    pub(super) seen_ms: u64,
    due: Due,
    pub(super) offers_tools: bool,
    mark: Option<Mark>,
    head: Option<u64>,
    /// A side request came since the last turn.
    aside: bool,
    /// Its summary was made by a request that said so; the new window is no other compaction.
    summed_up: bool,
}

impl Session {
    fn new(now_ms: u64, born: u64, ids: &SessionIds) -> Session {
        Session {
            born,
            parent: ids.parent_key().map(Arc::from),
            ids: SessionIds { turn: None, parent: None, ..ids.clone() },
            forked_from: None,
            paused: false,
            tools: Vec::new(),
            rested: false,
            ended: None,
            in_flight: 0,
            turning: 0,
            turns: 0,
            side_requests: 0,
            compactions: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            context_tokens: 0,
            started_ms: now_ms,
            seen_ms: now_ms,
            due: (0, 0),
            offers_tools: false,
            mark: None,
            head: None,
            aside: false,
            summed_up: false,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether it has not ended and its client calls the session that it belongs to by that name.
    pub(super) fn is_alive_in(&self, name: &str) -> bool {
        self.ended.is_none() && self.ids.session.as_deref() == Some(name)
    }

    /// Whether its last turn was answered, and without a call. One that failed comes again.
    fn rests(&self) -> bool {
        self.rested && self.state() == SessionState::Waiting
    }

    pub(super) fn rest(&mut self) {
        self.rested = true;
    }

    pub(super) fn state(&self) -> SessionState {
        match () {
            () if self.ended.is_some() => SessionState::Ended,
            () if self.turning > 0 || self.in_flight > 0 && !self.paused => SessionState::Active,
            () if self.paused => SessionState::Paused,
            () => SessionState::Waiting,
        }
    }

    pub(super) fn standing(&self, now_ms: u64) -> Standing {
        Standing {
            context_tokens: self.context_tokens,
            is_subagent: self.parent.is_some(),
            paused_ms: self.paused.then(|| now_ms.saturating_sub(self.seen_ms)),
        }
    }

    /// Takes a request.
    pub(super) fn ask(&mut self, now_ms: u64, request: &Request, part: Part) {
        self.seen_ms = now_ms;
        self.in_flight = self.in_flight.saturating_add(1);
        if part == Part::Side {
            self.side_requests += 1;
            self.aside = self.turns > 0;
            return;
        }
        self.turning = self.turning.saturating_add(1);
        (self.paused, self.rested) = (false, false);
        self.tools.clear();
        if part == Part::Compaction {
            return;
        }
        self.turns += 1;
        self.offers_tools |= request.conversation.callable().next().is_some();
        let mark = Mark::of(&request.conversation);
        if self.is_compacted(mark, &request.session) {
            self.compactions += 1;
        }
        self.summed_up = false;
        self.aside = false;
        self.mark = mark;
        let ids = &request.session;
        self.ids.window = ids.window.or(self.ids.window);
        if ids.context_window.is_some() {
            self.ids.context_window.clone_from(&ids.context_window);
        }
    }

    /// Whether this turn's history has taken the place of the one before. A shorter history with the same beginning
    /// is a step back, not a summary.
    fn is_compacted(&self, mark: Option<Mark>, ids: &SessionIds) -> bool {
        if self.summed_up {
            return false;
        }
        match (self.ids.window, ids.window) {
            (Some(old), Some(new)) => return new > old,
            _ if self.ids.context_window.is_some() && ids.context_window.is_some() => {
                return self.ids.context_window != ids.context_window;
            }
            _ => {}
        }
        // A name that was guessed may stand for several conversations at once.
        if ids.source == SessionSource::Inferred {
            return false;
        }
        match (self.mark, mark) {
            (Some(old), Some(new)) => {
                new.first != old.first && (new.messages < old.messages || self.aside)
            }
            _ => false,
        }
    }

    /// Takes the end of an answer.
    pub(super) fn answer(&mut self, now_ms: u64, part: Part, outcome: &Outcome<'_>) {
        let usage = outcome.usage;
        self.seen_ms = now_ms;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.prompt_tokens = self.prompt_tokens.saturating_add(usage.prompt_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(usage.cached_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(usage.completion_tokens);
        if part != Part::Side {
            self.turning = self.turning.saturating_sub(1);
            if usage.prompt_tokens > 0 {
                self.context_tokens = usage.prompt_tokens;
            }
        }
    }

    pub(super) fn compacted_by_request(&mut self) {
        self.compactions += 1;
        self.summed_up = true;
    }

    /// Lets it wait for its calls; returns their tools.
    pub(super) fn pause(&mut self, transcript: &Transcript) -> Vec<String> {
        let names = transcript.items().iter().filter_map(|item| match item {
            Item::ToolCall { name, .. } => Some(name.chars().take(TOOL_SHOWN_CHARS_MAX).collect()),
            Item::Thinking(_) | Item::Text { .. } => None,
        });
        self.paused = true;
        self.tools = names.take(PAUSED_TOOLS_MAX).collect();
        self.tools.clone()
    }
}

/// One tenant's sessions.
#[derive(Debug, Default)]
struct Tenant {
    sessions: HashMap<Arc<str>, Session>,
    due: BTreeMap<Due, Arc<str>>,
    children: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// The session that last had a history with that head.
    heads: HashMap<u64, Arc<str>>,
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Table {
    limits: LifecycleLimits,
    tenants: HashMap<Arc<str>, Tenant>,
    /// Tenants by the number of their sessions.
    sizes: BTreeSet<(usize, Arc<str>)>,
    due: BTreeMap<Due, (Arc<str>, Arc<str>)>,
    counts: [usize; 4],
    serial: u64,
}

impl Table {
    pub(super) fn new(limits: LifecycleLimits) -> Table {
        Table { limits, ..Table::default() }
    }

    pub(super) fn get(&self, tenant: &str, key: &str) -> Option<&Session> {
        self.tenants.get(tenant)?.sessions.get(key)
    }

    /// A session with its key as the table has it.
    pub(super) fn known(&self, tenant: &str, key: &str) -> Option<(&Arc<str>, &Session)> {
        self.tenants.get(tenant)?.sessions.get_key_value(key)
    }

    pub(super) fn of(&self, tenant: &str) -> impl Iterator<Item = (&Arc<str>, &Session)> {
        self.tenants.get(tenant).into_iter().flat_map(|tenant| &tenant.sessions)
    }

    pub(super) fn counts(&self) -> [usize; 4] {
        self.counts
    }

    /// Changes a session, and counts it where it stands then.
    pub(super) fn update<T>(
        &mut self,
        tenant: &str,
        key: &str,
        change: impl FnOnce(&mut Session) -> T,
    ) -> Option<T> {
        let session = self.tenants.get_mut(tenant)?.sessions.get_mut(key)?;
        self.counts[session.state() as usize] -= 1;
        let out = change(session);
        self.counts[session.state() as usize] += 1;
        Some(out)
    }

    /// Finds a session or makes one, for which others may have to go. Returns the names as the table has them.
    pub(super) fn enter(
        &mut self,
        now_ms: u64,
        tenant: &str,
        key: &str,
        ids: &SessionIds,
        lived: &mut Vec<Lived>,
    ) -> (Arc<str>, Arc<str>) {
        let known = self.tenants.get_key_value(tenant);
        let tenant: Arc<str> = known.map_or_else(|| tenant.into(), |(name, _)| Arc::clone(name));
        let known = known.and_then(|(_, t)| t.sessions.get_key_value(key));
        if let Some((key, _)) = known {
            return (tenant, Arc::clone(key));
        }
        self.make_room(&tenant, lived);
        let key: Arc<str> = key.into();
        self.serial += 1;
        let session = Session::new(now_ms, self.serial, ids);
        self.counts[session.state() as usize] += 1;
        let here = self.tenants.entry(Arc::clone(&tenant)).or_default();
        if let Some(parent) = &session.parent {
            here.children.entry(Arc::clone(parent)).or_default().insert(Arc::clone(&key));
        }
        self.sizes.remove(&(here.sessions.len(), Arc::clone(&tenant)));
        here.sessions.insert(Arc::clone(&key), session);
        self.sizes.insert((here.sessions.len(), Arc::clone(&tenant)));
        (tenant, key)
    }

    /// Lets sessions go until there is room for one more: of the tenant if it has as many as it may have, else of the
    /// one that has most, its own where several have, so that no flood of ids drives out others' sessions.
    fn make_room(&mut self, tenant: &Arc<str>, lived: &mut Vec<Lived>) {
        let own = |table: &Table| table.tenants.get(tenant).map_or(0, |t| t.sessions.len());
        while own(self) >= self.limits.sessions_per_tenant_max && own(self) > 0 {
            self.let_go(&Arc::clone(tenant), lived);
        }
        while self.counts.iter().sum::<usize>() >= self.limits.sessions_max {
            let Some((size, largest)) = self.sizes.last().cloned() else { return };
            let from = if own(self) == size { Arc::clone(tenant) } else { largest };
            self.let_go(&from, lived);
        }
    }

    fn let_go(&mut self, tenant: &Arc<str>, lived: &mut Vec<Lived>) {
        let Some(here) = self.tenants.get(tenant) else { return };
        let free = |key: &&Arc<str>| here.sessions.get(*key).is_none_or(|s| s.in_flight == 0);
        let first = here.due.values().take(CROWDED_SEARCHED_MAX).find(free);
        let Some(key) = first.or_else(|| here.due.values().next()).cloned() else { return };
        if here.sessions.get(&key).is_some_and(|s| s.ended.is_none()) {
            lived.push(Lived::of(tenant, &key, Change::Ended { why: EndCause::Crowded }));
        }
        self.forget(tenant, &key);
    }

    pub(super) fn forget(&mut self, tenant: &Arc<str>, key: &Arc<str>) {
        let Some(here) = self.tenants.get_mut(tenant) else { return };
        let Some(session) = here.sessions.remove(key) else { return };
        self.counts[session.state() as usize] -= 1;
        self.due.remove(&session.due);
        here.due.remove(&session.due);
        if let Some(parent) = &session.parent
            && let Some(siblings) = here.children.get_mut(parent)
        {
            siblings.remove(key);
            if siblings.is_empty() {
                here.children.remove(parent);
            }
        }
        if let Some(head) = session.head
            && here.heads.get(&head) == Some(key)
        {
            here.heads.remove(&head);
        }
        let left = here.sessions.len();
        self.sizes.remove(&(left + 1, Arc::clone(tenant)));
        if left == 0 {
            self.tenants.remove(tenant);
        } else {
            self.sizes.insert((left, Arc::clone(tenant)));
        }
    }

    /// Puts a session at its place in line.
    pub(super) fn rearm(&mut self, now_ms: u64, tenant: &Arc<str>, key: &Arc<str>) {
        let Some(here) = self.tenants.get_mut(tenant) else { return };
        let Some(session) = here.sessions.get_mut(key) else { return };
        let wait_ms = match session.ended {
            Some(_) => self.limits.ended_kept_ms,
            None => self.limits.idle_ms,
        };
        self.serial += 1;
        let due = (now_ms.saturating_add(wait_ms), self.serial);
        let was = std::mem::replace(&mut session.due, due);
        here.due.remove(&was);
        here.due.insert(due, Arc::clone(key));
        self.due.remove(&was);
        self.due.insert(due, (Arc::clone(tenant), Arc::clone(key)));
    }

    /// Ends a session that has not ended.
    pub(super) fn end(
        &mut self,
        now_ms: u64,
        tenant: &Arc<str>,
        key: &str,
        why: EndCause,
        lived: &mut Vec<Lived>,
    ) {
        let known = self.tenants.get(tenant).and_then(|t| t.sessions.get_key_value(key));
        let Some(key) = known.filter(|(_, s)| s.ended.is_none()).map(|(key, _)| Arc::clone(key))
        else {
            return;
        };
        self.update(tenant, &key, |session| {
            session.ended = Some(why);
            session.paused = false;
            session.tools.clear();
        });
        self.rearm(now_ms, tenant, &key);
        lived.push(Lived::of(tenant, &key, Change::Ended { why }));
    }

    pub(super) fn tick(&mut self, now_ms: u64, lived: &mut Vec<Lived>) {
        for _ in 0..SESSIONS_TICKED_MAX {
            let Some((due, (tenant, key))) = self.due.first_key_value() else { return };
            if due.0 > now_ms {
                return;
            }
            let (tenant, key) = (Arc::clone(tenant), Arc::clone(key));
            let Some(session) = self.get(&tenant, &key) else { return };
            if session.ended.is_some() {
                self.forget(&tenant, &key);
            } else if session.in_flight > 0 || self.has_living_child(&tenant, &key) {
                self.rearm(now_ms, &tenant, &key);
            } else {
                self.end(now_ms, &tenant, &key, EndCause::Idle, lived);
            }
        }
    }

    fn has_living_child(&self, tenant: &str, key: &str) -> bool {
        let Some(here) = self.tenants.get(tenant) else { return false };
        let parent = here.sessions.get(key).and_then(|session| session.parent.as_ref());
        // Two that call each other their parent would keep each other for ever.
        let lives = |child: &Arc<str>| {
            Some(child) != parent && here.sessions.get(child).is_some_and(|s| s.ended.is_none())
        };
        here.children.get(key).is_some_and(|children| children.iter().any(lives))
    }

    /// Whether `key` is a subagent that `caller` may close: its own, or one of the same session.
    pub(super) fn is_subagent_of(&self, tenant: &str, key: &str, caller: &str) -> bool {
        let (Some(session), Some(caller_session)) =
            (self.get(tenant, key), self.get(tenant, caller))
        else {
            return false;
        };
        let same_session = session.ids.session.is_some()
            && session.ids.session == caller_session.ids.session
            && session.parent.is_some();
        key != caller && (session.parent.as_deref() == Some(caller) || same_session)
    }

    /// The subagents that have given what may be their last answer.
    pub(super) fn resting(&self, tenant: &str, key: &str) -> Vec<Arc<str>> {
        let Some(here) = self.tenants.get(tenant) else { return Vec::new() };
        let Some(children) = here.children.get(key) else { return Vec::new() };
        let rests = |child: &&Arc<str>| here.sessions.get(*child).is_some_and(Session::rests);
        children.iter().filter(rests).take(CHILDREN_SEARCHED_MAX).cloned().collect()
    }

    /// Ends those of `children` that still rest.
    pub(super) fn end_resting(
        &mut self,
        now_ms: u64,
        tenant: &Arc<str>,
        children: &[Arc<str>],
        lived: &mut Vec<Lived>,
    ) {
        for child in children {
            if self.get(tenant, child).is_some_and(Session::rests) {
                self.end(now_ms, tenant, child, EndCause::Finished, lived);
            }
        }
    }

    /// Notes the head of a session's history; on its first turn, tells whose history it goes on from. What the client
    /// says wins over what is seen.
    pub(super) fn origin(
        &mut self,
        tenant: &str,
        key: &Arc<str>,
        request: &Request,
        first_turn: bool,
        told: Option<String>,
    ) -> Option<String> {
        let head = signs::head(&request.conversation);
        let here = self.tenants.get_mut(tenant)?;
        let head = head.filter(|_| request.session.source != SessionSource::Inferred);
        let seen = head.and_then(|head| here.heads.get(&head)).filter(|owner| *owner != key);
        let from = told.or_else(|| seen.map(|owner| owner.to_string())).filter(|_| first_turn);
        let session = here.sessions.get_mut(key)?;
        let was = std::mem::replace(&mut session.head, head);
        if from.is_some() {
            session.forked_from.clone_from(&from);
        }
        if was != head {
            if let Some(was) = was
                && here.heads.get(&was) == Some(key)
            {
                here.heads.remove(&was);
            }
            if let Some(head) = head {
                here.heads.insert(head, Arc::clone(key));
            }
        }
        from
    }

    pub(super) fn view(
        &self,
        now_ms: u64,
        tenant: &str,
        key: &str,
        session: &Session,
        children_max: usize,
    ) -> SessionView {
        let children = self.tenants.get(tenant).and_then(|t| t.children.get(key));
        let told = children.into_iter().flatten().take(children_max);
        SessionView {
            key: key.to_owned(),
            harness: session.ids.harness,
            client: session.ids.client.clone(),
            named_by: session.ids.named_by,
            session: session.ids.session.clone(),
            agent: session.ids.agent.clone(),
            parent: session.parent.as_deref().map(str::to_owned),
            forked_from: session.forked_from.clone(),
            children: told.map(|child| child.to_string()).collect(),
            children_count: children.map_or(0, BTreeSet::len),
            state: session.state(),
            tools: session.tools.clone(),
            ended: session.ended,
            turns: session.turns,
            side_requests: session.side_requests,
            compactions: session.compactions,
            prompt_tokens: session.prompt_tokens,
            cached_tokens: session.cached_tokens,
            completion_tokens: session.completion_tokens,
            context_tokens: session.context_tokens,
            age_ms: now_ms.saturating_sub(session.started_ms),
            seen_ms_ago: now_ms.saturating_sub(session.seen_ms),
        }
    }
}

#[cfg(test)]
mod check;
