//! What the KV lane may say, and what the engine holds by its own word.

use std::collections::{HashMap, HashSet};

use mainstay_engine_abi::sdk::{KvEvent, TIER_DEVICE, TIER_REMOTE};

/// A block that the engine says it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) parent: u128,
    pub(crate) namespace: u128,
    /// One bit per tier.
    pub(crate) tiers: u32,
}

/// The replay of the events.
#[derive(Debug, Default)]
pub(crate) struct CacheModel {
    pub(crate) held: HashMap<u128, Held>,
    /// Pins that ended by their time.
    pub(crate) expired: HashSet<u128>,
    /// Blocks removed so far, in order.
    pub(crate) removed: Vec<u128>,
    pub(crate) resets: usize,
    /// Blocks held on the device, and the most there ever were.
    device: u64,
    pub(crate) device_most: u64,
}

impl CacheModel {
    /// The engine holds nothing from here on.
    pub(crate) fn reset(&mut self) {
        self.held.clear();
        self.device = 0;
        self.resets += 1;
    }

    /// Takes one event in.
    pub(crate) fn apply(&mut self, event: &KvEvent) -> Result<(), String> {
        match event {
            KvEvent::Stored { namespace, parent, blocks, tier, snapshot } => {
                self.store(*namespace, *parent, blocks, *tier, *snapshot)
            }
            KvEvent::Removed { blocks, tier, .. } => self.remove(blocks, *tier),
            KvEvent::PinExpired { pin_id } => {
                self.expired.insert(*pin_id);
                Ok(())
            }
        }
    }

    fn store(
        &mut self,
        namespace: u128,
        parent: u128,
        blocks: &[u128],
        tier: u32,
        snapshot: bool,
    ) -> Result<(), String> {
        if blocks.is_empty() || tier > TIER_REMOTE {
            return Err(format!("a STORED of {} blocks in tier {tier}", blocks.len()));
        }
        // A block is computed from those before it, so they are there; a picture may have holes.
        if parent != namespace && !snapshot && !self.held.contains_key(&parent) {
            return Err(format!(
                "STORED {:032x} behind {parent:032x}, which is not held",
                blocks[0]
            ));
        }
        let mut before = parent;
        for block in blocks {
            let told = Held { parent: before, namespace, tiers: 1 << tier };
            let held = self.held.entry(*block).or_insert(Held { tiers: 0, ..told });
            if (held.parent, held.namespace) != (told.parent, told.namespace) {
                return Err(format!(
                    "block {block:032x} was stored with two parents or namespaces"
                ));
            }
            if tier == TIER_DEVICE && held.tiers & 1 == 0 {
                self.device += 1;
            }
            held.tiers |= told.tiers;
            before = *block;
        }
        self.device_most = self.device_most.max(self.device);
        Ok(())
    }

    fn remove(&mut self, blocks: &[u128], tier: u32) -> Result<(), String> {
        if tier > TIER_REMOTE {
            return Err(format!("a REMOVED from tier {tier}"));
        }
        for block in blocks {
            let Some(held) = self.held.get_mut(block).filter(|h| h.tiers & (1 << tier) != 0) else {
                return Err(format!("REMOVED {block:032x} from tier {tier}, where it was not"));
            };
            held.tiers &= !(1 << tier);
            if tier == TIER_DEVICE {
                self.device -= 1;
            }
            if held.tiers == 0 {
                self.held.remove(block);
            }
            self.removed.push(*block);
        }
        Ok(())
    }

    /// The chain of blocks whose first one's parent is `namespace` and that were stored for one prompt: leads from
    /// `tail` back to the root.
    pub(crate) fn chain_to(&self, tail: u128) -> Vec<u128> {
        let mut chain = Vec::new();
        let mut at = tail;
        while let Some(held) = self.held.get(&at) {
            chain.push(at);
            if held.parent == held.namespace || chain.len() > self.held.len() {
                break;
            }
            at = held.parent;
        }
        chain.reverse();
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine_abi::sdk::Cause;

    fn stored(parent: u128, blocks: &[u128]) -> KvEvent {
        let blocks = blocks.to_vec();
        KvEvent::Stored { namespace: 7, parent, blocks, tier: 0, snapshot: false }
    }

    fn removed(blocks: &[u128]) -> KvEvent {
        KvEvent::Removed { blocks: blocks.to_vec(), tier: 0, cause: Cause::Capacity }
    }

    #[test]
    fn a_cache_that_keeps_its_word() {
        let mut model = CacheModel::default();
        for event in [stored(7, &[1, 2]), stored(2, &[3]), stored(7, &[1, 2]), removed(&[3, 2])] {
            model.apply(&event).unwrap();
        }
        assert_eq!((model.device_most, model.held.len(), model.removed.len()), (3, 1, 2));
        assert_eq!(model.chain_to(1), [1]);
    }

    #[test]
    fn broken_words_are_told() {
        let mut model = CacheModel::default();
        model.apply(&stored(7, &[1, 2])).unwrap();
        assert!(model.apply(&stored(9, &[4])).unwrap_err().contains("not held"));
        assert!(model.apply(&stored(1, &[2, 2])).is_err());
        assert!(model.apply(&removed(&[5])).unwrap_err().contains("where it was not"));
        assert!(model.apply(&stored(7, &[])).is_err());
    }
}
