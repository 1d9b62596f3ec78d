//! What changed in a pool, in order, for those who keep a copy of who holds what.
//!
//! Blocks that follow each other are one change, since a prompt has thousands. Whoever does not
//! take changes for too long is told that some were lost, and asks for all that is registered
//! instead: a bound on memory that costs a snapshot and no truth.

use mainstay_types::hash::{NamespaceId, SequenceHash};
use mainstay_types::id::PinId;

use super::manager::BlockManager;
use super::{CHANGED_BLOCKS_MAX, Cause, NONE};

/// A change of what is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These blocks, which follow each other, are registered now.
    Stored {
        /// Whose.
        namespace: NamespaceId,
        /// The block before the first; the namespace's own number at the start of a chain.
        parent: SequenceHash,
        /// In order.
        blocks: Vec<SequenceHash>,
    },
    /// These blocks are registered no more.
    Removed {
        /// Leaves first.
        blocks: Vec<SequenceHash>,
        /// Why.
        cause: Cause,
    },
    /// A pin's time is over.
    PinExpired {
        /// Which.
        pin: PinId,
    },
    /// Changes were lost. [`BlockManager::snapshot`] tells what is registered, [`BlockManager::has_pin`] which pins
    /// are left.
    Lost,
}

/// Changes that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    list: Vec<Change>,
    named: usize,
}

impl Changes {
    pub(crate) fn stored(&mut self, namespace: NamespaceId, parent: u128, hash: u128) {
        if self.is_lost() {
            return;
        }
        self.named += 1;
        let (parent, hash) = (SequenceHash(parent), SequenceHash(hash));
        if let Some(Change::Stored { namespace: last, blocks, .. }) = self.list.last_mut()
            && *last == namespace
            && blocks.last() == Some(&parent)
        {
            blocks.push(hash);
        } else {
            self.list.push(Change::Stored { namespace, parent, blocks: vec![hash] });
        }
    }

    pub(crate) fn removed(&mut self, hash: u128, cause: Cause) {
        if self.is_lost() {
            return;
        }
        self.named += 1;
        let hash = SequenceHash(hash);
        let blocks = match self.list.as_mut_slice() {
            [.., Change::Removed { blocks, cause: last }] if *last == cause => blocks,
            // A full pool lets one go for each that it stores. What goes now was here before that stretch, unless it
            // is the end of it (the others have children), so it may be told with those that went before.
            [
                ..,
                Change::Removed { blocks, cause: last },
                Change::Stored { blocks: stored, .. },
            ] if *last == cause && stored.last() != Some(&hash) => blocks,
            _ => {
                self.list.push(Change::Removed { blocks: vec![hash], cause });
                return;
            }
        };
        blocks.push(hash);
    }

    pub(crate) fn pin_expired(&mut self, pin: PinId) {
        if self.is_lost() {
            return;
        }
        self.named += 1;
        self.list.push(Change::PinExpired { pin });
    }

    fn is_lost(&mut self) -> bool {
        if self.named < CHANGED_BLOCKS_MAX {
            return false;
        }
        if self.named == CHANGED_BLOCKS_MAX {
            self.list = vec![Change::Lost];
            self.named += 1;
        }
        true
    }
}

impl BlockManager {
    /// The changes since the last call, in order.
    pub fn drain_changes(&mut self) -> std::vec::Drain<'_, Change> {
        self.changes.named = 0;
        self.changes.list.drain(..)
    }

    /// Whether there are changes to take.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.changes.list.is_empty()
    }

    /// Whether changes were lost since they were taken last.
    #[must_use]
    pub fn has_lost_changes(&self) -> bool {
        matches!(self.changes.list.as_slice(), [Change::Lost])
    }

    /// Calls `emit` with [`Change::Stored`]s that together name every registered block once, parents
    /// before children; answers with their number.
    pub fn snapshot(&self, mut emit: impl FnMut(Change)) -> u32 {
        // Sorted by parent, the children of a block are one stretch.
        let mut children: Vec<(u32, u32)> =
            self.registered().map(|id| (self.blocks[id as usize].parent, id)).collect();
        children.sort_unstable();
        let of = |parent: u32| {
            let from = children.partition_point(|child| child.0 < parent);
            children[from..].iter().take_while(move |child| child.0 == parent).map(|child| child.1)
        };
        let mut count = 0;
        let mut open: Vec<u32> = of(NONE).collect();
        while let Some(first) = open.pop() {
            let namespace = self.namespaces[first as usize];
            let parent = SequenceHash(self.parent_hash(first));
            let mut blocks = Vec::new();
            let mut next = Some(first);
            while let Some(id) = next {
                blocks.push(SequenceHash(self.blocks[id as usize].hash));
                let mut following = of(id);
                next = following.next();
                open.extend(following);
            }
            count += blocks.len() as u32;
            emit(Change::Stored { namespace, parent, blocks });
        }
        count
    }
}
