//! What a request is in a server's words, and what its answers mean: pure.

mod llamacpp;
mod sglang;
mod vllm;

use mainstay_engine_abi::sdk::{Code, EngineError, Logprob, Request, Sampling};
use serde_json::Value;

use crate::options::Server;

/// One HTTP request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

/// What a call needs besides the request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manner {
    /// The server's name of the model.
    pub(crate) model: String,
    /// What keeps the namespace's blocks apart.
    pub(crate) salt: String,
    /// Whether the server orders requests by priority.
    pub(crate) priority: bool,
    /// llama.cpp: where it runs, and whether what is there may be used.
    pub(crate) slot: u32,
    pub(crate) reuse: bool,
    /// llama.cpp: the answer at once instead of a stream, for the tokens that its stream leaves out.
    pub(crate) at_once: bool,
}

/// What has come with one event of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Delta {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<Logprob>,
    pub(crate) end: Option<End>,
    /// Of the prompt, where the event says it.
    pub(crate) cached_tokens: Option<u32>,
    /// Nothing comes after this.
    pub(crate) is_last: bool,
    /// Tokens were made that the stream left out.
    pub(crate) has_hole: bool,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// An end of sequence or a stop token, which it may name.
    Stop(Option<u32>),
    Length,
    Failed(EngineError),
}

/// Makes sense of one answer's events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reader {
    /// Tokens that have come so far.
    pub(crate) count: usize,
}

/// An event that is not what it should be.
pub(crate) fn nonsense(server: Server, what: &str) -> EngineError {
    EngineError::unavailable(format!("{} sends {what}", server.name()))
}

/// Whether the server can do what is asked at all.
pub(crate) fn check(server: Server, sampling: &Sampling) -> Result<(), EngineError> {
    if server == Server::LlamaCpp && sampling.tokens_min > 0 {
        let message = "llama.cpp has no least number of tokens; leave min_tokens out";
        return Err(EngineError::new(Code::Unimplemented, message));
    }
    Ok(())
}

/// The request in the server's words.
pub(crate) fn call(server: Server, request: &Request, manner: &Manner) -> Call {
    match server {
        Server::Vllm => vllm::call(request, manner),
        Server::Sglang => sglang::call(request, manner),
        Server::LlamaCpp => llamacpp::call(request, manner),
    }
}

impl Reader {
    /// Reads one event's data, or a whole answer that came at once.
    pub(crate) fn read(&mut self, server: Server, data: &[u8]) -> Result<Delta, EngineError> {
        if data == b"[DONE]" {
            return Ok(Delta { is_last: true, ..Delta::default() });
        }
        let value: Value = serde_json::from_slice(data)
            .map_err(|_| nonsense(server, "an event that is no JSON"))?;
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            let said = crate::http::message_of(data);
            let code = error.get("code").and_then(Value::as_u64).unwrap_or(500);
            let text = format!("{} fails: {said}", server.name());
            let error = if (400..500).contains(&code) && code != 429 {
                EngineError::invalid(text)
            } else {
                EngineError::unavailable(text)
            };
            return Ok(Delta { end: Some(End::Failed(error)), is_last: true, ..Delta::default() });
        }
        let delta = match server {
            Server::Vllm => vllm::read(&value),
            Server::Sglang => sglang::read(&value, self.count),
            Server::LlamaCpp => llamacpp::read(&value, self.count),
        };
        let delta = delta.map_err(|what| nonsense(server, what))?;
        self.count += delta.tokens.len();
        Ok(delta)
    }
}

/// A seed that the servers take: not negative in 63 bits. A request that goes on after a move draws other numbers
/// than it did at its begin, or it would repeat itself.
fn seed(request: &Request, bits: u32) -> Option<u64> {
    let moved = u64::from(request.sampled_before).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let seed = request.sampling.seed?.wrapping_add(moved);
    Some(seed >> 1 >> (63 - bits))
}

fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|token| u32::try_from(token).ok())
}

/// A list of tokens; a member that is missing or null is an empty one.
fn tokens(value: Option<&Value>) -> Result<Vec<u32>, &'static str> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            list.iter().map(|value| token(value).ok_or("a token that is no number")).collect()
        }
        Some(_) => Err("tokens that are no list"),
    }
}

fn count(value: Option<&Value>) -> Option<u32> {
    value.and_then(token)
}

/// The chosen token and the likeliest ones, in the interface's order.
fn ranked(position: usize, chosen: (u32, f32), mut likeliest: Vec<(u32, f32)>) -> Vec<Logprob> {
    let position = u32::try_from(position).unwrap_or(u32::MAX);
    // Rounding may leave a probability a little above 1.
    let logprob = |rank: usize, (token, logprob): (u32, f32)| Logprob {
        token,
        logprob: logprob.min(0.0),
        position,
        rank: rank as u32,
    };
    likeliest.sort_by(|one, other| other.1.total_cmp(&one.1));
    let rest = likeliest.into_iter().enumerate().map(|(rank, pair)| logprob(rank + 1, pair));
    std::iter::once(logprob(0, chosen)).chain(rest).collect()
}

fn float(value: Option<&Value>) -> Option<f32> {
    value.and_then(Value::as_f64).map(|value| value as f32).filter(|value| !value.is_nan())
}

#[cfg(test)]
mod tests;
