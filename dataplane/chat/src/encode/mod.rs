//! Answers in each protocol's own shape.
//!
//! [`StreamEncoder`] is fed [`OutputEvent`]s and returns server-sent events; [`complete`] gives
//! the body of a request that did not ask for a stream. Order and members are exactly what the
//! vendors' own SDKs and strict schemas demand: harnesses discard a stream without `event:`
//! lines, and loop for ever on a wrong usage. Ids are functions of the caller's request id, and
//! times are arguments, so that the same answer encodes to the same bytes.

mod chat;
mod echo;
mod ids;
mod messages;
mod responses;
mod tools;
mod transcript;

use serde_json::{Value, json};

use crate::error::{ApiError, ErrorKind};
use crate::output::OutputEvent;
use crate::request::{Endpoint, Request};
use crate::seal::Sealer;

pub(crate) use ids::Ids;
pub use messages::count_tokens_body;
pub(crate) use responses::usage_value;
pub use transcript::{Item, Transcript};

/// A server-sent comment: keeps proxies and clients from giving up on a silent stream.
pub const KEEPALIVE: &str = ": keepalive\n\n";

/// What an answer says about itself.
#[derive(Clone)]
pub struct ResponseMeta {
    /// The caller's id of this request; all ids in the answer derive from it.
    pub request_id: String,
    /// The model's name as told to the client.
    pub model: String,
    /// When the answer was begun, in seconds since 1970.
    pub created_unix_s: u64,
    /// The key for thinking's signatures and sealed text, if the caller has one.
    pub sealer: Option<Sealer>,
    /// What became of the pins that the request asked for, where that is not simply that they were made.
    pub pins: Vec<PinNote>,
}

/// What became of a pin that a request asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinNote {
    /// `rejected`, `deferred` or `missing`.
    pub outcome: &'static str,
    /// Why, and what to do about it.
    pub reason: String,
    /// The prefix that it was for.
    pub prefix_tokens: u32,
    /// For how long.
    pub ttl_ms: u64,
}

/// Tells a client what it would else not learn: a member that no vendor's API has, and only when there is
/// something to tell. `used` are the hints that had an effect, where the client asked for them.
fn note_nvext(body: &mut Value, pins: &[PinNote], used: Option<&[&str]>) {
    if pins.is_empty() && used.is_none() {
        return;
    }
    let one = |note: &PinNote| {
        json!({
            "outcome": note.outcome, "reason": note.reason, "prefix_tokens": note.prefix_tokens,
            "ttl_ms": note.ttl_ms,
        })
    };
    let mut nvext = json!({});
    if !pins.is_empty() {
        nvext["pins"] = pins.iter().map(one).collect();
    }
    if let Some(used) = used {
        nvext["used"] = used.into();
    }
    body["nvext"] = nvext;
}

/// Tokens used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All tokens of the prompt, cached ones included.
    pub prompt_tokens: u64,
    /// Those read from the cache.
    pub cached_tokens: u64,
    /// Those newly kept in it at the client's wish.
    pub created_tokens: u64,
    /// Those of them that are kept for an hour or longer.
    pub created_long_tokens: u64,
    /// Tokens generated, thinking included.
    pub completion_tokens: u64,
    /// Those that were thinking.
    pub reasoning_tokens: u64,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// A stop string came up.
    StopString(String),
    /// The token budget or the context was used up.
    Length,
    /// The model waits for results of its calls. [`Finish::Stop`] counts as this one if the
    /// answer holds calls, so callers need not tell them apart.
    ToolUse,
    /// The server gave the request up, usually because the client left.
    Cancelled,
    /// It failed on the way.
    Error(ApiError),
}

impl Finish {
    fn with_calls(&self, any_call: bool) -> Finish {
        match self {
            Finish::Stop if any_call => Finish::ToolUse,
            other => other.clone(),
        }
    }
}

/// Encodes one answer as a stream of server-sent events.
///
/// Call [`start`](StreamEncoder::start) once, then [`event`](StreamEncoder::event) for each
/// piece, then [`finish`](StreamEncoder::finish) once. Each returns whole frames, or nothing.
pub struct StreamEncoder {
    protocol: Protocol,
    transcript: Transcript,
}

enum Protocol {
    Chat(chat::ChatStream),
    Responses(Box<responses::ResponsesStream>),
    Messages(messages::MessagesStream),
}

impl StreamEncoder {
    /// An encoder in the shape that `request` came in by.
    pub fn new(request: &Request, meta: ResponseMeta) -> StreamEncoder {
        StreamEncoder::for_choice(request, meta, 0)
    }

    /// An encoder of one of several answers to a Chat request, counted from 0. The frames of all of them make up one
    /// stream.
    pub fn for_choice(request: &Request, meta: ResponseMeta, choice: u32) -> StreamEncoder {
        let ids = Ids::new(&meta.request_id);
        let protocol = match request.endpoint {
            Endpoint::Chat => Protocol::Chat(chat::ChatStream::new(request, meta, ids, choice)),
            Endpoint::Responses => {
                let stream = responses::ResponsesStream::new(request, meta, ids);
                Protocol::Responses(Box::new(stream))
            }
            Endpoint::Messages | Endpoint::CountTokens => {
                Protocol::Messages(messages::MessagesStream::new(request, meta, ids))
            }
        };
        StreamEncoder { protocol, transcript: Transcript::default() }
    }

    /// The frames before any output. `usage` holds what is known of the prompt by now.
    pub fn start(&mut self, usage: &Usage) -> String {
        let mut out = Frames::default();
        match &mut self.protocol {
            Protocol::Chat(stream) => stream.start(&mut out),
            Protocol::Responses(stream) => stream.start(&mut out),
            Protocol::Messages(stream) => stream.start(usage, &mut out),
        }
        out.text
    }

    /// The frames of one piece of output.
    pub fn event(&mut self, event: &OutputEvent) -> String {
        self.transcript.push(event);
        let mut out = Frames::default();
        match &mut self.protocol {
            Protocol::Chat(stream) => stream.event(event, &mut out),
            Protocol::Responses(stream) => stream.event(event, &mut out),
            Protocol::Messages(stream) => stream.event(event, &mut out),
        }
        out.text
    }

    /// Notes what became of the request's pins, to be told in the last frames.
    pub fn note_pins(&mut self, pins: Vec<PinNote>) {
        match &mut self.protocol {
            Protocol::Chat(stream) => stream.meta.pins = pins,
            Protocol::Responses(stream) => stream.meta.pins = pins,
            Protocol::Messages(stream) => stream.meta.pins = pins,
        }
    }

    /// The last frames of a choice that is not the last to end.
    pub fn finish_choice(&mut self, finish: &Finish) -> String {
        let finish = finish.with_calls(self.transcript.has_calls());
        let mut out = Frames::default();
        if let Protocol::Chat(stream) = &mut self.protocol {
            stream.finish_choice(&finish, &mut out);
        }
        out.text
    }

    /// The last frames. `completed_unix_s` is when the answer ended.
    pub fn finish(&mut self, finish: &Finish, usage: &Usage, completed_unix_s: u64) -> String {
        let finish = finish.with_calls(self.transcript.has_calls());
        let mut out = Frames::default();
        match &mut self.protocol {
            Protocol::Chat(stream) => stream.finish(&finish, usage, &mut out),
            Protocol::Responses(stream) => {
                stream.finish(&finish, usage, completed_unix_s, &mut out);
            }
            Protocol::Messages(stream) => stream.finish(&finish, usage, &mut out),
        }
        out.text
    }

    /// What was said so far.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }
}

/// The body of a request that did not ask for a stream. A [`Finish::Error`] gives the error's
/// body; its status is the caller's to set.
pub fn complete(
    request: &Request,
    meta: &ResponseMeta,
    transcript: &Transcript,
    finish: &Finish,
    usage: &Usage,
    completed_unix_s: u64,
) -> String {
    complete_choices(request, meta, &[(transcript, finish)], usage, completed_unix_s)
}

/// The body of several answers to one Chat request; of the other protocols, of the first.
pub fn complete_choices(
    request: &Request,
    meta: &ResponseMeta,
    choices: &[(&Transcript, &Finish)],
    usage: &Usage,
    completed_unix_s: u64,
) -> String {
    let ids = Ids::new(&meta.request_id);
    let ended: Vec<(&Transcript, Finish)> =
        choices.iter().map(|(t, finish)| (*t, finish.with_calls(t.has_calls()))).collect();
    let failed = ended.iter().find_map(|(_, finish)| match finish {
        Finish::Error(error) => Some(error.clone()),
        _ => None,
    });
    let (transcript, finish) = match (ended.first(), failed) {
        (Some(first), None) => (first.0, first.1.clone()),
        (_, Some(error)) => return error.body(request.endpoint, &meta.request_id),
        (None, None) => {
            let error = ApiError::new(ErrorKind::Internal, "no answer was made");
            return error.body(request.endpoint, &meta.request_id);
        }
    };
    let mut body = match request.endpoint {
        Endpoint::Chat => chat::body(request, meta, &ids, &ended, usage),
        Endpoint::Responses => {
            let answer = responses::Answer { finish: &finish, usage, completed_unix_s };
            responses::body(request, meta, &ids, transcript, &answer)
        }
        Endpoint::Messages | Endpoint::CountTokens => {
            messages::body(request, meta, &ids, transcript, &finish, usage)
        }
    };
    note_nvext(&mut body, &meta.pins, request.used_to_tell().as_deref());
    body.to_string()
}

/// The id under which a Responses answer can be continued.
pub fn response_id(request_id: &str) -> String {
    Ids::new(request_id).response()
}

/// Server-sent events being written.
#[derive(Default)]
struct Frames {
    text: String,
}

impl Frames {
    /// A frame without a name, as Chat Completions has them.
    fn data(&mut self, data: &Value) {
        self.raw(&data.to_string());
    }

    fn raw(&mut self, data: &str) {
        self.text.push_str("data: ");
        self.text.push_str(data);
        self.text.push_str("\n\n");
    }

    /// A frame named after the `type` of its data.
    fn named(&mut self, name: &str, data: &Value) {
        self.text.push_str("event: ");
        self.text.push_str(name);
        self.text.push('\n');
        self.data(data);
    }
}

#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod tests;
