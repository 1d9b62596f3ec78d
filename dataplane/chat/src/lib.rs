//! The three client APIs over one internal representation.
//!
//! Agents speak OpenAI Chat Completions, OpenAI Responses or Anthropic Messages; the rest of the
//! system speaks one [`Conversation`]. This crate is the only place that knows the three wire
//! forms: it parses bodies into a [`Request`], renders the conversation through the model's chat
//! template, cuts generated text into [`OutputEvent`]s, and encodes those as each protocol's
//! stream or body. It has no clock, randomness, async or I/O: identifiers and timestamps come in
//! as arguments, so that the same call always gives the same bytes.
//!
//! Layout, in the order a request passes through:
//! - [`fn@parse`], or [`parse_chat`], [`parse_responses`], [`parse_messages`],
//!   [`parse_count_tokens`] with the usual options: bytes in, [`Request`] or [`ApiError`] out; [`Request::apply_headers`] adds what headers say.
//! - [`template`]: [`ChatTemplate`] turns a conversation into prompt text, with the offsets of
//!   cache breakpoints.
//! - [`output`]: [`OutputParser`] cuts generated text into thinking, text and tool calls, and
//!   watches for stop strings.
//! - [`encode`]: [`StreamEncoder`] for server-sent events, [`encode::complete`] for plain bodies.
//! - [`compaction`] and [`history`]: what the Responses API keeps of conversations.
//! - [`lifecycle`]: [`Lifecycle`] follows sessions from request to request.
//! - [`memory`]: what was made before and may be asked for again, bounded by bytes.
//! - [`error`]: [`ApiError`], with the status and body each protocol expects.
//!
//! All input is hostile: malformed bodies, endless templates and broken model output give typed
//! errors or plain text, never a panic, and every collection has a limit in [`limits`].
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod compaction;
pub mod constraint;
pub mod edits;
pub mod encode;
pub mod error;
pub mod family;
mod hints;
pub mod history;
mod ir;
pub mod lifecycle;
pub mod limits;
pub mod memory;
pub mod output;
mod parse;
pub mod plain_json;
mod request;
mod seal;
mod session;
pub mod template;
mod ttl;
mod uses;

pub use constraint::{Constraint, ConstraintKind, Spelling, constraint};
pub use edits::{AppliedEdit, ContextEdits, Edit, apply_edits};
pub use encode::{Finish, PinNote, ResponseMeta, StreamEncoder, Transcript, Usage};
pub use error::{ApiError, ErrorKind};
pub use family::Family;
pub use hints::Hints;
pub use ir::{
    Block, Breakpoint, CacheControl, Content, Conversation, Grammar, GrammarSyntax, Message,
    OpenLoop, Position, Role, Tool, ToolChoice, ToolKind,
};
pub use lifecycle::{
    Asked, Change, EndCause, Lifecycle, Lived, Outcome, SessionState, SessionView, Standing, Ticket,
};
pub use output::{OutputEvent, OutputOptions, OutputParser, TokenLogprob};
pub use parse::{
    BodyMemory, KnownBodies, KnownTools, Media, ParseOptions, ToolMemory, known_bytes, parse,
    parse_chat, parse_count_tokens, parse_messages, parse_responses,
};
pub use request::{
    Endpoint, OutputFormat, Request, ResponsesEcho, Sampling, Thinking, ThinkingDisplay, Told,
};
pub use seal::{Seal, Sealer};
pub use session::{Harness, RequestKind, SessionIds, SessionSource};
pub use template::{ChatTemplate, RenderOptions, Rendered, TemplateError, Thoughts};
pub use uses::{HintUse, Uses};

#[cfg(test)]
mod tests;
