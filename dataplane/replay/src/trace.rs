//! What is played: sessions of agents, whose turns ask for a chain of blocks each.
//!
//! Turns of one agent mostly continue each other, so they share one chain and each names how much of it is its own:
//! a corpus costs memory for what is new in its turns, and not for its histories. Blocks are numbers until a session
//! is played; numbers count within the session, but for a leading part that sessions of one group have in common.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use thiserror::Error;

/// Sessions of a trace, turns and agents of a session, and blocks of all chains together, at most.
pub(crate) const SESSIONS_MAX: usize = 1 << 20;
const TURNS_MAX: usize = 1 << 24;
const AGENTS_MAX: usize = 1 << 12;
const BLOCKS_MAX: usize = 1 << 28;
/// Different block numbers of rows.
const NUMBERS_MAX: usize = 1 << 26;
/// The longest prompt and answer.
const TOKENS_MAX: u32 = 1 << 24;
/// Chains of an agent that a turn may go on with, the latest ones.
const OPEN_CHAINS: usize = 4;

/// Why a trace cannot be played.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TraceError {
    /// Not of the form.
    #[error("{place}: {reason}")]
    Form {
        /// The line, or the part of the session.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// More than can be taken in.
    #[error("the trace has more than {most} {what}; take a part of it")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// Sessions with blocks of different sizes.
    #[error("blocks of {found} tokens among blocks of {expected}; replay them apart")]
    MixedBlocks {
        /// Of the first session.
        expected: u32,
        /// Of this one.
        found: u32,
    },
    /// Nothing to play.
    #[error("the trace holds no requests")]
    Empty,
}

/// A stretch of blocks that turns ask for from its start.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chain {
    /// The group that the leading blocks belong to, and how many they are.
    pub(crate) shared_group: u32,
    pub(crate) shared_blocks: u32,
    pub(crate) ids: Vec<u32>,
}

/// What a turn is to its agent's conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It goes on from the turn before, or is the first.
    Continues,
    /// The conversation begins anew: nobody asks for what was before any more.
    Anew,
    /// Something beside it: the conversation goes on later.
    Beside,
}

/// One request of an agent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Turn {
    pub(crate) chain: u32,
    /// Full blocks of the prompt.
    pub(crate) prompt_blocks: u32,
    /// The same and those of the answer that a later turn asks for.
    pub(crate) chain_blocks: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    /// From the end of what came before.
    pub(crate) pause_ms: u32,
    /// Higher goes first; 0 is ordinary.
    pub(crate) priority: i16,
    /// Whether it waits for all subagents that its agent has started.
    pub(crate) joins: bool,
    pub(crate) role: Role,
    /// Whether its answer calls tools, as far as is known.
    pub(crate) calls: bool,
}

/// What a recording says of a turn. Kept for the analysis; playing looks at none of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Record {
    /// From the begin of its session, or of the trace where that has times.
    pub(crate) at_ms: Option<f64>,
    pub(crate) ttft_ms: Option<f64>,
    /// From its arrival to its last token.
    pub(crate) took_ms: Option<f64>,
    /// As recorded, without a bound.
    pub(crate) pause_ms: Option<f64>,
    /// Whether a tool was waited for, or a person.
    pub(crate) after_tool: Option<bool>,
    pub(crate) cached_tokens: Option<u32>,
}

/// What an agent does next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Item {
    /// Ask, mostly once all its subagents have ended.
    Turn(Turn),
    /// Start a subagent.
    Spawn(u32),
}

/// A lead, which is the first agent, and its subagents.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Session {
    /// For traces with times: when it starts.
    pub(crate) start_ms: u64,
    pub(crate) agents: Vec<Vec<Item>>,
    /// Of each agent's turns, in their order; empty where nothing was recorded or asked for.
    pub(crate) records: Vec<Vec<Record>>,
    pub(crate) chains: Vec<Chain>,
    /// Numbers of its blocks mean the same in all sessions.
    pub(crate) numbers_are_global: bool,
}

impl Session {
    pub(crate) fn turns(&self) -> usize {
        let turns = |items: &Vec<Item>| items.iter().filter(|i| matches!(i, Item::Turn(_))).count();
        self.agents.iter().map(turns).sum()
    }
}

/// Sessions to play.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    pub(crate) block_tokens: u32,
    pub(crate) sessions: Vec<Session>,
    /// Sessions start at their times, instead of when another one ends.
    pub(crate) timed: bool,
    /// Turns that were left out because they were too long, with those behind them.
    pub(crate) left_out: u64,
}

impl Trace {
    /// Tokens of a block.
    #[must_use]
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// How many sessions.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// How many requests.
    #[must_use]
    pub fn request_count(&self) -> usize {
        self.sessions.iter().map(Session::turns).sum()
    }

    /// Requests that were left out because they, or one before them, were longer than the context.
    #[must_use]
    pub fn left_out_count(&self) -> u64 {
        self.left_out
    }
}

/// Puts a trace together, session by session.
#[derive(Debug, Default)]
pub struct TraceBuilder {
    sessions: Vec<Session>,
    block_tokens: u32,
    timed: bool,
    turns: usize,
    blocks: usize,
    left_out: u64,
    /// Block numbers of rows, which may be hashes, in the order of their first use.
    numbers: HashMap<u64, u32, FixedState>,
}

impl TraceBuilder {
    /// The trace of what was added.
    ///
    /// # Errors
    /// If that was nothing.
    pub fn build(self) -> Result<Trace, TraceError> {
        if self.turns == 0 {
            return Err(TraceError::Empty);
        }
        let Self { sessions, block_tokens, timed, left_out, .. } = self;
        Ok(Trace { block_tokens, sessions, timed, left_out })
    }

    pub(crate) fn timed(&mut self) {
        self.timed = true;
    }

    /// Small numbers for those of rows, the same for the same in all files.
    pub(crate) fn numbers(&mut self, ids: &[u64]) -> Result<Vec<u32>, TraceError> {
        let small = |id: &u64| {
            let next = self.numbers.len();
            if next >= NUMBERS_MAX {
                return Err(TraceError::TooMuch { what: "different blocks", most: NUMBERS_MAX });
            }
            Ok(*self.numbers.entry(*id).or_insert(next as u32))
        };
        ids.iter().map(small).collect()
    }

    pub(crate) fn leave_out(&mut self, turns: u64) {
        self.left_out += turns;
    }

    /// Adds a session; one without turns is nothing.
    pub(crate) fn add(&mut self, block_tokens: u32, session: Session) -> Result<(), TraceError> {
        let turns = session.turns();
        if turns == 0 {
            return Ok(());
        }
        if self.block_tokens == 0 {
            self.block_tokens = block_tokens;
        }
        if self.block_tokens != block_tokens {
            let expected = self.block_tokens;
            return Err(TraceError::MixedBlocks { expected, found: block_tokens });
        }
        self.turns += turns;
        self.blocks += session.chains.iter().map(|chain| chain.ids.len()).sum::<usize>();
        let limits = [
            (self.sessions.len() + 1, SESSIONS_MAX, "sessions"),
            (self.turns, TURNS_MAX, "requests"),
            (session.agents.len(), AGENTS_MAX, "agents in a session"),
            (self.blocks, BLOCKS_MAX, "blocks"),
        ];
        if let Some((_, most, what)) = limits.into_iter().find(|(is, most, _)| is > most) {
            return Err(TraceError::TooMuch { what, most });
        }
        self.sessions.push(session);
        Ok(())
    }
}

/// Puts an agent's turns on chains.
pub(crate) struct AgentBuilder<'a> {
    chains: &'a mut Vec<Chain>,
    items: Vec<Item>,
    /// Chains of this agent, the latest last.
    open: Vec<u32>,
    block_tokens: u32,
    shared_group: u32,
    shared_blocks: u32,
}

impl<'a> AgentBuilder<'a> {
    /// An agent whose prompts begin with the `shared_blocks` that its group has in common.
    pub(crate) fn new(
        chains: &'a mut Vec<Chain>,
        block_tokens: u32,
        shared_group: u32,
        shared_blocks: u32,
    ) -> Self {
        let (items, open) = (Vec::new(), Vec::new());
        Self { chains, items, open, block_tokens, shared_group, shared_blocks }
    }

    pub(crate) fn spawn(&mut self, agent: u32) {
        self.items.push(Item::Spawn(agent));
    }

    /// A request for the blocks `ids`, an ordinary one.
    pub(crate) fn turn(
        &mut self,
        ids: &[u32],
        prompt_tokens: u32,
        output_tokens: u32,
        pause_ms: u32,
    ) {
        self.turn_of(ids, prompt_tokens, output_tokens, pause_ms, 0, true);
    }

    /// A request with a priority, which waits for subagents or does not.
    pub(crate) fn turn_of(
        &mut self,
        ids: &[u32],
        prompt_tokens: u32,
        output_tokens: u32,
        pause_ms: u32,
        priority: i16,
        joins: bool,
    ) {
        let full = prompt_tokens.min(TOKENS_MAX) / self.block_tokens;
        let ids = &ids[..ids.len().min(full as usize)];
        let chain = self.chain_of(ids);
        let turn = Turn {
            chain,
            prompt_blocks: ids.len() as u32,
            chain_blocks: 0,
            prompt_tokens: prompt_tokens.clamp(1, TOKENS_MAX),
            output_tokens: output_tokens.clamp(1, TOKENS_MAX),
            pause_ms,
            priority,
            joins,
            role: Role::Continues,
            calls: false,
        };
        self.items.push(Item::Turn(turn));
    }

    /// The answer to the last turn calls tools.
    pub(crate) fn calls_tools(&mut self) {
        if let Some(Item::Turn(turn)) = self.items.last_mut() {
            turn.calls = true;
        }
    }

    /// A chain that begins with `ids`: one that did before, one that they go on with, or a new one.
    fn chain_of(&mut self, ids: &[u32]) -> u32 {
        for at in self.open.iter().rev().take(OPEN_CHAINS) {
            let chain = &mut self.chains[*at as usize];
            let common = chain.ids.len().min(ids.len());
            let equal = |end: usize| chain.ids[..end] == ids[..end];
            // The last ones first: they differ where anything does, as a rule.
            let last = common.checked_sub(1).is_none_or(|last| chain.ids[last] == ids[last]);
            if common > 0 && last && equal(common) {
                chain.ids.extend_from_slice(&ids[common..]);
                return *at;
            }
        }
        let first = self.open.first().map(|at| &self.chains[*at as usize].ids);
        let like_first = first
            .map_or(ids.len(), |first| first.iter().zip(ids).take_while(|(a, b)| a == b).count());
        let number = self.chains.len() as u32;
        let shared_blocks = self.shared_blocks.min(like_first as u32);
        let shared_group = self.shared_group;
        self.chains.push(Chain { shared_group, shared_blocks, ids: ids.to_vec() });
        self.open.push(number);
        number
    }

    /// The agent's items.
    pub(crate) fn end(mut self) -> Vec<Item> {
        for item in &mut self.items {
            let Item::Turn(turn) = item else { continue };
            let chain = &self.chains[turn.chain as usize];
            let tokens = turn.prompt_tokens.saturating_add(turn.output_tokens);
            let known = (chain.ids.len() as u32).min(tokens / self.block_tokens);
            turn.chain_blocks = known.max(turn.prompt_blocks);
        }
        give_roles(&mut self.items);
        self.items
    }
}

/// Says of each turn what it is to its conversation, by what the agent asks for later.
fn give_roles(items: &mut [Item]) {
    let mut last_use = HashMap::new();
    for (at, item) in items.iter().enumerate() {
        if let Item::Turn(turn) = item {
            last_use.insert(turn.chain, at);
        }
    }
    let mut conversation = None;
    for (at, item) in items.iter_mut().enumerate() {
        let Item::Turn(turn) = item else { continue };
        turn.role = match conversation {
            Some(chain) if chain == turn.chain => Role::Continues,
            Some(chain) if last_use.get(&chain).is_some_and(|last| *last > at) => Role::Beside,
            Some(_) => Role::Anew,
            None => Role::Continues,
        };
        if turn.role != Role::Beside {
            conversation = Some(turn.chain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_go_on_share_a_chain() {
        let mut chains = Vec::new();
        let mut agent = AgentBuilder::new(&mut chains, 16, 3, 2);
        agent.turn(&[1, 2, 3], 50, 20, 0);
        agent.turn(&[1, 2, 3, 4, 5], 80, 1, 7);
        agent.turn(&[9, 9], 40, 1, 0);
        agent.turn(&[1, 2, 3], 63, 16, 0);
        agent.turn(&[1, 2, 8], 48, 0, 0);
        let items = agent.end();
        assert_eq!(chains.len(), 3);
        assert_eq!(chains[0].ids, [1, 2, 3, 4, 5]);
        assert_eq!(
            [chains[0].shared_blocks, chains[1].shared_blocks, chains[2].shared_blocks],
            [2, 0, 2]
        );
        let turns: Vec<(u32, u32, u32)> = items
            .iter()
            .map(|item| match item {
                Item::Turn(turn) => (turn.chain, turn.prompt_blocks, turn.chain_blocks),
                Item::Spawn(_) => panic!(),
            })
            .collect();
        // 70 tokens fill four blocks, of which the chain knows the fourth from the second turn.
        assert_eq!(turns, [(0, 3, 4), (0, 5, 5), (1, 2, 2), (0, 3, 4), (2, 3, 3)]);
    }

    #[test]
    fn a_turn_is_beside_a_conversation_that_goes_on_later() {
        let mut chains = Vec::new();
        let mut agent = AgentBuilder::new(&mut chains, 16, 0, 0);
        for ids in [&[1, 2][..], &[7], &[1, 2, 3], &[1, 9], &[1, 9, 10]] {
            agent.turn(ids, 16 * ids.len() as u32, 1, 0);
        }
        agent.calls_tools();
        let turn = |item: &Item| match item {
            Item::Turn(turn) => (turn.role, turn.calls),
            Item::Spawn(_) => panic!(),
        };
        let roles: Vec<(Role, bool)> = agent.end().iter().map(turn).collect();
        let expected =
            [Role::Continues, Role::Beside, Role::Continues, Role::Anew, Role::Continues];
        assert_eq!(roles.iter().map(|(role, _)| *role).collect::<Vec<_>>(), expected);
        assert!(roles[4].1 && !roles[3].1);
    }

    #[test]
    fn named_blocks_beyond_the_prompt_do_not_count() {
        let mut chains = Vec::new();
        let mut agent = AgentBuilder::new(&mut chains, 16, 0, 0);
        agent.turn(&[1, 2, 3], 33, 1, 0);
        agent.turn(&[], 5, 1, 0);
        assert_eq!(agent.end().len(), 2);
        assert_eq!((chains[0].ids.len(), chains[1].ids.len()), (2, 0));
    }

    #[test]
    fn empty_and_mixed_traces_are_refused() {
        assert_eq!(TraceBuilder::default().build(), Err(TraceError::Empty));
        let mut session = Session::default();
        let mut agent = AgentBuilder::new(&mut session.chains, 16, 0, 0);
        agent.turn(&[1], 16, 1, 0);
        session.agents.push(agent.end());
        let mut builder = TraceBuilder::default();
        builder.add(16, session.clone()).unwrap();
        let error = builder.add(64, session).unwrap_err();
        assert_eq!(error, TraceError::MixedBlocks { expected: 16, found: 64 });
    }
}
