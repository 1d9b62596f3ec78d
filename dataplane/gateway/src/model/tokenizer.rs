//! A model's tokenizer, with a memory of the segments that it has seen.
//!
//! Special tokens cut a prompt into segments whose tokens do not depend on each other: the tokenizer itself
//! splits there before anything else. A turn of a conversation repeats all segments of the turn before, so a
//! bounded cache from segment to tokens leaves only the new text to be tokenised. Where a tokenizer normalises
//! across special tokens, or has none, the whole prompt is one segment and costs its full length.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokenizers::Tokenizer as HfTokenizer;

use super::ModelError;

/// How many bytes of segment text the cache remembers before it starts afresh.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// Shorter segments are tokenised faster than they are looked up.
const CACHED_SEGMENT_BYTES_MIN: usize = 32;

/// Tokens of one segment, with the byte in the segment at which each ends.
#[derive(Debug, Default)]
struct Segment {
    tokens: Vec<u32>,
    ends: Vec<u32>,
}

#[derive(Default)]
struct Cache {
    segments: HashMap<Box<str>, Arc<Segment>>,
    bytes: usize,
}

/// A prompt as tokens.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// The tokens.
    pub(crate) tokens: Vec<u32>,
    /// For each asked byte offset of the text, how many tokens lie wholly before it.
    pub(crate) tokens_before: Vec<usize>,
}

/// A tokenizer ready for prompts and for output.
pub(crate) struct Tokenizer {
    inner: HfTokenizer,
    /// Special tokens as they stand in text, with their ids, longest first.
    specials: Vec<(String, u32)>,
    /// All tokens that were added to the vocabulary, those too that count as text.
    added: HashMap<String, u32>,
    /// First bytes of the special tokens, to skip quickly over text without any.
    starts: [bool; 256],
    cache: Mutex<Cache>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(crate) fn new(json: &[u8]) -> Result<Self, ModelError> {
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
        let mut starts = [false; 256];
        for (text, _) in &specials {
            starts[usize::from(text.as_bytes()[0])] = true;
        }
        let added = inner.get_added_tokens_decoder().into_iter().map(|(id, t)| (t.content, id));
        let added = added.collect();
        Ok(Self { inner, specials, added, starts, cache: Mutex::new(Cache::default()) })
    }

    /// Tokenises a rendered prompt. `offsets` are byte offsets, in rising order, to be told in tokens.
    pub(crate) fn encode(&self, text: &str, offsets: &[usize]) -> Result<Encoded, ModelError> {
        let mut out = Encoded::default();
        let mut pending = offsets.iter().copied().peekable();
        let mut at = 0;
        while at < text.len() {
            let (special_at, special) = self.next_special(text, at);
            if special_at > at {
                let segment = self.segment(&text[at..special_at])?;
                for (token, end) in segment.tokens.iter().zip(&segment.ends) {
                    while pending.next_if(|&o| o < at + *end as usize).is_some() {
                        out.tokens_before.push(out.tokens.len());
                    }
                    out.tokens.push(*token);
                }
            }
            at = special_at;
            if let Some((content, id)) = special {
                at += content.len();
                while pending.next_if(|&o| o < at).is_some() {
                    out.tokens_before.push(out.tokens.len());
                }
                out.tokens.push(*id);
            }
        }
        out.tokens_before.extend(pending.map(|_| out.tokens.len()));
        Ok(out)
    }

    fn next_special(&self, text: &str, from: usize) -> (usize, Option<&(String, u32)>) {
        let bytes = text.as_bytes();
        for at in from..bytes.len() {
            if self.starts[usize::from(bytes[at])] {
                let found =
                    self.specials.iter().find(|(s, _)| bytes[at..].starts_with(s.as_bytes()));
                if found.is_some() {
                    return (at, found);
                }
            }
        }
        (bytes.len(), None)
    }

    fn segment(&self, text: &str) -> Result<Arc<Segment>, ModelError> {
        let cached = text.len() >= CACHED_SEGMENT_BYTES_MIN;
        if cached && let Some(hit) = self.cache.lock().segments.get(text) {
            return Ok(Arc::clone(hit));
        }
        let encoding =
            self.inner.encode(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let ends = encoding.get_offsets().iter().map(|o| u32::try_from(o.1).unwrap_or(u32::MAX));
        let segment =
            Arc::new(Segment { tokens: encoding.get_ids().to_vec(), ends: ends.collect() });
        if cached {
            let mut cache = self.cache.lock();
            if cache.bytes + text.len() > CACHE_BYTES_MAX {
                *cache = Cache::default();
            }
            cache.bytes += text.len();
            cache.segments.insert(text.into(), Arc::clone(&segment));
        }
        Ok(segment)
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
        self.decode(&[token], false)
    }

    fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        // An id beyond the vocabulary decodes to nothing; that is the library's own rule.
        self.inner.decode(tokens, skip_special).unwrap_or_default()
    }
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

/// Tokens whose bytes may be held back: a character has four bytes at most, so that more is no character on its
/// way but output that decodes to nothing. Twelve are whole characters of one, two, three or four tokens each.
const HELD_TOKENS_MAX: usize = 12;

/// Turns tokens into text as they come, holding back bytes that are not yet a character.
pub(crate) struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    tokens: Vec<u32>,
    /// Tokens before this are context only; text up to `read` has been given out.
    prefix: usize,
    read: usize,
    hidden: Vec<u32>,
}

impl Detokenizer {
    /// `hidden` are the tokens that end a turn and never show as text.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, hidden: Vec<u32>) -> Self {
        Self { tokenizer, tokens: Vec::new(), prefix: 0, read: 0, hidden }
    }

    /// Takes one token; answers with the text that it completes, often some, sometimes none.
    pub(crate) fn push(&mut self, token: u32) -> String {
        if self.hidden.contains(&token) {
            return String::new();
        }
        self.tokens.push(token);
        // Special tokens such as <tool_call> are part of the text here: the output parser reads them.
        let before = self.tokenizer.decode(&self.tokens[self.prefix..self.read], false);
        let now = self.tokenizer.decode(&self.tokens[self.prefix..], false);
        let undecided = now.len() <= before.len() || now.ends_with('\u{FFFD}');
        if undecided && self.tokens.len() - self.read < HELD_TOKENS_MAX {
            return String::new();
        }
        let text = now.get(before.len()..).unwrap_or_default().to_owned();
        // After a forced cut the window must not start inside a character.
        self.prefix = if undecided { self.tokens.len() } else { self.read };
        self.read = self.tokens.len();
        self.trim();
        text
    }

    /// What is left at the end: bytes that never became a character show as the replacement character.
    pub(crate) fn finish(&mut self) -> String {
        let before = self.tokenizer.decode(&self.tokens[self.prefix..self.read], false);
        let now = self.tokenizer.decode(&self.tokens[self.prefix..], false);
        self.read = self.tokens.len();
        now.get(before.len()..).unwrap_or_default().to_owned()
    }

    /// Forgets what is behind the window, so that a long answer costs no more than its last tokens.
    fn trim(&mut self) {
        if self.prefix > 64 {
            self.tokens.drain(..self.prefix);
            self.read -= self.prefix;
            self.prefix = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Arc<Tokenizer> {
        let json = include_bytes!("../../../../plugins/native/demo-model/tokenizer.json");
        Arc::new(Tokenizer::new(json).expect("the bundled tokenizer loads"))
    }

    const PROMPT: &str = "<|system|>You are a helpful agent.<|end|><|user|>What is the weather in Zürich, and in Oslo today?<|end|><|assistant|>";

    #[test]
    fn segments_tokenise_as_the_whole_does() {
        let tokenizer = demo();
        let whole = tokenizer.inner.encode(PROMPT, false).expect("encodes");
        for _ in 0..2 {
            let encoded = tokenizer.encode(PROMPT, &[]).expect("encodes");
            assert_eq!(encoded.tokens, whole.get_ids());
        }
        assert!(tokenizer.encode("", &[0]).expect("encodes").tokens.is_empty());
    }

    #[test]
    fn offsets_count_the_tokens_that_lie_before_them() {
        let tokenizer = demo();
        let user = PROMPT.find("<|user|>").expect("there");
        let encoded = tokenizer.encode(PROMPT, &[0, user, PROMPT.len()]).expect("encodes");
        let system = tokenizer.encode(&PROMPT[..user], &[]).expect("encodes");
        assert_eq!(encoded.tokens_before, vec![0, system.tokens.len(), encoded.tokens.len()]);
    }

    #[test]
    fn detokenising_one_by_one_gives_the_text_back() {
        let tokenizer = demo();
        let text = "Zürich 🎉 has 3 files: a.rs, b.rs. <tool_call>{\"name\": \"x\"}</tool_call>";
        let tokens = tokenizer.encode(text, &[]).expect("encodes").tokens;
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), vec![]);
        let mut out = String::new();
        for _ in 0..40 {
            for &token in &tokens {
                out.push_str(&detokenizer.push(token));
            }
        }
        out.push_str(&detokenizer.finish());
        assert_eq!(out, text.repeat(40));
    }

    #[test]
    fn replacement_characters_flow_like_any_other() {
        let tokenizer = demo();
        let text = format!("{}🎉 done", "\u{FFFD}".repeat(300));
        let tokens = tokenizer.encode(&text, &[]).expect("encodes").tokens;
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), vec![]);
        let mut out = String::new();
        for &token in &tokens {
            out.push_str(&detokenizer.push(token));
            assert!(detokenizer.tokens.len() < 128, "the window grows");
        }
        out.push_str(&detokenizer.finish());
        assert_eq!(out.matches('\u{FFFD}').count(), 300);
        assert!(out.ends_with("🎉 done"), "{out}");
    }

    #[test]
    fn a_broken_file_is_a_typed_error() {
        assert!(Tokenizer::new(b"{}").is_err());
        assert!(Tokenizer::new(b"\xff").is_err());
    }
}
