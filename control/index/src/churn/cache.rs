//! The caches of the simulated workers: which stretch of which chain lies on which worker, and who goes first.
//!
//! A node is a stretch of one chain that hangs at a block of its parent, a residency is a node's leading blocks on
//! one worker. Like the prefix trees of real engines, a residency can be evicted only while no child of its node
//! lies on the same worker and no request uses it; among those the one used longest ago goes first.

/// No node, no residency, no block.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The number that its first block's key is made from.
    pub(super) base: u64,
    pub(super) parent: u32,
    /// How many blocks of the parent come before this node.
    pub(super) hangs_at: u32,
    pub(super) length: u32,
    /// Sessions, libraries and child nodes that need it.
    refs: u32,
    /// Its residency on each worker.
    residencies: Vec<u32>,
    resident: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Residency {
    node: u32,
    worker: u32,
    /// How many leading blocks of the node.
    pub(super) depth: u32,
    /// A block before `depth` that was evicted alone.
    hole: u32,
    /// Child nodes on the same worker, and requests under way.
    pins: u32,
    newer: u32,
    older: u32,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    newest: u32,
    oldest: u32,
}

#[derive(Debug)]
pub(super) struct Cache {
    pub(super) nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    pub(super) residencies: Vec<Residency>,
    free_residencies: Vec<u32>,
    ends: Vec<Ends>,
    /// Blocks on each worker.
    pub(super) used: Vec<u32>,
    workers: u32,
}

impl Cache {
    pub(super) fn new(workers: u32) -> Self {
        Self {
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            residencies: Vec::new(),
            free_residencies: Vec::new(),
            ends: vec![Ends { newest: NONE, oldest: NONE }; workers as usize],
            used: vec![0; workers as usize],
            workers,
        }
    }

    /// Adds a node with one reference, hanging at its parent's present end.
    pub(super) fn add(&mut self, base: u64, parent: u32, length: u32) -> u32 {
        let hangs_at = self.nodes.get(parent as usize).map_or(0, |node| node.length);
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.refs += 1;
        }
        match self.free_nodes.pop() {
            Some(at) => {
                let node = &mut self.nodes[at as usize];
                (node.base, node.parent, node.hangs_at) = (base, parent, hangs_at);
                (node.length, node.refs, node.resident) = (length, 1, 0);
                at
            }
            None => {
                let residencies = vec![NONE; self.workers as usize];
                self.nodes.push(Node {
                    base,
                    parent,
                    hangs_at,
                    length,
                    refs: 1,
                    residencies,
                    resident: 0,
                });
                (self.nodes.len() - 1) as u32
            }
        }
    }

    pub(super) fn drop_ref(&mut self, node: u32) {
        self.nodes[node as usize].refs -= 1;
        self.free_unused(node);
    }

    fn free_unused(&mut self, mut node: u32) {
        while node != NONE {
            let Node { refs, resident, parent, .. } = self.nodes[node as usize];
            if refs > 0 || resident > 0 {
                return;
            }
            self.free_nodes.push(node);
            if parent != NONE {
                self.nodes[parent as usize].refs -= 1;
            }
            node = parent;
        }
    }

    /// The nodes from the root to `node`, each with how many of its blocks belong to the chain.
    pub(super) fn path(&self, node: u32) -> impl Iterator<Item = (u32, u32)> + use<> {
        let mut path = Vec::with_capacity(4);
        let (mut at, mut length) = (node, self.nodes[node as usize].length);
        while at != NONE {
            path.push((at, length));
            let Node { parent, hangs_at, .. } = self.nodes[at as usize];
            (at, length) = (parent, hangs_at);
        }
        path.into_iter().rev()
    }

    /// Keeps a node on a worker from eviction, adding it there if need be; answers its residency.
    pub(super) fn pin(&mut self, node: u32, worker: u32) -> u32 {
        let known = self.nodes[node as usize].residencies[worker as usize];
        if known != NONE {
            self.hold(known);
            return known;
        }
        let fresh =
            Residency { node, worker, depth: 0, hole: NONE, pins: 1, newer: NONE, older: NONE };
        let at = match self.free_residencies.pop() {
            Some(at) => {
                self.residencies[at as usize] = fresh;
                at
            }
            None => {
                self.residencies.push(fresh);
                (self.residencies.len() - 1) as u32
            }
        };
        let parent = self.nodes[node as usize].parent;
        self.nodes[node as usize].residencies[worker as usize] = at;
        self.nodes[node as usize].resident += 1;
        if parent != NONE {
            // The path is pinned from the root on, so the parent is there.
            let above = self.nodes[parent as usize].residencies[worker as usize];
            self.hold(above);
        }
        at
    }

    pub(super) fn unpin(&mut self, node: u32, worker: u32) {
        let at = self.nodes[node as usize].residencies[worker as usize];
        self.let_go(at);
    }

    pub(super) fn set_depth(&mut self, node: u32, worker: u32, depth: u32) {
        let at = self.nodes[node as usize].residencies[worker as usize];
        self.residencies[at as usize].depth = depth;
    }

    /// The block that is missing in the middle, once.
    pub(super) fn take_hole(&mut self, residency: u32) -> Option<u32> {
        let hole = std::mem::replace(&mut self.residencies[residency as usize].hole, NONE);
        (hole != NONE).then_some(hole)
    }

    /// Evicts up to `need` blocks from the end of what was used longest ago: base, from, to.
    pub(super) fn evict(&mut self, worker: u32, need: u32) -> Option<(u64, u32, u32)> {
        let at = self.ends[worker as usize].oldest;
        let Residency { node, depth, hole, .. } = *self.residencies.get(at as usize)?;
        let from = depth.saturating_sub(need.max(1));
        let gone = depth - from - u32::from(hole != NONE && hole >= from);
        self.used[worker as usize] = self.used[worker as usize].saturating_sub(gone);
        self.residencies[at as usize].depth = from;
        if hole != NONE && hole >= from {
            self.residencies[at as usize].hole = NONE;
        }
        let base = self.nodes[node as usize].base;
        if from == 0 {
            self.drop_residency(at);
        }
        Some((base, from, depth))
    }

    /// Evicts one block out of the middle of what was used longest ago, if it is whole: base, from, to.
    pub(super) fn punch(&mut self, worker: u32, random: u64) -> Option<(u64, u32, u32)> {
        let at = self.ends[worker as usize].oldest;
        let entry = self.residencies.get_mut(at as usize)?;
        if entry.hole != NONE || entry.depth < 3 {
            return None;
        }
        let hole = (random % u64::from(entry.depth - 1)) as u32;
        entry.hole = hole;
        self.used[worker as usize] = self.used[worker as usize].saturating_sub(1);
        Some((self.nodes[entry.node as usize].base, hole, hole + 1))
    }

    /// Forgets all that a worker holds. Nothing may be pinned by a request.
    pub(super) fn clear(&mut self, worker: u32) {
        while self.ends[worker as usize].oldest != NONE {
            let at = self.ends[worker as usize].oldest;
            self.drop_residency(at);
        }
        self.used[worker as usize] = 0;
    }

    fn drop_residency(&mut self, at: u32) {
        self.unlink(at);
        self.free_residencies.push(at);
        let Residency { node, worker, .. } = self.residencies[at as usize];
        self.nodes[node as usize].residencies[worker as usize] = NONE;
        self.nodes[node as usize].resident -= 1;
        let parent = self.nodes[node as usize].parent;
        if parent != NONE {
            let above = self.nodes[parent as usize].residencies[worker as usize];
            self.let_go(above);
        }
        self.free_unused(node);
    }

    fn hold(&mut self, at: u32) {
        if self.residencies[at as usize].pins == 0 {
            self.unlink(at);
        }
        self.residencies[at as usize].pins += 1;
    }

    fn let_go(&mut self, at: u32) {
        let entry = &mut self.residencies[at as usize];
        entry.pins -= 1;
        if entry.pins > 0 {
            return;
        }
        let worker = entry.worker as usize;
        let newest = self.ends[worker].newest;
        (entry.newer, entry.older) = (NONE, newest);
        match self.residencies.get_mut(newest as usize) {
            Some(second) => second.newer = at,
            None => self.ends[worker].oldest = at,
        }
        self.ends[worker].newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Residency { worker, newer, older, .. } = self.residencies[at as usize];
        match self.residencies.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => self.ends[worker as usize].newest = older,
        }
        match self.residencies.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.ends[worker as usize].oldest = newer,
        }
    }
}
