//! Text to tokens and back, by the tokenizer of the model that the engine stands in for.

use std::path::Path;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::SimError;
use crate::options::Options;

/// The largest tokenizer.json.
const TOKENIZER_BYTES_MAX: u64 = 64 << 20;
/// The largest config.json.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The most tokens of a prompt's end that are turned into text for the rules.
const END_TOKENS_MAX: usize = 16_384;
/// The most words to choose from at random.
const WORDS_MAX: usize = 4096;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// The bundled model's own files: what gateways are given beside this engine.
const BUNDLED: [(&str, &[u8]); 3] = [
    (TOKENIZER, include_bytes!("../../native/demo-model/tokenizer.json")),
    (CONFIG, include_bytes!("../../native/demo-model/config.json")),
    (GENERATION, include_bytes!("../../native/demo-model/generation_config.json")),
];

/// A tokenizer with what else a model says about its tokens.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    /// One above the greatest token.
    pub(crate) vocab: u32,
    /// Tokens that end an answer; the first is the one that is written. May be empty.
    pub(crate) end_tokens: Vec<u32>,
    /// Tokens that are plain words, for random text; never empty.
    words: Vec<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ModelConfig {
    vocab_size: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(token) => vec![token],
            Self::Many(tokens) => tokens,
        }
    }
}

impl Text {
    /// Loads what the options name.
    pub(crate) fn load(options: &Options) -> Result<Self, SimError> {
        let folder = options.model_dir.as_deref();
        let wrong = |what: &str, reason: String| SimError::File { what: what.to_owned(), reason };
        let json = read(folder, TOKENIZER, TOKENIZER_BYTES_MAX)?.unwrap_or_default();
        let mut tokenizer =
            Tokenizer::from_bytes(&json).map_err(|e| wrong(TOKENIZER, e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| wrong(TOKENIZER, e.to_string()))?;
        let mut end_tokens = Vec::new();
        let mut vocab = 0;
        for name in [GENERATION, CONFIG] {
            let Some(json) = read(folder, name, CONFIG_BYTES_MAX)? else { continue };
            let config: ModelConfig =
                serde_json::from_slice(&json).map_err(|e| wrong(name, e.to_string()))?;
            end_tokens.extend(config.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default());
            vocab = vocab.max(config.vocab_size.unwrap_or(0));
        }
        let known = tokenizer.get_vocab(true);
        let greatest = known.values().copied().max();
        let greatest = greatest.ok_or_else(|| wrong(TOKENIZER, "it has no tokens".to_owned()))?;
        vocab = vocab.max(greatest.saturating_add(1));
        end_tokens.retain(|token| *token < vocab);
        let mut words: Vec<u32> =
            known.iter().filter(|(word, _)| is_word(word)).map(|(_, token)| *token).collect();
        words.sort_unstable();
        words.truncate(WORDS_MAX);
        if words.is_empty() {
            words.push(greatest);
        }
        Ok(Self { tokenizer, vocab, end_tokens, words })
    }

    /// The end of a prompt as text, special tokens in full.
    pub(crate) fn end_of(&self, tokens: &[u32]) -> String {
        let from = tokens.len().saturating_sub(END_TOKENS_MAX);
        // A tokenizer that cannot read its own tokens matches no rule.
        self.tokenizer.decode(&tokens[from..], false).unwrap_or_default()
    }

    /// A text as tokens; special tokens that it spells become such.
    pub(crate) fn tokens_of(&self, text: &str) -> Vec<u32> {
        let encoding = self.tokenizer.encode(text, false);
        encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    /// A word, the same for the same number.
    pub(crate) fn word(&self, number: u64) -> u32 {
        self.words[(number % self.words.len() as u64) as usize]
    }
}

/// Whether a token is a word with its leading space, as the usual tokenizers write that.
fn is_word(token: &str) -> bool {
    token
        .strip_prefix(['Ġ', '▁'])
        .is_some_and(|word| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_lowercase()))
}

/// A model's file; `None` where an optional one is not there.
fn read(folder: Option<&Path>, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SimError> {
    let Some(folder) = folder else {
        return Ok(BUNDLED.iter().find(|file| file.0 == name).map(|file| file.1.to_vec()));
    };
    let path = folder.join(name);
    let unread = |reason: String| SimError::Read { path: path.clone(), reason };
    match std::fs::metadata(&path) {
        Ok(meta) if meta.len() > bytes_max => {
            Err(unread(format!("{} bytes; at most {bytes_max} are read", meta.len())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && name == GENERATION => {
            Ok(None)
        }
        Err(error) => Err(unread(error.to_string())),
        Ok(_) => std::fs::read(&path).map(Some).map_err(|e| unread(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundled() -> Text {
        Text::load(&Options::parse("{}").unwrap()).unwrap()
    }

    #[test]
    fn markup_is_special_tokens_and_text_comes_back() {
        let text = bundled();
        let said = "<think>hm</think>Grüße 42\n<tool_call>{\"name\": \"x\"}</tool_call>";
        let tokens = text.tokens_of(said);
        assert!(tokens.contains(&5) && tokens.contains(&7), "{tokens:?}");
        assert_eq!(text.end_of(&tokens), said);
        assert_eq!((text.vocab, text.end_tokens[0]), (2048, 4));
    }

    #[test]
    fn random_words_are_words_of_the_vocabulary() {
        let text = bundled();
        let many: Vec<u32> = (0..50).map(|n| text.word(n * 7919)).collect();
        let said = text.end_of(&many);
        assert_eq!(said.split_whitespace().count(), 50, "{said}");
    }

    #[test]
    fn only_the_end_of_a_long_prompt_is_read() {
        let text = bundled();
        let mut prompt = text.tokens_of("secret");
        prompt.extend(vec![text.word(1); END_TOKENS_MAX]);
        assert!(!text.end_of(&prompt).contains("secret"));
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let json = serde_json::json!({ "model_dir": folder.path() }).to_string();
        let load = || Text::load(&Options::parse(&json).unwrap()).err().map(|e| e.to_string());
        assert!(load().unwrap().contains(TOKENIZER));
        std::fs::write(folder.path().join(TOKENIZER), "{").unwrap();
        assert!(load().unwrap().contains(TOKENIZER));
        std::fs::write(folder.path().join(TOKENIZER), BUNDLED[0].1).unwrap();
        assert!(load().unwrap().contains(CONFIG));
        std::fs::write(folder.path().join(CONFIG), BUNDLED[1].1).unwrap();
        assert_eq!(load(), None);
    }
}
