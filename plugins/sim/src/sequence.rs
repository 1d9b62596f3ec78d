//! What the engine knows of one request on its way beside what all engines know: the answer, and when it goes on.

use mainstay_engine_abi::sdk::{Request, Sampling};
use mainstay_engine_shell::Sequence;

use crate::answer::Planned;

/// A request's answer.
pub(crate) struct Saying {
    pub(crate) sampling: Sampling,
    /// Tokens of the answer that came with the prompt.
    pub(crate) sampled_before: usize,
    /// Tokens of the answer that were said here.
    pub(crate) said: u32,
    /// Made when it first runs: reading the prompt takes time that `submit` has not.
    pub(crate) planned: Option<Planned>,
    /// When its next token is there.
    pub(crate) due_us: u64,
    /// Tokens that it was expected to compute when it was queued.
    pub(crate) expected: usize,
}

impl Saying {
    pub(crate) fn new(request: &Request, now_us: u64) -> Self {
        Self {
            sampling: request.sampling.clone(),
            sampled_before: (request.sampled_before as usize).min(request.tokens.len()),
            said: 0,
            planned: None,
            due_us: now_us,
            expected: 0,
        }
    }
}

/// The prompt without what was said of the answer.
pub(crate) fn prompt(sequence: &Sequence<Saying>) -> &[u32] {
    let said = sequence.own.sampled_before + sequence.own.said as usize;
    &sequence.tokens[..sequence.tokens.len() - said]
}

/// Whether its prompt is still being computed.
pub(crate) fn prefilling(sequence: &Sequence<Saying>) -> bool {
    sequence.remaining() > 1
}
