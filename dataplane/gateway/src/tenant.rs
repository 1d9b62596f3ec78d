//! Tenants: who a credential stands for. The body of a request never says.
//!
//! Keys come from the configuration file and from the log; the replica follows the log, so a key that was taken back
//! is refused here as soon as the entry has come. Keys are looked up by their hash: how long that takes tells
//! something about the hash of what was shown and nothing about any key.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::HeaderMap;
use mainstay_chat::error::{ApiError, ErrorKind};
use mainstay_identity::sha256;
use mainstay_state::Machine;
use mainstay_types::{Quota, SecretHash, TenantId};

use crate::config::ApiKey;
use crate::quota::{Quotas, Spending};
use crate::replica::Replica;

/// Everybody's tenant while there are no keys.
const OPEN_TENANT: &str = "default";

/// Credentials, and what their tenants use.
#[derive(Clone)]
pub(crate) struct Tenants {
    configured: Arc<HashMap<SecretHash, TenantId>>,
    replica: Replica,
    quotas: Quotas,
}

impl Tenants {
    /// Takes the configured keys; a tenant's name that is not one is an error to show.
    pub(crate) fn new(keys: &[ApiKey], replica: Replica) -> Result<Self, String> {
        let read = |k: &ApiKey| {
            let tenant = TenantId::new(&k.tenant);
            tenant
                .map(|t| (SecretHash(sha256(k.key.as_bytes())), t))
                .ok_or_else(|| format!("bad tenant name {:?}", k.tenant))
        };
        let mut configured = HashMap::new();
        for key in keys {
            if key.key.is_empty() {
                return Err(format!(
                    "an empty key of tenant {:?}; take it out of the file",
                    key.tenant
                ));
            }
            let (hash, tenant) = read(key)?;
            if configured.insert(hash, tenant).is_some_and(|other| other.as_str() != key.tenant) {
                return Err(format!("a key of tenant {:?} is another tenant's, too", key.tenant));
            }
        }
        let configured = Arc::new(configured);
        Ok(Self { configured, replica, quotas: Quotas::new() })
    }

    /// Finds the tenant of a request by `Authorization: Bearer` or `x-api-key`.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<TenantId, ApiError> {
        let given = given(headers).map(|key| SecretHash(sha256(key.as_bytes())));
        if let Some(tenant) = given.and_then(|hash| self.configured.get(&hash)) {
            return Ok(tenant.clone());
        }
        let heard = self.replica.has_begun();
        if !heard && (self.configured.is_empty() || given.is_some()) {
            return Err(unheard());
        }
        let (found, closed) =
            self.replica.read(|m| (given.and_then(|h| owner(m, &h)), m.asks_for_keys()));
        if let Some(tenant) = found {
            return Ok(tenant);
        }
        if self.configured.is_empty() && !closed {
            return Ok(TenantId::new(OPEN_TENANT).expect("the constant is a valid name"));
        }
        let text = match given {
            Some(_) => "unknown API key",
            None => "no API key; send Authorization: Bearer KEY or x-api-key: KEY",
        };
        Err(ApiError::new(ErrorKind::Authentication, text))
    }

    /// Whether anybody is asked for a key.
    pub(crate) fn asks_for_keys(&self) -> Result<bool, ApiError> {
        if !self.configured.is_empty() {
            return Ok(true);
        }
        if self.replica.has_begun() {
            Ok(self.replica.read(Machine::asks_for_keys))
        } else {
            Err(unheard())
        }
    }

    /// Counts a request in, if its tenant's quota allows one more.
    pub(crate) fn admit(&self, tenant: &TenantId) -> Result<Spending, ApiError> {
        let quota = self.replica.read(|m| m.tenant(tenant).map(|t| t.quota));
        match quota.filter(|quota| *quota != Quota::default()) {
            None => Ok(Spending::free(&self.quotas, tenant)),
            Some(quota) => {
                let known = |tenant: &TenantId| self.replica.read(|m| m.tenant(tenant).is_some());
                self.quotas.admit(tenant, quota, known)
            }
        }
    }
}

/// Keys may be asked for; nobody knows yet.
fn unheard() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "the control plane has not answered yet")
}

fn owner(machine: &Machine, hash: &SecretHash) -> Option<TenantId> {
    machine.tenant_by_key(hash).map(|tenant| tenant.name.clone())
}

/// The key that a request shows.
fn given(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = text("authorization").and_then(|v| v.strip_prefix("Bearer "));
    bearer.or_else(|| text("x-api-key")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use mainstay_types::{Command, KeyId};

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(name, value.parse().expect("a header value"));
        map
    }

    fn put(key: &str) -> Command {
        let (tenant, hash) = (named("zeta"), SecretHash(sha256(key.as_bytes())));
        Command::PutKey { tenant, key: KeyId::new("laptop").expect("a name"), hash }
    }

    fn named(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    fn kind(tenants: &Tenants, headers: &HeaderMap) -> Result<String, ErrorKind> {
        tenants.of(headers).map(|t| t.to_string()).map_err(|e| e.kind)
    }

    #[test]
    fn keys_name_tenants_and_unknown_ones_are_refused() {
        let keys = [ApiKey { key: "k1".into(), tenant: "acme".into() }];
        let replica = Replica::new();
        let tenants = Tenants::new(&keys, replica.clone()).expect("valid");
        // Whether the log knows this one nobody can say yet.
        assert_eq!(kind(&tenants, &headers("x-api-key", "k2")), Err(ErrorKind::Unavailable));
        replica.test_apply(Command::Tick);
        let acme = tenants.of(&headers("authorization", "Bearer k1")).expect("known");
        assert_eq!(acme.as_str(), "acme");
        assert_eq!(tenants.of(&headers("x-api-key", "k1")).expect("known"), acme);
        for bad in [headers("x-api-key", "k2"), headers("x-api-key", "k11"), HeaderMap::new()] {
            assert_eq!(tenants.of(&bad).expect_err("refused").kind, ErrorKind::Authentication);
        }
    }

    #[test]
    fn a_key_that_is_empty_or_two_tenants_is_no_key() {
        let key = |key: &str, tenant: &str| ApiKey { key: key.into(), tenant: tenant.into() };
        for keys in [vec![key("", "acme")], vec![key("k", "acme"), key("k", "zeta")]] {
            assert!(Tenants::new(&keys, Replica::new()).is_err());
        }
        assert!(Tenants::new(&[key("k", "acme"), key("k", "acme")], Replica::new()).is_ok());
    }

    #[test]
    fn without_keys_anywhere_everybody_is_one_tenant() {
        let replica = Replica::new();
        let tenants = Tenants::new(&[], replica.clone()).expect("valid");
        // Before the log is known there may be keys in it.
        assert_eq!(kind(&tenants, &HeaderMap::new()), Err(ErrorKind::Unavailable));
        replica.test_apply(Command::Tick);
        assert_eq!(kind(&tenants, &HeaderMap::new()).as_deref(), Ok("default"));
        assert_eq!(kind(&tenants, &headers("x-api-key", "any")).as_deref(), Ok("default"));
    }

    #[test]
    fn keys_of_the_log_come_and_go_beside_those_of_the_file() {
        let replica = Replica::new();
        let keys = [ApiKey { key: "k1".into(), tenant: "acme".into() }];
        let both = Tenants::new(&keys, replica.clone()).expect("valid");
        let tenants = Tenants::new(&[], replica.clone()).expect("valid");
        replica.test_apply(Command::PutTenant { name: named("zeta"), quota: Quota::default() });
        let shown = headers("authorization", "Bearer k2");
        assert_eq!(kind(&tenants, &shown), Err(ErrorKind::Authentication));
        replica.test_apply(put("k2"));
        for tenants in [&tenants, &both] {
            assert_eq!(kind(tenants, &shown).as_deref(), Ok("zeta"));
            assert_eq!(kind(tenants, &HeaderMap::new()), Err(ErrorKind::Authentication));
        }
        assert_eq!(kind(&both, &headers("x-api-key", "k1")).as_deref(), Ok("acme"));
        assert_eq!(kind(&tenants, &headers("x-api-key", "k1")), Err(ErrorKind::Authentication));
        let key = KeyId::new("laptop").expect("a name");
        replica.test_apply(Command::RemoveKey { tenant: named("zeta"), key });
        // The tenant is there still: taking its last key back opens nothing.
        assert_eq!(kind(&tenants, &shown), Err(ErrorKind::Authentication));
        assert_eq!(kind(&tenants, &HeaderMap::new()), Err(ErrorKind::Authentication));
    }

    #[test]
    fn a_quota_of_the_log_is_kept() {
        let replica = Replica::new();
        let tenants = Tenants::new(&[], replica.clone()).expect("valid");
        let quota = |in_flight_max| Command::PutTenant {
            name: named("zeta"),
            quota: Quota { in_flight_max, ..Quota::default() },
        };
        replica.test_apply(quota(Some(1)));
        let one = tenants.admit(&named("zeta")).unwrap_or_else(|e| panic!("{e}"));
        let error = tenants.admit(&named("zeta")).err().expect("one is the most");
        assert_eq!(error.kind, ErrorKind::RateLimited);
        assert!(tenants.admit(&named("acme")).is_ok());
        replica.test_apply(quota(Some(2)));
        assert!(tenants.admit(&named("zeta")).is_ok());
        drop(one);
    }
}
