//! Responses that outlive their request: found for `previous_response_id`, read, deleted.
//!
//! The log keeps them, so that any gateway can go on where another ended; a response is in it before the last event of
//! its stream goes out. This gateway's memory stands in front, and behind a log that could not take one. A connection
//! by WebSocket besides remembers its last response by itself, also one that is not stored.

mod memory;
mod payload;

use std::sync::Arc;
use std::time::Duration;

use mainstay_chat::{ApiError, Conversation, ErrorKind, ParseOptions, history};
use mainstay_proto::client::ControlPlane;
use mainstay_proto::convert::responses::{record_from_wire, record_to_wire};
use mainstay_proto::v1;
use mainstay_types::{Payload, ResponseId, ResponseRecord, ResponseState, TenantId};
use parking_lot::Mutex;
use serde_json::Value;
use tonic::{Code, Status};

use crate::answer::{compute_held, shown_error};
use crate::replica::Replica;
use crate::seal::parsing_of;
use memory::{Memory, Remembered};
use payload::Said;

/// How long a response is kept after it was last continued.
const TTL_MS: u64 = 24 * 60 * 60 * 1_000;
/// How long the end of an answer waits for the log; a leader's election may be longer, and then goes without it.
const PUT_WAIT: Duration = Duration::from_secs(2);
/// How long a put goes on beside the answer.
const PUT_DEADLINE: Duration = Duration::from_secs(10);
/// A replica older than that says that the control plane is away: nobody waits for it then.
const AWAY_MS: u64 = 3_000;
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// How long a response may be worked on behind its client's back.
pub(crate) const BACKGROUND_MAX: Duration = Duration::from_secs(15 * 60);
/// How much later one that says nothing counts as failed: its gateway is gone.
const BACKGROUND_GRACE: Duration = Duration::from_secs(60);

/// A finished answer, to be stored.
pub(crate) struct FinishedTurn {
    pub(crate) id: String,
    pub(crate) previous: Option<String>,
    /// The response object, as its client gets it.
    pub(crate) response: Value,
    /// The items that the request brought.
    pub(crate) input: Vec<Value>,
    /// All that was said before those.
    pub(crate) before: Option<Arc<Conversation>>,
    /// All that was said, this turn included.
    pub(crate) conversation: Arc<Conversation>,
}

/// A turn that is worked on behind its client's back.
pub(crate) struct RunningTurn {
    pub(crate) tenant: TenantId,
    pub(crate) id: String,
    pub(crate) previous: Option<String>,
    pub(crate) response: Value,
    pub(crate) input: Vec<Value>,
}

/// The same turn after it has failed.
pub(crate) fn failed(mut running: RunningTurn, error: &ApiError) -> RunningTurn {
    running.response["status"] = "failed".into();
    running.response["error"] = shown_error(error);
    running
}

/// A stored response, read.
#[derive(Debug)]
pub(crate) struct StoredResponse {
    pub(crate) response: Value,
    pub(crate) input: Vec<Value>,
}

/// What a connection remembers of its last response; a request that continues it takes it out, so that one that fails
/// leaves nothing to continue.
#[derive(Clone, Default)]
pub(crate) struct LastTurn {
    slot: Arc<Mutex<Option<Ended>>>,
}

/// A conversation and the id of the response that it ended in.
struct Ended {
    id: String,
    conversation: Arc<Conversation>,
}

impl LastTurn {
    pub(crate) fn put(&self, id: String, conversation: Arc<Conversation>) {
        *self.slot.lock() = Some(Ended { id, conversation });
    }

    /// Forgets the response if it has that id.
    pub(crate) fn take(&self, id: &str) -> Option<Arc<Conversation>> {
        self.slot.lock().take_if(|last| last.id == id).map(|last| last.conversation)
    }
}

/// Stored responses, as a gateway sees them.
#[derive(Clone)]
pub(crate) struct Stored {
    control: ControlPlane,
    replica: Replica,
    memory: Memory,
    parsing: ParseOptions,
}

fn unknown(id: &str) -> ApiError {
    let message = format!(
        "previous response with id `{id}` not found; send the whole conversation as `input`"
    );
    let mut error = ApiError::new(ErrorKind::NotFound, message);
    error.param = Some("previous_response_id".to_owned());
    error.with_code("previous_response_not_found")
}

fn no_response(id: &str) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("response with id `{id}` not found"))
}

fn away(status: &Status) -> ApiError {
    let message = format!("the control plane does not answer, try again: {}", status.message());
    ApiError::new(ErrorKind::Unavailable, message)
}

impl Stored {
    pub(crate) fn new(control: ControlPlane, replica: Replica, parsing: ParseOptions) -> Self {
        Self { control, replica, memory: Memory::default(), parsing }
    }

    /// The conversation that ended in the response `id`. `held` goes with the work and comes back.
    pub(crate) async fn history<H: Send + 'static>(
        &self,
        tenant: &TenantId,
        id: &str,
        last: Option<&LastTurn>,
        held: H,
    ) -> Result<(Arc<Conversation>, H), ApiError> {
        if let Some(conversation) = last.and_then(|last| last.take(id)) {
            return Ok((conversation, held));
        }
        let known = ResponseId::new(id).ok_or_else(|| unknown(id))?;
        if let Some(remembered) = self.memory.get(tenant, &known)
            && (!remembered.logged || self.is_whole(tenant, &known))
        {
            return Ok((remembered.conversation, held));
        }
        let reply = match self.read(tenant, &known, true).await {
            Ok(reply) => reply,
            Err(status) if status.code() == Code::NotFound => {
                self.memory.forget(tenant, &known);
                return Err(unknown(id));
            }
            // Old members know of none.
            Err(status) if status.code() == Code::Unimplemented => return Err(unknown(id)),
            Err(status) => return Err(away(&status)),
        };
        let chain = records(reply)?;
        // A chain whose beginning is gone is another conversation.
        if chain.first().is_none_or(|first| first.previous.is_some()) {
            return Err(unknown(id));
        }
        if chain.last().is_some_and(|last| last.state != ResponseState::Ended) {
            let message = format!("response `{id}` has not ended; wait for it, then continue it");
            return Err(ApiError::invalid("previous_response_id", &message));
        }
        let parsing = parsing_of(tenant, &self.replica, &self.parsing);
        // However short the request is, its history may be long.
        let read = compute_held(held, usize::MAX, move || {
            let said = chain.iter().map(said).collect::<Result<Vec<_>, _>>()?;
            payload::conversation_of(&said, parsing)
        });
        let (conversation, held) = read.await?;
        let conversation = Arc::new(conversation);
        let remembered = Remembered { conversation: Arc::clone(&conversation), logged: true };
        self.memory.put(tenant, &known, remembered);
        Ok((conversation, held))
    }

    /// Whether the log still has a response and all that it continues, as far as this gateway has heard.
    fn is_whole(&self, tenant: &TenantId, id: &ResponseId) -> bool {
        self.replica.read(|m| {
            let first = m.response_chain(tenant, id).last();
            first.is_some_and(|first| first.record.previous.is_none())
        })
    }

    /// Stores an answer: in the log if that can be had in time, and in this gateway's memory.
    pub(crate) async fn put(&self, tenant: &TenantId, turn: FinishedTurn) {
        let Some(id) = ResponseId::new(&turn.id) else { return };
        let conversation = Arc::clone(&turn.conversation);
        self.memory.put(tenant, &id, Remembered { conversation, logged: false });
        let stored = self.clone();
        let tenant = tenant.clone();
        let put = tokio::spawn(async move { stored.log(&tenant, &id, turn).await });
        if self.replica.age_ms().is_none_or(|age_ms| age_ms > AWAY_MS) {
            return;
        }
        // It goes on if it takes longer.
        let _ = tokio::time::timeout(PUT_WAIT, put).await;
    }

    async fn log(&self, tenant: &TenantId, id: &ResponseId, turn: FinishedTurn) {
        let FinishedTurn { previous, response, input, before, conversation, .. } = turn;
        let previous = previous.as_deref().and_then(ResponseId::new);
        let mut said = Said { response, input, before: Vec::new() };
        let ended = ResponseState::Ended;
        let mut put = self.put_record((tenant, id), previous, ended, &said).await;
        // The log lacks what this one continues, or has too long a chain: then it begins another one.
        let again =
            matches!(&put, Err(s) if matches!(s.code(), Code::NotFound | Code::FailedPrecondition));
        if let Some(before) = before.filter(|_| again) {
            said.before = history::items_of(&before);
            put = self.put_record((tenant, id), None, ended, &said).await;
        }
        let outcome = match &put {
            Ok(_) => "logged",
            Err(status) => {
                tracing::warn!(
                    response = id.as_str(), code = ?status.code(), reason = status.message(),
                    "a response is kept by this gateway only"
                );
                "local"
            }
        };
        metrics::counter!("mainstay_gateway_responses_stored_total", "outcome" => outcome)
            .increment(1);
        match put {
            Ok(_) => self.memory.put(tenant, id, Remembered { conversation, logged: true }),
            // Nobody wants it any more.
            Err(_) if self.state(tenant, id.as_str()) == Some(ResponseState::Cancelled) => {
                self.memory.forget(tenant, id);
            }
            Err(_) => {}
        }
    }

    async fn put_record(
        &self,
        (tenant, id): (&TenantId, &ResponseId),
        previous: Option<ResponseId>,
        state: ResponseState,
        said: &Said,
    ) -> Result<v1::ResponseReply, Status> {
        let payload = Payload::new(&said.pack());
        let payload = payload.ok_or_else(|| Status::invalid_argument("too large to be stored"))?;
        let (tenant, id) = (tenant.clone(), id.clone());
        let record = ResponseRecord { tenant, id, previous, ttl_ms: TTL_MS, state, payload };
        let wire = record_to_wire(&record);
        self.control
            .call(PUT_DEADLINE, |mut c| {
                let wire = wire.clone();
                async move { c.put_response(wire).await }
            })
            .await
    }

    async fn read(
        &self,
        tenant: &TenantId,
        id: &ResponseId,
        chain: bool,
    ) -> Result<v1::ResponseReply, Status> {
        let request =
            v1::GetResponseRequest { tenant: tenant.to_string(), id: id.to_string(), chain };
        self.control
            .call(READ_DEADLINE, |mut c| {
                let request = request.clone();
                async move { c.get_response(request).await }
            })
            .await
    }

    /// One response, as its client got it.
    pub(crate) async fn get(
        &self,
        tenant: &TenantId,
        id: &str,
    ) -> Result<StoredResponse, ApiError> {
        let known = ResponseId::new(id).ok_or_else(|| no_response(id))?;
        let reply = self.read(tenant, &known, false).await.map_err(|s| refusal(&s, id))?;
        let age_ms = reply.responses.last().map_or(0, |stored| stored.age_ms);
        let record = records(reply)?.pop().ok_or_else(|| no_response(id))?;
        let Said { mut response, input, .. } = said(&record)?;
        let late = u128::from(age_ms) > (BACKGROUND_MAX + BACKGROUND_GRACE).as_millis();
        match record.state {
            ResponseState::Ended => {}
            ResponseState::Cancelled => response["status"] = "cancelled".into(),
            ResponseState::Running if late => {
                let error = ApiError::new(ErrorKind::Internal, "the gateway that made it is gone");
                response["status"] = "failed".into();
                response["error"] = shown_error(&error);
            }
            ResponseState::Running => response["status"] = "in_progress".into(),
        }
        Ok(StoredResponse { response, input })
    }

    /// Puts a turn into the log that is only being begun.
    pub(crate) async fn begin(&self, turn: &RunningTurn) -> Result<(), ApiError> {
        self.put_running(turn, ResponseState::Running).await.map_err(|status| {
            let known = turn.previous.as_deref().filter(|_| status.code() == Code::NotFound);
            known.map_or_else(|| refusal(&status, &turn.id), unknown)
        })
    }

    /// Puts the end of a turn into the log that failed.
    pub(crate) async fn end(&self, turn: RunningTurn) {
        if let Err(status) = self.put_running(&turn, ResponseState::Ended).await {
            tracing::warn!(response = turn.id, reason = status.message(), "its end is not stored");
        }
    }

    async fn put_running(&self, turn: &RunningTurn, state: ResponseState) -> Result<(), Status> {
        let id = ResponseId::new(&turn.id).ok_or_else(|| Status::internal("id of a response"))?;
        let previous = turn.previous.as_deref().and_then(ResponseId::new);
        let (response, input) = (turn.response.clone(), turn.input.clone());
        let said = Said { response, input, before: Vec::new() };
        self.put_record((&turn.tenant, &id), previous, state, &said).await.map(|_| ())
    }

    /// Where a response stands, as far as this gateway has heard.
    pub(crate) fn state(&self, tenant: &TenantId, id: &str) -> Option<ResponseState> {
        let id = ResponseId::new(id)?;
        self.replica.read(|m| m.response(tenant, &id).map(|response| response.record.state))
    }

    /// Has a response stop that is worked on.
    pub(crate) async fn cancel(&self, tenant: &TenantId, id: &str) -> Result<(), ApiError> {
        self.end_record(tenant, id, true).await.map_err(|status| refusal(&status, id))
    }

    async fn end_record(&self, tenant: &TenantId, id: &str, cancelled: bool) -> Result<(), Status> {
        let (tenant, id) = (tenant.to_string(), id.to_owned());
        let request = v1::EndResponse { tenant, id, cancelled };
        let ended = self.control.call(READ_DEADLINE, |mut c| {
            let request = request.clone();
            async move { c.end_response(request).await }
        });
        ended.await.map(|_| ())
    }

    /// Forgets one response.
    pub(crate) async fn delete(&self, tenant: &TenantId, id: &str) -> Result<(), ApiError> {
        let known = ResponseId::new(id).ok_or_else(|| no_response(id))?;
        let ended = self.end_record(tenant, id, false).await;
        let here = self.memory.get(tenant, &known).is_some_and(|remembered| !remembered.logged);
        match ended {
            // One that the log never had is gone with this gateway's memory of it.
            Err(status) if !(here && status.code() == Code::NotFound) => Err(refusal(&status, id)),
            _ => {
                self.memory.forget(tenant, &known);
                Ok(())
            }
        }
    }
}

fn refusal(status: &Status, id: &str) -> ApiError {
    match status.code() {
        Code::NotFound | Code::Unimplemented => no_response(id),
        Code::InvalidArgument | Code::FailedPrecondition => {
            ApiError::new(ErrorKind::InvalidRequest, status.message())
        }
        Code::Unavailable | Code::DeadlineExceeded => away(status),
        _ => ApiError::new(ErrorKind::Internal, status.message()),
    }
}

fn records(reply: v1::ResponseReply) -> Result<Vec<ResponseRecord>, ApiError> {
    let broken = |what: String| ApiError::new(ErrorKind::Internal, what);
    let record = |stored: v1::StoredResponse| {
        let wire = stored.record.ok_or_else(|| broken("a stored response is empty".into()))?;
        record_from_wire(&wire).map_err(|e| broken(format!("a stored response: {e}")))
    };
    reply.responses.into_iter().map(record).collect()
}

fn said(record: &ResponseRecord) -> Result<Said, ApiError> {
    let said = record.payload.held().and_then(Said::unpack);
    said.ok_or_else(|| {
        let message = format!("stored response {} was written by another version", record.id);
        ApiError::new(ErrorKind::Internal, message)
    })
}

#[cfg(test)]
mod tests;
