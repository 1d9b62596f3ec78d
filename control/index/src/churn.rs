//! A generator of what a cluster of agents does to the index in a day: for soak tests and benchmarks.
//!
//! Memory that creeps and runs that never merge again show up only after hundreds of millions of blocks, so the
//! stream has to cost less than the index it feeds: block keys are computed, never kept, and all bookkeeping is
//! per stretch of a chain. Sessions grow turn by turn (a prefill, then decoded blocks one at a time) under
//! prompts that many share, fork, compact, run subagents and move between workers; each worker evicts what it
//! used longest ago, deepest block first, now and then one out of the middle, and sometimes restarts empty.
//! Everything follows from the seed. Chains are honest, and no two blocks ever get the same key.

use std::collections::VecDeque;

use mainstay_types::{NamespaceId, WorkerId};

use crate::BlockKey;

mod cache;
use cache::{Cache, NONE, Node};

/// Keys set aside for one node, more than its blocks ever need.
const NODE_KEYS: u64 = 1 << 32;
/// Blocks named by one event at most, as engines batch them.
const EVENT_BLOCKS_MAX: u32 = 512;
/// Turns between two restarts of a worker, on average.
const RESTART_TURNS: u64 = 20_000;
/// Turns between two new versions of a project's prompt, on average.
const PROJECT_TURNS: u64 = 2_000;

/// The size of the cluster and of its habits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChurnConfig {
    /// Where all chance comes from.
    pub seed: u64,
    /// How many workers; at least 1.
    pub workers: u32,
    /// How many blocks fit on one worker; at least 1,024.
    pub worker_blocks_max: u32,
    /// How many sessions are alive at a time; at least 1.
    pub sessions: u32,
    /// Out of 1,000 evictions, how many take a block out of the middle of a chain.
    pub hole_permille: u32,
}

impl Default for ChurnConfig {
    fn default() -> Self {
        Self { seed: 1, workers: 64, worker_blocks_max: 16_384, sessions: 2_000, hole_permille: 20 }
    }
}

/// One event of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChurnOp<'a> {
    /// The worker holds these blocks, which follow each other after `parent`.
    Stored {
        /// Who.
        worker: WorkerId,
        /// Of which namespace.
        namespace: NamespaceId,
        /// The key of the block before, or of the namespace.
        parent: u64,
        /// The blocks, in order.
        blocks: &'a [BlockKey],
    },
    /// The worker holds these blocks no more.
    Removed {
        /// Who.
        worker: WorkerId,
        /// The blocks, deepest first.
        blocks: &'a [BlockKey],
    },
    /// The worker holds nothing from here on.
    Cleared {
        /// Who.
        worker: WorkerId,
    },
}

impl ChurnOp<'_> {
    /// How many blocks it names.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        match self {
            Self::Stored { blocks, .. } | Self::Removed { blocks, .. } => blocks.len() as u64,
            Self::Cleared { .. } => 0,
        }
    }
}

/// What is still to be said: stretches of nodes, turned into keys when their time comes.
#[derive(Debug, Clone, Copy)]
enum Step {
    Store { worker: u32, base: u64, before: u64, from: u32, to: u32, step: u32 },
    Remove { worker: u32, base: u64, from: u32, to: u32 },
    Clear { worker: u32 },
}

#[derive(Debug, Clone, Copy)]
struct Session {
    node: u32,
    worker: u32,
    blocks_max: u32,
}

/// The stream of events; never ends.
#[derive(Debug)]
pub struct Churn {
    config: ChurnConfig,
    random: u64,
    cache: Cache,
    projects: Vec<u32>,
    cores: Vec<u32>,
    sessions: Vec<Session>,
    next_base: u64,
    steps: VecDeque<Step>,
    buffer: Vec<BlockKey>,
}

impl Churn {
    /// The stream that `config` describes; numbers below their least are taken as the least.
    #[must_use]
    pub fn new(config: ChurnConfig) -> Self {
        let config = ChurnConfig {
            workers: config.workers.max(1),
            worker_blocks_max: config.worker_blocks_max.max(1_024),
            sessions: config.sessions.max(1),
            ..config
        };
        let mut churn = Self {
            config,
            random: config.seed,
            cache: Cache::new(config.workers),
            projects: Vec::new(),
            cores: Vec::new(),
            sessions: Vec::new(),
            next_base: 0,
            steps: VecDeque::new(),
            buffer: Vec::new(),
        };
        let unit = config.worker_blocks_max / 128;
        for _ in 0..8 {
            let length = churn.between(unit, 4 * unit);
            let core = churn.node(NONE, length);
            churn.cores.push(core);
        }
        for i in 0..32 {
            let project = churn.project(i);
            churn.projects.push(project);
        }
        for _ in 0..config.sessions {
            let session = churn.session();
            churn.sessions.push(session);
        }
        churn
    }

    /// The next event.
    pub fn next_op(&mut self) -> ChurnOp<'_> {
        while self.steps.is_empty() {
            self.turn();
        }
        let Some(step) = self.steps.front_mut() else {
            // Not reached: the loop above leaves only with a step there.
            return ChurnOp::Cleared { worker: WorkerId(0) };
        };
        self.buffer.clear();
        match step {
            Step::Store { worker, base, before, from, to, step } => {
                let end = (*from + *step).min(*to);
                self.buffer.extend((*from..end).map(|i| BlockKey(key(*base, i))));
                let parent = if *from == 0 { *before } else { key(*base, *from - 1) };
                let worker = worker_id(*worker);
                *from = end;
                let namespace = NAMESPACE;
                self.pop_if(end);
                ChurnOp::Stored { worker, namespace, parent, blocks: &self.buffer }
            }
            Step::Remove { worker, base, from, to } => {
                let start = to.saturating_sub(EVENT_BLOCKS_MAX).max(*from);
                self.buffer.extend((start..*to).rev().map(|i| BlockKey(key(*base, i))));
                let worker = worker_id(*worker);
                *to = start;
                self.pop_if(start);
                ChurnOp::Removed { worker, blocks: &self.buffer }
            }
            Step::Clear { worker } => {
                let worker = worker_id(*worker);
                self.steps.pop_front();
                ChurnOp::Cleared { worker }
            }
        }
    }

    /// Drops the step in front once it has reached its end.
    fn pop_if(&mut self, reached: u32) {
        let done = match self.steps.front() {
            Some(Step::Store { to, .. }) => reached == *to,
            Some(Step::Remove { from, .. }) => reached == *from,
            _ => true,
        };
        if done {
            self.steps.pop_front();
        }
    }

    /// How many sessions are alive.
    #[must_use]
    pub fn session_count(&self) -> u32 {
        self.sessions.len() as u32
    }

    /// The whole prompt of a session as it stands now: what its next request would be looked up with.
    pub fn prompt_into(&self, session: u32, out: &mut Vec<BlockKey>) {
        out.clear();
        let Some(session) = self.sessions.get(session as usize) else { return };
        for (node, length) in self.cache.path(session.node) {
            let base = self.cache.nodes[node as usize].base;
            out.extend((0..length).map(|i| BlockKey(key(base, i))));
        }
    }

    /// The size that the stream has, after numbers below their least were raised.
    #[must_use]
    pub fn config(&self) -> ChurnConfig {
        self.config
    }

    fn turn(&mut self) {
        if self.one_in(RESTART_TURNS) {
            let worker = self.below(self.config.workers);
            self.cache.clear(worker);
            self.steps.push_back(Step::Clear { worker });
        }
        if self.one_in(PROJECT_TURNS) {
            let i = self.below(self.projects.len() as u32) as usize;
            let fresh = self.project(i as u32);
            let old = std::mem::replace(&mut self.projects[i], fresh);
            self.cache.drop_ref(old);
        }
        let at = self.below(self.sessions.len() as u32) as usize;
        if self.one_in(64) {
            self.sessions[at].worker = self.below(self.config.workers);
        }
        let Session { node, worker, blocks_max } = self.sessions[at];
        if self.cache.nodes[node as usize].length >= blocks_max {
            let next = self.successor(self.sessions[at]);
            self.cache.drop_ref(node);
            self.sessions[at] = next;
        }
        let node = self.sessions[at].node;
        self.serve(node, worker);
        if self.one_in(8) {
            let project = self.below(self.projects.len() as u32) as usize;
            let agent = self.node(self.projects[project], 0);
            for _ in 0..self.between(1, 4) {
                self.serve(agent, worker);
            }
            self.cache.drop_ref(agent);
        }
    }

    /// One request of a session: what its worker lacks is stored, then some output, block by block.
    fn serve(&mut self, node: u32, worker: u32) {
        let unit = (self.config.worker_blocks_max / 256).max(4);
        let prefill = self.between(unit / 4, 2 * unit);
        let decode = self.between(1, unit / 2);
        self.cache.nodes[node as usize].length += prefill;
        let path: Vec<(u32, u32)> = self.cache.path(node).collect();
        for &(node, to) in &path {
            let residency = self.cache.pin(node, worker);
            let from = self.cache.residencies[residency as usize].depth;
            if let Some(hole) = self.cache.take_hole(residency) {
                self.make_room(worker, 1);
                self.store(node, worker, hole, hole + 1, 1);
            }
            self.make_room(worker, to.saturating_sub(from));
            self.store(node, worker, from, to, EVENT_BLOCKS_MAX);
            self.cache.residencies[residency as usize].depth = to.max(from);
        }
        let from = self.cache.nodes[node as usize].length;
        self.make_room(worker, decode);
        self.store(node, worker, from, from + decode, 1);
        self.cache.nodes[node as usize].length = from + decode;
        self.cache.set_depth(node, worker, from + decode);
        for &(node, _) in path.iter().rev() {
            self.cache.unpin(node, worker);
        }
    }

    fn store(&mut self, node: u32, worker: u32, from: u32, to: u32, step: u32) {
        if from >= to {
            return;
        }
        self.cache.used[worker as usize] += to - from;
        let Node { base, parent, hangs_at, .. } = self.cache.nodes[node as usize];
        let before = if parent == NONE {
            NAMESPACE.0 as u64
        } else {
            key(self.cache.nodes[parent as usize].base, hangs_at.saturating_sub(1))
        };
        self.steps.push_back(Step::Store { worker, base, before, from, to, step });
    }

    fn make_room(&mut self, worker: u32, blocks: u32) {
        while self.cache.used[worker as usize] + blocks > self.config.worker_blocks_max {
            let need = self.cache.used[worker as usize] + blocks - self.config.worker_blocks_max;
            let holed = self.below(1_000) < self.config.hole_permille;
            let at = self.next_random();
            let evicted = match holed.then(|| self.cache.punch(worker, at)).flatten() {
                Some(evicted) => Some(evicted),
                None => self.cache.evict(worker, need),
            };
            let Some((base, from, to)) = evicted else { return };
            self.steps.push_back(Step::Remove { worker, base, from, to });
        }
    }

    /// The session after one that has grown too long: a fork of it, a compaction, or a new one.
    fn successor(&mut self, old: Session) -> Session {
        let Node { parent, length, .. } = self.cache.nodes[old.node as usize];
        let grandparent = self.cache.nodes.get(parent as usize).map_or(NONE, |node| node.parent);
        let shallow = parent != NONE
            && self.cache.nodes.get(grandparent as usize).is_some_and(|n| n.parent == NONE);
        if shallow && self.one_in(4) {
            let fork = self.node(old.node, 0);
            let hangs_at = self.between(length / 4, length / 2).max(1);
            self.cache.nodes[fork as usize].hangs_at = hangs_at;
            return Session { node: fork, ..old };
        }
        if shallow && self.one_in(2) {
            let summary = self.between(4, 40);
            return Session { node: self.node(parent, summary), ..old };
        }
        self.session()
    }

    fn session(&mut self) -> Session {
        let project = self.below(self.projects.len() as u32) as usize;
        let node = self.node(self.projects[project], 0);
        let most = self.config.worker_blocks_max / 8;
        let blocks_max = self.between(most / 4, most);
        let worker = self.below(self.config.workers);
        Session { node, worker, blocks_max }
    }

    fn project(&mut self, number: u32) -> u32 {
        let unit = self.config.worker_blocks_max / 128;
        let length = self.between(unit / 4 + 1, 2 * unit);
        self.node(self.cores[number as usize % self.cores.len()], length)
    }

    fn node(&mut self, parent: u32, length: u32) -> u32 {
        let base = self.next_base;
        self.next_base = self.next_base.wrapping_add(NODE_KEYS);
        self.cache.add(base, parent, length)
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }

    /// A number below `end`, which is taken as at least 1.
    fn below(&mut self, end: u32) -> u32 {
        ((u64::from(end.max(1)) * (self.next_random() >> 32)) >> 32) as u32
    }

    fn between(&mut self, from: u32, to: u32) -> u32 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next_random().is_multiple_of(count)
    }
}

/// All chains live in one namespace: the index keeps no namespaces apart that hashes do not keep apart already.
const NAMESPACE: NamespaceId = NamespaceId(0x6d61_696e_7374_6179_0000_0000_0000_0007);

/// The key of block `i` of the node whose keys begin at `base`. A bijection, so no two blocks share a key.
fn key(base: u64, i: u32) -> u64 {
    mix(base.wrapping_add(u64::from(i)))
}

fn worker_id(number: u32) -> WorkerId {
    WorkerId(number + 1)
}

/// Scrambles 64 bits without losing any (the finisher of splitmix64).
fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}
