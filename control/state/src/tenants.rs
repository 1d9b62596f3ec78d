//! Tenants: who may use the cluster, by which keys, and how much.
//!
//! A tenant is made before its first key and takes its keys along when it goes. Every change may be sent again: what
//! is so already is answered as done. Of a key only its hash is kept, so neither an image nor a watcher learns it.

use std::collections::BTreeMap;

use mainstay_types::{ErrorCode, KeyId, Quota, SecretHash, TenantId};

use crate::limits::Limits;
use crate::outcome::{Outcome, Refusal};

/// A tenant as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: TenantId,
    /// What it may use.
    pub quota: Quota,
    /// Cluster time when it was made.
    pub created_ms: u64,
    /// Its keys, by their public names.
    pub keys: BTreeMap<KeyId, TenantKey>,
}

/// What is kept of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantKey {
    /// What a key that is shown must hash to.
    pub hash: SecretHash,
    /// Cluster time when it was made.
    pub created_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Tenants {
    all: BTreeMap<TenantId, Tenant>,
    /// Whose each key is.
    owners: BTreeMap<SecretHash, TenantId>,
    /// There was a tenant once: whoever took the last one away did not mean to let everybody in.
    closed: bool,
}

impl Tenants {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Tenant> {
        self.all.values()
    }

    /// Whether the cluster asks for keys.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn get(&self, name: &TenantId) -> Option<&Tenant> {
        self.all.get(name)
    }

    pub(crate) fn by_key(&self, hash: &SecretHash) -> Option<&Tenant> {
        self.owners.get(hash).and_then(|name| self.all.get(name))
    }

    pub(crate) fn put(
        &mut self,
        now_ms: u64,
        limits: &Limits,
        name: &TenantId,
        quota: Quota,
    ) -> Result<Outcome, Refusal> {
        if let Some(known) = self.all.get_mut(name) {
            let changed = known.quota != quota;
            known.quota = quota;
            return Ok(Outcome::Tenant { changed });
        }
        full(self.all.len(), limits.tenants_max, "tenants")?;
        let keys = BTreeMap::new();
        let tenant = Tenant { name: name.clone(), quota, created_ms: now_ms, keys };
        self.all.insert(name.clone(), tenant);
        self.closed = true;
        Ok(Outcome::Tenant { changed: true })
    }

    pub(crate) fn remove(&mut self, name: &TenantId) -> Outcome {
        let gone = self.all.remove(name);
        for key in gone.iter().flat_map(|tenant| tenant.keys.values()) {
            self.owners.remove(&key.hash);
        }
        Outcome::Tenant { changed: gone.is_some() }
    }

    pub(crate) fn put_key(
        &mut self,
        now_ms: u64,
        limits: &Limits,
        name: &TenantId,
        key: &KeyId,
        hash: SecretHash,
    ) -> Result<Outcome, Refusal> {
        let tenant = self.all.get_mut(name).ok_or_else(|| {
            let text = format!("no tenant {name}; make it with mainstay tenant add {name}");
            Refusal::new(ErrorCode::NotFound, text)
        })?;
        if tenant.keys.get(key).is_some_and(|known| known.hash == hash) {
            return Ok(Outcome::Tenant { changed: false });
        }
        if tenant.keys.contains_key(key) || self.owners.contains_key(&hash) {
            let text = format!("tenant {name} has a key {key} already; choose another name");
            return Err(Refusal::new(ErrorCode::AlreadyExists, text));
        }
        full(tenant.keys.len(), limits.keys_per_tenant_max, "keys of the tenant")?;
        full(self.owners.len(), limits.keys_max, "keys of the cluster")?;
        tenant.keys.insert(key.clone(), TenantKey { hash, created_ms: now_ms });
        self.owners.insert(hash, name.clone());
        Ok(Outcome::Tenant { changed: true })
    }

    pub(crate) fn remove_key(&mut self, name: &TenantId, key: &KeyId) -> Outcome {
        let gone = self.all.get_mut(name).and_then(|tenant| tenant.keys.remove(key));
        if let Some(gone) = gone {
            self.owners.remove(&gone.hash);
        }
        Outcome::Tenant { changed: gone.is_some() }
    }

    /// Rebuilds everything from an image's tenants; `None` if two keys are equal.
    pub(crate) fn restore(tenants: Vec<Tenant>, closed: bool) -> Option<Self> {
        let mut all = Self { closed, ..Self::default() };
        for tenant in tenants {
            for key in tenant.keys.values() {
                if all.owners.insert(key.hash, tenant.name.clone()).is_some() {
                    return None;
                }
            }
            all.all.insert(tenant.name.clone(), tenant);
        }
        Some(all)
    }
}

/// Refuses one more of what there are enough of.
pub(crate) fn full(count: usize, limit: u32, what: &str) -> Result<(), Refusal> {
    if count < limit as usize {
        return Ok(());
    }
    let text = format!("{what}: there are {limit}, the most that there may be; remove one first");
    Err(Refusal::new(ErrorCode::ResourceExhausted, text))
}

#[cfg(test)]
mod tests;
