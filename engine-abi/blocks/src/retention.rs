//! How long a block is worth keeping: the highest of the claims that requests have laid on it.
//!
//! Claims add up to a maximum instead of overwriting each other, so that a careless request that
//! shares a system prompt can't demote it. A request that says nothing claims the default priority
//! without end.

/// The priority of a block about which nobody said anything.
pub const PRIORITY_DEFAULT: u8 = 35;
/// The highest priority.
pub const PRIORITY_MAX: u8 = 100;
/// A time that never comes.
pub const NEVER_MS: u64 = u64::MAX;

/// What one request wants for one block, from its end on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// 0 to 100; 100 goes last.
    pub priority: u8,
    /// From the end of the request; `None` is for good.
    pub duration_ms: Option<u64>,
}

/// The claims on one block that matter: of two, one must be higher and the other longer.
#[derive(Default)]
pub(super) struct Retention {
    /// By falling priority, which is also by rising end. At most one per priority, so never more
    /// than 101.
    claims: Vec<(u8, u64)>,
    /// Some request had no wish.
    plain: bool,
    /// A claim has run out.
    lapsed: bool,
}

impl Retention {
    pub(super) fn add(&mut self, claim: Option<Claim>, now_ms: u64) {
        let Some(claim) = claim else {
            self.plain = true;
            self.claims.retain(|c| c.0 > PRIORITY_DEFAULT);
            return;
        };
        let end_ms = claim.duration_ms.map_or(NEVER_MS, |d| now_ms.saturating_add(d));
        let priority = claim.priority.min(PRIORITY_MAX);
        let covered = self.claims.iter().any(|c| c.0 >= priority && c.1 >= end_ms);
        if covered || (self.plain && priority <= PRIORITY_DEFAULT) {
            return;
        }
        self.claims.retain(|c| c.0 > priority || c.1 > end_ms);
        let at = self.claims.partition_point(|c| c.0 > priority);
        self.claims.insert(at, (priority, end_ms));
    }

    pub(super) fn expire(&mut self, now_ms: u64) {
        let over = self.claims.partition_point(|c| c.1 <= now_ms);
        if over > 0 {
            self.lapsed = true;
            self.claims.drain(..over);
        }
    }

    pub(super) fn priority(&self) -> u8 {
        let claimed = self.claims.first().map(|c| c.0);
        match claimed {
            Some(claimed) if self.plain => claimed.max(PRIORITY_DEFAULT),
            Some(claimed) => claimed,
            None => PRIORITY_DEFAULT,
        }
    }

    pub(super) fn next_lapse_ms(&self) -> u64 {
        self.claims.first().map_or(NEVER_MS, |c| c.1)
    }

    /// Whether it had a claim and has none any more.
    pub(super) fn lapsed(&self) -> bool {
        self.lapsed && self.claims.is_empty()
    }
}
