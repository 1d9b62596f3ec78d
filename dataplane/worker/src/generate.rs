//! One generation: from the wire to the engine and back as a stream.
//!
//! What a worker cannot take is refused before the first event, with a gRPC status: `UNAVAILABLE` and
//! `RESOURCE_EXHAUSTED` mean that another worker may do better, `FAILED_PRECONDITION` that the gateway believes
//! in a former epoch. After that, errors travel in the last event. A client that drops the stream cancels the
//! request; what was computed stays cached.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::Stream;
use mainstay_engine_abi::limits::GUIDED_BYTES_MAX;
use mainstay_engine_abi::sdk::{EngineError, Guided, GuidedKind, Request, Sampling, caps};
use mainstay_proto::convert::u128_from_wire;
use mainstay_proto::tokens::unpack;
use mainstay_proto::v1;
use mainstay_trace::Span;
use tonic::{Code, Status};

use crate::config::REQUESTS_MAX;
use crate::flights::{Failure, Flight, Full, error_code};
use crate::retention;
use crate::shared::{Life, Shared};

/// Stop tokens in one request.
const STOP_TOKENS_MAX: usize = 1_024;
/// The likeliest tokens that a request may ask for at each position.
const LOGPROBS_MAX: u32 = 21;
/// The priority of blocks about which nobody said anything, as the interface has it.
const BLOCK_PRIORITY: u8 = 35;
/// How long blocks from elsewhere wait for the request that they came for.
const BLOCK_HOLD_MS: u32 = 60_000;
/// A refused gateway may come again after so long, where the engine says nothing.
const RETRY_AFTER_MS: u32 = 100;
/// How often a stream says that its worker lives.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How long an acceptance waits for the first event, to go with it in one packet. Nobody can do anything with it before.
const FIRST_EVENT_WAIT: Duration = Duration::from_millis(100);
/// The metadata key that says when to come again, in milliseconds.
pub(crate) const RETRY_METADATA: &str = "mainstay-retry-after-ms";

/// Submits a request and answers with its events.
pub(crate) async fn generate(
    shared: &Arc<Shared>,
    mut request: v1::GenerateRequest,
    span: Span,
) -> Result<impl Stream<Item = Result<v1::GenerateEvent, Status>> + Send + use<>, Status> {
    let life = serving(shared, request.epoch)?;
    let sources = std::mem::take(&mut request.sources);
    let mut request = request_from_wire(request, &life)?;
    if let Some(trace) = span.parent().trace_id() {
        request.trace = trace;
    }
    let prompt_tokens = request.tokens.len() as u32;
    let admitted = shared.flights.admit(life.number, prompt_tokens, shared.settings.requests_max);
    let flight = admitted.map_err(|full| {
        exhausted(match full {
            Full::Requests => "too many requests in flight on this worker",
            Full::PromptTokens => "too many prompt tokens in flight on this worker",
        })
    })?;
    flight.trace(span);
    // From here on the guard cancels, whichever way this function or the stream ends.
    let guard = Guard { flight: Arc::clone(&flight), life: Arc::downgrade(&life) };
    start(Arc::clone(shared), life, flight, request, sources).await?;
    let first = tokio::time::timeout(FIRST_EVENT_WAIT, guard.flight.next()).await;
    Ok(futures::stream::unfold((guard, first.ok().flatten()), |(guard, first)| async move {
        if first.is_some() {
            return first.map(|event| (Ok(event), (guard, None)));
        }
        // A long wait or prefill is not a dead worker: an empty event a second says so.
        let event = match tokio::time::timeout(ALIVE_EVERY, guard.flight.next()).await {
            Ok(event) => event?,
            Err(_) => v1::GenerateEvent::default(),
        };
        Some((Ok(event), (guard, None)))
    }))
}

/// The engine, where the worker takes requests and its caller believes in the right epoch; 0 believes in any.
pub(crate) fn serving(shared: &Shared, believed: u64) -> Result<Arc<Life>, Status> {
    if shared.is_draining() {
        return Err(Status::unavailable("this worker is draining"));
    }
    let Some(life) = shared.life() else {
        return Err(Status::unavailable("the engine of this worker is starting"));
    };
    let epoch = shared.epoch().0;
    if epoch == 0 {
        return Err(Status::unavailable("this worker is not registered yet"));
    }
    if believed != 0 && believed != epoch {
        return Err(Status::failed_precondition(format!(
            "this worker's epoch is {epoch}, not {believed}"
        )));
    }
    Ok(life)
}

/// Runs a request whose output nobody reads, with what these sources and the tiers have of it; answers with how many
/// tokens of its prompt were cached. Whoever drops this cancels it.
pub(crate) async fn run_unread(
    shared: &Arc<Shared>,
    life: &Arc<Life>,
    request: Request,
    sources: Vec<v1::BlockSource>,
) -> Result<u32, Status> {
    let prompt_tokens = request.tokens.len() as u32;
    // Not among the requests of clients, which may be as many as the settings say.
    let admitted = shared.flights.admit(life.number, prompt_tokens, REQUESTS_MAX);
    let flight = admitted.map_err(|_| exhausted("too much in flight on this worker"))?;
    let guard = Guard { flight: Arc::clone(&flight), life: Arc::downgrade(life) };
    start(Arc::clone(shared), Arc::clone(life), flight, request, sources).await?;
    let mut cached_tokens = 0;
    while let Some(event) = guard.flight.next().await {
        cached_tokens = cached_tokens.max(event.cached_tokens);
        if event.finish == v1::Finish::Error as i32 {
            return Err(Status::new(Code::from_i32(event.error_code), event.error));
        }
    }
    Ok(cached_tokens)
}

/// A priority for an engine that may have none.
pub(crate) const fn priority(cap: u64, priority: i32) -> i32 {
    if cap != 0 { priority } else { 0 }
}

/// Brings in what these sources and the tiers have of a request, and submits it.
async fn start(
    shared: Arc<Shared>,
    life: Arc<Life>,
    flight: Arc<Flight>,
    mut request: Request,
    sources: Vec<v1::BlockSource>,
) -> Result<(), Status> {
    // A task of its own, because a client that leaves now drops this future but not the request.
    let submitted = tokio::spawn(async move {
        // What is held elsewhere need not be computed; without it the answer is the same, only later.
        let inherited = crate::transfer::bring_in(&shared, &life, &flight, &request, sources).await;
        request.ranges.extend(inherited);
        submit(shared, life, flight, request).await
    });
    submitted.await.map_err(|error| Status::internal(error.to_string()))?
}

async fn submit(
    shared: Arc<Shared>,
    life: Arc<Life>,
    flight: Arc<Flight>,
    request: Request,
) -> Result<(), Status> {
    if flight.is_detached() {
        // The client left while blocks were brought in: there is nobody to compute for.
        shared.flights.remove(flight.id);
        return Ok(());
    }
    flight.at_engine();
    let submitted = life.engine.submit(Request { id: flight.id, ..request }).await;
    if let Err(error) = submitted {
        shared.flights.remove(flight.id);
        metrics::counter!("mainstay_worker_requests_refused_total").increment(1);
        return Err(refusal(&error));
    }
    if shared.life().is_none_or(|now| now.number != life.number) {
        // An engine that died since took the request with it, and nobody else may end it.
        shared.flights.fail(&flight, &Failure::unavailable("the engine of this worker ended"));
    } else if flight.is_detached() {
        // The client left before there was anything to cancel.
        life.engine.cancel(flight.id);
    }
    Ok(())
}

/// Cancels a request whose client is gone.
struct Guard {
    flight: Arc<Flight>,
    /// Weak, so that a client which reads slowly does not keep a replaced engine in memory.
    life: Weak<Life>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.flight.detach()
            && let Some(life) = self.life.upgrade()
        {
            life.engine.cancel(self.flight.id);
        }
    }
}

/// What blocks that come in from elsewhere are worth, and for how long: until the request, which lays its own claims
/// on them, has had its turn.
pub(crate) fn worth_of_blocks(request: &Request) -> (u8, u32) {
    let highest = request.ranges.iter().map(|range| range.priority).max();
    (highest.unwrap_or(BLOCK_PRIORITY), BLOCK_HOLD_MS)
}

pub(crate) fn exhausted(message: &str) -> Status {
    let mut status = Status::resource_exhausted(message);
    status.metadata_mut().insert(RETRY_METADATA, RETRY_AFTER_MS.into());
    status
}

fn refusal(error: &EngineError) -> Status {
    let code = Code::from_i32(error_code(error.rc).grpc());
    let mut status = Status::new(code, error.message.clone());
    if error.retry_after_ms > 0 || code == Code::ResourceExhausted {
        let wait_ms = if error.retry_after_ms > 0 { error.retry_after_ms } else { RETRY_AFTER_MS };
        status.metadata_mut().insert(RETRY_METADATA, wait_ms.into());
    }
    status
}

fn invalid(message: impl Into<String>) -> Status {
    Status::invalid_argument(message)
}

fn request_from_wire(request: v1::GenerateRequest, life: &Life) -> Result<Request, Status> {
    let info = &life.info;
    let namespace = u128_from_wire(&request.namespace, "namespace")?;
    let tokens = unpack(&request.tokens).map_err(|error| invalid(error.to_string()))?;
    let length = tokens.len();
    if length == 0 {
        return Err(invalid("tokens are missing"));
    }
    if length > info.context_tokens_max as usize {
        let most = info.context_tokens_max;
        return Err(invalid(format!("the prompt has {length} tokens; this model takes {most}")));
    }
    if let Some(token) = tokens.iter().find(|token| **token >= info.vocab) {
        return Err(invalid(format!("token {token} is not in a vocabulary of {}", info.vocab)));
    }
    if request.sampled_before as usize > length {
        return Err(invalid("sampled_before is more than there are tokens"));
    }
    let sampling = request.sampling.ok_or_else(|| invalid("sampling is missing"))?;
    let sampling = sampling_from_wire(sampling)?;
    let can = |cap: u64| life.caps & cap != 0;
    if sampling.logprobs > 0 && !can(caps::LOGPROBS) {
        return Err(invalid("this engine gives no logprobs; leave them out"));
    }
    // A gateway knows which models take a form; where workers of one model differ, an answer without the form
    // is better than none.
    let guided = match request.guided {
        Some(guided) if can(caps::GUIDED) => guided_from_wire(guided)?,
        _ => None,
    };
    // Priorities and retention are hints: an engine without them serves the request all the same.
    let (ranges, leases) = retention::wishes(&request.ranges, &request.leases, life.caps)?;
    Ok(Request {
        id: 0,
        trace: trace(&request.request_id),
        namespace,
        tokens,
        sampled_before: request.sampled_before,
        priority: priority(life.caps & caps::PRIORITY, request.priority),
        sampling,
        ranges,
        expected_output_tokens: request.expected_output_tokens,
        guided,
        leases,
    })
}

fn guided_from_wire(wire: v1::Guided) -> Result<Option<Guided>, Status> {
    let kind = match wire.kind {
        0 => return Ok(None),
        1 => GuidedKind::JsonSchema,
        2 => GuidedKind::Regex,
        3 => GuidedKind::Lark,
        other => return Err(invalid(format!("guided.kind {other} is unknown"))),
    };
    if wire.spec.is_empty() || wire.spec.len() as u64 > GUIDED_BYTES_MAX {
        let most = GUIDED_BYTES_MAX;
        return Err(invalid(format!("guided.spec must have 1 to {most} bytes")));
    }
    Ok(Some(Guided { kind, spec: wire.spec }))
}

fn sampling_from_wire(wire: v1::Sampling) -> Result<Sampling, Status> {
    let penalties = [wire.frequency_penalty, wire.presence_penalty];
    let sane = wire.temperature.is_finite()
        && wire.temperature >= 0.0
        && wire.top_p > 0.0
        && wire.top_p <= 1.0
        && (0.0..=1.0).contains(&wire.min_p)
        && wire.repetition_penalty.is_finite()
        && wire.repetition_penalty > 0.0
        && penalties.iter().all(|p| p.is_finite());
    if !sane {
        return Err(invalid(
            "sampling is out of range: temperature >= 0, 0 < top_p <= 1, 0 <= min_p <= 1, \
             repetition_penalty > 0, all finite",
        ));
    }
    if wire.tokens_max == 0 {
        return Err(invalid("sampling.tokens_max must be at least 1"));
    }
    if wire.stop_tokens.len() > STOP_TOKENS_MAX || wire.logprobs > LOGPROBS_MAX {
        return Err(invalid(format!(
            "at most {STOP_TOKENS_MAX} stop tokens and logprobs of {} tokens",
            LOGPROBS_MAX - 1
        )));
    }
    Ok(Sampling {
        temperature: wire.temperature,
        top_p: wire.top_p,
        min_p: wire.min_p,
        repetition_penalty: wire.repetition_penalty,
        frequency_penalty: wire.frequency_penalty,
        presence_penalty: wire.presence_penalty,
        // No vocabulary is larger, and the engine's field is signed.
        top_k: wire.top_k.min(i32::MAX as u32),
        tokens_max: wire.tokens_max,
        tokens_min: wire.tokens_min.min(wire.tokens_max),
        logprobs: wire.logprobs,
        seed: wire.seed,
        ignore_eos: wire.ignore_eos,
        stop_tokens: wire.stop_tokens,
    })
}

/// Where there is no trace, a request id in the form of a UUID is the engine's trace id; any other is for logs only.
fn trace(request_id: &str) -> u128 {
    let plain = request_id.len() <= 64 && request_id.is_ascii();
    let digits: String =
        if plain { request_id.chars().filter(|c| *c != '-').collect() } else { String::new() };
    let digits = &digits[digits.len().saturating_sub(32)..];
    let whole = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    whole.then(|| u128::from_str_radix(digits, 16).ok()).flatten().unwrap_or(0)
}

#[cfg(test)]
mod tests;
