//! An answer collected from its events.
//!
//! Bodies that are not streamed need all of it at once, a Responses stream repeats it at its
//! end, and the next turn may start from it.

use super::ids::Ids;
use crate::ir::{Block, Content};
use crate::output::{OutputEvent, TokenLogprob};
use crate::request::Endpoint;

/// One whole piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Reasoning.
    Thinking(String),
    /// Visible text.
    Text {
        /// The text.
        text: String,
        /// Its tokens' log probabilities, if they were given.
        logprobs: Vec<TokenLogprob>,
    },
    /// A call.
    ToolCall {
        /// Counts the calls of the answer from 0.
        index: u32,
        /// The tool's name.
        name: String,
        /// JSON text of an object.
        arguments: String,
    },
}

/// The pieces of an answer in order; neighbours of one kind are joined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    items: Vec<Item>,
}

impl Transcript {
    /// Takes the next event.
    pub fn push(&mut self, event: &OutputEvent) {
        match (event, self.items.last_mut()) {
            (OutputEvent::Thinking(delta), Some(Item::Thinking(text))) => text.push_str(delta),
            (OutputEvent::Thinking(delta), _) => self.items.push(Item::Thinking(delta.clone())),
            (OutputEvent::Text { delta, logprobs: more }, Some(Item::Text { text, logprobs })) => {
                text.push_str(delta);
                logprobs.extend(more.iter().cloned());
            }
            (OutputEvent::Text { delta, logprobs }, _) => {
                self.items.push(Item::Text { text: delta.clone(), logprobs: logprobs.clone() });
            }
            (OutputEvent::ToolCallStart { index, name }, _) => {
                let (index, name) = (*index, name.clone());
                self.items.push(Item::ToolCall { index, name, arguments: String::new() });
            }
            (OutputEvent::ToolCallArguments(delta), Some(Item::ToolCall { arguments, .. })) => {
                arguments.push_str(delta);
            }
            (OutputEvent::ToolCallArguments(_) | OutputEvent::ToolCallEnd, _) => {}
        }
    }

    /// The pieces.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Whether the answer calls a tool.
    pub fn has_calls(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::ToolCall { .. }))
    }

    /// Whether the model has thought aloud.
    pub fn has_thoughts(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Thinking(_)))
    }

    /// All visible text.
    pub fn text(&self) -> String {
        let texts = self.items.iter().filter_map(|item| match item {
            Item::Text { text, .. } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// All reasoning.
    pub fn thinking(&self) -> String {
        let texts = self.items.iter().filter_map(|item| match item {
            Item::Thinking(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// The answer as blocks of an assistant message, with the call ids that the client was told.
    pub fn blocks(&self, endpoint: Endpoint, request_id: &str) -> Vec<Block> {
        let ids = Ids::new(request_id);
        let blocks = self.items.iter().map(|item| match item {
            Item::Thinking(text) => Content::Thinking { text: text.clone(), signature: None },
            Item::Text { text, .. } => Content::Text(text.clone()),
            Item::ToolCall { index, name, arguments } => Content::ToolCall {
                id: if endpoint.is_anthropic() { ids.tool_use(*index) } else { ids.call(*index) },
                name: name.clone(),
                arguments: arguments.clone(),
            },
        });
        blocks.map(Block::from).collect()
    }
}
