//! Tokens become text as they come, a character at a time.
//!
//! Where a tokenizer's tokens are bytes, as those of most models are, each adds its own and a text is what they make as
//! UTF-8: a table of them is all that is needed. Elsewhere what a token says may depend on those before it, and a short
//! window is decoded with it and without it.

use std::collections::HashMap;
use std::str;
use std::sync::{Arc, LazyLock};

use tokenizers::{DecoderWrapper, Tokenizer as HfTokenizer};

use super::Tokenizer;

/// Largest id that a table of bytes holds; with more the window is used.
const TABLE_TOKENS_MAX: usize = 1 << 21;

/// The bytes of each token.
pub(super) struct TokenBytes {
    /// Where the bytes of each token end; they begin where those of the one before end.
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

/// The byte that each character of a vocabulary stands for: printable ones for themselves, the others for characters
/// from U+0100 on, in order.
pub(super) static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut stand_in = 0x100_u32..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => Some(char::from(byte)),
        _ => stand_in.next().and_then(char::from_u32),
    };
    let characters: Vec<Option<char>> = (0..=u8::MAX).map(character).collect();
    (0..=u8::MAX).zip(characters).filter_map(|(byte, c)| Some((c?, byte))).collect()
});

impl TokenBytes {
    /// The table of a tokenizer whose tokens are bytes.
    pub(super) fn of(tokenizer: &HfTokenizer) -> Option<Self> {
        let Some(DecoderWrapper::ByteLevel(_)) = tokenizer.get_decoder() else { return None };
        let mut texts: Vec<(u32, String)> =
            tokenizer.get_vocab(false).into_iter().map(|(text, id)| (id, text)).collect();
        // An added token stands before one of the vocabulary that has its id.
        let added = tokenizer.get_added_tokens_decoder();
        texts.retain(|(id, _)| !added.contains_key(id));
        texts.extend(added.into_iter().map(|(id, token)| (id, token.content)));
        texts.sort_unstable();
        texts.dedup_by_key(|(id, _)| *id);
        let many = texts.last().map_or(0, |(id, _)| *id as usize + 1);
        if many > TABLE_TOKENS_MAX {
            return None;
        }
        let mut table = Self { ends: Vec::with_capacity(many), bytes: Vec::new() };
        for (id, text) in &texts {
            // Ids that no token has add nothing.
            table.ends.resize(*id as usize, table.end());
            let start = table.bytes.len();
            for character in text.chars() {
                match BYTE_OF.get(&character) {
                    Some(byte) => table.bytes.push(*byte),
                    None => {
                        table.bytes.truncate(start);
                        table.bytes.extend_from_slice(text.as_bytes());
                        break;
                    }
                }
            }
            table.ends.push(table.end());
        }
        Some(table)
    }

    fn end(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn get(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }
}

/// Turns tokens into text as they come, holding back bytes that are not yet a character.
pub(crate) struct Detokenizer {
    form: Form,
    /// Tokens that end a turn and never show as text.
    hidden: Vec<u32>,
}

enum Form {
    Bytes { table: Arc<TokenBytes>, held: Vec<u8> },
    Window(Window),
}

impl Detokenizer {
    /// `hidden` are the tokens that end a turn and never show as text.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, hidden: Vec<u32>) -> Self {
        let form = match &tokenizer.bytes {
            Some(table) => Form::Bytes { table: Arc::clone(table), held: Vec::new() },
            None => Form::Window(Window::new(tokenizer)),
        };
        Self { form, hidden }
    }

    /// Takes one token; answers with the text that it completes, often some, sometimes none. Special tokens such as
    /// `<tool_call>` are part of the text here: the output parser reads them.
    pub(crate) fn push(&mut self, token: u32) -> String {
        if self.hidden.contains(&token) {
            return String::new();
        }
        match &mut self.form {
            Form::Bytes { table, held } => {
                held.extend_from_slice(table.get(token));
                take_characters(held)
            }
            Form::Window(window) => window.push(token),
        }
    }

    /// What is left at the end: bytes that never became a character show as the replacement character.
    pub(crate) fn finish(&mut self) -> String {
        match &mut self.form {
            Form::Bytes { held, .. } => String::from_utf8_lossy(&std::mem::take(held)).into_owned(),
            Form::Window(window) => window.finish(),
        }
    }
}

/// Takes what is whole off the front; bytes that can be no character become the replacement character.
fn take_characters(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = held.as_slice();
    loop {
        match str::from_utf8(rest) {
            Ok(whole) => {
                text.push_str(whole);
                held.clear();
                return text;
            }
            Err(error) => {
                let (whole, after) = rest.split_at(error.valid_up_to());
                text.push_str(str::from_utf8(whole).unwrap_or_default());
                let Some(wrong) = error.error_len() else {
                    let kept = held.len() - after.len();
                    held.drain(..kept);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &after[wrong..];
            }
        }
    }
}

/// Tokens whose bytes may be held back: a character has four bytes at most, so that more is no character on its
/// way but output that decodes to nothing. Twelve are whole characters of one, two, three or four tokens each.
const HELD_TOKENS_MAX: usize = 12;

/// The last tokens of a text, for a tokenizer whose tokens depend on each other.
struct Window {
    tokenizer: Arc<Tokenizer>,
    tokens: Vec<u32>,
    /// Tokens before this are context only; text up to `read` has been given out.
    prefix: usize,
    read: usize,
}

impl Window {
    fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, tokens: Vec::new(), prefix: 0, read: 0 }
    }

    fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let before = self.tokenizer.decode(&self.tokens[self.prefix..self.read]);
        let now = self.tokenizer.decode(&self.tokens[self.prefix..]);
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

    fn finish(&mut self) -> String {
        let before = self.tokenizer.decode(&self.tokens[self.prefix..self.read]);
        let now = self.tokenizer.decode(&self.tokens[self.prefix..]);
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
    use super::super::tokenizer::tests::demo;
    use super::*;

    /// The text of `tokens`, by the table and by the window.
    fn detokenised(tokens: &[u32]) -> [String; 2] {
        let mut table = Detokenizer::new(demo(), vec![]);
        assert!(matches!(table.form, Form::Bytes { .. }), "the bundled model's tokens are bytes");
        let mut window = Window::new(demo());
        let mut texts = [String::new(), String::new()];
        for &token in tokens {
            texts[0].push_str(&table.push(token));
            texts[1].push_str(&window.push(token));
            assert!(window.tokens.len() < 128, "the window grows");
        }
        texts[0].push_str(&table.finish());
        texts[1].push_str(&window.finish());
        texts
    }

    fn tokens_of(text: &str) -> Vec<u32> {
        demo().encode("t", text, &[]).expect("encodes").tokens
    }

    #[test]
    fn detokenising_one_by_one_gives_the_text_back() {
        let text = "Zürich 🎉 has 3 files: a.rs, b.rs. <tool_call>{\"name\": \"x\"}</tool_call>";
        let tokens = tokens_of(text).repeat(40);
        assert_eq!(detokenised(&tokens), [text.repeat(40), text.repeat(40)]);
    }

    #[test]
    fn replacement_characters_flow_like_any_other() {
        let text = format!("{}🎉 done", "\u{FFFD}".repeat(300));
        assert_eq!(detokenised(&tokens_of(&text)), [text.clone(), text]);
    }

    #[test]
    fn every_token_is_what_the_library_makes_of_it() {
        let tokenizer = demo();
        let most = tokenizer.bytes.as_ref().expect("a table").ends.len() as u32;
        assert!(most > 1_000);
        for token in 0..most + 3 {
            let [table, _] = detokenised(&[token]);
            assert_eq!(table, tokenizer.decode(&[token]), "token {token}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_come_out_as_the_library_writes_them() {
        let tokenizer = demo();
        let table = tokenizer.bytes.as_ref().expect("a table");
        let byte = |byte: u8| {
            (0..table.ends.len() as u32)
                .find(|t| table.get(*t) == [byte])
                .expect("all bytes are tokens")
        };
        for bytes in [
            &b"\xff"[..],
            b"a\xf0\x9f",
            b"\xf0\x9f\x8e\x89",
            b"\xf0\x9f\xf0\x9f\x8e\x89x",
            b"\xe2\x82z\x80",
            b"\xc0\xaf",
        ] {
            let tokens: Vec<u32> = bytes.iter().map(|b| byte(*b)).collect();
            let [ours, _] = detokenised(&tokens);
            assert_eq!(ours, tokenizer.decode(&tokens), "{bytes:x?}");
            assert_eq!(ours, String::from_utf8_lossy(bytes));
        }
    }
}
