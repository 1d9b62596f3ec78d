//! Segments of prompts that were tokenised before, by the tenant whose they are.
//!
//! Bounded by the bytes that it holds, in two generations: what is used moves to the young one, and when that is full
//! the old one is forgotten. So a conversation that goes on stays, and one that ended leaves.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, OnceLock};

use mainstay_proto::tokens::pack_into;
use parking_lot::Mutex;

/// What each of the two generations may hold.
const GENERATION_BYTES_MAX: usize = 96 << 20;
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

#[derive(Default)]
struct Generation {
    /// By a hash of tenant and text, both of which are compared: of two that share a hash, the later is kept.
    segments: HashMap<u64, Remembered, foldhash::fast::RandomState>,
    bytes: usize,
}

impl Generation {
    fn find(&self, hash: u64, tenant: &str, text: &str) -> Option<Arc<Segment>> {
        let found = self.segments.get(&hash)?;
        (*found.text == *text && *found.tenant == *tenant).then(|| Arc::clone(&found.segment))
    }

    fn insert(&mut self, hash: u64, remembered: Remembered) {
        self.bytes += remembered.bytes();
        if let Some(before) = self.segments.insert(hash, remembered) {
            self.bytes -= before.bytes();
        }
    }

    fn take(&mut self, hash: u64) -> Option<Remembered> {
        let taken = self.segments.remove(&hash)?;
        self.bytes -= taken.bytes();
        Some(taken)
    }
}

#[derive(Default)]
struct Generations {
    young: Generation,
    old: Generation,
}

impl Generations {
    fn find(&mut self, hash: u64, tenant: &str, text: &str) -> Option<Arc<Segment>> {
        if let Some(found) = self.young.find(hash, tenant, text) {
            return Some(found);
        }
        let found = self.old.find(hash, tenant, text)?;
        if let Some(used) = self.old.take(hash) {
            self.insert(hash, used);
        }
        Some(found)
    }

    fn insert(&mut self, hash: u64, remembered: Remembered) {
        // A long one is not worth what it would push out.
        if remembered.bytes() > GENERATION_BYTES_MAX / 8 {
            return;
        }
        if self.young.bytes + remembered.bytes() > GENERATION_BYTES_MAX {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(hash, remembered);
    }
}

/// What was tokenised before.
#[derive(Default)]
pub(super) struct Segments {
    hasher: ahash::RandomState,
    generations: Mutex<Generations>,
}

impl Segments {
    /// The tokens of `text` as `tenant` had them before, or as `make` makes them.
    pub(super) fn get_or_make<E>(
        &self,
        tenant: &str,
        text: &str,
        make: impl FnOnce() -> Result<Segment, E>,
    ) -> Result<Arc<Segment>, E> {
        let hash = self.hasher.hash_one((tenant, text));
        if let Some(found) = self.generations.lock().find(hash, tenant, text) {
            return Ok(found);
        }
        let segment = Arc::new(make()?);
        let remembered =
            Remembered { tenant: tenant.into(), text: text.into(), segment: Arc::clone(&segment) };
        self.generations.lock().insert(hash, remembered);
        Ok(segment)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::{GENERATION_BYTES_MAX, Segment, Segments};

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
        let segments = Segments::default();
        assert!(asked(&segments, "a", "some text"));
        assert!(!asked(&segments, "a", "some text"));
        assert!(asked(&segments, "b", "some text"), "another tenant's is not found");
        assert!(asked(&segments, "a", "some other text"));
    }

    #[test]
    fn what_is_used_stays_while_what_is_not_leaves_and_the_whole_is_bounded() {
        let segments = Segments::default();
        let large = |n: usize| format!("{n:08}").repeat(1 << 17);
        asked(&segments, "a", "used");
        let kept = large(0);
        asked(&segments, "a", &kept);
        for n in 1..200 {
            asked(&segments, "a", &large(n));
            assert!(!asked(&segments, "a", "used"), "after {n}");
            let generations = segments.generations.lock();
            assert!(generations.young.bytes + generations.old.bytes <= 2 * GENERATION_BYTES_MAX);
        }
        assert!(asked(&segments, "a", &kept), "nobody asked for it");
    }
}
