//! What a request wishes for the blocks that it leaves behind, as claims on them.
//!
//! A request's ranges count in tokens, the manager's spans in blocks; a block takes, for each lease, the highest range
//! that touches it. Ranges of a named lease become that lease, which is replaced as a whole. Ranges without a name that
//! have an end become a lease that nobody can end early; those without an end a floor under their blocks.

use mainstay_block::{
    Amendment, Class, End, LeaseId, LeaseTerms, PRIORITY_DEFAULT, SPANS_MAX, SpanTerms,
};
use mainstay_engine_abi::sdk::{
    LeaseChange, LeaseEnd, RetentionClass, RetentionRange, TOKENS_TO_END,
};

use super::{BlockPool, Table, part_of};

/// A request's wishes.
#[derive(Debug, Clone, Copy)]
pub struct Wishes<'a> {
    /// Whose blocks these are.
    pub namespace: u128,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// The stretches, by tokens.
    pub ranges: &'a [RetentionRange],
    /// The names of the leases that the ranges are of.
    pub leases: &'a [u128],
}

/// Leases that have no name on the wire get one that no hash is likely to be.
const UNNAMED: u128 = 0x756e_6e61_6d65_6400 << 64;

/// What one lease claims for one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    priority: u8,
    after: u8,
    class: Class,
    /// `None` has no end.
    duration_ms: Option<u64>,
}

impl Claim {
    fn of(range: &RetentionRange) -> Self {
        Self {
            priority: range.priority,
            after: range.after.unwrap_or(PRIORITY_DEFAULT).min(range.priority),
            class: class_of(range.class),
            duration_ms: (range.duration_ms > 0).then_some(u64::from(range.duration_ms)),
        }
    }

    fn worth(&self) -> (u8, u64) {
        (self.priority, self.duration_ms.unwrap_or(u64::MAX))
    }

    fn span(self, blocks: std::ops::Range<usize>) -> SpanTerms {
        let Self { priority, after, class, duration_ms } = self;
        SpanTerms { blocks, class, priority, after, duration_ms }
    }
}

fn class_of(class: RetentionClass) -> Class {
    match class {
        RetentionClass::Plain => Class::Plain,
        RetentionClass::System => Class::System,
        RetentionClass::Tools => Class::Tools,
        RetentionClass::History => Class::History,
        RetentionClass::UserTurn => Class::UserTurn,
        RetentionClass::Output => Class::Output,
        RetentionClass::Reasoning => Class::Reasoning,
        RetentionClass::Side => Class::Side,
    }
}

impl Wishes<'_> {
    /// What the ranges of one lease claim for a block: the highest of those that touch it. `lease` is 0 for those
    /// without a name.
    fn claim(&self, lease: usize, at: usize) -> Option<Claim> {
        let start = at * self.block_tokens;
        let end = start + self.block_tokens;
        let touches = |range: &&RetentionRange| {
            usize::from(range.lease) == lease
                && (range.start as usize) < end
                && (range.end == TOKENS_TO_END || range.end as usize > start)
        };
        self.ranges.iter().filter(touches).map(Claim::of).max_by_key(Claim::worth)
    }

    /// The stretches of a table of which a lease claims the same.
    fn spans(&self, lease: usize, blocks: usize) -> Vec<SpanTerms> {
        let mut spans: Vec<(std::ops::Range<usize>, Claim)> = Vec::new();
        for at in 0..blocks {
            let Some(claim) = self.claim(lease, at) else { continue };
            match spans.last_mut() {
                Some((last, same)) if last.end == at && *same == claim => last.end = at + 1,
                _ => spans.push((at..at + 1, claim)),
            }
        }
        spans.into_iter().map(|(blocks, claim)| claim.span(blocks)).collect()
    }
}

impl BlockPool {
    /// Lays the claims on the registered blocks of a table; says of which there are any.
    pub(crate) fn keep(&mut self, table: &Table, wishes: &Wishes<'_>, now_ms: u64) -> Vec<bool> {
        if wishes.ranges.is_empty() {
            return Vec::new();
        }
        let is_registered = |id: &mainstay_block::BlockId| {
            self.manager.stage(*id).is_some_and(|stage| stage.is_registered())
        };
        let blocks = table.ids().iter().take_while(|id| is_registered(id)).count();
        let mut leased = vec![false; blocks];
        for lease in 0..=wishes.leases.len() {
            let spans = wishes.spans(lease, blocks);
            for span in &spans {
                leased[span.blocks.clone()].fill(true);
            }
            if lease == 0 {
                let (ending, lasting) = spans.into_iter().partition(|s| s.duration_ms.is_some());
                self.raise_floors(table, wishes.namespace, lasting);
                let name = LeaseId(self.next_name());
                self.take_lease(table, wishes.namespace, name, ending, now_ms);
            } else {
                let name = LeaseId(wishes.leases[lease - 1]);
                self.take_lease(table, wishes.namespace, name, spans, now_ms);
            }
        }
        leased
    }

    /// A name for a lease that has none.
    pub(crate) fn next_name(&mut self) -> u128 {
        self.unnamed += 1;
        UNNAMED | u128::from(self.unnamed)
    }

    pub(crate) fn raise_floors(&mut self, table: &Table, namespace: u128, spans: Vec<SpanTerms>) {
        for span in spans {
            let blocks = &table.ids()[span.blocks];
            let outcome = self.manager.raise_floor(part_of(namespace), blocks, span.priority);
            debug_assert!(outcome.is_ok(), "{outcome:?}");
        }
    }

    pub(crate) fn take_lease(
        &mut self,
        table: &Table,
        namespace: u128,
        id: LeaseId,
        mut spans: Vec<SpanTerms>,
        now_ms: u64,
    ) {
        if spans.is_empty() {
            return;
        }
        spans.truncate(SPANS_MAX);
        let terms =
            LeaseTerms { tenant: part_of(namespace), id: named(namespace, id), spans: &spans };
        if self.manager.lease(&terms, table.ids(), now_ms).is_err() {
            self.refused += 1;
        }
    }

    /// Changes or ends a lease; whether there was one of that name.
    pub fn change_lease(&mut self, change: &LeaseChange, now_ms: u64) -> bool {
        let tenant = part_of(change.namespace);
        let id = named(change.namespace, LeaseId(change.lease_id));
        let end = match &change.end {
            None => {
                let amendments: Vec<Amendment> = change.ranges.iter().map(amendment_of).collect();
                return self.manager.amend_lease(tenant, id, &amendments, now_ms);
            }
            Some(LeaseEnd::Released) => End::Released,
            Some(LeaseEnd::Finished) => End::Finished,
            Some(LeaseEnd::Compacted) => End::Compacted,
        };
        self.manager.end_lease(tenant, id, end, now_ms)
    }
}

/// Two namespaces that share a part must not know each other's leases.
fn named(namespace: u128, id: LeaseId) -> LeaseId {
    LeaseId(id.0 ^ namespace.rotate_left(1))
}

fn amendment_of(range: &RetentionRange) -> Amendment {
    let Claim { priority, after, class, duration_ms } = Claim::of(range);
    Amendment { class, priority, after, duration_ms }
}
