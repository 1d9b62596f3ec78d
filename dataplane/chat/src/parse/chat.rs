//! OpenAI Chat Completions bodies.
//!
//! The widest family of clients: content comes as a string or as parts in every role, system
//! text as `system` or `developer`, reasoning comes back as `reasoning_content` or `reasoning`,
//! and limits as `max_tokens` or `max_completion_tokens`.

use serde_json::Value;

use super::common::{self, text_blocks};
use super::json::Node;
use super::split::Split;
use super::turns::{self, Notes};
use super::{ParseOptions, tools};
use crate::error::ApiError;
use crate::ir::{Block, Content, Role, ToolChoice};
use crate::limits::{BLOCKS_MAX, TOP_LOGPROBS_MAX};
use crate::request::{Endpoint, Request};

pub(super) fn build(
    split: &mut Split<'_>,
    endpoint: Endpoint,
    options: ParseOptions,
    notes: &mut Notes,
) -> Result<Request, ApiError> {
    let body = Node::root(&split.value);
    let mut request = common::start(&body, endpoint, options)?;
    members(&body, &mut request)?;
    tools::read(split.tools, &mut request, add_tool)?;
    if let Some(choice) = body.get("tool_choice") {
        tool_choice(&choice, &mut request)?;
    }
    if body.get("functions").is_some() {
        request.warn("`functions` ignored: use `tools`");
    }
    let messages = body.require("messages")?;
    turns::read(split, &messages, &mut request, notes, add_message)?;
    if request.conversation.messages.is_empty() && request.conversation.system.is_empty() {
        return Err(messages.error("at least one message is required"));
    }
    common::finish(request)
}

fn members(body: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let limit = body.get("max_completion_tokens").or_else(|| body.get("max_tokens"));
    request.sampling.max_tokens = limit.map(|node| common::max_tokens(&node)).transpose()?;
    if let Some(stop) = body.get("stop") {
        request.sampling.stop = common::stop_strings(&stop)?;
    }
    if let Some(stream_options) = body.get("stream_options")
        && let Some(include) = stream_options.get("include_usage")
    {
        request.include_usage = include.bool()?;
    }
    let wanted = body.get("logprobs").map(|node| node.bool()).transpose()?.unwrap_or(false);
    if let Some(top) = body.get("top_logprobs") {
        let count = top.count(0, u32::MAX)?;
        if count > TOP_LOGPROBS_MAX {
            return Err(top.error(&format!("must be at most {TOP_LOGPROBS_MAX}, got {count}")));
        }
        request.sampling.logprobs = wanted.then_some(count);
    } else {
        request.sampling.logprobs = wanted.then_some(0);
    }
    if let Some(effort) = body.get("reasoning_effort") {
        common::effort(&effort, request)?;
    }
    if let Some(parallel) = body.get("parallel_tool_calls") {
        request.conversation.parallel_tool_calls = parallel.bool()?;
    }
    if let Some(format) = body.get("response_format") {
        common::output_format(&format, request);
    }
    request.hints.user_id = body.peek_str("user").and_then(crate::session::id);
    if let Some(key) = request.hints.prompt_cache_key.clone() {
        let inferred = &mut request.body_identity.inferred;
        inferred.session = Some(key);
        inferred.named_by = Some("prompt_cache_key");
    }
    Ok(())
}

fn add_tool(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    node.object()?;
    let tool = match node.peek_str("type") {
        Some("function") | None => tools::function(&node.require("function")?, "parameters")?,
        Some("custom") => tools::custom(&node.require("custom")?, request)?,
        Some(kind) => return tools::add_hosted(node, kind, request),
    };
    tools::add(tool, node, request)
}

/// The tool that an object with `function` or `custom` in it names.
fn named(node: &Node<'_>) -> Result<Option<String>, ApiError> {
    let holder = node.get("function").or_else(|| node.get("custom"));
    holder.map(|holder| tools::tool_name(&holder.require("name")?)).transpose()
}

fn tool_choice(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    request.conversation.tool_choice = match node.value {
        Value::String(word) => tools::choice_word(node, word)?,
        Value::Object(_) => match node.get("allowed_tools") {
            Some(holder) => tools::allowed(&holder, named)?,
            None => named(node)?.map_or(ToolChoice::Auto, ToolChoice::Named),
        },
        _ => return Err(node.wrong_type("a string or an object")),
    };
    Ok(())
}

fn add_message(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    node.object()?;
    let role = node.require("role")?;
    let mut blocks = match role.str()? {
        "assistant" => assistant_blocks(node, request)?,
        "tool" => vec![tool_result(node, request)?],
        "system" | "developer" | "user" => text_blocks(&node.require("content")?, request)?,
        other => {
            let shown: String = other.chars().take(32).collect();
            let problem =
                format!("unknown role `{shown}`; use system, developer, user, assistant or tool");
            return Err(role.error(&problem));
        }
    };
    // A breakpoint on the message itself stands after its last block.
    if let Some(control) = common::cache_control(node, &mut request.warnings)
        && let Some(last) = blocks.last_mut()
    {
        last.cache_control = Some(control);
    }
    match role.str()? {
        "assistant" => request.conversation.push(Role::Assistant, blocks),
        "tool" => request.conversation.push(Role::Tool, blocks),
        "user" => request.conversation.push(Role::User, blocks),
        _ => request.conversation.push_system(blocks),
    }
    Ok(())
}

fn assistant_blocks(node: &Node<'_>, request: &mut Request) -> Result<Vec<Block>, ApiError> {
    let mut blocks = Vec::new();
    let reasoning = node.get("reasoning_content").or_else(|| node.get("reasoning"));
    if let Some(text) = reasoning.and_then(|r| r.value.as_str()).filter(|text| !text.is_empty()) {
        let thinking = Content::Thinking { text: text.to_owned(), signature: None };
        blocks.push(Block::from(thinking));
    }
    if let Some(content) = node.get("content") {
        blocks.append(&mut text_blocks(&content, request)?);
    }
    if let Some(calls) = node.get("tool_calls") {
        for call in calls.items(BLOCKS_MAX)? {
            blocks.push(tool_call(&call)?);
        }
    }
    Ok(blocks)
}

fn tool_call(node: &Node<'_>) -> Result<Block, ApiError> {
    let id = common::call_id(&node.require("id")?)?;
    if let Some(custom) = node.get("custom") {
        let text = custom.get("input").map(|input| input.str()).transpose()?.unwrap_or_default();
        return Ok(Block::from(Content::ToolCall {
            id,
            name: tools::tool_name(&custom.require("name")?)?,
            arguments: tools::custom_arguments(text),
        }));
    }
    let function = node.require("function")?;
    // Arguments are JSON text by the protocol, but some clients send the object itself.
    let arguments = match function.get("arguments") {
        None => "{}".to_owned(),
        Some(arguments) if arguments.value.is_object() => arguments.value.to_string(),
        Some(arguments) => common::canonical_arguments(arguments.str()?),
    };
    Ok(Block::from(Content::ToolCall {
        id,
        name: tools::tool_name(&function.require("name")?)?,
        arguments,
    }))
}

fn tool_result(node: &Node<'_>, request: &mut Request) -> Result<Block, ApiError> {
    let blocks = match node.get("content") {
        Some(content) => text_blocks(&content, request)?,
        None => Vec::new(),
    };
    common::result_block(&node.require("tool_call_id")?, blocks, false)
}
