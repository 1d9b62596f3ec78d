//! What every engine refuses, whatever else is going on.

use super::{EngineError, Request};

impl Request {
    /// Whether a request can be served at all. Of a context, `spare` tokens are not the prompt's: 1 where the answer's
    /// first token has to fit too, else 0.
    ///
    /// # Errors
    /// What is wrong, in words for the client.
    pub fn check(
        &self,
        context_tokens_max: u32,
        spare: u32,
        vocab: u32,
    ) -> Result<(), EngineError> {
        let tokens = self.tokens.len() as u64;
        if tokens == 0 {
            return Err(EngineError::invalid("the prompt is empty; send at least one token"));
        }
        if tokens + u64::from(spare) > u64::from(context_tokens_max) {
            let all = if spare > 0 { " with the answer" } else { "" };
            let message = format!(
                "the prompt has {tokens} tokens, the context {context_tokens_max}{all}; shorten the prompt"
            );
            return Err(EngineError::invalid(message));
        }
        if self.sampling.tokens_max == 0 {
            return Err(EngineError::invalid("tokens_max is 0; ask for at least one token"));
        }
        // The greatest of all is found faster than the first that is wrong, and callers wait for this.
        let greatest = self.tokens.iter().copied().max().unwrap_or(0);
        if greatest >= vocab {
            let message = format!("token {greatest} is not below the vocabulary's {vocab}");
            return Err(EngineError::invalid(message));
        }
        Ok(())
    }
}
