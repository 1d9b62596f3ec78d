//! A sample answer to a request body, for checking the encoders against the vendors' own types.
//!
//! Reads a body from standard input, answers it with a scripted model (think and call the first
//! tool; once a result is there, say so) and prints the HTTP status on the first line and the
//! body or stream after it: `encode_sample chat|responses|messages|count_tokens < body.json`.
//! Everything goes through the crate's public interface, as a gateway would do it.

use mainstay_chat::{
    ApiError, ChatTemplate, Endpoint, Finish, OutputParser, RenderOptions, Request, ResponseMeta,
    Role, StreamEncoder, TokenLogprob, Transcript, Usage, encode, parse_chat, parse_count_tokens,
    parse_messages, parse_responses,
};
use std::io::{Read, Write};

const TEMPLATE: &str = include_str!("../../../plugins/native/demo-model/chat_template.jinja");
const REQUEST_ID: &str = "req_sample";

fn main() -> std::io::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_default();
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body)?;
    let (endpoint, parsed) = match endpoint.as_str() {
        "responses" => (Endpoint::Responses, parse_responses(&body)),
        "messages" => (Endpoint::Messages, parse_messages(&body)),
        "count_tokens" => (Endpoint::CountTokens, parse_count_tokens(&body)),
        _ => (Endpoint::Chat, parse_chat(&body)),
    };
    let (status, answer) = match parsed.and_then(|request| answer(&request)) {
        Ok(answer) => (200, answer),
        Err(error) => (error.status(endpoint), error.body(endpoint, REQUEST_ID)),
    };
    write!(std::io::stdout(), "{status}\n{answer}")
}

fn answer(request: &Request) -> Result<String, ApiError> {
    let template = ChatTemplate::new(TEMPLATE, "", "<|end|>")?;
    let rendered =
        template.render_with_breakpoints(&request.conversation, RenderOptions::of(request))?;
    if request.endpoint == Endpoint::CountTokens {
        return Ok(encode::count_tokens_body(rendered.text.len() as u64, None));
    }
    let usage = Usage {
        prompt_tokens: rendered.text.len() as u64,
        cached_tokens: 16,
        created_tokens: rendered.breakpoints.last().map_or(0, |last| last.end_bytes as u64 / 2),
        created_long_tokens: 0,
        completion_tokens: 12,
        reasoning_tokens: 3,
    };
    let meta = ResponseMeta {
        request_id: REQUEST_ID.to_owned(),
        model: request.model.clone(),
        created_unix_s: 1_700_000_000,
        sealer: None,
        pins: Vec::new(),
    };
    let mut parser = OutputParser::new(
        request.output_options(rendered.thinking_open, mainstay_chat::Family::Hermes),
    );
    let mut encoder = StreamEncoder::new(request, meta.clone());
    let mut stream = encoder.start(&usage);
    let mut transcript = Transcript::default();
    let mut take = |event, stream: &mut String| {
        transcript.push(&event);
        stream.push_str(&encoder.event(&event));
    };
    for piece in script(request).split_inclusive(' ') {
        let events = match request.sampling.logprobs {
            Some(_) => parser.push_token(piece, logprob(piece)),
            None => parser.push(piece),
        };
        events.into_iter().for_each(|event| take(event, &mut stream));
        stream.push_str(encode::KEEPALIVE);
    }
    parser.finish().into_iter().for_each(|event| take(event, &mut stream));
    let finish = match parser.stopped() {
        Some(stop) => Finish::StopString(stop.to_owned()),
        None => Finish::Stop,
    };
    stream.push_str(&encoder.finish(&finish, &usage, 1_700_000_001));
    if request.stream {
        return Ok(stream);
    }
    Ok(encode::complete(request, &meta, &transcript, &finish, &usage, 1_700_000_001))
}

/// What the scripted model writes.
fn script(request: &Request) -> String {
    let last = request.conversation.messages.last().map(|message| message.role);
    match (request.conversation.tools.first(), last) {
        (_, Some(Role::Tool)) => "It is -4 degrees and snowy in Oslo.".to_owned(),
        (Some(tool), _) => format!(
            "<think>I should call the {} tool.</think>Let me look.\
             <tool_call>{{\"name\": \"{}\", \"arguments\": {{\"city\": \"Oslo\"}}}}</tool_call>",
            tool.name, tool.name
        ),
        (None, _) => "<think>A greeting.</think>Hello! How can I help you today?".to_owned(),
    }
}

fn logprob(piece: &str) -> TokenLogprob {
    let top = vec![(piece.to_owned(), -0.5), ("other".to_owned(), -1.5)];
    TokenLogprob { token: piece.to_owned(), logprob: -0.5, top }
}
