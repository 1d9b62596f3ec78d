//! What the engine holds, block by block: the worker's own copy, from which everything can be told again.
//!
//! The engine reports changes only; the index needs the whole after a gap, an overflow, a fence or a restart.
//! The copy is bounded: an engine that reports more blocks than it can have is held to the limit, and what is
//! beyond it is simply not announced, which costs cache hits and nothing else.

use std::collections::HashMap;

use mainstay_types::{BlockEvent, NamespaceId, SequenceHash, Tier};

/// The longest run that a snapshot puts into one event.
const RUN_BLOCKS_MAX: usize = 4_096;

#[derive(Clone, Copy)]
struct Held {
    parent: SequenceHash,
    namespace: NamespaceId,
    /// One bit per tier.
    tiers: u8,
}

const fn bit(tier: Tier) -> u8 {
    1 << tier.number()
}

/// The blocks that an engine holds, with their parents.
pub(crate) struct LocalMap {
    blocks: HashMap<SequenceHash, Held>,
    held: [usize; Tier::ALL.len()],
    blocks_max: usize,
}

impl LocalMap {
    /// An empty map of at most `blocks_max` blocks.
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self { blocks: HashMap::new(), held: [0; Tier::ALL.len()], blocks_max }
    }

    /// Changes the limit, for a new engine; what is held already stays.
    pub(crate) fn set_blocks_max(&mut self, blocks_max: usize) {
        self.blocks_max = blocks_max;
    }

    /// How many blocks are held in any tier.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many blocks are held in one tier.
    pub(crate) fn held(&self, tier: Tier) -> usize {
        self.held[tier.number() as usize]
    }

    /// Whether a tier holds a block.
    pub(crate) fn holds(&self, block: SequenceHash, tier: Tier) -> bool {
        self.blocks.get(&block).is_some_and(|held| held.tiers & bit(tier) != 0)
    }

    /// Takes a run in; `fresh` hears of each block that the tier did not hold. Answers with how many of the
    /// run were taken: the rest is beyond the limit.
    pub(crate) fn store(
        &mut self,
        namespace: NamespaceId,
        parent: SequenceHash,
        run: &[SequenceHash],
        tier: Tier,
        mut fresh: impl FnMut(SequenceHash),
    ) -> usize {
        let mut parent = parent;
        for (at, &block) in run.iter().enumerate() {
            let full = self.blocks.len() >= self.blocks_max;
            if full && !self.blocks.contains_key(&block) {
                return at;
            }
            let held = self.blocks.entry(block).or_insert(Held { parent, namespace, tiers: 0 });
            // The last report wins, so that the copy agrees with an index that is told the same.
            (held.parent, held.namespace) = (parent, namespace);
            if held.tiers & bit(tier) == 0 {
                held.tiers |= bit(tier);
                self.held[tier.number() as usize] += 1;
                fresh(block);
            }
            parent = block;
        }
        run.len()
    }

    /// Takes blocks out of one tier; `gone` hears of each that the tier did hold.
    pub(crate) fn remove(
        &mut self,
        blocks: &[SequenceHash],
        tier: Tier,
        mut gone: impl FnMut(SequenceHash),
    ) {
        for &block in blocks {
            let Some(held) = self.blocks.get_mut(&block) else { continue };
            if held.tiers & bit(tier) == 0 {
                continue;
            }
            held.tiers &= !bit(tier);
            if held.tiers == 0 {
                self.blocks.remove(&block);
            }
            self.held[tier.number() as usize] -= 1;
            gone(block);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.held = [0; Tier::ALL.len()];
    }

    /// The whole content as stored runs, parents before their children. Applied to an empty map, they give
    /// this map again.
    pub(crate) fn runs(&self) -> Vec<BlockEvent> {
        let mut runs = Vec::new();
        for tier in Tier::ALL {
            if self.held(tier) > 0 {
                self.runs_of(tier, &mut runs);
            }
        }
        runs
    }

    fn runs_of(&self, tier: Tier, runs: &mut Vec<BlockEvent>) {
        // Sorted by parent, so that the children of a block are a stretch; its position stands for a block.
        let mut edges: Vec<(SequenceHash, SequenceHash)> = self
            .blocks
            .iter()
            .filter(|(_, held)| held.tiers & bit(tier) != 0)
            .map(|(&block, held)| (held.parent, block))
            .collect();
        edges.sort_unstable();
        let mut walk = Walk { map: self, tier, visited: vec![false; edges.len()], edges };
        for at in 0..walk.edges.len() {
            let (parent, block) = walk.edges[at];
            if parent == block || !self.holds(parent, tier) {
                walk.chains_from(at, runs);
            }
        }
        // Parents that form a ring have no root. No real chain does, but an engine may report anything.
        for at in 0..walk.edges.len() {
            walk.chains_from(at, runs);
        }
    }
}

struct Walk<'a> {
    map: &'a LocalMap,
    tier: Tier,
    edges: Vec<(SequenceHash, SequenceHash)>,
    visited: Vec<bool>,
}

impl Walk<'_> {
    /// Emits the tree below one block: a run along the first children, then one for each branch.
    fn chains_from(&mut self, start: usize, runs: &mut Vec<BlockEvent>) {
        let mut starts = vec![start];
        while let Some(start) = starts.pop() {
            let mut next = Some(start);
            while let Some(from) = next.take().filter(|&at| !self.visited[at]) {
                let (parent, first) = self.edges[from];
                let namespace = self.map.blocks[&first].namespace;
                let mut blocks = Vec::new();
                let mut along = Some(from);
                while let Some(at) = along.take() {
                    self.visited[at] = true;
                    let block = self.edges[at].1;
                    blocks.push(block);
                    let child = self.follow(block, &mut starts);
                    let fits = blocks.len() < RUN_BLOCKS_MAX;
                    let same = child.is_some_and(|at| {
                        self.map.blocks[&self.edges[at].1].namespace == namespace
                    });
                    if fits && same { along = child } else { next = child }
                }
                runs.push(BlockEvent::Stored { namespace, parent, blocks, tier: self.tier });
            }
        }
    }

    /// The first unvisited child of a block; its siblings are put off.
    fn follow(&self, block: SequenceHash, starts: &mut Vec<usize>) -> Option<usize> {
        let from = self.edges.partition_point(|(parent, _)| *parent < block);
        let children = self.edges[from..].iter().take_while(|(parent, _)| *parent == block).count();
        let mut children = (from..from + children).filter(|&at| !self.visited[at]);
        let first = children.next();
        starts.extend(children);
        first
    }
}

#[cfg(test)]
mod tests;
