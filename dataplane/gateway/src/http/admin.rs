//! What operators ask of a gateway: pins, status, why a request went where it went.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request};
use axum::response::{IntoResponse, Response};
use mainstay_chat::Endpoint;
use mainstay_chat::error::{ApiError, ErrorKind};
use mainstay_proto::v1;
use mainstay_types::{PinId, PinScope, TenantId};
use serde_json::{Value, json};

use super::params::Params;
use super::staleness::{Basis, Consistency, pin_on_wire};
use super::{App, failure, new_request_id, span_of};

/// Pins shown in one answer at most.
const PINS_MAX: u32 = 10_000;
/// How long the followed member may take to describe the cluster; it asks the others, half a second at most.
const STATUS_WAIT: Duration = Duration::from_millis(1_500);

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
    consistency: Option<String>,
}

#[derive(serde::Deserialize)]
pub(super) struct ShowQuery {
    consistency: Option<String>,
}

pub(super) async fn list_pins(
    State(app): State<App>,
    headers: HeaderMap,
    Params(query): Params<ListQuery>,
) -> Result<Response, AdminError> {
    let admitted = app.admit(&headers)?;
    let tenant = admitted.tenant.clone();
    let consistency = Consistency::parse(query.consistency.as_deref())?;
    if consistency == Consistency::Local {
        let basis = begun(&app)?;
        let pins: Vec<Value> = app.replica.read(|m| {
            let own = m.pins().filter(|p| p.request.tenant == tenant && (query.all || p.is_live()));
            let wire = |p| pin_json(&pin_on_wire(m, p, basis.age_ms.unwrap_or(0)));
            own.take(PINS_MAX as usize).map(wire).collect()
        });
        return Ok(list_json(pins, basis, consistency));
    }
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
    let basis = Basis { log_index: reply.log_index, age_ms: reply.age_ms };
    Ok(list_json(pins, basis, consistency))
}

fn list_json(pins: Vec<Value>, basis: Basis, consistency: Consistency) -> Response {
    basis.answer(json!({
        "object": "list", "log_index": basis.log_index, "index_age_ms": basis.age_ms,
        "consistency": consistency.name(), "data": pins,
    }))
}

/// The replica's basis, once there is a replica.
fn begun(app: &App) -> Result<Basis, ApiError> {
    if app.replica.has_begun() {
        return Ok(Basis::of_replica(app));
    }
    Err(ApiError::new(ErrorKind::Unavailable, "no control member has answered yet"))
}

fn no_pin(id: &str) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("no pin {id}; GET /v1/pins lists them"))
}

fn parse_id(id: &str) -> Result<PinId, ApiError> {
    PinId::parse(id).ok_or_else(|| {
        ApiError::invalid("id", "not a pin id; they look like p-0123…, see GET /v1/pins")
    })
}

async fn owned_pin(
    app: &App,
    tenant: &TenantId,
    id: &str,
) -> Result<(PinId, v1::Pin, Basis), AdminError> {
    let parsed = parse_id(id)?;
    let request = v1::GetPinRequest {
        id: mainstay_proto::convert::u128_to_wire(parsed.0),
        ..v1::GetPinRequest::default()
    };
    let call = app.control.call(super::CONTROL_DEADLINE, |mut c| {
        let request = request.clone();
        async move { c.get_pin(request).await }
    });
    // Another tenant's pin is told as missing, in the same words: whether it exists is none of the caller's business.
    let reply = match call.await {
        Err(status) if status.code() == tonic::Code::NotFound => return Err(no_pin(id).into()),
        reply => reply?,
    };
    let basis = Basis { log_index: reply.log_index, age_ms: reply.age_ms };
    reply
        .pin
        .filter(|p| p.request.as_ref().is_some_and(|r| r.tenant == tenant.as_str()))
        .map(|p| (parsed, p, basis))
        .ok_or_else(|| no_pin(id).into())
}

pub(super) async fn show_pin(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Params(query): Params<ShowQuery>,
) -> Result<Response, AdminError> {
    let admitted = app.admit(&headers)?;
    let tenant = &admitted.tenant;
    let consistency = Consistency::parse(query.consistency.as_deref())?;
    let (pin, basis) = if consistency == Consistency::Local {
        let (parsed, basis) = (parse_id(&id)?, begun(&app)?);
        let pin = app.replica.read(|m| {
            let own = m.pin(parsed).filter(|p| p.request.tenant == *tenant);
            own.map(|p| pin_on_wire(m, p, basis.age_ms.unwrap_or(0)))
        });
        (pin.ok_or_else(|| no_pin(&id))?, basis)
    } else {
        let (_, pin, basis) = owned_pin(&app, tenant, &id).await?;
        (pin, basis)
    };
    let mut body = pin_json(&pin);
    body["log_index"] = json!(basis.log_index);
    body["index_age_ms"] = json!(basis.age_ms);
    body["consistency"] = json!(consistency.name());
    Ok(basis.answer(body))
}

pub(super) async fn extend_pin(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request<Body>,
) -> Reply {
    let span = span_of("PATCH /v1/pins/{id}", request.headers());
    let admitted = app.admit(request.headers())?;
    let (_, body, admitted) = super::read_body(request, admitted).await?;
    let body = mainstay_chat::plain_json::from_slice(&body)
        .map_err(|e| ApiError::invalid("", &format!("not JSON: {e}")))?;
    let ttl_ms = super::ttl_ms(&body)
        .flatten()
        .ok_or_else(|| ApiError::invalid("ttl", "give a duration such as \"30m\" or \"1h\""))?;
    let (id, ..) = owned_pin(&app, &admitted.tenant, &id).await?;
    let reply = app.pins.extend(id, ttl_ms, &span).await?;
    Ok(Json(reply.pin.as_ref().map(pin_json).unwrap_or_default()))
}

pub(super) async fn release_pin(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Reply {
    let span = span_of("DELETE /v1/pins/{id}", &headers);
    let admitted = app.admit(&headers)?;
    let (id, ..) = owned_pin(&app, &admitted.tenant, &id).await?;
    let reply = app.pins.release(id, &span).await?;
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
    // A member of an older version counts nothing and sends all blocks.
    let blocks = (pin.blocks as usize).max(request.blocks.len() / 16);
    let last = match pin.last_block.is_empty() {
        true => request.blocks.get(request.blocks.len().saturating_sub(16)..).unwrap_or_default(),
        false => &pin.last_block,
    };
    json!({
        "object": "pin",
        "id": format!("p-{}", hex(&request.id)),
        "tenant": request.tenant,
        "owner": request.owner,
        "state": pin.state,
        "reason": pin.reason,
        "prefix_tokens": request.prefix_tokens,
        "blocks": blocks,
        "last_block": hex(last),
        "ttl_ms": request.ttl_ms,
        "ttl_left_ms": pin.ttl_left_ms,
        "priority": request.priority,
        "copies_min": request.copies_min,
        "copies": pin.holders.iter().filter(|h| h.blocks_held as usize >= blocks).count(),
        // That it keeps its tokens; never the tokens, which are a prompt.
        "recompute": request.tokens.is_some(),
        "orders": pin.orders.iter().map(|o| json!({
            "worker": o.name, "worker_id": o.worker, "epoch": o.epoch, "age_ms": o.age_ms,
            "attempts": o.attempts,
        })).collect::<Vec<_>>(),
        "order_attempts": pin.order_attempts,
        "scope": PinScope::parse(&request.scope).unwrap_or_default().to_string(),
        "created_index": pin.created_index,
        "holders": pin.holders.iter().map(|h| json!({
            "worker": h.name, "worker_id": h.worker, "blocks_held": h.blocks_held,
        })).collect::<Vec<_>>(),
    })
}

/// The followed member's view: near, and there also when the others are out of reach; else whoever answers.
pub(super) async fn ask_status(app: &App) -> Result<v1::StatusReply, tonic::Status> {
    if let Some((_, mut near)) = app.replica.followed() {
        let asked = near.status(v1::StatusRequest::default());
        if let Ok(Ok(reply)) = tokio::time::timeout(STATUS_WAIT, asked).await {
            return Ok(reply.into_inner());
        }
    }
    let call = app.control.call(super::CONTROL_DEADLINE, |mut c| async move {
        c.status(v1::StatusRequest::default()).await
    });
    call.await
}

fn known(region: &str) -> Option<&str> {
    Some(region).filter(|region| !region.is_empty())
}

/// Members of older programs say none.
fn version(version: u32) -> Option<u32> {
    Some(version).filter(|v| *v > 0)
}

/// A member as JSON.
pub(super) fn member_json(m: &v1::Member) -> Value {
    json!({
        "id": m.id, "address": m.address, "role": m.role, "last_log_index": m.last_log_index,
        "applied_index": m.applied_index, "lag": m.lag, "reachable": m.reachable,
        "region": known(&m.region), "version": version(m.version),
    })
}

pub(super) async fn status(State(app): State<App>, headers: HeaderMap) -> Reply {
    let _admitted = app.admit(&headers)?;
    let s = ask_status(&app).await?;
    let members: Vec<Value> = s.members.iter().map(member_json).collect();
    let workers: Vec<Value> = s
        .workers
        .iter()
        .map(|w| json!({
            "id": w.worker, "name": w.name, "address": w.address, "epoch": w.epoch, "state": w.state,
            "model": w.model.as_ref().map(|m| m.name.clone()), "blocks": w.blocks,
            "blocks_total": w.blocks_total, "lease_left_ms": w.lease_left_ms, "region": known(&w.region),
        }))
        .collect();
    let replica = Basis::of_replica(&app);
    Ok(Json(json!({
        "node": s.node, "leader": s.leader, "term": s.term, "last_log_index": s.last_log_index,
        "applied_index": s.applied_index, "pins_live": s.pins_live, "index_blocks": s.index_blocks,
        "log_index": s.applied_index, "index_age_ms": s.age_ms, "region": known(&s.region),
        "version": version(s.cluster_version), "members": members, "workers": workers,
        "gateway": {
            "models": app.workers.model_names(),
            "region": app.region.as_str(),
            "follows": app.replica.followed().map(|(address, _)| address),
            "replica_log_index": replica.log_index,
            "replica_age_ms": replica.age_ms,
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
