//! Requests of agents and of chats, made up from a seed: what the corpora are built from without a trace.
//!
//! Agents share the prompts of a few harnesses, send their whole history every turn with a tool's output behind
//! it, start subagents and compact when the context is full. Chats have the lengths and the reuse of a public
//! production trace: most are new, some go on. Sources never end; the corpus takes as many as it was asked for.

use mainstay_index::BlockKey;

use super::rng::{Rng, chain};

/// The number that the chains of every corpus start from: the key of their namespace.
pub(super) const ROOT_KEY: u64 = 0x6d61_696e_7374_6179;

/// One request: the blocks of its prompt, and behind them those that decoding adds.
#[derive(Default)]
pub(super) struct Request {
    pub(super) chain: Vec<BlockKey>,
    pub(super) prompt_blocks: usize,
}

/// Where requests come from.
pub(super) trait Source {
    /// Writes the next request; false at the end.
    fn next(&mut self, request: &mut Request) -> bool;
}

/// Appends `count` blocks that nobody else has.
fn extend(blocks: &mut Vec<BlockKey>, fresh: &mut u64, count: u64) {
    let mut parent = blocks.last().map_or(ROOT_KEY, |key| key.0);
    for _ in 0..count {
        *fresh += 1;
        let key = chain(parent, *fresh);
        blocks.push(key);
        parent = key.0;
    }
}

const HARNESSES: usize = 20;
const SUBAGENT_KINDS: usize = 6;
const PROJECTS: usize = 60;
const LIVE_AGENTS: usize = 600;
/// Where a context is full and gets compacted.
const CONTEXT_BLOCKS_MAX: usize = 7_000;
const TURNS_MAX: u64 = 120;

struct Agent {
    /// Where its compacted history starts anew: harness prompt and project.
    base: usize,
    history: Vec<BlockKey>,
    turns_left: u64,
    is_subagent: bool,
}

/// Agents that take turns in random order.
pub(super) struct Agents {
    rng: Rng,
    fresh: u64,
    projects: Vec<Vec<BlockKey>>,
    subagent_prompts: Vec<Vec<BlockKey>>,
    live: Vec<Agent>,
}

impl Agents {
    pub(super) fn new(seed: u64) -> Self {
        let (mut rng, mut fresh) = (Rng::new(seed), 0);
        let mut prompts = |count: usize, low: u64, spread: u64, rng: &mut Rng| {
            let prompt = |_| {
                let mut blocks = Vec::new();
                extend(&mut blocks, &mut fresh, low + rng.below(spread));
                blocks
            };
            (0..count).map(prompt).collect::<Vec<_>>()
        };
        let harnesses = prompts(HARNESSES, 500, 600, &mut rng);
        let subagent_prompts = prompts(SUBAGENT_KINDS, 150, 250, &mut rng);
        // A project's notes follow the harness prompt, so sessions share two stretches, not one.
        let projects = (0..PROJECTS).map(|number| {
            let mut blocks = harnesses[number % HARNESSES].clone();
            extend(&mut blocks, &mut fresh, 20 + rng.below(200));
            blocks
        });
        let projects = projects.collect();
        Self { rng, fresh, projects, subagent_prompts, live: Vec::new() }
    }

    fn start_agents(&mut self) {
        while self.live.len() < LIVE_AGENTS {
            let history = self.projects[self.rng.place(PROJECTS)].clone();
            let turns_left = self.rng.log_normal_count(18.0, 0.8, TURNS_MAX);
            let base = history.len();
            self.live.push(Agent { base, history, turns_left, is_subagent: false });
        }
    }

    fn start_subagent(&mut self) {
        let mut history = self.subagent_prompts[self.rng.place(SUBAGENT_KINDS)].clone();
        let base = history.len();
        extend(&mut history, &mut self.fresh, 10 + self.rng.below(60));
        let turns_left = self.rng.log_normal_count(5.0, 0.6, 20);
        self.live.push(Agent { base, history, turns_left, is_subagent: true });
    }
}

impl Source for Agents {
    fn next(&mut self, request: &mut Request) -> bool {
        self.start_agents();
        let number = self.rng.place(self.live.len());
        let agent = &mut self.live[number];
        let tool_output = self.rng.log_normal_count(28.0, 1.1, 600);
        if agent.history.len() + tool_output as usize > CONTEXT_BLOCKS_MAX {
            // Compaction: a summary takes the place of the history.
            agent.history.truncate(agent.base);
            extend(&mut agent.history, &mut self.fresh, 40 + self.rng.below(60));
        }
        extend(&mut agent.history, &mut self.fresh, tool_output);
        request.prompt_blocks = agent.history.len();
        extend(&mut agent.history, &mut self.fresh, self.rng.log_normal_count(14.0, 0.8, 120));
        request.chain.clone_from(&agent.history);
        agent.turns_left -= 1;
        let (is_over, is_subagent) = (agent.turns_left == 0, agent.is_subagent);
        if is_over {
            self.live.swap_remove(number);
        }
        if !is_subagent && self.rng.below(10) == 0 {
            self.start_subagent();
        }
        true
    }
}

const CHATS_REMEMBERED: usize = 2_000;
const CHAT_BLOCKS_MAX: u64 = 7_500;
/// Blocks that all chats share.
const CHAT_SYSTEM_BLOCKS: u64 = 5;

/// Chats of which a third go on.
pub(super) struct Chats {
    rng: Rng,
    fresh: u64,
    system: Vec<BlockKey>,
    live: Vec<Vec<BlockKey>>,
}

impl Chats {
    pub(super) fn new(seed: u64) -> Self {
        let (mut fresh, mut system) = (0, Vec::new());
        extend(&mut system, &mut fresh, CHAT_SYSTEM_BLOCKS);
        Self { rng: Rng::new(seed ^ 0x0c4a_7500), fresh, system, live: Vec::new() }
    }
}

impl Source for Chats {
    fn next(&mut self, request: &mut Request) -> bool {
        let goes_on = !self.live.is_empty() && self.rng.below(100) < 38;
        let (mut history, added) = if goes_on {
            let number = self.rng.place(self.live.len());
            (self.live.swap_remove(number), self.rng.log_normal_count(40.0, 1.2, 1_000))
        } else {
            (self.system.clone(), self.rng.log_normal_count(420.0, 1.05, 5_500))
        };
        let room = CHAT_BLOCKS_MAX.saturating_sub(history.len() as u64).max(1);
        extend(&mut history, &mut self.fresh, added.min(room));
        request.prompt_blocks = history.len();
        extend(&mut history, &mut self.fresh, self.rng.log_normal_count(15.0, 0.9, 150));
        request.chain.clone_from(&history);
        if history.len() as u64 >= CHAT_BLOCKS_MAX {
            return true;
        }
        if self.live.len() == CHATS_REMEMBERED {
            let number = self.rng.place(CHATS_REMEMBERED);
            self.live[number] = history;
        } else {
            self.live.push(history);
        }
        true
    }
}
