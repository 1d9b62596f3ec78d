//! The ways in which open models write thoughts and tool calls.
//!
//! A model marks up what it writes as it was trained to, and its chat template tells which way that
//! is. Everything that differs between families is data here, tags and the form of a call between
//! them; the [`OutputParser`](crate::OutputParser) that reads them is one. Where a family writes
//! values without types (a parameter between tags), the tool's schema says whether `1` is a number or
//! a text.

mod call;
mod pythonic;
mod scan;
mod tagged;
mod types;

pub(crate) use call::{Call, Parsed, parse_calls};
pub(crate) use scan::Scan;
pub use types::ToolTypes;

/// How a model writes thoughts and calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3, and the
    /// bundled model. What is taken where a template gives no sign.
    #[default]
    Hermes,
    /// A bare `{"name": …, "parameters": {…}}`, perhaps after `<|python_tag|>`: Llama 3.
    Llama3Json,
    /// `[name(argument=value), …]`: Llama 4 and others that write Python.
    Pythonic,
    /// `[TOOL_CALLS]` and a list of calls, or a name, `[ARGS]` and arguments.
    Mistral,
    /// `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`.
    DeepSeek,
    /// `<function=name><parameter=key>value</parameter></function>` within `<tool_call>`.
    Qwen3Coder,
    /// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`.
    Glm,
    /// `<invoke name="name"><parameter name="key">value</parameter></invoke>` within
    /// `<minimax:tool_call>`.
    MiniMax,
    /// `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`.
    Kimi,
    /// Messages on channels, `<|channel|>commentary to=functions.name<|message|>{…}<|call|>`: gpt-oss.
    Harmony,
}

impl Family {
    /// All of them, for whoever lets an operator choose.
    pub const ALL: [Family; 10] = [
        Family::Hermes,
        Family::Llama3Json,
        Family::Pythonic,
        Family::Mistral,
        Family::DeepSeek,
        Family::Qwen3Coder,
        Family::Glm,
        Family::MiniMax,
        Family::Kimi,
        Family::Harmony,
    ];

    /// The family whose markup a chat template writes: the next turn shows the last one's calls, so
    /// the template must know it. Control tokens tell where the template does not.
    pub fn of(template: &str, control_tokens: &[&str]) -> Family {
        let shows = |sign: &str| template.contains(sign) || control_tokens.contains(&sign);
        let signs = [
            (Family::Harmony, "<|channel|>"),
            (Family::DeepSeek, "<｜tool▁calls▁begin｜>"),
            (Family::Kimi, "<|tool_calls_section_begin|>"),
            (Family::MiniMax, "<minimax:tool_call>"),
            (Family::Glm, "<arg_key>"),
            (Family::Qwen3Coder, "<function="),
            (Family::Mistral, "[TOOL_CALLS]"),
        ];
        // Vocabularies carry words of other families along: what a template writes goes first.
        let by_template = signs.iter().find(|(_, sign)| template.contains(sign));
        if let Some((family, _)) = by_template {
            return *family;
        }
        if template.contains("<tool_call>") {
            return Family::Hermes;
        }
        if template.contains("[func_name1(") || shows("<|python_start|>") {
            return Family::Pythonic;
        }
        if shows("<|python_tag|>") || template.contains("\"parameters\": dictionary of argument") {
            return Family::Llama3Json;
        }
        let by_token = signs.iter().find(|(_, sign)| control_tokens.contains(sign));
        by_token.map_or(Family::Hermes, |(family, _)| *family)
    }

    /// The word for it in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Family::Hermes => "hermes",
            Family::Llama3Json => "llama3-json",
            Family::Pythonic => "pythonic",
            Family::Mistral => "mistral",
            Family::DeepSeek => "deepseek",
            Family::Qwen3Coder => "qwen3-coder",
            Family::Glm => "glm",
            Family::MiniMax => "minimax",
            Family::Kimi => "kimi",
            Family::Harmony => "harmony",
        }
    }

    pub(crate) fn markup(self) -> &'static Markup {
        match self {
            Family::Hermes => &HERMES,
            Family::Llama3Json => &LLAMA,
            Family::Pythonic => &PYTHONIC,
            Family::Mistral => &MISTRAL,
            Family::DeepSeek => &DEEPSEEK,
            Family::Qwen3Coder => &QWEN3_CODER,
            Family::Glm => &GLM,
            Family::MiniMax => &MINIMAX,
            Family::Kimi => &KIMI,
            Family::Harmony => &HARMONY,
        }
    }
}

/// The tags of a family.
#[derive(Debug)]
pub(crate) struct Markup {
    pub(crate) think: &'static str,
    pub(crate) think_end: &'static str,
    pub(crate) sections: &'static [Section],
    /// Tags around calls that say nothing more than the calls do.
    pub(crate) skipped: &'static [&'static str],
    /// Messages begin with a header: tags that open one, and the one that ends it.
    pub(crate) headers: Option<Headers>,
}

/// The headers of messages on channels.
#[derive(Debug)]
pub(crate) struct Headers {
    pub(crate) opens: &'static [&'static str],
    pub(crate) end: &'static str,
}

/// One way to begin a call.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) open: &'static str,
    pub(crate) end: End,
    pub(crate) form: Form,
    /// The opening is part of the call, not a tag, and counts only where the answer begins.
    pub(crate) bare: bool,
}

/// Where a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At this tag.
    Tag(&'static str),
    /// With the value in brackets that it is.
    Value,
}

impl End {
    /// The tag, where it is one.
    pub(crate) fn tag(self) -> Option<&'static str> {
        match self {
            End::Tag(tag) => Some(tag),
            End::Value => None,
        }
    }
}

/// How a call is written between its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `{"name": …, "arguments": {…}}`.
    Object,
    /// The same, or a list of such, or a name and its arguments.
    Mistral,
    /// A Python list of calls.
    Pythonic,
    /// A name, a separator and arguments.
    DeepSeek,
    /// As DeepSeek, with a kind before the name and a number behind it.
    Kimi,
    /// Parameters between tags.
    Tagged(&'static tagged::Tags),
    /// Arguments alone; the name stood in the header.
    Arguments,
}

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";

const PLAIN: Markup =
    Markup { think: THINK, think_end: THINK_END, sections: &[], skipped: &[], headers: None };

const fn tagged(open: &'static str, end: &'static str, form: Form) -> Section {
    Section { open, end: End::Tag(end), form, bare: false }
}

static HERMES: Markup =
    Markup { sections: &[tagged("<tool_call>", "</tool_call>", Form::Object)], ..PLAIN };

static LLAMA: Markup = Markup {
    sections: &[
        Section { open: "<|python_tag|>", end: End::Value, form: Form::Object, bare: false },
        Section { open: "{", end: End::Value, form: Form::Object, bare: true },
    ],
    ..PLAIN
};

static PYTHONIC: Markup = Markup {
    sections: &[
        Section { open: "[", end: End::Value, form: Form::Pythonic, bare: true },
        // Llama 4 writes either, as its prompt asks.
        Section { open: "{", end: End::Value, form: Form::Object, bare: true },
    ],
    skipped: &["<|python_start|>", "<|python_end|>"],
    ..PLAIN
};

static MISTRAL: Markup = Markup {
    think: "[THINK]",
    think_end: "[/THINK]",
    sections: &[Section {
        open: "[TOOL_CALLS]",
        end: End::Value,
        form: Form::Mistral,
        bare: false,
    }],
    ..PLAIN
};

static DEEPSEEK: Markup = Markup {
    sections: &[tagged("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", Form::DeepSeek)],
    skipped: &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
    ..PLAIN
};

static QWEN3_CODER: Markup = Markup {
    sections: &[
        tagged("<tool_call>", "</tool_call>", Form::Tagged(&tagged::FUNCTION)),
        // It forgets the outer tag at times.
        tagged("<function=", "</function>", Form::Tagged(&tagged::FUNCTION_OPENED)),
    ],
    skipped: &["</tool_call>"],
    ..PLAIN
};

static GLM: Markup = Markup {
    sections: &[tagged("<tool_call>", "</tool_call>", Form::Tagged(&tagged::KEYS))],
    ..PLAIN
};

static MINIMAX: Markup = Markup {
    sections: &[tagged("<invoke name=\"", "</invoke>", Form::Tagged(&tagged::INVOKE))],
    skipped: &["<minimax:tool_call>", "</minimax:tool_call>"],
    ..PLAIN
};

static KIMI: Markup = Markup {
    sections: &[tagged("<|tool_call_begin|>", "<|tool_call_end|>", Form::Kimi)],
    skipped: &["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"],
    ..PLAIN
};

/// Its thoughts are messages too, so that no tag of the others is one here.
static HARMONY: Markup = Markup {
    think: "<|channel|>analysis<|message|>",
    think_end: "<|end|>",
    sections: &[tagged("", "<|call|>", Form::Arguments)],
    skipped: &["<|end|>", "<|return|>", "<|call|>"],
    headers: Some(Headers { opens: &["<|channel|>", "<|start|>"], end: "<|message|>" }),
};

#[cfg(test)]
mod tests;
