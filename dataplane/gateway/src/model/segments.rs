//! Segments of prompts that were tokenised before, by the tenant whose they are.
//!
//! Bounded by the bytes that it holds (see [`Memory`]).

use std::sync::{Arc, OnceLock};

use mainstay_chat::memory::Memory;
use mainstay_proto::tokens::pack_into;

/// What a segment costs beside its text and tokens: three allocations and its place in a map.
const SEGMENT_BYTES: usize = 200;

/// The tokens of one segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) tokens: Vec<u32>,
    /// The same as the wire has them.
    pub(super) packed: Vec<u8>,
    /// The byte in the segment at which each token ends; made when it is asked for, which few segments are.
    pub(super) ends: OnceLock<Vec<u32>>,
}

impl Segment {
    pub(super) fn new(tokens: Vec<u32>) -> Self {
        let mut packed = Vec::new();
        pack_into(&tokens, &mut packed);
        packed.shrink_to_fit();
        Self { tokens, packed, ends: OnceLock::new() }
    }

    /// One whose packed form is known.
    pub(super) fn packed(mut tokens: Vec<u32>, mut packed: Vec<u8>) -> Self {
        tokens.shrink_to_fit();
        packed.shrink_to_fit();
        Self { tokens, packed, ends: OnceLock::new() }
    }
}

struct Remembered {
    tenant: Box<str>,
    text: Box<str>,
    segment: Arc<Segment>,
}

impl Remembered {
    /// With room for the ends of its tokens.
    fn bytes(&self) -> usize {
        let Segment { tokens, packed, .. } = &*self.segment;
        SEGMENT_BYTES + self.text.len() + packed.len() + 8 * tokens.len()
    }
}

/// What was tokenised before, by a hash of tenant and text, both of which are compared: of two that share a hash, the
/// later is kept.
pub(super) struct Segments {
    hasher: ahash::RandomState,
    known: Memory<u64, Remembered, foldhash::fast::RandomState>,
}

impl Segments {
    /// Room for so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { hasher: ahash::RandomState::default(), known: Memory::new(bytes_max) }
    }

    /// The tokens of `text` as `tenant` had them before, or as `make` makes them.
    pub(super) fn get_or_make<E>(
        &self,
        tenant: &str,
        text: &str,
        make: impl FnOnce() -> Result<Segment, E>,
    ) -> Result<Arc<Segment>, E> {
        let hash = self.hasher.hash_one((tenant, text));
        let fits = |known: &Remembered| *known.text == *text && *known.tenant == *tenant;
        let segment = |known: &Remembered| Arc::clone(&known.segment);
        if let Some(found) = self.known.with(|known| known.find(&hash, fits).map(segment)) {
            return Ok(found);
        }
        let segment = Arc::new(make()?);
        let remembered =
            Remembered { tenant: tenant.into(), text: text.into(), segment: Arc::clone(&segment) };
        let bytes = remembered.bytes();
        self.known.with(|known| known.insert(hash, remembered, bytes));
        Ok(segment)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::{Segment, Segments};

    const ROOM: usize = 1 << 20;

    /// Whether it had to be made.
    fn asked(segments: &Segments, tenant: &str, text: &str) -> bool {
        let mut made = false;
        let segment = segments.get_or_make(tenant, text, || {
            made = true;
            Ok::<_, Infallible>(Segment::new(vec![text.len() as u32; text.len() / 4]))
        });
        let Ok(segment) = segment;
        assert_eq!(segment.tokens.len(), text.len() / 4);
        made
    }

    #[test]
    fn a_text_is_made_once_for_each_tenant() {
        let segments = Segments::new(ROOM);
        assert!(asked(&segments, "a", "some text"));
        assert!(!asked(&segments, "a", "some text"));
        assert!(asked(&segments, "b", "some text"), "another tenant's is not found");
        assert!(asked(&segments, "a", "some other text"));
    }

    #[test]
    fn text_and_tokens_are_counted_and_what_nobody_asks_for_leaves() {
        let segments = Segments::new(ROOM);
        let large = |n: usize| format!("{n:08}").repeat(ROOM >> 10);
        asked(&segments, "a", "used");
        let kept = large(0);
        asked(&segments, "a", &kept);
        for n in 1..200 {
            asked(&segments, "a", &large(n));
            assert!(!asked(&segments, "a", "used"), "after {n}");
            let (bytes, held) = segments.known.with(|known| (known.bytes(), known.values()));
            assert!(bytes <= ROOM && bytes >= held.saturating_sub(1) * 3 * kept.len(), "{bytes}");
        }
        assert!(asked(&segments, "a", &kept), "nobody asked for it");
    }
}
