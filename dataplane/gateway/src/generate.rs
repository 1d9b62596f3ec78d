//! One generation on the cluster: placed by the router, streamed from a worker, moved to another when its
//! worker dies.
//!
//! The gateway holds the prompt and every token that it received. A move sends both to the next worker, which
//! goes on at the next position; the client's stream sees neither a gap nor a repetition.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_chat::{ApiError, ErrorKind};
use mainstay_proto::convert::u128_to_wire;
use mainstay_proto::tokens::pack_into;
use mainstay_proto::v1;
use mainstay_trace::{Kind, Span};
use mainstay_types::{ErrorCode, NamespaceId, SequenceHash, TenantId, WorkerId};

use crate::line::{Entered, Waited};
use crate::placement::{Placed, Placement};
use crate::retention::{Keeping, Prefix};

/// Moves of one request at most; a request that kills every worker must not visit them all for ever.
const ATTEMPTS_MAX: usize = 6;
/// How long a request waits for a worker that can take it.
const WAIT_FOR_WORKER: Duration = Duration::from_secs(10);
/// How long a worker may take to accept; prefill happens after that.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without any event for this long a worker counts as lost; it sends an empty one each second that it is silent.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long a request that a worker had no room for waits before it asks again, there or elsewhere.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(100);

/// What a generation needs.
pub(crate) struct Job {
    pub(crate) request_id: String,
    /// Its trace.
    pub(crate) span: Span,
    pub(crate) tenant: TenantId,
    pub(crate) model: String,
    pub(crate) revision: String,
    pub(crate) namespace: NamespaceId,
    pub(crate) block_tokens: u32,
    pub(crate) prompt_tokens: u32,
    /// As the wire has it.
    pub(crate) prompt: Bytes,
    pub(crate) blocks: Arc<[SequenceHash]>,
    pub(crate) priority: i32,
    /// Of the router's queue: a higher one goes before all lower ones.
    pub(crate) tier: u8,
    /// The agent's run that it belongs to, as a number; 0 for none.
    pub(crate) program: u64,
    /// From 0, where time does not matter, to 1; `None` where nobody said.
    pub(crate) latency_sensitivity: Option<f32>,
    pub(crate) sampling: v1::Sampling,
    /// What its session wants kept; nothing for a request of no session.
    pub(crate) keeping: Option<Keeping>,
    /// What the request itself wants kept.
    pub(crate) ranges: Vec<v1::RetentionRange>,
    pub(crate) expected_output_tokens: u32,
    /// What the answer must obey, where the engine can hold it to that.
    pub(crate) guided: Option<v1::Guided>,
}

impl Job {
    /// What there is to place of a session that has not come back yet.
    pub(crate) fn of_prefix(prefix: &Prefix) -> Self {
        let blocks = u32::try_from(prefix.blocks.len()).unwrap_or(u32::MAX);
        Self {
            request_id: String::new(),
            span: Span::default(),
            tenant: prefix.tenant.clone(),
            model: prefix.model.to_string(),
            revision: prefix.revision.to_string(),
            namespace: prefix.namespace,
            block_tokens: prefix.block_tokens,
            prompt_tokens: blocks.saturating_mul(prefix.block_tokens),
            prompt: Bytes::new(),
            blocks: Arc::clone(&prefix.blocks),
            priority: 0,
            tier: 0,
            program: 0,
            latency_sensitivity: None,
            sampling: v1::Sampling::default(),
            keeping: None,
            ranges: Vec::new(),
            expected_output_tokens: 0,
            guided: None,
        }
    }
}

/// What comes out, in order; `Done` or `Failed` is last.
#[derive(Debug)]
pub(crate) enum Event {
    /// New tokens, with log probabilities where asked for.
    Tokens { tokens: Vec<u32>, logprobs: Vec<v1::Logprob> },
    /// The end, and how many of the prompt's tokens were cached: some engines know that no sooner. Nothing where it
    /// ended on another worker than the first.
    Done { finish: v1::Finish, cached_tokens: Option<u32> },
    /// The end, badly.
    Failed(ApiError),
}

/// A running generation. Dropping it cancels it.
pub(crate) struct Generation {
    pub(crate) events: Events,
    /// Prompt tokens that the first worker found in its cache.
    pub(crate) cached_tokens: u32,
}

/// What a generation says, as it is asked: whoever does not ask holds up the worker's stream, which merges what waits.
pub(crate) type Events = Pin<Box<dyn futures::Stream<Item = Event> + Send>>;

#[cfg(test)]
impl Generation {
    /// One whose events come from a test.
    pub(crate) fn of(events: tokio::sync::mpsc::Receiver<Event>, cached_tokens: u32) -> Self {
        let events = Box::pin(tokio_stream::wrappers::ReceiverStream::new(events));
        Self { events, cached_tokens }
    }
}

type Stream = tonic::Streaming<v1::GenerateEvent>;

struct Runner {
    placement: Placement,
    job: Arc<Job>,
    /// That it waited for room, until its answer's length is known.
    waited: Option<Box<Waited>>,
    sent: Vec<u32>,
    excluded: HashSet<WorkerId>,
    attempts: usize,
    /// The worker that took it has lost it to another.
    has_moved: bool,
}

/// Starts a generation. Errors that come before the first token come here, so that the client gets a status
/// and `Retry-After` rather than a broken stream.
pub(crate) async fn start(
    placement: Placement,
    job: Job,
    on_accepted: impl FnOnce(),
) -> Result<Generation, ApiError> {
    let mut runner = Runner {
        placement,
        job: Arc::new(job),
        waited: None,
        sent: Vec::new(),
        excluded: HashSet::new(),
        attempts: 0,
        has_moved: false,
    };
    let (stream, placed, first) = loop {
        let (mut stream, placed) = runner.accept().await?;
        match next_event(&mut stream).await {
            Ok(Some(event)) => match retry_error(&event) {
                None => break (stream, placed, event),
                Some(loss) => runner.give_up_on(&placed, &loss).await,
            },
            Ok(None) => runner.give_up_on(&placed, &Loss::of_worker("stream ended early")).await,
            Err(status) => runner.give_up_on(&placed, &Loss::of_status(&status)).await,
        }
    };
    if let Some(error) = final_error(&first) {
        return Err(error);
    }
    on_accepted();
    let cached_tokens = first.cached_tokens;
    let running = Running { runner, on: Some((stream, placed)), first: Some(first) };
    let events = futures::stream::unfold(running, |mut running| async move {
        let event = running.next().await?;
        Some((event, running))
    });
    Ok(Generation { events: Box::pin(events), cached_tokens })
}

/// A generation that a worker has accepted.
struct Running {
    runner: Runner,
    /// The worker's stream and its place; `None` after the end.
    on: Option<(Stream, Placed)>,
    first: Option<v1::GenerateEvent>,
}

impl Runner {
    /// Takes an event in; the router hears of the first token.
    fn hear(&mut self, event: v1::GenerateEvent, placed: &Placed) -> Flow {
        if event.first {
            placed.span.set("mainstay.cached_tokens", i64::from(event.cached_tokens));
            placed.first_token(event.cached_tokens);
        }
        self.take(event)
    }
}

impl Running {
    /// The next event for the client, or `None` after the last.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let (stream, placed) = self.on.as_mut()?;
            let step = match self.first.take() {
                Some(event) => Ok(Some(event)),
                None => next_event(stream).await,
            };
            let lost = match step {
                Ok(Some(event)) => match self.runner.hear(event, placed) {
                    Flow::Say(event) => return Some(event),
                    Flow::Skip => continue,
                    Flow::Last(event) => return Some(self.end(event)),
                    // The last tokens came with the end: that is told when it is asked for next.
                    Flow::SayAndEnd(event, last) => {
                        self.first = Some(last);
                        return Some(event);
                    }
                    Flow::Move(reason) => reason,
                },
                Ok(None) => Loss::of_worker("stream ended early"),
                Err(status) => Loss::of_status(&status),
            };
            self.runner.give_up_on(placed, &lost).await;
            self.runner.has_moved = true;
            if let Some(finish) = self.runner.finished() {
                return Some(self.end(Event::Done { finish, cached_tokens: None }));
            }
            match self.runner.accept().await {
                Ok(accepted) => self.on = Some(accepted),
                Err(error) => return Some(self.end(Event::Failed(error))),
            }
        }
    }

    /// The last event: the worker's stream and the booking end with it.
    fn end(&mut self, last: Event) -> Event {
        self.on = None;
        last
    }
}

/// What an event of the worker's comes to.
enum Flow {
    Say(Event),
    SayAndEnd(Event, v1::GenerateEvent),
    Last(Event),
    Skip,
    Move(Loss),
}

/// Why an attempt on a worker ended.
struct Loss {
    reason: String,
    /// The worker itself seems to be gone, rather than having no room for this request.
    worker_gone: bool,
}

impl Loss {
    fn of_worker(reason: &str) -> Self {
        Self { reason: reason.to_owned(), worker_gone: true }
    }

    /// A refusal says something about the request and the moment, not about the worker's health.
    fn of_status(status: &tonic::Status) -> Self {
        use tonic::Code;
        let refused = matches!(
            status.code(),
            Code::ResourceExhausted | Code::Unimplemented | Code::OutOfRange | Code::Internal
        );
        Self { reason: status.message().to_owned(), worker_gone: !refused }
    }
}

impl Runner {
    fn take(&mut self, event: v1::GenerateEvent) -> Flow {
        if let Some(loss) = retry_error(&event) {
            return Flow::Move(loss);
        }
        if let Some(error) = final_error(&event) {
            return Flow::Last(Event::Failed(error));
        }
        let finish = event.finish();
        let ends = finish != v1::Finish::Unspecified;
        let cached_tokens = event.cached_tokens;
        if event.tokens.is_empty() {
            let cached_tokens = (!self.has_moved).then_some(cached_tokens);
            return if ends {
                Flow::Last(Event::Done { finish, cached_tokens })
            } else {
                Flow::Skip
            };
        }
        self.sent.extend_from_slice(&event.tokens);
        let tokens = Event::Tokens { tokens: event.tokens, logprobs: event.logprobs };
        if ends {
            let finish = finish.into();
            let last = v1::GenerateEvent { finish, cached_tokens, ..Default::default() };
            Flow::SayAndEnd(tokens, last)
        } else {
            Flow::Say(tokens)
        }
    }

    async fn give_up_on(&mut self, placed: &Placed, loss: &Loss) {
        let worker = &placed.worker;
        placed.cancel();
        placed.span.fail("the worker did not answer to the end");
        tracing::info!(
            request = %self.job.request_id, worker = %worker.name, reason = loss.reason,
            gone = loss.worker_gone, tokens_sent = self.sent.len(), "moving a request"
        );
        metrics::counter!("mainstay_gateway_migrations_total").increment(1);
        self.excluded.insert(worker.id);
        if loss.worker_gone {
            worker.suspect();
        } else {
            tokio::time::sleep(NO_ROOM_PAUSE).await;
        }
    }

    /// The end, if the client has every token already and only the word that it was the last got lost.
    fn finished(&self) -> Option<v1::Finish> {
        let sampling = &self.job.sampling;
        let last = self.sent.last();
        if !sampling.ignore_eos && last.is_some_and(|t| sampling.stop_tokens.contains(t)) {
            return Some(v1::Finish::Stop);
        }
        (self.sent.len() >= sampling.tokens_max as usize).then_some(v1::Finish::Length)
    }

    /// Waits until a worker has room, where anybody does: not once its client has tokens.
    async fn queue(&mut self) -> Result<Option<Placed>, ApiError> {
        let placement = self.placement.clone();
        let Some(lines) = placement.lines().filter(|_| self.attempts == 0) else { return Ok(None) };
        let _waiting = self.job.span.child("queue", Kind::Internal);
        match lines.enter(&placement, &self.job).await? {
            Entered::Placed(placed, waited) => {
                self.waited = waited;
                Ok(Some(placed))
            }
            Entered::Nowhere => Ok(None),
        }
    }

    /// Places the rest of the job and has a worker accept it.
    async fn accept(&mut self) -> Result<(Stream, Placed), ApiError> {
        let mut queued = self.queue().await?;
        let deadline = Instant::now() + WAIT_FOR_WORKER;
        let mut last = String::from("no worker serves this model now");
        while self.attempts < ATTEMPTS_MAX {
            let chosen =
                queued.take().or_else(|| self.placement.choose(&self.job, &self.excluded, None));
            let Some(mut placed) = chosen else {
                if Instant::now() >= deadline {
                    break;
                }
                // A worker that failed once may be back by now, under a new epoch.
                self.excluded.clear();
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            self.attempts += 1;
            let call = placed.worker.client.clone();
            placed.span = self.attempt(&placed);
            match accept_on(call, self.request(&placed), &placed.span).await {
                Ok(stream) => {
                    if let Some(keeping) = &self.job.keeping {
                        keeping.on(placed.worker.id);
                    }
                    return Ok((stream, placed));
                }
                Err(status) => {
                    if let Some(error) = refusal(&status) {
                        return Err(error);
                    }
                    last = status.message().to_owned();
                    self.give_up_on(&placed, &Loss::of_status(&status)).await;
                }
            }
        }
        Err(ApiError::new(ErrorKind::Overloaded, last).with_retry_after_s(1))
    }

    /// The span of one attempt, which goes on at the worker.
    fn attempt(&self, placed: &Placed) -> Span {
        let span = self.job.span.child("generate", Kind::Client);
        if span.is_recorded() {
            span.set("mainstay.worker", placed.worker.name.clone());
            span.set("mainstay.attempt", self.attempts as i64);
            span.set("mainstay.tokens_sent_before", self.sent.len() as i64);
        }
        span
    }

    fn request(&self, placed: &Placed) -> v1::GenerateRequest {
        let mut sampling = self.job.sampling.clone();
        let sent = u32::try_from(self.sent.len()).unwrap_or(u32::MAX);
        sampling.tokens_max = sampling.tokens_max.saturating_sub(sent).max(1);
        sampling.tokens_min = sampling.tokens_min.saturating_sub(sent);
        let keeping = self.job.keeping.as_ref();
        v1::GenerateRequest {
            request_id: self.job.request_id.clone(),
            namespace: u128_to_wire(self.job.namespace.0),
            tokens: self.tokens(),
            sampled_before: sent,
            priority: self.job.priority,
            sampling: Some(sampling),
            ranges: keeping
                .iter()
                .flat_map(|keeping| &keeping.ranges)
                .chain(&self.job.ranges)
                .copied()
                .collect(),
            leases: keeping.map(|keeping| keeping.leases.clone()).unwrap_or_default(),
            expected_output_tokens: self.job.expected_output_tokens,
            epoch: placed.worker.epoch.0,
            guided: self.job.guided.clone(),
            sources: placed.sources.clone(),
        }
    }

    /// The prompt and what was sampled so far.
    fn tokens(&self) -> Bytes {
        let prompt = &self.job.prompt;
        if self.sent.is_empty() {
            return prompt.clone();
        }
        let mut tokens = prompt.to_vec();
        pack_into(&self.sent, &mut tokens);
        tokens.into()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(waited) = self.waited.take() {
            let output_tokens = u32::try_from(self.sent.len()).unwrap_or(u32::MAX);
            waited.answered(self.placement.now_ms(), output_tokens);
        }
    }
}

async fn accept_on(
    mut client: v1::worker_client::WorkerClient<mainstay_proto::client::Whole>,
    request: v1::GenerateRequest,
    span: &Span,
) -> Result<Stream, tonic::Status> {
    let mut request = tonic::Request::new(request);
    span.parent().go_with(request.metadata_mut());
    match tokio::time::timeout(ACCEPT_TIMEOUT, client.generate(request)).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(tonic::Status::deadline_exceeded("the worker did not accept in time")),
    }
}

/// The next event that says something; the empty ones only say that the worker lives.
async fn next_event(stream: &mut Stream) -> Result<Option<v1::GenerateEvent>, tonic::Status> {
    loop {
        let Ok(event) = tokio::time::timeout(SILENCE_MAX, stream.message()).await else {
            return Err(tonic::Status::deadline_exceeded("the worker fell silent"));
        };
        let event = event?;
        let alive_only = event.as_ref().is_some_and(|e| {
            !e.first && e.tokens.is_empty() && e.finish() == v1::Finish::Unspecified
        });
        if !alive_only {
            return Ok(event);
        }
    }
}

/// A failure that another worker may heal.
fn retry_error(event: &v1::GenerateEvent) -> Option<Loss> {
    let failed = event.finish() == v1::Finish::Error && event.retryable;
    // A worker that drains cancels what it could not finish; nobody here asked for that.
    let cancelled = event.finish() == v1::Finish::Cancelled;
    let no_room = event.error_code == ErrorCode::ResourceExhausted.grpc();
    (failed || cancelled)
        .then(|| Loss { reason: event.error.clone(), worker_gone: failed && !no_room })
}

fn final_error(event: &v1::GenerateEvent) -> Option<ApiError> {
    // A form that the engine cannot make anything of is found out by the engine alone, after it took the request.
    let is_wrong = event.error_code == ErrorCode::InvalidArgument.grpc();
    let kind = if is_wrong { ErrorKind::InvalidRequest } else { ErrorKind::Internal };
    (event.finish() == v1::Finish::Error).then(|| ApiError::new(kind, event.error.clone()))
}

/// What the worker refused for good: the request itself is wrong.
fn refusal(status: &tonic::Status) -> Option<ApiError> {
    (status.code() == tonic::Code::InvalidArgument)
        .then(|| ApiError::new(ErrorKind::InvalidRequest, status.message()))
}
