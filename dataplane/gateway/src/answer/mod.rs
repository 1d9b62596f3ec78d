//! From a body to an answer, the same way for the three APIs: read, find the history, prepare, place, write.
//!
//! This file is the order of these phases; each of them lives in a file of its own.

mod read;
mod writer;

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use mainstay_chat::template::RenderOptions;
use mainstay_chat::{ApiError, Endpoint, ErrorKind, Request, encode};
use mainstay_proto::v1;
use mainstay_types::TenantId;
use tokio::sync::OwnedSemaphorePermit;

use crate::constrain;
use crate::generate::{self, Job};
use crate::http::App;
use crate::model::ModelCard;
use crate::prompt::{self, Prompt};
use crate::quota::Spending;
pub(crate) use read::compute;
use writer::Writer;

/// A request on its way.
struct Turn {
    request: Request,
    request_id: String,
    card: Arc<ModelCard>,
    prompt: Prompt,
    /// The form that the answer must have.
    guided: Option<v1::Guided>,
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
pub(crate) struct Answer {
    pub(crate) form: AnswerForm,
    /// The value of the header `mainstay-hints`, where there is something to tell.
    pub(crate) told: Option<String>,
}

/// What an answer is made of.
pub(crate) enum AnswerForm {
    /// A whole body.
    Json(String),
    /// Server-sent events.
    Stream(Body),
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

    /// Reads and prepares a request. The permit travels with the work: a client that leaves does not free it
    /// while its prompt is prepared.
    async fn turn(
        &self,
        endpoint: Endpoint,
        admitted: Admitted,
        headers: &HeaderMap,
        body: Bytes,
        request_id: &str,
    ) -> Result<(Turn, OwnedSemaphorePermit), ApiError> {
        let Admitted { tenant, permit, spending } = admitted;
        let names = read::names(headers);
        let app = self.clone();
        let id = request_id.to_owned();
        // A short Responses body may continue a long conversation.
        let work_bytes = if endpoint == Endpoint::Responses { usize::MAX } else { body.len() };
        compute(work_bytes, move || {
            let mut request = read::request(endpoint, &body, app.parsing, &names, &id)?;
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
            let guided = constrain::guided(&mut request, &card, prompt.thinking_open)?;
            let turn = Turn { request, request_id: id, card, prompt, guided, tenant, spending };
            Ok((turn, permit))
        })
        .await
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
            let form = AnswerForm::Json(encode::count_tokens_body(tokens as u64));
            return Ok(Answer { form, told: turn.request.told_header() });
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
        let (told, stream) = (turn.request.told_header(), turn.request.stream);
        let writer = Writer::new(turn, &generation, self.stored.clone(), pins);
        if stream {
            let form = AnswerForm::Stream(writer.stream(generation, permit));
            return Ok(Answer { form, told });
        }
        let answer = writer.collect(generation).await.map(AnswerForm::Json);
        drop(permit);
        Ok(Answer { form: answer?, told })
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
            guided: self.guided.clone(),
        }
    }
}
