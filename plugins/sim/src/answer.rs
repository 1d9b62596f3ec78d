//! The tokens of one answer, in order: the script's, then seeded words, then the end.
//!
//! A token depends on its place in the answer, the prompt and the seed alone. So an answer that
//! another worker began goes on where it stopped, and one that is preempted is not said anew.

use mainstay_engine_abi::sdk::{Logprob, Sampling};

use crate::script::Script;
use crate::text::Text;

/// What an alternative to the chosen token is given; a script has no doubts.
const UNLIKELY: f32 = -30.0;

/// The token that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) token: u32,
    /// Whether it ends the answer.
    pub(crate) ends: bool,
}

/// An answer as it will be said.
pub(crate) struct Planned {
    scripted: Vec<u32>,
    /// How long it is without its end token.
    length: usize,
    seed: u64,
}

impl Planned {
    /// Asks the script about a prompt.
    pub(crate) fn new(script: &Script, text: &Text, prompt: &[u32], sampling: &Sampling) -> Self {
        let answer = script.answer(|| text.end_of(prompt));
        let scripted = text.tokens_of(&answer.text);
        let mut seed = sampling.seed.unwrap_or(0);
        for token in prompt {
            seed = mix(seed ^ u64::from(*token));
        }
        Self { length: scripted.len() + answer.words as usize, scripted, seed }
    }

    /// The token at a place; `said` counts what this engine has said of it, before this one.
    pub(crate) fn at(&self, place: usize, said: u32, sampling: &Sampling, text: &Text) -> Next {
        let may_end = said >= sampling.tokens_min;
        let over = place >= self.length && may_end && !sampling.ignore_eos;
        let end = text.end_tokens.first().or(sampling.stop_tokens.first());
        let token = match (self.scripted.get(place), end) {
            (Some(token), _) => *token,
            (None, Some(end)) if over => *end,
            (None, _) => text.word(mix(self.seed.wrapping_add(place as u64))),
        };
        let is_end = !sampling.ignore_eos && text.end_tokens.contains(&token);
        let stops = may_end && (is_end || sampling.stop_tokens.contains(&token));
        Next { token, ends: over || stops }
    }
}

/// Log probabilities of a token of a script: it was certain, so its alternatives are words that
/// could hardly have come.
pub(crate) fn logprobs(token: u32, position: u32, asked: u32, text: &Text) -> Vec<Logprob> {
    let Some(alternatives) = asked.checked_sub(1) else { return Vec::new() };
    let mut all = vec![Logprob { token, logprob: 0.0, position, rank: 0 }];
    let others = (0..).map(|n| text.word(n)).filter(|other| *other != token);
    let likeliest = std::iter::once((token, 0.0)).chain(others.map(|other| (other, UNLIKELY)));
    for (rank, (token, logprob)) in (1..=alternatives).zip(likeliest) {
        all.push(Logprob { token, logprob, position, rank });
    }
    all
}

/// The finaliser of SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
