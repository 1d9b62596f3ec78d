//! OpenAI Responses bodies.
//!
//! A conversation as a flat list of items. Codex is the main client: its base prompt is a
//! developer message, its tools come in namespaces, its reasoning comes back as opaque items.
//! Ids that clients put on items never reach the conversation. Items that refer to stored state
//! other than `previous_response_id` are refused, since guessing their content would be worse.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::common::{self, text_blocks};
use super::json::{Node, Path};
use super::split::{Items, Split};
use super::turns::{self, Notes, Offered};
use super::{ParseOptions, tools};
use crate::error::ApiError;
use crate::ir::{Block, Content, Conversation, Role, ToolChoice};
use crate::limits::{
    BLOCKS_MAX, METADATA_MEMBERS_MAX, REASONING_WORD_BYTES_MAX, TOOLS_MAX, TOP_LOGPROBS_MAX,
};
use crate::request::{Endpoint, Request, ResponsesEcho};
use crate::session::read_codex_metadata;
use crate::{compaction, seal, session};

pub(super) fn build(
    split: &mut Split<'_>,
    endpoint: Endpoint,
    options: ParseOptions,
    notes: &mut Notes,
) -> Result<Request, ApiError> {
    let body = Node::root(&split.value);
    let mut request = common::start(&body, endpoint, options)?;
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
    echo.tools = offered(split, &body, &mut request, notes)?;
    identity(&body, &mut request);
    input(split, echo.previous_response_id.is_some(), &mut request, notes)?;
    // After the input, which may bring tools of its own.
    if let Some(choice) = body.get("tool_choice") {
        tool_choice(&choice, &mut request)?;
        echo.tool_choice = Some(choice.value.clone());
    }
    // Only what is to be stored is worth its memory.
    let store = echo.store;
    echo.input = match split.value.get_mut("input").filter(|_| store).map(Value::take) {
        Some(Value::Array(items)) => split.items.as_mut().map_or(items, Items::sent),
        Some(Value::String(text)) => {
            let part = json!({"type": "input_text", "text": text});
            vec![json!({"type": "message", "role": "user", "content": [part]})]
        }
        _ => Vec::new(),
    };
    request.responses = Some(Box::new(echo));
    common::finish(request)
}

fn refuse_unsupported(body: &Node<'_>) -> Result<(), ApiError> {
    for name in ["conversation", "prompt"] {
        if let Some(node) = body.get(name) {
            return Err(node.error("stored prompts and conversations are not supported"));
        }
    }
    Ok(())
}

fn input(
    split: &Split<'_>,
    continues: bool,
    request: &mut Request,
    notes: &mut Notes,
) -> Result<(), ApiError> {
    let body = Node::root(&split.value);
    let input = match body.get("input") {
        None if continues => return Ok(()),
        _ => body.require("input")?,
    };
    if input.value.is_string() {
        let blocks = text_blocks(&input, request)?;
        request.conversation.push(Role::User, blocks);
        return Ok(());
    }
    turns::read(split, &input, request, notes, add_item)?;
    let among = input.value.as_array().map_or(0, Vec::len);
    if split.items.as_ref().map_or(among, Items::len) == 0 && !continues {
        return Err(input.error("at least one item is required"));
    }
    Ok(())
}

fn echo(body: &Node<'_>) -> Result<ResponsesEcho, ApiError> {
    let word = |node: Option<Node<'_>>, name: &str, known: &[&str]| -> Option<String> {
        let word = node?.peek_str(name)?;
        known.contains(&word).then(|| word.to_owned())
    };
    let mut echo = ResponsesEcho {
        store: body.get("store").map(|node| node.bool()).transpose()?.unwrap_or(true),
        reasoning: reasoning_words(body),
        format: body.get("text").and_then(|text| text.get("format")).and_then(echoed_format),
        verbosity: word(body.get("text"), "verbosity", &["low", "medium", "high"]),
        truncation_auto: body.peek_str("truncation") == Some("auto"),
        user: body.peek_str("user").and_then(session::id),
        safety_identifier: body.peek_str("safety_identifier").and_then(session::id),
        ..ResponsesEcho::default()
    };
    if let Some(previous) = body.get("previous_response_id") {
        echo.previous_response_id = Some(common::call_id(&previous)?);
    }
    if let Some(background) = body.get("background") {
        echo.background = background.bool()?;
        let streams = body.get("stream").is_some_and(|stream| stream.value.as_bool() == Some(true));
        if echo.background && (streams || !echo.store) {
            let problem = "a background response is stored and not streamed; get it by its id";
            return Err(background.error(problem));
        }
    }
    if let Some(calls) = body.get("max_tool_calls") {
        echo.max_tool_calls = Some(calls.count(1, u32::MAX)?);
    }
    if let Some(include) = body.get("include") {
        for item in include.items(BLOCKS_MAX)? {
            let item = item.str()?;
            echo.include_encrypted_reasoning |= item == "reasoning.encrypted_content";
            echo.include_logprobs |= item == "message.output_text.logprobs";
        }
    }
    if let Some(Value::Object(metadata)) = body.get("metadata").map(|node| node.value) {
        let texts = metadata.iter().filter(|(_, value)| value.is_string());
        let kept = texts.take(METADATA_MEMBERS_MAX).map(|(k, v)| (k.clone(), v.clone()));
        echo.metadata = kept.collect();
    }
    Ok(echo)
}

/// `reasoning` to be repeated: its words, whether or not they mean something here.
fn reasoning_words(body: &Node<'_>) -> Map<String, Value> {
    let mut words: Map<String, Value> =
        ["effort", "summary"].map(|name| (name.to_owned(), Value::Null)).into_iter().collect();
    let given = body.get("reasoning").and_then(|node| node.value.as_object());
    for (name, value) in given.into_iter().flatten() {
        let short = |text: &str| text.len() <= REASONING_WORD_BYTES_MAX;
        if short(name) && value.as_str().is_some_and(short) && words.len() < METADATA_MEMBERS_MAX {
            words.insert(name.clone(), value.clone());
        }
    }
    words
}

/// `text.format` to be repeated, with the members that strict clients look for.
fn echoed_format(format: Node<'_>) -> Option<Value> {
    let mut echoed = format.value.as_object()?.clone();
    match format.peek_str("type") {
        Some("json_schema") => {
            fill(&mut echoed, "name", "schema".into());
            fill(&mut echoed, "description", Value::Null);
            fill(&mut echoed, "strict", false.into());
        }
        Some("text" | "json_object") => {}
        _ => return None,
    }
    Some(Value::Object(echoed))
}

/// A tool to be repeated, as it came, with the members that strict clients look for.
fn echoed_tool(tool: &Value) -> Value {
    let Value::Object(members) = tool else { return tool.clone() };
    let mut echoed = members.clone();
    if echoed.get("type").and_then(Value::as_str) == Some("function") {
        for name in ["description", "parameters"] {
            fill(&mut echoed, name, Value::Null);
        }
        fill(&mut echoed, "strict", false.into());
    }
    Value::Object(echoed)
}

/// Sets a member that is missing or null.
fn fill(members: &mut Map<String, Value>, name: &str, value: Value) {
    let member = members.entry(name).or_insert(Value::Null);
    if member.is_null() {
        *member = value;
    }
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
    if echo.include_logprobs && request.sampling.logprobs.is_none() {
        request.sampling.logprobs = Some(0);
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
        if let Some(session) = get("session_id") {
            ids.session = Some(session);
            ids.named_by = Some("client_metadata");
        }
        ids.agent = get("thread_id").or_else(|| ids.agent.take());
    }
    if ids.agent == ids.session {
        ids.agent = None;
    }
    if ids.session.is_none() {
        ids.session.clone_from(&request.hints.prompt_cache_key);
        ids.named_by = Some("prompt_cache_key");
    }
}

/// The tools as they are repeated, which are known where they came before.
fn offered(
    split: &Split<'_>,
    body: &Node<'_>,
    request: &mut Request,
    notes: &mut Notes,
) -> Result<Arc<Vec<Value>>, ApiError> {
    if let Some(known) = split.offered {
        known.apply(request);
        return Ok(Arc::clone(&known.echoed));
    }
    let Some(tools) = body.get("tools") else { return Ok(Arc::default()) };
    let add = |request: &mut Request| {
        add_tools(&tools, request)?;
        let echoed = tools.items(TOOLS_MAX)?.map(|tool| echoed_tool(tool.value));
        Ok(Arc::new(echoed.collect::<Vec<_>>()))
    };
    if split.items.is_none() {
        // Nothing is kept of a body that is read whole.
        return add(request);
    }
    let mut echoed = Arc::default();
    let offered = Offered::read(request, |request| {
        echoed = add(request)?;
        Ok(Arc::clone(&echoed))
    })?;
    notes.offered = Some(Arc::new(offered));
    Ok(echoed)
}

fn add_tools(tools: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    for tool in tools.items(TOOLS_MAX)? {
        tool.object()?;
        if tool.peek_str("type") == Some("namespace") {
            let namespace = tools::tool_name(&tool.require("name")?)?;
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
    let mut tool = match node.require("type")?.str()? {
        "function" => tools::function(node, "parameters")?,
        "custom" => tools::custom(node, request)?,
        // Hosted tools: the model here can't call them, the rest still works.
        kind => return tools::add_hosted(node, kind, request),
    };
    tool.namespace = namespace.map(str::to_owned);
    tools::add(tool, node, request)
}

/// The model's name of the tool that an object with `name` and perhaps `namespace` names; `None` for a hosted one.
fn named(node: &Node<'_>, request: &Request) -> Result<Option<String>, ApiError> {
    if !matches!(node.peek_str("type"), Some("function" | "custom")) {
        return Ok(None);
    }
    let name = tools::tool_name(&node.require("name")?)?;
    Ok(Some(tools::model_name(request, node.peek_str("namespace"), name)))
}

fn tool_choice(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let choice = match node.value {
        Value::String(word) => tools::choice_word(node, word)?,
        Value::Object(_) if node.peek_str("type") == Some("allowed_tools") => {
            tools::allowed(node, |tool| named(tool, request))?
        }
        Value::Object(_) => match named(node, request)? {
            Some(name) => ToolChoice::Named(name),
            None => {
                request
                    .warn("`tool_choice` ignored: only functions and custom tools can be chosen");
                ToolChoice::Auto
            }
        },
        _ => return Err(node.wrong_type("a string or an object")),
    };
    request.conversation.tool_choice = choice;
    Ok(())
}

/// Appends items that a server kept to a conversation.
pub(crate) fn add_items(
    conversation: Conversation,
    items: &[Value],
    options: ParseOptions,
) -> Result<Conversation, ApiError> {
    let mut request = Request::new(Endpoint::Responses, String::new());
    (request.conversation, request.options) = (conversation, options);
    for (at, value) in items.iter().enumerate() {
        add_item(&Node { value, path: Path::ROOT.member("input").item(at) }, &mut request)?;
    }
    Ok(request.conversation)
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
            let call = call(item, kind, request)?;
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
        "compaction" | "compaction_summary" => compaction::add_item(item, request),
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
        let sealer = request.options.sealer.as_ref();
        text = sealed.and_then(|mark| seal::open(mark, sealer)).unwrap_or_default();
    }
    if text.is_empty() {
        text = texts("summary");
    }
    if !text.is_empty() {
        let thinking = Content::Thinking { text, signature: sealed.map(str::to_owned) };
        request.conversation.push(Role::Assistant, vec![Block::from(thinking)]);
    }
}

fn call(item: &Node<'_>, kind: &str, request: &Request) -> Result<Block, ApiError> {
    let arguments = if kind == "custom_tool_call" {
        let text = item.get("input").map(|input| input.str()).transpose()?.unwrap_or_default();
        tools::custom_arguments(text)
    } else {
        let text = item.get("arguments").map(|a| a.str()).transpose()?.unwrap_or_default();
        common::canonical_arguments(text)
    };
    let name = tools::tool_name(&item.require("name")?)?;
    Ok(Block::from(Content::ToolCall {
        id: common::call_id(&item.require("call_id")?)?,
        name: tools::model_name(request, item.peek_str("namespace"), name),
        arguments,
    }))
}
