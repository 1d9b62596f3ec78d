//! The three bodies, read into one [`Request`].
//!
//! Lenient where real clients vary: text as a string or as parts, system text under three names
//! and in any place, unknown members and unknown tool kinds. Strict where guessing would change
//! the meaning: broken JSON, wrong types of core members, numbers out of range, and media that
//! the models here can't read. Every refusal names the path of the member it is about.

mod chat;
mod common;
mod json;
mod messages;
mod responses;

pub use chat::parse_chat;
pub use messages::{ParseOptions, parse_count_tokens, parse_messages, parse_messages_with};
pub use responses::parse_responses;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
