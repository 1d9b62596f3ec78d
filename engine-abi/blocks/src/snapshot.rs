//! Everything that is registered, told again as events: parents before children, and runs as long
//! as they go, since whoever asks has just lost the thread and may hold millions of blocks.

use mainstay_engine_abi::sdk::{KvEvent, TIER_DEVICE};

use super::{BlockId, BlockPool, NONE};

impl BlockPool {
    /// Calls `emit` with stored events that together name every registered block once; answers with
    /// their number.
    pub fn snapshot(&self, mut emit: impl FnMut(KvEvent)) -> u32 {
        // Sorted by parent, the children of a block are one stretch.
        let mut children: Vec<(BlockId, BlockId)> =
            self.by_hash.values().map(|id| (self.blocks[*id as usize].parent, *id)).collect();
        children.sort_unstable();
        let of = |parent: BlockId| {
            let from = children.partition_point(|c| c.0 < parent);
            children[from..].iter().take_while(move |c| c.0 == parent).map(|c| c.1)
        };
        let mut count = 0;
        let mut open: Vec<BlockId> = of(NONE).collect();
        while let Some(first) = open.pop() {
            let block = &self.blocks[first as usize];
            let parent = match block.parent {
                NONE => block.namespace,
                parent => self.blocks[parent as usize].hash.unwrap_or(block.namespace),
            };
            let namespace = block.namespace;
            let mut blocks = Vec::new();
            let mut next = Some(first);
            while let Some(id) = next {
                blocks.extend(self.blocks[id as usize].hash);
                let mut following = of(id);
                next = following.next();
                open.extend(following);
            }
            count += blocks.len() as u32;
            emit(KvEvent::Stored { namespace, parent, blocks, tier: TIER_DEVICE, snapshot: true });
        }
        count
    }
}
