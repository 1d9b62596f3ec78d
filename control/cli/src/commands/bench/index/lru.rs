//! One worker's cache in the corpora: least recently used blocks leave first, of one chain the deepest.
//!
//! A chain is touched from its end to its start, so a block never outlives its parent, as in engines that free
//! blocks in that order. Every worker of a corpus has one; its size is the corpus's `--capacity`.

use super::rng::KeyMap;

const NONE: u32 = 0;

#[derive(Clone, Copy, Default)]
struct Node {
    key: u64,
    parent: u64,
    newer: u32,
    older: u32,
}

/// Blocks in the order of their last use. Node 0 stands for the ends of the list.
pub(super) struct Lru {
    at: KeyMap<u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
}

impl Lru {
    pub(super) fn new(capacity: usize) -> Self {
        let mut at = KeyMap::default();
        at.reserve(capacity);
        let mut nodes = Vec::with_capacity(capacity + 1);
        nodes.push(Node::default());
        Self { at, nodes, free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.at.len()
    }

    pub(super) fn holds(&self, key: u64) -> bool {
        self.at.contains_key(&key)
    }

    /// Makes a block the newest, new or not; answers whether it is new.
    pub(super) fn touch(&mut self, key: u64, parent: u64) -> bool {
        if let Some(&node) = self.at.get(&key) {
            self.unlink(node);
            self.link(node);
            return false;
        }
        let node = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            u32::try_from(self.nodes.len() - 1).expect("the capacity is bounded far below")
        });
        self.nodes[node as usize] = Node { key, parent, ..Node::default() };
        self.at.insert(key, node);
        self.link(node);
        true
    }

    /// Takes out the oldest block: its key and its parent's.
    pub(super) fn evict(&mut self) -> Option<(u64, u64)> {
        let node = self.nodes[NONE as usize].newer;
        if node == NONE {
            return None;
        }
        self.unlink(node);
        self.free.push(node);
        let Node { key, parent, .. } = self.nodes[node as usize];
        self.at.remove(&key);
        Some((key, parent))
    }

    fn unlink(&mut self, node: u32) {
        let Node { newer, older, .. } = self.nodes[node as usize];
        self.nodes[newer as usize].older = older;
        self.nodes[older as usize].newer = newer;
    }

    fn link(&mut self, node: u32) {
        let newest = self.nodes[NONE as usize].older;
        self.nodes[node as usize].older = newest;
        self.nodes[node as usize].newer = NONE;
        self.nodes[newest as usize].newer = node;
        self.nodes[NONE as usize].older = node;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_leaves_first_and_touching_makes_young() {
        let mut lru = Lru::new(4);
        assert_eq!(lru.evict(), None);
        assert!(lru.touch(1, 0) && lru.touch(2, 1) && lru.touch(3, 2));
        assert!(!lru.touch(1, 0));
        assert_eq!(lru.evict(), Some((2, 1)));
        assert!(!lru.holds(2) && lru.holds(1) && lru.len() == 2);
        assert!(lru.touch(4, 3), "a freed node is used again");
        assert_eq!(
            [lru.evict(), lru.evict(), lru.evict()],
            [Some((3, 2)), Some((1, 0)), Some((4, 3))]
        );
        assert_eq!((lru.evict(), lru.len()), (None, 0));
    }
}
