//! Tenants: who a credential stands for. The body of a request never says.

use axum::http::HeaderMap;
use mainstay_chat::error::{ApiError, ErrorKind};
use mainstay_types::TenantId;

use crate::config::ApiKey;

/// Everybody's tenant while no keys are configured.
const OPEN_TENANT: &str = "default";

/// The configured credentials.
#[derive(Clone)]
pub(crate) struct Tenants {
    keys: Vec<(String, TenantId)>,
}

impl Tenants {
    /// Takes the configured keys; a tenant's name that is not one is an error to show.
    pub(crate) fn new(keys: &[ApiKey]) -> Result<Self, String> {
        let read = |k: &ApiKey| {
            let tenant = TenantId::new(&k.tenant);
            tenant
                .map(|t| (k.key.clone(), t))
                .ok_or_else(|| format!("bad tenant name {:?}", k.tenant))
        };
        Ok(Self { keys: keys.iter().map(read).collect::<Result<_, _>>()? })
    }

    /// Finds the tenant of a request by `Authorization: Bearer` or `x-api-key`.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<TenantId, ApiError> {
        if self.keys.is_empty() {
            return Ok(TenantId::new(OPEN_TENANT).expect("the constant is a valid name"));
        }
        let bearer = headers.get("authorization").and_then(|v| v.to_str().ok());
        let bearer = bearer.and_then(|v| v.strip_prefix("Bearer "));
        let given = bearer.or_else(|| headers.get("x-api-key").and_then(|v| v.to_str().ok()));
        let Some(given) = given else {
            return Err(ApiError::new(
                ErrorKind::Authentication,
                "no API key; send Authorization: Bearer KEY or x-api-key: KEY",
            ));
        };
        let mut found = None;
        for (key, tenant) in &self.keys {
            if same_bytes(key.as_bytes(), given.trim().as_bytes()) {
                found = Some(tenant);
            }
        }
        found.cloned().ok_or_else(|| ApiError::new(ErrorKind::Authentication, "unknown API key"))
    }
}

/// Compares in a time that does not depend on where two keys differ.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    let differs = a.iter().zip(b).fold(a.len() ^ b.len(), |d, (x, y)| d | usize::from(x ^ y));
    differs == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(name, value.parse().expect("a header value"));
        map
    }

    #[test]
    fn keys_name_tenants_and_unknown_ones_are_refused() {
        let keys = [ApiKey { key: "k1".into(), tenant: "acme".into() }];
        let tenants = Tenants::new(&keys).expect("valid");
        let acme = tenants.of(&headers("authorization", "Bearer k1")).expect("known");
        assert_eq!(acme.as_str(), "acme");
        assert_eq!(tenants.of(&headers("x-api-key", "k1")).expect("known"), acme);
        for bad in [headers("x-api-key", "k2"), headers("x-api-key", "k11"), HeaderMap::new()] {
            assert_eq!(tenants.of(&bad).expect_err("refused").kind, ErrorKind::Authentication);
        }
    }

    #[test]
    fn without_keys_everybody_is_one_tenant() {
        let tenants = Tenants::new(&[]).expect("valid");
        assert_eq!(tenants.of(&HeaderMap::new()).expect("open").as_str(), "default");
    }
}
