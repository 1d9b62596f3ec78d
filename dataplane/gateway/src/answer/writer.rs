//! An answer written: a request's generations become the frames or the body of its client.
//!
//! A client that reads nothing is cut off, and one that leaves ends its generations: it holds a permit and workers'
//! streams.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mainstay_chat::encode::{self, KEEPALIVE};
use mainstay_chat::{
    ApiError, ErrorKind, Finish, PinNote, ResponseMeta, StreamEncoder, Transcript, Usage,
};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Turn;
use super::choice::{Choice, Generations, Step};
use super::next::warm_next;
use crate::generate::Event;
use crate::http::App;
use crate::pins::{self, MadeLater, Pinned};
use crate::sessions::Life;
use crate::stored::FinishedTurn;

/// Silence on a stream after which a comment is sent, so that nobody hangs up during a long prefill.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// A client that reads nothing for this long is cut off; it holds a permit and a worker's stream.
const READ_STALL_MAX: Duration = Duration::from_secs(60);
/// Frames on their way to one client.
const FRAMES_MAX: usize = 64;

/// A stream on its way to its client: whoever drops this has left, which ends the generation.
pub(crate) type Frames = mpsc::Receiver<Result<Bytes, std::convert::Infallible>>;

pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Turns generations' tokens into the client's events.
pub(super) struct Writer {
    turn: Turn,
    meta: ResponseMeta,
    choices: Vec<Choice>,
    usage: Usage,
    app: App,
    /// What the request wished to keep.
    pins: Vec<MadeLater>,
    /// The session's end of it.
    life: Life,
}

impl Writer {
    pub(super) fn new(
        turn: Turn,
        generations: &Generations,
        app: App,
        pins: Vec<MadeLater>,
        life: Life,
    ) -> Self {
        let usage = Usage {
            prompt_tokens: turn.prompt.tokens as u64,
            cached_tokens: u64::from(generations.cached_tokens),
            ..Usage::default()
        };
        let meta = meta_of(&turn);
        let choices = (0..generations.len()).map(|_| Choice::new(&turn)).collect();
        Self { turn, meta, choices, usage, app, pins, life }
    }

    /// Counts the tokens that are pinned so far.
    fn count_created(&mut self, pinned: Pinned) {
        let (created, long) = pinned.created(self.usage.cached_tokens);
        (self.usage.created_tokens, self.usage.created_long_tokens) = (created, long);
    }

    /// Counts what the answer took, at its end.
    fn count_used(&self) {
        let endpoint = self.turn.request.endpoint;
        self.app.meters.used(endpoint, &self.usage, self.turn.begun.elapsed());
    }

    /// What became of the pins; what was made of them counts as created from here on.
    async fn settle_pins(&mut self) -> Vec<PinNote> {
        let (notes, pinned) = pins::settled(std::mem::take(&mut self.pins)).await;
        self.count_created(pinned);
        notes
    }

    fn take(&mut self, at: usize, event: Event) -> Step {
        if let (0, Event::Done { cached_tokens: Some(cached), .. }) = (at, &event) {
            self.usage.cached_tokens = u64::from(*cached);
        }
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

    /// Keeps what `previous_response_id` may ask for. `response` makes the response object, as its client gets it.
    async fn store(&mut self, transcript: &Transcript, response: impl FnOnce() -> Option<Value>) {
        let Turn { request, request_id, tenant, before, last, .. } = &mut self.turn;
        let Some(echo) = &mut request.responses else { return };
        if !echo.store && last.is_none() {
            return;
        }
        let (store, previous) = (echo.store, echo.previous_response_id.clone());
        let input = std::mem::take(&mut echo.input);
        let answer = transcript.blocks(request.endpoint, request_id);
        let conversation = Arc::new(request.conversation_to_store(answer));
        let id = encode::response_id(request_id);
        if let Some(last) = last {
            last.put(id.clone(), Arc::clone(&conversation));
        }
        if let Some(response) = store.then(response).flatten() {
            let before = before.take();
            let turn = FinishedTurn { id, previous, response, input, before, conversation };
            self.app.stored.put(tenant, turn).await;
        }
    }

    /// Begins with what is known of the next turn, where that was asked for.
    fn warm_next(&self, transcript: &Transcript, finish: &Finish) {
        warm_next(&self.app, &self.turn, transcript, finish, self.usage.completion_tokens);
    }

    /// Takes all of the generations, and counts what was used.
    async fn take_all(
        &mut self,
        mut generations: Generations,
    ) -> Result<Vec<(Transcript, Finish)>, ApiError> {
        let mut answers = vec![(Transcript::default(), Finish::Stop); self.choices.len()];
        while let Some((at, event)) = generations.next().await {
            let (events, finish) = match self.take(at, event) {
                Step::Output(events) => (events, None),
                Step::End(events, finish) => (events, Some(finish)),
            };
            events.iter().for_each(|e| answers[at].0.push(e));
            match finish {
                None => continue,
                Some(Finish::Error(error)) => return Err(error),
                Some(finish) => answers[at].1 = finish,
            }
            if generations.end(at) {
                self.count_used();
                if let Some((transcript, finish)) = answers.first() {
                    self.life.answered(transcript, finish, self.usage);
                }
                return Ok(answers);
            }
        }
        Err(ApiError::new(ErrorKind::Internal, "the generation ended without an end"))
    }

    /// What the model says, for somebody here rather than for the client.
    pub(super) async fn transcribe(
        mut self,
        generations: Generations,
    ) -> Result<(Transcript, Usage), ApiError> {
        let first = self.take_all(generations).await?.into_iter().next();
        self.settle_pins().await;
        Ok((first.map(|(transcript, _)| transcript).unwrap_or_default(), self.usage))
    }

    /// The events of an answer that says nothing, once the prompt has been worked through.
    pub(super) async fn warm(mut self, generations: Generations) -> Result<Frames, ApiError> {
        self.take_all(generations).await?;
        (self.usage.completion_tokens, self.usage.reasoning_tokens) = (0, 0);
        self.meta.pins = self.settle_pins().await;
        let mut encoder = StreamEncoder::new(&self.turn.request, self.meta.clone());
        let mut text = encoder.start(&self.usage);
        let end = encoder.finish(&Finish::Stop, &self.usage, unix_s());
        self.store(encoder.transcript(), || last_response(&end)).await;
        text.push_str(&end);
        let (sender, receiver) = mpsc::channel(1);
        // There is room for one, and the receiver is here.
        let _ = sender.try_send(Ok(Bytes::from(text)));
        Ok(receiver)
    }

    pub(super) async fn collect(mut self, generations: Generations) -> Result<String, ApiError> {
        let answers = self.take_all(generations).await?;
        self.meta.pins = self.settle_pins().await;
        let (request, meta) = (&self.turn.request, &self.meta);
        let parts: Vec<(&Transcript, &Finish)> = answers.iter().map(|(t, f)| (t, f)).collect();
        let body = encode::complete_choices(request, meta, &parts, &self.usage, unix_s());
        if let Some((transcript, finish)) = answers.first() {
            self.warm_next(transcript, finish);
            self.store(transcript, || mainstay_chat::plain_json::from_str(&body).ok()).await;
        }
        Ok(body)
    }

    /// The body of a stream. The client's leaving drops it, which ends the generations.
    pub(super) fn stream(
        mut self,
        mut generations: Generations,
        permit: OwnedSemaphorePermit,
    ) -> Frames {
        let (sender, receiver) = mpsc::channel(FRAMES_MAX);
        tokio::spawn(async move {
            let _permit = permit;
            let mut encoders: Vec<StreamEncoder> = (0..)
                .zip(&self.choices)
                .map(|(n, _)| StreamEncoder::for_choice(&self.turn.request, self.meta.clone(), n))
                .collect();
            self.count_created(pins::pinned_so_far(&self.pins));
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
                let failed = matches!(finish, Finish::Error(_));
                if !generations.end(at) && !failed {
                    text.push_str(&encoder.finish_choice(&finish));
                    continue;
                }
                let notes = self.settle_pins().await;
                encoders[at].note_pins(notes);
                let end = encoders[at].finish(&finish, &self.usage, unix_s());
                self.count_used();
                // Before its client can come back.
                self.life.answered(encoders[0].transcript(), &finish, self.usage);
                self.warm_next(encoders[0].transcript(), &finish);
                if !failed {
                    // Whoever has seen the end may continue it anywhere.
                    self.store(encoders[0].transcript(), || last_response(&end)).await;
                }
                text.push_str(&end);
                let _ = sender.send_timeout(Ok(Bytes::from(text)), READ_STALL_MAX).await;
                return;
            }
        });
        receiver
    }
}

fn meta_of(turn: &Turn) -> ResponseMeta {
    ResponseMeta {
        request_id: turn.request_id.clone(),
        model: turn.request.model.clone(),
        created_unix_s: turn.created_unix_s,
        sealer: turn.sealer.clone(),
        pins: Vec::new(),
    }
}

/// The response object of a turn that nobody works on yet.
pub(super) fn queued(turn: &Turn) -> Option<Value> {
    let mut encoder = StreamEncoder::new(&turn.request, meta_of(turn));
    let mut response = last_response(&encoder.start(&Usage::default()))?;
    response["status"] = "queued".into();
    Some(response)
}

/// The response object in the last frame of a Responses stream.
fn last_response(frames: &str) -> Option<Value> {
    #[derive(serde::Deserialize)]
    struct Last {
        response: Value,
    }
    // JSON has no line breaks of its own, so that no text in it can look like the next line.
    let data = frames.rsplit("\ndata: ").next()?;
    serde_json::from_str::<Last>(data.trim_end()).ok().map(|last| last.response)
}
