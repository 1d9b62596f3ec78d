//! Tenants, keys and join tokens on the wire. A name or a hash of the wrong form is an error, never a default.

use bytes::Bytes;
use mainstay_types::{
    Command, JoinRequest, JoinRole, JoinTokenRequest, KeyId, Quota, SecretHash, TenantId,
};

use super::{ConvertError, Result};
use crate::v1;

/// Reads a tenant's name.
pub fn tenant(name: &str) -> Result<TenantId> {
    TenantId::new(name).ok_or(ConvertError::Malformed("tenant"))
}

/// Reads the public name of a key or of a join token.
pub fn key_id(name: &str) -> Result<KeyId> {
    KeyId::new(name).ok_or(ConvertError::Malformed("key"))
}

fn hash(bytes: &[u8]) -> Result<SecretHash> {
    bytes.try_into().map(SecretHash).map_err(|_| ConvertError::Malformed("hash"))
}

/// Reads a role that a node may join in.
pub fn join_role(name: &str) -> Result<JoinRole> {
    JoinRole::from_name(name).ok_or(ConvertError::Malformed("role"))
}

/// Reads a quota; an absent one limits nothing.
#[must_use]
pub fn quota_from_wire(quota: Option<&v1::Quota>) -> Quota {
    let quota = quota.copied().unwrap_or_default();
    Quota {
        in_flight_max: quota.in_flight_max,
        requests_per_minute: quota.requests_per_minute,
        tokens_per_minute: quota.tokens_per_minute,
        pinned_blocks_max: quota.pinned_blocks_max,
    }
}

/// Writes a quota.
#[must_use]
pub fn quota_to_wire(quota: Quota) -> v1::Quota {
    v1::Quota {
        in_flight_max: quota.in_flight_max,
        requests_per_minute: quota.requests_per_minute,
        tokens_per_minute: quota.tokens_per_minute,
        pinned_blocks_max: quota.pinned_blocks_max,
    }
}

/// Reads the command that makes or changes a tenant.
pub fn put_tenant(wire: &v1::PutTenant) -> Result<Command> {
    let quota = quota_from_wire(wire.quota.as_ref());
    Ok(Command::PutTenant { name: tenant(&wire.name)?, quota })
}

/// Reads the command that gives a tenant a key.
pub fn put_key(wire: &v1::PutKey) -> Result<Command> {
    let (tenant, key) = (tenant(&wire.tenant)?, key_id(&wire.key)?);
    Ok(Command::PutKey { tenant, key, hash: hash(&wire.hash)? })
}

/// Reads the command that takes a key back.
pub fn remove_key(wire: &v1::RemoveKey) -> Result<Command> {
    Ok(Command::RemoveKey { tenant: tenant(&wire.tenant)?, key: key_id(&wire.key)? })
}

/// Reads the command that makes a join token.
pub fn put_join_token(wire: &v1::PutJoinToken) -> Result<Command> {
    Ok(Command::PutJoinToken(JoinTokenRequest {
        id: key_id(&wire.id)?,
        hash: hash(&wire.hash)?,
        role: join_role(&wire.role)?,
        node: Some(wire.node.clone()).filter(|node| !node.is_empty()),
        ttl_ms: wire.ttl_ms,
    }))
}

/// Reads the command that uses a join token up.
pub fn use_join_token(wire: &v1::UseJoinToken) -> Result<Command> {
    Ok(Command::UseJoinToken(JoinRequest {
        token: hash(&wire.token)?,
        role: join_role(&wire.role)?,
        node: wire.node.clone(),
        key: hash(&wire.key)?,
    }))
}

/// Writes a command about tenants or join tokens; any other is nothing.
pub(super) fn to_wire(command: &Command) -> v1::command::Command {
    use v1::command::Command as Wire;
    let bytes = |hash: &SecretHash| Bytes::copy_from_slice(&hash.0);
    match command {
        Command::PutTenant { name, quota } => Wire::PutTenant(v1::PutTenant {
            name: name.to_string(),
            quota: Some(quota_to_wire(*quota)),
        }),
        Command::RemoveTenant { name } => {
            Wire::RemoveTenant(v1::RemoveTenant { name: name.to_string() })
        }
        Command::PutKey { tenant, key, hash } => Wire::PutKey(v1::PutKey {
            tenant: tenant.to_string(),
            key: key.to_string(),
            hash: bytes(hash),
        }),
        Command::RemoveKey { tenant, key } => {
            Wire::RemoveKey(v1::RemoveKey { tenant: tenant.to_string(), key: key.to_string() })
        }
        Command::PutJoinToken(request) => Wire::PutJoinToken(v1::PutJoinToken {
            id: request.id.to_string(),
            hash: bytes(&request.hash),
            role: request.role.name().to_owned(),
            node: request.node.clone().unwrap_or_default(),
            ttl_ms: request.ttl_ms,
        }),
        Command::UseJoinToken(join) => Wire::UseJoinToken(v1::UseJoinToken {
            token: bytes(&join.token),
            role: join.role.name().to_owned(),
            node: join.node.clone(),
            key: bytes(&join.key),
        }),
        Command::RemoveJoinToken { id } => {
            Wire::RemoveJoinToken(v1::RemoveJoinToken { id: id.to_string() })
        }
        _ => Wire::Tick(v1::Tick {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{proposal_from_wire, proposal_to_wire};
    use mainstay_types::{Proposal, Stamp};

    #[test]
    fn commands_about_tenants_and_tokens_round_trip() {
        let name = || tenant("acme").expect("a name");
        let id = || key_id("k").expect("a name");
        let quota =
            Quota { in_flight_max: Some(0), tokens_per_minute: Some(7), ..Quota::default() };
        let token = JoinTokenRequest {
            id: id(),
            hash: SecretHash([4; 32]),
            role: JoinRole::Gateway,
            node: None,
            ttl_ms: 5,
        };
        let join = JoinRequest {
            token: SecretHash([5; 32]),
            role: JoinRole::Control,
            node: "m4".into(),
            key: SecretHash([6; 32]),
        };
        for command in [
            Command::PutTenant { name: name(), quota },
            Command::RemoveTenant { name: name() },
            Command::PutKey { tenant: name(), key: id(), hash: SecretHash([3; 32]) },
            Command::RemoveKey { tenant: name(), key: id() },
            Command::PutJoinToken(JoinTokenRequest { node: Some("w".into()), ..token.clone() }),
            Command::PutJoinToken(token),
            Command::UseJoinToken(join),
            Command::RemoveJoinToken { id: id() },
        ] {
            let proposal = Proposal { stamp: Stamp::default(), command };
            assert_eq!(proposal_from_wire(&proposal_to_wire(&proposal)), Ok(proposal));
        }
    }

    #[test]
    fn malformed_ones_are_refused() {
        let short = v1::PutKey { tenant: "a".into(), key: "k".into(), hash: vec![1; 31].into() };
        assert_eq!(put_key(&short), Err(ConvertError::Malformed("hash")));
        assert!(tenant("").is_err() && key_id("a\nb").is_err() && join_role("admin").is_err());
    }
}
