//! From a body to an answer, the same way for the three APIs: parse, prepare, pin, generate, encode.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use mainstay_chat::encode::{self, KEEPALIVE};
use mainstay_chat::template::RenderOptions;
use mainstay_chat::{
    ApiError, Endpoint, ErrorKind, Finish, OutputEvent, OutputParser, Request, ResponseMeta,
    StreamEncoder, TokenLogprob, Transcript, Usage,
};
use mainstay_proto::v1;
use mainstay_types::TenantId;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::generate::{self, Event, Generation, Job};
use crate::http::App;
use crate::model::{Detokenizer, ModelCard};
use crate::pins::{self, MadeLater};
use crate::prompt::{self, Prompt};
use crate::quota::Spending;
use crate::responses_store::ResponsesStore;

/// Bodies larger than this are parsed and tokenised away from the threads that serve streams.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Silence on a stream after which a comment is sent, so that nobody hangs up during a long prefill.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// A client that reads nothing for this long is cut off; it holds a permit and a worker's stream.
const READ_STALL_MAX: Duration = Duration::from_secs(60);
/// Frames on their way to one client.
const FRAMES_MAX: usize = 64;

/// A request on its way.
struct Turn {
    request: Request,
    request_id: String,
    card: Arc<ModelCard>,
    prompt: Prompt,
    tenant: TenantId,
    /// Of the tenant's quota; the request counts as one in flight for as long as this lives.
    spending: Spending,
}

/// A request that may be read and worked on.
pub(crate) struct Admitted {
    pub(crate) tenant: TenantId,
    permit: OwnedSemaphorePermit,
    spending: Spending,
}

/// An answer for the HTTP layer.
pub(crate) enum Answer {
    /// A whole body.
    Json(String),
    /// Server-sent events.
    Stream(Body),
}

fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Request, ApiError> {
    match endpoint {
        Endpoint::Chat => mainstay_chat::parse_chat(body),
        Endpoint::Responses => mainstay_chat::parse_responses(body),
        Endpoint::Messages => mainstay_chat::parse_messages(body),
        Endpoint::CountTokens => mainstay_chat::parse_count_tokens(body),
    }
}

/// Runs `work` inline when the body is small, on a thread for blocking work otherwise.
pub(crate) async fn compute<T: Send + 'static>(
    body_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if body_bytes <= INLINE_BYTES_MAX {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::new(ErrorKind::Internal, "the request could not be prepared"))?
}

impl App {
    /// Lets a request in before its body is read: by its key, while there is room and its tenant's quota allows it.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<Admitted, ApiError> {
        let tenant = self.tenants.of(headers)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            ApiError::new(ErrorKind::Overloaded, "this gateway has no room for another request")
                .with_retry_after_s(1)
        })?;
        let spending = self.tenants.admit(&tenant)?;
        Ok(Admitted { tenant, permit, spending })
    }

    /// The permit travels with the work: a client that leaves does not free it while its prompt is prepared.
    async fn turn(
        &self,
        endpoint: Endpoint,
        admitted: Admitted,
        headers: &HeaderMap,
        body: Bytes,
        request_id: &str,
    ) -> Result<(Turn, OwnedSemaphorePermit), ApiError> {
        let Admitted { tenant, permit, spending } = admitted;
        let names: Vec<(String, String)> = headers
            .iter()
            .filter_map(|(k, v)| Some((k.as_str().to_owned(), v.to_str().ok()?.to_owned())))
            .collect();
        let app = self.clone();
        let id = request_id.to_owned();
        // A short Responses body may continue a long conversation.
        let work_bytes = if endpoint == Endpoint::Responses { usize::MAX } else { body.len() };
        compute(work_bytes, move || {
            let mut request = parse(endpoint, &body)?;
            request.apply_headers(names.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            for warning in &request.warnings {
                tracing::debug!(request = %id, warning, "request accepted with a warning");
            }
            let previous = request.responses.as_ref().and_then(|r| r.previous_response_id.clone());
            if let Some(previous) = previous {
                request.continue_from(&*app.stored.get(&tenant, &previous)?);
            }
            let card = app.model(&request.model)?;
            let key = app.replica.read(mainstay_state::Machine::hash_key).ok_or_else(|| {
                ApiError::new(ErrorKind::Unavailable, "the control plane has not answered yet")
            })?;
            let options = RenderOptions::of(&request);
            let prompt = prompt::prepare(&request, options, &card, &tenant, key)?;
            Ok((Turn { request, request_id: id, card, prompt, tenant, spending }, permit))
        })
        .await
    }

    pub(crate) fn model(&self, name: &str) -> Result<Arc<ModelCard>, ApiError> {
        if let Some(card) = self.workers.model(name) {
            return Ok(card);
        }
        let known = self.workers.model_names();
        if known.is_empty() {
            return Err(ApiError::new(ErrorKind::Unavailable, "no worker has joined yet"));
        }
        let message = format!("model `{name}` does not exist here; there is {}", known.join(", "));
        Err(ApiError::new(ErrorKind::NotFound, message).with_code("model_not_found"))
    }

    /// Answers one of the three APIs.
    pub(crate) async fn answer(
        &self,
        endpoint: Endpoint,
        admitted: Admitted,
        headers: &HeaderMap,
        body: Bytes,
        request_id: &str,
    ) -> Result<Answer, ApiError> {
        let (turn, permit) = self.turn(endpoint, admitted, headers, body, request_id).await?;
        let tokens = turn.prompt.tokens.len();
        if endpoint == Endpoint::CountTokens {
            return Ok(Answer::Json(encode::count_tokens_body(tokens as u64)));
        }
        let tokens_max = turn.card.context_tokens_max as usize;
        if tokens >= tokens_max {
            return Err(ApiError::context_length(tokens as u64, tokens_max as u64 - 1));
        }
        if tokens == 0 {
            return Err(ApiError::new(ErrorKind::InvalidRequest, "the prompt is empty"));
        }
        turn.spending.prompt(tokens as u64)?;
        let wishes = if self.pins_on {
            let kept = (self.recompute, &self.region);
            turn.prompt.wishes(&turn.request, &turn.tenant, &turn.card, kept)
        } else {
            Vec::new()
        };
        // A request that nobody takes pins nothing: it would use the tenant's budget for no blocks.
        let mut pins = Vec::new();
        let make_pins = || {
            let make = |wish| self.pins.make_in_background(wish, turn.request_id.clone());
            pins = wishes.into_iter().map(make).collect();
        };
        let generation = generate::start(self.placement.clone(), turn.job(), make_pins).await?;
        let writer = Writer::new(turn, &generation, self.stored.clone(), pins);
        if writer.turn.request.stream {
            return Ok(Answer::Stream(writer.stream(generation, permit)));
        }
        let answer = writer.collect(generation).await.map(Answer::Json);
        drop(permit);
        answer
    }
}

impl Turn {
    fn job(&self) -> Job {
        Job {
            request_id: self.request_id.clone(),
            tenant: self.tenant.clone(),
            model: self.card.name.clone(),
            revision: self.card.revision.clone(),
            namespace: self.prompt.namespace,
            block_tokens: self.card.block_tokens,
            prompt: self.prompt.tokens.clone(),
            blocks: self.prompt.blocks.clone(),
            priority: self.request.hints.priority.unwrap_or(0),
            sampling: prompt::sampling(&self.request, &self.card, self.prompt.tokens.len()),
            ranges: Vec::new(),
            expected_output_tokens: self.request.hints.osl.unwrap_or(0),
        }
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Turns a generation's tokens into the client's events.
struct Writer {
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
    fn new(
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
        let parser = OutputParser::new(turn.request.output_options(turn.prompt.thinking_open));
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

    async fn collect(mut self, mut generation: Generation) -> Result<String, ApiError> {
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
    fn stream(mut self, mut generation: Generation, permit: OwnedSemaphorePermit) -> Body {
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
