//! How the prompts of an agent follow each other: growth, pauses, and contexts that become shorter.
//!
//! An agent's prompts that continue each other are on one chain. A much shorter prompt on another chain is a
//! compaction if the agent never comes back to the long one, and a side call if it does.

use super::{Analysis, Compactions, Dist, Subagents, TurnPoint, spread};
use crate::trace::{Item, Record, Session, Turn};

/// Turns of leads that have a point of their own.
const TURNS_MAX: usize = 200;
/// An agent that comes back to a context does so within so many turns.
const LATER_MAX: usize = 100;
/// A prompt of less than this part of the one before it is a shorter one.
const SHORTER: f64 = 0.8;
/// Shorter prompts of less than this are no contexts.
const CONTEXT_TOKENS_MIN: u32 = 4_000;

/// Sums over all agents.
#[derive(Default)]
pub(super) struct Turns {
    session_turns: Vec<f64>,
    longest: Vec<f64>,
    growth: Vec<f64>,
    by_turn: Vec<Vec<f64>>,
    tool_ms: Vec<f64>,
    person_ms: Vec<f64>,
    other_ms: Vec<f64>,
    subagent_turns: Vec<f64>,
    with_subagents: u64,
    before: Vec<f64>,
    after: Vec<f64>,
    kept: Vec<f64>,
    compacted: u64,
    side_calls: u64,
    taken_back: u64,
}

impl Turns {
    pub(super) fn session(&mut self, session: &Session, block_tokens: u32) {
        let (mut all, mut longest) = (0, 0);
        let compactions = self.before.len();
        for (number, items) in session.agents.iter().enumerate() {
            let turn = |item: &Item| match item {
                Item::Turn(turn) => Some(*turn),
                Item::Spawn(_) => None,
            };
            let turns: Vec<Turn> = items.iter().filter_map(turn).collect();
            let records = session.records.get(number).map_or(&[][..], Vec::as_slice);
            self.agent(session, &turns, records, block_tokens);
            all += turns.len();
            longest = turns.iter().map(|t| t.prompt_tokens).max().unwrap_or(0).max(longest);
            if number == 0 {
                self.lead(&turns);
            } else {
                self.subagent_turns.push(turns.len() as f64);
            }
        }
        self.session_turns.push(all as f64);
        self.longest.push(f64::from(longest));
        self.with_subagents += u64::from(session.agents.len() > 1);
        self.compacted += u64::from(self.before.len() > compactions);
    }

    fn lead(&mut self, turns: &[Turn]) {
        for (at, turn) in turns.iter().enumerate().take(TURNS_MAX) {
            if self.by_turn.len() <= at {
                self.by_turn.push(Vec::new());
            }
            self.by_turn[at].push(f64::from(turn.prompt_tokens));
        }
    }

    fn agent(&mut self, session: &Session, turns: &[Turn], records: &[Record], block_tokens: u32) {
        for (at, pair) in turns.windows(2).enumerate() {
            let (before, turn) = (pair[0], pair[1]);
            self.pause(&turn, records.get(at + 1).copied());
            let shorter = f64::from(turn.prompt_tokens) < SHORTER * f64::from(before.prompt_tokens);
            if turn.chain == before.chain {
                let grown = turn.prompt_tokens.checked_sub(before.prompt_tokens);
                self.growth.extend(grown.map(f64::from));
                self.taken_back += u64::from(shorter);
            } else if shorter && before.prompt_tokens >= CONTEXT_TOKENS_MIN {
                let mut later = turns[at + 2..].iter().take(LATER_MAX);
                if later.any(|later| later.chain == before.chain) {
                    self.side_calls += 1;
                    continue;
                }
                let ids = |turn: &Turn| {
                    &session.chains[turn.chain as usize].ids[..turn.prompt_blocks as usize]
                };
                let equal = ids(&before).iter().zip(ids(&turn)).take_while(|(a, b)| a == b);
                self.before.push(f64::from(before.prompt_tokens));
                self.after.push(f64::from(turn.prompt_tokens));
                self.kept.push(equal.count() as f64 * f64::from(block_tokens));
            }
        }
    }

    fn pause(&mut self, turn: &Turn, record: Option<Record>) {
        let Some(record) = record else {
            // Made-up traffic, or a trace that was read to be played: its pauses are all there is.
            self.other_ms.push(f64::from(turn.pause_ms));
            return;
        };
        let pauses = match record.after_tool {
            Some(true) => &mut self.tool_ms,
            Some(false) => &mut self.person_ms,
            None => &mut self.other_ms,
        };
        pauses.extend(record.pause_ms);
    }

    /// The part of the analysis that is known here.
    pub(super) fn analysis(
        mut self,
        first_prompts: &mut [f64],
        cold: &mut [f64],
        cold_share: f64,
    ) -> Analysis {
        let by_turn = self.by_turn.iter_mut().enumerate().filter_map(|(at, prompts)| {
            let Dist { count, p50, p90, .. } = Dist::of(prompts)?;
            Some(TurnPoint { turn: at as u32 + 1, sessions: count, p50, p90 })
        });
        let by_turn = by_turn.collect();
        let subagents = Dist::of(&mut self.subagent_turns)
            .zip(Dist::of(first_prompts).zip(Dist::of(cold)))
            .map(|(turns, (first_prompt_tokens, cold_tokens))| Subagents {
                count: turns.count,
                sessions: self.with_subagents,
                turns,
                first_prompt_tokens,
                cold_tokens,
                cold_share,
            });
        let (tool_pause_ms, tool_curve) = spread(&mut self.tool_ms);
        let (person_pause_ms, person_curve) = spread(&mut self.person_ms);
        let (other_pause_ms, other_curve) = spread(&mut self.other_ms);
        Analysis {
            session_turns: Dist::of(&mut self.session_turns),
            longest_prompt: Dist::of(&mut self.longest),
            growth_tokens: Dist::of(&mut self.growth),
            by_turn,
            tool_pause_ms,
            person_pause_ms,
            other_pause_ms,
            subagents,
            compactions: Compactions {
                count: self.before.len() as u64,
                sessions: self.compacted,
                before_tokens: Dist::of(&mut self.before),
                after_tokens: Dist::of(&mut self.after),
                kept_tokens: Dist::of(&mut self.kept),
                side_calls: self.side_calls,
                taken_back: self.taken_back,
            },
            curves: super::Curves {
                tool_pause_ms: tool_curve,
                person_pause_ms: person_curve,
                other_pause_ms: other_curve,
                ..super::Curves::default()
            },
            ..Analysis::default()
        }
    }
}
