//! Tenants, their keys and quotas, and the tokens by which nodes join: what the log keeps of each.
//!
//! Secrets are random and long, so a plain SHA-256 of one is all that anybody needs to recognise it; the secrets
//! themselves are shown once, where they are made, and kept nowhere.

use core::fmt;

/// SHA-256 of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretHash(pub [u8; 32]);

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl SecretHash {
    /// Reads what `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut hash = [0; 32];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return None;
        }
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(hash))
    }
}

/// What a tenant may use; `None` is no limit of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests that one gateway works on at a time.
    pub in_flight_max: Option<u32>,
    /// Requests that one gateway takes in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens, of prompts and answers, that pass one gateway in a minute.
    pub tokens_per_minute: Option<u64>,
    /// Different blocks that its live pins may name, in place of the cluster's general budget of a tenant.
    pub pinned_blocks_max: Option<u64>,
}

/// What a node that joins by a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JoinRole {
    /// A member of the control plane.
    Control,
    /// A gateway.
    Gateway,
    /// A worker.
    Worker,
}

impl JoinRole {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Control, Self::Gateway, Self::Worker];

    /// Its word in flags, certificates and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Gateway => "gateway",
            Self::Worker => "worker",
        }
    }

    /// The reverse of [`JoinRole::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// A token to be made: whoever shows it may join once, in that role, before its time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRequest {
    /// Chosen by the caller, so that a retry is the same token.
    pub id: crate::KeyId,
    /// What of the token.
    pub hash: SecretHash,
    /// What the node will be for.
    pub role: JoinRole,
    /// The name that the node must have; any if `None`.
    pub node: Option<String>,
    /// How long it can be used, from the moment the log accepts it.
    pub ttl_ms: u64,
}

/// A node that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Of the token that it shows.
    pub token: SecretHash,
    /// What it wants to be for.
    pub role: JoinRole,
    /// Its name.
    pub node: String,
    /// Of the key that it wants certified: a retry for the same key is the same use.
    pub key: SecretHash,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_round_trip_and_nothing_else_is_one() {
        let mut hash = [0; 32];
        for (at, byte) in (0_u8..).zip(&mut hash) {
            *byte = at.wrapping_mul(37);
        }
        let text = SecretHash(hash).to_string();
        assert_eq!(SecretHash::parse(&text), Some(SecretHash(hash)));
        for bad in ["", "00", &text[1..], &format!("{text}0"), &text.replace('0', "g")] {
            assert_eq!(SecretHash::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn roles_have_names() {
        for role in JoinRole::ALL {
            assert_eq!(JoinRole::from_name(role.name()), Some(role));
        }
        assert_eq!(JoinRole::from_name("admin"), None);
    }
}
