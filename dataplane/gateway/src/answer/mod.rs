//! From a body to an answer, the same way for the three APIs: read, find the history, prepare, place, write.
//!
//! This file is the order of these phases; each of them lives in a file of its own.

mod background;
mod choice;
mod compact;
mod edits;
mod next;
mod read;
mod writer;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;
use bytes::Bytes;
use mainstay_chat::{
    ApiError, Conversation, Endpoint, ErrorKind, Request, RequestKind, Sealer, encode, history,
};
use mainstay_proto::v1;
use mainstay_route::worth;
use mainstay_trace::{Kind, Span};
use mainstay_types::TenantId;
use tokio::sync::OwnedSemaphorePermit;

use crate::constrain;
use crate::generate::{self, Job};
use crate::http::App;
use crate::lanes::Taken;
use crate::model::ModelCard;
use crate::prompt::{self, Prompt, options_of};
use crate::quota::Spending;
use crate::retention::Keeping;
use crate::seal::parsing_of;
use crate::stored::LastTurn;
pub(crate) use background::shown_error;
use choice::Generations;
pub(crate) use read::{compute, compute_held};
pub(crate) use writer::Frames;
use writer::Writer;

/// Hints that ask for pins, and come to nothing where there are none.
const PIN_HINTS: [&str; 5] = [
    "cache_control",
    "nvext.cache_control",
    "breakpoints",
    "kv_hints.kv.pin",
    "kv_hints.kv.retain",
];

/// Hints about the router's queue alone, and come to nothing where there is none.
const QUEUE_HINTS: [&str; 2] = ["agent_hints.strict_priority", "x-dynamo-request-strict-priority"];

/// A request on its way.
struct Turn {
    request: Request,
    request_id: String,
    span: Span,
    card: Arc<ModelCard>,
    prompt: Prompt,
    /// What its session wants kept, once it was told of.
    keeping: Option<Keeping>,
    /// The form that the answer must have.
    guided: Option<v1::Guided>,
    tenant: TenantId,
    /// Seals thinking for this tenant.
    sealer: Option<Sealer>,
    /// Of the tenant's quota; the request counts as one in flight for as long as this lives.
    spending: Spending,
    /// What `previous_response_id` stands for.
    before: Option<Arc<Conversation>>,
    /// Where a connection remembers what becomes of this.
    last: Option<LastTurn>,
    created_unix_s: u64,
    /// When its body had been read.
    begun: Instant,
}

/// A request as it comes in.
pub(crate) struct Incoming<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) request_id: &'a str,
    /// Its trace.
    pub(crate) span: &'a Span,
    /// What its connection remembers, where it is one that does.
    pub(crate) last: Option<&'a LastTurn>,
}

/// A request that may be read and worked on.
pub(crate) struct Admitted {
    pub(crate) tenant: TenantId,
    permit: OwnedSemaphorePermit,
    spending: Spending,
}

/// An answer for the HTTP layer.
pub(crate) struct Answer {
    pub(crate) form: AnswerForm,
    /// The value of the header `mainstay-hints`.
    pub(crate) told: String,
}

/// What an answer is made of.
pub(crate) enum AnswerForm {
    /// A whole body.
    Json(String),
    /// Server-sent events.
    Stream(Frames),
}

impl App {
    /// Lets a request in before its body is read: by its key, while there is room and its tenant's quota allows it.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<Admitted, ApiError> {
        let tenant = self.tenants.of(headers)?;
        let permit = self.room()?;
        let spending = self.tenants.admit(&tenant)?;
        Ok(Admitted { tenant, permit, spending })
    }

    /// A place for a request that has come already and has to wait for its turn.
    pub(crate) fn room(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            ApiError::new(ErrorKind::Overloaded, "this gateway has no room for another request")
                .with_retry_after_s(1)
        })
    }

    /// Lets in whose turn it is.
    pub(crate) fn admit_with(
        &self,
        headers: &HeaderMap,
        permit: OwnedSemaphorePermit,
    ) -> Result<Admitted, ApiError> {
        let tenant = self.tenants.of(headers)?;
        let spending = self.tenants.admit(&tenant)?;
        Ok(Admitted { tenant, permit, spending })
    }

    /// Reads and prepares a request. The permit travels with the work: a client that leaves does not free it
    /// while its prompt is prepared.
    async fn turn(
        &self,
        admitted: Admitted,
        incoming: Incoming<'_>,
        finish: impl FnOnce(&mut Request) + Send + 'static,
    ) -> Result<(Turn, OwnedSemaphorePermit), ApiError> {
        let Admitted { tenant, permit, spending } = admitted;
        let Incoming { endpoint, headers, body, request_id, span, last } = incoming;
        let preparing = span.child("prepare", Kind::Internal);
        let names = read::names(headers);
        let parsing = parsing_of(&tenant, &self.replica, &self.parsing);
        let new_bytes = read::new_bytes(endpoint, &body, &parsing);
        let asked = Asked {
            app: self.clone(),
            request_id: request_id.to_owned(),
            span: span.clone(),
            sealer: parsing.sealer.clone(),
            last: last.cloned(),
            tenant,
            spending,
            finish,
        };
        let work = move || {
            let request = read::request(endpoint, &body, parsing, &names, &asked.request_id)?;
            // One visit to a thread for blocking work is enough where nothing has to be waited for in between.
            match continued(&request) {
                None => asked.prepare(request, None).map(|turn| Read::Turn(Box::new(turn), permit)),
                Some(_) => Ok(Read::Continues(Box::new((request, asked)), permit)),
            }
        };
        let (request, asked, permit) = match compute(new_bytes, work).await? {
            Read::Turn(turn, permit) => {
                prepared(&turn, preparing);
                return Ok((*turn, permit));
            }
            Read::Continues(read, permit) => (read.0, read.1, permit),
        };
        let held = (permit, asked);
        let (before, (permit, asked)) = self.before(&request, last, held).await?;
        // A short body may continue a long conversation.
        let work = move || Ok((asked.prepare(request, before)?, permit));
        let (turn, permit) = compute(usize::MAX, work).await?;
        prepared(&turn, preparing);
        Ok((turn, permit))
    }

    /// The conversation that a request continues. What is held comes back.
    async fn before<F: Send + 'static>(
        &self,
        request: &Request,
        last: Option<&LastTurn>,
        held: (OwnedSemaphorePermit, Asked<F>),
    ) -> Result<(Option<Arc<Conversation>>, (OwnedSemaphorePermit, Asked<F>)), ApiError> {
        let Some(id) = continued(request) else { return Ok((None, held)) };
        let tenant = held.1.tenant.clone();
        let (before, held) = self.stored.history(&tenant, id, last, held).await?;
        Ok((Some(before), held))
    }

    /// The model of that name, or the one that it stands for.
    pub(crate) fn model(&self, name: &str) -> Result<Arc<ModelCard>, ApiError> {
        if let Some(card) = self.workers.model(name) {
            return Ok(card);
        }
        let known = self.workers.model_names();
        if known.is_empty() {
            return Err(ApiError::new(ErrorKind::Unavailable, "no worker has joined yet"));
        }
        let meant = self.aliases.target(name, &known).and_then(|target| self.workers.model(target));
        meant.ok_or_else(|| {
            let message =
                format!("model `{name}` does not exist here; there is {}", known.join(", "));
            ApiError::new(ErrorKind::NotFound, message).with_code("model_not_found")
        })
    }

    /// Answers one of the three APIs. A connection gets a stream, whatever the body says.
    pub(crate) async fn answer(
        &self,
        admitted: Admitted,
        incoming: Incoming<'_>,
    ) -> Result<Answer, ApiError> {
        let (endpoint, connection) = (incoming.endpoint, incoming.last.is_some());
        let streams = move |request: &mut Request| request.stream |= connection;
        let (turn, permit) = self.turn(admitted, incoming, streams).await?;
        let (told, stream) = (turn.request.hints_header(), turn.request.stream);
        if endpoint == Endpoint::CountTokens {
            let tokens = turn.prompt.tokens as u64;
            let original = edits::original_tokens(&turn.request, tokens);
            let form = AnswerForm::Json(encode::count_tokens_body(tokens, original));
            return Ok(Answer { form, told });
        }
        if turn.request.responses.as_ref().is_some_and(|r| r.background) {
            let queued = self.answer_later(turn, permit).await?;
            return Ok(Answer { form: AnswerForm::Json(queued), told });
        }
        let (writer, generations) = self.begin(turn, |_| {}).await?;
        if stream {
            let form = AnswerForm::Stream(writer.stream(generations, permit));
            return Ok(Answer { form, told });
        }
        let answer = writer.collect(generations).await.map(AnswerForm::Json);
        drop(permit);
        Ok(Answer { form: answer?, told })
    }

    /// Brings a turn's prompt into the cache and answers with a response that says nothing, to be continued.
    pub(crate) async fn warm(
        &self,
        admitted: Admitted,
        incoming: Incoming<'_>,
    ) -> Result<Answer, ApiError> {
        // Nobody waits for what the model says to it.
        let aside = |request: &mut Request| request.session.kind = RequestKind::Side;
        let (turn, permit) = self.turn(admitted, incoming, aside).await?;
        let told = turn.request.hints_header();
        let (writer, generation) = self.begin(turn, |job| job.sampling.tokens_max = 1).await?;
        let frames = writer.warm(generation).await?;
        drop(permit);
        Ok(Answer { form: AnswerForm::Stream(frames), told })
    }

    /// Has a prepared request placed; its pins are on their way then.
    async fn begin(
        &self,
        mut turn: Turn,
        shape: impl FnOnce(&mut Job),
    ) -> Result<(Writer, Generations), ApiError> {
        let tokens = turn.prompt.tokens;
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
        let life = self.sessions.asked(&turn.tenant, &turn.request);
        turn.keeping = turn.prompt.keeping(&self.retainer, &turn.request, &turn.tenant, &life);
        // A request that nobody takes pins nothing: it would use the tenant's budget for no blocks.
        let mut pins = Vec::new();
        let make_pins = || {
            let make =
                |wish| self.pins.make_in_background(wish, turn.request_id.clone(), &turn.span);
            pins = wishes.into_iter().map(make).collect();
        };
        let mut first = turn.job(0);
        shape(&mut first);
        let mut all = vec![generate::start(self.placement.clone(), first, make_pins).await?];
        // The others begin once the first was taken, so that they find its prefix where it is computed.
        let more = (1..turn.request.n)
            .map(|n| Box::pin(generate::start(self.placement.clone(), turn.job(n), || {})));
        all.extend(futures::future::try_join_all(more).await?);
        let generations = Generations::new(all);
        life.taken(Taken {
            request: &turn.request_id,
            worker: self.placement.worker_of(&turn.request_id),
            prompt_tokens: tokens as u64,
            cached_tokens: u64::from(generations.cached_tokens),
            block_tokens: u64::from(turn.card.block_tokens),
        });
        let writer = Writer::new(turn, &generations, self.clone(), pins, life);
        Ok((writer, generations))
    }
}

/// A body that was read.
enum Read<F> {
    Turn(Box<Turn>, OwnedSemaphorePermit),
    /// It continues a conversation that has to be fetched.
    Continues(Box<(Request, Asked<F>)>, OwnedSemaphorePermit),
}

/// What a request's preparation needs beside its body.
struct Asked<F> {
    app: App,
    request_id: String,
    span: Span,
    sealer: Option<Sealer>,
    last: Option<LastTurn>,
    tenant: TenantId,
    spending: Spending,
    /// The last word on the request.
    finish: F,
}

impl<F: FnOnce(&mut Request)> Asked<F> {
    /// Pure computation: milliseconds for a long prompt that is new.
    fn prepare(
        self,
        mut request: Request,
        before: Option<Arc<Conversation>>,
    ) -> Result<Turn, ApiError> {
        let begun = Instant::now();
        let Self { app, request_id, span, sealer, last, tenant, spending, finish } = self;
        if let Some(before) = &before {
            request.continue_from(before);
            check_results(&request.conversation)?;
        }
        finish(&mut request);
        if !app.pins_on {
            request.uses.had_no_effect(&PIN_HINTS);
        }
        if app.placement.lines().is_none() {
            request.uses.had_no_effect(&QUEUE_HINTS);
        }
        if request.endpoint == Endpoint::CountTokens || request.continue_final {
            request.uses.had_no_effect(&["agent_hints.speculative_prefill"]);
        }
        let card = app.model(&request.model)?;
        let key = app.replica.read(mainstay_state::Machine::hash_key).ok_or_else(|| {
            ApiError::new(ErrorKind::Unavailable, "the control plane has not answered yet")
        })?;
        let options = options_of(&request, &tenant);
        edits::apply(&mut request, options, &card, &tenant);
        let prompt = prompt::prepare(&request, options, &card, &tenant, key)?;
        let guided = constrain::guided(&mut request, &card, prompt.thinking_open)?;
        let created_unix_s = writer::unix_s();
        Ok(Turn {
            request,
            request_id,
            span,
            card,
            prompt,
            keeping: None,
            guided,
            tenant,
            sealer,
            spending,
            before,
            last,
            created_unix_s,
            begun,
        })
    }
}

/// The tier of the router's queue; more than a byte counts as the highest.
fn tier_of(request: &Request) -> u8 {
    u8::try_from(request.hints.strict_priority.unwrap_or(0)).unwrap_or(u8::MAX)
}

/// A number for the agent's run, within its tenant; 0 where the client names none.
fn program_of(request: &Request) -> u64 {
    let ids = &request.session;
    let named = ids.session.as_ref().map(|session| (session, &ids.agent));
    named.map_or(0, |name| foldhash::fast::FixedState::default().hash_one(name).max(1))
}

/// What engines keep the prompt's blocks for afterwards, by how urgent it is.
fn ranges_of(request: &Request) -> Vec<v1::RetentionRange> {
    let worth = worth(request.hints.priority.unwrap_or(0));
    let range = worth.map(|worth| v1::RetentionRange {
        start: 0,
        end: u32::MAX,
        priority: worth.priority.into(),
        duration_ms: worth.duration_ms,
        ..v1::RetentionRange::default()
    });
    range.into_iter().collect()
}

/// A prompt is ready: what it came to.
fn prepared(turn: &Turn, span: Span) {
    if span.is_recorded() {
        span.set("mainstay.prompt_tokens", turn.prompt.tokens as i64);
        turn.span.set("gen_ai.request.model", turn.card.name.clone());
        turn.span.set("mainstay.request_id", turn.request_id.clone());
    }
    drop(span);
}

/// The answer that a request continues.
fn continued(request: &Request) -> Option<&str> {
    request.responses.as_ref()?.previous_response_id.as_deref()
}

/// A result that answers no call of the conversation that it continues.
fn check_results(conversation: &Conversation) -> Result<(), ApiError> {
    let Some(call) = history::orphan_result(conversation) else { return Ok(()) };
    let problem = format!("no tool call `{call}` comes before this output");
    Err(ApiError::invalid("input", &problem).with_code("invalid_function_call_output"))
}

impl Turn {
    /// What one of the answers needs, counted from 0.
    fn job(&self, choice: u32) -> Job {
        let mut sampling = prompt::sampling(&self.request, &self.card, self.prompt.tokens);
        let mut request_id = self.request_id.clone();
        if choice > 0 {
            // The same seed would give the same answer.
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(u64::from(choice)));
            request_id = format!("{request_id}-{choice}");
        }
        Job {
            request_id,
            span: self.span.clone(),
            tenant: self.tenant.clone(),
            model: self.card.name.clone(),
            revision: self.card.revision.clone(),
            namespace: self.prompt.namespace,
            block_tokens: self.card.block_tokens,
            prompt_tokens: u32::try_from(self.prompt.tokens).unwrap_or(u32::MAX),
            prompt: self.prompt.packed.clone(),
            blocks: Arc::clone(&self.prompt.blocks),
            priority: self.request.hints.priority.unwrap_or(0),
            tier: tier_of(&self.request),
            program: program_of(&self.request),
            latency_sensitivity: self.request.hints.latency_sensitivity.map(|s| s.min(1.0) as f32),
            sampling,
            keeping: self.keeping.clone(),
            ranges: ranges_of(&self.request),
            expected_output_tokens: self.request.hints.osl.unwrap_or(0),
            guided: self.guided.clone(),
        }
    }
}
