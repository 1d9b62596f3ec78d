//! Pins in the tiers below the engine: blocks that the cluster's pins name do not go from here while the pins live.
//!
//! What a pin means for a block comes from the ledger, as marks; here they are carried to where the blocks are. At most
//! half of the memory may be held so, or pins would keep everything else out; what is beyond that is counted, and kept
//! by its priority alone.

use std::collections::HashMap;

use mainstay_tier::BlockKey;
use mainstay_types::{NamespaceId, SequenceHash};

use super::{Tiers, now_ms};
use crate::pins::ledger::Mark;
use crate::shared::Shared;

/// Marks that are carried at one time.
const MARKS_MAX: usize = 4_096;

/// The blocks here that pins hold, and until when by the wall's clock.
#[derive(Default)]
pub(super) struct Pinned {
    until_ms: HashMap<BlockKey, u64>,
}

impl Pinned {
    pub(super) fn len(&self) -> usize {
        self.until_ms.len()
    }

    /// Whether a pin may hold this block until then, of `room` at most; notes it if so.
    fn enter(&mut self, key: BlockKey, until_ms: u64, room: usize, now_ms: u64) -> bool {
        if self.until_ms.len() >= room && !self.until_ms.contains_key(&key) {
            self.until_ms.retain(|_, until_ms| *until_ms > now_ms);
            if self.until_ms.len() >= room {
                return false;
            }
        }
        self.until_ms.insert(key, until_ms);
        true
    }
}

/// The wall's time of a moment of this process's clock; 0 stays 0.
fn by_the_wall(mono_ms: u64, now_mono_ms: u64, now_wall_ms: u64) -> u64 {
    if mono_ms == 0 { 0 } else { now_wall_ms.saturating_add(mono_ms.saturating_sub(now_mono_ms)) }
}

impl Tiers {
    /// Carries news of pins to the blocks that are here; says whether there may be more.
    pub(super) fn carry_marks(&self, shared: &Shared) -> bool {
        if self.local.is_none() {
            return false;
        }
        let marks = shared.events.lock().pins.take_marks(MARKS_MAX);
        for Mark { namespace, block, until_ms } in &marks {
            let key = BlockKey { namespace: *namespace, hash: *block, layout: self.layout.id };
            self.pin(key, by_the_wall(*until_ms, shared.now_ms(), now_ms()));
        }
        marks.len() == MARKS_MAX
    }

    /// Until when pins hold blocks that are about to come here.
    pub(super) fn pinned_until(
        &self,
        shared: &Shared,
        namespace: NamespaceId,
        blocks: &[SequenceHash],
    ) -> Vec<u64> {
        let mono: Vec<u64> = {
            let state = shared.events.lock();
            blocks.iter().map(|block| state.pins.pinned_until(*block)).collect()
        };
        let (now_mono_ms, now_wall_ms) = (shared.now_ms(), now_ms());
        let mut pinned = self.pinned.lock();
        let until = blocks.iter().zip(mono).map(|(block, mono_ms)| {
            let until_ms = by_the_wall(mono_ms, now_mono_ms, now_wall_ms);
            let key = BlockKey { namespace, hash: *block, layout: self.layout.id };
            let held = until_ms > 0 && pinned.enter(key, until_ms, self.pins_room(), now_wall_ms);
            if held { until_ms } else { 0 }
        });
        until.collect()
    }

    fn pin(&self, key: BlockKey, until_ms: u64) {
        let Some(local) = &self.local else { return };
        let now_ms = now_ms();
        let mut pinned = self.pinned.lock();
        if until_ms == 0 {
            pinned.until_ms.remove(&key);
            local.pin(&key, 0, now_ms);
        } else if local.has(&key) {
            if pinned.enter(key, until_ms, self.pins_room(), now_ms) {
                local.pin(&key, until_ms, now_ms);
            } else {
                metrics::counter!("mainstay_tier_pins_left_out_total").increment(1);
            }
        }
    }

    /// How many blocks pins may hold: half of what memory has room for, in which blocks from the disk must find some.
    fn pins_room(&self) -> usize {
        self.local.as_ref().map_or(0, |local| local.host().capacity() as usize / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_tier::Layout;

    #[test]
    fn no_more_are_held_than_there_is_room_and_what_is_over_makes_some() {
        let layout = Layout::new("m", "r", "", "x", 4, 64).expect("valid").id;
        let key = |hash| BlockKey { namespace: NamespaceId(1), hash: SequenceHash(hash), layout };
        let mut pinned = Pinned::default();
        assert!(pinned.enter(key(1), 100, 2, 0) && pinned.enter(key(2), 200, 2, 0));
        assert!(!pinned.enter(key(3), 300, 2, 50));
        assert!(pinned.enter(key(2), 400, 2, 50), "one that is held is held longer");
        assert!(pinned.enter(key(3), 300, 2, 100), "the first is over");
        assert_eq!(pinned.len(), 2);
    }

    #[test]
    fn moments_go_from_one_clock_to_the_other() {
        assert_eq!(by_the_wall(0, 50, 1_000), 0);
        assert_eq!(by_the_wall(80, 50, 1_000), 1_030);
        assert_eq!(by_the_wall(20, 50, 1_000), 1_000);
    }
}
