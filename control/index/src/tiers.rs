//! A set of tiers in one byte: where one worker holds one block.
//!
//! A block can lie in several tiers at once, and leaves the index only when the last of them lets go.
//! Bits beyond the known tiers never get in.

use mainstay_types::Tier;

/// The tiers in which a worker holds a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TierSet(u8);

impl TierSet {
    const ALL_BITS: u8 = (1 << Tier::ALL.len()) - 1;

    /// The set of one tier.
    #[must_use]
    pub fn only(tier: Tier) -> Self {
        Self(1 << tier.number())
    }

    /// The set that `bits` describe, tier number 0 in the lowest bit; `None` where an unknown bit is set.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits & !Self::ALL_BITS == 0).then_some(Self(bits))
    }

    /// The form that [`TierSet::from_bits`] reads.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether `tier` is in it.
    #[must_use]
    pub fn contains(self, tier: Tier) -> bool {
        self.0 & Self::only(tier).0 != 0
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The tiers in it, nearest first.
    pub fn iter(self) -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(move |tier| self.contains(*tier))
    }

    /// This set and `tier`.
    #[must_use]
    pub fn with(self, tier: Tier) -> Self {
        Self(self.0 | Self::only(tier).0)
    }

    /// This set without `tier`.
    #[must_use]
    pub fn without(self, tier: Tier) -> Self {
        Self(self.0 & !Self::only(tier).0)
    }
}
