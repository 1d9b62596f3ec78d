//! An answer written: a generation's tokens become text, events, and the frames or the body of a client.
//!
//! A client that reads nothing is cut off, and one that leaves ends its generation: it holds a permit and a
//! worker's stream.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use bytes::Bytes;
use mainstay_chat::encode::{self, KEEPALIVE};
use mainstay_chat::{
    ApiError, ErrorKind, Finish, OutputEvent, OutputParser, ResponseMeta, StreamEncoder,
    TokenLogprob, Transcript, Usage,
};
use mainstay_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Turn;
use crate::generate::{Event, Generation};
use crate::model::Detokenizer;
use crate::pins::{self, MadeLater};
use crate::responses_store::ResponsesStore;

/// Silence on a stream after which a comment is sent, so that nobody hangs up during a long prefill.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// A client that reads nothing for this long is cut off; it holds a permit and a worker's stream.
const READ_STALL_MAX: Duration = Duration::from_secs(60);
/// Frames on their way to one client.
const FRAMES_MAX: usize = 64;

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Turns a generation's tokens into the client's events.
pub(super) struct Writer {
    turn: Turn,
    meta: ResponseMeta,
    parser: OutputParser,
    detokenizer: Detokenizer,
    usage: Usage,
    thinking: bool,
    stored: ResponsesStore,
    /// What the request wished to keep.
    pins: Vec<MadeLater>,
}

/// What a generation's event comes to.
enum Step {
    Output(Vec<OutputEvent>),
    End(Vec<OutputEvent>, Finish),
}

impl Writer {
    pub(super) fn new(
        turn: Turn,
        generation: &Generation,
        stored: ResponsesStore,
        pins: Vec<MadeLater>,
    ) -> Self {
        let cached_tokens = u64::from(generation.cached_tokens);
        let usage = Usage {
            prompt_tokens: turn.prompt.tokens.len() as u64,
            cached_tokens,
            created_tokens: turn.prompt.created_tokens(cached_tokens, turn.card.block_tokens),
            completion_tokens: 0,
            reasoning_tokens: 0,
        };
        let meta = ResponseMeta {
            request_id: turn.request_id.clone(),
            model: turn.request.model.clone(),
            created_unix_s: unix_s(),
            thinking_mac: None,
            pins: Vec::new(),
        };
        let parser = OutputParser::new(
            turn.request.output_options(turn.prompt.thinking_open, turn.card.spelling.family),
        );
        let detokenizer =
            Detokenizer::new(Arc::clone(&turn.card.tokenizer), turn.card.end_tokens.clone());
        let thinking = turn.prompt.thinking_open;
        Self { turn, meta, parser, detokenizer, usage, thinking, stored, pins }
    }

    fn take(&mut self, event: Event) -> Step {
        match event {
            Event::Tokens { tokens, logprobs } => {
                self.turn.spending.answer(tokens.len() as u64);
                let mut out = Vec::new();
                for (at, token) in tokens.iter().enumerate() {
                    self.usage.completion_tokens += 1;
                    let text = self.detokenizer.push(*token);
                    let events = match self.logprob(at, &text, &logprobs) {
                        Some(logprob) => self.parser.push_token(&text, logprob),
                        None => self.parser.push(&text),
                    };
                    self.count_reasoning();
                    out.extend(events);
                    if let Some(stop) = self.parser.stopped().map(str::to_owned) {
                        out.extend(self.parser.finish());
                        return Step::End(out, Finish::StopString(stop));
                    }
                }
                Step::Output(out)
            }
            Event::Done { finish } => {
                let rest = self.detokenizer.finish();
                let mut out = self.parser.push(&rest);
                out.extend(self.parser.finish());
                let finish = match (self.parser.stopped(), finish) {
                    (Some(stop), _) => Finish::StopString(stop.to_owned()),
                    (None, v1::Finish::Length) => Finish::Length,
                    (None, v1::Finish::Cancelled) => Finish::Cancelled,
                    (None, _) => Finish::Stop,
                };
                Step::End(out, finish)
            }
            Event::Failed(error) => Step::End(self.parser.finish(), Finish::Error(error)),
        }
    }

    /// A token counts as reasoning from the opening of a thought to its close, both tags included.
    fn count_reasoning(&mut self) {
        let was = std::mem::replace(&mut self.thinking, self.parser.is_thinking());
        self.usage.reasoning_tokens += u64::from(was || self.thinking);
    }

    fn logprob(&self, at: usize, text: &str, all: &[v1::Logprob]) -> Option<TokenLogprob> {
        let mine = || all.iter().filter(|l| l.position as usize == at);
        let chosen = mine().find(|l| l.rank == 0)?;
        let name = |token: u32| self.turn.card.tokenizer.text_of(token);
        Some(TokenLogprob {
            token: text.to_owned(),
            logprob: f64::from(chosen.logprob),
            top: mine()
                .filter(|l| l.rank > 0)
                .map(|l| (name(l.token), f64::from(l.logprob)))
                .collect(),
        })
    }

    /// Counts what was used and keeps what `previous_response_id` may ask for.
    fn end(&self, transcript: &Transcript) {
        record(&self.usage);
        let Turn { request, request_id, tenant, .. } = &self.turn;
        if request.responses.as_ref().is_some_and(|r| r.store) {
            let answer = transcript.blocks(request.endpoint, request_id);
            let id = encode::response_id(request_id);
            self.stored.put(tenant, id, request.conversation_to_store(answer));
        }
    }

    pub(super) async fn collect(mut self, mut generation: Generation) -> Result<String, ApiError> {
        let mut transcript = Transcript::default();
        while let Some(event) = generation.events.recv().await {
            let (events, finish) = match self.take(event) {
                Step::Output(events) => (events, None),
                Step::End(events, finish) => (events, Some(finish)),
            };
            events.iter().for_each(|e| transcript.push(e));
            let Some(finish) = finish else { continue };
            if let Finish::Error(error) = finish {
                return Err(error);
            }
            self.end(&transcript);
            self.meta.pins = pins::notes(std::mem::take(&mut self.pins)).await;
            let request = &self.turn.request;
            return Ok(encode::complete(
                request,
                &self.meta,
                &transcript,
                &finish,
                &self.usage,
                unix_s(),
            ));
        }
        Err(ApiError::new(ErrorKind::Internal, "the generation ended without an end"))
    }

    /// The body of a stream. The client's leaving drops it, which ends the generation.
    pub(super) fn stream(
        mut self,
        mut generation: Generation,
        permit: OwnedSemaphorePermit,
    ) -> Body {
        let (sender, receiver) =
            mpsc::channel::<Result<Bytes, std::convert::Infallible>>(FRAMES_MAX);
        tokio::spawn(async move {
            let _permit = permit;
            let mut encoder = StreamEncoder::new(&self.turn.request, self.meta.clone());
            let mut text = encoder.start(&self.usage);
            loop {
                let frames = std::mem::take(&mut text);
                if !frames.is_empty()
                    && sender.send_timeout(Ok(Bytes::from(frames)), READ_STALL_MAX).await.is_err()
                {
                    return;
                }
                let event = tokio::select! {
                    event = generation.events.recv() => event,
                    () = sender.closed() => return,
                    () = tokio::time::sleep(KEEPALIVE_AFTER) => {
                        text = KEEPALIVE.to_owned();
                        continue;
                    }
                };
                let event = event.unwrap_or_else(|| {
                    Event::Failed(ApiError::new(
                        ErrorKind::Internal,
                        "the generation ended without an end",
                    ))
                });
                let (events, finish) = match self.take(event) {
                    Step::Output(events) => (events, None),
                    Step::End(events, finish) => (events, Some(finish)),
                };
                text = events.iter().map(|e| encoder.event(e)).collect();
                if let Some(finish) = finish {
                    encoder.note_pins(pins::notes(std::mem::take(&mut self.pins)).await);
                    text.push_str(&encoder.finish(&finish, &self.usage, unix_s()));
                    self.end(encoder.transcript());
                    let _ = sender.send_timeout(Ok(Bytes::from(text)), READ_STALL_MAX).await;
                    return;
                }
            }
        });
        Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }
}

fn record(usage: &Usage) {
    metrics::counter!("mainstay_gateway_prompt_tokens_total").increment(usage.prompt_tokens);
    metrics::counter!("mainstay_gateway_cached_tokens_total").increment(usage.cached_tokens);
    metrics::counter!("mainstay_gateway_completion_tokens_total")
        .increment(usage.completion_tokens);
}
