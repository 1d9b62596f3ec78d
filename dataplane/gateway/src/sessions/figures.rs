//! What sessions' lives add to the metrics: pauses, growth of prompts, cold starts of subagents.
//!
//! They are taken from how a session stood before a change, under the table's lock, so that two requests of one session
//! do not count a pause twice. Sessions and tenants are no labels: there may be any number of them.

use mainstay_chat::{Change, Lived, Standing, Usage};

/// A request has come: a session that waited for a tool is back.
pub(super) fn resumed(before: Option<Standing>, lived: &[Lived]) {
    let is_back = lived.iter().any(|lived| lived.change == Change::Resumed);
    if let Some(paused_ms) = before.and_then(|standing| standing.paused_ms).filter(|_| is_back) {
        metrics::histogram!("mainstay_gateway_tool_pause_seconds").record(paused_ms as f64 / 1e3);
    }
}

/// What a turn's prompt was to its session.
#[derive(Debug, PartialEq, Eq)]
enum Prompt {
    /// It goes on from the turn before with so many tokens more.
    Grew(u64),
    /// The first one of a subagent.
    FirstOfSubagent,
    /// The first of a session, or one that was cut down.
    Other,
}

fn prompt_of(before: Standing, usage: &Usage) -> Prompt {
    match before.context_tokens {
        0 if before.is_subagent => Prompt::FirstOfSubagent,
        0 => Prompt::Other,
        context => usage.prompt_tokens.checked_sub(context).map_or(Prompt::Other, Prompt::Grew),
    }
}

/// A turn is answered.
pub(super) fn turned(before: Option<Standing>, usage: &Usage) {
    // One whose client left before its first token used nothing that is known.
    let Some(before) = before.filter(|_| usage.prompt_tokens > 0) else { return };
    match prompt_of(before, usage) {
        Prompt::Grew(tokens) => {
            metrics::histogram!("mainstay_gateway_prompt_growth_tokens").record(tokens as f64);
        }
        Prompt::FirstOfSubagent => {
            metrics::counter!("mainstay_gateway_subagent_starts_total").increment(1);
            let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
            for (found, tokens) in [("cached", usage.cached_tokens), ("computed", computed)] {
                metrics::counter!("mainstay_gateway_subagent_first_prompt_tokens_total", "found" => found)
                    .increment(tokens);
            }
        }
        Prompt::Other => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_growth_a_cold_start_or_neither() {
        let usage = Usage { prompt_tokens: 100, ..Usage::default() };
        let standing =
            |context_tokens, is_subagent| Standing { context_tokens, is_subagent, paused_ms: None };
        assert_eq!(prompt_of(standing(60, true), &usage), Prompt::Grew(40));
        assert_eq!(prompt_of(standing(100, false), &usage), Prompt::Grew(0));
        assert_eq!(prompt_of(standing(0, true), &usage), Prompt::FirstOfSubagent);
        assert_eq!(prompt_of(standing(0, false), &usage), Prompt::Other);
        assert_eq!(prompt_of(standing(101, false), &usage), Prompt::Other);
    }
}
