//! Anthropic Messages bodies, and those of `count_tokens`.
//!
//! Tool results arrive inside user messages and become messages of their own here; system text
//! may appear between turns (Claude Code does that). Claude Code's billing header is a system
//! block that differs between sessions, so rendering it would end prefix sharing at the first
//! line: it is dropped unless asked for.

use std::sync::Arc;

use serde_json::Value;

use super::common::{self, text_blocks, text_part};
use super::json::Node;
use super::split::Split;
use super::turns::{self, Notes};
use super::{ParseOptions, tools};
use crate::error::ApiError;
use crate::ir::{Block, Content, Role, ToolChoice};
use crate::limits::{BLOCKS_MAX, HEADER_JSON_BYTES_MAX, OUTPUT_TOKENS_MAX};
use crate::request::{Endpoint, Request, Thinking, ThinkingDisplay};
use crate::session::Harness;
use crate::{edits, seal, session};

const BILLING_HEADER: &str = "x-anthropic-billing-header:";

pub(super) fn build(
    split: &mut Split<'_>,
    endpoint: Endpoint,
    options: ParseOptions,
    notes: &mut Notes,
) -> Result<Request, ApiError> {
    let body = Node::root(&split.value);
    let mut request = common::start(&body, endpoint, options)?;
    request.include_usage = true;
    if endpoint == Endpoint::Messages {
        let limit = body.require("max_tokens")?;
        // 0 asks for a prompt to be computed and kept, and for no answer.
        request.sampling.max_tokens = Some(limit.count(0, OUTPUT_TOKENS_MAX)?);
    }
    tools::read(split.tools, &mut request, add_tool)?;
    members(&body, &mut request)?;
    if let Some(blocks) = prompt(split, &body, &mut request, notes)? {
        let blocks = without_billing_header(blocks, &mut request);
        request.conversation.push_system(blocks);
    }
    let messages = body.require("messages")?;
    turns::read(split, &messages, &mut request, notes, add_message)?;
    let Some(last) = request.conversation.messages.last() else {
        return Err(messages.error("at least one message is required"));
    };
    let text_last = matches!(last.blocks.last(), Some(Block { content: Content::Text(_), .. }));
    request.continue_final = last.role == Role::Assistant && text_last;
    common::finish(request)
}

/// The blocks of `system`, which are known where it came before.
fn prompt(
    split: &Split<'_>,
    body: &Node<'_>,
    request: &mut Request,
    notes: &mut Notes,
) -> Result<Option<Vec<Block>>, ApiError> {
    if let Some(known) = split.system {
        return Ok(Some(known.to_vec()));
    }
    let Some(system) = body.get("system") else { return Ok(None) };
    let before = turns::said(request);
    let blocks = text_blocks(&system, request)?;
    // What is to be said of it is said each time.
    if split.items.is_some() && before.is_some() && turns::said(request) == before {
        notes.prompt = Some(Arc::new(blocks.clone()));
    }
    Ok(Some(blocks))
}

fn members(body: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    if let Some(stop) = body.get("stop_sequences") {
        request.sampling.stop = common::stop_strings(&stop)?;
    }
    if let Some(choice) = body.get("tool_choice") {
        tool_choice(&choice, request)?;
    }
    request.thinking_display = ThinkingDisplay::Hidden;
    if let Some(node) = body.get("thinking") {
        thinking(&node, request)?;
    }
    if let Some(context) = body.get("context_management") {
        edits::parse(&context, request)?;
    }
    if let Some(config) = body.get("output_config") {
        if let Some(format) = config.get("format") {
            common::output_format(&format, request);
        }
    } else if let Some(format) = body.get("output_format") {
        common::output_format(&format, request);
    }
    if let Some(user) = body.get("metadata").and_then(|m| m.peek_str("user_id")) {
        user_id(user, request);
    }
    Ok(())
}

/// Claude Code packs its session into `user_id` as a JSON string; others send a plain name.
fn user_id(text: &str, request: &mut Request) {
    let packed = match text.len() {
        0..=HEADER_JSON_BYTES_MAX => crate::plain_json::from_str(text).ok(),
        _ => None,
    };
    match packed {
        Some(Value::Object(members)) => {
            let session = members.get("session_id").and_then(Value::as_str);
            let inferred = &mut request.body_identity.inferred;
            inferred.session = session.and_then(session::id);
            inferred.named_by = Some("metadata.user_id");
        }
        _ => request.hints.user_id = session::id(text),
    }
}

fn thinking(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let kind = node.require("type")?;
    request.thinking = match kind.str()? {
        "enabled" => Thinking::Enabled,
        "adaptive" => Thinking::Auto,
        "disabled" => Thinking::Disabled,
        _ => return Err(kind.error("expected `enabled`, `adaptive` or `disabled`")),
    };
    request.thinking_display = match (request.thinking, node.peek_str("display")) {
        (Thinking::Disabled, _) => ThinkingDisplay::Hidden,
        (_, Some("omitted")) => ThinkingDisplay::Omitted,
        _ => ThinkingDisplay::Full,
    };
    if let Some(budget) = node.get("budget_tokens") {
        request.thinking_tokens_max = Some(budget.count(1, u32::MAX)?);
    }
    Ok(())
}

fn add_tool(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    node.object()?;
    match node.peek_str("type") {
        Some("custom") | None => tools::add(tools::function(node, "input_schema")?, node, request),
        // Tools that Anthropic's own servers run: nothing here runs them.
        Some(kind) => tools::add_hosted(node, kind, request),
    }
}

fn tool_choice(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let kind = node.require("type")?;
    request.conversation.tool_choice = match kind.str()? {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::None,
        "any" => ToolChoice::Required,
        "tool" => ToolChoice::Named(tools::tool_name(&node.require("name")?)?),
        _ => return Err(kind.error("expected `auto`, `any`, `tool` or `none`")),
    };
    if let Some(disable) = node.get("disable_parallel_tool_use") {
        request.conversation.parallel_tool_calls = !disable.bool()?;
    }
    Ok(())
}

fn without_billing_header(blocks: Vec<Block>, request: &mut Request) -> Vec<Block> {
    let mut kept = Vec::with_capacity(blocks.len());
    for mut block in blocks {
        if let Content::Text(text) = &mut block.content
            && text.starts_with(BILLING_HEADER)
        {
            let line_end = text.find('\n').map_or(text.len(), |end| end + 1);
            let ids = &mut request.body_identity.inferred;
            ids.harness = Harness::ClaudeCode;
            ids.is_subagent |= text[..line_end].contains("cc_is_subagent=true");
            if request.options.strip_billing_header {
                text.drain(..line_end);
                if text.is_empty() {
                    continue;
                }
            }
        }
        kept.push(block);
    }
    kept
}

fn add_message(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    node.object()?;
    let role = node.require("role")?;
    let content = node.require("content")?;
    match role.str()? {
        "user" => user_message(&content, request),
        "assistant" => {
            let blocks = assistant_blocks(&content, request)?;
            request.conversation.push(Role::Assistant, blocks);
            Ok(())
        }
        "system" | "developer" => {
            let blocks = text_blocks(&content, request)?;
            request.conversation.push_system(blocks);
            Ok(())
        }
        other => {
            let shown: String = other.chars().take(32).collect();
            Err(role.error(&format!("unknown role `{shown}`; use user, assistant or system")))
        }
    }
}

/// Splits a user message where tool results and user text alternate.
fn user_message(content: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    if !content.value.is_array() {
        let blocks = text_blocks(content, request)?;
        request.conversation.push(Role::User, blocks);
        return Ok(());
    }
    let mut texts = Vec::new();
    let mut any_result = false;
    for part in content.items(BLOCKS_MAX)? {
        if part.peek_str("type") == Some("tool_result") {
            if !texts.is_empty() {
                request.conversation.push(Role::User, std::mem::take(&mut texts));
            }
            let result = tool_result(&part, request)?;
            request.conversation.push(Role::Tool, vec![result]);
            any_result = true;
        } else {
            texts.extend(text_part(&part, request)?);
        }
    }
    if !texts.is_empty() || !any_result {
        request.conversation.push(Role::User, texts);
    }
    Ok(())
}

fn tool_result(node: &Node<'_>, request: &mut Request) -> Result<Block, ApiError> {
    let blocks = match node.get("content") {
        Some(content) => text_blocks(&content, request)?,
        None => Vec::new(),
    };
    let is_error = node.get("is_error").map(|node| node.bool()).transpose()?.unwrap_or(false);
    let mut result = common::result_block(&node.require("tool_use_id")?, blocks, is_error)?;
    let own = common::cache_control(node, &mut request.warnings);
    result.cache_control = own.or(result.cache_control);
    Ok(result)
}

fn assistant_blocks(content: &Node<'_>, request: &mut Request) -> Result<Vec<Block>, ApiError> {
    if !content.value.is_array() {
        return text_blocks(content, request);
    }
    let mut blocks = Vec::new();
    for part in content.items(BLOCKS_MAX)? {
        let block = match part.peek_str("type") {
            Some("thinking") => thinking_block(&part, request)?,
            // Its text is readable only to whoever made it.
            Some("redacted_thinking") => redacted_block(&part, request),
            Some("tool_use") => Some(tool_use(&part, request)?),
            _ => text_part(&part, request)?,
        };
        blocks.extend(block);
    }
    Ok(blocks)
}

fn thinking_block(part: &Node<'_>, request: &Request) -> Result<Option<Block>, ApiError> {
    let signature = part.peek_str("signature").filter(|s| !s.is_empty()).map(str::to_owned);
    let shown = part.require("thinking")?.str()?;
    let text = match shown {
        "" => {
            let sealer = request.options.sealer.as_ref();
            let opened = signature.as_deref().and_then(|mark| seal::open(mark, sealer));
            opened.unwrap_or_default()
        }
        _ => shown.to_owned(),
    };
    let block = Block::from(Content::Thinking { text, signature });
    Ok(Some(block)
        .filter(|b| !matches!(&b.content, Content::Thinking { text, .. } if text.is_empty())))
}

fn redacted_block(part: &Node<'_>, request: &Request) -> Option<Block> {
    let data = part.peek_str("data")?;
    let text = seal::open(data, request.options.sealer.as_ref()).filter(|t| !t.is_empty())?;
    Some(Block::from(Content::Thinking { text, signature: Some(data.to_owned()) }))
}

fn tool_use(part: &Node<'_>, request: &mut Request) -> Result<Block, ApiError> {
    let input = match part.get("input") {
        Some(input) => {
            input.object()?;
            input.value.to_string()
        }
        None => "{}".to_owned(),
    };
    Ok(Block {
        content: Content::ToolCall {
            id: common::call_id(&part.require("id")?)?,
            name: tools::tool_name(&part.require("name")?)?,
            arguments: input,
        },
        cache_control: common::cache_control(part, &mut request.warnings),
    })
}
