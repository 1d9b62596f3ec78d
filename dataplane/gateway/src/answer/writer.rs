//! An answer written: a request's generations become the frames or the body of its client.
//!
//! A client that reads nothing is cut off, and one that leaves ends its generations: it holds a permit and workers'
//! streams.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use bytes::Bytes;
use mainstay_chat::encode::{self, KEEPALIVE};
use mainstay_chat::{ApiError, ErrorKind, Finish, ResponseMeta, StreamEncoder, Transcript, Usage};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Turn;
use super::choice::{Choice, Generations, Step};
use crate::generate::Event;
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

/// Turns generations' tokens into the client's events.
pub(super) struct Writer {
    turn: Turn,
    meta: ResponseMeta,
    choices: Vec<Choice>,
    usage: Usage,
    stored: ResponsesStore,
    /// What the request wished to keep.
    pins: Vec<MadeLater>,
}

impl Writer {
    pub(super) fn new(
        turn: Turn,
        generations: &Generations,
        stored: ResponsesStore,
        pins: Vec<MadeLater>,
    ) -> Self {
        let cached_tokens = u64::from(generations.cached_tokens);
        let block_tokens = turn.card.block_tokens;
        let usage = Usage {
            prompt_tokens: turn.prompt.tokens.len() as u64,
            cached_tokens,
            created_tokens: turn.prompt.created_tokens(cached_tokens, block_tokens),
            created_long_tokens: turn.prompt.created_long_tokens(cached_tokens, block_tokens),
            completion_tokens: 0,
            reasoning_tokens: 0,
        };
        let meta = ResponseMeta {
            request_id: turn.request_id.clone(),
            model: turn.request.model.clone(),
            created_unix_s: unix_s(),
            sealer: turn.sealer.clone(),
            pins: Vec::new(),
        };
        let choices = (0..generations.len()).map(|_| Choice::new(&turn)).collect();
        Self { turn, meta, choices, usage, stored, pins }
    }

    fn take(&mut self, at: usize, event: Event) -> Step {
        if self.turn.request.sampling.max_tokens == Some(0) {
            // The prompt is computed and kept; that was all.
            return match event {
                Event::Failed(error) => Step::End(Vec::new(), Finish::Error(error)),
                Event::Tokens { .. } | Event::Done { .. } => Step::End(Vec::new(), Finish::Length),
            };
        }
        let step = self.choices[at].take(event, &self.turn);
        self.usage.completion_tokens = self.choices.iter().map(|c| c.completion_tokens).sum();
        self.usage.reasoning_tokens = self.choices.iter().map(|c| c.reasoning_tokens).sum();
        step
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

    pub(super) async fn collect(
        mut self,
        mut generations: Generations,
    ) -> Result<String, ApiError> {
        let mut transcripts = vec![Transcript::default(); self.choices.len()];
        let mut finishes = vec![Finish::Stop; self.choices.len()];
        while let Some((at, event)) = generations.next().await {
            let (events, finish) = match self.take(at, event) {
                Step::Output(events) => (events, None),
                Step::End(events, finish) => (events, Some(finish)),
            };
            events.iter().for_each(|e| transcripts[at].push(e));
            match finish {
                None => continue,
                Some(Finish::Error(error)) => return Err(error),
                Some(finish) => finishes[at] = finish,
            }
            if generations.end(at) {
                self.end(&transcripts[0]);
                self.meta.pins = pins::notes(std::mem::take(&mut self.pins)).await;
                let answers: Vec<(&Transcript, &Finish)> =
                    transcripts.iter().zip(&finishes).collect();
                let request = &self.turn.request;
                return Ok(encode::complete_choices(
                    request,
                    &self.meta,
                    &answers,
                    &self.usage,
                    unix_s(),
                ));
            }
        }
        Err(ApiError::new(ErrorKind::Internal, "the generation ended without an end"))
    }

    /// The body of a stream. The client's leaving drops it, which ends the generations.
    pub(super) fn stream(
        mut self,
        mut generations: Generations,
        permit: OwnedSemaphorePermit,
    ) -> Body {
        let (sender, receiver) =
            mpsc::channel::<Result<Bytes, std::convert::Infallible>>(FRAMES_MAX);
        tokio::spawn(async move {
            let _permit = permit;
            let mut encoders: Vec<StreamEncoder> = (0..)
                .zip(&self.choices)
                .map(|(n, _)| StreamEncoder::for_choice(&self.turn.request, self.meta.clone(), n))
                .collect();
            let mut text: String = encoders.iter_mut().map(|e| e.start(&self.usage)).collect();
            loop {
                let frames = std::mem::take(&mut text);
                if !frames.is_empty()
                    && sender.send_timeout(Ok(Bytes::from(frames)), READ_STALL_MAX).await.is_err()
                {
                    return;
                }
                let event = tokio::select! {
                    event = generations.next() => event,
                    () = sender.closed() => return,
                    () = tokio::time::sleep(KEEPALIVE_AFTER) => {
                        text = KEEPALIVE.to_owned();
                        continue;
                    }
                };
                let Some((at, event)) = event else { return };
                let (events, finish) = match self.take(at, event) {
                    Step::Output(events) => (events, None),
                    Step::End(events, finish) => (events, Some(finish)),
                };
                let encoder = &mut encoders[at];
                text = events.iter().map(|e| encoder.event(e)).collect();
                let Some(finish) = finish else { continue };
                // One answer that fails ends the stream for all of them.
                if !generations.end(at) && !matches!(finish, Finish::Error(_)) {
                    text.push_str(&encoder.finish_choice(&finish));
                    continue;
                }
                encoder.note_pins(pins::notes(std::mem::take(&mut self.pins)).await);
                text.push_str(&encoder.finish(&finish, &self.usage, unix_s()));
                self.end(encoders[0].transcript());
                let _ = sender.send_timeout(Ok(Bytes::from(text)), READ_STALL_MAX).await;
                return;
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
