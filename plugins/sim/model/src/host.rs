//! Host memory beside the device: copies of blocks, of which the least recently used goes first.
//!
//! It is inclusive: what a request leaves behind is copied here while it lies in the device, too, as engines with a
//! lower tier write through. Blocks are used from the last of a chain to the first, so that a prefix outlives its end.

use std::collections::{BTreeMap, HashMap};

/// The copies.
#[derive(Default)]
pub(crate) struct Host {
    blocks_max: usize,
    uses: u64,
    by_hash: HashMap<u128, u64>,
    by_use: BTreeMap<u64, u128>,
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
        let before = self.by_hash.insert(hash, self.uses);
        if let Some(before) = before {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.uses, hash);
        before.is_none()
    }

    /// One that has to go, while there are too many.
    pub(crate) fn evict(&mut self) -> Option<u128> {
        if self.by_hash.len() <= self.blocks_max {
            return None;
        }
        let (_, hash) = self.by_use.pop_first()?;
        self.by_hash.remove(&hash);
        Some(hash)
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
    }
}
