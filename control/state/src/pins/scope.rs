//! Where a pin's copies are, and where they are lacking: what its scope makes of its holders.
//!
//! A pin of a region counts that region's workers only. A global one counts all, and besides wants them in two regions
//! while workers live in two; so its state may change when a region's first worker comes or its last one goes. Whether
//! a region's workers serve the pin's model is not asked: the log knows namespaces only by their hashes.

use std::collections::BTreeMap;

use mainstay_types::{LogIndex, PinScope, Region};

use super::{Pin, Pins};
use crate::workers::Workers;

/// Regions that a global pin wants to be in, if workers live in as many.
const GLOBAL_REGIONS: usize = 2;

/// Copies that a pin lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingCopies {
    /// Where they have to be; anywhere if `None`.
    pub region: Option<Region>,
    /// How many.
    pub copies: u32,
}

impl Pin {
    /// Which copies are lacking. Regions that a global pin has yet to reach come first, one copy each, those where
    /// somebody holds a part of it before the others.
    pub(crate) fn missing(&self, workers: &Workers) -> Vec<MissingCopies> {
        let blocks = self.request.blocks.len();
        let mut whole: BTreeMap<&Region, u32> = BTreeMap::new();
        for (worker, held) in &self.holders {
            if let Some(worker) = workers.get(*worker)
                && *held as usize >= blocks
            {
                *whole.entry(&worker.region).or_insert(0) += 1;
            }
        }
        let copies_min = self.request.copies_min;
        let lack = |region: Option<&Region>, copies: u32| MissingCopies {
            region: region.cloned(),
            copies,
        };
        let mut missing = Vec::new();
        let here = match &self.request.scope {
            PinScope::Region(region) => {
                let here = whole.get(region).copied().unwrap_or(0);
                if here < copies_min {
                    missing.push(lack(Some(region), copies_min - here));
                }
                return missing;
            }
            PinScope::Global => whole.values().fold(0_u32, |sum, n| sum.saturating_add(*n)),
        };
        let wanted = workers.live_region_count().min(GLOBAL_REGIONS).saturating_sub(whole.len());
        if wanted > 0 {
            let mut part: BTreeMap<&Region, u32> = BTreeMap::new();
            for (worker, held) in &self.holders {
                if let Some(worker) = workers.get(*worker) {
                    let most = part.entry(&worker.region).or_insert(0);
                    *most = (*most).max(*held);
                }
            }
            let held = |region: &Region| part.get(region).copied().unwrap_or(0);
            let mut lacking: Vec<&Region> =
                workers.live_regions().filter(|r| !whole.contains_key(r)).collect();
            lacking.sort_by_key(|region| (core::cmp::Reverse(held(region)), *region));
            missing.extend(lacking.into_iter().take(wanted).map(|region| lack(Some(region), 1)));
        }
        let coming = u32::try_from(missing.len()).unwrap_or(u32::MAX);
        let rest = copies_min.saturating_sub(here.saturating_add(coming));
        if rest > 0 {
            missing.push(lack(None, rest));
        }
        missing
    }
}

impl Pins {
    /// The number of regions with live workers went over or under what global pins want.
    pub(crate) fn regions_changed(&mut self, index: LogIndex, workers: &Workers) {
        let global = |pin: &&mut Pin| pin.is_live() && pin.request.scope == PinScope::Global;
        let mut changed = Vec::new();
        for pin in self.all.values_mut().filter(global) {
            let before = pin.state;
            pin.derive_state(workers);
            if pin.state != before {
                pin.changed_index = index;
                changed.push(pin.request.id);
            }
        }
        for id in changed {
            self.note_short(id);
        }
    }
}

/// Whether a change of the number of regions means anything to global pins.
pub(crate) fn matters(before: usize, after: usize) -> bool {
    before.min(GLOBAL_REGIONS) != after.min(GLOBAL_REGIONS)
}

#[cfg(test)]
mod tests;
