//! A prompt's text in the pieces that it was rendered in.
//!
//! Pieces that an earlier prompt had are the same allocations, so that whoever made something of one, such as its
//! tokens, can tell by its address. Most prompts are never needed in one piece.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// A prompt.
#[derive(Clone, Default)]
pub struct Text {
    pieces: Vec<Arc<str>>,
    bytes: usize,
    joined: OnceLock<String>,
}

impl Text {
    /// The pieces, in order. A text that was not rendered in parts has none.
    pub fn pieces(&self) -> &[Arc<str>] {
        &self.pieces
    }

    /// The pieces, to be held.
    pub fn into_pieces(self) -> Vec<Arc<str>> {
        self.pieces
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it ends inside an opened thought; the last piece tells for most.
    pub(super) fn opens_thinking(&self) -> bool {
        const OPENING: &str = "<think>";
        let last = self.pieces.last().map(|piece| piece.trim_end_matches(['\n', ' ']));
        match last {
            Some(last) if last.len() >= OPENING.len() => last.ends_with(OPENING),
            _ => self.trim_end_matches(['\n', ' ']).ends_with(OPENING),
        }
    }

    /// The whole text.
    pub fn into_string(self) -> String {
        self.joined.into_inner().unwrap_or_else(|| self.pieces.concat())
    }
}

impl From<Vec<Arc<str>>> for Text {
    fn from(pieces: Vec<Arc<str>>) -> Text {
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        Text { pieces, bytes, joined: OnceLock::new() }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text { pieces: Vec::new(), bytes: text.len(), joined: text.into() }
    }
}

/// The whole text, put together when it is first asked for.
impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.joined.get_or_init(|| self.pieces.concat())
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
