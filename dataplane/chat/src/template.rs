//! Chat templates: a conversation in, prompt text out.
//!
//! Models bring their template as Jinja source written against Hugging Face's renderer. This
//! renders the same source to the same text: same variables, same whitespace rules, same JSON
//! spacing. What differs is trust: a template runs with bounded steps and output, and without a
//! date, because a prompt that changes at midnight loses its cache.
//!
//! Templates disagree about what they accept. Some refuse a system role, some ignore tool
//! results, some insist that roles alternate. Each template is probed once when it is loaded, and
//! conversations are reshaped to what it takes; since the probe is a property of the template,
//! the same conversation always renders to the same prefix.

mod breakpoints;
mod check;
mod hf;
mod parts;
mod probe;
mod pyjson;
mod said;
mod scope;
mod split;
mod text;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind as JinjaErrorKind, Value as JinjaValue};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use crate::error::{ApiError, ErrorKind};
use crate::ir::{Conversation, Position};
use crate::limits::{PROMPT_BYTES_MAX, TEMPLATE_BYTES_MAX, TEMPLATE_STEPS_MAX};
use crate::request::{Request, Thinking};
use hf::Shape;
use parts::Parts;

pub use parts::PartCounts;
pub use text::Text;

const TEMPLATE_NAME: &str = "chat_template";
/// What most prompts fit into without growing on the way.
const PROMPT_BYTES_USUAL: usize = 128 << 10;
/// What may be remembered of messages, unless somebody says.
const MEMORY_BYTES: usize = 160 << 20;

/// Why a template could not be loaded or rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The source is not a template.
    #[error("the chat template can't be parsed: {0}")]
    Syntax(String),
    /// The template renders nothing, not even one user message.
    #[error("the chat template can't render a single user message: {0}")]
    Unusable(String),
    /// The template itself refused the conversation.
    #[error("the model's chat template refused the conversation: {0}")]
    Refused(String),
    /// Rendering failed.
    #[error("the chat template failed: {0}")]
    Failed(String),
    /// The template ran for too long.
    #[error("the chat template took more than {TEMPLATE_STEPS_MAX} steps")]
    TooManySteps,
    /// The prompt became too long.
    #[error("the prompt is over the limit of {PROMPT_BYTES_MAX} bytes")]
    TooLong,
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> ApiError {
        let kind = match error {
            TemplateError::Refused(_) => ErrorKind::InvalidRequest,
            TemplateError::TooLong => ErrorKind::TooLarge,
            _ => ErrorKind::Internal,
        };
        ApiError::new(kind, error.to_string())
    }
}

/// How one prompt is to be rendered.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions {
    /// Sets `enable_thinking`, or leaves it undefined.
    pub thinking: Thinking,
    /// Ends the prompt with the opening of an assistant turn.
    pub add_generation_prompt: bool,
    /// Leaves the last assistant message open, to be continued.
    pub continue_final: bool,
    /// Whose prompt it is: what is remembered of one asker is not found for another, not even by how long it takes.
    pub asker: u64,
}

impl Default for RenderOptions {
    fn default() -> Self {
        RenderOptions {
            thinking: Thinking::Auto,
            add_generation_prompt: true,
            continue_final: false,
            asker: 0,
        }
    }
}

impl RenderOptions {
    /// The options under which a request is answered.
    pub fn of(request: &Request) -> RenderOptions {
        RenderOptions {
            thinking: request.thinking,
            add_generation_prompt: !request.continue_final,
            continue_final: request.continue_final,
            asker: 0,
        }
    }
}

/// A rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The prompt.
    pub text: Text,
    /// Whether the prompt ends inside an opened `<think>`, so that output begins with thinking.
    pub thinking_open: bool,
    /// The conversation's breakpoints in prompt order.
    pub breakpoints: Vec<RenderedBreakpoint>,
}

/// How far a breakpoint's prefix reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenderedBreakpoint {
    /// Where it stands in the conversation.
    pub position: Position,
    /// How long to keep it.
    pub ttl_ms: u64,
    /// `text[..end_bytes]` is the prefix; a character boundary.
    pub end_bytes: usize,
}

/// What becomes of a model's thoughts in the prompts that come after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thoughts {
    /// They stay: what was computed of them and after them is found again.
    #[default]
    Stay,
    /// They stay until the user speaks again. The prompt is another one then from the first of them on.
    FallAfterLoop,
    /// They are in no later prompt.
    Fall,
}

/// A model's chat template, ready to render. Shareable between threads.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    shape: Shape,
    known: breakpoints::Known,
    tools: hf::KnownTools,
    messages: said::KnownMessages,
    /// The template cut into parts, if it can be.
    parts: Option<Parts>,
    thoughts: Thoughts,
}

impl ChatTemplate {
    /// Loads a template from its Jinja source and the model's special tokens.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            let problem = format!("longer than {TEMPLATE_BYTES_MAX} bytes");
            return Err(TemplateError::Syntax(problem));
        }
        let source = normalised(source);
        let mut environment = environment(source.clone())?;
        let parts = Parts::new(&mut environment, &source);
        let mut template = ChatTemplate {
            environment,
            bos_token: bos.to_owned(),
            eos_token: eos.to_owned(),
            shape: Shape::FULL,
            known: breakpoints::Known::default(),
            tools: hf::KnownTools::default(),
            messages: said::KnownMessages::new(MEMORY_BYTES),
            parts: None,
            thoughts: Thoughts::default(),
        };
        template.shape = probe::probe(&template)?;
        template.thoughts = probe::thoughts(&template);
        template.parts = parts;
        if !check::parts_agree(&template) {
            template.parts = None;
        }
        template.known = breakpoints::Known::of(&template);
        Ok(template)
    }

    /// With room for so many bytes of messages that came before, and what was made of them.
    #[must_use]
    pub fn with_memory(mut self, bytes_max: usize) -> ChatTemplate {
        self.messages = said::KnownMessages::new(bytes_max);
        self
    }

    /// Renders a prompt without looking for breakpoints.
    pub fn render(
        &self,
        conversation: &Conversation,
        options: RenderOptions,
    ) -> Result<String, TemplateError> {
        self.text(conversation, options).map(Text::into_string)
    }

    fn text(
        &self,
        conversation: &Conversation,
        options: RenderOptions,
    ) -> Result<Text, TemplateError> {
        let text = self.render_shaped(conversation, options, self.shape, 1)?;
        Ok(if options.continue_final {
            hf::cut_after_final(text.into_string(), conversation).into()
        } else {
            text
        })
    }

    /// Renders what was cut from a conversation that is there still. What is kept for others is found, but messages
    /// that only these two hold are not taken for ones that come again.
    fn render_cut(
        &self,
        conversation: &Conversation,
        options: RenderOptions,
    ) -> Result<Text, TemplateError> {
        self.render_shaped(conversation, options, self.shape, 2)
    }

    /// Renders a prompt and finds how far each cache breakpoint's prefix reaches in it.
    ///
    /// Costs one more rendering per breakpoint that is neither in a head that was seen before nor at the very end.
    pub fn render_with_breakpoints(
        &self,
        conversation: &Conversation,
        options: RenderOptions,
    ) -> Result<Rendered, TemplateError> {
        let text = self.text(conversation, options)?;
        let breakpoints = breakpoints::locate(self, conversation, options, &text);
        let thinking_open = text.opens_thinking();
        Ok(Rendered { text, thinking_open, breakpoints })
    }

    /// Where system prompt and tools end in a rendering of `conversation`: what other sessions begin with too. `None`
    /// where there are none, or the template does not tell.
    pub fn head_end(
        &self,
        conversation: &Conversation,
        options: RenderOptions,
        rendered: &Rendered,
    ) -> Option<usize> {
        breakpoints::head_end(self, conversation, options, rendered)
    }

    /// What becomes of thoughts in later prompts.
    pub fn thoughts(&self) -> Thoughts {
        self.thoughts
    }

    /// How prompts were rendered so far: in parts, of which most were known, or as a whole.
    pub fn part_counts(&self) -> PartCounts {
        self.parts.as_ref().map(Parts::counts).unwrap_or_default()
    }

    fn render_shaped(
        &self,
        conversation: &Conversation,
        options: RenderOptions,
        shape: Shape,
        holders: usize,
    ) -> Result<Text, TemplateError> {
        let context = self.context(conversation, options, shape, holders);
        let again = comes_again(conversation, holders);
        let Some(parts) = self.parts.as_ref().filter(|_| again) else {
            return self.whole(context).map(Text::from);
        };
        let Some(texts) = parts.render(&self.environment, &context, options.asker) else {
            return self.whole(context).map(Text::from);
        };
        let text = Text::from(texts);
        if parts.is_sample() {
            let whole = self.whole(context);
            let same = whole.as_ref().is_ok_and(|whole| **whole == *text);
            parts.compared(same);
            if !same {
                return whole.map(Text::from);
            }
        }
        Ok(text)
    }

    /// What a template is told.
    fn context(
        &self,
        conversation: &Conversation,
        options: RenderOptions,
        shape: Shape,
        holders: usize,
    ) -> Vec<(&'static str, JinjaValue)> {
        let asked = said::Asked { asker: options.asker, holders };
        let messages = self.messages.values(conversation, shape, asked);
        let mut context = vec![
            ("messages", JinjaValue::from(messages)),
            ("tools", self.tools.value(conversation, holders)),
            ("add_generation_prompt", JinjaValue::from(options.add_generation_prompt)),
            ("bos_token", JinjaValue::from(&self.bos_token)),
            ("eos_token", JinjaValue::from(&self.eos_token)),
        ];
        if options.thinking != Thinking::Auto {
            let enabled = options.thinking == Thinking::Enabled;
            context.push(("enable_thinking", JinjaValue::from(enabled)));
        }
        context
    }

    fn whole(&self, context: Vec<(&'static str, JinjaValue)>) -> Result<String, TemplateError> {
        self.run(JinjaValue::from_object(hf::Dict::new(context)))
    }

    fn run(&self, context: JinjaValue) -> Result<String, TemplateError> {
        guarded(|| self.run_unguarded(context))
            .unwrap_or_else(|| Err(TemplateError::Failed("the engine gave up".to_owned())))
    }

    fn run_unguarded(&self, context: JinjaValue) -> Result<String, TemplateError> {
        let template = self.environment.get_template(TEMPLATE_NAME).map_err(|e| failure(&e))?;
        let mut out = Capped { bytes: Vec::with_capacity(PROMPT_BYTES_USUAL), full: false };
        let outcome = template.render_captured_to(context, &mut out);
        if out.full {
            return Err(TemplateError::TooLong);
        }
        outcome.map_err(|error| failure(&error))?;
        String::from_utf8(out.bytes).map_err(|error| TemplateError::Failed(error.to_string()))
    }
}

/// What the engine gives; nothing where it panics, which templates can bring it to: with a slice of an empty list, for
/// one. Nothing is left half done that anybody looks at, as all that a rendering changes is its own.
fn guarded<T>(render: impl FnOnce() -> T) -> Option<T> {
    panic::catch_unwind(AssertUnwindSafe(render)).ok()
}

/// Whether turns share the messages of a conversation, so that what is rendered of them is worth keeping.
fn comes_again(conversation: &Conversation, holders: usize) -> bool {
    let shared = |message: &Arc<_>| Arc::strong_count(message) > holders;
    conversation.messages.first().is_some_and(shared) && conversation.messages.len() > 1
}

fn environment(source: String) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(error.to_string()))?);
    environment.set_fuel(Some(TEMPLATE_STEPS_MAX));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(JinjaErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    environment.add_filter("tojson", pyjson::tojson);
    environment
        .add_template_owned(TEMPLATE_NAME, source)
        .map_err(|error| TemplateError::Syntax(error.to_string()))?;
    Ok(environment)
}

/// Marks errors that the template raised itself.
const RAISED: &str = "raised: ";

fn failure(error: &Error) -> TemplateError {
    // An error inside a macro is wrapped in another; the innermost says what happened.
    let mut innermost = error;
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(jinja) = inner.downcast_ref::<Error>() {
            innermost = jinja;
        }
        source = inner.source();
    }
    if innermost.kind() == JinjaErrorKind::OutOfFuel {
        return TemplateError::TooManySteps;
    }
    match innermost.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        Some(message) => TemplateError::Refused(message.to_owned()),
        None => TemplateError::Failed(innermost.to_string()),
    }
}

/// The source as Jinja reads it: every line break is a newline, and `{% generation %}` marks,
/// which only matter for training masks, are gone.
fn normalised(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut kept = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        // `{%}` opens a tag and does not end it.
        let Some(length) = tag[2..].find("%}").map(|end| end + 4) else { break };
        let name = tag[2..length - 2].trim_matches(['-', '+']).trim();
        if matches!(name, "generation" | "endgeneration") {
            // A comment keeps the whitespace control that the mark had.
            let left = if tag[2..].starts_with('-') { "-" } else { "" };
            let right = if tag[..length - 2].ends_with('-') { "-" } else { "" };
            kept.push_str(before);
            kept.push_str(&format!("{{#{left} {right}#}}"));
        } else {
            kept.push_str(before);
            kept.push_str(&tag[..length]);
        }
        rest = &tag[length..];
    }
    kept.push_str(rest);
    kept
}

/// Collects output up to the limit.
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for &mut Capped {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + chunk.len() > PROMPT_BYTES_MAX {
            self.full = true;
            return Err(io::Error::other("the prompt is too long"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
