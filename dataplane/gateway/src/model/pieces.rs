//! Pieces of prompts that were tokenised before, known by their address.
//!
//! A template that is rendered in parts gives the same allocation for what a turn has in common with the one before, so
//! its tokens are found without a look at its text. The piece is held, so that its address can't become another's. That
//! is only worth something where somebody else holds it, too. Bounded by bytes in two generations, as segments are.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;

use super::segments::Segment;

/// What each of the two generations may hold.
const GENERATION_BYTES_MAX: usize = 64 << 20;
/// What a piece costs beside its text and tokens.
const PIECE_BYTES: usize = 200;

/// What is known of a piece.
#[derive(Debug)]
pub(super) struct Piece {
    /// Whether a special token is its first, so that what precedes it is tokenised on its own.
    pub(super) starts: bool,
    /// Its tokens, if what follows it does not change them.
    pub(super) tokens: Segment,
}

#[derive(Clone)]
struct Held {
    text: Arc<str>,
    piece: Arc<Piece>,
}

impl Held {
    fn bytes(&self) -> usize {
        let Segment { tokens, packed, .. } = &self.piece.tokens;
        PIECE_BYTES + self.text.len() + packed.len() + 4 * tokens.len()
    }
}

/// Addresses are spread by the allocator; a multiplication is enough of a hash.
type Map = HashMap<usize, Held, foldhash::fast::RandomState>;

#[derive(Default)]
struct Generations {
    young: Map,
    old: Map,
    young_bytes: usize,
    /// What is to be dropped once nobody waits for the lock.
    forgotten: Vec<Map>,
}

impl Generations {
    fn find(&mut self, text: &Arc<str>) -> Option<Arc<Piece>> {
        let address = address(text);
        if let Some(found) = self.young.get(&address) {
            return Some(Arc::clone(&found.piece));
        }
        let used = self.old.remove(&address)?;
        let piece = Arc::clone(&used.piece);
        self.insert(used);
        Some(piece)
    }

    fn insert(&mut self, held: Held) {
        let bytes = held.bytes();
        if bytes > GENERATION_BYTES_MAX / 8 {
            return;
        }
        if self.young_bytes + bytes > GENERATION_BYTES_MAX {
            let young = mem::take(&mut self.young);
            self.forgotten.push(mem::replace(&mut self.old, young));
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        if let Some(before) = self.young.insert(address(&held.text), held) {
            self.young_bytes -= before.bytes();
        }
    }
}

fn address(text: &Arc<str>) -> usize {
    Arc::as_ptr(text).cast::<u8>().addr()
}

/// The pieces that are known.
#[derive(Default)]
pub(super) struct Pieces(Mutex<Generations>);

impl Pieces {
    /// What is known of each of a prompt's pieces.
    pub(super) fn find(&self, texts: &[Arc<str>]) -> Vec<Option<Arc<Piece>>> {
        let mut generations = self.0.lock();
        let found = texts.iter().map(|text| generations.find(text)).collect();
        let forgotten = mem::take(&mut generations.forgotten);
        drop(generations);
        drop(forgotten);
        found
    }

    /// Remembers a piece that somebody else holds as well.
    pub(super) fn keep(&self, text: &Arc<str>, piece: &Arc<Piece>) {
        // One holder is the prompt that it was rendered for.
        if Arc::strong_count(text) > 1 {
            let held = Held { text: Arc::clone(text), piece: Arc::clone(piece) };
            let mut generations = self.0.lock();
            generations.insert(held);
            let forgotten = mem::take(&mut generations.forgotten);
            drop(generations);
            drop(forgotten);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece() -> Arc<Piece> {
        Arc::new(Piece { starts: true, tokens: Segment::new(vec![7]) })
    }

    #[test]
    fn a_piece_is_known_by_its_address_and_only_where_it_may_come_again() {
        let pieces = Pieces::default();
        let text: Arc<str> = "the same words".into();
        pieces.keep(&text, &piece());
        assert!(pieces.find(std::slice::from_ref(&text))[0].is_none(), "nobody else holds it");
        let other = Arc::clone(&text);
        pieces.keep(&text, &piece());
        let equal: Arc<str> = "the same words".into();
        let found = pieces.find(&[other, equal]);
        assert!(found[0].is_some() && found[1].is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_used_stays() {
        let pieces = Pieces::default();
        let large = || Arc::<str>::from("x".repeat(GENERATION_BYTES_MAX / 10));
        let used = large();
        pieces.keep(&used, &piece());
        let _holder = Arc::clone(&used);
        pieces.keep(&used, &piece());
        for _ in 0..40 {
            let text = large();
            let _other = Arc::clone(&text);
            pieces.keep(&text, &piece());
            assert!(pieces.find(std::slice::from_ref(&used))[0].is_some());
            let generations = pieces.0.lock();
            assert!(generations.forgotten.is_empty());
            let held = |map: &Map| map.values().map(Held::bytes).sum::<usize>();
            assert_eq!(held(&generations.young), generations.young_bytes);
            assert!(held(&generations.young) + held(&generations.old) <= 2 * GENERATION_BYTES_MAX);
        }
    }
}
