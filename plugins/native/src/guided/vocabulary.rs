//! The bytes of each token, read from `tokenizer.json`.
//!
//! A form speaks of text, the model of tokens; this is the dictionary between them. Only the two ways
//! of writing tokens that open models use are read: byte-level, where each byte is a printable
//! character, and byte fallback, where words are plain text and stray bytes are `<0x..>`. Added tokens
//! are never text: they are control words (`<|end|>`, `<tool_call>`) that a string inside of a JSON
//! value must not be able to spell, and a grammar names them by number.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;

/// The library marks tokens that are no text with this first byte.
const CONTROL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
/// The mark of a space in vocabularies of plain words, where the decoder names no other.
const SPACE_MARK: char = '\u{2581}';
/// A longer token is damage: the library counts its nodes in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    ByteLevel,
    ByteFallback,
}

/// The vocabulary as the library walks it, or why there is none, in words.
pub(super) fn read(json: &[u8], vocab: usize, eos_tokens: &[u32]) -> Result<TokEnv, String> {
    let file: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let words = words(&file, vocab)?;
    let eos = *eos_tokens.first().ok_or("the model names no token that ends an output")?;
    if !words.iter().any(|word| word.len() == 1) {
        return Err("it has no tokens of single bytes".to_owned());
    }
    let info = TokRxInfo::new(vocab as u32, eos);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(eos_tokens);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

fn words(file: &Value, vocab: usize) -> Result<Vec<Vec<u8>>, String> {
    let spelling = spelling(file).ok_or("its decoder is neither ByteLevel nor ByteFallback")?;
    let mut words = vec![Vec::new(); vocab];
    let mut put = |id: Option<u64>, bytes: Vec<u8>| {
        // Ids beyond the model's rows can never be drawn.
        let place = id.and_then(|id| words.get_mut(usize::try_from(id).ok()?));
        if let Some(place) = place.filter(|_| bytes.len() <= TOKEN_BYTES_MAX) {
            *place = bytes;
        }
    };
    let pairs = file.pointer("/model/vocab").and_then(Value::as_object);
    let pairs = pairs.ok_or("it has no vocabulary of words and numbers")?;
    for (word, id) in pairs {
        put(id.as_u64(), bytes_of(word, spelling));
    }
    for token in file.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let content = token.get("content").and_then(Value::as_str).unwrap_or_default();
        let bytes = std::iter::once(CONTROL).chain(content.bytes()).collect();
        put(token.get("id").and_then(Value::as_u64), bytes);
    }
    Ok(words)
}

/// How the decoder turns words into bytes; it may be one step or a list of them.
fn spelling(file: &Value) -> Option<Spelling> {
    let decoder = file.get("decoder")?;
    let steps = decoder.get("decoders").and_then(Value::as_array);
    let steps = steps.map_or(std::slice::from_ref(decoder), Vec::as_slice);
    steps.iter().find_map(|step| match step.get("type")?.as_str()? {
        "ByteLevel" => Some(Spelling::ByteLevel),
        "ByteFallback" => Some(Spelling::ByteFallback),
        _ => None,
    })
}

/// Nothing for a word that no text can become.
fn bytes_of(word: &str, spelling: Spelling) -> Vec<u8> {
    let bytes = match spelling {
        Spelling::ByteLevel => word.chars().map(byte_of).collect::<Option<Vec<u8>>>(),
        Spelling::ByteFallback => {
            match word.strip_prefix("<0x").and_then(|w| w.strip_suffix('>')) {
                Some(hex) => u8::from_str_radix(hex, 16).ok().map(|byte| vec![byte]),
                None => Some(word.replace(SPACE_MARK, " ").into_bytes()),
            }
        }
    };
    // A word that begins with the mark of control tokens would be taken for one.
    bytes.filter(|bytes| bytes.len() == 1 || bytes.first() != Some(&CONTROL)).unwrap_or_default()
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1 is itself, the
/// others follow in order from U+0100.
fn byte_of(character: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| is_itself(*byte)),
        code => (0..=u8::MAX).filter(|b| !is_itself(*b)).nth((code - 0x100) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_words_are_bytes() {
        assert_eq!(bytes_of("\u{120}a", Spelling::ByteLevel), b" a");
        assert_eq!(bytes_of("\u{10a}", Spelling::ByteLevel), b"\n");
        assert_eq!(bytes_of("\u{c3}\u{a9}", Spelling::ByteLevel), "é".as_bytes());
        assert_eq!(bytes_of("\u{4e2d}", Spelling::ByteLevel), b"", "no byte is spelled so");
        let all: std::collections::BTreeSet<u8> =
            (0..=0x143u32).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn byte_fallback_words_are_text() {
        assert_eq!(bytes_of("\u{2581}the", Spelling::ByteFallback), b" the");
        assert_eq!(bytes_of("<0x0A>", Spelling::ByteFallback), b"\n");
        assert_eq!(bytes_of("<0xZZ>", Spelling::ByteFallback), b"");
    }

    #[test]
    fn a_file_that_says_too_little_is_no_vocabulary() {
        for (json, word) in [
            ("[", "EOF"),
            ("{}", "decoder"),
            (r#"{"decoder": {"type": "WordPiece"}}"#, "decoder"),
            (r#"{"decoder": {"type": "ByteLevel"}}"#, "vocabulary"),
            (
                r#"{"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"ab": 0}}}"#,
                "single bytes",
            ),
        ] {
            let error = read(json.as_bytes(), 4, &[1]).err().expect(json);
            assert!(error.contains(word), "{json}: {error}");
        }
        let good = r#"{"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"a": 0, "b": 99}},
            "added_tokens": [{"id": 1, "content": "<|end|>"}]}"#;
        assert!(read(good.as_bytes(), 4, &[]).is_err(), "no end");
        let env = read(good.as_bytes(), 4, &[1]).unwrap();
        assert_eq!(env.tok_trie().vocab_size(), 4);
        assert!(env.tok_trie().is_special_token(1));
    }
}
