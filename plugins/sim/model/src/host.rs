//! Host memory beside the device: copies of blocks, of which the least recently used goes first.
//!
//! It is inclusive: what a request leaves behind is copied here while it lies in the device, too, as engines with a
//! lower tier write through. Blocks are used from the last of a chain to the first, so that a prefix outlives its end.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

/// Uses that are remembered for each block before those that are over are swept out.
const USES_PER_BLOCK: usize = 4;

/// The copies.
#[derive(Default)]
pub(crate) struct Host {
    blocks_max: usize,
    uses: u64,
    by_hash: HashMap<u128, u64, FixedState>,
    /// The oldest first; a block's last use counts.
    by_use: VecDeque<(u64, u128)>,
}

impl Host {
    /// Room for so many blocks; 0 is no tier at all.
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self { blocks_max, ..Self::default() }
    }

    pub(crate) fn is_there(&self) -> bool {
        self.blocks_max > 0
    }

    pub(crate) fn holds(&self, hash: u128) -> bool {
        self.by_hash.contains_key(&hash)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// A block is used, and there from now on; whether it was not before.
    pub(crate) fn take(&mut self, hash: u128) -> bool {
        self.uses += 1;
        let is_new = self.by_hash.insert(hash, self.uses).is_none();
        self.by_use.push_back((self.uses, hash));
        if self.by_use.len() > USES_PER_BLOCK * self.by_hash.len() + USES_PER_BLOCK {
            let by_hash = &self.by_hash;
            self.by_use.retain(|(used, hash)| by_hash.get(hash) == Some(used));
        }
        is_new
    }

    /// One that has to go, while there are too many.
    pub(crate) fn evict(&mut self) -> Option<u128> {
        if self.by_hash.len() <= self.blocks_max {
            return None;
        }
        while let Some((used, hash)) = self.by_use.pop_front() {
            if self.by_hash.get(&hash) == Some(&used) {
                self.by_hash.remove(&hash);
                return Some(hash);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes() {
        let mut host = Host::new(2);
        assert!(host.take(1) && host.take(2) && !host.take(1) && host.take(3));
        assert_eq!((host.evict(), host.evict()), (Some(2), None));
        assert!(host.holds(1) && host.holds(3) && host.len() == 2);
        assert!(!Host::new(0).is_there());
        // What is used again and again takes no more room for it.
        (0..10_000).for_each(|_| assert!(!host.take(3)));
        assert!(host.by_use.len() <= 12 && host.take(4));
        assert_eq!(host.evict(), Some(1));
    }
}
