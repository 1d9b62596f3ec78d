//! What the OUT lane may say: each accepted request begins once, ends once, and says nothing after that.

use std::collections::HashMap;

use mainstay_engine_abi::sdk::{Finish, Output, Request};

/// One request as the engine told it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: Option<Finish>,
    pub(crate) cached_tokens: u32,
    pub(crate) logprobs: Vec<(u32, mainstay_engine_abi::sdk::Logprob)>,
    /// When it ended, counted in ended requests.
    pub(crate) place: usize,
    has_begun: bool,
    prompt_tokens: usize,
    tokens_max: u32,
    ignores_eos: bool,
}

/// All requests of a session.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    requests: HashMap<u64, Told>,
    ended: usize,
}

impl Ledger {
    /// A request that is about to be submitted: an output may come before the call returns.
    pub(crate) fn enter(&mut self, request: &Request) {
        let told = Told {
            prompt_tokens: request.tokens.len(),
            tokens_max: request.sampling.tokens_max,
            ignores_eos: request.sampling.ignore_eos,
            ..Told::default()
        };
        self.requests.insert(request.id, told);
    }

    /// The engine refused it: nothing may ever come for it.
    pub(crate) fn refuse(&mut self, id: u64) -> Result<(), String> {
        match self.requests.remove(&id) {
            Some(told) if told.has_begun => {
                Err(format!("request {id} was refused, yet an output came for it"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn told(&self, id: u64) -> Option<&Told> {
        self.requests.get(&id)
    }

    /// Forgets an ended request, so that its id may be used again.
    pub(crate) fn take(&mut self, id: u64) -> Option<Told> {
        self.requests.remove(&id)
    }

    pub(crate) fn has_ended(&self, id: u64) -> bool {
        self.requests.get(&id).is_some_and(|told| told.finish.is_some())
    }

    /// How many accepted requests have no end yet.
    pub(crate) fn open(&self) -> usize {
        self.requests.values().filter(|told| told.finish.is_none()).count()
    }

    /// Takes one output in.
    pub(crate) fn take_in(&mut self, output: Output, vocab: u32) -> Result<(), String> {
        let id = output.id;
        let ended = self.ended;
        let Some(told) = self.requests.get_mut(&id) else {
            return Err(format!("an output came for request {id}, which is not live (R9)"));
        };
        if told.finish.is_some() {
            let what = if output.finish.is_some() { "a second final output" } else { "an output" };
            return Err(format!("{what} came for request {id} after its final one (R9)"));
        }
        // One that ends before it began has nothing to begin with.
        let never_began = matches!(
            output.finish,
            Some(Finish::Cancelled | Finish::Error { .. }) if output.tokens.is_empty()
        );
        if output.first == told.has_begun && (output.first || !never_began) {
            let wrong = if output.first { "twice" } else { "not on its first output" };
            return Err(format!("request {id} has MSE_OUT_FIRST {wrong}"));
        }
        told.has_begun = true;
        if let Some(token) = output.tokens.iter().find(|token| **token >= vocab) {
            return Err(format!("request {id} got token {token} of a vocabulary of {vocab}"));
        }
        if output.first || output.finish.is_some() {
            told.cached_tokens = output.cached_tokens;
            if output.cached_tokens as usize > told.prompt_tokens {
                let (cached, prompt) = (output.cached_tokens, told.prompt_tokens);
                return Err(format!("request {id}: {cached} cached tokens of {prompt}"));
            }
        }
        let before = told.tokens.len() as u32;
        told.logprobs.extend(output.logprobs.iter().map(|l| (before + l.position, *l)));
        told.tokens.extend(&output.tokens);
        if told.tokens.len() > told.tokens_max as usize {
            let (got, max) = (told.tokens.len(), told.tokens_max);
            return Err(format!("request {id} got {got} tokens, more than its {max}"));
        }
        if let Some(finish) = output.finish {
            let short = told.tokens.len() < told.tokens_max as usize;
            if finish == Finish::Length && short {
                let (got, max) = (told.tokens.len(), told.tokens_max);
                return Err(format!("request {id} ended by length at {got} of {max} tokens"));
            }
            if finish == Finish::Stop && told.ignores_eos {
                return Err(format!("request {id} ignores the end of sequence, yet stopped"));
            }
            told.finish = Some(finish);
            told.place = ended;
            self.ended += 1;
        }
        Ok(())
    }
}
