//! Ids and counters as distinct types, so that an epoch can never be passed where a term is meant.

use core::fmt;
use std::sync::Arc;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

number!(
    /// A worker, numbered by the control plane in the order of first registration; never reused.
    WorkerId,
    u32
);
number!(
    /// One life of a worker's cache: a higher epoch fences all lower ones.
    Epoch,
    u64
);
number!(
    /// The number of an event frame within one epoch, from 1.
    EventSequence,
    u64
);
number!(
    /// A position in the Raft log.
    LogIndex,
    u64
);
number!(
    /// A Raft term.
    Term,
    u64
);
number!(
    /// A member of the control plane.
    NodeId,
    u64
);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest that is accepted, in bytes.
            pub const BYTES_MAX: usize = $max;

            /// Accepts 1 to [`Self::BYTES_MAX`] bytes without control characters.
            #[must_use]
            pub fn new(text: &str) -> Option<Self> {
                let fits = (1..=Self::BYTES_MAX).contains(&text.len());
                (fits && !text.chars().any(char::is_control)).then(|| Self(Arc::from(text)))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Who pays and whose blocks are kept apart; comes from the credential, never from a body.
    TenantId,
    128
);
name!(
    /// An agent's conversation, as its harness names it, within one tenant.
    SessionId,
    256
);

name!(
    /// A stored response, as its client knows it, within one tenant.
    ResponseId,
    128
);

name!(
    /// A credential's public name: of a tenant's key, or of a token to join by. It is no secret.
    KeyId,
    64
);

/// A pin's id, shown as `p-` and 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinId(pub u128);

impl fmt::Display for PinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p-{:032x}", self.0)
    }
}

impl PinId {
    /// Reads what `Display` writes; the `p-` may be left out.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("p-").unwrap_or(text);
        let hex = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| u128::from_str_radix(digits, 16).ok()).flatten().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_bounds() {
        assert!(TenantId::new("").is_none());
        assert!(TenantId::new("a\nb").is_none());
        assert!(TenantId::new(&"x".repeat(129)).is_none());
        assert_eq!(TenantId::new("acme").expect("valid").as_str(), "acme");
    }

    #[test]
    fn pin_ids_round_trip() {
        let id = PinId(0x7f2c);
        assert_eq!(PinId::parse(&id.to_string()), Some(id));
        assert_eq!(PinId::parse("p-xyz"), None);
    }
}
