//! The form that an answer must have, as one schema or grammar for the engine.
//!
//! Clients ask for it in three ways: a format of the text, tools whose arguments must obey their schema
//! (`strict`), and a call that must come (`tool_choice`). A model thinks first and writes calls in its
//! family's markup, so most wishes become a grammar around the schemas: a thought if it likes, then
//! what was asked for. Tags that are tokens of their own are named by their number, since no text may
//! spell them. Schemas are hostile: their size and depth are bounded here, before any engine sees them,
//! and what an engine cannot make of one comes back as the same 400. A wish that this family or this
//! request cannot be held to is no error, because clients ask by habit: [`Request::tell`] says so.

mod grammar;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use crate::error::{ApiError, ErrorKind};
use crate::family::Family;
use crate::ir::{GrammarSyntax, Tool, ToolChoice, ToolKind};
use crate::limits::{FORM_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_NODES_MAX};
use crate::request::{OutputFormat, Request};

/// A form for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// How it is written down.
    pub kind: ConstraintKind,
    /// The form itself.
    pub spec: String,
}

/// How a [`Constraint`] is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConstraintKind {
    /// A JSON schema.
    JsonSchema,
    /// A regular expression for the whole text.
    Regex,
    /// A grammar in llguidance's form of Lark.
    Lark,
}

/// How a model spells its markup: what [`constraint`] must know of it.
#[derive(Clone, Debug, Default)]
pub struct Spelling {
    /// How it writes thoughts and calls.
    pub family: Family,
    /// Whether it thinks at all, by its template.
    pub thinks: bool,
    /// The tags of its family that are single tokens, with their numbers.
    tokens: Vec<(&'static str, u32)>,
}

impl Spelling {
    /// Reads a template; `token` gives the number of a text that is one added token.
    pub fn of(template: &str, family: Family, token: impl Fn(&str) -> Option<u32>) -> Spelling {
        let markup = family.markup();
        let ends = markup.sections.iter().filter_map(|section| section.end.tag());
        let tags = markup.sections.iter().map(|section| section.open).chain(ends);
        let tags = tags.chain([markup.think, markup.think_end]);
        let tokens: Vec<_> = tags.filter_map(|tag| Some((tag, token(tag)?))).collect();
        let has_token = tokens.iter().any(|(tag, _)| *tag == markup.think);
        Spelling { family, thinks: has_token || template.contains(markup.think), tokens }
    }

    /// The number of a tag that is a token.
    pub(crate) fn token(&self, tag: &str) -> Option<u32> {
        self.tokens.iter().find(|(known, _)| *known == tag).map(|(_, token)| *token)
    }
}

/// What is to be enforced of a request.
struct Wish<'r> {
    calls: Calls<'r>,
    /// The form of the text, where the answer is no call.
    text: Text<'r>,
}

/// The calls that an answer may have.
struct Calls<'r> {
    /// The tools that may be called.
    tools: Vec<&'r Tool>,
    /// A call must come.
    required: bool,
    /// More than one may come.
    many: bool,
}

enum Text<'r> {
    Free,
    Object,
    Schema { schema: &'r Value, strict: bool },
}

/// The form that the answer to a request must have; `None` where it is free, or cannot be held to what was wished.
///
/// # Errors
/// A tool that must be called but does not exist, a schema that is no object, too large or too deep.
pub fn constraint(
    request: &mut Request,
    spelling: &Spelling,
    thinking_open: bool,
) -> Result<Option<Constraint>, ApiError> {
    let choice = &request.conversation.tool_choice;
    let tools = callable(request, choice)?;
    let required = matches!(
        choice,
        ToolChoice::Required | ToolChoice::Named(_) | ToolChoice::Allowed { required: true, .. }
    );
    if required && tools.is_empty() {
        return Err(invalid("`tool_choice` asks for a call, but there is no tool to call"));
    }
    let strict = tools.iter().any(|tool| is_strict(tool));
    let wishes_text = request.output_format != OutputFormat::Text;
    if !required && !strict && !wishes_text {
        return Ok(None);
    }
    if let OutputFormat::Grammar(grammar) = &request.output_format {
        return Ok(Some(check_size(of_grammar(grammar.syntax, &grammar.text)?)?));
    }
    if request.continue_final {
        // The form would have to begin in the middle of the text that was given.
        request.tell("form-not-enforced-on-prefill");
        return Ok(None);
    }
    for tool in &tools {
        check_schema(&tool.schema, &format!("the schema of tool `{}`", tool.name))?;
    }
    let text = match &request.output_format {
        OutputFormat::JsonObject => Text::Object,
        OutputFormat::JsonSchema { schema, strict, .. } => {
            check_schema(schema, "the schema of the output format")?;
            Text::Schema { schema, strict: *strict }
        }
        OutputFormat::Text | OutputFormat::Grammar(_) => Text::Free,
    };
    // A call of a family whose form is not in the grammar can be neither forced nor left possible.
    let writable = spelling.family == Family::Hermes;
    // Channels are chosen by headers, which no grammar of ours writes.
    let has_headers = spelling.family.markup().headers.is_some();
    let unenforced = has_headers || (!writable && (required || (strict && !wishes_text)));
    let calls = Calls {
        tools: if writable { tools } else { Vec::new() },
        required: required && writable,
        many: request.conversation.parallel_tool_calls,
    };
    let mixed = !writable && wishes_text && request.conversation.callable().next().is_some();
    if unenforced || (mixed && request.conversation.tool_choice != ToolChoice::None) {
        request.tell("form-not-enforced-for-this-model");
        return Ok(None);
    }
    let form = form(&Wish { calls, text }, spelling, thinking_open);
    check_size(form).map(Some)
}

/// The tools that the choice leaves.
fn callable<'r>(request: &'r Request, choice: &ToolChoice) -> Result<Vec<&'r Tool>, ApiError> {
    let all = || request.conversation.callable();
    let known = |name: &String| {
        if all().any(|tool| tool.name == *name) {
            return Ok(());
        }
        Err(invalid(format!("`tool_choice` names `{name}`, which is not among the tools")))
    };
    match choice {
        ToolChoice::None => Ok(Vec::new()),
        ToolChoice::Auto | ToolChoice::Required => Ok(all().collect()),
        ToolChoice::Named(name) => {
            known(name)?;
            Ok(all().filter(|tool| tool.name == *name).collect())
        }
        ToolChoice::Allowed { names, .. } => {
            names.iter().try_for_each(known)?;
            Ok(all().filter(|tool| names.contains(&tool.name)).collect())
        }
    }
}

fn is_strict(tool: &Tool) -> bool {
    tool.kind == ToolKind::Function { strict: true }
}

fn of_grammar(syntax: GrammarSyntax, text: &str) -> Result<Constraint, ApiError> {
    if text.trim().is_empty() {
        return Err(invalid("the grammar of the output format is empty"));
    }
    let kind = match syntax {
        GrammarSyntax::Lark => ConstraintKind::Lark,
        GrammarSyntax::Regex => ConstraintKind::Regex,
    };
    Ok(Constraint { kind, spec: text.to_owned() })
}

fn form(wish: &Wish<'_>, spelling: &Spelling, thinking_open: bool) -> Constraint {
    let plain = wish.calls.tools.is_empty() && !spelling.thinks && !thinking_open;
    let schema = match wish.text {
        Text::Object => Some((json!({"type": "object"}), true)),
        Text::Schema { schema, strict } => Some((schema.clone(), strict)),
        Text::Free => None,
    };
    match schema {
        // Nothing is around it: every engine with schemas understands this one.
        Some((schema, strict)) if plain => {
            let spec = with_manner(schema, &json!({"lenient": !strict})).to_string();
            Constraint { kind: ConstraintKind::JsonSchema, spec }
        }
        schema => {
            let spec = grammar::of(wish, schema, spelling, thinking_open);
            Constraint { kind: ConstraintKind::Lark, spec }
        }
    }
}

/// Tells the engine's grammar how to read a schema; a client's own word on that does not count.
fn with_manner(mut schema: Value, manner: &Value) -> Value {
    if let Some(members) = schema.as_object_mut() {
        members.insert("x-guidance".to_owned(), manner.clone());
    }
    schema
}

fn check_size(constraint: Constraint) -> Result<Constraint, ApiError> {
    if constraint.spec.len() > FORM_BYTES_MAX {
        let bytes = constraint.spec.len();
        let message = format!("the schemas have {bytes} bytes; at most {FORM_BYTES_MAX} are taken");
        return Err(invalid(message));
    }
    Ok(constraint)
}

fn check_schema(schema: &Value, what: &str) -> Result<(), ApiError> {
    if !schema.is_object() {
        return Err(invalid(format!("{what} is not a JSON object")));
    }
    // A stack of its own: recursion is what the limit is there to prevent.
    let mut left = vec![(schema, 1)];
    let mut nodes = 0;
    while let Some((value, depth)) = left.pop() {
        nodes += 1;
        if depth > SCHEMA_DEPTH_MAX {
            return Err(invalid(format!("{what} is deeper than {SCHEMA_DEPTH_MAX} levels")));
        }
        if nodes > SCHEMA_NODES_MAX {
            return Err(invalid(format!("{what} has more than {SCHEMA_NODES_MAX} values")));
        }
        match value {
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(members) => left.extend(members.values().map(|v| (v, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, message)
}
