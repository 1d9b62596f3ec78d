//! A session while it is played: its blocks with their hashes, and how far each agent is.
//!
//! Hashes are made when a session starts and go with it, so memory is for the sessions that are alive. A session
//! that is played again has blocks of its own, apart from what its group shares.

use std::sync::Arc;

use mainstay_types::SequenceHash;

use crate::rng::mix;
use crate::trace::{Chain, Item, Session, Turn};

/// The parent of all first blocks.
pub(crate) const NAMESPACE: u128 = 0x6d61_696e_7374_6179_7265_706c_6179_0001;

/// The block after `parent` with that content.
pub(crate) fn after(parent: u128, content: u64) -> u128 {
    let low = mix((parent as u64).rotate_left(23) ^ content);
    let high = mix(((parent >> 64) as u64).wrapping_add(low) ^ content.rotate_left(32));
    (u128::from(high) << 64) | u128::from(low)
}

/// The hashes of a chain in the session that `salt` names.
fn hashes(chain: &Chain, salt: u64) -> Arc<[SequenceHash]> {
    let group = mix(u64::from(chain.shared_group) | 1 << 40);
    let mut parent = NAMESPACE;
    let of = |(at, id): (usize, &u32)| {
        let shared = (at as u32) < chain.shared_blocks;
        let content = if shared { group ^ at as u64 } else { salt ^ u64::from(*id) };
        parent = after(parent, content);
        SequenceHash(parent)
    };
    chain.ids.iter().enumerate().map(of).collect()
}

#[derive(Debug, Clone, Copy)]
struct Agent {
    next_item: u32,
    /// Whom it reports to.
    parent: Option<u32>,
    /// Subagents that have not ended.
    children: u32,
    /// Its next turn has been asked for, so that the end of a subagent does not ask again.
    asks: bool,
}

/// What an agent wants now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// To ask after a pause.
    Ask { agent: u32, pause_ms: u32 },
    /// Nothing: the session is over.
    Over,
}

/// A session that is being played.
pub(crate) struct Live {
    /// Its number among all that were started.
    pub(crate) serial: u64,
    /// Its place in the trace.
    pub(crate) session: u32,
    pub(crate) chains: Vec<Arc<[SequenceHash]>>,
    agents: Vec<Agent>,
}

impl Live {
    /// The `copy`th time that the session at `place` is played.
    pub(crate) fn new(serial: u64, place: u32, copy: u64, session: &Session) -> Self {
        let own = if session.numbers_are_global { 0 } else { u64::from(place) + 1 };
        let salt = mix(mix(own ^ copy << 32) ^ 0x5e55_1047);
        let agent = Agent { next_item: 0, parent: None, children: 0, asks: false };
        Self {
            serial,
            session: place,
            chains: session.chains.iter().map(|chain| hashes(chain, salt)).collect(),
            agents: vec![agent; session.agents.len()],
        }
    }

    /// The turn that an agent asks for; `None` where it does not ask.
    pub(crate) fn turn(&self, session: &Session, agent: u32) -> Option<Turn> {
        let next = self.agents.get(agent as usize)?.next_item as usize;
        match session.agents[agent as usize].get(next) {
            Some(Item::Turn(turn)) => Some(*turn),
            _ => None,
        }
    }

    /// Begins with the first agent.
    pub(crate) fn begin(&mut self, session: &Session, steps: &mut Vec<Step>) {
        self.go_on(session, 0, steps);
    }

    /// An agent's turn has ended: what it and others do now.
    pub(crate) fn ended(&mut self, session: &Session, agent: u32, steps: &mut Vec<Step>) {
        let state = &mut self.agents[agent as usize];
        state.next_item += 1;
        state.asks = false;
        self.go_on(session, agent, steps);
    }

    /// Whom a subagent reports to, once it has said all that it has to say.
    pub(crate) fn done(&self, session: &Session, agent: u32) -> Option<u32> {
        let state = self.agents.get(agent as usize)?;
        let items = session.agents.get(agent as usize)?;
        state.parent.filter(|_| state.next_item as usize >= items.len())
    }

    fn go_on(&mut self, session: &Session, agent: u32, steps: &mut Vec<Step>) {
        let mut todo = vec![agent];
        while let Some(agent) = todo.pop() {
            let items = &session.agents[agent as usize];
            let state = self.agents[agent as usize];
            if state.asks {
                continue;
            }
            match items.get(state.next_item as usize) {
                Some(Item::Spawn(child)) => {
                    self.agents[agent as usize].next_item += 1;
                    self.agents[agent as usize].children += 1;
                    self.agents[*child as usize].parent = Some(agent);
                    todo.extend([agent, *child]);
                }
                Some(Item::Turn(turn)) if state.children == 0 || !turn.joins => {
                    self.agents[agent as usize].asks = true;
                    steps.push(Step::Ask { agent, pause_ms: turn.pause_ms });
                }
                Some(Item::Turn(_)) => {}
                None if state.children > 0 => {}
                None => match state.parent {
                    None => steps.push(Step::Over),
                    Some(parent) => {
                        let waiting = &mut self.agents[parent as usize];
                        waiting.children -= 1;
                        // A parent that is still starting others is on the list already.
                        if waiting.children == 0 && !todo.contains(&parent) {
                            todo.push(parent);
                        }
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::AgentBuilder;

    fn session(copies_share: bool) -> Session {
        let mut session = Session { numbers_are_global: copies_share, ..Session::default() };
        let mut items = Vec::new();
        for agent in 0..3_u32 {
            let mut builder = AgentBuilder::new(&mut session.chains, 16, 5, 1);
            builder.turn(&[1, 10 + agent], 32, 1, agent);
            if agent == 0 {
                builder.spawn(1);
                builder.spawn(2);
                builder.turn(&[1, 10, 11], 48, 1, 9);
            }
            items.push(builder.end());
        }
        session.agents = items;
        session
    }

    #[test]
    fn a_lead_waits_for_its_subagents() {
        let session = session(false);
        let mut live = Live::new(0, 0, 0, &session);
        let mut steps = Vec::new();
        let taken = |steps: &mut Vec<Step>| {
            let mut taken: Vec<(u32, u32)> = steps
                .drain(..)
                .map(|s| match s {
                    Step::Ask { agent, pause_ms } => (agent, pause_ms),
                    Step::Over => (99, 0),
                })
                .collect();
            taken.sort_unstable();
            taken
        };
        live.begin(&session, &mut steps);
        assert_eq!(taken(&mut steps), [(0, 0)]);
        live.ended(&session, 0, &mut steps);
        assert_eq!(taken(&mut steps), [(1, 1), (2, 2)]);
        live.ended(&session, 2, &mut steps);
        assert_eq!(taken(&mut steps), []);
        live.ended(&session, 1, &mut steps);
        assert_eq!(taken(&mut steps), [(0, 9)]);
        assert_eq!(live.turn(&session, 0).unwrap().prompt_blocks, 3);
        live.ended(&session, 0, &mut steps);
        assert_eq!(taken(&mut steps), [(99, 0)]);
        assert_eq!(live.turn(&session, 0), None);
    }

    #[test]
    fn a_lead_that_does_not_wait_goes_on_and_its_session_ends_last() {
        let mut session = session(false);
        if let Some(Item::Turn(turn)) = session.agents[0].last_mut() {
            turn.joins = false;
        }
        let mut live = Live::new(0, 0, 0, &session);
        let mut steps = Vec::new();
        live.begin(&session, &mut steps);
        live.ended(&session, 0, &mut steps);
        // The first turn, and then all three at once.
        assert_eq!(steps.len(), 1 + 3);
        live.ended(&session, 1, &mut steps);
        live.ended(&session, 2, &mut steps);
        assert_eq!(steps.len(), 4, "the lead is asking already");
        live.ended(&session, 0, &mut steps);
        assert_eq!(steps[4..], [Step::Over]);
    }

    #[test]
    fn copies_share_what_their_group_shares() {
        let session = session(false);
        let (a, b) = (Live::new(0, 0, 0, &session), Live::new(1, 0, 1, &session));
        assert_eq!(a.chains[0][0], b.chains[0][0]);
        assert_ne!(a.chains[0][1], b.chains[0][1]);
        assert_eq!(a.chains, Live::new(2, 0, 0, &session).chains);
        assert_ne!(a.chains[0][1], Live::new(2, 1, 0, &session).chains[0][1]);
    }

    #[test]
    fn global_numbers_mean_the_same_in_all_sessions() {
        let session = session(true);
        let (a, b) = (Live::new(0, 0, 0, &session), Live::new(1, 7, 0, &session));
        assert_eq!(a.chains, b.chains);
        assert_ne!(a.chains[0][1], Live::new(1, 7, 1, &session).chains[0][1]);
    }
}
