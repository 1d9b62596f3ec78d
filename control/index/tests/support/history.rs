//! What concurrent readers may see: the states that a list of acts goes through, block by block.
//!
//! An act is one event of one worker. Its blocks take effect in order, and a reader may come between any two of
//! them, so each is a state of its own; how many of them the index makes visible at once is its own affair. Only
//! a worker that is cleared gives its blocks up in no promised order.

use mainstay_index::model::ModelIndex;
use mainstay_types::{BlockEvent, NamespaceId, SequenceHash, Tier, WorkerId};

use crate::rng::{Rng, mix};

/// Workers that questions are about.
pub(crate) const WORKERS: usize = 12;
/// Ids of workers that hold other things, from here on.
pub(crate) const BYSTANDERS: u32 = 1_000_000;

/// For each worker how many leading blocks of a question it holds.
pub(crate) type Depths = [u16; WORKERS];

const NAMESPACE: NamespaceId = NamespaceId(0x5eed);

/// Questions, and the blocks they consist of.
pub(crate) struct World {
    pub(crate) questions: Vec<Vec<SequenceHash>>,
    names: Vec<SequenceHash>,
    /// Block numbers of each question.
    paths: Vec<Vec<u16>>,
    /// For each block, where it stands: question and position.
    places: Vec<Vec<(u16, u16)>>,
}

pub(crate) fn name(number: u64) -> SequenceHash {
    let key = mix(number);
    SequenceHash(u128::from(key ^ 0xabc) << 64 | u128::from(key))
}

pub(crate) fn worker_id(number: usize) -> WorkerId {
    WorkerId((number as u32 * 7_919) ^ 5)
}

impl World {
    /// Eight prompts that share their beginnings: a tree with branches at several depths.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut paths: Vec<Vec<u16>> = vec![(0..120).collect()];
        let mut blocks = 120_u16;
        while paths.len() < 8 {
            let base = &paths[rng.below(paths.len())];
            let mut path = base[..8 + rng.below(base.len() - 8)].to_vec();
            let length = 20 + rng.below(150) as u16;
            path.extend(blocks..blocks + length);
            blocks += length;
            paths.push(path);
        }
        let names: Vec<_> = (0..u64::from(blocks)).map(|i| name(seed << 32 | i)).collect();
        let mut places = vec![Vec::new(); names.len()];
        for (question, path) in paths.iter().enumerate() {
            for (position, &block) in path.iter().enumerate() {
                places[usize::from(block)].push((question as u16, position as u16));
            }
        }
        let of = |path: &Vec<u16>| path.iter().map(|&block| names[usize::from(block)]).collect();
        Self { questions: paths.iter().map(of).collect(), names, paths, places }
    }

    /// The event that tells an index of an act.
    pub(crate) fn event(&self, act: &Act) -> BlockEvent {
        let named = |blocks: &[u16]| blocks.iter().map(|&b| self.names[usize::from(b)]).collect();
        match act {
            Act::Store { path, from, to, tier, .. } => {
                let path = &self.paths[*path];
                let parent = match from {
                    0 => SequenceHash(NAMESPACE.0),
                    _ => self.names[usize::from(path[from - 1])],
                };
                let blocks = named(&path[*from..*to]);
                BlockEvent::Stored { namespace: NAMESPACE, parent, blocks, tier: *tier }
            }
            Act::Remove { blocks, tier, .. } => {
                BlockEvent::Removed { blocks: named(blocks), tier: *tier }
            }
            Act::Clear { .. } => BlockEvent::Cleared,
            Act::Junk { chain, store, .. } => junk(*chain, *store),
        }
    }

    /// Asks the model what the states below say about every question.
    pub(crate) fn check(&self, states: &[State], model: &ModelIndex) {
        for (question, prefix) in self.questions.iter().enumerate() {
            let mut depths = [0_u16; WORKERS];
            for (worker, depth) in depths.iter_mut().enumerate() {
                let id = worker_id(worker);
                let found = model.lookup(prefix).into_iter().find(|found| found.worker == id);
                *depth = found.map_or(0, |found| found.blocks as u16);
            }
            assert_eq!(depths_of(states, question), depths, "the test's own states are wrong");
        }
    }
}

/// A chain that no question is about, stored or removed as a whole: it moves arenas and tables.
fn junk(chain: u64, store: bool) -> BlockEvent {
    let length = 1 + mix(chain) % 60;
    let blocks = (0..length).map(|i| name(1 << 62 | chain << 8 | i));
    if store {
        let parent = SequenceHash(NAMESPACE.0);
        let (namespace, blocks, tier) = (NAMESPACE, blocks.collect(), Tier::Device);
        return BlockEvent::Stored { namespace, parent, blocks, tier };
    }
    BlockEvent::Removed { blocks: blocks.rev().collect(), tier: Tier::Device }
}

/// One event of one worker, by numbers.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Store { worker: usize, path: usize, from: usize, to: usize, tier: Tier },
    Remove { worker: usize, blocks: Vec<u16>, tier: Tier },
    Clear { worker: usize },
    Junk { worker: u32, chain: u64, store: bool },
}

impl Act {
    pub(crate) fn worker(&self) -> WorkerId {
        match self {
            Self::Store { worker, .. } | Self::Remove { worker, .. } | Self::Clear { worker } => {
                worker_id(*worker)
            }
            Self::Junk { worker, .. } => WorkerId(BYSTANDERS + worker),
        }
    }
}

/// Makes up acts of some of the workers.
pub(crate) struct Author {
    rng: Rng,
    workers: std::ops::Range<usize>,
    /// Acts thought of but not yet told.
    coming: std::collections::VecDeque<Act>,
    junk: std::collections::VecDeque<(u32, u64)>,
    junk_next: u64,
}

impl Author {
    pub(crate) fn new(seed: u64, workers: std::ops::Range<usize>) -> Self {
        let junk_next = (workers.start as u64) << 40;
        let (coming, junk) = Default::default();
        Self { rng: Rng(seed), workers, coming, junk, junk_next }
    }

    pub(crate) fn act(&mut self, world: &World) -> Act {
        if let Some(act) = self.coming.pop_front() {
            return act;
        }
        let rng = &mut self.rng;
        let worker = self.workers.start + rng.below(self.workers.len());
        let path = rng.below(world.paths.len());
        let blocks = &world.paths[path];
        let (a, b) = (rng.below(blocks.len() + 1), rng.below(blocks.len() + 1));
        let (from, to) = (a.min(b), a.max(b));
        let tier = if rng.one_in(8) { Tier::Host } else { Tier::Device };
        match rng.below(100) {
            0..25 => Act::Store { worker, path, from: 0, to: blocks.len(), tier },
            25..32 => Act::Store { worker, path, from, to, tier },
            32..40 => {
                // Decoded blocks come one at a time.
                let end = blocks.len().min(from + 12);
                let one = |at| Act::Store { worker, path, from: at, to: at + 1, tier };
                self.coming.extend((from..end).map(one));
                Act::Store { worker, path, from: 0, to: from, tier }
            }
            40..62 => {
                let blocks = blocks[from..].iter().rev().copied().collect();
                Act::Remove { worker, blocks, tier }
            }
            62..72 => Act::Remove {
                worker,
                blocks: blocks.get(from..from + 1).unwrap_or_default().to_vec(),
                tier,
            },
            72..77 => Act::Remove { worker, blocks: blocks[from..to].to_vec(), tier },
            77..80 => {
                let mut blocks = blocks[from..to].to_vec();
                for i in (1..blocks.len()).rev() {
                    blocks.swap(i, rng.below(i + 1));
                }
                Act::Remove { worker, blocks, tier }
            }
            80 => Act::Clear { worker },
            _ => self.junk(),
        }
    }

    fn junk(&mut self) -> Act {
        // Swings between none and hundreds, so that tables grow and arenas are used again.
        let growing = (self.junk_next / 500).is_multiple_of(2);
        if self.junk.is_empty() || self.rng.below(100) < if growing { 80 } else { 30 } {
            let worker = self.workers.start as u32 * 100 + self.rng.below(40) as u32;
            self.junk_next += 1;
            self.junk.push_back((worker, self.junk_next));
            return Act::Junk { worker, chain: self.junk_next, store: true };
        }
        let at = self.rng.below(self.junk.len());
        let (worker, chain) = self.junk.swap_remove_back(at).unwrap_or_default();
        Act::Junk { worker, chain, store: false }
    }
}

/// What one worker holds, and so how deep it answers each question.
#[derive(Clone)]
pub(crate) struct State {
    tiers: Vec<u8>,
    pub(crate) depths: Vec<u16>,
}

impl State {
    pub(crate) fn new(world: &World) -> Self {
        Self { tiers: vec![0; world.names.len()], depths: vec![0; world.questions.len()] }
    }

    /// Sets where a block is; answers whether any depth may have changed.
    fn set(&mut self, world: &World, block: u16, tiers: u8) -> bool {
        let before = std::mem::replace(&mut self.tiers[usize::from(block)], tiers);
        if (before == 0) == (tiers == 0) {
            return false;
        }
        for &(question, position) in &world.places[usize::from(block)] {
            let depth = &mut self.depths[usize::from(question)];
            if tiers == 0 {
                *depth = position.min(*depth);
            } else if *depth == position {
                let rest = &world.paths[usize::from(question)][usize::from(position)..];
                let held = |block: &&u16| self.tiers[usize::from(**block)] != 0;
                *depth += rest.iter().take_while(held).count() as u16;
            }
        }
        true
    }

    /// Goes through an act's states; `seen` is told after each change, and whether the worker's own depths are
    /// no more than bounds just then.
    pub(crate) fn go(&mut self, world: &World, act: &Act, mut seen: impl FnMut(&Self, bool)) {
        match act {
            Act::Store { path, from, to, tier, .. } => {
                for &block in &world.paths[*path][*from..*to] {
                    let tiers = self.tiers[usize::from(block)] | 1 << tier.number();
                    if self.set(world, block, tiers) {
                        seen(self, false);
                    }
                }
            }
            Act::Remove { blocks, tier, .. } => {
                for &block in blocks {
                    let tiers = self.tiers[usize::from(block)] & !(1 << tier.number());
                    if self.set(world, block, tiers) {
                        seen(self, false);
                    }
                }
            }
            Act::Clear { .. } => {
                seen(self, true);
                *self = Self::new(world);
                seen(self, false);
            }
            Act::Junk { .. } => {}
        }
    }
}

pub(crate) fn depths_of(states: &[State], question: usize) -> Depths {
    std::array::from_fn(|worker| states[worker].depths[question])
}
