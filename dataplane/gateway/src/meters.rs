//! The figures that every request counts, looked up once: a name and its labels cost more to find than to count.

use std::sync::Arc;
use std::time::Duration;

use mainstay_chat::{Endpoint, Usage};
use metrics::{Counter, Histogram, counter, histogram};

use crate::history::Tally;

/// Figures by endpoint, and those of all of them.
pub(crate) struct Meters {
    endpoints: [Meter; 4],
    /// The same once more, for the console.
    pub(crate) tally: Arc<Tally>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
}

/// One endpoint's.
pub(crate) struct Meter {
    pub(crate) requests: Counter,
    pub(crate) ttft_seconds: Histogram,
    output_tokens_per_second: Histogram,
}

impl Meter {
    fn new(endpoint: &'static str) -> Self {
        Self {
            requests: counter!("mainstay_gateway_requests_total", "endpoint" => endpoint),
            ttft_seconds: histogram!("mainstay_gateway_ttft_seconds", "endpoint" => endpoint),
            output_tokens_per_second: histogram!(
                "mainstay_gateway_output_tokens_per_second", "endpoint" => endpoint
            ),
        }
    }
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            endpoints: ["chat", "responses", "messages", "counttokens"].map(Meter::new),
            tally: Arc::default(),
            prompt_tokens: counter!("mainstay_gateway_prompt_tokens_total"),
            cached_tokens: counter!("mainstay_gateway_cached_tokens_total"),
            completion_tokens: counter!("mainstay_gateway_completion_tokens_total"),
        }
    }
}

impl Meters {
    pub(crate) fn of(&self, endpoint: Endpoint) -> &Meter {
        let [chat, responses, messages, count_tokens] = &self.endpoints;
        match endpoint {
            Endpoint::Chat => chat,
            Endpoint::Responses => responses,
            Endpoint::Messages => messages,
            Endpoint::CountTokens => count_tokens,
        }
    }

    /// Counts what an answer took, and how long it did from its request on.
    pub(crate) fn used(&self, endpoint: Endpoint, usage: &Usage, took: Duration) {
        self.tally.used(usage);
        let seconds = took.as_secs_f64();
        // A prompt that is only to be computed says nothing about the pace of answers.
        if usage.completion_tokens > 0 && seconds > 0.0 {
            let pace = usage.completion_tokens as f64 / seconds;
            self.of(endpoint).output_tokens_per_second.record(pace);
        }
        self.prompt_tokens.increment(usage.prompt_tokens);
        self.cached_tokens.increment(usage.cached_tokens);
        self.completion_tokens.increment(usage.completion_tokens);
    }
}
