//! What the engine knows of one request on its way beside what all engines know: what draws its tokens.

use mainstay_engine_abi::sdk::Request;

use crate::guided::Guide;
use crate::sampler::Sampler;

pub(super) struct Drawing {
    pub(super) sampler: Sampler,
    /// Rows in the step that is being built.
    pub(super) step_rows: usize,
}

impl Drawing {
    pub(super) fn new(
        request: &Request,
        guide: Option<Guide>,
        eos_tokens: &[u32],
        random_seed: u64,
    ) -> Self {
        let sampled_before = request.sampled_before as usize;
        let sampling = request.sampling.clone();
        let mut sampler =
            Sampler::new(sampling, eos_tokens, &request.tokens, sampled_before, random_seed);
        if let Some(guide) = guide {
            sampler = sampler.with_guide(guide, eos_tokens);
        }
        Self { sampler, step_rows: 0 }
    }
}

pub(super) type Sequence = mainstay_engine_shell::Sequence<Drawing>;

/// Whether the step that is being built computes its last known token.
pub(super) fn completes(sequence: &Sequence) -> bool {
    sequence.own.step_rows > 0 && sequence.own.step_rows == sequence.remaining()
}
