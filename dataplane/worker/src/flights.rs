//! The requests in flight: each has a slot into which the engine's outputs are merged until its client reads
//! them.
//!
//! One slow client must hold up neither the engine nor the others, and no token may be lost; so outputs that
//! wait are merged into one event instead of queued. A client that falls too far behind is cut off. A request
//! whose client is gone stays in the table until the engine has ended it, so that a drain waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use mainstay_engine_abi::sdk::{Code, Finish, Output};
use mainstay_proto::v1;
use mainstay_trace::{Kind, Span};
use mainstay_types::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::load::Meter;

/// Tokens that may wait for one client before it is cut off.
const TOKENS_WAITING_MAX: usize = 65_536;
/// Logprobs that may wait for one client before it is cut off.
const LOGPROBS_WAITING_MAX: usize = 1 << 20;
/// Prompt tokens of all requests in flight, together: 256 MiB of memory.
pub(crate) const PROMPT_TOKENS_MAX: u64 = 1 << 26;

/// Why a request is refused at the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Requests,
    PromptTokens,
}

/// One request in flight.
pub(crate) struct Flight {
    pub(crate) id: u64,
    /// Which engine has it.
    pub(crate) life: u64,
    pub(crate) prompt_tokens: u32,
    slot: Mutex<Slot>,
    wake: Notify,
    /// Its client has left.
    left: Notify,
}

#[derive(Default)]
struct Slot {
    waiting: Option<v1::GenerateEvent>,
    /// The last event has been put into `waiting`.
    ended: bool,
    /// The client is gone: outputs are dropped.
    detached: bool,
    /// For the pace of decoding.
    last_output: Option<Instant>,
    tokens: u64,
    cached_tokens: u32,
    /// All that is done here, and of it what the engine does.
    span: Span,
    at_engine: Span,
}

impl Flight {
    /// The next event for the client, or `None` after the last.
    pub(crate) async fn next(&self) -> Option<v1::GenerateEvent> {
        loop {
            {
                let mut slot = self.slot.lock();
                if let Some(event) = slot.waiting.take() {
                    return Some(event);
                }
                if slot.ended {
                    return None;
                }
            }
            self.wake.notified().await;
        }
    }

    /// The client is gone. True when the engine has not ended the request.
    pub(crate) fn detach(&self) -> bool {
        let mut slot = self.slot.lock();
        slot.detached = true;
        slot.waiting = None;
        self.left.notify_one();
        !slot.ended
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.slot.lock().detached
    }

    /// Returns once the client is gone. One may wait for it at a time.
    pub(crate) async fn gone(&self) {
        while !self.is_detached() {
            self.left.notified().await;
        }
    }

    /// What is done for it belongs to this span, which ends with it.
    pub(crate) fn trace(&self, span: Span) {
        self.slot.lock().span = span;
    }

    /// The span of what is done for it.
    pub(crate) fn span(&self) -> Span {
        self.slot.lock().span.clone()
    }

    /// From here on the engine has it.
    pub(crate) fn at_engine(&self) {
        let mut slot = self.slot.lock();
        slot.at_engine = slot.span.child("engine", Kind::Internal);
    }

    /// Ends the request from this side; what waits is still delivered.
    fn fail(&self, error: &Failure) {
        let mut slot = self.slot.lock();
        if slot.ended {
            return;
        }
        slot.ended = true;
        slot.at_engine.fail("ended without the engine's word");
        slot.at_engine = Span::default();
        let event = v1::GenerateEvent {
            finish: v1::Finish::Error.into(),
            cached_tokens: slot.cached_tokens,
            error: error.message.clone(),
            error_code: error.code.grpc(),
            retryable: error.retryable,
            ..v1::GenerateEvent::default()
        };
        put(&mut slot, event);
        drop(slot);
        self.wake.notify_one();
    }

    /// Takes one output. Answers with whether the client has fallen too far behind.
    fn take(&self, output: Output) -> bool {
        let mut slot = self.slot.lock();
        slot.tokens += output.tokens.len() as u64;
        if output.first || output.finish.is_some() {
            slot.cached_tokens = output.cached_tokens;
        }
        if slot.ended {
            return false;
        }
        slot.ended = output.finish.is_some();
        slot.tell(&output);
        put(&mut slot, event_of(output));
        let behind = slot.waiting.as_ref().is_some_and(|event| {
            event.tokens.len() > TOKENS_WAITING_MAX || event.logprobs.len() > LOGPROBS_WAITING_MAX
        });
        drop(slot);
        self.wake.notify_one();
        behind
    }
}

impl Slot {
    /// Tells the engine's span what an output says, and ends it with the last one.
    fn tell(&mut self, output: &Output) {
        let span = &self.at_engine;
        if span.is_recorded() && output.first {
            span.set("mainstay.queue_us", output.queue_us as i64);
            span.set("mainstay.prefill_us", output.prefill_us as i64);
            span.set("mainstay.cached_tokens", i64::from(output.cached_tokens));
        }
        if output.finish.is_some() {
            span.set("mainstay.output_tokens", self.tokens as i64);
            self.at_engine = Span::default();
        }
    }
}

/// Why a request ends without its engine's word.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) retryable: bool,
}

impl Failure {
    /// Another worker may take it over.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Unavailable, message: message.into(), retryable: true }
    }
}

/// The table of requests in flight.
pub(crate) struct Flights {
    table: Mutex<Table>,
    /// How many there are, for a drain that waits.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    flights: HashMap<u64, Arc<Flight>>,
    prompt_tokens: u64,
    next_id: u64,
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self { table: Mutex::default(), count: watch::Sender::new(0) }
    }

    /// Admits a request, unless the table is full.
    pub(crate) fn admit(
        &self,
        life: u64,
        prompt_tokens: u32,
        requests_max: usize,
    ) -> Result<Arc<Flight>, Full> {
        let mut table = self.table.lock();
        if table.flights.len() >= requests_max {
            return Err(Full::Requests);
        }
        if table.prompt_tokens + u64::from(prompt_tokens) > PROMPT_TOKENS_MAX {
            return Err(Full::PromptTokens);
        }
        table.next_id += 1;
        let id = table.next_id;
        let (slot, wake, left) = (Mutex::default(), Notify::new(), Notify::new());
        let flight = Arc::new(Flight { id, life, prompt_tokens, slot, wake, left });
        table.prompt_tokens += u64::from(prompt_tokens);
        table.flights.insert(id, Arc::clone(&flight));
        self.count.send_replace(table.flights.len());
        Ok(flight)
    }

    /// Takes a request out, whose engine has ended it or never had it.
    pub(crate) fn remove(&self, id: u64) {
        let mut table = self.table.lock();
        if let Some(flight) = table.flights.remove(&id) {
            table.prompt_tokens -= u64::from(flight.prompt_tokens);
            self.count.send_replace(table.flights.len());
        }
    }

    /// How many are in flight.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Delivers the engine's outputs; answers with the ids to cancel, whose clients read too slowly. Outputs
    /// of unknown requests are dropped: their end was told already.
    pub(crate) fn deliver(&self, outputs: Vec<Output>, now: Instant, meter: &Meter) -> Vec<u64> {
        let mut late = Vec::new();
        let mut steps: HashMap<u64, (Arc<Flight>, u32)> = HashMap::new();
        for output in outputs {
            let Some(flight) = self.table.lock().flights.get(&output.id).cloned() else { continue };
            if output.first {
                let computed = flight.prompt_tokens.saturating_sub(output.cached_tokens);
                meter.prefilled(computed, output.prefill_us);
                flight.slot.lock().last_output = Some(now);
                metrics::histogram!("mainstay_worker_queue_seconds")
                    .record(output.queue_us as f64 / 1e6);
            } else if !output.tokens.is_empty() {
                steps.entry(flight.id).or_insert_with(|| (Arc::clone(&flight), 0)).1 += 1;
            }
            let finish = output.finish.clone();
            if flight.take(output) {
                let message = "the client reads too slowly".into();
                let code = ErrorCode::ResourceExhausted;
                flight.fail(&Failure { code, message, retryable: false });
                late.push(flight.id);
            }
            if let Some(finish) = finish {
                count_end(&flight, &finish);
                self.remove(flight.id);
            }
        }
        let gaps = steps.into_values().filter_map(|(flight, count)| {
            let last = flight.slot.lock().last_output.replace(now)?;
            Some(now.saturating_duration_since(last) / count).filter(|gap| !gap.is_zero())
        });
        meter.stepped(gaps);
        late
    }

    /// Ends every request of engines up to `life`.
    pub(crate) fn fail_all(&self, life: u64, error: &Failure) -> Vec<u64> {
        let ended: Vec<Arc<Flight>> =
            self.table.lock().flights.values().filter(|f| f.life <= life).cloned().collect();
        for flight in &ended {
            self.fail(flight, error);
        }
        ended.iter().map(|flight| flight.id).collect()
    }

    /// Ends one request.
    pub(crate) fn fail(&self, flight: &Flight, error: &Failure) {
        flight.fail(error);
        self.remove(flight.id);
        metrics::counter!("mainstay_worker_requests_total", "finish" => error.code.name())
            .increment(1);
    }
}

fn count_end(flight: &Flight, finish: &Finish) {
    let label = match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
        Finish::Error { rc, .. } => error_code(Code::from_rc(*rc)).name(),
    };
    let slot = flight.slot.lock();
    metrics::counter!("mainstay_worker_requests_total", "finish" => label).increment(1);
    metrics::counter!("mainstay_worker_prompt_tokens_total")
        .increment(u64::from(flight.prompt_tokens));
    metrics::counter!("mainstay_worker_cached_tokens_total")
        .increment(u64::from(slot.cached_tokens));
    metrics::counter!("mainstay_worker_generated_tokens_total").increment(slot.tokens);
}

/// The shared word for an engine's code.
pub(crate) const fn error_code(code: Code) -> ErrorCode {
    match code {
        Code::Invalid => ErrorCode::InvalidArgument,
        Code::NotFound => ErrorCode::NotFound,
        Code::Exists => ErrorCode::AlreadyExists,
        Code::Exhausted => ErrorCode::ResourceExhausted,
        Code::Precondition => ErrorCode::FailedPrecondition,
        Code::Unimplemented | Code::TooNew => ErrorCode::Unimplemented,
        Code::Internal => ErrorCode::Internal,
        Code::Unavailable => ErrorCode::Unavailable,
    }
}

/// Whether another worker may do better.
pub(crate) const fn retryable(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unavailable | ErrorCode::ResourceExhausted)
}

fn event_of(output: Output) -> v1::GenerateEvent {
    let logprobs = output.logprobs.into_iter().map(|l| v1::Logprob {
        token: l.token,
        logprob: l.logprob,
        position: l.position,
        rank: l.rank,
    });
    let mut event = v1::GenerateEvent {
        tokens: output.tokens,
        logprobs: logprobs.collect(),
        first: output.first,
        cached_tokens: output.cached_tokens,
        queue_us: output.queue_us,
        prefill_us: output.prefill_us,
        ..v1::GenerateEvent::default()
    };
    let finish = match output.finish {
        None => v1::Finish::Unspecified,
        Some(Finish::Stop) => v1::Finish::Stop,
        Some(Finish::Length) => v1::Finish::Length,
        Some(Finish::Cancelled) => v1::Finish::Cancelled,
        Some(Finish::Error { rc, message }) => {
            let code = error_code(Code::from_rc(rc));
            event.error = message;
            event.error_code = code.grpc();
            event.retryable = retryable(code);
            v1::Finish::Error
        }
    };
    event.finish = finish.into();
    event
}

/// Puts an event behind what waits: one event holds all of it, in order.
fn put(slot: &mut Slot, event: v1::GenerateEvent) {
    if slot.detached {
        return;
    }
    let Some(waiting) = &mut slot.waiting else {
        slot.waiting = Some(event);
        return;
    };
    let offset = waiting.tokens.len() as u32;
    waiting.tokens.extend(event.tokens);
    waiting.logprobs.extend(
        event.logprobs.into_iter().map(|l| v1::Logprob { position: l.position + offset, ..l }),
    );
    let last = event.finish != v1::Finish::Unspecified as i32;
    if event.first || last {
        waiting.cached_tokens = event.cached_tokens;
    }
    if event.first {
        (waiting.first, waiting.queue_us, waiting.prefill_us) =
            (true, event.queue_us, event.prefill_us);
    }
    if last {
        waiting.finish = event.finish;
        waiting.error = event.error;
        waiting.error_code = event.error_code;
        waiting.retryable = event.retryable;
    }
}

#[cfg(test)]
mod tests;
