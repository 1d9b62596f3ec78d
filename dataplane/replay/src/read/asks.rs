//! Requests that name their session, and others that they wait for, put together as sessions with subagents.
//!
//! A session whose first request waits for one of another session is started by that one. Links that would go in a
//! circle, or name nobody, are left out; their session starts at its time.

use std::collections::{HashMap, HashSet};

use super::{ReadSettings, START_MS_MAX, ms, tokens};
use crate::trace::{AgentBuilder, Item, Record, SESSIONS_MAX, Session, TraceBuilder, TraceError};

/// Sessions above one another, at most.
const DEPTH_MAX: usize = 64;

/// One request of a file, before it has its place.
#[derive(Default)]
pub(super) struct Ask {
    pub(super) id: Option<String>,
    pub(super) session: Option<String>,
    pub(super) at_ms: Option<f64>,
    pub(super) pause_ms: Option<f64>,
    /// The pause is from arrival to arrival, with the time of the answer in it: good for playing, no measurement.
    pub(super) pause_has_answer: bool,
    pub(super) after_tool: Option<bool>,
    /// Requests that it waits for, by their names.
    pub(super) wait_for: Vec<String>,
    pub(super) blocks: Vec<u32>,
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) priority: i64,
    pub(super) ttft_ms: Option<f64>,
    pub(super) took_ms: Option<f64>,
    pub(super) cached_tokens: Option<u64>,
}

/// Who started a session: the place of its session, and the place of the request there.
type Spawner = (usize, usize);

struct Families {
    /// Requests by session, in their order.
    sessions: Vec<Vec<Ask>>,
    spawners: Vec<Option<Spawner>>,
    /// Of each session, those that it starts, with the place of the request.
    children: Vec<Vec<(usize, usize)>>,
}

/// Adds the sessions of all requests.
pub(super) fn assemble(
    asks: Vec<Ask>,
    block_tokens: u32,
    settings: &ReadSettings,
    builder: &mut TraceBuilder,
) -> Result<(), TraceError> {
    let families = families(by_session(asks)?);
    builder.timed();
    let times = families.sessions.iter().filter_map(|asks| asks.first()?.at_ms);
    let first_ms = times.filter(|time| time.is_finite()).reduce(f64::min).unwrap_or(0.0);
    let start_ms = |place: usize| {
        let at_ms = families.sessions[place].first().and_then(|ask| ask.at_ms);
        (at_ms.unwrap_or(first_ms) - first_ms).clamp(0.0, START_MS_MAX) as u64
    };
    let roots = (0..families.sessions.len()).filter(|place| families.spawners[*place].is_none());
    let mut roots: Vec<usize> = roots.collect();
    // Time goes forward, whatever the order of the rows.
    roots.sort_by_key(|place| start_ms(*place));
    for root in roots {
        let session = Session { numbers_are_global: true, ..Session::default() };
        let mut writer = Writer {
            families: &families,
            settings,
            block_tokens,
            first_ms,
            session: Session { start_ms: start_ms(root), ..session },
            left_out: 0,
        };
        writer.agent(root);
        builder.leave_out(writer.left_out);
        let mut session = writer.session;
        if !settings.records {
            session.records = Vec::new();
        }
        builder.add(block_tokens, session)?;
    }
    Ok(())
}

fn by_session(asks: Vec<Ask>) -> Result<Vec<Vec<Ask>>, TraceError> {
    let mut sessions: Vec<Vec<Ask>> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    for ask in asks {
        let known = ask.session.as_ref().and_then(|name| by_name.get(name)).copied();
        if let Some(known) = known {
            sessions[known].push(ask);
            continue;
        }
        if sessions.len() >= SESSIONS_MAX {
            return Err(TraceError::TooMuch { what: "sessions", most: SESSIONS_MAX });
        }
        if let Some(name) = &ask.session {
            by_name.insert(name.clone(), sessions.len());
        }
        sessions.push(vec![ask]);
    }
    Ok(sessions)
}

fn families(sessions: Vec<Vec<Ask>>) -> Families {
    let mut places: HashMap<&str, Spawner> = HashMap::new();
    for (session, asks) in sessions.iter().enumerate() {
        for (at, ask) in asks.iter().enumerate() {
            if let Some(id) = &ask.id {
                places.entry(id).or_insert((session, at));
            }
        }
    }
    let mut spawners: Vec<Option<Spawner>> = vec![None; sessions.len()];
    let mut children = vec![Vec::new(); sessions.len()];
    for (session, asks) in sessions.iter().enumerate() {
        let Some(first) = asks.first() else { continue };
        let named = first.wait_for.iter().filter_map(|id| places.get(id.as_str()));
        let Some(&spawner) = named.clone().find(|(other, _)| *other != session) else { continue };
        if is_above(&spawners, session, spawner.0) {
            continue;
        }
        spawners[session] = Some(spawner);
        children[spawner.0].push((spawner.1, session));
    }
    drop(places);
    cut_depth(&mut spawners, &mut children);
    Families { sessions, spawners, children }
}

/// Lets sessions that are too far below others start by themselves: files are anybody's, and reading goes down.
fn cut_depth(spawners: &mut [Option<Spawner>], children: &mut [Vec<(usize, usize)>]) {
    let roots = (0..spawners.len()).filter(|place| spawners[*place].is_none());
    let mut todo: Vec<(usize, usize)> = roots.map(|place| (place, 0)).collect();
    while let Some((place, depth)) = todo.pop() {
        let below = if depth >= DEPTH_MAX {
            let cut = std::mem::take(&mut children[place]);
            cut.iter().for_each(|(_, child)| spawners[*child] = None);
            cut.iter().map(|(_, child)| (*child, 0)).collect::<Vec<_>>()
        } else {
            children[place].iter().map(|(_, child)| (*child, depth + 1)).collect()
        };
        // In the order of the requests that start them.
        children[place].sort_unstable();
        todo.extend(below);
    }
}

/// Whether `session` is above `other`, or `other` is too far down already.
fn is_above(spawners: &[Option<Spawner>], session: usize, other: usize) -> bool {
    let mut at = other;
    for _ in 0..DEPTH_MAX {
        if at == session {
            return true;
        }
        match spawners[at] {
            Some((above, _)) => at = above,
            None => return false,
        }
    }
    true
}

struct Writer<'a> {
    families: &'a Families,
    settings: &'a ReadSettings,
    block_tokens: u32,
    first_ms: f64,
    session: Session,
    left_out: u64,
}

impl Writer<'_> {
    /// Takes in a session of the file, which is an agent here, with its subagents; answers with its number.
    fn agent(&mut self, place: usize) -> u32 {
        let number = self.session.agents.len();
        self.session.agents.push(Vec::new());
        self.session.records.push(Vec::new());
        let asks = &self.families.sessions[place];
        let fits = |ask: &Ask| {
            let length = ask.prompt_tokens.saturating_add(ask.output_tokens);
            length <= u64::from(self.settings.context_tokens)
        };
        let played = asks.iter().position(|ask| !fits(ask)).unwrap_or(asks.len());
        self.left_out += (asks.len() - played) as u64;
        let mut started: Vec<(usize, u32)> = Vec::new();
        let mut own: HashSet<&str> = HashSet::new();
        for (at, child) in &self.families.children[place] {
            if *at >= played {
                self.leave_out(*child);
                continue;
            }
            started.push((*at, self.agent(*child)));
            own.extend(self.families.sessions[*child].iter().filter_map(|ask| ask.id.as_deref()));
        }
        let records = asks[..played].iter().map(|ask| self.record(ask)).collect();
        let mut agent = AgentBuilder::new(&mut self.session.chains, self.block_tokens, 0, 0);
        let mut started = started.into_iter().peekable();
        for (at, ask) in asks[..played].iter().enumerate() {
            let pause_ms = ms(ask.pause_ms.map(|ms| ms / 1_000.0), self.settings.pause_ms_max);
            let joins = ask.wait_for.iter().any(|id| own.contains(id.as_str()));
            let priority = ask.priority.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16;
            let (prompt, output) = (tokens(ask.prompt_tokens), tokens(ask.output_tokens));
            agent.turn_of(&ask.blocks, prompt, output, pause_ms, priority, joins);
            while let Some((_, child)) = started.next_if(|(spawner, _)| *spawner == at) {
                agent.spawn(child);
            }
        }
        let items: Vec<Item> = agent.end();
        self.session.agents[number] = items;
        self.session.records[number] = records;
        number as u32
    }

    /// Counts the requests of a session that is never started, and those below it.
    fn leave_out(&mut self, place: usize) {
        let mut todo = vec![place];
        while let Some(place) = todo.pop() {
            self.left_out += self.families.sessions[place].len() as u64;
            todo.extend(self.families.children[place].iter().map(|(_, child)| *child));
        }
    }

    fn record(&self, ask: &Ask) -> Record {
        let sane = |ms: Option<f64>| ms.filter(|ms| ms.is_finite() && *ms >= 0.0);
        Record {
            at_ms: sane(ask.at_ms.map(|at| (at - self.first_ms).min(START_MS_MAX))),
            ttft_ms: sane(ask.ttft_ms),
            took_ms: sane(ask.took_ms),
            pause_ms: sane(ask.pause_ms.filter(|_| !ask.pause_has_answer)),
            after_tool: ask.after_tool,
            cached_tokens: ask.cached_tokens.map(tokens),
        }
    }
}
