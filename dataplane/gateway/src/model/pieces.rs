//! Pieces of prompts that were tokenised before, known by their address.
//!
//! A template that is rendered in parts gives the same allocation for what a turn has in common with the one before, so
//! its tokens are found without a look at its text. The piece is held, so that its address can't become another's. That
//! is only worth something where somebody else holds it, too. Bounded by bytes (see [`Memory`]).

use std::sync::Arc;

use mainstay_chat::memory::Memory;

use super::segments::Segment;

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

fn address(text: &Arc<str>) -> usize {
    Arc::as_ptr(text).cast::<u8>().addr()
}

/// The pieces that are known. Addresses are spread by the allocator; a multiplication is enough of a hash.
pub(super) struct Pieces(Memory<usize, Held, foldhash::fast::RandomState>);

impl Pieces {
    /// Room for so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self(Memory::new(bytes_max))
    }

    /// What is known of each of a prompt's pieces.
    pub(super) fn find(&self, texts: &[Arc<str>]) -> Vec<Option<Arc<Piece>>> {
        self.0.with(|known| {
            let find = |text| {
                known.find(&address(text), |_| true).map(|held: &Held| Arc::clone(&held.piece))
            };
            texts.iter().map(find).collect()
        })
    }

    /// Remembers a piece that somebody else holds as well.
    pub(super) fn keep(&self, text: &Arc<str>, piece: &Arc<Piece>) {
        // One holder is the prompt that it was rendered for.
        if Arc::strong_count(text) > 1 {
            let held = Held { text: Arc::clone(text), piece: Arc::clone(piece) };
            let bytes = held.bytes();
            self.0.with(|known| known.insert(address(text), held, bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 1 << 20;

    fn piece() -> Arc<Piece> {
        Arc::new(Piece { starts: true, tokens: Segment::new(vec![7]) })
    }

    #[test]
    fn a_piece_is_known_by_its_address_and_only_where_it_may_come_again() {
        let pieces = Pieces::new(ROOM);
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
    fn a_text_is_counted_and_what_is_used_stays() {
        let pieces = Pieces::new(ROOM);
        let large = || Arc::<str>::from("x".repeat(ROOM / 20));
        let used = large();
        let _holder = Arc::clone(&used);
        pieces.keep(&used, &piece());
        for _ in 0..80 {
            let text = large();
            let _other = Arc::clone(&text);
            pieces.keep(&text, &piece());
            assert!(pieces.find(std::slice::from_ref(&used))[0].is_some());
            let (bytes, held) = pieces.0.with(|known| (known.bytes(), known.values()));
            assert!(bytes <= ROOM && bytes >= held * text.len(), "{bytes} of {held}");
        }
    }
}
