//! The tokens of a pinned prefix, kept so that its blocks can be computed again when all who held them are gone.
//!
//! Tokens are somebody's prompt. Only members of the control plane keep them; whoever else follows the log gets the
//! same pin with the tokens withheld, which says how many there are and a sum of them, and is equal to the full form: so
//! replicas charge the same budgets and come to the same digests. They are packed as one variable-length number
//! each (seven bits a byte, the lowest first), in one way only, and never appear in a `Debug` form.

use core::fmt;
use std::sync::Arc;

use crate::HashKey;
use crate::hash::block_hash;

/// The sum is no secret: it finds accidents, and tells an equal request from another.
const SUM_KEY: HashKey = HashKey(*b"mainstay-kept-01");

/// Tokens and the model that they belong to; or, withheld, only what they amount to.
#[derive(Clone)]
pub struct KeptTokens {
    model: String,
    revision: String,
    count: u32,
    packed_bytes: u32,
    sum: u128,
    packed: Option<Arc<[u8]>>,
}

impl KeptTokens {
    /// Packs tokens of a model.
    #[must_use]
    pub fn new(model: &str, revision: &str, tokens: &[u32]) -> Self {
        let mut packed = Vec::with_capacity(tokens.len() * 3);
        for token in tokens {
            let mut rest = *token;
            while rest >= 0x80 {
                packed.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            packed.push(rest as u8);
        }
        Self::holding(model, revision, tokens, packed.into())
    }

    /// Takes packed tokens; `None` if they are packed in another way.
    #[must_use]
    pub fn from_packed(model: &str, revision: &str, packed: &[u8]) -> Option<Self> {
        let tokens = unpack(packed)?;
        u32::try_from(packed.len()).ok()?;
        Some(Self::holding(model, revision, &tokens, packed.into()))
    }

    fn holding(model: &str, revision: &str, tokens: &[u32], packed: Arc<[u8]>) -> Self {
        Self {
            model: model.to_owned(),
            revision: revision.to_owned(),
            count: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
            packed_bytes: u32::try_from(packed.len()).unwrap_or(u32::MAX),
            sum: block_hash(SUM_KEY, 0, tokens),
            packed: Some(packed),
        }
    }

    /// What tokens amount to that somebody else keeps.
    #[must_use]
    pub fn withheld(model: &str, revision: &str, count: u32, packed_bytes: u32, sum: u128) -> Self {
        let (model, revision) = (model.to_owned(), revision.to_owned());
        Self { model, revision, count, packed_bytes, sum, packed: None }
    }

    /// Forgets the tokens themselves.
    pub fn withhold(&mut self) {
        self.packed = None;
    }

    /// Takes the tokens back that were withheld; false if these are others.
    pub fn restore(&mut self, packed: &[u8]) -> bool {
        let found = Self::from_packed(&self.model, &self.revision, packed);
        let same = found.as_ref() == Some(self);
        if let Some(found) = found.filter(|_| same) {
            self.packed = found.packed;
        }
        same
    }

    /// The name that clients ask for.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Which checkpoint of that name.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// How many tokens.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many bytes they take, packed: what budgets charge.
    #[must_use]
    pub fn packed_bytes(&self) -> u32 {
        self.packed_bytes
    }

    /// Equal for equal tokens.
    #[must_use]
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The tokens packed, unless they are withheld.
    #[must_use]
    pub fn packed(&self) -> Option<&[u8]> {
        self.packed.as_deref()
    }

    /// The tokens, unless they are withheld.
    #[must_use]
    pub fn tokens(&self) -> Option<Vec<u32>> {
        unpack(self.packed.as_deref()?)
    }
}

/// Equal tokens of equal models are equal, whether or not they are withheld.
impl PartialEq for KeptTokens {
    fn eq(&self, other: &Self) -> bool {
        let mark = |kept: &Self| (kept.count, kept.packed_bytes, kept.sum);
        mark(self) == mark(other) && self.model == other.model && self.revision == other.revision
    }
}

impl Eq for KeptTokens {}

impl fmt::Debug for KeptTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptTokens({} of {}@{})", self.count, self.model, self.revision)
    }
}

/// Reads packed tokens; `None` if they are cut, too large, or longer than they need to be.
#[must_use]
pub fn unpack(packed: &[u8]) -> Option<Vec<u32>> {
    let mut tokens = Vec::with_capacity(packed.len() / 2);
    let mut bytes = packed.iter();
    while let Some(first) = bytes.next() {
        let mut token = u32::from(first & 0x7f);
        let mut last = *first;
        let mut shift = 7;
        while last & 0x80 != 0 {
            last = *bytes.next()?;
            let part = u32::from(last & 0x7f);
            if shift > 28 || last == 0 || (shift == 28 && part > 0xf) {
                return None;
            }
            token |= part << shift;
            shift += 7;
        }
        tokens.push(token);
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_of_each_length_come_back() {
        let tokens = [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, u32::MAX];
        let kept = KeptTokens::new("m", "r", &tokens);
        assert_eq!(kept.tokens().as_deref(), Some(&tokens[..]));
        assert_eq!((kept.count(), kept.packed_bytes()), (9, 1 + 1 + 1 + 2 + 2 + 3 + 3 + 4 + 5));
    }

    #[test]
    fn other_ways_to_pack_are_refused() {
        for packed in
            [&[0x80][..], &[0x80, 0], &[0xff; 5], &[0x80, 0x80, 0x80, 0x80, 0x10], &[1, 0x81]]
        {
            assert_eq!(unpack(packed), None, "{packed:?}");
        }
        assert_eq!(unpack(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Some(vec![u32::MAX]));
    }

    #[test]
    fn withheld_tokens_are_equal_gone_and_come_back_only_as_they_were() {
        let full = KeptTokens::new("m", "r", &[1, 2, 300]);
        let mut bare = full.clone();
        bare.withhold();
        assert_eq!((&bare, bare.packed(), bare.tokens()), (&full, None, None));
        assert_ne!(full, KeptTokens::new("m", "r", &[1, 2, 301]));
        assert_ne!(full, KeptTokens::new("m", "s", &[1, 2, 300]));
        let other = KeptTokens::new("m", "r", &[1, 2, 301]);
        assert!(!bare.restore(other.packed().expect("kept")) && bare.tokens().is_none());
        assert!(bare.restore(full.packed().expect("kept")));
        assert_eq!(bare.tokens(), Some(vec![1, 2, 300]));
        assert_eq!(format!("{full:?}"), "KeptTokens(3 of m@r)");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_packed_alike(packed in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(tokens) = unpack(&packed) {
                let again = KeptTokens::new("m", "r", &tokens);
                prop_assert_eq!(again.packed(), Some(&packed[..]));
            }
        }
    }
}
