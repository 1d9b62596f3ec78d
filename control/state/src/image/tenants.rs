//! Tenants and join tokens in an image, both halves side by side.

use std::collections::BTreeMap;

use mainstay_types::{JoinRole, JoinTokenRequest, KeyId, Quota, SecretHash, TenantId};

use super::ImageError;
use super::sink::Sink;
use super::source::Source;
use crate::join_tokens::{JoinToken, JoinTokenUse, JoinTokens};
use crate::limits::Limits;
use crate::machine::Machine;
use crate::tenants::{Tenant, TenantKey, Tenants};
use crate::workers::{NAME_BYTES_MAX, text_is_fine};

/// The least that one element takes, with the shortest texts and lists that are allowed.
const TENANT_BYTES_MIN: usize = 29;
const KEY_BYTES_MIN: usize = 49;
const TOKEN_BYTES_MIN: usize = 60;

pub(super) fn write(sink: &mut impl Sink, machine: &Machine) {
    sink.flag(machine.tenants.closed());
    let tenants = machine.tenants.iter();
    sink.count(tenants.len());
    for tenant in tenants {
        sink.text(tenant.name.as_str());
        write_quota(sink, tenant.quota);
        sink.u64(tenant.created_ms);
        sink.count(tenant.keys.len());
        for (id, key) in &tenant.keys {
            sink.text(id.as_str());
            sink.put(&key.hash.0);
            sink.u64(key.created_ms);
        }
    }
    let tokens = machine.join_tokens.iter();
    sink.count(tokens.len());
    for token in tokens {
        write_token(sink, token);
    }
}

fn write_quota(sink: &mut impl Sink, quota: Quota) {
    let numbers = [
        quota.in_flight_max.map(u64::from),
        quota.requests_per_minute.map(u64::from),
        quota.tokens_per_minute,
        quota.pinned_blocks_max,
    ];
    for number in numbers {
        sink.flag(number.is_some());
        if let Some(number) = number {
            sink.u64(number);
        }
    }
}

fn write_token(sink: &mut impl Sink, token: &JoinToken) {
    let request = &token.request;
    sink.text(request.id.as_str());
    sink.put(&request.hash.0);
    sink.u8(role_number(request.role));
    sink.flag(request.node.is_some());
    if let Some(node) = &request.node {
        sink.text(node);
    }
    sink.u64(request.ttl_ms);
    sink.u64(token.created_ms);
    sink.flag(token.used.is_some());
    if let Some(used) = &token.used {
        sink.text(&used.node);
        sink.put(&used.key.0);
    }
}

const fn role_number(role: JoinRole) -> u8 {
    match role {
        JoinRole::Control => 0,
        JoinRole::Gateway => 1,
        JoinRole::Worker => 2,
    }
}

pub(super) fn read(
    source: &mut Source<'_>,
    limits: &Limits,
) -> Result<(Tenants, JoinTokens), ImageError> {
    let closed = source.flag("tenants")?;
    let count = source.count("tenants", u64::from(limits.tenants_max), TENANT_BYTES_MIN)?;
    let mut tenants: Vec<Tenant> = Vec::with_capacity(count);
    for _ in 0..count {
        tenants.push(read_tenant(source, limits)?);
    }
    let (keys, limit) =
        (tenants.iter().map(|t| t.keys.len() as u64).sum(), u64::from(limits.keys_max));
    if keys > limit {
        return Err(ImageError::TooMany { what: "keys", count: keys, limit });
    }
    if !closed && !tenants.is_empty() {
        return Err(ImageError::Invalid("tenants"));
    }
    if !tenants.windows(2).all(|pair| pair[0].name < pair[1].name) {
        return Err(ImageError::Invalid("order of tenants"));
    }
    let count = source.count("join tokens", u64::from(limits.join_tokens_max), TOKEN_BYTES_MIN)?;
    let mut tokens: Vec<JoinToken> = Vec::with_capacity(count);
    for _ in 0..count {
        tokens.push(read_token(source, limits)?);
    }
    if !tokens.windows(2).all(|pair| pair[0].request.id < pair[1].request.id) {
        return Err(ImageError::Invalid("order of join tokens"));
    }
    let twice = ImageError::Invalid("secret, it is there twice");
    let tenants = Tenants::restore(tenants, closed).ok_or_else(|| twice.clone())?;
    Ok((tenants, JoinTokens::restore(tokens).ok_or(twice)?))
}

fn read_tenant(source: &mut Source<'_>, limits: &Limits) -> Result<Tenant, ImageError> {
    let name = TenantId::new(source.text("tenant", TenantId::BYTES_MAX)?);
    let name = name.ok_or(ImageError::Invalid("tenant"))?;
    let quota = read_quota(source)?;
    let created_ms = source.u64()?;
    let most = u64::from(limits.keys_per_tenant_max);
    let count = source.count("keys of a tenant", most, KEY_BYTES_MIN)?;
    let mut keys = BTreeMap::new();
    for _ in 0..count {
        let id = read_id(source)?;
        let hash = SecretHash(source.array()?);
        let key = TenantKey { hash, created_ms: source.u64()? };
        if keys.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(ImageError::Invalid("order of keys"));
        }
        keys.insert(id, key);
    }
    Ok(Tenant { name, quota, created_ms, keys })
}

fn read_quota(source: &mut Source<'_>) -> Result<Quota, ImageError> {
    let mut number = || match source.flag("quota")? {
        true => source.u64().map(Some),
        false => Ok(None),
    };
    let small = |number: Option<u64>| {
        let number = number.map(u32::try_from).transpose();
        number.map_err(|_| ImageError::Invalid("quota"))
    };
    Ok(Quota {
        in_flight_max: small(number()?)?,
        requests_per_minute: small(number()?)?,
        tokens_per_minute: number()?,
        pinned_blocks_max: number()?,
    })
}

fn read_id(source: &mut Source<'_>) -> Result<KeyId, ImageError> {
    let id = KeyId::new(source.text("name of a key", KeyId::BYTES_MAX)?);
    id.ok_or(ImageError::Invalid("name of a key"))
}

fn read_node(source: &mut Source<'_>) -> Result<String, ImageError> {
    let node = source.text("name of a node", NAME_BYTES_MAX)?;
    if text_is_fine(node, 1, NAME_BYTES_MAX) {
        return Ok(node.to_owned());
    }
    Err(ImageError::Invalid("name of a node"))
}

fn read_token(source: &mut Source<'_>, limits: &Limits) -> Result<JoinToken, ImageError> {
    let id = read_id(source)?;
    let hash = SecretHash(source.array()?);
    let role = match source.u8()? {
        0 => JoinRole::Control,
        1 => JoinRole::Gateway,
        2 => JoinRole::Worker,
        _ => return Err(ImageError::Invalid("role")),
    };
    let node = match source.flag("name of a node")? {
        true => Some(read_node(source)?),
        false => None,
    };
    let (ttl_ms, created_ms) = (source.u64()?, source.u64()?);
    let used = match source.flag("use of a join token")? {
        true => Some(JoinTokenUse { node: read_node(source)?, key: SecretHash(source.array()?) }),
        false => None,
    };
    let other = node.is_some() && used.as_ref().is_some_and(|u| Some(&u.node) != node.as_ref());
    if other || !(1..=limits.ttl_ms_max).contains(&ttl_ms) {
        return Err(ImageError::Invalid("join token"));
    }
    let request = JoinTokenRequest { id, hash, role, node, ttl_ms };
    Ok(JoinToken { request, created_ms, expires_ms: created_ms.saturating_add(ttl_ms), used })
}
