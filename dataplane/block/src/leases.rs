//! Leases: what a session, an agent or an operator wants kept, and until when.
//!
//! A lease has a name, so that it can be renewed with the next turn and ended when its session is.
//! It claims stretches of a table: a priority until a time, and a lower one after. A block is worth
//! the maximum of all claims on it, so nobody demotes what another needs, and when the strongest
//! claim goes the next one is what stands. Claims are on blocks that are here; one on a block that
//! was evicted is void and does not come back with it.
//!
//! The end of a claim never makes a block worth more: what is left of one that was released, or that
//! a renewal does not repeat, is what it claimed, up to the default.
//!
//! Where there is no room for another lease, those whose blocks have all gone are forgotten. Then the
//! tenant's whose time is over longest are dissolved, then those of the tenant that has most of them:
//! their blocks keep the priority for after, but nobody can end it early any more.

mod upkeep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use foldhash::fast::RandomState;
use mainstay_types::hash::SequenceHash;

use super::levels::Kind;
use super::manager::BlockManager;
use super::tenants::is_within_share;
use super::{
    BLOCKS_MAX, BlockError, BlockId, CLAIMS_LEAST_MAX, CLAIMS_PER_BLOCK_MAX, Class, End, NEVER_MS,
    OVERLAP_MAX, SPANS_MAX, Stage, TenantSlot,
};

use upkeep::{claimed, dropped, leave_at_most_default};

/// Leases that are looked at where room is wanted.
const SWEPT_MAX: usize = 64;

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
            duration_ms: Some(given.duration_ms),
        }
    }
}

/// What somebody wants kept.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTerms<'a> {
    /// Who claims.
    pub tenant: TenantSlot,
    /// The name. A lease of that name is replaced as a whole.
    pub id: LeaseId,
    /// The claims; where two name a block, the stronger counts.
    pub spans: &'a [SpanTerms],
}

/// What becomes of the spans of one class of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amendment {
    /// Of which.
    pub class: Class,
    /// 0 to 100, until the time is over.
    pub priority: u8,
    /// From then on; no more than `priority`.
    pub after: u8,
    /// How long, from the call on; `None` is until the lease is ended.
    pub duration_ms: Option<u64>,
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

/// A block with the generation that was claimed.
#[derive(Debug, Clone, Copy)]
struct Claim {
    /// Its number, and whether the claim is counted as a round one: a pool has many claims, so that each byte counts.
    tagged: u32,
    generation: u32,
}

impl Claim {
    const ROUND: u32 = 1 << 31;

    fn new(block: u32, generation: u32, is_round: bool) -> Self {
        Self { tagged: block | if is_round { Self::ROUND } else { 0 }, generation }
    }

    fn block(self) -> u32 {
        self.tagged & !Self::ROUND
    }

    fn is_round(self) -> bool {
        self.tagged & Self::ROUND != 0
    }

    /// What is claimed, however it is counted.
    fn place(self) -> (u32, u32) {
        (self.block(), self.generation)
    }
}

const _: () = assert!(BLOCKS_MAX <= Claim::ROUND, "a block's number leaves the mark its bit");

#[derive(Debug)]
struct Span {
    /// Where its claims begin in the lease's list; they end where those of the next begin.
    claims: Range<usize>,
    kind: Kind,
    ends_ms: u64,
    over: bool,
}

#[derive(Debug)]
struct Lease {
    tenant: u16,
    id: LeaseId,
    claims: Vec<Claim>,
    /// The claim that comes first in the table: the others' blocks go before its own does.
    root: Option<Claim>,
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
    leases: BTreeMap<u64, Lease>,
    /// The lease at which the look for void ones goes on.
    swept: u64,
    names: HashMap<(u16, LeaseId), u64, RandomState>,
    /// Ends of spans to come.
    ends: BTreeSet<(u64, u64, u32)>,
    /// Leases that are over, by tenant and end.
    over: BTreeSet<(u16, u64, u64)>,
    /// Tenants that have such, by how many.
    most_over: BTreeSet<(usize, u16)>,
}

impl Leases {
    pub(crate) fn new(blocks: u32, leases_max: usize) -> Self {
        Self {
            leases_max,
            claims_max: CLAIMS_LEAST_MAX.max(blocks as usize * CLAIMS_PER_BLOCK_MAX),
            claims: 0,
            serials: 0,
            leases: BTreeMap::new(),
            swept: 0,
            names: HashMap::default(),
            ends: BTreeSet::new(),
            over: BTreeSet::new(),
            most_over: BTreeSet::new(),
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

    fn named(&self, tenant: TenantSlot, id: LeaseId) -> Option<u64> {
        let tenant = u16::try_from(tenant.0).ok()?;
        self.names.get(&(tenant, id)).copied()
    }

    /// The lease of a tenant that is over longest.
    fn oldest_over(&self, tenant: u16, spare: Option<u64>) -> Option<u64> {
        let own = self.over.range((tenant, 0, 0)..=(tenant, NEVER_MS, u64::MAX));
        own.map(|over| over.2).find(|serial| Some(*serial) != spare)
    }
}

impl BlockManager {
    /// Takes or renews a lease on registered blocks of a table; its time runs from now. Where others claim very many
    /// different things of a block, a claim is counted as a round one that is a little less. On an error nothing of it
    /// is in force and the lease of that name stays as it was, though leases whose time is over may have been dissolved.
    pub fn lease(
        &mut self,
        terms: &LeaseTerms<'_>,
        table: &[BlockId],
        now_ms: u64,
    ) -> Result<(), BlockError> {
        self.expire(now_ms);
        self.check_terms(terms, table)?;
        let wanted: usize = terms.spans.iter().map(|span| span.blocks.len()).sum();
        let old = self.leases.named(terms.tenant, terms.id);
        self.tenants.enter(terms.tenant)?;
        let tenant = terms.tenant.0 as u16;
        self.make_room_for_lease(tenant, old, wanted)?;
        let mut lease = Lease {
            tenant,
            id: terms.id,
            claims: Vec::with_capacity(wanted),
            root: None,
            spans: Vec::with_capacity(terms.spans.len()),
            ends_ms: 0,
        };
        let mut first = usize::MAX;
        for span in terms.spans {
            let from = lease.claims.len();
            let kind = Kind::new(span.priority, span.after, span.class);
            for at in span.blocks.clone() {
                let id = table[at];
                let block = &mut self.blocks[id.at()];
                let is_round = self.levels.add(&mut block.levels, kind);
                let claim = Claim::new(id.index, block.generation, is_round);
                lease.claims.push(claim);
                if at < first {
                    (first, lease.root) = (at, Some(claim));
                }
            }
            let ends_ms = span.duration_ms.map_or(NEVER_MS, |ms| now_ms.saturating_add(ms));
            lease.ends_ms = lease.ends_ms.max(ends_ms);
            let claims = from..lease.claims.len();
            lease.spans.push(Span { claims, kind, ends_ms, over: false });
        }
        // The old claims go after the new ones have come, so that no block stands without any in between.
        if let Some(old) = old.and_then(|serial| self.take_lease(serial)) {
            let dropped = dropped(&old.claims, &lease.claims);
            self.drop_claims(&old, |at, block, level| {
                if dropped(at) {
                    leave_at_most_default(block, level);
                }
            });
        }
        for claim in &lease.claims {
            self.relist(claim.block());
        }
        self.put_lease(lease);
        Ok(())
    }

    /// Changes what a lease claims for its blocks, by class; whether there is one. Its time runs from now. What no
    /// amendment names stays as it was.
    pub fn amend_lease(
        &mut self,
        tenant: TenantSlot,
        id: LeaseId,
        amendments: &[Amendment],
        now_ms: u64,
    ) -> bool {
        self.expire(now_ms);
        let serial = self.leases.named(tenant, id);
        let Some(mut lease) = serial.and_then(|serial| self.take_lease(serial)) else {
            return false;
        };
        lease.ends_ms = 0;
        for span in &mut lease.spans {
            let class = span.kind.live.class();
            let new = amendments.iter().find(|amendment| amendment.class == class);
            if let Some(new) = new {
                let kind = Kind::new(new.priority, new.after, class);
                for claim in &mut lease.claims[span.claims.clone()] {
                    let Some(block) = claimed(&mut self.blocks, *claim) else { continue };
                    let was = span.kind.counted(claim.is_round());
                    self.levels.remove(&mut block.levels, was, span.over);
                    let is_round = self.levels.add(&mut block.levels, kind);
                    *claim = Claim::new(claim.block(), claim.generation, is_round);
                    self.relist(claim.block());
                }
                span.kind = kind;
                span.over = false;
                span.ends_ms = new.duration_ms.map_or(NEVER_MS, |ms| now_ms.saturating_add(ms));
            }
            lease.ends_ms = lease.ends_ms.max(span.ends_ms);
        }
        self.put_lease(lease);
        true
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
            blocks.iter().try_for_each(|id| self.check_claimed(terms.tenant, table, *id))?;
        }
        Ok(())
    }

    /// Claims are on registered blocks; on one that another tenant has brought only where both share a namespace.
    fn check_claimed(
        &self,
        tenant: TenantSlot,
        table: &[BlockId],
        id: BlockId,
    ) -> Result<(), BlockError> {
        let block = self.same_content(id)?;
        if !block.stage.is_registered() {
            return Err(BlockError::Stage { block: id, is: block.stage, wanted: Stage::Used });
        }
        let namespace = |id: BlockId| self.namespaces.get(id.at());
        let is_own = u32::from(block.tenant) == tenant.0;
        if !is_own && table.first().copied().and_then(namespace) != namespace(id) {
            return Err(BlockError::Foreign(id));
        }
        Ok(())
    }

    /// Dissolves leases that are over until another one of `wanted` claims fits.
    fn make_room_for_lease(
        &mut self,
        tenant: u16,
        old: Option<u64>,
        wanted: usize,
    ) -> Result<(), BlockError> {
        let replaced = old.and_then(|serial| self.leases.leases.get(&serial));
        let replaced_claims = replaced.map_or(0, |lease| lease.claims.len());
        let is_new = replaced.is_none();
        let mut was_swept = false;
        loop {
            let leases = &self.leases;
            let (own_leases, own_claims) = self.leased_by(tenant);
            let others_and_own = leases.claims - replaced_claims;
            // What does not grow needs no room, however much others have got since.
            let is_short_of_leases =
                is_new && !is_within_share(own_leases, 1, leases.len(), leases.leases_max);
            let (what, limit) = if is_short_of_leases {
                ("leases", leases.leases_max)
            } else if wanted > replaced_claims
                && !is_within_share(
                    own_claims - replaced_claims,
                    wanted,
                    others_and_own,
                    leases.claims_max,
                )
            {
                ("blocks in leases", leases.claims_max)
            } else {
                return Ok(());
            };
            if !std::mem::replace(&mut was_swept, true) {
                self.forget_void_leases(old);
                continue;
            }
            let next = leases.oldest_over(tenant, old).or_else(|| {
                let (_, other) = leases.most_over.last().copied()?;
                let (other_leases, other_claims) = self.leased_by(other);
                // Of that which is short.
                let has_more = if is_short_of_leases {
                    other_leases > own_leases
                } else {
                    other_claims > own_claims
                };
                leases.oldest_over(other, old).filter(|_| has_more)
            });
            let Some(lease) = next.and_then(|serial| self.take_lease(serial)) else {
                return Err(BlockError::Many { what, limit });
            };
            self.drop_claims(&lease, |_, block, level| block.raise_floor(level.priority()));
        }
    }

    /// How many leases a tenant has, and how many claims.
    fn leased_by(&self, tenant: u16) -> (usize, usize) {
        self.tenants.get(u32::from(tenant)).map_or((0, 0), |own| (own.leases, own.claims))
    }

    /// A claim without a name and without an end, for a request that belongs to no session: registered blocks of a
    /// table are worth at least `priority` for as long as they are here. It counts against no limit, since a block
    /// keeps the highest of these only.
    pub fn raise_floor(
        &mut self,
        tenant: TenantSlot,
        table: &[BlockId],
        priority: u8,
    ) -> Result<(), BlockError> {
        table.iter().try_for_each(|id| self.check_claimed(tenant, table, *id))?;
        for id in table {
            self.blocks[id.at()].raise_floor(priority);
            self.relist(id.index);
        }
        Ok(())
    }

    /// Ends a lease before its time; whether there was one. What its claims leave is what they say now.
    pub fn end_lease(&mut self, tenant: TenantSlot, id: LeaseId, end: End, now_ms: u64) -> bool {
        self.expire(now_ms);
        let serial = self.leases.named(tenant, id);
        let Some(lease) = serial.and_then(|serial| self.take_lease(serial)) else { return false };
        self.drop_claims(&lease, |_, block, level| match end {
            End::Released => leave_at_most_default(block, level),
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
        let lease = self.leases.leases.get(&self.leases.named(tenant, id)?)?;
        let view = |span: &Span| SpanView {
            blocks: lease.claims[span.claims.clone()]
                .iter()
                .filter_map(|claim| {
                    let block = self.blocks.get(claim.block() as usize)?;
                    (block.generation == claim.generation).then_some(SequenceHash(block.hash))
                })
                .collect(),
            class: span.kind.live.class(),
            priority: span.kind.live.priority(),
            after: span.kind.after.priority(),
            left_ms: (span.ends_ms != NEVER_MS).then(|| span.ends_ms.saturating_sub(now_ms)),
        };
        Some(lease.spans.iter().map(view).collect())
    }
}
