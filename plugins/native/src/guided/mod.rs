//! Outputs of a given form: which tokens may come next, kept beside the logits.
//!
//! A form (JSON schema, regular expression, grammar) is compiled once, away from the thread that
//! computes, because that can take as long as many steps. Each request then walks its own copy: before
//! a draw everything that the form forbids is struck from the logits, after it the copy moves on by
//! the token drawn. A request that comes from another engine feeds the tokens it has first. Specs come
//! from clients of clients and are hostile: their size, their nesting and what they may cost in work
//! and memory are bounded, and one that cannot be compiled is an error of its request alone.

mod compiler;
mod vocabulary;

use llguidance::Matcher;

pub use compiler::Compiler;

/// A form that cannot be followed any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the form asked for cannot be followed: {0}; simplify the schema or grammar")]
pub struct GuideError(String);

impl GuideError {
    /// Keeps the first line: the library adds its whole state after it.
    fn new(reason: &str) -> Self {
        let line = reason.lines().next().unwrap_or_default();
        Self(line.chars().take(REASON_CHARS_MAX).collect())
    }
}

/// Characters of a reason that are passed on.
const REASON_CHARS_MAX: usize = 300;

/// One request's place in the form of its output.
pub struct Guide {
    matcher: Matcher,
    eos_tokens: Vec<u32>,
}

impl Guide {
    /// Strikes every token that the form does not allow here. Where it is complete, only the end is
    /// left.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GuideError> {
        let allowed =
            self.matcher.compute_mask_or_eos().map_err(|e| GuideError::new(&e.to_string()))?;
        let words = allowed.as_slice();
        let is_allowed = |token: u32| {
            words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
        };
        // The library names one end; a model may have several that mean the same.
        let ends = self.eos_tokens.iter().any(|token| is_allowed(*token));
        let kept: Vec<(u32, f32)> = self
            .eos_tokens
            .iter()
            .filter(|_| ends)
            .filter_map(|token| Some((*token, *logits.get(*token as usize)?)))
            .collect();
        for (index, chunk) in logits.chunks_mut(32).enumerate() {
            strike(chunk, words.get(index).copied().unwrap_or(0));
        }
        for (token, logit) in kept {
            logits[token as usize] = logit;
        }
        Ok(())
    }

    /// Moves on by a token.
    pub fn take(&mut self, token: u32) -> Result<(), GuideError> {
        if self.eos_tokens.contains(&token) {
            // The end of the output; there is nothing after it to be prepared for.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|e| GuideError::new(&e.to_string()))
    }
}

/// Strikes the logits whose bit is not set.
fn strike(logits: &mut [f32], allowed: u32) {
    match allowed {
        u32::MAX => {}
        0 => logits.fill(f32::NEG_INFINITY),
        _ => {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if allowed >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_keeps_its_logit() {
        for allowed in [0, 1, u32::MAX, 0x8000_0001, 0x1234_5678] {
            let mut logits: Vec<f32> = (0..32_u16).map(f32::from).collect();
            strike(&mut logits, allowed);
            for (bit, logit) in logits.iter().enumerate() {
                let kept = allowed >> bit & 1 == 1;
                assert_eq!(*logit, if kept { bit as f32 } else { f32::NEG_INFINITY });
            }
        }
        let mut short = [1.0; 3];
        strike(&mut short, 0b010);
        assert_eq!(short, [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn a_reason_is_one_short_line() {
        let error = GuideError::new(&format!("{}\nthe whole grammar", "long ".repeat(1000)));
        assert_eq!(error.0.len(), REASON_CHARS_MAX);
        assert_eq!(GuideError::new("").0, "");
    }
}
