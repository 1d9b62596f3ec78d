//! What the three bodies share: content parts, tools, sampling numbers, thinking.
//!
//! Kept in one place so that a limit or a refusal is the same whichever API it is met in.

use serde_json::Value;

use super::json::Node;
use super::{Media, ParseOptions, tools};
use crate::error::ApiError;
use crate::hints::{parse_body_hints, parse_cache_control, settle};
use crate::ir::{Block, CacheControl, Content};
use crate::limits::{
    BLOCKS_MAX, CHOICES_MAX, ID_BYTES_MAX, MODEL_BYTES_MAX, OUTPUT_TOKENS_MAX,
    STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX, TOOL_NAME_BYTES_MAX,
};
use crate::request::{Endpoint, OutputFormat, Request, Thinking};

/// Starts a request from the members all bodies have.
pub(crate) fn start(
    body: &Node<'_>,
    endpoint: Endpoint,
    options: ParseOptions,
) -> Result<Request, ApiError> {
    let model = body.require("model")?;
    let name = model.str()?;
    if name.is_empty() || name.len() > MODEL_BYTES_MAX {
        return Err(model.error(&format!("must have 1 to {MODEL_BYTES_MAX} bytes")));
    }
    let mut request = Request::new(endpoint, name.to_owned());
    request.options = options;
    if let Some(stream) = body.get("stream") {
        request.stream = stream.bool()?;
    }
    parse_body_hints(body.object()?, &mut request);
    sampling(body, &mut request)?;
    template_arguments(body, &mut request);
    Ok(request)
}

/// Ends a request once everything in the body was read.
pub(crate) fn finish(mut request: Request) -> Result<Request, ApiError> {
    tools::load_referenced(&mut request);
    tools::check_choice(&request)?;
    settle(&mut request);
    request.session = request.body_identity.resolve();
    Ok(request)
}

fn sampling(body: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let number = |name: &'static str, min: f64, max: f64| {
        body.get(name).map(|node| node.number(min, max)).transpose()
    };
    let sampling = &mut request.sampling;
    sampling.temperature = number("temperature", 0.0, 2.0)?;
    sampling.top_p = number("top_p", 0.0, 1.0)?;
    sampling.min_p = number("min_p", 0.0, 1.0)?;
    sampling.presence_penalty = number("presence_penalty", -2.0, 2.0)?;
    sampling.frequency_penalty = number("frequency_penalty", -2.0, 2.0)?;
    sampling.repetition_penalty = number("repetition_penalty", 1e-3, 10.0)?;
    if let Some(node) = body.get("top_k") {
        // Some clients write -1 for "no limit", others 0.
        let off = matches!(node.value.as_i64(), Some(-1 | 0));
        sampling.top_k = if off { None } else { Some(node.count(1, u32::MAX)?) };
    }
    if let Some(node) = body.get("seed") {
        let seed = node.value.as_i64().or_else(|| node.value.as_u64().map(|s| s as i64));
        sampling.seed = Some(seed.ok_or_else(|| node.wrong_type("a whole number"))?);
    }
    if let Some(node) = body.get("n") {
        request.n = node.count(1, u32::MAX)?;
        let choices_max = if request.endpoint == Endpoint::Chat { CHOICES_MAX } else { 1 };
        if request.n > choices_max {
            return Err(node.error(&format!("must be at most {choices_max}, got {}", request.n)));
        }
    }
    sampling.ignore_eos =
        body.get("ignore_eos").and_then(|node| node.value.as_bool()) == Some(true);
    Ok(())
}

/// `chat_template_kwargs`, the usual way to switch thinking where an API has no member for it.
fn template_arguments(body: &Node<'_>, request: &mut Request) {
    let Some(arguments) = body.get("chat_template_kwargs") else { return };
    let switch = ["enable_thinking", "thinking"]
        .iter()
        .find_map(|name| arguments.value.get(*name).and_then(Value::as_bool));
    if let Some(on) = switch {
        request.thinking = if on { Thinking::Enabled } else { Thinking::Disabled };
    }
}

/// A budget of output tokens.
pub(crate) fn max_tokens(node: &Node<'_>) -> Result<u32, ApiError> {
    node.count(1, OUTPUT_TOKENS_MAX)
}

/// Effort words: only `none` switches thinking off.
pub(crate) fn effort(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    request.thinking = match node.str()? {
        "none" => Thinking::Disabled,
        _ => Thinking::Enabled,
    };
    Ok(())
}

/// Stop strings: one or an array.
pub(crate) fn stop_strings(node: &Node<'_>) -> Result<Vec<String>, ApiError> {
    let nodes: Vec<Node<'_>> = match node.value {
        Value::String(_) => vec![node.clone()],
        _ => node.items(STOP_STRINGS_MAX)?.collect(),
    };
    let mut stops = Vec::with_capacity(nodes.len());
    for node in nodes {
        let text = node.str()?;
        if text.is_empty() || text.len() > STOP_STRING_BYTES_MAX {
            let problem = format!("a stop string must have 1 to {STOP_STRING_BYTES_MAX} bytes");
            return Err(node.error(&problem));
        }
        stops.push(text.to_owned());
    }
    Ok(stops)
}

/// A block-level `cache_control`, as a hint: never an error.
pub(crate) fn cache_control(node: &Node<'_>, warnings: &mut Vec<String>) -> Option<CacheControl> {
    let value = node.value.get("cache_control")?;
    parse_cache_control(value, &node.path_of("cache_control"), warnings)
}

/// Text given as a string or as an array of parts; empty texts vanish.
pub(crate) fn text_blocks(node: &Node<'_>, request: &mut Request) -> Result<Vec<Block>, ApiError> {
    if let Value::String(text) = node.value {
        return Ok(text_block(text, None).into_iter().collect());
    }
    if !node.value.is_array() {
        return Err(node.wrong_type("a string or an array of parts"));
    }
    let mut blocks = Vec::new();
    for part in node.items(BLOCKS_MAX)? {
        blocks.extend(text_part(&part, request)?);
    }
    Ok(blocks)
}

/// One text part; media become one, unknown kinds are skipped with a warning.
pub(crate) fn text_part(part: &Node<'_>, request: &mut Request) -> Result<Option<Block>, ApiError> {
    if let Value::String(text) = part.value {
        return Ok(text_block(text, None));
    }
    part.object()?;
    let text_member = match part.require("type")?.str()? {
        "text" | "input_text" | "output_text" | "summary_text" | "reasoning_text" => "text",
        "refusal" => "refusal",
        kind => return other_part(part, kind, request),
    };
    let text = part.require(text_member)?.str()?;
    Ok(text_block(text, cache_control(part, &mut request.warnings)))
}

fn text_block(text: &str, cache_control: Option<CacheControl>) -> Option<Block> {
    // An empty text adds nothing to a prompt, but a breakpoint on it still marks a place.
    let wanted = !text.is_empty() || cache_control.is_some();
    wanted.then(|| Block { content: Content::Text(text.to_owned()), cache_control })
}

/// A part that is not text: media are replaced or refused, the rest is skipped with a warning.
fn other_part(
    part: &Node<'_>,
    kind: &str,
    request: &mut Request,
) -> Result<Option<Block>, ApiError> {
    if let Some(text) = written(part, kind, request) {
        return Ok(text_block(&text, cache_control(part, &mut request.warnings)));
    }
    let Some(media) = media_word(kind) else {
        skip(part, kind, request);
        return Ok(None);
    };
    if request.options.media == Media::Refuse {
        let problem = format!("content of type `{media}` is not supported; send text only");
        let path = part.path_of("type");
        return Err(ApiError::invalid(path, &problem).with_code("unsupported_content"));
    }
    request.tell("media-left-out");
    request.warn(format!("`{}` left out: this model reads text", part.path));
    let text = format!("[{media} left out: this model reads text]");
    Ok(text_block(&text, cache_control(part, &mut request.warnings)))
}

/// The text of a part that is not called text and yet holds some.
fn written(part: &Node<'_>, kind: &str, request: &mut Request) -> Option<String> {
    let titled = |text: String| match part.peek_str("title") {
        Some(title) if !title.is_empty() => format!("{title}\n{text}"),
        _ => text,
    };
    match kind {
        "document" => {
            let source = part.get("source").filter(|s| s.peek_str("type") == Some("text"))?;
            source.peek_str("data").map(|text| titled(text.to_owned()))
        }
        "search_result" => {
            let content = part.get("content")?;
            let parts = content.value.as_array()?;
            let texts = parts.iter().filter_map(|p| p.get("text").and_then(Value::as_str));
            Some(titled(texts.collect::<Vec<_>>().join("\n")))
        }
        "tool_reference" => {
            let name = part.peek_str("tool_name").filter(|n| n.len() <= TOOL_NAME_BYTES_MAX)?;
            request.refer_to(name);
            Some(format!("[tool {name} can be called now]"))
        }
        _ => None,
    }
}

/// The kind of media that a part's type names, if it names one.
fn media_word(kind: &str) -> Option<&'static str> {
    const MEDIA: [&str; 6] = ["image", "audio", "document", "file", "video", "computer_screenshot"];
    let bare = kind.strip_prefix("input_").unwrap_or(kind);
    let bare = bare.strip_suffix("_url").unwrap_or(bare);
    MEDIA.into_iter().find(|media| *media == bare)
}

/// Warns about a kind of content or tool that means nothing here.
pub(crate) fn skip(part: &Node<'_>, kind: &str, request: &mut Request) {
    let shown: String = kind.chars().take(64).collect();
    request.warn(format!("`{}` ignored: unknown type `{shown}`", part.path));
}

/// An id that a call or its result carries.
pub(crate) fn call_id(node: &Node<'_>) -> Result<String, ApiError> {
    let id = node.str()?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(node.error(&format!("must have 1 to {ID_BYTES_MAX} bytes")));
    }
    Ok(id.to_owned())
}

/// What a call returned. A breakpoint inside it stands after the whole result, which is one block.
pub(crate) fn result_block(
    call: &Node<'_>,
    mut blocks: Vec<Block>,
    is_error: bool,
) -> Result<Block, ApiError> {
    let call_id = call_id(call)?;
    let inner = blocks.iter_mut().filter_map(|block| block.cache_control.take()).last();
    Ok(Block { content: Content::ToolResult { call_id, blocks, is_error }, cache_control: inner })
}

/// Canonical argument text: compact if it is a JSON object, else what the client sent.
pub(crate) fn canonical_arguments(text: &str) -> String {
    if text.trim().is_empty() {
        return "{}".to_owned();
    }
    match crate::plain_json::from_str(text) {
        Ok(value) if value.is_object() => value.to_string(),
        _ => text.to_owned(),
    }
}

/// `response_format`, `text.format` or `output_config.format`.
pub(crate) fn output_format(node: &Node<'_>, request: &mut Request) {
    request.output_format = match node.peek_str("type") {
        Some("json_object") => OutputFormat::JsonObject,
        Some("json_schema") => {
            // Chat nests the schema in an object of its own; the other two don't.
            let holder = node.get("json_schema").unwrap_or_else(|| node.clone());
            let name = holder.peek_str("name").unwrap_or("schema").to_owned();
            let strict = holder.get("strict").and_then(|strict| strict.value.as_bool());
            let strict = strict == Some(true);
            match holder.get("schema").filter(|schema| schema.value.is_object()) {
                Some(schema) => {
                    OutputFormat::JsonSchema { name, schema: schema.value.clone(), strict }
                }
                None => OutputFormat::JsonObject,
            }
        }
        _ => return,
    };
}
