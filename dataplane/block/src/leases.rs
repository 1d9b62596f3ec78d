//! Leases: what a session, an agent or an operator wants kept, and until when.
//!
//! A lease has a name, so that it can be renewed with the next turn and ended when its session is.
//! It claims stretches of a table: a priority until a time, and a lower one after. A block is worth
//! the maximum of all claims on it, so nobody demotes what another needs, and when the strongest
//! claim goes the next one is what stands. Claims are on blocks that are here; one on a block that
//! was evicted is void and does not come back with it.
//!
//! Where there is no room for another lease, those of the tenant whose time is over longest are
//! dissolved first: their blocks keep the priority for after, but nobody can end it early any more.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use foldhash::fast::RandomState;
use mainstay_types::hash::SequenceHash;

use super::levels::Level;
use super::manager::BlockManager;
use super::{
    BlockError, BlockId, CLAIMS_LEAST_MAX, CLAIMS_PER_BLOCK_MAX, Class, End, NEVER_MS, OVERLAP_MAX,
    PRIORITY_DEFAULT, PRIORITY_MAX, SPANS_MAX, TenantSlot,
};

/// A lease's name within its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct LeaseId(pub u128);

/// What is claimed for a stretch of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanTerms {
    /// The stretch, by index in the table; not empty.
    pub blocks: Range<usize>,
    /// What it is.
    pub class: Class,
    /// 0 to 100, until the time is over.
    pub priority: u8,
    /// From then on; no more than `priority`.
    pub after: u8,
    /// How long, from the call on; `None` is until the lease is ended.
    pub duration_ms: Option<u64>,
}

impl SpanTerms {
    /// A stretch with what its class gets where nobody says more.
    #[must_use]
    pub fn of(class: Class, blocks: Range<usize>) -> Self {
        let given = class.defaults();
        Self {
            blocks,
            class,
            priority: given.priority,
            after: given.after,
            duration_ms: given.duration_ms,
        }
    }
}

/// What somebody wants kept.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTerms<'a> {
    /// Who pays; the blocks must be the tenant's.
    pub tenant: TenantSlot,
    /// The name. A lease of that name is replaced as a whole.
    pub id: LeaseId,
    /// The claims; where two name a block, the stronger counts.
    pub spans: &'a [SpanTerms],
}

/// A span as it stands, to go with its blocks wherever they are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanView {
    /// Those of its blocks that are here.
    pub blocks: Vec<SequenceHash>,
    /// What it is.
    pub class: Class,
    /// Until its time is over.
    pub priority: u8,
    /// From then on.
    pub after: u8,
    /// What is left; `None` is until the lease is ended, 0 is over.
    pub left_ms: Option<u64>,
}

#[derive(Debug)]
struct Span {
    /// Where its claims begin in the lease's list; they end where those of the next begin.
    claims: Range<usize>,
    live: Level,
    after: Level,
    ends_ms: u64,
    over: bool,
}

impl Span {
    fn level(&self) -> Level {
        if self.over { self.after } else { self.live }
    }
}

#[derive(Debug)]
struct Lease {
    tenant: u32,
    id: LeaseId,
    /// Blocks with the generation that was claimed.
    claims: Vec<(u32, u32)>,
    spans: Vec<Span>,
    /// When the last of its spans ends.
    ends_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Leases {
    leases_max: usize,
    claims_max: usize,
    claims: usize,
    serials: u64,
    leases: HashMap<u64, Lease, RandomState>,
    names: HashMap<(u32, LeaseId), u64, RandomState>,
    /// Ends of spans to come.
    ends: BTreeSet<(u64, u64, u32)>,
    /// Leases that are over, by tenant and end.
    over: BTreeSet<(u32, u64, u64)>,
}

impl Leases {
    pub(crate) fn new(blocks: u32, leases_max: usize) -> Self {
        Self {
            leases_max,
            claims_max: CLAIMS_LEAST_MAX.max(blocks as usize * CLAIMS_PER_BLOCK_MAX),
            claims: 0,
            serials: 0,
            leases: HashMap::default(),
            names: HashMap::default(),
            ends: BTreeSet::new(),
            over: BTreeSet::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn claims(&self) -> usize {
        self.claims
    }

    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.ends.first().map(|end| end.0)
    }

    /// Takes a lease out of all tables.
    fn take(&mut self, serial: u64) -> Option<Lease> {
        let lease = self.leases.remove(&serial)?;
        self.names.remove(&(lease.tenant, lease.id));
        self.claims -= lease.claims.len();
        self.over.remove(&(lease.tenant, lease.ends_ms, serial));
        for (index, span) in lease.spans.iter().enumerate() {
            self.ends.remove(&(span.ends_ms, serial, index as u32));
        }
        Some(lease)
    }

    /// The lease to dissolve next: one of this tenant, else any.
    fn oldest_over(&self, tenant: u32, spare: Option<u64>) -> Option<u64> {
        let own = (tenant, 0, 0)..=(tenant, NEVER_MS, u64::MAX);
        let mut oldest = self.over.range(own).chain(self.over.iter()).map(|over| over.2);
        oldest.find(|serial| Some(*serial) != spare)
    }

    fn put(&mut self, lease: Lease) {
        self.serials += 1;
        for (index, span) in lease.spans.iter().enumerate() {
            if span.ends_ms != NEVER_MS {
                self.ends.insert((span.ends_ms, self.serials, index as u32));
            }
        }
        self.claims += lease.claims.len();
        self.names.insert((lease.tenant, lease.id), self.serials);
        self.leases.insert(self.serials, lease);
    }
}

impl BlockManager {
    /// Takes or renews a lease on registered blocks of a table; its time runs from now. On an error nothing of it is
    /// in force and the lease of that name stays as it was, though leases whose time is over may have been dissolved.
    pub fn lease(
        &mut self,
        terms: &LeaseTerms<'_>,
        table: &[BlockId],
        now_ms: u64,
    ) -> Result<(), BlockError> {
        self.check_terms(terms, table)?;
        let wanted: usize = terms.spans.iter().map(|span| span.blocks.len()).sum();
        let old = self.leases.names.get(&(terms.tenant.0, terms.id)).copied();
        self.make_room_for_lease(terms.tenant.0, old, wanted)?;
        let mut lease = Lease {
            tenant: terms.tenant.0,
            id: terms.id,
            claims: Vec::with_capacity(wanted),
            spans: Vec::with_capacity(terms.spans.len()),
            ends_ms: 0,
        };
        for span in terms.spans {
            let from = lease.claims.len();
            let priority = span.priority.min(PRIORITY_MAX);
            let live = Level::new(priority, true, span.class);
            let after = Level::new(span.after.min(priority), false, span.class);
            for id in &table[span.blocks.clone()] {
                let block = &mut self.blocks[id.at()];
                lease.claims.push((id.0, block.generation));
                self.levels.add(&mut block.levels, live);
            }
            let ends_ms = span.duration_ms.map_or(NEVER_MS, |ms| now_ms.saturating_add(ms));
            lease.ends_ms = lease.ends_ms.max(ends_ms);
            let claims = from..lease.claims.len();
            lease.spans.push(Span { claims, live, after, ends_ms, over: false });
        }
        // The old claims go after the new ones have come, so that no block stands without any in between.
        let old = old.and_then(|serial| self.leases.take(serial));
        for (id, _) in &lease.claims {
            self.relist(*id);
        }
        self.leases.put(lease);
        if let Some(old) = old {
            self.drop_claims(&old, |_, _| ());
        }
        Ok(())
    }

    fn check_terms(&self, terms: &LeaseTerms<'_>, table: &[BlockId]) -> Result<(), BlockError> {
        if terms.spans.is_empty() {
            return Err(BlockError::Span { span: 0 });
        }
        if terms.spans.len() > SPANS_MAX {
            return Err(BlockError::Many { what: "spans in a lease", limit: SPANS_MAX });
        }
        // Before anything is walked: spans that all name everything would be a lot of work.
        let limit = table.len().saturating_mul(OVERLAP_MAX);
        let named =
            terms.spans.iter().fold(0usize, |sum, span| sum.saturating_add(span.blocks.len()));
        if named > limit {
            return Err(BlockError::Many { what: "blocks in the spans of a lease", limit });
        }
        for (span, wanted) in terms.spans.iter().enumerate() {
            let blocks = table.get(wanted.blocks.clone()).unwrap_or_default();
            if blocks.is_empty() {
                return Err(BlockError::Span { span });
            }
            for id in blocks {
                let block = self.blocks.get(id.at()).ok_or(BlockError::Unknown(*id))?;
                if !block.stage.is_registered() {
                    let wanted = super::Stage::Used;
                    return Err(BlockError::Stage { block: *id, is: block.stage, wanted });
                }
                if u32::from(block.tenant) != terms.tenant.0 {
                    return Err(BlockError::Foreign(*id));
                }
            }
        }
        Ok(())
    }

    /// Dissolves leases that are over until another one of `wanted` claims fits.
    fn make_room_for_lease(
        &mut self,
        tenant: u32,
        old: Option<u64>,
        wanted: usize,
    ) -> Result<(), BlockError> {
        let replaced = old.and_then(|serial| self.leases.leases.get(&serial));
        let replaced_claims = replaced.map_or(0, |lease| lease.claims.len());
        let replaced_leases = usize::from(replaced.is_some());
        loop {
            let leases = &self.leases;
            let (what, limit) = if leases.len() - replaced_leases >= leases.leases_max {
                ("leases", leases.leases_max)
            } else if leases.claims - replaced_claims + wanted > leases.claims_max {
                ("blocks in leases", leases.claims_max)
            } else {
                return Ok(());
            };
            let Some(lease) =
                leases.oldest_over(tenant, old).and_then(|serial| self.leases.take(serial))
            else {
                return Err(BlockError::Many { what, limit });
            };
            self.drop_claims(&lease, |block, level| {
                block.floor = block.floor.max(Some(level.priority()));
            });
        }
    }

    /// Ends a lease before its time; whether there was one.
    pub fn end_lease(&mut self, tenant: TenantSlot, id: LeaseId, end: End) -> bool {
        let serial = self.leases.names.get(&(tenant.0, id)).copied();
        let Some(lease) = serial.and_then(|serial| self.leases.take(serial)) else { return false };
        self.drop_claims(&lease, |block, _| match end {
            End::Released => block.floor = block.floor.max(Some(PRIORITY_DEFAULT)),
            End::Finished | End::Compacted => block.ended = Some(end),
        });
        true
    }

    /// What a lease claims now, to go with its blocks; `None` when there is none of that name.
    #[must_use]
    pub fn lease_spans(
        &self,
        tenant: TenantSlot,
        id: LeaseId,
        now_ms: u64,
    ) -> Option<Vec<SpanView>> {
        let lease = self.leases.leases.get(self.leases.names.get(&(tenant.0, id))?)?;
        let view = |span: &Span| SpanView {
            blocks: lease.claims[span.claims.clone()]
                .iter()
                .filter_map(|(id, generation)| {
                    let block = &self.blocks[*id as usize];
                    (block.generation == *generation).then_some(SequenceHash(block.hash))
                })
                .collect(),
            class: span.live.class(),
            priority: span.live.priority(),
            after: span.after.priority(),
            left_ms: (span.ends_ms != NEVER_MS).then(|| span.ends_ms.saturating_sub(now_ms)),
        };
        Some(lease.spans.iter().map(view).collect())
    }

    pub(crate) fn expire_leases(&mut self, now_ms: u64) {
        while let Some((ends_ms, serial, index)) = self.leases.ends.first().copied() {
            if ends_ms > now_ms {
                return;
            }
            self.leases.ends.pop_first();
            let Some(lease) = self.leases.leases.get_mut(&serial) else { continue };
            let span = &mut lease.spans[index as usize];
            span.over = true;
            let (stretch, live, after) = (span.claims.clone(), span.live, span.after);
            if lease.ends_ms <= ends_ms {
                self.leases.over.insert((lease.tenant, lease.ends_ms, serial));
            }
            let claims = std::mem::take(&mut lease.claims);
            for (id, generation) in &claims[stretch] {
                let block = &mut self.blocks[*id as usize];
                if block.generation == *generation {
                    self.levels.remove(&mut block.levels, live);
                    self.levels.add(&mut block.levels, after);
                    self.relist(*id);
                }
            }
            if let Some(lease) = self.leases.leases.get_mut(&serial) {
                lease.claims = claims;
            }
        }
    }

    /// Takes the claims of a lease that is in no table any more off its blocks; `leave` says what stays behind.
    fn drop_claims(&mut self, lease: &Lease, leave: impl Fn(&mut super::manager::Block, Level)) {
        for span in &lease.spans {
            for (id, generation) in &lease.claims[span.claims.clone()] {
                let block = &mut self.blocks[*id as usize];
                if block.generation == *generation {
                    self.levels.remove(&mut block.levels, span.level());
                    leave(block, span.level());
                    self.relist(*id);
                }
            }
        }
    }
}
