//! A pin: a lease on a prefix that the cluster keeps until its TTL ends.

use core::fmt;

use crate::{KeptTokens, NamespaceId, PinId, Region, SequenceHash, SessionId, TenantId};

/// What somebody asks to have pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinRequest {
    /// Chosen by the caller, so that a retry is the same pin.
    pub id: PinId,
    /// Who pays.
    pub tenant: TenantId,
    /// Where the prefix lives.
    pub namespace: NamespaceId,
    /// The session it belongs to; a later pin of the same session supersedes this one.
    pub owner: Option<SessionId>,
    /// The prefix, from its first block on.
    pub blocks: Vec<SequenceHash>,
    /// The number of tokens that `blocks` cover, for people.
    pub prefix_tokens: u32,
    /// How long, from the moment the log accepts it.
    pub ttl_ms: u64,
    /// 0 to 100.
    pub priority: u8,
    /// How many workers should hold it.
    pub copies_min: u32,
    /// All tokens that `blocks` cover, where the pin shall be computed again if its holders are lost.
    pub tokens: Option<KeptTokens>,
    /// Which workers count.
    pub scope: PinScope,
}

/// Where a pin's copies have to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinScope {
    /// On workers of this region; others do not count.
    Region(Region),
    /// Anywhere, but not all in one region while workers live in two: the loss of a region must not be the loss of the
    /// pin.
    Global,
}

impl PinScope {
    const GLOBAL: &'static str = "global";
    const REGION: &'static str = "region:";

    /// Reads what `Display` writes. An empty text is the region [`Region::LOCAL`]: what a program that knows no
    /// scopes sends, to a cluster that has no other region.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" => Some(Self::default()),
            Self::GLOBAL => Some(Self::Global),
            _ => Region::new(text.strip_prefix(Self::REGION)?).map(Self::Region),
        }
    }
}

impl Default for PinScope {
    fn default() -> Self {
        Self::Region(Region::default())
    }
}

impl fmt::Display for PinScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(region) => write!(f, "{}{region}", Self::REGION),
            Self::Global => f.write_str(Self::GLOBAL),
        }
    }
}

/// Where a pin stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PinState {
    /// Accepted; no worker has reported its blocks yet.
    Pending,
    /// Enough workers hold all of it, with retention in force.
    Active,
    /// Some worker holds a part of it.
    Partial,
    /// It was active and its holders were lost; it is to be re-established.
    Degraded,
    /// Its time ended.
    Expired,
    /// Its owner gave it back, or a later pin of the session replaced it.
    Released,
    /// Refused, by a budget or a limit.
    Denied,
}

impl PinState {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Active,
        Self::Partial,
        Self::Degraded,
        Self::Expired,
        Self::Released,
        Self::Denied,
    ];

    /// The name in JSON and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Partial => "partial",
            Self::Degraded => "degraded",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::Denied => "denied",
        }
    }

    /// The reverse of [`PinState::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_round_trip_and_nonsense_is_none() {
        for text in ["global", "region:local", "region:eu-1"] {
            assert_eq!(PinScope::parse(text).expect(text).to_string(), text);
        }
        assert_eq!(PinScope::parse(""), Some(PinScope::default()));
        for bad in ["region", "region:", "Global", "eu-1", "region:a b"] {
            assert_eq!(PinScope::parse(bad), None, "{bad}");
        }
    }
}
