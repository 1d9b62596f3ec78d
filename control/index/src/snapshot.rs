//! Snapshots: all runs with their holders, out and back in.

use mainstay_types::{NamespaceId, WorkerId};

use crate::coverage::Part;
use crate::head::{Head, RUN_BLOCKS_MAX};
use crate::segments::{Stretch, put_stretches, stretches_of};
use crate::{BlockIndex, BlockKey, TierSet};

/// A stretch of a run that one worker holds in the same tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldStretch {
    /// Its first block, counted from the run's first.
    pub from: u32,
    /// The one after its last.
    pub to: u32,
    /// Where; never empty.
    pub tiers: TierSet,
}

/// A run with its holders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSnapshot {
    /// The namespace of its chain.
    pub namespace: NamespaceId,
    /// The block before it; the namespace's own key at the start of a chain.
    pub parent: u64,
    /// Its blocks.
    pub keys: Vec<BlockKey>,
    /// Who holds what of it, sorted by worker; stretches in order.
    pub holders: Vec<(WorkerId, Vec<HeldStretch>)>,
}

/// Why a run of a snapshot could not be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreError {
    /// A limit is reached.
    Full,
    /// One of its blocks is there already.
    Twice,
    /// No blocks, or too many.
    Length,
    /// Holders that are not sorted, not distinct, hold stretches that are empty, out of order or outside the run, or
    /// do not hold all of it between them.
    Holders,
}

impl BlockIndex {
    /// All runs, by namespace and first block.
    #[must_use]
    pub fn snapshot(&self) -> Vec<RunSnapshot> {
        let mut order: Vec<(u128, u64, u32)> = (1..self.runs.metas.len() as u32)
            .filter(|run| self.runs.meta(*run).live)
            .map(|run| {
                let meta = self.runs.meta(run);
                let namespace = self.runs.namespaces.id(meta.namespace);
                (namespace.0, self.runs.key_at(run, meta.skipped), run)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(.., run)| self.snapshot_run(run)).collect()
    }

    fn snapshot_run(&self, run: u32) -> RunSnapshot {
        let meta = self.runs.meta(run);
        let head = self.runs.head(run);
        let (mut list, mut stretches) = (Vec::new(), Vec::new());
        self.runs.load_list(&head, &mut list);
        let mut holders = Vec::new();
        for slot in self.holder_slots(run) {
            let full = head.is_full(&self.runs.shared, slot);
            stretches_of(&list, slot, full, head.length, &mut stretches);
            if let Some(worker) = self.workers.state(slot).id {
                let held = |s: &Stretch| HeldStretch { from: s.from, to: s.to, tiers: s.tiers };
                holders.push((worker, stretches.iter().map(held).collect()));
            }
        }
        holders.sort_unstable_by_key(|(worker, _)| *worker);
        RunSnapshot {
            namespace: self.runs.namespaces.id(meta.namespace),
            parent: meta.parent,
            keys: (meta.skipped..meta.end())
                .map(|at| BlockKey(self.runs.key_at(run, at)))
                .collect(),
            holders,
        }
    }

    /// All blocks that a worker holds, in order.
    #[must_use]
    pub fn keys_of(&self, worker: WorkerId) -> Vec<BlockKey> {
        let Some(slot) = self.workers.slot_of(worker) else { return Vec::new() };
        let (mut list, mut stretches, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for run in (1..self.runs.metas.len() as u32).filter(|run| self.runs.meta(*run).live) {
            let head = self.runs.head(run);
            self.runs.load_list(&head, &mut list);
            let full = head.is_full(&self.runs.shared, slot);
            stretches_of(&list, slot, full, head.length, &mut stretches);
            let skipped = self.runs.meta(run).skipped;
            let offsets = stretches.iter().flat_map(|s| s.from..s.to);
            keys.extend(offsets.map(|at| BlockKey(self.runs.key_at(run, skipped + at))));
        }
        keys.sort_unstable();
        keys
    }

    /// Puts back one run of a snapshot. Runs may come in any order.
    ///
    /// # Errors
    /// If it does not fit, one of its blocks is there already, or it is not a run; nothing is changed then.
    pub fn restore_run(&mut self, snapshot: &RunSnapshot) -> Result<(), RestoreError> {
        let length = u32::try_from(snapshot.keys.len())
            .ok()
            .filter(|length| (1..=RUN_BLOCKS_MAX).contains(length))
            .ok_or(RestoreError::Length)?;
        let entries = check_holders(snapshot, length).ok_or(RestoreError::Holders)?;
        if self.limits.entries_max.saturating_sub(self.entries) < entries
            || !self.keep_below_bytes(snapshot.keys.len())
        {
            return Err(RestoreError::Full);
        }
        let slots = self.claim_holders(snapshot)?;
        let (run, filter) = match self.restore_keys(snapshot) {
            Ok(made) => made,
            Err(error) => {
                self.return_claims(&slots);
                return Err(error);
            }
        };
        let mut head = Head {
            start: self.runs.meta(run).position(0),
            length,
            first: snapshot.keys[0].0,
            last: snapshot.keys[length as usize - 1].0,
            filter,
            ..Head::default()
        };
        let mut list = Vec::new();
        let mut full = 0;
        for ((slot, _), (_, held)) in slots.into_iter().zip(&snapshot.holders) {
            let stretches: Vec<Stretch> =
                held.iter().map(|h| Stretch { from: h.from, to: h.to, tiers: h.tiers }).collect();
            if put_stretches(&mut list, slot, &stretches, length) {
                self.runs.set_full(&mut head, slot, true);
                full += 1;
            }
            for stretch in held {
                for tier in stretch.tiers.iter() {
                    let part = Part { run, from: stretch.from, to: stretch.to };
                    self.account(part, slot, tier, true);
                }
            }
        }
        self.runs.meta_mut(run).full = full;
        self.runs.store_list(&mut head, &list);
        self.runs.publish_new(run, head, None);
        self.runs.link(run);
        Ok(())
    }

    /// The slots of all holders, with what each will hold booked already: a slot of nobody's could be given away.
    fn claim_holders(&mut self, snapshot: &RunSnapshot) -> Result<Vec<(u32, u32)>, RestoreError> {
        let mut slots = Vec::with_capacity(snapshot.holders.len());
        for (worker, held) in &snapshot.holders {
            let Some(slot) = self.claim(*worker) else {
                self.return_claims(&slots);
                return Err(RestoreError::Full);
            };
            let blocks = held.iter().map(|stretch| stretch.to - stretch.from).sum();
            self.count(slot, blocks, true);
            slots.push((slot, blocks));
        }
        Ok(slots)
    }

    fn return_claims(&mut self, slots: &[(u32, u32)]) {
        for (slot, blocks) in slots {
            self.count(*slot, *blocks, false);
        }
    }

    /// Makes the run and puts its blocks into the map. Answers the filter bits of children that came before it, too.
    fn restore_keys(&mut self, snapshot: &RunSnapshot) -> Result<(u32, u32), RestoreError> {
        let mut distinct: Vec<u64> = snapshot.keys.iter().map(|key| key.0).collect();
        distinct.sort_unstable();
        let repeated = distinct.windows(2).any(|pair| pair[0] == pair[1]);
        if repeated || distinct.iter().any(|key| self.runs.find(*key).is_some()) {
            return Err(RestoreError::Twice);
        }
        self.runs.make_map_room(distinct.len());
        let length = distinct.len() as u32;
        let made = self.runs.make(length, snapshot.parent, snapshot.namespace);
        let run = made.ok_or(RestoreError::Full)?;
        let (_, filter) = self.put(run, &snapshot.keys);
        Ok((run, filter))
    }
}

/// How many entries the holders make, if they are holders of such a run.
fn check_holders(snapshot: &RunSnapshot, length: u32) -> Option<u64> {
    let sorted = snapshot.holders.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let mut entries = 0_u64;
    let mut covered = Vec::new();
    for (_, held) in &snapshot.holders {
        let apart = |a: &HeldStretch, b: &HeldStretch| {
            a.to < b.from || (a.to == b.from && a.tiers != b.tiers)
        };
        let ordered = held.windows(2).all(|pair| apart(&pair[0], &pair[1]));
        let inside = held.iter().all(|s| s.from < s.to && s.to <= length && !s.tiers.is_empty());
        if held.is_empty() || !ordered || !inside {
            return None;
        }
        entries += held.iter().map(|s| u64::from(s.to - s.from)).sum::<u64>();
        covered.extend(held.iter().map(|s| (s.from, s.to)));
    }
    covered.sort_unstable();
    let reach = covered.iter().fold(
        0,
        |reach, &(from, to)| {
            if from <= reach { reach.max(to) } else { reach }
        },
    );
    (sorted && reach == length).then_some(entries)
}

impl Clone for BlockIndex {
    fn clone(&self) -> Self {
        let mut copy = Self::with_limits(self.limits);
        for run in self.snapshot() {
            // What fits once fits again.
            let restored = copy.restore_run(&run);
            debug_assert_eq!(restored, Ok(()));
        }
        (copy.refused, copy.forgotten) = (self.refused, self.forgotten);
        copy.copy_marks(self);
        copy
    }
}
