//! The conversation as typed blocks: the one form between three wire forms and one prompt.
//!
//! Blocks keep their kind all the way to the template, because retention, routing and the prompt
//! all depend on what a piece of text is (system prompt, tool result, thinking). Two requests
//! that mean the same give equal conversations whichever API carried them, so equal prompts and
//! shared cache. There is no image block: a short text stands in an image's place, or the body is
//! refused while parsing, as the server is set.

use std::sync::Arc;

use crate::limits::BREAKPOINTS_MAX;

/// Everything that shapes a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The system prompt: whatever system or developer text came before the first turn.
    pub system: Vec<Block>,
    /// The turns, in order. Shared with whoever keeps what a conversation has been so far.
    pub messages: Vec<Arc<Message>>,
    /// What the client offered, also what the model never sees; see [`Conversation::callable`]. Shared between the turns
    /// of a conversation, which bring the same list each time.
    pub tools: Arc<Vec<Tool>>,
    /// Whether and which tool must be called.
    pub tool_choice: ToolChoice,
    /// Whether several calls in one answer are welcome.
    pub parallel_tool_calls: bool,
}

impl Default for Conversation {
    fn default() -> Self {
        Conversation {
            system: Vec::new(),
            messages: Vec::new(),
            tools: Arc::default(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
        }
    }
}

impl Conversation {
    /// Appends blocks said by `role`.
    ///
    /// Adjacent assistant messages and adjacent tool results become one message: the Responses
    /// API sends each of their blocks as an item of its own, the other two send them together.
    /// Users and systems keep their boundaries, which all three APIs express.
    pub fn push(&mut self, role: Role, mut blocks: Vec<Block>) {
        if blocks.is_empty() && role != Role::User {
            return;
        }
        let joins = matches!(role, Role::Assistant | Role::Tool);
        match self.messages.last_mut() {
            Some(last) if joins && last.role == role => {
                Arc::make_mut(last).blocks.append(&mut blocks);
            }
            _ => self.messages.push(Arc::new(Message { role, blocks })),
        }
    }

    /// Appends system text: to the system prompt before the first turn, in place after it.
    pub fn push_system(&mut self, mut blocks: Vec<Block>) {
        if self.messages.is_empty() {
            self.system.append(&mut blocks);
        } else {
            self.push(Role::System, blocks);
        }
    }

    /// The tools that the prompt shows and the model may call: neither hosted nor deferred ones.
    pub fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.tools.iter().filter(|tool| tool.is_callable())
    }

    /// What the model has said since the user spoke last: between calls and their results that is a loop, and most
    /// templates show the thoughts of this one only.
    pub fn open_loop(&self) -> OpenLoop {
        let since = self.messages.iter().rev().take_while(|message| message.role != Role::User);
        let mut open = OpenLoop::default();
        for message in since.filter(|message| message.role == Role::Assistant) {
            open.begun = true;
            let is_thought = |block: &Block| matches!(block.content, Content::Thinking { .. });
            open.thought |= message.blocks.iter().any(is_thought);
        }
        open
    }

    /// The cache breakpoints, in prompt order (tools, system, messages).
    ///
    /// At most [`BREAKPOINTS_MAX`]: past it the last ones win, since harnesses move their
    /// breakpoint forward each turn.
    pub fn breakpoints(&self) -> Vec<Breakpoint> {
        let tools = self.tools.iter().enumerate().filter_map(|(index, tool)| {
            tool.cache_control.map(|cache| (Position::Tool { index }, cache))
        });
        let system = self.system.iter().enumerate().filter_map(|(index, block)| {
            block.cache_control.map(|cache| (Position::System { index }, cache))
        });
        let messages = self.messages.iter().enumerate().flat_map(|(message, m)| {
            m.blocks.iter().enumerate().filter_map(move |(block, b)| {
                b.cache_control.map(|cache| (Position::Message { message, block }, cache))
            })
        });
        let all: Vec<Breakpoint> = tools
            .chain(system)
            .chain(messages)
            .map(|(position, cache)| Breakpoint { position, ttl_ms: cache.ttl_ms })
            .collect();
        all[all.len().saturating_sub(BREAKPOINTS_MAX)..].to_vec()
    }
}

/// See [`Conversation::open_loop`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenLoop {
    /// Whether it has said anything.
    pub begun: bool,
    /// Whether some of that were thoughts.
    pub thought: bool,
}

/// One turn's part: who spoke, and what.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who spoke.
    pub role: Role,
    /// What was said, in order. May be empty for a user who sent an empty string.
    pub blocks: Vec<Block>,
}

/// Who a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions in the middle of a conversation; those at its start are in
    /// [`Conversation::system`].
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// Results of tool calls.
    Tool,
}

/// One typed piece of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The piece itself.
    pub content: Content,
    /// A cache breakpoint after this block.
    pub cache_control: Option<CacheControl>,
}

impl Block {
    /// A text block without a breakpoint.
    pub fn text(text: impl Into<String>) -> Block {
        Block::from(Content::Text(text.into()))
    }
}

impl From<Content> for Block {
    fn from(content: Content) -> Block {
        Block { content, cache_control: None }
    }
}

/// What a block holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Visible text.
    Text(String),
    /// The model's reasoning.
    Thinking {
        /// The reasoning itself.
        text: String,
        /// The opaque mark it was sent out with; carried, never checked.
        signature: Option<String>,
    },
    /// A call the model made.
    ToolCall {
        /// Names the call; its result refers to it.
        id: String,
        /// The tool's name.
        name: String,
        /// JSON text, compact if it was a valid object, else as the client sent it.
        arguments: String,
    },
    /// What a call returned.
    ToolResult {
        /// The call this answers.
        call_id: String,
        /// Text blocks.
        blocks: Vec<Block>,
        /// Whether the tool failed.
        is_error: bool,
    },
}

/// A wish to keep the prompt up to here cached for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheControl {
    /// How long, within [`TTL_MS_MIN`](crate::limits::TTL_MS_MIN) and
    /// [`TTL_MS_MAX`](crate::limits::TTL_MS_MAX).
    pub ttl_ms: u64,
}

/// A [`CacheControl`] and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakpoint {
    /// What the prefix reaches up to and includes.
    pub position: Position,
    /// How long to keep it.
    pub ttl_ms: u64,
}

/// A place in a conversation after which a breakpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// After a tool's definition.
    Tool {
        /// Index into [`Conversation::tools`].
        index: usize,
    },
    /// After a block of the system prompt.
    System {
        /// Index into [`Conversation::system`].
        index: usize,
    },
    /// After a block of a message.
    Message {
        /// Index into [`Conversation::messages`].
        message: usize,
        /// Index into that message's blocks.
        block: usize,
    },
}

/// A tool that a client offered.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// What the model calls it by, unique within a request.
    pub name: String,
    /// What the client calls it by, where that is another name.
    pub client_name: Option<String>,
    /// What it does; empty if the client gave none.
    pub description: String,
    /// JSON schema of its arguments; always an object.
    pub schema: serde_json::Value,
    /// The Responses namespace it was listed under, to be named again when it is called.
    pub namespace: Option<String>,
    /// What a call of it looks like.
    pub kind: ToolKind,
    /// Offered for later: it stays out of the prompt until the conversation refers to it.
    pub deferred: bool,
    /// A cache breakpoint after this tool.
    pub cache_control: Option<CacheControl>,
}

impl Tool {
    /// Roughly what it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let grammar = match &self.kind {
            ToolKind::Custom { grammar: Some(grammar) } => grammar.text.len(),
            _ => 0,
        };
        let names = [&self.client_name, &self.namespace];
        let names: usize = names.into_iter().flatten().map(String::len).sum();
        value_bytes(&self.schema) + self.name.len() + self.description.len() + names + grammar
    }

    /// Whether the prompt shows it.
    pub fn is_callable(&self) -> bool {
        !self.deferred && self.kind != ToolKind::Hosted
    }

    /// The name that the client knows.
    pub fn told_name(&self) -> &str {
        self.client_name.as_deref().unwrap_or(&self.name)
    }
}

/// Roughly what blocks take in memory.
pub(crate) fn weight(blocks: &[Block]) -> usize {
    /// A block without its text, with the room that a list of them has for more.
    const BLOCK_BYTES: usize = 2 * size_of::<Block>() + 48;
    let one = |block: &Block| match &block.content {
        Content::Text(text) => text.len(),
        Content::Thinking { text, signature } => {
            text.len() + signature.as_ref().map_or(0, String::len)
        }
        Content::ToolCall { id, name, arguments } => id.len() + name.len() + arguments.len() + 64,
        Content::ToolResult { call_id, blocks, .. } => call_id.len() + 32 + weight(blocks),
    };
    blocks.iter().map(|block| BLOCK_BYTES + one(block)).sum()
}

/// Roughly what a value takes in memory.
pub(crate) fn value_bytes(of: &serde_json::Value) -> usize {
    /// A value without its text, and its place among its neighbours.
    const VALUE_BYTES: usize = 100;
    VALUE_BYTES
        + match of {
            serde_json::Value::String(text) => text.len(),
            serde_json::Value::Array(items) => items.iter().map(value_bytes).sum(),
            serde_json::Value::Object(members) => {
                members.iter().map(|(name, member)| name.len() + value_bytes(member)).sum()
            }
            _ => 0,
        }
}

/// What a call of a tool looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolKind {
    /// JSON arguments by the tool's schema.
    Function {
        /// Whether the client relies on arguments that obey the schema.
        strict: bool,
    },
    /// Free text; the model writes it as the one argument `input`.
    Custom {
        /// The form that the text must have, if the client gave one.
        grammar: Option<Grammar>,
    },
    /// Run by somebody else's servers: repeated to the client, never shown to the model.
    Hosted,
}

/// A language that a text must belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grammar {
    /// How it is written down.
    pub syntax: GrammarSyntax,
    /// The grammar itself.
    pub text: String,
}

/// How a [`Grammar`] is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrammarSyntax {
    /// Lark's notation.
    Lark,
    /// One regular expression for the whole text.
    Regex,
}

/// Whether and which tool must be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No call.
    None,
    /// Some call.
    Required,
    /// This one.
    Named(String),
    /// One of these, or no call unless one is required.
    Allowed {
        /// Names of tools.
        names: Vec<String>,
        /// Whether one must be called.
        required: bool,
    },
}
