//! Compaction: a conversation summed up by the model, and the opaque item that stands for it from then on.
//!
//! The question for the summary is the last thing in the prompt, so all that was said before hits the cache. The item
//! carries the summary itself, sealed like withheld thinking: no server has to remember it. It comes back as something
//! the user said, since what it sums up has no more right to command than that; an item that nobody here made is
//! refused, for skipping it would lose a history without a word.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::encode::{Ids, Usage, usage_value};
use crate::error::ApiError;
use crate::ir::{Block, Content, Role, ToolChoice};
use crate::parse::{Node, ParseOptions, parse};
use crate::request::{Endpoint, OutputFormat, Request, Thinking};
use crate::seal::{Sealer, open, seal};

/// The longest summary, in tokens, unless the client asks for less.
const SUMMARY_TOKENS_MAX: u32 = 4_096;
/// Tells a sealed summary from sealed thinking.
const MARK: &str = "summary\n";

const QUESTION: &str = "Sum up the conversation so far, so that it can be continued from your summary alone. \
Keep what was asked for and agreed, decisions with their reasons, names, numbers, file paths and code that are still \
needed, what was tried and how it ended, and what is to be done next. Write only the summary.";

const ANSWER: &str = "The conversation so far was replaced by this summary of it:\n\n";

/// Reads the body of `POST /v1/responses/compact`: a Responses body of which only the conversation counts.
pub fn parse_compact(bytes: &[u8], options: ParseOptions) -> Result<Request, ApiError> {
    let mut request = parse(Endpoint::Responses, bytes, options)?;
    request.stream = false;
    if let Some(echo) = &mut request.responses {
        echo.store = false;
    }
    Ok(request)
}

/// Turns a request, its history joined already, into the question for a summary.
pub fn ask_for_summary(request: &mut Request) {
    let question = Block::text(QUESTION);
    match request.conversation.messages.last_mut() {
        // Some templates have no place for two users in a row.
        Some(last) if last.role == Role::User => Arc::make_mut(last).blocks.push(question),
        _ => request.conversation.push(Role::User, vec![question]),
    }
    request.thinking = Thinking::Disabled;
    // A summary is free text, whatever form the turns before it had. The tools stay in the prompt, which is cached.
    request.conversation.tool_choice = ToolChoice::None;
    request.output_format = OutputFormat::Text;
    request.sampling.logprobs = None;
    let most = request.sampling.max_tokens.unwrap_or(SUMMARY_TOKENS_MAX);
    request.sampling.max_tokens = Some(most.min(SUMMARY_TOKENS_MAX));
}

/// What the compacted conversation begins with: system text that was part of it. `instructions` are not, they come
/// with each request.
pub fn kept_prompt(request: &Request) -> Vec<Block> {
    let instructions = request.responses.as_ref().is_some_and(|echo| echo.instructions.is_some());
    let own = request.conversation.system.iter().skip(usize::from(instructions));
    own.cloned().collect()
}

/// The body of the answer.
pub fn compact_body(
    request_id: &str,
    prompt: &[Block],
    summary: &str,
    usage: &Usage,
    created_unix_s: u64,
    sealer: Option<&Sealer>,
) -> String {
    let ids = Ids::new(request_id);
    let mut output: Vec<Value> = Vec::new();
    let texts = prompt.iter().filter_map(|block| match &block.content {
        Content::Text(text) => Some(json!({"type": "input_text", "text": text})),
        _ => None,
    });
    let texts: Vec<Value> = texts.collect();
    if !texts.is_empty() {
        output.push(json!({
            "type": "message", "id": ids.item("msg", 0), "role": "developer",
            "status": "completed", "content": texts,
        }));
    }
    output.push(json!({
        "type": "compaction",
        "id": ids.item("cmp", output.len()),
        "encrypted_content": seal(&format!("{MARK}{summary}"), true, sealer),
    }));
    let body = json!({
        "id": ids.response(), "object": "response.compaction", "output": output,
        "created_at": created_unix_s, "usage": usage_value(usage),
    });
    body.to_string()
}

/// Puts an item's summary in the place of what it sums up.
pub(crate) fn add_item(item: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let sealed = item.require("encrypted_content")?;
    let opened = open(sealed.str()?, request.options.sealer.as_ref());
    let summary = opened.as_deref().and_then(|text| text.strip_prefix(MARK));
    let summary = summary.ok_or_else(|| {
        sealed.error("this was not made by `/v1/responses/compact` here; send what it stands for")
    })?;
    request.conversation.push(Role::User, vec![Block::text(format!("{ANSWER}{summary}"))]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Request, ApiError> {
        parse_compact(body.to_string().as_bytes(), ParseOptions::default())
    }

    fn compacted() -> Value {
        let body = json!({
            "model": "m", "instructions": "Per request.", "stream": true,
            "input": [
                {"role": "system", "content": "House rules."},
                {"role": "user", "content": "The word is slate."},
                {"role": "assistant", "content": "OK."},
            ],
        });
        let request = parse(&body).unwrap();
        assert!(!request.stream && !request.responses.as_ref().unwrap().store);
        let usage = Usage { prompt_tokens: 9, completion_tokens: 4, ..Usage::default() };
        let prompt = kept_prompt(&request);
        let body = compact_body("req_7", &prompt, "The word: slate.", &usage, 17, None);
        serde_json::from_str(&body).unwrap()
    }

    #[test]
    fn the_answer_has_the_prompt_and_an_item_that_gives_the_summary_back() {
        let body = compacted();
        assert_eq!(body["object"], "response.compaction");
        assert_eq!((&body["id"], &body["created_at"]), (&json!("resp_7"), &json!(17)));
        assert_eq!(body["usage"]["total_tokens"], 13);
        let output = body["output"].as_array().unwrap();
        assert_eq!(output[0]["content"], json!([{"type": "input_text", "text": "House rules."}]));
        assert_eq!(output[1]["type"], "compaction");
        assert!(!body.to_string().contains("slate"), "it is sealed");
        let mut next = output.clone();
        next.push(json!({"role": "user", "content": "go on"}));
        let conversation = parse(&json!({"model": "m", "input": next})).unwrap().conversation;
        assert_eq!(conversation.system, [Block::text("House rules.")]);
        let first = Block::text(format!("{ANSWER}The word: slate."));
        assert_eq!(conversation.messages[0].blocks, [first]);
        assert_eq!(conversation.messages[1].blocks, [Block::text("go on")]);
    }

    #[test]
    fn items_of_others_are_refused_and_so_is_thinking_in_their_place() {
        let thinking = seal("just a thought", true, None);
        for mark in ["gAAAAAforeign", "", thinking.as_str()] {
            let input = json!([{"type": "compaction", "encrypted_content": mark}]);
            let error = parse(&json!({"model": "m", "input": input})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("input[0].encrypted_content"), "{mark}");
        }
    }

    #[test]
    fn the_question_comes_last_and_is_bounded() {
        let asked = |input: Value, most: Value| {
            let mut request =
                parse(&json!({"model": "m", "input": input, "max_output_tokens": most})).unwrap();
            ask_for_summary(&mut request);
            request
        };
        let request = asked(json!("hi"), Value::Null);
        assert_eq!(request.conversation.messages.len(), 1);
        assert_eq!(
            request.conversation.messages[0].blocks,
            [Block::text("hi"), Block::text(QUESTION)]
        );
        assert_eq!(request.sampling.max_tokens, Some(SUMMARY_TOKENS_MAX));
        let answered =
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let request = asked(answered, json!(7));
        assert_eq!(request.conversation.messages[2].blocks, [Block::text(QUESTION)]);
        assert_eq!(request.sampling.max_tokens, Some(7));
    }

    #[test]
    fn a_body_needs_a_model_and_something_to_compact() {
        for body in
            [json!({"input": "hi"}), json!({"model": "m"}), json!({"model": "m", "input": []})]
        {
            assert!(parse(&body).is_err(), "{body}");
        }
        assert!(parse(&json!({"model": "m", "previous_response_id": "resp_1"})).is_ok());
    }
}
