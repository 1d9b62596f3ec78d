//! The local map of one moment, put in order: runs from which another map, or an index, becomes the same.
//!
//! Copying takes the lock that the engine's reports wait for, so it does nothing but copy; the sorting, which takes
//! longer, happens on whatever thread has the time. Parents come before their children and a chain is one run, which
//! is what the index stores cheapest.

use mainstay_types::{BlockEvent, SequenceHash, Tier};

use super::local_map::{Held, bit};

/// The longest run of one event.
pub(crate) const RUN_BLOCKS_MAX: usize = 4_096;

/// The blocks of a map, in no order.
pub(crate) struct MapCopy {
    entries: Vec<(SequenceHash, Held)>,
}

impl MapCopy {
    pub(crate) fn new(entries: Vec<(SequenceHash, Held)>) -> Self {
        Self { entries }
    }

    /// The whole content as stored runs of `run_blocks_max` blocks at most, parents before their children. Applied
    /// to an empty map, they give the map again.
    pub(crate) fn runs(mut self, run_blocks_max: usize) -> Vec<BlockEvent> {
        self.entries.sort_unstable_by_key(|(block, _)| *block);
        let mut runs = Vec::new();
        for tier in Tier::ALL {
            Walk::new(&self.entries, tier, run_blocks_max.clamp(1, RUN_BLOCKS_MAX)).all(&mut runs);
        }
        runs
    }
}

/// The blocks of one tier as a forest.
struct Walk<'a> {
    entries: &'a [(SequenceHash, Held)],
    tier: Tier,
    run_blocks_max: usize,
    /// Parent, and where its child lies in `entries`; sorted, so that the children of a block are a stretch.
    edges: Vec<(SequenceHash, u32)>,
    /// For each entry, where the stretch of its children begins in `edges`.
    children: Vec<u32>,
    /// Edges whose child has been told.
    visited: Vec<bool>,
}

impl<'a> Walk<'a> {
    fn new(entries: &'a [(SequenceHash, Held)], tier: Tier, run_blocks_max: usize) -> Self {
        let held = |(at, (_, held)): (usize, &(SequenceHash, Held))| {
            (held.tiers & bit(tier) != 0).then_some((held.parent, at as u32))
        };
        let mut edges: Vec<_> = entries.iter().enumerate().filter_map(held).collect();
        edges.sort_unstable();
        let mut children = Vec::with_capacity(if edges.is_empty() { 0 } else { entries.len() });
        if !edges.is_empty() {
            let mut from = 0;
            for (block, _) in entries {
                while edges.get(from).is_some_and(|(parent, _)| parent < block) {
                    from += 1;
                }
                children.push(from as u32);
            }
        }
        let visited = vec![false; edges.len()];
        Self { entries, tier, run_blocks_max, edges, children, visited }
    }

    fn all(mut self, runs: &mut Vec<BlockEvent>) {
        let mut at_parent = 0;
        for at in 0..self.edges.len() {
            let (parent, child) = self.edges[at];
            while self.entries.get(at_parent).is_some_and(|(block, _)| *block < parent) {
                at_parent += 1;
            }
            let known = self
                .entries
                .get(at_parent)
                .is_some_and(|(block, held)| *block == parent && held.tiers & bit(self.tier) != 0);
            if !known || self.entries[child as usize].0 == parent {
                self.chains_from(at, runs);
            }
        }
        // Parents that form a ring have no root. No real chain does, but an engine may report anything.
        for at in 0..self.edges.len() {
            self.chains_from(at, runs);
        }
    }

    /// Emits the tree below one block: a run along the first children, then one for each branch.
    fn chains_from(&mut self, start: usize, runs: &mut Vec<BlockEvent>) {
        let mut starts = vec![start];
        while let Some(start) = starts.pop() {
            let mut next = Some(start);
            while let Some(from) = next.take().filter(|&at| !self.visited[at]) {
                let (parent, first) = self.edges[from];
                let namespace = self.entries[first as usize].1.namespace;
                let mut blocks = Vec::new();
                let mut along = Some(from);
                while let Some(at) = along.take() {
                    self.visited[at] = true;
                    let entry = self.edges[at].1 as usize;
                    blocks.push(self.entries[entry].0);
                    let child = self.follow(entry, &mut starts);
                    let fits = blocks.len() < self.run_blocks_max;
                    let same = child.is_some_and(|at| {
                        self.entries[self.edges[at].1 as usize].1.namespace == namespace
                    });
                    if fits && same { along = child } else { next = child }
                }
                runs.push(BlockEvent::Stored { namespace, parent, blocks, tier: self.tier });
            }
        }
    }

    /// The first child of an entry that has not been told; its siblings are put off.
    fn follow(&self, entry: usize, starts: &mut Vec<usize>) -> Option<usize> {
        let block = self.entries[entry].0;
        let from = self.children[entry] as usize;
        let stretch = self.edges[from..].iter().take_while(|(parent, _)| *parent == block).count();
        let mut children = (from..from + stretch).filter(|&at| !self.visited[at]);
        let first = children.next();
        starts.extend(children);
        first
    }
}
