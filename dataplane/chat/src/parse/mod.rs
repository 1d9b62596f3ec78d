//! The three bodies, read into one [`Request`].
//!
//! Lenient where real clients vary: text as a string or as parts, system text under three names
//! and in any place, unknown members and unknown tool kinds. Strict where guessing would change
//! the meaning: broken JSON, wrong types of core members, numbers out of range. Media, which the
//! models here can't read, become a short text in their place, since one screenshot in a history
//! must not end a session; a server may refuse them instead. Every refusal names the path of the member it is about.

mod chat;
mod common;
mod json;
mod known_bodies;
mod known_tools;
mod messages;
mod prefix;
mod responses;
mod split;
mod tools;
mod turns;

use crate::error::ApiError;
use crate::request::{Endpoint, Request};
use crate::seal::Sealer;
pub(crate) use json::Node;
pub use known_bodies::{BodyMemory, KnownBodies, known_bytes};
pub use known_tools::{KnownTools, ToolMemory};
pub(crate) use responses::add_items;

/// What parsing may be told to do otherwise.
#[derive(Clone, Debug)]
pub struct ParseOptions {
    /// Drop the `x-anthropic-billing-header:` line from the system prompt.
    pub strip_billing_header: bool,
    /// What becomes of images, documents and sounds.
    pub media: Media,
    /// Opens what an earlier answer sealed.
    pub sealer: Option<Sealer>,
    /// Lists of tools that were read before.
    pub tools: Option<ToolMemory>,
    /// Bodies that were read before.
    pub bodies: Option<BodyMemory>,
}

impl Default for ParseOptions {
    fn default() -> Self {
        ParseOptions {
            strip_billing_header: true,
            media: Media::Text,
            sealer: None,
            tools: None,
            bodies: None,
        }
    }
}

/// What becomes of content that a model of text can't read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Media {
    /// A short text takes its place, and the client is told.
    #[default]
    Text,
    /// The request is refused.
    Refuse,
}

impl Media {
    /// All choices.
    pub const ALL: [Media; 2] = [Media::Text, Media::Refuse];

    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Media::Text => "text",
            Media::Refuse => "refuse",
        }
    }

    /// The reverse of [`Media::name`].
    pub fn from_name(name: &str) -> Option<Media> {
        Media::ALL.into_iter().find(|choice| choice.name() == name)
    }
}

/// Reads the body of a request to `endpoint`.
pub fn parse(endpoint: Endpoint, bytes: &[u8], options: ParseOptions) -> Result<Request, ApiError> {
    let build = match endpoint {
        Endpoint::Chat => chat::build,
        Endpoint::Responses => responses::build,
        Endpoint::Messages | Endpoint::CountTokens => messages::build,
    };
    known_bodies::read(bytes, endpoint, options, build)
}

/// Reads the body of `POST /v1/chat/completions`.
pub fn parse_chat(bytes: &[u8]) -> Result<Request, ApiError> {
    parse(Endpoint::Chat, bytes, ParseOptions::default())
}

/// Reads the body of `POST /v1/responses`.
pub fn parse_responses(bytes: &[u8]) -> Result<Request, ApiError> {
    parse(Endpoint::Responses, bytes, ParseOptions::default())
}

/// Reads the body of `POST /v1/messages`.
pub fn parse_messages(bytes: &[u8]) -> Result<Request, ApiError> {
    parse(Endpoint::Messages, bytes, ParseOptions::default())
}

/// Reads the body of `POST /v1/messages/count_tokens`, which needs no `max_tokens`.
pub fn parse_count_tokens(bytes: &[u8]) -> Result<Request, ApiError> {
    parse(Endpoint::CountTokens, bytes, ParseOptions::default())
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
