//! What the engine knows of one request on its way beside what all engines know: what draws its tokens.

use mainstay_engine_abi::sdk::Request;

use crate::draft::Drafter;
use crate::guided::Guide;
use crate::sampler::Sampler;

pub(super) struct Drawing {
    pub(super) sampler: Sampler,
    pub(super) drafter: Drafter,
    /// Rows in the step that is being built, those of guesses included.
    pub(super) step_rows: usize,
    /// The tokens that it guesses in that step.
    pub(super) draft: Vec<u32>,
}

impl Drawing {
    pub(super) fn new(
        request: &Request,
        guide: Option<Guide>,
        eos_tokens: &[u32],
        random_seed: u64,
        drafter: Drafter,
    ) -> Self {
        let sampled_before = request.sampled_before as usize;
        let sampling = request.sampling.clone();
        let mut sampler =
            Sampler::new(sampling, eos_tokens, &request.tokens, sampled_before, random_seed);
        if let Some(guide) = guide {
            sampler = sampler.with_guide(guide, eos_tokens);
        }
        Self { sampler, drafter, step_rows: 0, draft: Vec::new() }
    }

    /// Takes it out of the step.
    pub(super) fn leave_step(&mut self) {
        self.step_rows = 0;
        self.draft.clear();
    }

    /// Rows of tokens that are known.
    pub(super) fn known_rows(&self) -> usize {
        self.step_rows - self.draft.len()
    }
}

pub(super) type Sequence = mainstay_engine_shell::Sequence<Drawing>;

/// Whether the step that is being built computes its last known token.
pub(super) fn completes(sequence: &Sequence) -> bool {
    sequence.own.step_rows > 0 && sequence.own.known_rows() == sequence.remaining()
}
