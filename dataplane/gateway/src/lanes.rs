//! Lanes: the latest turns of each session, as the console draws them.
//!
//! The table of sessions says how each stands; a lane says how it came there: when each request came, when its first
//! token and its end, on which worker, and what was found of the turn before. Bounded for each session, each tenant and
//! overall; who was silent for longest makes room. It knows numbers and ids, never a text, and nothing rests on it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use mainstay_chat::{Change, Lived, Usage};
use mainstay_types::{TenantId, WorkerId};
use parking_lot::Mutex;

use crate::history::unix_ms;
use crate::sessions::Observer;

/// Turns and marks kept of one session.
pub(crate) const TURNS_MAX: usize = 64;
const MARKS_MAX: usize = 64;
/// Sessions of a tenant, and of all.
const LANES_PER_TENANT_MAX: usize = 512;
const LANES_MAX: usize = 2_048;

/// How a request of a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum TurnEnd {
    /// It has not.
    #[default]
    Running,
    /// Answered.
    Served,
    /// It failed.
    Failed,
    /// Its client left, or nobody took it.
    GivenUp,
}

impl TurnEnd {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Served => "served",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }
}

/// One request of a session. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Turn {
    number: u64,
    /// Its id; empty until a worker has taken it.
    pub(crate) request: Arc<str>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) began_ms: u64,
    pub(crate) first_ms: Option<u64>,
    pub(crate) ended_ms: Option<u64>,
    /// A request beside the conversation, like one for a title.
    pub(crate) aside: bool,
    /// Nothing of a session's first turn was in a cache.
    pub(crate) cold: bool,
    /// Tokens of the turn before that were not found again.
    pub(crate) again_tokens: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) end: TurnEnd,
}

/// A change in a session's life, and when it was heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) at_ms: u64,
    pub(crate) change: &'static str,
    /// Why it ended.
    pub(crate) why: &'static str,
}

/// What is known of one session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane {
    pub(crate) turns: VecDeque<Turn>,
    pub(crate) marks: VecDeque<Mark>,
    /// Prompt tokens of the last answered turn, of which the next one's prompt begins; 0 after a compaction.
    context_tokens: u64,
    /// Whether a turn was placed ever.
    placed: bool,
    touched: u64,
}

/// A request that is on its way, by the place of its turn.
#[derive(Debug)]
pub(crate) struct OpenTurn {
    tenant: TenantId,
    key: Arc<str>,
    number: u64,
}

/// What a worker found when it took a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken<'a> {
    pub(crate) request: &'a str,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    /// What a block holds: less than that at a prompt's end is never cached.
    pub(crate) block_tokens: u64,
}

/// All lanes.
#[derive(Debug, Default)]
struct Table {
    tenants: HashMap<TenantId, HashMap<Arc<str>, Lane>>,
    lanes: usize,
    /// Counts turns and touches.
    clock: u64,
}

/// All lanes, shared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lanes {
    table: Arc<Mutex<Table>>,
}

impl Table {
    /// The lane of a session, a new one if there is none; others make room.
    fn lane(&mut self, tenant: &TenantId, key: &Arc<str>) -> &mut Lane {
        let known = self.tenants.get(tenant).is_some_and(|lanes| lanes.contains_key(key));
        if !known {
            let own = self.tenants.get(tenant).map_or(0, HashMap::len);
            if own >= LANES_PER_TENANT_MAX {
                self.drop_oldest_of(&tenant.clone());
            } else if self.lanes >= LANES_MAX {
                // Whoever has the most can spare one.
                let most = self.tenants.iter().max_by_key(|(_, lanes)| lanes.len());
                if let Some(tenant) = most.map(|(tenant, _)| tenant.clone()) {
                    self.drop_oldest_of(&tenant);
                }
            }
            self.lanes += 1;
        }
        self.clock += 1;
        let lanes = self.tenants.entry(tenant.clone()).or_default();
        let lane = lanes.entry(Arc::clone(key)).or_default();
        lane.touched = self.clock;
        lane
    }

    fn drop_oldest_of(&mut self, tenant: &TenantId) {
        let Some(lanes) = self.tenants.get_mut(tenant) else { return };
        let oldest =
            lanes.iter().min_by_key(|(_, lane)| lane.touched).map(|(key, _)| Arc::clone(key));
        if oldest.is_some_and(|key| lanes.remove(&key).is_some()) {
            self.lanes -= 1;
        }
        if lanes.is_empty() {
            self.tenants.remove(tenant);
        }
    }

    fn turn(&mut self, open: &OpenTurn) -> Option<(&mut Lane, usize)> {
        let lane = self.tenants.get_mut(&open.tenant)?.get_mut(&open.key)?;
        let at = lane.turns.iter().rposition(|turn| turn.number == open.number)?;
        Some((lane, at))
    }
}

impl Lanes {
    /// A request of a session came; one that is `aside` is no turn of its conversation.
    pub(crate) fn begun(&self, tenant: &TenantId, key: Arc<str>, aside: bool) -> OpenTurn {
        let began_ms = unix_ms();
        let mut table = self.table.lock();
        let lane = table.lane(tenant, &key);
        let number = lane.touched;
        if lane.turns.len() >= TURNS_MAX {
            lane.turns.pop_front();
        }
        lane.turns.push_back(Turn { number, began_ms, aside, ..Turn::default() });
        OpenTurn { tenant: tenant.clone(), key, number }
    }

    /// A worker has taken it and its first token has come.
    pub(crate) fn taken(&self, open: &OpenTurn, taken: Taken<'_>) {
        let first_ms = unix_ms();
        let mut table = self.table.lock();
        let Some((lane, at)) = table.turn(open) else { return };
        let (context_tokens, placed) = (lane.context_tokens, lane.placed);
        let turn = &mut lane.turns[at];
        turn.request = taken.request.into();
        turn.worker = taken.worker;
        turn.first_ms = Some(first_ms);
        (turn.prompt_tokens, turn.cached_tokens) = (taken.prompt_tokens, taken.cached_tokens);
        if turn.aside {
            return;
        }
        turn.cold = !placed && taken.cached_tokens == 0;
        let whole_blocks = |tokens: u64| tokens - tokens % taken.block_tokens.max(1);
        let expected = whole_blocks(context_tokens.min(taken.prompt_tokens));
        turn.again_tokens = expected.saturating_sub(taken.cached_tokens);
        lane.placed = true;
    }

    /// Its answer ended.
    pub(crate) fn ended(&self, open: &OpenTurn, end: TurnEnd, usage: Usage) {
        let ended_ms = unix_ms();
        let mut table = self.table.lock();
        let Some((lane, at)) = table.turn(open) else { return };
        let turn = &mut lane.turns[at];
        (turn.ended_ms, turn.end) = (Some(ended_ms), end);
        turn.completion_tokens = usage.completion_tokens;
        if end == TurnEnd::Served && !turn.aside {
            lane.context_tokens = turn.prompt_tokens;
        }
    }

    /// A copy of a session's lane.
    pub(crate) fn of(&self, tenant: &TenantId, key: &str) -> Option<Lane> {
        self.table.lock().tenants.get(tenant)?.get(key).cloned()
    }

    fn mark(&self, tenant: &TenantId, key: &Arc<str>, change: &Change) {
        let why = match change {
            Change::Ended { why } => why.name(),
            _ => "",
        };
        let mark = Mark { at_ms: unix_ms(), change: change.name(), why };
        let mut table = self.table.lock();
        // A session whose lane has made room gets none for its end.
        let Some(lane) = table.tenants.get_mut(tenant).and_then(|lanes| lanes.get_mut(key)) else {
            return;
        };
        if matches!(change, Change::Compacted) {
            // The next prompt begins otherwise: what it does not find was not lost.
            lane.context_tokens = 0;
        }
        if lane.marks.len() >= MARKS_MAX {
            lane.marks.pop_front();
        }
        lane.marks.push_back(mark);
    }
}

impl Observer for Lanes {
    fn lived(&mut self, lived: &Lived) {
        if let Some(tenant) = TenantId::new(&lived.tenant) {
            self.mark(&tenant, &lived.key, &lived.change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    fn taken(prompt_tokens: u64, cached_tokens: u64) -> Taken<'static> {
        let worker = Some(WorkerId(3));
        Taken { request: "req_1", worker, prompt_tokens, cached_tokens, block_tokens: 16 }
    }

    /// A turn of the session `s`, from its beginning to its end.
    fn turn(lanes: &Lanes, prompt_tokens: u64, cached_tokens: u64) -> Turn {
        let open = lanes.begun(&tenant("t"), "s".into(), false);
        lanes.taken(&open, taken(prompt_tokens, cached_tokens));
        lanes.ended(&open, TurnEnd::Served, Usage { completion_tokens: 7, ..Usage::default() });
        lanes.of(&tenant("t"), "s").expect("it has a lane").turns.back().expect("a turn").clone()
    }

    #[test]
    fn a_cold_start_and_what_is_computed_again_are_told() {
        let lanes = Lanes::default();
        let first = turn(&lanes, 100, 0);
        assert!(first.cold && first.again_tokens == 0 && first.end == TurnEnd::Served);
        assert_eq!((first.worker, first.completion_tokens), (Some(WorkerId(3)), 7));
        // All full blocks of the turn before were found.
        let warm = turn(&lanes, 200, 96);
        assert!(!warm.cold && warm.again_tokens == 0);
        assert_eq!(turn(&lanes, 300, 64).again_tokens, 192 - 64);
        // Nothing was lost where the history was replaced.
        lanes.mark(&tenant("t"), &"s".into(), &Change::Compacted);
        assert_eq!(turn(&lanes, 150, 32).again_tokens, 0);
        // A prompt that is shorter than the turn before can't find more than itself.
        assert_eq!(turn(&lanes, 40, 32).again_tokens, 0);
    }

    #[test]
    fn side_requests_say_nothing_about_the_conversation() {
        let lanes = Lanes::default();
        turn(&lanes, 1_600, 0);
        let aside = lanes.begun(&tenant("t"), "s".into(), true);
        lanes.taken(&aside, taken(50, 0));
        lanes.ended(&aside, TurnEnd::Served, Usage::default());
        assert_eq!(turn(&lanes, 1_700, 1_600).again_tokens, 0);
    }

    #[test]
    fn lanes_are_bounded_and_a_tenant_makes_room_for_itself() {
        let lanes = Lanes::default();
        turn(&lanes, 10, 0);
        for n in 0..(LANES_MAX * 2) {
            let (name, key) = (format!("t{}", n % 3), format!("s{n}"));
            lanes.begun(&tenant(&name), key.as_str().into(), false);
        }
        assert!(lanes.of(&tenant("t"), "s").is_some(), "others did not push it out");
        let table = lanes.table.lock();
        let counts: Vec<usize> = table.tenants.values().map(HashMap::len).collect();
        assert!(counts.iter().all(|n| *n <= LANES_PER_TENANT_MAX), "{counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), table.lanes);
        drop(table);
        for n in 0..(LANES_MAX * 2) {
            lanes.begun(&tenant(&format!("u{n}")), "s".into(), false);
        }
        assert_eq!(lanes.table.lock().lanes, LANES_MAX);
        for _ in 0..(TURNS_MAX * 2) {
            turn(&lanes, 10, 0);
            lanes.mark(&tenant("t"), &"s".into(), &Change::Resumed);
        }
        let lane = lanes.of(&tenant("t"), "s").expect("it has a lane");
        assert_eq!((lane.turns.len(), lane.marks.len()), (TURNS_MAX, MARKS_MAX));
    }

    #[test]
    fn a_turn_whose_lane_is_gone_ends_quietly() {
        let lanes = Lanes::default();
        let open = lanes.begun(&tenant("a"), "s".into(), false);
        lanes.table.lock().drop_oldest_of(&tenant("a"));
        lanes.taken(&open, taken(10, 0));
        lanes.ended(&open, TurnEnd::GivenUp, Usage::default());
        lanes.mark(&tenant("a"), &"s".into(), &Change::Resumed);
        assert!(lanes.of(&tenant("a"), "s").is_none());
        assert!(lanes.of(&tenant("b"), "s").is_none());
    }
}
