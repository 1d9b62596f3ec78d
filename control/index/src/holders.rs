//! The workers that hold one block, sorted by id, without an allocation while there is only one.
//!
//! Most blocks live on a single worker, and a system prompt lives on all of them; a sorted list serves both and
//! has no limit on the number of workers.

use mainstay_types::WorkerId;

use crate::TierSet;

/// One worker's hold on a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub worker: WorkerId,
    /// Where; never empty inside the index.
    pub tiers: TierSet,
}

#[derive(Debug, Clone)]
pub(crate) enum Holders {
    One(Holder),
    Many(Vec<Holder>),
}

impl Holders {
    pub(crate) fn as_slice(&self) -> &[Holder] {
        match self {
            Self::One(holder) => core::slice::from_ref(holder),
            Self::Many(list) => list,
        }
    }

    pub(crate) fn tiers_of(&self, worker: WorkerId) -> TierSet {
        let list = self.as_slice();
        list.binary_search_by_key(&worker, |h| h.worker)
            .map_or(TierSet::default(), |i| list[i].tiers)
    }

    /// Sets one worker's tiers; an empty set takes the worker out. Answers whether anybody is left.
    pub(crate) fn set(&mut self, worker: WorkerId, tiers: TierSet) -> bool {
        let holder = Holder { worker, tiers };
        match self {
            Self::One(only) if only.worker == worker => {
                *only = holder;
                !tiers.is_empty()
            }
            Self::One(_) if tiers.is_empty() => true,
            Self::One(only) => {
                let mut pair = vec![*only, holder];
                pair.sort_unstable_by_key(|h| h.worker);
                *self = Self::Many(pair);
                true
            }
            Self::Many(list) => {
                match list.binary_search_by_key(&worker, |h| h.worker) {
                    Ok(at) if tiers.is_empty() => {
                        list.remove(at);
                    }
                    Ok(at) => list[at].tiers = tiers,
                    Err(_) if tiers.is_empty() => {}
                    Err(at) => list.insert(at, holder),
                }
                match list.as_slice() {
                    [] => false,
                    [only] => {
                        *self = Self::One(*only);
                        true
                    }
                    _ => true,
                }
            }
        }
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Many(list) => list.capacity() * size_of::<Holder>(),
        }
    }
}
