//! What a step drew for one request: a token from the row of its last known one, and one more for each guess that was
//! right.

use std::slice::ChunksExactMut;

use mainstay_engine_abi::sdk::{Code, Finish, Logprob, Output};

use super::internal;
use crate::sampler::{Choice, DrawError, Sampler};

/// Tokens in the order of the answer, and what ended the drawing if it was not the rows.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) choices: Vec<Choice>,
    pub(super) error: Option<Trouble>,
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No row was there to draw from.
    NoRow,
    /// The sampler found none.
    Draw(DrawError),
}

impl Default for Drawn {
    fn default() -> Self {
        Self { choices: Vec::new(), error: Some(Trouble::NoRow) }
    }
}

impl Drawn {
    /// Goes through the rows as separate steps would have: on to the next row only if the token drawn from this one is
    /// the one that the next was computed for, and the answer goes on.
    pub(super) fn from(
        sampler: &mut Sampler,
        draft: &[u32],
        rows: ChunksExactMut<'_, f32>,
    ) -> Self {
        let mut choices = Vec::new();
        for (index, row) in rows.enumerate() {
            let choice = match sampler.choose(row) {
                Ok(choice) => choice,
                Err(error) => return Self { choices, error: Some(Trouble::Draw(error)) },
            };
            let goes_on = !choice.ends
                && !sampler.exhausted()
                && draft.get(index).is_some_and(|guess| *guess == choice.token);
            choices.push(choice);
            if !goes_on {
                break;
            }
        }
        let error = choices.is_empty().then_some(Trouble::NoRow);
        Self { choices, error }
    }
}

impl Trouble {
    pub(super) fn into_finish(self) -> Finish {
        match self {
            Self::NoRow => internal("a row was not computed".into()),
            Self::Draw(DrawError::NotFinite(error)) => internal(error.to_string()),
            Self::Draw(DrawError::Guide(error)) => {
                Finish::Error { rc: Code::Invalid.rc(), message: error.to_string() }
            }
        }
    }
}

/// Puts tokens into an output, each with its log-probabilities.
pub(super) fn fill(mut output: Output, choices: Vec<Choice>) -> Output {
    for (position, choice) in choices.into_iter().enumerate() {
        output.tokens.push(choice.token);
        let at = |logprob| Logprob { position: position as u32, ..logprob };
        output.logprobs.extend(choice.logprobs.into_iter().map(at));
    }
    output
}
