//! A model's tokenizer, with a memory of the segments that it has seen.
//!
//! Special tokens cut a prompt into segments whose tokens do not depend on each other: the tokenizer itself
//! splits there before anything else. A turn of a conversation repeats all segments of the turn before, so their
//! [`Segments`] are remembered and only new text is tokenised. Where a tokenizer normalises across special tokens,
//! or has none, the whole prompt is one segment and costs its full length.

use std::collections::HashMap;
use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use bytes::Bytes;
use mainstay_proto::tokens::pack;
use tokenizers::Tokenizer as HfTokenizer;

use super::ModelError;
use super::detokenizer::TokenBytes;
use super::memory::PromptMemory;
use super::pieces::{Piece, Pieces};
use super::prompts::Prompts;
use super::segments::{Segment, Segments};
use super::words::Words;

/// Shorter segments stand between messages, a few different ones in all of a prompt.
const SHORT_BYTES_MAX: usize = 32;
/// How many different ones of these are remembered while a prompt is tokenised.
const SHORT_MAX: usize = 16;

/// A prompt as tokens.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// The tokens.
    pub(crate) tokens: Vec<u32>,
    /// The same as a worker is told them.
    pub(crate) packed: Vec<u8>,
    /// For each asked byte offset of the text, how many tokens lie wholly before it.
    pub(crate) tokens_before: Vec<usize>,
}

impl Encoded {
    fn with_room_for(text_bytes: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(text_bytes / 2),
            packed: Vec::with_capacity(text_bytes),
            tokens_before: Vec::new(),
        }
    }

    fn append(&mut self, more: Self) {
        let before = self.tokens.len();
        self.tokens_before.extend(more.tokens_before.iter().map(|count| before + count));
        self.tokens.extend_from_slice(&more.tokens);
        self.packed.extend_from_slice(&more.packed);
    }
}

/// Where so many of a prompt's pieces end, counted from its start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) pieces: u32,
    pub(super) bytes: u32,
    pub(super) tokens: u32,
    /// Bytes of the tokens on the wire.
    pub(super) packed: u32,
}

impl Ends {
    /// Prompts are far shorter than what does not fit here; of a longer one no more is known than fits.
    fn of([pieces, bytes, tokens, packed]: [usize; 4]) -> Option<Self> {
        let fits = |count: usize| u32::try_from(count).ok();
        let (pieces, bytes) = (fits(pieces)?, fits(bytes)?);
        Some(Self { pieces, bytes, tokens: fits(tokens)?, packed: fits(packed)? })
    }

    /// Where pieces end that follow these.
    pub(super) fn and(self, more: Self) -> Self {
        Self {
            pieces: self.pieces.saturating_add(more.pieces),
            bytes: self.bytes.saturating_add(more.bytes),
            tokens: self.tokens.saturating_add(more.tokens),
            packed: self.packed.saturating_add(more.packed),
        }
    }
}

/// A tokenizer ready for prompts and for output.
pub(crate) struct Tokenizer {
    inner: HfTokenizer,
    /// Special tokens as they stand in text; of two that begin at one place, the longer.
    finder: AhoCorasick,
    /// Their ids, in the finder's order.
    specials: Vec<Special>,
    /// All tokens that were added to the vocabulary, those too that count as text.
    added: HashMap<String, u32>,
    segments: Segments,
    pieces: Pieces,
    /// What makes tokens of most texts.
    words: Option<Words>,
    pub(super) prompts: Prompts,
    /// Whether a special token always begins where a piece that starts with one does, whatever precedes it.
    apart: bool,
    /// How long the longest special token is, in bytes.
    longest: usize,
    /// What each token adds to a text, where that depends on no other token.
    pub(super) bytes: Option<Arc<TokenBytes>>,
}

/// What is known while a prompt is tokenised.
struct Known<'t> {
    tenant: &'t str,
    short: Vec<(&'t str, Arc<Segment>)>,
}

struct Special {
    id: u32,
    /// The id as the wire has it.
    packed: Bytes,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(crate) fn new(json: &[u8], memory: PromptMemory) -> Result<Self, ModelError> {
        let mut inner =
            HfTokenizer::from_bytes(json).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        // Settings that training leaves behind; a prompt is never cut or filled up here.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let mut specials: Vec<(String, u32)> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, t)| t.special && !t.normalized && !t.lstrip && !t.rstrip && !t.single_word)
            .filter(|(_, t)| !t.content.is_empty())
            .map(|(id, t)| (t.content, id))
            .collect();
        specials.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        if !specials.iter().all(|(text, id)| segments_apart(&inner, text, *id)) {
            specials.clear();
        }
        let apart = starts_apart(&specials);
        let longest = specials.iter().map(|(text, _)| text.len()).max().unwrap_or(0);
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(specials.iter().map(|(text, _)| text))
            .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let specials =
            specials.into_iter().map(|(_, id)| Special { id, packed: pack(&[id]) }).collect();
        let added = inner.get_added_tokens_decoder().into_iter().map(|(id, t)| (t.content, id));
        let added = added.collect();
        let bytes = TokenBytes::of(&inner).map(Arc::new);
        let words = Words::of(&inner);
        Ok(Self {
            inner,
            finder,
            specials,
            added,
            segments: Segments::new(memory.segments()),
            pieces: Pieces::new(memory.pieces()),
            words,
            prompts: Prompts::new(memory.prompts()),
            apart,
            longest,
            bytes,
        })
    }

    /// Tokenises a rendered prompt. `offsets` are byte offsets, in rising order, to be told in tokens. What is
    /// remembered for one tenant is never found for another, beyond single words.
    pub(crate) fn encode<'t>(
        &self,
        tenant: &'t str,
        text: &'t str,
        offsets: &[usize],
    ) -> Result<Encoded, ModelError> {
        let mut out = Encoded::with_room_for(text.len());
        let mut known = Known { tenant, short: Vec::new() };
        let mut pending = offsets.iter().copied().peekable();
        self.encode_text(&mut known, text, &mut pending, &mut out)?;
        out.tokens_before.extend(pending.map(|_| out.tokens.len()));
        Ok(out)
    }

    /// Whether a piece that begins with a special token is tokenised apart from those before it.
    pub(super) fn cuts_pieces_apart(&self) -> bool {
        self.apart
    }

    /// The same for a prompt in pieces, of which those that are known cost no look at their text. `ends` gets the places
    /// at which what follows does not change the tokens of what precedes it.
    pub(super) fn encode_groups(
        &self,
        tenant: &str,
        pieces: &[Arc<str>],
        offsets: &[usize],
        ends: &mut Vec<Ends>,
    ) -> Result<Encoded, ModelError> {
        let known = self.pieces.find(pieces);
        let starts = |(known, text): (&Option<Arc<Piece>>, &Arc<str>)| {
            known.as_ref().map_or_else(|| self.starts(text), |known| known.starts)
        };
        let starts: Vec<bool> = known.iter().zip(pieces).map(starts).collect();
        let known_tokens = known.iter().flatten().map(|piece| piece.tokens.tokens.len()).sum();
        let known_bytes = known.iter().flatten().map(|piece| piece.tokens.packed.len()).sum();
        let mut out = Encoded {
            tokens: Vec::with_capacity(known_tokens),
            packed: Vec::with_capacity(known_bytes),
            tokens_before: Vec::new(),
        };
        let mut pending = offsets.iter().copied().peekable();
        let (mut first, mut start) = (0, 0);
        while first < pieces.len() {
            // What goes on without a special token is tokenised with what it follows.
            let more = starts[first + 1..].iter().take_while(|starts| !**starts).count();
            let group = first..first + 1 + more;
            let end = start + pieces[group.clone()].iter().map(|piece| piece.len()).sum::<usize>();
            while pending.next_if(|&o| o <= start).is_some() {
                out.tokens_before.push(out.tokens.len());
            }
            if more == 0 && pending.peek().is_none_or(|&o| o >= end) {
                let piece = match &known[first] {
                    Some(known) => Arc::clone(known),
                    None => self.piece(tenant, &pieces[first], starts[first])?,
                };
                let Segment { tokens, packed, .. } = &piece.tokens;
                out.tokens.extend_from_slice(tokens);
                out.packed.extend_from_slice(packed);
            } else {
                let inner = std::iter::from_fn(|| pending.next_if(|&o| o < end));
                let inner: Vec<usize> = inner.map(|o| o - start).collect();
                out.append(self.encode(tenant, &pieces[group.clone()].concat(), &inner)?);
            }
            (first, start) = (group.end, end);
            ends.extend(Ends::of([first, start, out.tokens.len(), out.packed.len()]));
        }
        out.tokens_before.extend(pending.map(|_| out.tokens.len()));
        Ok(out)
    }

    /// Whether a special token is the first of a text.
    pub(super) fn starts(&self, text: &str) -> bool {
        // No special token is longer, and the rest need not be looked through.
        let mut end = text.len().min(self.longest);
        while !text.is_char_boundary(end) {
            end += 1;
        }
        self.finder.find(&text[..end]).is_some_and(|found| found.start() == 0)
    }

    /// What there is to know of a piece that is new and whose tokens nothing beside it changes.
    fn piece(&self, tenant: &str, text: &Arc<str>, starts: bool) -> Result<Arc<Piece>, ModelError> {
        let Encoded { tokens, packed, .. } = self.encode(tenant, text, &[])?;
        let tokens = Segment::packed(tokens, packed);
        let piece = Arc::new(Piece { starts, tokens });
        self.pieces.keep(text, &piece);
        Ok(piece)
    }

    fn encode_text<'t>(
        &self,
        known: &mut Known<'t>,
        text: &'t str,
        pending: &mut Peekable<impl Iterator<Item = usize>>,
        out: &mut Encoded,
    ) -> Result<(), ModelError> {
        let mut at = 0;
        for found in self.finder.find_iter(text) {
            self.encode_segment(known, text, at..found.start(), pending, out)?;
            at = found.end();
            let special = &self.specials[found.pattern().as_usize()];
            while pending.next_if(|&o| o < at).is_some() {
                out.tokens_before.push(out.tokens.len());
            }
            out.tokens.push(special.id);
            out.packed.extend_from_slice(&special.packed);
        }
        self.encode_segment(known, text, at..text.len(), pending, out)
    }

    fn encode_segment<'t>(
        &self,
        known: &mut Known<'t>,
        text: &'t str,
        range: Range<usize>,
        pending: &mut Peekable<impl Iterator<Item = usize>>,
        out: &mut Encoded,
    ) -> Result<(), ModelError> {
        if range.is_empty() {
            return Ok(());
        }
        let segment = self.segment(known, &text[range.clone()])?;
        if pending.peek().is_some_and(|&o| o < range.end) {
            let ends = self.ends(&segment, &text[range.clone()])?;
            for (before, end) in ends.iter().enumerate() {
                while pending.next_if(|&o| o < range.start + *end as usize).is_some() {
                    out.tokens_before.push(out.tokens.len() + before);
                }
            }
        }
        out.tokens.extend_from_slice(&segment.tokens);
        out.packed.extend_from_slice(&segment.packed);
        Ok(())
    }

    fn segment<'t>(
        &self,
        known: &mut Known<'t>,
        text: &'t str,
    ) -> Result<Arc<Segment>, ModelError> {
        let is_short = text.len() < SHORT_BYTES_MAX;
        if is_short && let Some((_, segment)) = known.short.iter().find(|(of, _)| *of == text) {
            return Ok(Arc::clone(segment));
        }
        let segment = self.segments.get_or_make(known.tenant, text, || self.tokenise(text))?;
        if is_short && known.short.len() < SHORT_MAX {
            known.short.push((text, Arc::clone(&segment)));
        }
        Ok(segment)
    }

    fn tokenise(&self, text: &str) -> Result<Segment, ModelError> {
        if let Some(words) = &self.words
            && let Some(tokens) = words.tokens(&self.inner, text)?
        {
            return Ok(Segment::new(tokens));
        }
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(Segment::new(encoding.get_ids().to_vec()))
    }

    /// Where in `text` the tokens of its segment end. It costs more than the tokens themselves.
    fn ends<'s>(&self, segment: &'s Segment, text: &str) -> Result<&'s [u32], ModelError> {
        if let Some(ends) = segment.ends.get() {
            return Ok(ends);
        }
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let ends = encoding.get_offsets().iter().map(|o| u32::try_from(o.1).unwrap_or(u32::MAX));
        Ok(segment.ends.get_or_init(|| ends.collect()))
    }

    /// The id of a token written as text, for end-of-sequence names in configuration.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The texts of the tokens that stand for themselves in any text.
    pub(crate) fn added(&self) -> Vec<&str> {
        self.added.keys().map(String::as_str).collect()
    }

    /// The id of such a token.
    pub(crate) fn added_id(&self, text: &str) -> Option<u32> {
        self.added.get(text).copied()
    }

    /// A token as text, for log probabilities.
    pub(crate) fn text_of(&self, token: u32) -> String {
        self.decode(&[token])
    }

    pub(super) fn decode(&self, tokens: &[u32]) -> String {
        // An id beyond the vocabulary decodes to nothing; that is the library's own rule.
        self.inner.decode(tokens, false).unwrap_or_default()
    }
}

/// Whether no special token has an end with which another one, or a text that starts with it, could begin: then none
/// reaches over the start of another.
fn starts_apart(specials: &[(String, u32)]) -> bool {
    let overlaps = |text: &str| {
        let ends = text.char_indices().skip(1).map(|(at, _)| &text[at..]);
        let mut ends = ends.filter(|end| specials.iter().any(|(other, _)| begins(other, end)));
        ends.next().is_some()
    };
    !specials.is_empty() && !specials.iter().any(|(text, _)| overlaps(text))
}

/// Whether two texts could begin at one place.
fn begins(one: &str, other: &str) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Whether the text after a special token becomes the same tokens alone as behind it. Some tokenizers mark the
/// start of a text, and would mark the start of each segment.
fn segments_apart(inner: &HfTokenizer, special: &str, id: u32) -> bool {
    let tokens = |text: &str| inner.encode(text, false).map(|e| e.get_ids().to_vec()).ok();
    ["a b", " a", "\na"].iter().all(|probe| {
        let (Some(alone), Some(behind)) = (tokens(probe), tokens(&format!("{special}{probe}")))
        else {
            return false;
        };
        behind.first() == Some(&id) && behind[1..] == alone
    })
}

#[cfg(test)]
pub(super) mod tests;
