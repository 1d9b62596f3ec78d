//! The requests of a session with their times: those of the recording, else what the pauses before them add up to.
//!
//! A subagent begins where its parent starts it, and the parent's next turn is after those that it waits for.

use crate::trace::{Item, Record, Session, Turn};

/// Subagents below one another, at most; readers make fewer.
const DEPTH_MAX: usize = 100;

/// A request in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    pub(super) at_ms: f64,
    pub(super) end_ms: f64,
    pub(super) session: u32,
    pub(super) first_of_subagent: bool,
    pub(super) turn: Turn,
    pub(super) record: Record,
}

/// Appends the visits of a session; answers whether all their times were recorded.
pub(super) fn visits(session: &Session, place: u32, global: bool, out: &mut Vec<Visit>) -> bool {
    let begin_ms = if global { session.start_ms as f64 } else { 0.0 };
    let mut walk = Walk { session, place, recorded: true, out };
    if !session.agents.is_empty() {
        walk.agent(0, begin_ms, 0);
    }
    walk.recorded
}

struct Walk<'a> {
    session: &'a Session,
    place: u32,
    recorded: bool,
    out: &'a mut Vec<Visit>,
}

impl Walk<'_> {
    /// Visits an agent and its subagents; answers with when the last of them ends.
    fn agent(&mut self, agent: u32, begin_ms: f64, depth: usize) -> f64 {
        let (mut now_ms, mut children_ms, mut turns) = (begin_ms, begin_ms, 0);
        let records = self.session.records.get(agent as usize).map_or(&[][..], Vec::as_slice);
        for item in &self.session.agents[agent as usize] {
            match item {
                Item::Spawn(child) if depth < DEPTH_MAX => {
                    children_ms = self.agent(*child, now_ms, depth + 1).max(children_ms);
                }
                Item::Spawn(_) => {}
                Item::Turn(turn) => {
                    if turn.joins {
                        now_ms = now_ms.max(children_ms);
                    }
                    let record = records.get(turns).copied().unwrap_or_default();
                    self.recorded &= record.at_ms.is_some();
                    let pause_ms = record.pause_ms.unwrap_or(f64::from(turn.pause_ms));
                    let at_ms = record.at_ms.unwrap_or(now_ms + pause_ms);
                    now_ms = at_ms + record.took_ms.unwrap_or(0.0);
                    self.out.push(Visit {
                        at_ms,
                        end_ms: now_ms,
                        session: self.place,
                        first_of_subagent: agent > 0 && turns == 0,
                        turn: *turn,
                        record,
                    });
                    turns += 1;
                }
            }
        }
        now_ms.max(children_ms)
    }
}
