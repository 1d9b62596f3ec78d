//! What each agent's run has got lately: service that is long ago counts less, and what counts nothing is forgotten.
//!
//! A request that belongs to no run has got nothing.

use std::collections::{BTreeSet, HashMap};

use mainstay_types::TenantId;

/// Runs that are told apart at most; beyond it the one that was quiet the longest is forgotten.
pub(super) const PROGRAMS_MAX: usize = 16_384;
/// Service counts half after so long.
const HALF_LIFE_MS: f64 = 60_000.0;

type Name = (TenantId, u64);

#[derive(Debug, Clone, Default)]
pub(super) struct Programs {
    by_name: HashMap<Name, (f64, u64)>,
    by_age: BTreeSet<(u64, Name)>,
}

impl Programs {
    fn attained(&self, now_ms: u64, tenant: &TenantId, program: u64) -> f64 {
        let got = self.by_name.get(&(tenant.clone(), program));
        got.map_or(0.0, |(tokens, at_ms)| {
            let quiet_ms = now_ms.saturating_sub(*at_ms) as f64;
            tokens * (-quiet_ms / HALF_LIFE_MS).exp2()
        })
    }

    /// Who got the least comes first, whenever one looks: all service fades alike, so the order of what is left of it
    /// is that of its logarithm and the time that it is of. Never negative.
    pub(super) fn order(&self, tenant: &TenantId, program: u64) -> f64 {
        let got = self.by_name.get(&(tenant.clone(), program));
        got.map_or(0.0, |(tokens, at_ms)| tokens.max(1.0).log2() + *at_ms as f64 / HALF_LIFE_MS)
    }

    /// Negative `tokens` are given back.
    pub(super) fn add(&mut self, now_ms: u64, tenant: &TenantId, program: u64, tokens: f64) {
        if program == 0 {
            return;
        }
        let got = (self.attained(now_ms, tenant, program) + tokens).max(0.0);
        let name = (tenant.clone(), program);
        if let Some((_, at_ms)) = self.by_name.remove(&name) {
            self.by_age.remove(&(at_ms, name.clone()));
        }
        if got < 1.0 {
            // All was given back: it is as if it had never been.
            return;
        }
        if self.by_name.len() >= PROGRAMS_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_name.remove(&oldest);
        }
        self.by_age.insert((now_ms, name.clone()));
        self.by_name.insert(name, (got, now_ms));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_name.len().max(self.by_age.len())
    }
}
