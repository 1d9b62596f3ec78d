//! Tools as the three bodies offer them, and the names that the model knows them by.
//!
//! A model writes one flat name, while Responses clients call a tool by namespace and name: where two namespaces
//! share a name, the later tool gets another one for the model, and its own back on the way out. Tools that
//! somebody else's servers run are kept, since clients expect to see them repeated, and never shown to the model.
//! A choice of a tool that was not offered is an error, because nothing could come of it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::common::{cache_control, skip};
use super::json::{Node, Path, parse_part};
use crate::error::ApiError;
use crate::ir::{Grammar, GrammarSyntax, Tool, ToolChoice, ToolKind};
use crate::limits::{GRAMMAR_BYTES_MAX, TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use crate::request::Request;

/// A tool's name.
pub(crate) fn tool_name(node: &Node<'_>) -> Result<String, ApiError> {
    let name = node.str()?;
    if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX {
        return Err(node.error(&format!("must have 1 to {TOOL_NAME_BYTES_MAX} bytes")));
    }
    Ok(name.to_owned())
}

fn description(node: &Node<'_>) -> Result<String, ApiError> {
    let text = node.get("description").map(|d| d.str()).transpose()?;
    Ok(text.unwrap_or_default().to_owned())
}

fn flag(node: &Node<'_>, name: &'static str) -> bool {
    node.get(name).and_then(|flag| flag.value.as_bool()) == Some(true)
}

/// A function definition with its schema under `schema_member`.
pub(crate) fn function(node: &Node<'_>, schema_member: &'static str) -> Result<Tool, ApiError> {
    let schema = match node.get(schema_member) {
        Some(schema) => Value::Object(schema.object()?.clone()),
        None => json!({"type": "object", "properties": {}}),
    };
    Ok(Tool {
        name: tool_name(&node.require("name")?)?,
        client_name: None,
        description: description(node)?,
        schema,
        namespace: None,
        kind: ToolKind::Function { strict: flag(node, "strict") },
        deferred: flag(node, "defer_loading"),
        cache_control: None,
    })
}

/// A tool that takes free text, shown to the model as a function of one argument.
pub(crate) fn custom(node: &Node<'_>, request: &mut Request) -> Result<Tool, ApiError> {
    let grammar = match node.get("format") {
        Some(format) => grammar(&format, request)?,
        None => None,
    };
    Ok(Tool {
        name: tool_name(&node.require("name")?)?,
        client_name: None,
        description: description(node)?,
        schema: json!({
            "type": "object",
            "properties": {"input": {"type": "string", "description": "The whole input, as plain text."}},
            "required": ["input"],
            "additionalProperties": false,
        }),
        namespace: None,
        kind: ToolKind::Custom { grammar },
        deferred: flag(node, "defer_loading"),
        cache_control: None,
    })
}

/// The `format` of a custom tool; Chat puts the grammar into an object of its own.
fn grammar(format: &Node<'_>, request: &mut Request) -> Result<Option<Grammar>, ApiError> {
    if format.peek_str("type") != Some("grammar") {
        return Ok(None);
    }
    let holder = format.get("grammar").unwrap_or_else(|| format.clone());
    let syntax = match holder.peek_str("syntax") {
        Some("lark") => GrammarSyntax::Lark,
        Some("regex") => GrammarSyntax::Regex,
        _ => {
            request.warn(format!("`{}` ignored: syntax is `lark` or `regex`", holder.path));
            return Ok(None);
        }
    };
    let definition = holder.require("definition")?;
    let text = definition.str()?;
    if text.len() > GRAMMAR_BYTES_MAX {
        return Err(definition.error(&format!("must have at most {GRAMMAR_BYTES_MAX} bytes")));
    }
    Ok(Some(Grammar { syntax, text: text.to_owned() }))
}

/// Reads a list of tools, or finds what it was read into when it last came. A list that was read with anything to say
/// about it is read each time, so that it is said each time.
pub(crate) fn read(
    raw: Option<&str>,
    request: &mut Request,
    add: impl Fn(&Node<'_>, &mut Request) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let Some(raw) = raw.filter(|raw| *raw != "null") else { return Ok(()) };
    let memory = request.options.tools.clone();
    if let Some(tools) = memory.as_ref().and_then(|memory| memory.find(request.endpoint, raw)) {
        request.conversation.tools = tools;
        return Ok(());
    }
    let value = parse_part(raw)?;
    let said = |request: &Request| (request.warnings.len(), request.told.len());
    let before = said(request);
    for tool in (Node { value: &value, path: Path::ROOT.member("tools") }).items(TOOLS_MAX)? {
        add(&tool, request)?;
    }
    if let Some(memory) = memory.filter(|_| said(request) == before) {
        memory.keep(request.endpoint, raw, &request.conversation.tools);
    }
    Ok(())
}

/// Keeps a tool that nobody here runs.
pub(crate) fn add_hosted(
    node: &Node<'_>,
    kind: &str,
    request: &mut Request,
) -> Result<(), ApiError> {
    skip(node, kind, request);
    request.tell("hosted-tool-left-out");
    let name: String = node.peek_str("name").unwrap_or(kind).chars().take(64).collect();
    let known = &request.conversation.tools;
    if known.len() < TOOLS_MAX && known.iter().all(|tool| tool.name != name) {
        Arc::make_mut(&mut request.conversation.tools).push(Tool {
            name,
            client_name: None,
            description: String::new(),
            schema: json!({"type": "object", "properties": {}}),
            namespace: None,
            kind: ToolKind::Hosted,
            deferred: false,
            cache_control: None,
        });
    }
    Ok(())
}

/// Adds a tool with the breakpoint that stands at `at`. A second one of the same name and namespace is dropped with
/// a warning; one of another namespace gets another name for the model.
pub(crate) fn add(mut tool: Tool, at: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    tool.cache_control = cache_control(at, &mut request.warnings);
    let tools = Arc::make_mut(&mut request.conversation.tools);
    if tools.len() >= TOOLS_MAX {
        return Err(at.error(&format!("at most {TOOLS_MAX} tools are allowed")));
    }
    // A tool that the model can call takes the name from one that it can't.
    tools.retain(|known| known.kind != ToolKind::Hosted || known.name != tool.name);
    let taken = |name: &str| tools.iter().any(|known| known.name == name);
    if taken(&tool.name) {
        let same =
            |known: &Tool| known.told_name() == tool.name && known.namespace == tool.namespace;
        let other = format!("{}__{}", tool.namespace.as_deref().unwrap_or("plain"), tool.name);
        if tools.iter().any(same) || taken(&other) {
            request.warn(format!("`{}` ignored: a tool of this name was given before", at.path));
            return Ok(());
        }
        tool.client_name = Some(std::mem::replace(&mut tool.name, other));
    }
    tools.push(tool);
    Ok(())
}

/// The name that the model knows a tool by, which the client calls `name` in `namespace`.
pub(crate) fn model_name(request: &Request, namespace: Option<&str>, name: String) -> String {
    let renamed = request.conversation.tools.iter().find(|tool| {
        tool.client_name.as_deref() == Some(name.as_str()) && tool.namespace.as_deref() == namespace
    });
    renamed.map_or(name, |tool| tool.name.clone())
}

/// The arguments of a call of a custom tool: its text is no JSON, and templates want an object.
pub(crate) fn custom_arguments(text: &str) -> String {
    json!({"input": text}).to_string()
}

/// `tool_choice` as a word, in both OpenAI protocols.
pub(crate) fn choice_word(node: &Node<'_>, word: &str) -> Result<ToolChoice, ApiError> {
    match word {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        _ => Err(node.error("expected `auto`, `none`, `required` or an object")),
    }
}

/// `allowed_tools`: `holder` has `mode` and `tools`; `name_of` reads one of these, `None` for one that only somebody
/// else's server runs.
pub(crate) fn allowed(
    holder: &Node<'_>,
    name_of: impl Fn(&Node<'_>) -> Result<Option<String>, ApiError>,
) -> Result<ToolChoice, ApiError> {
    let required = match holder.peek_str("mode") {
        Some("auto") | None => false,
        Some("required") => true,
        Some(_) => return Err(holder.error("`mode` is `auto` or `required`")),
    };
    let mut names = Vec::new();
    for tool in holder.require("tools")?.items(TOOLS_MAX)? {
        names.extend(name_of(&tool)?);
    }
    match (names.is_empty(), required) {
        (true, true) => Err(holder.error("a call is required, and no tool is allowed")),
        (true, false) => Ok(ToolChoice::None),
        _ => Ok(ToolChoice::Allowed { names, required }),
    }
}

/// Checks, once all tools are known, that those chosen exist.
pub(crate) fn check_choice(request: &Request) -> Result<(), ApiError> {
    let known = |name: &String| {
        let found = request.conversation.tools.iter().find(|tool| tool.name == *name);
        found.is_some_and(|tool| tool.kind != ToolKind::Hosted)
    };
    let missing = match &request.conversation.tool_choice {
        ToolChoice::Named(name) => Some(name).filter(|name| !known(name)),
        ToolChoice::Allowed { names, .. } => names.iter().find(|name| !known(name)),
        ToolChoice::Auto | ToolChoice::None | ToolChoice::Required => None,
    };
    match missing {
        None => Ok(()),
        Some(name) => {
            let problem = format!("`{name}` is not among `tools`");
            Err(ApiError::invalid("tool_choice", &problem))
        }
    }
}

/// Brings deferred tools that the conversation refers to into the prompt, behind all others: the prefix that the
/// others make up stays what it was.
pub(crate) fn load_referenced(request: &mut Request) {
    let referenced = std::mem::take(&mut request.referenced_tools);
    for name in referenced {
        let meant = |tool: &Tool| tool.deferred && tool.name == name;
        if let Some(at) = request.conversation.tools.iter().position(meant) {
            let tools = Arc::make_mut(&mut request.conversation.tools);
            let mut tool = tools.remove(at);
            tool.deferred = false;
            tools.push(tool);
        }
    }
}

#[cfg(test)]
mod tests;
