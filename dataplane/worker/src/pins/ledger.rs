//! The bookkeeping of pins between the cluster, the engine and the reports: pure, so that every order of
//! events can be tested.
//!
//! The engine gets every live pin, whether it holds the blocks or not, because it keeps those it holds and
//! protects those it will come to hold. A lease is measured by this machine's monotonic clock and always ends
//! later than the cluster's: the replica's time lags behind, and a margin covers what clocks may differ.
//! Unknown ids, late answers and answers of an earlier engine are ignored.

mod marks;

use std::collections::{HashMap, HashSet, VecDeque};

use mainstay_types::{LogIndex, NamespaceId, PinId, SequenceHash};

pub(crate) use marks::Mark;
use marks::{Marks, end_to_tell};

/// Pins that one worker follows at most; beyond it they are counted and left alone.
pub(crate) const PINS_MAX: usize = 262_144;
/// Operations that may be under way in the engine, well below what the ABI allows.
const OPS_MAX: usize = 512;
/// How much longer than the cluster's an engine's lease lasts, beside the part below.
const MARGIN_MS: u64 = 5_000;
/// One part in so many of the time left is added too, since clocks drift in proportion.
const MARGIN_PART: u64 = 100;
/// How long to wait before asking again what the engine refused.
const RETRY_MS: u64 = 1_000;
/// How long to wait before asking again when the engine's answer and the map did not agree; twice as long
/// each time, [`DOUBTS_MAX`] times.
const DOUBT_MS: u64 = 50;
const DOUBTS_MAX: u32 = 7;
/// An operation whose answer is lost is asked again after so long.
const ANSWER_MS_MAX: u64 = 30_000;

/// A live pin of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted<'a> {
    pub(crate) id: PinId,
    /// The entry that made it: an id that the cluster has forgotten may come again with other blocks.
    pub(crate) made: LogIndex,
    pub(crate) namespace: NamespaceId,
    pub(crate) blocks: &'a [SequenceHash],
    pub(crate) priority: u8,
    /// By the cluster's time, as far as this worker has followed it.
    pub(crate) ttl_left_ms: u64,
}

/// What to ask of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Pin { op_id: u64, id: PinId, blocks: Vec<u128>, ttl_ms: u64, priority: u8 },
    Unpin { op_id: u64, id: PinId },
}

impl Action {
    pub(crate) const fn op_id(&self) -> u64 {
        match self {
            Self::Pin { op_id, .. } | Self::Unpin { op_id, .. } => *op_id,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    /// The engine knows nothing of it.
    None,
    /// Asked for a lease until `until_ms`; a former one lasts until `former_ms`, 0 if there is none.
    Asked { op_id: u64, since_ms: u64, until_ms: u64, former_ms: u64 },
    /// In force until then.
    Held { until_ms: u64 },
}

struct Entry {
    made: LogIndex,
    namespace: NamespaceId,
    blocks: Box<[SequenceHash]>,
    priority: u8,
    /// When the cluster's lease ends, on this machine's clock; never earlier than the truth.
    ends_ms: u64,
    /// When it ends as tiers are told.
    told_ms: u64,
    lease: Lease,
    /// Not to be asked for before, since the engine refused.
    ask_at_ms: u64,
    /// How many of `blocks` the local map holds.
    mapped: u32,
    /// What the engine said it held when it took the lease, where the map names more: either the map lags
    /// behind, or the answer does. Asking again tells.
    ceiling: Option<u32>,
    /// Answers in a row that did not agree with the map.
    doubts: u32,
    reported: u32,
}

impl Entry {
    const fn in_force(&self) -> bool {
        match self.lease {
            Lease::None => false,
            Lease::Asked { former_ms, .. } => former_ms > 0,
            Lease::Held { .. } => true,
        }
    }
}

enum Op {
    Pin(PinId),
    Unpin(PinId),
}

/// All pins of one worker.
pub(crate) struct PinLedger {
    pins: HashMap<PinId, Entry>,
    by_block: HashMap<SequenceHash, Vec<PinId>>,
    ops: HashMap<u64, (Op, u64)>,
    unpins: VecDeque<PinId>,
    marks: Marks,
    /// Pins whose reports may have changed.
    dirty: HashSet<PinId>,
    next_op: u64,
    /// Whether the engine tells what it stores; without that its answers are all there is.
    mapped: bool,
    pins_max: usize,
    /// Pins that the limit kept out, since the last look.
    pub(crate) left_out: u64,
}

impl PinLedger {
    pub(crate) fn new(pins_max: usize) -> Self {
        Self {
            pins: HashMap::new(),
            by_block: HashMap::new(),
            ops: HashMap::new(),
            unpins: VecDeque::new(),
            marks: Marks::default(),
            dirty: HashSet::new(),
            next_op: 1,
            mapped: true,
            pins_max,
            left_out: 0,
        }
    }

    /// How many live pins are followed.
    pub(crate) fn len(&self) -> usize {
        self.pins.len()
    }

    /// How many are in force in the engine.
    pub(crate) fn in_force(&self) -> usize {
        self.pins.values().filter(|entry| entry.in_force()).count()
    }

    /// Whether the engine holds all blocks of a pin, protected or not yet.
    pub(crate) fn is_at_hand(&self, id: PinId) -> bool {
        let entry = self.pins.get(&id);
        entry.is_some_and(|e| self.worth(e).max(e.mapped) as usize >= e.blocks.len())
    }

    /// Takes over the cluster's live pins: new ones are to be pinned, those that are gone are released.
    pub(crate) fn sync<'a>(
        &mut self,
        live: impl Iterator<Item = Wanted<'a>>,
        holds: impl Fn(SequenceHash) -> bool,
        now_ms: u64,
    ) {
        let mut seen = HashSet::with_capacity(self.pins.len());
        self.left_out = 0;
        for wanted in live {
            if self.pins.len() >= self.pins_max && !self.pins.contains_key(&wanted.id) {
                self.left_out += 1;
                continue;
            }
            seen.insert(wanted.id);
            self.want(&wanted, &holds, now_ms);
        }
        let gone: Vec<PinId> = self.pins.keys().filter(|id| !seen.contains(*id)).copied().collect();
        for id in gone {
            self.drop_pin(id);
        }
    }

    fn want(&mut self, wanted: &Wanted<'_>, holds: &impl Fn(SequenceHash) -> bool, now_ms: u64) {
        let ends_ms = now_ms.saturating_add(wanted.ttl_left_ms);
        if let Some(entry) = self.pins.get_mut(&wanted.id) {
            if entry.made == wanted.made {
                entry.ends_ms = ends_ms;
                let told_ms = end_to_tell(ends_ms, now_ms, entry.told_ms);
                if entry.told_ms != told_ms {
                    entry.told_ms = told_ms;
                    self.marks.note(entry.namespace, &entry.blocks);
                }
                return;
            }
            self.drop_pin(wanted.id);
        }
        self.unpins.retain(|id| *id != wanted.id);
        let mut mapped = 0;
        for &block in wanted.blocks {
            self.by_block.entry(block).or_default().push(wanted.id);
            mapped += u32::from(holds(block));
        }
        self.marks.note(wanted.namespace, wanted.blocks);
        let entry = Entry {
            made: wanted.made,
            namespace: wanted.namespace,
            blocks: wanted.blocks.into(),
            priority: wanted.priority,
            ends_ms,
            told_ms: end_to_tell(ends_ms, now_ms, 0),
            lease: Lease::None,
            ask_at_ms: now_ms,
            mapped,
            ceiling: None,
            doubts: 0,
            reported: 0,
        };
        self.pins.insert(wanted.id, entry);
    }

    fn drop_pin(&mut self, id: PinId) {
        let Some(entry) = self.pins.remove(&id) else { return };
        self.dirty.remove(&id);
        self.marks.note(entry.namespace, &entry.blocks);
        for block in &entry.blocks {
            if let Some(ids) = self.by_block.get_mut(block) {
                if let Some(at) = ids.iter().position(|other| *other == id) {
                    ids.swap_remove(at);
                }
                if ids.is_empty() {
                    self.by_block.remove(block);
                }
            }
        }
        // Beyond the limit the engine's own clock ends the lease.
        if entry.lease != Lease::None && self.unpins.len() < self.pins_max {
            self.unpins.push_back(id);
        }
    }

    /// The next operations for the engine. Each counts as under way until its answer, its refusal or a new
    /// engine.
    pub(crate) fn actions(&mut self, now_ms: u64) -> Vec<Action> {
        self.ops.retain(|_, (_, since_ms)| now_ms.saturating_sub(*since_ms) < ANSWER_MS_MAX);
        let mut actions = Vec::new();
        let room = OPS_MAX - self.ops.len();
        let due: Vec<PinId> = self
            .pins
            .iter()
            .filter(|(_, e)| due(e, now_ms))
            .map(|(id, _)| *id)
            .take(room)
            .collect();
        for id in due {
            let op_id = self.begin(Op::Pin(id), now_ms);
            let Some(entry) = self.pins.get_mut(&id) else { continue };
            let former_ms = match entry.lease {
                Lease::Held { until_ms } => until_ms,
                Lease::Asked { former_ms, .. } => former_ms,
                Lease::None => 0,
            };
            let left_ms = entry.ends_ms.saturating_sub(now_ms);
            let ttl_ms = left_ms.saturating_add(margin(left_ms));
            let until_ms = now_ms.saturating_add(ttl_ms);
            entry.lease = Lease::Asked { op_id, since_ms: now_ms, until_ms, former_ms };
            let blocks = entry.blocks.iter().map(|b| b.0).collect();
            actions.push(Action::Pin { op_id, id, blocks, ttl_ms, priority: entry.priority });
        }
        // Last, so that a prefix which goes from one pin to the next is never without protection in between.
        while self.ops.len() < OPS_MAX {
            let Some(id) = self.unpins.pop_front() else { break };
            let op_id = self.begin(Op::Unpin(id), now_ms);
            actions.push(Action::Unpin { op_id, id });
        }
        actions
    }

    fn begin(&mut self, op: Op, now_ms: u64) -> u64 {
        let op_id = self.next_op;
        self.next_op += 1;
        self.ops.insert(op_id, (op, now_ms));
        op_id
    }

    /// The engine did what was asked; `held` is what it answered. False when the operation is not of a pin.
    pub(crate) fn done(&mut self, op_id: u64, held: u32, now_ms: u64) -> bool {
        let Some((op, _)) = self.ops.remove(&op_id) else { return false };
        if let Op::Pin(id) = op
            && let Some(entry) = self.pins.get_mut(&id)
            && let Lease::Asked { op_id: asked, until_ms, .. } = entry.lease
            && asked == op_id
        {
            entry.lease = Lease::Held { until_ms };
            let held = held.min(entry.blocks.len() as u32);
            let doubted = !self.mapped || held < entry.mapped;
            entry.ceiling = doubted.then_some(held);
            entry.doubts = if doubted { (entry.doubts + 1).min(DOUBTS_MAX) } else { 0 };
            if doubted {
                entry.ask_at_ms = now_ms + (DOUBT_MS << (entry.doubts - 1));
            }
            self.dirty.insert(id);
        }
        true
    }

    /// The engine refused, at once or later; it is asked again after a while. `gone` says that it does not
    /// know the pin or cannot pin at all, so that an unpin need not be repeated.
    pub(crate) fn refused(&mut self, op_id: u64, gone: bool, now_ms: u64) -> bool {
        let Some((op, _)) = self.ops.remove(&op_id) else { return false };
        match op {
            Op::Pin(id) => {
                if let Some(entry) = self.pins.get_mut(&id)
                    && let Lease::Asked { op_id: asked, former_ms, .. } = entry.lease
                    && asked == op_id
                {
                    let lasts = former_ms > now_ms;
                    entry.lease =
                        if lasts { Lease::Held { until_ms: former_ms } } else { Lease::None };
                    entry.ask_at_ms = now_ms + RETRY_MS;
                    self.dirty.insert(id);
                }
            }
            Op::Unpin(id) if !gone && !self.pins.contains_key(&id) => self.unpins.push_back(id),
            Op::Unpin(_) => {}
        }
        true
    }

    /// The engine's lease ended by its own clock. A pin that still lives is asked for again.
    pub(crate) fn lease_ended(&mut self, id: PinId, now_ms: u64) {
        if let Some(entry) = self.pins.get_mut(&id)
            && matches!(entry.lease, Lease::Held { .. })
        {
            entry.lease = Lease::None;
            entry.ask_at_ms = now_ms;
            self.dirty.insert(id);
        }
    }

    /// The engine holds a block that it did not hold before.
    pub(crate) fn stored(&mut self, block: SequenceHash) {
        self.count(block, |mapped| mapped + 1);
    }

    /// The engine holds a block no more.
    pub(crate) fn removed(&mut self, block: SequenceHash) {
        self.count(block, |mapped| mapped.saturating_sub(1));
    }

    fn count(&mut self, block: SequenceHash, change: impl Fn(u32) -> u32) {
        let Some(ids) = self.by_block.get(&block) else { return };
        for id in ids {
            if let Some(entry) = self.pins.get_mut(id) {
                let before = entry.mapped;
                entry.mapped = change(before);
                // A block that came under a lease is protected only where the engine's pin budget had room for
                // it. Until the engine has said so, no more is counted than before.
                let came = entry.mapped > before && matches!(entry.lease, Lease::Held { .. });
                if came && self.mapped && entry.ceiling.is_none() {
                    entry.ceiling = Some(before);
                    entry.ask_at_ms = 0;
                }
                // Once the map says no more than the engine said, it has caught up and counts alone.
                if self.mapped && entry.ceiling.is_some_and(|most| entry.mapped <= most) {
                    entry.ceiling = None;
                }
                self.dirty.insert(*id);
            }
        }
    }

    /// The local map was emptied.
    pub(crate) fn cleared(&mut self) {
        for (id, entry) in &mut self.pins {
            entry.mapped = 0;
            entry.ceiling = entry.ceiling.filter(|_| !self.mapped);
            self.dirty.insert(*id);
        }
    }

    /// A new engine knows no pin and answers no former operation. `mapped` says whether it tells what it
    /// stores.
    pub(crate) fn engine_began(&mut self, mapped: bool, now_ms: u64) {
        self.mapped = mapped;
        self.ops.clear();
        self.unpins.clear();
        for (id, entry) in &mut self.pins {
            entry.lease = Lease::None;
            entry.ask_at_ms = now_ms;
            entry.ceiling = None;
            entry.mapped = 0;
            self.dirty.insert(*id);
        }
    }

    /// Under a new epoch nothing has been reported.
    pub(crate) fn epoch_began(&mut self) {
        for (id, entry) in &mut self.pins {
            entry.reported = 0;
            self.dirty.insert(*id);
        }
    }

    /// Whether a report may be due.
    pub(crate) fn report_due(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Up to `reports_max` pins whose held blocks differ from what was last acknowledged. They stay due until
    /// they are [reported](PinLedger::reported).
    pub(crate) fn reports(&mut self, reports_max: usize) -> Vec<(PinId, u32)> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|id| {
            self.pins.get(id).is_some_and(|entry| self.worth(entry) != entry.reported)
        });
        let due = dirty.iter().take(reports_max);
        let reports = due.map(|id| (*id, self.worth(&self.pins[id]))).collect();
        self.dirty = dirty;
        reports
    }

    /// The control plane has these reports.
    pub(crate) fn reported(&mut self, reports: &[(PinId, u32)]) {
        for (id, held) in reports {
            if let Some(entry) = self.pins.get_mut(id) {
                entry.reported = *held;
            }
        }
    }

    /// How many blocks of a pin are held and protected.
    fn worth(&self, entry: &Entry) -> u32 {
        match (entry.in_force(), entry.ceiling) {
            (false, _) => 0,
            (true, Some(most)) if self.mapped => entry.mapped.min(most),
            (true, Some(most)) => most,
            (true, None) => entry.mapped,
        }
    }
}

/// The margin that a lease of so long gets.
fn margin(left_ms: u64) -> u64 {
    MARGIN_MS + left_ms / MARGIN_PART
}

/// Whether the engine should be asked now: it was not, it never answered, its answer is in doubt, or its lease
/// would end too close to the cluster's. A pin whose end is past is not asked for again, or a worker that has lost the control plane
/// would renew it for ever.
fn due(entry: &Entry, now_ms: u64) -> bool {
    if now_ms < entry.ask_at_ms || now_ms >= entry.ends_ms.saturating_add(MARGIN_MS) {
        return false;
    }
    match entry.lease {
        Lease::None => true,
        Lease::Asked { since_ms, .. } => now_ms.saturating_sub(since_ms) >= ANSWER_MS_MAX,
        Lease::Held { until_ms } => {
            entry.ceiling.is_some() || until_ms < entry.ends_ms.saturating_add(MARGIN_MS / 2)
        }
    }
}

#[cfg(test)]
mod tests;
