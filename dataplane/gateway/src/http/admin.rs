//! What operators ask of a gateway: pins, status, why a request went where it went.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mainstay_chat::Endpoint;
use mainstay_chat::error::{ApiError, ErrorKind};
use mainstay_proto::v1;
use mainstay_types::PinId;
use serde_json::{Value, json};

use super::{App, failure, new_request_id};

/// Pins shown in one answer at most.
const PINS_MAX: u32 = 10_000;

/// An admin error, in OpenAI's shape like every error under `/v1` that is not Anthropic's.
pub(super) struct AdminError(ApiError);

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        failure(&self.0, Endpoint::Chat, &new_request_id())
    }
}

impl From<ApiError> for AdminError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<tonic::Status> for AdminError {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let kind = match status.code() {
            Code::NotFound => ErrorKind::NotFound,
            Code::InvalidArgument | Code::AlreadyExists | Code::FailedPrecondition => {
                ErrorKind::InvalidRequest
            }
            Code::ResourceExhausted => ErrorKind::RateLimited,
            Code::PermissionDenied => ErrorKind::Permission,
            Code::Unauthenticated => ErrorKind::Authentication,
            Code::Unavailable | Code::DeadlineExceeded => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        let message = match kind {
            ErrorKind::Unavailable => {
                format!("the control plane does not answer, try again: {}", status.message())
            }
            _ => status.message().to_owned(),
        };
        Self(ApiError::new(kind, message))
    }
}

type Reply = Result<Json<Value>, AdminError>;

#[derive(serde::Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    all: bool,
}

pub(super) async fn list_pins(
    State(app): State<App>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Reply {
    let tenant = app.tenants.of(&headers)?;
    let request = v1::ListPinsRequest {
        tenant: tenant.as_str().to_owned(),
        all_states: query.all,
        limit: PINS_MAX,
        ..v1::ListPinsRequest::default()
    };
    let call = app.control.call(super::CONTROL_DEADLINE, |mut c| {
        let request = request.clone();
        async move { c.list_pins(request).await }
    });
    let reply = call.await?;
    let pins: Vec<Value> = reply.pins.iter().map(pin_json).collect();
    Ok(Json(json!({"object": "list", "log_index": reply.log_index, "data": pins})))
}

async fn owned_pin(
    app: &App,
    headers: &HeaderMap,
    id: &str,
) -> Result<(PinId, v1::Pin), AdminError> {
    let tenant = app.tenants.of(headers)?;
    let parsed = PinId::parse(id).ok_or_else(|| {
        ApiError::invalid("id", "not a pin id; they look like p-0123…, see GET /v1/pins")
    })?;
    let request = v1::GetPinRequest {
        id: mainstay_proto::convert::u128_to_wire(parsed.0),
        ..v1::GetPinRequest::default()
    };
    let call = app.control.call(super::CONTROL_DEADLINE, |mut c| {
        let request = request.clone();
        async move { c.get_pin(request).await }
    });
    let pin = call.await?.pin;
    // Another tenant's pin is told as missing: whether it exists is none of the caller's business.
    pin.filter(|p| p.request.as_ref().is_some_and(|r| r.tenant == tenant.as_str()))
        .map(|p| (parsed, p))
        .ok_or_else(|| {
            ApiError::new(ErrorKind::NotFound, format!("no pin {id}; GET /v1/pins lists them"))
                .into()
        })
}

pub(super) async fn show_pin(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Reply {
    Ok(Json(pin_json(&owned_pin(&app, &headers, &id).await?.1)))
}

pub(super) async fn extend_pin(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
    body: axum::body::Bytes,
) -> Reply {
    let body: Value = serde_json::from_slice(&body)
        .map_err(|e| ApiError::invalid("", &format!("not JSON: {e}")))?;
    let ttl_ms = super::ttl_ms(&body)
        .flatten()
        .ok_or_else(|| ApiError::invalid("ttl", "give a duration such as \"30m\" or \"1h\""))?;
    let (id, _) = owned_pin(&app, &headers, &id).await?;
    let reply = app.pins.extend(id, ttl_ms).await?;
    Ok(Json(reply.pin.as_ref().map(pin_json).unwrap_or_default()))
}

pub(super) async fn release_pin(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Reply {
    let (id, _) = owned_pin(&app, &headers, &id).await?;
    let reply = app.pins.release(id).await?;
    Ok(Json(reply.pin.as_ref().map(pin_json).unwrap_or_default()))
}

/// A pin as JSON: hashes are summed up by the last one, since a prefix may have thousands of blocks.
pub(super) fn pin_json(pin: &v1::Pin) -> Value {
    let request = pin.request.clone().unwrap_or_default();
    let hex = |bytes: &[u8]| {
        mainstay_proto::convert::u128_from_wire(bytes, "id")
            .map(|v| format!("{v:032x}"))
            .unwrap_or_default()
    };
    let last = request.blocks.len().saturating_sub(16);
    json!({
        "object": "pin",
        "id": format!("p-{}", hex(&request.id)),
        "tenant": request.tenant,
        "owner": request.owner,
        "state": pin.state,
        "reason": pin.reason,
        "prefix_tokens": request.prefix_tokens,
        "blocks": request.blocks.len() / 16,
        "last_block": hex(request.blocks.get(last..).unwrap_or_default()),
        "ttl_ms": request.ttl_ms,
        "ttl_left_ms": pin.ttl_left_ms,
        "priority": request.priority,
        "copies_min": request.copies_min,
        "copies": pin.holders.iter().filter(|h| h.blocks_held as usize * 16 >= request.blocks.len()).count(),
        // That it keeps its tokens; never the tokens, which are a prompt.
        "recompute": request.tokens.is_some(),
        "orders": pin.orders.iter().map(|o| json!({
            "worker": o.name, "worker_id": o.worker, "epoch": o.epoch, "age_ms": o.age_ms,
            "attempts": o.attempts,
        })).collect::<Vec<_>>(),
        "order_attempts": pin.order_attempts,
        "created_index": pin.created_index,
        "holders": pin.holders.iter().map(|h| json!({
            "worker": h.name, "worker_id": h.worker, "blocks_held": h.blocks_held,
        })).collect::<Vec<_>>(),
    })
}

pub(super) async fn status(State(app): State<App>, headers: HeaderMap) -> Reply {
    app.tenants.of(&headers)?;
    let call = app.control.call(super::CONTROL_DEADLINE, |mut c| async move {
        c.status(v1::StatusRequest::default()).await
    });
    let s = call.await?;
    let members: Vec<Value> = s
        .members
        .iter()
        .map(|m| json!({
            "id": m.id, "address": m.address, "role": m.role, "last_log_index": m.last_log_index,
            "applied_index": m.applied_index, "lag": m.lag, "reachable": m.reachable,
        }))
        .collect();
    let workers: Vec<Value> = s
        .workers
        .iter()
        .map(|w| json!({
            "id": w.worker, "name": w.name, "address": w.address, "epoch": w.epoch, "state": w.state,
            "model": w.model.as_ref().map(|m| m.name.clone()), "blocks": w.blocks,
            "blocks_total": w.blocks_total, "lease_left_ms": w.lease_left_ms,
        }))
        .collect();
    let age_ms = app.replica.age().map(|a| u64::try_from(a.as_millis()).unwrap_or(u64::MAX));
    Ok(Json(json!({
        "node": s.node, "leader": s.leader, "term": s.term, "last_log_index": s.last_log_index,
        "applied_index": s.applied_index, "pins_live": s.pins_live, "index_blocks": s.index_blocks,
        "members": members, "workers": workers,
        "gateway": {
            "models": app.workers.model_names(),
            "replica_log_index": app.replica.read(|m| m.applied().0),
            "replica_age_ms": age_ms,
        },
    })))
}

pub(super) async fn explain(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Reply {
    let tenant = app.tenants.of(&headers)?;
    let explained = app.placement.explain(&tenant, &id).ok_or_else(|| {
        ApiError::new(
            ErrorKind::NotFound,
            format!("no decision is kept for request {id}; try `last`"),
        )
    })?;
    Ok(Json(super::explain_json(&app, &explained)))
}
