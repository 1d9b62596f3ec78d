//! A parsed request: the conversation and everything around it.
//!
//! One struct for all endpoints, so that the gateway has one path. What only one protocol needs
//! back in its answers (the members a Responses object echoes) is kept aside in
//! [`ResponsesEcho`]. Nothing here was trusted on the way in: numbers are in range, collections
//! within their limits, and hints that made no sense are in [`Request::warnings`].

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::edits::ContextEdits;
use crate::family::{Family, ToolTypes};
use crate::hints::Hints;
use crate::ir::{Block, Conversation, Grammar, Role, ToolChoice};
use crate::limits::{TOLD_MAX, TOOLS_MAX, WARNINGS_MAX};
use crate::output::OutputOptions;
use crate::parse::ParseOptions;
use crate::session::{BodyIdentity, SessionIds};
use crate::uses::Uses;

/// The API a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/responses`.
    Responses,
    /// `POST /v1/messages`.
    Messages,
    /// `POST /v1/messages/count_tokens`.
    CountTokens,
}

impl Endpoint {
    /// Whether errors and bodies have Anthropic's shapes.
    pub fn is_anthropic(self) -> bool {
        matches!(self, Endpoint::Messages | Endpoint::CountTokens)
    }
}

/// A request in the one internal form.
#[derive(Clone, Debug)]
pub struct Request {
    /// The API it came in by, hence the shape of the answer.
    pub endpoint: Endpoint,
    /// The model asked for.
    pub model: String,
    /// Whether the answer is a stream.
    pub stream: bool,
    /// Whether a Chat stream ends with a usage chunk; the other streams always tell usage.
    pub include_usage: bool,
    /// What was said so far.
    pub conversation: Conversation,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What the client knows about cache, urgency and length.
    pub hints: Hints,
    /// Whose request this is, as far as body and headers tell.
    pub session: SessionIds,
    /// Whether the model should reason first.
    pub thinking: Thinking,
    /// How much of the reasoning the client gets to see.
    pub thinking_display: ThinkingDisplay,
    /// Most tokens of reasoning, if bounded.
    pub thinking_tokens_max: Option<u32>,
    /// Answers asked for; Chat alone has more than one.
    pub n: u32,
    /// The form of the answer.
    pub output_format: OutputFormat,
    /// Whether the last message is the start of the answer, to be continued (Anthropic prefill).
    pub continue_final: bool,
    /// Edits of the context, if `context_management` came with the request.
    pub context: Option<ContextEdits>,
    /// What a Responses object repeats of its request; present for that endpoint only.
    pub responses: Option<Box<ResponsesEcho>>,
    /// What was ignored or clipped, in words; meant for a response header or log.
    pub warnings: Vec<String>,
    /// What the client ought to know of how its request was read, for the header `mainstay-hints`.
    pub told: Vec<Told>,
    /// The hints that came with it, and which of them change anything.
    pub uses: Uses,
    /// Deferred tools that the conversation refers to, until they are loaded.
    pub(crate) referenced_tools: Vec<String>,
    pub(crate) options: ParseOptions,
    pub(crate) body_identity: BodyIdentity,
}

impl Request {
    pub(crate) fn new(endpoint: Endpoint, model: String) -> Request {
        Request {
            endpoint,
            model,
            stream: false,
            include_usage: false,
            conversation: Conversation::default(),
            sampling: Sampling::default(),
            hints: Hints::default(),
            session: SessionIds::default(),
            thinking: Thinking::Auto,
            thinking_display: ThinkingDisplay::Full,
            thinking_tokens_max: None,
            n: 1,
            output_format: OutputFormat::Text,
            continue_final: false,
            context: None,
            responses: None,
            warnings: Vec::new(),
            told: Vec::new(),
            uses: Uses::default(),
            referenced_tools: Vec::new(),
            options: ParseOptions::default(),
            body_identity: BodyIdentity::default(),
        }
    }

    /// Adds session identity and priority from HTTP headers.
    ///
    /// Explicit `x-dynamo-*` headers win over the body's `nvext`, which wins over the headers a
    /// harness sends by itself, which win over `metadata.user_id` and `prompt_cache_key`. Header
    /// names are matched without regard to case.
    pub fn apply_headers<'h>(&mut self, headers: impl IntoIterator<Item = (&'h str, &'h str)>) {
        crate::session::apply_headers(self, headers);
    }

    /// How the generated text is to be cut. `thinking_open` comes from
    /// [`Rendered`](crate::Rendered), `family` from the model's template.
    pub fn output_options(&self, thinking_open: bool, family: Family) -> OutputOptions {
        let tools_wanted = self.conversation.tool_choice != ToolChoice::None;
        OutputOptions {
            family,
            types: ToolTypes::of(Arc::clone(&self.conversation.tools)),
            parse_thinking: true,
            thinking_open,
            parse_tools: tools_wanted && self.conversation.callable().next().is_some(),
            stop: self.sampling.stop.clone(),
        }
    }

    /// Puts a stored conversation (of `previous_response_id`) before this request's own input.
    ///
    /// `instructions` are per request and stay first; system text of the new input follows the
    /// old turns, so that the stored prefix stays a prefix.
    pub fn continue_from(&mut self, previous: &Conversation) {
        let own = std::mem::take(&mut self.conversation);
        let own_instructions = usize::from(self.has_instructions()).min(own.system.len());
        let mut system = own.system;
        let late = system.split_off(own_instructions);
        system.extend(previous.system.iter().cloned());
        let mut joined = Conversation {
            system,
            messages: previous.messages.clone(),
            tools: own.tools,
            tool_choice: own.tool_choice,
            parallel_tool_calls: own.parallel_tool_calls,
        };
        joined.push_system(late);
        for message in own.messages {
            let message = Arc::unwrap_or_clone(message);
            joined.push(message.role, message.blocks);
        }
        self.conversation = joined;
    }

    /// The conversation to store under a response's id: all of it but the instructions, with the
    /// answer at its end.
    pub fn conversation_to_store(&self, answer: Vec<Block>) -> Conversation {
        let mut stored = self.conversation.clone();
        if self.has_instructions() && !stored.system.is_empty() {
            stored.system.remove(0);
        }
        // The next request brings its own tools.
        stored.tools = Default::default();
        stored.push(Role::Assistant, answer);
        stored
    }

    fn has_instructions(&self) -> bool {
        self.responses.as_ref().is_some_and(|echo| echo.instructions.is_some())
    }

    /// Notes `what` for the client, or one more of it.
    pub fn tell(&mut self, what: &'static str) {
        self.tell_times(what, 1);
    }

    /// Notes `what` for the client, or so many more of it.
    pub(crate) fn tell_times(&mut self, what: &'static str, count: u32) {
        if let Some(told) = self.told.iter_mut().find(|told| told.what == what) {
            told.count = told.count.saturating_add(count);
        } else if self.told.len() < TOLD_MAX {
            self.told.push(Told { what, count });
        }
    }

    /// Notes that the conversation refers to a tool.
    pub(crate) fn refer_to(&mut self, name: &str) {
        let known = &mut self.referenced_tools;
        if known.len() < TOOLS_MAX && !known.iter().any(|k| k == name) {
            known.push(name.to_owned());
        }
    }

    /// What the client ought to know, as a list of words; `None` where there is nothing to tell.
    pub fn told_header(&self) -> Option<String> {
        let one = |told: &Told| format!("{};count={}", told.what, told.count);
        let all: Vec<String> = self.told.iter().map(one).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// The value of the header `mainstay-hints`: what the client ought to know, the hints that were used, also
    /// where there are none, and those that change nothing.
    pub fn hints_header(&self) -> String {
        let mut parts: Vec<String> = self.told_header().into_iter().collect();
        parts.push(format!("used=({})", self.hints_used().join(" ")));
        let unused: Vec<&str> = self.uses.ineffective().filter(|name| !self.names(name)).collect();
        if !unused.is_empty() {
            parts.push(format!("unused=({})", unused.join(" ")));
        }
        parts.join(", ")
    }

    /// The hints that change what happens to the request; among them what names its session.
    pub fn hints_used(&self) -> Vec<&'static str> {
        let named_by = self.session.named_by.filter(|_| self.session.session.is_some());
        let others = self.uses.effective().filter(|name| named_by != Some(*name));
        named_by.into_iter().chain(others).collect()
    }

    /// Whether that hint names the session.
    fn names(&self, hint: &str) -> bool {
        let named_by = self.session.named_by.filter(|_| self.session.session.is_some());
        // A prefix's name is told by several names of its own.
        let same = |by: &str| by == hint || by == "prefix_id" && hint.ends_with(".prefix_id");
        named_by.is_some_and(same)
    }

    /// The hints used, where the client asked for them beside the answer.
    pub(crate) fn used_to_tell(&self) -> Option<Vec<&'static str>> {
        let wanted = self.hints.extra_fields.iter().any(|field| field == "used");
        wanted.then(|| self.hints_used())
    }

    pub(crate) fn warn(&mut self, warning: impl Into<String>) {
        push_warning(&mut self.warnings, warning.into());
    }
}

/// Something about its request that a client ought to know, and how often it was so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// A word of letters and hyphens.
    pub what: &'static str,
    /// How often.
    pub count: u32,
}

/// Appends a warning unless there are too many or it was said already.
pub(crate) fn push_warning(warnings: &mut Vec<String>, warning: String) {
    if warnings.len() < WARNINGS_MAX && !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

/// How tokens are chosen. `None` leaves the choice to the model's own defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; up to 2.
    pub temperature: Option<f64>,
    /// Nucleus mass, above 0 and up to 1.
    pub top_p: Option<f64>,
    /// Only the k likeliest tokens.
    pub top_k: Option<u32>,
    /// Only tokens at least this likely relative to the likeliest, 0 to 1.
    pub min_p: Option<f64>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Above 0, up to 10; 1 is none.
    pub repetition_penalty: Option<f64>,
    /// Makes sampling repeatable.
    pub seed: Option<i64>,
    /// Most tokens of the answer, thinking included.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Log probabilities asked for, with this many alternatives a token.
    pub logprobs: Option<u32>,
    /// Go on past the end-of-turn token (for load generators).
    pub ignore_eos: bool,
}

/// Whether the model should reason before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// Asked for.
    Enabled,
    /// Asked not to.
    Disabled,
    /// Left to the model's template.
    #[default]
    Auto,
}

/// How much of the reasoning the client gets to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThinkingDisplay {
    /// All of it.
    #[default]
    Full,
    /// A block without its text, whose opaque signature brings the text back next turn.
    Omitted,
    /// Nothing: what an Anthropic client that never asked for thinking expects.
    Hidden,
}

/// The form the answer should have; [`constraint`](fn@crate::constraint) makes of it what an engine enforces.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum OutputFormat {
    /// Free text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema {
        /// The schema's name, if given.
        name: String,
        /// The schema itself.
        schema: Value,
        /// Whether the client relies on it.
        strict: bool,
    },
    /// A text of this language.
    Grammar(Grammar),
}

/// What a Responses object repeats of its request.
#[derive(Clone, Debug, Default)]
pub struct ResponsesEcho {
    /// The `instructions`; also the first block of the system prompt.
    pub instructions: Option<String>,
    /// The response this one continues; its conversation is the gateway's to find.
    pub previous_response_id: Option<String>,
    /// Whether the client wants the response kept.
    pub store: bool,
    /// Whether the answer is made behind the client's back, to be got by its id.
    pub background: bool,
    /// `metadata` as sent: text members only.
    pub metadata: Map<String, Value>,
    /// Whether reasoning items carry `encrypted_content`.
    pub include_encrypted_reasoning: bool,
    /// Whether the text's tokens carry their log probabilities.
    pub include_logprobs: bool,
    /// `tools` as sent. Shared between the turns of a conversation, which bring the same list each time.
    pub tools: Arc<Vec<Value>>,
    /// `tool_choice` as sent.
    pub tool_choice: Option<Value>,
    /// `text.format` as sent, if it is one that is known.
    pub format: Option<Value>,
    /// The words of `reasoning`: `effort`, `summary` and others.
    pub reasoning: Map<String, Value>,
    /// `text.verbosity`, one of the known words.
    pub verbosity: Option<String>,
    /// `max_tool_calls`.
    pub max_tool_calls: Option<u32>,
    /// `truncation` is `auto` rather than `disabled`.
    pub truncation_auto: bool,
    /// `user`.
    pub user: Option<String>,
    /// `safety_identifier`.
    pub safety_identifier: Option<String>,
    /// The input as items, as they were sent, where the response is to be stored.
    pub input: Vec<Value>,
}
