//! Words that were tokenised before, for tokenizers that cut a text into words first and then merge bytes.
//!
//! The library carries the place of every character through all of its steps and makes a text of every token, which
//! costs most of the time and is needed by few. Here words are cut by the same expressions, and only those that are not
//! known are the library's to merge. Whatever is unusual is left to it: other kinds of tokenizers, text with added
//! tokens, text that a normaliser might change, and a tokenizer of which a probe comes out differently. Words are shared
//! by all tenants, as they are in the library (each of its threads has them for itself): they are short and say nothing
//! of whose they are, but how long a word takes may tell that somebody used it. Bounded in number and length; when there
//! is no more room all are forgotten, as common ones are soon known again.

use std::collections::HashMap;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use parking_lot::RwLock;
use tokenizers::pre_tokenizers::split::Split;
use tokenizers::{
    Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    Tokenizer as HfTokenizer,
};

use super::ModelError;
use super::detokenizer::BYTE_OF;

/// How many words are known at most: less than 20 MiB of them.
const WORDS_MAX: usize = 1 << 16;
/// Longer ones are rare and never the same.
const WORD_BYTES_MAX: usize = 48;
/// So many are looked up, or remembered, under the lock that all share before others have their turn.
const AT_ONCE: usize = 256;
/// What is tokenised both ways before anything is trusted to this.
const PROBES: [&str; 5] = [
    "The quick brown fox, isn't it?  It's 12345.67 at 3:04pm!\n\n\tfn main() { let x = a[0] += 1; }\r\n   ",
    "{\"path\": \"/srv/app/mod_test.rs\", \"n\": -1.5e9, \"ok\": true}\n    - item_one\n    - item-two (2)\n",
    "  leading and trailing   ",
    "Zürich, naïve café, größer — “quotes” … ¿qué?\u{a0}\u{2003}x",
    "漢字かな交じり文 한국어 العربية हिन्दी 🙂👍🏽 e\u{301} \u{1}\u{7f}\0",
];

/// The character that stands for each byte in a vocabulary.
static CHARACTERS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut all = ['\0'; 256];
    BYTE_OF.iter().for_each(|(character, byte)| all[usize::from(*byte)] = *character);
    all
});

/// The words of one tokenizer.
pub(super) struct Words {
    splits: Vec<Split>,
    /// Text in which one of these stands is left to the library.
    added: AhoCorasick,
    /// Whether other text may be changed before it is cut.
    ascii_only: bool,
    known: RwLock<Known>,
}

struct Known {
    /// Where the tokens of each word are.
    places: HashMap<Box<str>, (u32, u32), foldhash::fast::RandomState>,
    tokens: Vec<u32>,
    words_max: usize,
}

impl Known {
    fn of(words_max: usize) -> Self {
        Self { places: HashMap::default(), tokens: Vec::new(), words_max }
    }

    fn find(&self, word: &str) -> Option<&[u32]> {
        let (start, end) = *self.places.get(word)?;
        self.tokens.get(start as usize..end as usize)
    }

    /// Remembers a word. What had to be forgotten for it comes back, to be dropped where nobody waits.
    fn insert(&mut self, word: &str, tokens: &[u32]) -> Option<Self> {
        // Two may have made the same word at once.
        let is_long = word.len() > WORD_BYTES_MAX || tokens.len() > WORD_BYTES_MAX;
        if is_long || self.places.contains_key(word) {
            return None;
        }
        let fresh = Self::of(self.words_max);
        let forgotten =
            (self.places.len() >= self.words_max).then(|| std::mem::replace(self, fresh));
        let place = |at: usize| u32::try_from(at).expect("there are few words, and they are short");
        let start = place(self.tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.places.insert(word.into(), (start, place(self.tokens.len())));
        forgotten
    }
}

impl Words {
    /// The words of a tokenizer that works with them, and as expected.
    pub(super) fn of(inner: &HfTokenizer) -> Option<Self> {
        let ascii_only = match inner.get_normalizer() {
            None => false,
            // Composes characters beyond ASCII only.
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let Some(PreTokenizerWrapper::Sequence(steps)) = inner.get_pre_tokenizer() else {
            return None;
        };
        let [splits @ .., PreTokenizerWrapper::ByteLevel(bytes)] = steps.as_ref() else {
            return None;
        };
        let ModelWrapper::BPE(model) = inner.get_model() else { return None };
        let chance = model.dropout.is_some_and(|dropout| dropout > 0.0);
        if bytes.add_prefix_space || bytes.use_regex || chance || splits.is_empty() {
            return None;
        }
        let split = |step: &PreTokenizerWrapper| match step {
            PreTokenizerWrapper::Split(split) => {
                let plain = !split.invert && split.behavior == SplitDelimiterBehavior::Isolated;
                plain.then(|| split.clone())
            }
            _ => None,
        };
        let splits = splits.iter().map(split).collect::<Option<Vec<_>>>()?;
        let added = inner.get_added_tokens_decoder().into_values().map(|token| token.content);
        let added = AhoCorasick::new(added.filter(|content| !content.is_empty())).ok()?;
        let known = RwLock::new(Known::of(WORDS_MAX));
        let words = Self { splits, added, ascii_only, known };
        let same = |probe: &&str| match (words.tokens(inner, probe), inner.encode(*probe, false)) {
            (Ok(None), _) => true,
            (Ok(Some(tokens)), Ok(encoding)) => tokens == encoding.get_ids(),
            _ => false,
        };
        PROBES.iter().all(same).then_some(words)
    }

    /// The tokens of a text, or `None` if that is left to the library.
    pub(super) fn tokens(
        &self,
        inner: &HfTokenizer,
        text: &str,
    ) -> Result<Option<Vec<u32>>, ModelError> {
        if (self.ascii_only && !text.is_ascii()) || self.added.is_match(text) {
            return Ok(None);
        }
        let words = self.cut(text);
        let mut out = Vec::with_capacity(words.len() + words.len() / 2);
        let mut rest = words.as_slice();
        let mut new: Vec<(&str, Vec<u32>)> = Vec::new();
        while !rest.is_empty() {
            let stretch = rest.len().min(AT_ONCE);
            let found = self.known_of(&rest[..stretch], &mut out);
            rest = &rest[found..];
            if found == stretch {
                continue;
            }
            let Some((word, behind)) = rest.split_first() else { break };
            let tokens = merged(inner, word)?;
            out.extend_from_slice(&tokens);
            new.push((word, tokens));
            rest = behind;
            if new.len() >= AT_ONCE {
                self.remember(&mut new);
            }
        }
        self.remember(&mut new);
        Ok(Some(out))
    }

    /// Appends the tokens of the leading words that are known, and says how many.
    fn known_of(&self, words: &[&str], out: &mut Vec<u32>) -> usize {
        let known = self.known.read();
        let found = words.iter().map_while(|word| known.find(word));
        found.map(|tokens| out.extend_from_slice(tokens)).count()
    }

    fn remember(&self, new: &mut Vec<(&str, Vec<u32>)>) {
        if new.is_empty() {
            return;
        }
        let mut known = self.known.write();
        let forgotten: Vec<Option<Known>> =
            new.drain(..).map(|(word, tokens)| known.insert(word, &tokens)).collect();
        drop(known);
        drop(forgotten);
    }

    /// The words of a text: what an expression finds, and what lies between that, is cut by the next one.
    fn cut<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut words = vec![text];
        for split in &self.splits {
            let mut smaller = Vec::with_capacity(words.len().max(text.len() / 4));
            for word in words {
                let mut at = 0;
                for (start, end) in split.regex.find_iter(word) {
                    smaller.extend([&word[at..start], &word[start..end]]);
                    at = end;
                }
                smaller.push(&word[at..]);
            }
            smaller.retain(|word| !word.is_empty());
            words = smaller;
        }
        words
    }
}

/// What the library makes of a word.
fn merged(inner: &HfTokenizer, word: &str) -> Result<Vec<u32>, ModelError> {
    let characters: String = word.bytes().map(|byte| CHARACTERS[usize::from(byte)]).collect();
    let tokens = inner.get_model().tokenize(&characters);
    let tokens = tokens.map_err(|e| ModelError::Tokenizer(e.to_string()))?;
    Ok(tokens.into_iter().map(|token| token.id).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DEMO: &[u8] = include_bytes!("../../../../plugins/native/demo-model/tokenizer.json");

    fn demo(change: impl FnOnce(&mut Value)) -> HfTokenizer {
        let mut file: Value = serde_json::from_slice(DEMO).unwrap();
        change(&mut file);
        HfTokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap()
    }

    /// Texts of words, spaces, digits and other scripts, mixed by a fixed rule.
    fn texts() -> impl Iterator<Item = String> {
        const PARTS: [&str; 24] = [
            "the", " agent", "  ", "\n", "\n\n    ", "fn", "_x", "12", "3456", ".", ", ", "é", "ß",
            "漢字", "🙂", "\t", "isn't", " \u{a0}", "{\"", "\": ", "\r\n", "e\u{301}", "\0", "Zz",
        ];
        let mut state = 7_u64;
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        (0..400).map(move |n| (0..n % 40).map(|_| PARTS[next() % PARTS.len()]).collect())
    }

    fn library(inner: &HfTokenizer, text: &str) -> Vec<u32> {
        inner.encode(text, false).unwrap().get_ids().to_vec()
    }

    #[test]
    fn words_make_the_tokens_that_the_library_makes() {
        let inner = demo(|_| {});
        let words = Words::of(&inner).expect("the bundled tokenizer works with words");
        for _ in 0..2 {
            for text in texts() {
                let tokens = words.tokens(&inner, &text).unwrap();
                assert_eq!(tokens, Some(library(&inner, &text)), "{text:?}");
            }
        }
        assert!(words.known.read().places.len() > 50);
    }

    #[test]
    fn text_is_cut_by_one_expression_after_the_other() {
        let several = demo(|file| {
            let split = |pattern: &str| {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                       "invert": false})
            };
            file["pre_tokenizer"]["pretokenizers"] = json!([
                split("\\p{N}{1,3}"),
                split("[\u{4e00}-\u{9fa5}]+"),
                split("'s|'t| ?\\p{L}+|\\s+(?!\\S)|\\s+"),
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]);
        });
        let words = Words::of(&several).expect("as many models are");
        for text in texts() {
            let tokens = words.tokens(&several, &text).unwrap();
            assert_eq!(tokens, Some(library(&several, &text)), "{text:?}");
        }
    }

    #[test]
    fn what_is_unusual_is_left_to_the_library() {
        let inner = demo(|_| {});
        let words = Words::of(&inner).unwrap();
        assert_eq!(words.tokens(&inner, "a word <|end|>").unwrap(), None, "an added token");
        let composing = demo(|file| file["normalizer"] = json!({"type": "NFC"}));
        let words = Words::of(&composing).expect("as many models are");
        assert_eq!(words.tokens(&composing, "e\u{301}").unwrap(), None);
        assert_eq!(words.tokens(&composing, "plain").unwrap(), Some(library(&composing, "plain")));
        let others: [fn(&mut Value); 5] = [
            |file| file["normalizer"] = json!({"type": "Lowercase"}),
            |file| file["pre_tokenizer"] = Value::Null,
            |file| file["model"]["dropout"] = json!(0.5),
            |file| file["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("MergedWithNext"),
            |file| file["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true),
        ];
        for (n, change) in others.into_iter().enumerate() {
            assert!(Words::of(&demo(change)).is_none(), "{n}");
        }
    }

    #[test]
    fn no_more_words_are_known_than_there_is_room_for() {
        let inner = demo(|_| {});
        let words = Words::of(&inner).unwrap();
        *words.known.write() = Known::of(10);
        for n in 0..200 {
            let text = format!("word{n} {} {}", "x".repeat(n), n * n);
            assert_eq!(words.tokens(&inner, &text).unwrap(), Some(library(&inner, &text)));
            let known = words.known.read();
            assert!(known.places.len() <= 10 && known.tokens.len() <= 10 * WORD_BYTES_MAX);
        }
    }
}
