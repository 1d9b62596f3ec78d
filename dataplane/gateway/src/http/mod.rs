//! The gateway's routes.

mod admin;
mod blocks;
mod console;
mod door;
mod health;
mod hosts;
mod inflate;
mod openapi;
mod params;
mod pin_create;
mod sessions;
mod staleness;
mod starting;
mod stored;
mod websocket;

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use mainstay_chat::{
    ApiError, BodyMemory, Endpoint, ErrorKind, KnownBodies, ParseOptions, ToolMemory,
};
use mainstay_proto::client::ControlPlane;
use mainstay_trace::{Parent, Span};
use mainstay_types::Region;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::aliases::ModelAliases;
use crate::answer::{AnswerForm, Incoming};
use crate::config::{GatewayConfig, Recompute};
use crate::meters::Meters;
use crate::pins::Pins;
use crate::placement::{Explained, Placement};
use crate::random;
use crate::replica::Replica;
use crate::retention::Retainer;
use crate::sessions::Sessions;
use crate::stored::Stored;
use crate::tenant::Tenants;
use crate::workers::Workers;
use door::Door;
use starting::Starting;

/// The largest request body, in bytes: what Anthropic's API accepts.
const BODY_BYTES_MAX: usize = 32 << 20;
/// How long a body may take to arrive: the largest at 2 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// Bodies shorter than this are read each time: they are read as quickly as they are remembered.
const KNOWN_BODY_BYTES_MIN: usize = 4 << 10;
/// How long an operator waits for the control plane.
const CONTROL_DEADLINE: Duration = Duration::from_secs(5);

/// What every handler shares: one counter to clone, several times a request.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What the gateway is made of.
pub(crate) struct Parts {
    pub(crate) control: ControlPlane,
    pub(crate) region: Region,
    pub(crate) replica: Replica,
    pub(crate) workers: Workers,
    pub(crate) placement: Placement,
    pub(crate) pins: Pins,
    pub(crate) pins_on: bool,
    pub(crate) recompute: Recompute,
    pub(crate) aliases: ModelAliases,
    pub(crate) parsing: ParseOptions,
    pub(crate) stored: Stored,
    pub(crate) sessions: Sessions,
    pub(crate) retainer: Retainer,
    pub(crate) sockets: websocket::Sockets,
    pub(crate) tenants: Tenants,
    /// Names that it may be called by beside its own.
    pub(crate) hosts: Vec<String>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) requests_max: usize,
    /// Whether the gateway ends.
    pub(crate) stopped: watch::Receiver<bool>,
    pub(crate) metrics: Option<PrometheusHandle>,
    pub(crate) meters: Meters,
    pub(crate) console: console::Console,
}

impl App {
    pub(crate) fn new(
        config: GatewayConfig,
        control: ControlPlane,
        replica: Replica,
        workers: Workers,
        tenants: Tenants,
        (sessions, retainer): (Sessions, Retainer),
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let requests_max = config.requests_max.min(Semaphore::MAX_PERMITS);
        // The tenant is put in for each request.
        let tools = ToolMemory { known: Arc::default(), tenant: Arc::default() };
        // Without an entropy source a client may aim at what another's bodies are found by, at the cost of time alone.
        let key = getrandom::u64().unwrap_or_default();
        let known = KnownBodies::new(KNOWN_BODY_BYTES_MIN, config.prompt_memory.bodies(), key);
        let bodies = BodyMemory { known: Arc::new(known), tenant: Arc::default() };
        let parsing = ParseOptions {
            media: config.media,
            tools: Some(tools),
            bodies: Some(bodies),
            ..ParseOptions::default()
        };
        let console = console::Console::new(&config);
        let parts = Parts {
            stored: Stored::new(control.clone(), replica.clone(), parsing.clone()),
            sockets: websocket::Sockets::new(config.websocket),
            placement: Placement::new(workers.clone(), replica.clone(), &config),
            pins: Pins::new(control.clone(), replica.clone()),
            pins_on: config.pins,
            recompute: config.recompute,
            aliases: config.aliases,
            hosts: config.hosts,
            parsing,
            permits: Arc::new(Semaphore::new(requests_max)),
            requests_max,
            stopped,
            metrics: config.metrics,
            meters: Meters::default(),
            console,
            sessions,
            retainer,
            region: config.region,
            control,
            replica,
            workers,
            tenants,
        };
        Self(Arc::new(parts))
    }

    /// Resolves once no connection by WebSocket is left and no request, those in the background included: each has a
    /// permit until its end.
    pub(crate) async fn drained(&self) {
        self.sockets.gone().await;
        let all = u32::try_from(self.requests_max).unwrap_or(u32::MAX);
        // It is never closed; if it were, there would be no requests.
        let _ = self.permits.acquire_many(all).await;
    }
}

/// What the console is made of, and what it asks for.
fn console_routes() -> Router<App> {
    Router::new()
        .route("/api/v1/console/overview", get(console::overview))
        .route("/api/v1/console/history", get(console::history))
        .route("/api/v1/console/workers", get(console::workers))
        .route("/api/v1/console/workers/{id}/blocks", get(console::blocks))
        .route("/api/v1/console/pins", get(console::pins))
        .route("/api/v1/console/sessions", get(console::sessions))
        .route("/api/v1/console/decisions", get(console::decisions))
        .route("/api/v1/console/members", get(console::members))
        .route("/api/v1/console/config", get(console::config))
        .route("/api/v1/console/events", get(console::events))
        .route("/console", get(console::no_slash))
        .route("/console/", get(console::page))
        .route("/console/{file}", get(console::file))
}

/// Serves until told to stop; open streams then go on until they end.
pub(crate) async fn serve(listener: TcpListener, app: App) {
    let mut stopped = app.stopped.clone();
    let router = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/responses", post(responses).get(websocket::connect))
        .route("/v1/responses/compact", post(stored::compact))
        .route("/v1/responses/{id}", get(stored::get).delete(stored::delete))
        .route("/v1/responses/{id}/input_items", get(stored::input_items))
        .route("/v1/responses/{id}/cancel", post(stored::cancel))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/pins", get(admin::list_pins).post(pin_create::create_pin))
        .route(
            "/v1/pins/{id}",
            get(admin::show_pin).patch(admin::extend_pin).delete(admin::release_pin),
        )
        .route("/v1/blocks", get(blocks::find))
        .route("/v1/sessions", get(sessions::list))
        .route("/v1/sessions/{key}", get(sessions::show))
        .route("/v1/sessions/{key}/prefetch", post(sessions::prefetch))
        .route("/v1/sessions/{key}/end", post(sessions::end))
        .route("/v1/sessions/{key}/reset", post(sessions::reset))
        .route("/api/v1/status", get(admin::status))
        .route("/api/v1/requests/{id}/explain", get(admin::explain))
        .merge(console_routes())
        .route("/openapi.json", get(openapi::description))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/", get(root))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(app.clone(), hosts::check))
        .layer(middleware::from_fn_with_state(Starting::new(app.clone()), starting::hold))
        .layer(middleware::map_response_with_state(app.clone(), staleness::state))
        .layer(middleware::map_response_with_state(stopped.clone(), door::leave))
        .with_state(app);
    let door = match Door::new(listener, stopped.clone()) {
        Ok(door) => door,
        Err(error) => {
            tracing::error!(%error, "the listener has no address");
            return;
        }
    };
    let door = axum::serve::ListenerExt::tap_io(door, |stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY on a connection");
        }
    });
    let served = axum::serve(door, router)
        .with_graceful_shutdown(async move {
            door::ends(&mut stopped).await;
            tokio::time::sleep(door::LEAVE).await;
        })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP server ended");
    }
}

/// `req_` and 24 random hexadecimal digits.
pub(crate) fn new_request_id() -> String {
    let (high, low) = (random::number(), random::number() >> 32);
    format!("req_{high:016x}{low:08x}")
}

/// An error in the endpoint's own shape.
fn failure(error: &ApiError, endpoint: Endpoint, request_id: &str) -> Response {
    let status = error.status(endpoint);
    metrics::counter!("mainstay_gateway_errors_total", "status" => status.to_string()).increment(1);
    let mut response = Response::new(Body::from(error.body(endpoint, request_id)));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = error.retry_after_s() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn with_request_id(mut response: Response, request_id: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert("request-id", value.clone());
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// Reads a whole body, or says which limit it broke. `held` is the request's place, and comes back.
async fn read_body<H: Send + 'static>(
    request: Request<Body>,
    held: H,
) -> Result<(HeaderMap, Bytes, H), ApiError> {
    let (mut parts, body) = request.into_parts();
    let too_large = || {
        let message = format!("the body is larger than {BODY_BYTES_MAX} bytes");
        ApiError::new(ErrorKind::TooLarge, message)
    };
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    if declared.and_then(|v| v.parse::<u64>().ok()).is_some_and(|n| n > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let Ok(read) = read else {
        let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        return Err(ApiError::new(ErrorKind::Timeout, message));
    };
    match read {
        Ok(bytes) => {
            let (bytes, held) = inflate::inflated(&mut parts.headers, bytes, held).await?;
            Ok((parts.headers, bytes, held))
        }
        Err(error) => {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            while let Some(e) = cause {
                if e.to_string().contains("length limit exceeded") {
                    return Err(too_large());
                }
                cause = e.source();
            }
            Err(ApiError::new(ErrorKind::InvalidRequest, "the body could not be read"))
        }
    }
}

/// A request's span, which is the first of its trace unless the client has one. It ends with the answer's last byte.
pub(super) fn begin_span(endpoint: Endpoint, headers: &HeaderMap) -> Span {
    let name = match endpoint {
        Endpoint::Chat => "POST /v1/chat/completions",
        Endpoint::Responses => "POST /v1/responses",
        Endpoint::Messages => "POST /v1/messages",
        Endpoint::CountTokens => "POST /v1/messages/count_tokens",
    };
    span_of(name, headers)
}

/// The same of a request that no worker sees.
fn span_of(name: &'static str, headers: &HeaderMap) -> Span {
    Span::begin(name, &Parent::from_headers(headers))
}

async fn handle(app: App, endpoint: Endpoint, request: Request<Body>) -> Response {
    let started = Instant::now();
    let request_id = new_request_id();
    let span = begin_span(endpoint, request.headers());
    let outcome = async {
        let admitted = app.admit(request.headers())?;
        let (headers, body, admitted) = read_body(request, admitted).await?;
        let (request_id, span) = (&request_id, &span);
        let incoming = Incoming { endpoint, headers: &headers, body, request_id, span, last: None };
        app.answer(admitted, incoming).await
    }
    .await;
    let meter = app.meters.of(endpoint);
    meter.requests.increment(1);
    app.meters.tally.asked();
    let told = outcome.as_ref().ok().map(|answer| answer.told.clone());
    let mut response = match outcome.map(|answer| answer.form) {
        Ok(AnswerForm::Json(body)) => {
            let mut response = Response::new(Body::from(body));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Ok(AnswerForm::Stream(frames)) => {
            // The first token is in hand by now, so this is the time to first token.
            let waited = started.elapsed();
            meter.ttft_seconds.record(waited.as_secs_f64());
            app.meters.tally.first_token(waited);
            let frames = tokio_stream::wrappers::ReceiverStream::new(frames);
            let mut response = Response::new(Body::from_stream(frames));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
        Err(error) => {
            tracing::info!(request = %request_id, kind = ?error.kind, "request refused");
            app.meters.tally.refused();
            span.fail("refused");
            span.set("http.response.status_code", i64::from(error.status(endpoint)));
            failure(&error, endpoint, &request_id)
        }
    };
    if let Some(told) = told.and_then(|told| HeaderValue::from_str(&told).ok()) {
        response.headers_mut().insert("mainstay-hints", told);
    }
    with_request_id(response, &request_id)
}

async fn chat(State(app): State<App>, request: Request<Body>) -> Response {
    handle(app, Endpoint::Chat, request).await
}

async fn responses(State(app): State<App>, request: Request<Body>) -> Response {
    handle(app, Endpoint::Responses, request).await
}

async fn messages(State(app): State<App>, request: Request<Body>) -> Response {
    handle(app, Endpoint::Messages, request).await
}

async fn count_tokens(State(app): State<App>, request: Request<Body>) -> Response {
    handle(app, Endpoint::CountTokens, request).await
}

fn model_json(app: &App, name: &str) -> Value {
    let card = app.model(name).ok();
    let context = card.as_ref().map(|m| m.context_tokens_max);
    let device = card.map(|m| m.device.clone());
    json!({
        "id": name, "object": "model", "type": "model", "display_name": name, "created": 0,
        "created_at": "1970-01-01T00:00:00Z", "owned_by": "mainstay", "max_model_len": context,
        "device": device,
    })
}

async fn models(State(app): State<App>) -> axum::Json<Value> {
    let names = app.workers.model_names();
    let data: Vec<Value> = names.iter().map(|n| model_json(&app, n)).collect();
    axum::Json(json!({
        "object": "list", "data": data, "has_more": false,
        "first_id": names.first(), "last_id": names.last(),
    }))
}

async fn model(
    State(app): State<App>,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> Response {
    let request_id = new_request_id();
    if let Err(error) = app.model(&id) {
        return failure(&error, Endpoint::Chat, &request_id);
    }
    axum::response::IntoResponse::into_response(axum::Json(model_json(&app, &id)))
}

async fn root() -> &'static str {
    "mainstay\n"
}

/// Which protocol's shape an error on this path should have.
fn protocol_of(path: &str) -> Endpoint {
    if path.starts_with("/v1/messages") { Endpoint::Messages } else { Endpoint::Chat }
}

async fn unknown(method: Method, uri: Uri) -> Response {
    let error = ApiError::new(ErrorKind::NotFound, format!("no route {method} {}", uri.path()));
    failure(&error, protocol_of(uri.path()), &new_request_id())
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    let error = ApiError::new(ErrorKind::InvalidRequest, message);
    let mut response = failure(&error, protocol_of(uri.path()), &new_request_id());
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// The life that a body asks for: `ttl` as text or in seconds, like `cache_control` has it, or `ttl_ms`. The outer
/// `None` means that it does not say, the inner one that it makes no sense.
fn ttl_ms(body: &Value) -> Option<Option<u64>> {
    if let Some(ttl) = body.get("ttl").filter(|v| !v.is_null()) {
        return Some(parse_ttl_ms(ttl));
    }
    body.get("ttl_ms").filter(|v| !v.is_null()).map(Value::as_u64)
}

/// A duration in JSON: `"5m"`, `"1h"`, `"90s"`, or seconds as a number.
fn parse_ttl_ms(value: &Value) -> Option<u64> {
    if let Some(seconds) = value.as_u64() {
        return seconds.checked_mul(1_000);
    }
    let text = value.as_str()?.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..unit_at].parse().ok()?;
    let unit_ms: u64 = match text[unit_at..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms)
}

/// A routing decision as JSON.
fn explain_json(app: &App, explained: &Explained) -> Value {
    let decision = &explained.decision;
    let name = |id| app.replica.read(|m| m.worker_name(id));
    let region =
        |id| app.replica.read(|m| m.worker(id).map(|w| w.region.to_string()).unwrap_or_default());
    let round = |ms: f64| (ms * 100.0).round() / 100.0;
    let candidates: Vec<Value> = decision
        .candidates
        .iter()
        .map(|c| {
            json!({
                "worker": name(c.worker), "region": region(c.worker),
                "overlap_blocks": c.overlap_blocks, "stored_blocks": c.stored_blocks,
                "region_ms": round(c.terms.region_ms),
                "prefill_ms": round(c.terms.prefill_ms), "queue_ms": round(c.terms.queue_ms),
                "decode_ms": round(c.terms.decode_ms), "load_ms": round(c.terms.load_ms),
                "memory_ms": round(c.terms.memory_ms),
                "cost_ms": round(c.cost_ms), "predicted": c.predicted,
                "note": match (c.worker == decision.worker, c.abroad) {
                    (true, _) => "chosen",
                    (false, true) => "another region",
                    (false, false) => "",
                },
            })
        })
        .collect();
    json!({
        "request": explained.request, "worker": name(decision.worker),
        "overlap_blocks": decision.overlap_blocks, "stored_blocks": decision.stored_blocks,
        "prompt_blocks": explained.prompt_blocks,
        "region": region(decision.worker), "gateway_region": app.region.as_str(),
        "cost_ms": round(decision.cost_ms), "reason": decision.note.to_string(),
        "candidates": candidates,
        "queued": explained.queued.map(|queued| json!({
            "wait_ms": round(queued.took.as_secs_f64() * 1_000.0), "overtook": queued.overtook,
        })),
        "hints": explained.hints.as_ref().map(|hints| json!({
            "priority": hints.priority, "strict_priority": hints.tier,
            "osl": hints.output_tokens, "latency_sensitivity": hints.latency_sensitivity,
            "without": {
                "worker": name(hints.without), "cost_ms": hints.without_ms.map(round),
                "changed": hints.without != decision.worker,
            },
        })),
    })
}

#[cfg(test)]
mod tests;
