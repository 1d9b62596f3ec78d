//! OpenAI Responses bodies.
//!
//! A conversation as a flat list of items. Codex is the main client: its base prompt is a
//! developer message, its tools come in namespaces, its reasoning comes back as opaque items.
//! Ids that clients put on items never reach the conversation. Items that refer to stored state
//! other than `previous_response_id` are refused, since guessing their content would be worse.

use serde_json::Value;

use super::ParseOptions;
use super::common::{self, text_blocks};
use super::json::{Node, parse_body};
use crate::error::ApiError;
use crate::ir::{Block, Content, Role, ToolChoice};
use crate::limits::{BLOCKS_MAX, MESSAGES_MAX, METADATA_MEMBERS_MAX, TOOLS_MAX, TOP_LOGPROBS_MAX};
use crate::request::{Endpoint, Request, ResponsesEcho};
use crate::session::read_codex_metadata;
use crate::{seal, session};

pub(super) fn parse(bytes: &[u8], options: ParseOptions) -> Result<Request, ApiError> {
    let value = parse_body(bytes)?;
    let body = Node::root(&value);
    let mut request = common::start(&body, Endpoint::Responses, options)?;
    request.include_usage = true;
    refuse_unsupported(&body)?;
    let mut echo = echo(&body)?;
    members(&body, &mut request, &mut echo)?;
    if let Some(instructions) = body.get("instructions") {
        let text = instructions.str()?;
        if !text.is_empty() {
            echo.instructions = Some(text.to_owned());
            request.conversation.push_system(vec![Block::text(text)]);
        }
    }
    if let Some(tools) = body.get("tools") {
        add_tools(&tools, &mut request)?;
    }
    if let Some(choice) = body.get("tool_choice") {
        tool_choice(&choice, &mut request)?;
    }
    identity(&body, &mut request);
    input(&body, echo.previous_response_id.is_some(), &mut request)?;
    request.responses = Some(Box::new(echo));
    Ok(common::finish(request))
}

fn refuse_unsupported(body: &Node<'_>) -> Result<(), ApiError> {
    for name in ["conversation", "prompt"] {
        if let Some(node) = body.get(name) {
            return Err(node.error("stored prompts and conversations are not supported"));
        }
    }
    if let Some(background) = body.get("background")
        && background.bool()?
    {
        return Err(background.error("background responses are not supported; use `stream`"));
    }
    Ok(())
}

fn input(body: &Node<'_>, continues: bool, request: &mut Request) -> Result<(), ApiError> {
    let input = body.require("input")?;
    if input.value.is_string() {
        let blocks = text_blocks(&input, request)?;
        request.conversation.push(Role::User, blocks);
        return Ok(());
    }
    let mut empty = true;
    for item in input.items(MESSAGES_MAX)? {
        add_item(&item, request)?;
        empty = false;
    }
    if empty && !continues {
        return Err(input.error("at least one item is required"));
    }
    Ok(())
}

fn echo(body: &Node<'_>) -> Result<ResponsesEcho, ApiError> {
    let word = |node: Option<Node<'_>>, name: &str, known: &[&str]| -> Option<String> {
        let word = node?.peek_str(name)?;
        known.contains(&word).then(|| word.to_owned())
    };
    let reasoning = body.get("reasoning");
    let mut echo = ResponsesEcho {
        store: body.get("store").map(|node| node.bool()).transpose()?.unwrap_or(true),
        reasoning_effort: word(
            reasoning.clone(),
            "effort",
            &["none", "minimal", "low", "medium", "high", "xhigh"],
        ),
        reasoning_summary: word(reasoning, "summary", &["auto", "concise", "detailed"]),
        verbosity: word(body.get("text"), "verbosity", &["low", "medium", "high"]),
        truncation_auto: body.peek_str("truncation") == Some("auto"),
        user: body.peek_str("user").and_then(session::id),
        safety_identifier: body.peek_str("safety_identifier").and_then(session::id),
        ..ResponsesEcho::default()
    };
    if let Some(previous) = body.get("previous_response_id") {
        echo.previous_response_id = Some(common::call_id(&previous)?);
    }
    if let Some(calls) = body.get("max_tool_calls") {
        echo.max_tool_calls = Some(calls.count(1, u32::MAX)?);
    }
    if let Some(include) = body.get("include") {
        for item in include.items(BLOCKS_MAX)? {
            echo.include_encrypted_reasoning |= item.str()? == "reasoning.encrypted_content";
        }
    }
    if let Some(Value::Object(metadata)) = body.get("metadata").map(|node| node.value) {
        let texts = metadata.iter().filter(|(_, value)| value.is_string());
        let kept = texts.take(METADATA_MEMBERS_MAX).map(|(k, v)| (k.clone(), v.clone()));
        echo.metadata = kept.collect();
    }
    Ok(echo)
}

fn members(
    body: &Node<'_>,
    request: &mut Request,
    echo: &mut ResponsesEcho,
) -> Result<(), ApiError> {
    let limit = body.get("max_output_tokens");
    request.sampling.max_tokens = limit.map(|node| common::max_tokens(&node)).transpose()?;
    if let Some(top) = body.get("top_logprobs") {
        let count = top.count(0, u32::MAX)?;
        if count > TOP_LOGPROBS_MAX {
            return Err(top.error(&format!("must be at most {TOP_LOGPROBS_MAX}, got {count}")));
        }
        request.sampling.logprobs = (count > 0).then_some(count);
    }
    if let Some(effort) = body.get("reasoning").and_then(|reasoning| reasoning.get("effort")) {
        common::effort(&effort, request)?;
    }
    if let Some(parallel) = body.get("parallel_tool_calls") {
        request.conversation.parallel_tool_calls = parallel.bool()?;
    }
    if let Some(format) = body.get("text").and_then(|text| text.get("format")) {
        common::output_format(&format, request);
    }
    request.hints.user_id.clone_from(&echo.user);
    Ok(())
}

/// Codex repeats its headers in `client_metadata`; `prompt_cache_key` is the last resort.
fn identity(body: &Node<'_>, request: &mut Request) {
    let ids = &mut request.body_identity.inferred;
    if let Some(metadata) = body.get("client_metadata") {
        if let Some(turn) = metadata.peek_str("x-codex-turn-metadata") {
            read_codex_metadata(turn, ids);
        }
        let get = |name: &str| metadata.peek_str(name).and_then(session::id);
        ids.session = get("session_id").or_else(|| ids.session.take());
        ids.agent = get("thread_id").or_else(|| ids.agent.take());
    }
    if ids.agent == ids.session {
        ids.agent = None;
    }
    if ids.session.is_none() {
        ids.session.clone_from(&request.hints.prompt_cache_key);
    }
}

fn add_tools(tools: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    for tool in tools.items(TOOLS_MAX)? {
        tool.object()?;
        if tool.peek_str("type") == Some("namespace") {
            let namespace = common::tool_name(&tool.require("name")?)?;
            for inner in tool.require("tools")?.items(TOOLS_MAX)? {
                add_tool(&inner, Some(&namespace), request)?;
            }
        } else {
            add_tool(&tool, None, request)?;
        }
    }
    Ok(())
}

fn add_tool(
    node: &Node<'_>,
    namespace: Option<&str>,
    request: &mut Request,
) -> Result<(), ApiError> {
    node.object()?;
    let kind = node.require("type")?.str()?;
    if kind != "function" {
        // Hosted and free-form tools: the model here can't call them, the rest still works.
        common::skip(node, kind, request);
        return Ok(());
    }
    let mut tool = common::function(node, "parameters")?;
    tool.namespace = namespace.map(str::to_owned);
    tool.cache_control = common::cache_control(node, &mut request.warnings);
    common::add_tool(tool, node, request)
}

fn tool_choice(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    request.conversation.tool_choice = match node.value {
        Value::String(word) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => return Err(node.error("expected `auto`, `none`, `required` or an object")),
        },
        Value::Object(_) if node.peek_str("type") == Some("function") => {
            ToolChoice::Named(common::tool_name(&node.require("name")?)?)
        }
        Value::Object(_) => {
            request.warn("`tool_choice` ignored: only functions can be chosen");
            ToolChoice::Auto
        }
        _ => return Err(node.wrong_type("a string or an object")),
    };
    Ok(())
}

fn add_item(item: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    item.object()?;
    let kind = match item.get("type") {
        Some(kind) => kind.str()?,
        None => "message",
    };
    match kind {
        "message" => add_message(item, request),
        "reasoning" => {
            add_reasoning(item, request);
            Ok(())
        }
        "function_call" | "custom_tool_call" => {
            let call = call(item, kind)?;
            request.conversation.push(Role::Assistant, vec![call]);
            Ok(())
        }
        "function_call_output" | "custom_tool_call_output" => {
            let blocks = match item.get("output") {
                Some(output) => text_blocks(&output, request)?,
                None => Vec::new(),
            };
            let mut result = common::result_block(&item.require("call_id")?, blocks, false)?;
            let own = common::cache_control(item, &mut request.warnings);
            result.cache_control = own.or(result.cache_control);
            request.conversation.push(Role::Tool, vec![result]);
            Ok(())
        }
        "additional_tools" => add_tools(&item.require("tools")?, request),
        "item_reference" => {
            Err(item.error("items can't be referred to; send them, or use `previous_response_id`"))
        }
        other => {
            common::skip(item, other, request);
            Ok(())
        }
    }
}

fn add_message(item: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let role = item.require("role")?;
    let blocks = text_blocks(&item.require("content")?, request)?;
    match role.str()? {
        "user" => request.conversation.push(Role::User, blocks),
        "assistant" => request.conversation.push(Role::Assistant, blocks),
        "system" | "developer" => request.conversation.push_system(blocks),
        other => {
            let shown: String = other.chars().take(32).collect();
            let problem = format!("unknown role `{shown}`; use user, assistant or developer");
            return Err(role.error(&problem));
        }
    }
    Ok(())
}

/// Reasoning comes back in up to three forms; the fullest readable one is taken. One that
/// nobody here can read (another server's encrypted text) is dropped.
fn add_reasoning(item: &Node<'_>, request: &mut Request) {
    let texts = |name: &str| {
        let parts = item.value.get(name).and_then(Value::as_array);
        let texts = parts.into_iter().flatten().filter_map(|part| part.get("text")?.as_str());
        texts.collect::<Vec<_>>().join("\n")
    };
    let sealed = item.peek_str("encrypted_content");
    let mut text = texts("content");
    if text.is_empty() {
        text = sealed.and_then(seal::open).unwrap_or_default();
    }
    if text.is_empty() {
        text = texts("summary");
    }
    if !text.is_empty() {
        let thinking = Content::Thinking { text, signature: sealed.map(str::to_owned) };
        request.conversation.push(Role::Assistant, vec![Block::from(thinking)]);
    }
}

fn call(item: &Node<'_>, kind: &str) -> Result<Block, ApiError> {
    let arguments = if kind == "custom_tool_call" {
        // Free text, not JSON: wrapped so that templates can treat it like any call.
        let text = item.get("input").map(|input| input.str()).transpose()?.unwrap_or_default();
        serde_json::json!({"input": text}).to_string()
    } else {
        let text = item.get("arguments").map(|a| a.str()).transpose()?.unwrap_or_default();
        common::canonical_arguments(text)
    };
    Ok(Block::from(Content::ToolCall {
        id: common::call_id(&item.require("call_id")?)?,
        name: common::tool_name(&item.require("name")?)?,
        arguments,
    }))
}
