//! The console: its files under `/console/`, and under `/api/v1/console/` what they show.
//!
//! What is the same for everybody is told to anybody with a key, as `/api/v1/status` does; pins, sessions and decisions
//! are the caller's tenant's alone. Reads here take no place of a request and count against no quota, since an operator
//! must see a gateway that is full; they have places of their own.

mod blocks;
mod events;
mod settings;
#[cfg(test)]
mod tests;
mod topics;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mainstay_chat::{ApiError, ErrorKind};
use mainstay_proto::v1;
use mainstay_types::{TenantId, WorkerId};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::App;
use super::admin::{self, AdminError};
use super::params::Params;
use super::staleness::Basis;
use crate::config::GatewayConfig;
use crate::history::{History, Span};
use blocks::Census;
pub(super) use blocks::{ENTRIES_MAX as INDEX_WALKED_MAX, own_namespaces, with_runs};
use events::Streams;
use topics::Topic;

/// Answers that are being made at a time, beside those for streams.
const READS_MAX: usize = 16;
/// A member's description of the cluster is asked for at most this often, however many look.
const STATUS_PACE: Duration = Duration::from_millis(900);
/// How long it may take; who looks has other things to see.
const STATUS_WAIT: Duration = Duration::from_secs(1);
/// For how long nobody is asked again after that.
const STATUS_PAUSE: Duration = Duration::from_secs(3);

/// What the console keeps.
pub(crate) struct Console {
    on: bool,
    started: Instant,
    pub(crate) history: History,
    settings: Value,
    reads: Arc<Semaphore>,
    streams: Streams,
    /// What a member last said of the cluster, and when.
    status: tokio::sync::Mutex<Option<(Instant, Status)>>,
    census: Mutex<Option<Arc<Census>>>,
}

/// A member's view, or why there is none.
type Status = Result<Arc<v1::StatusReply>, String>;

impl Console {
    pub(super) fn new(config: &GatewayConfig) -> Self {
        Self {
            on: config.console,
            started: Instant::now(),
            history: History::default(),
            settings: settings::of_gateway(config),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            streams: Streams::default(),
            status: tokio::sync::Mutex::default(),
            census: Mutex::default(),
        }
    }

    /// Whether it is served.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }
}

/// A member's view of the cluster, at most a second old; those who look at once ask once.
async fn status(app: &App) -> Status {
    let mut kept = app.console.status.lock().await;
    if let Some((at, status)) = kept.as_ref() {
        let pause = if status.is_ok() { STATUS_PACE } else { STATUS_PAUSE };
        if at.elapsed() < pause {
            return status.clone();
        }
    }
    let status = match tokio::time::timeout(STATUS_WAIT, admin::ask_status(app)).await {
        Ok(Ok(status)) => Ok(Arc::new(status)),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {} s", STATUS_WAIT.as_secs())),
    };
    *kept = Some((Instant::now(), status.clone()));
    status
}

/// Lets a caller in, by its key.
fn caller(app: &App, headers: &HeaderMap) -> Result<TenantId, ApiError> {
    if !app.console.on {
        return Err(switched_off());
    }
    app.tenants.of(headers)
}

fn switched_off() -> ApiError {
    let text = "the console is switched off; write [console] enabled = true into the gateway's configuration";
    ApiError::new(ErrorKind::NotFound, text)
}

/// Makes an answer while there is a place for it.
async fn answer<T>(
    app: &App,
    headers: &HeaderMap,
    make: impl AsyncFnOnce(TenantId) -> Result<T, ApiError>,
) -> Result<T, AdminError> {
    let tenant = caller(app, headers)?;
    let Ok(_place) = app.console.reads.try_acquire() else {
        let text = "the console is asked for too much at once; come again in a second";
        return Err(ApiError::new(ErrorKind::Overloaded, text).with_retry_after_s(1).into());
    };
    Ok(make(tenant).await?)
}

async fn table(app: App, headers: HeaderMap, topic: Topic) -> Result<Response, AdminError> {
    let made = answer(&app, &headers, async |tenant| topics::look(&app, &tenant, topic).await);
    let table = made.await?;
    let basis = Basis::of_replica(&app);
    Ok(basis.answer(table.list(topic, basis)))
}

/// `GET /api/v1/console/overview`
pub(super) async fn overview(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    table(app, headers, Topic::Overview).await
}

/// `GET /api/v1/console/workers`
pub(super) async fn workers(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    table(app, headers, Topic::Workers).await
}

/// `GET /api/v1/console/pins`
pub(super) async fn pins(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    table(app, headers, Topic::Pins).await
}

/// `GET /api/v1/console/sessions`
pub(super) async fn sessions(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    table(app, headers, Topic::Sessions).await
}

/// `GET /api/v1/console/decisions`
pub(super) async fn decisions(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    table(app, headers, Topic::Decisions).await
}

/// `GET /api/v1/console/members`
pub(super) async fn members(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    table(app, headers, Topic::Members).await
}

#[derive(serde::Deserialize)]
pub(super) struct HistoryQuery {
    span: Option<String>,
}

/// `GET /api/v1/console/history`
pub(super) async fn history(
    State(app): State<App>,
    headers: HeaderMap,
    Params(query): Params<HistoryQuery>,
) -> Result<Response, AdminError> {
    let span = match query.span.as_deref() {
        None | Some("15m") => Span::Short,
        Some("24h") => Span::Long,
        Some(_) => return Err(ApiError::invalid("span", "expected `15m` or `24h`").into()),
    };
    let made = answer(&app, &headers, async |_| {
        let mut body = app.console.history.columns(span);
        body["object"] = json!("console.history");
        Ok(body)
    });
    Ok(axum::Json(made.await?).into_response())
}

/// `GET /api/v1/console/workers/{id}/blocks`
pub(super) async fn blocks(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Response, AdminError> {
    let unknown = || {
        ApiError::new(
            ErrorKind::NotFound,
            "no such worker; its number is in /api/v1/console/workers",
        )
    };
    let worker = id.parse().ok().map(WorkerId);
    let worker = worker.filter(|w| app.replica.read(|m| m.worker(*w).is_some()));
    let made = answer(&app, &headers, async |tenant| {
        let worker = worker.ok_or_else(unknown)?;
        let looking = app.clone();
        let map = tokio::task::spawn_blocking(move || blocks::map(&looking, &tenant, worker));
        map.await.map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string()))?
    });
    let map = made.await?;
    Ok(axum::Json(map).into_response())
}

/// `GET /api/v1/console/config`
pub(super) async fn config(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    let made = answer(&app, &headers, async |tenant| Ok(settings::effective(&app, &tenant)));
    Ok(axum::Json(made.await?).into_response())
}

pub(super) use events::events;

/// `GET /console`: the files name each other from a folder.
pub(super) async fn no_slash() -> Response {
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "console/")]).into_response()
}

/// `GET /console/`
pub(super) async fn page(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    served(&app, &headers, mainstay_console::PAGE)
}

/// `GET /console/{file}`
pub(super) async fn file(
    State(app): State<App>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Response, AdminError> {
    served(&app, &headers, &name)
}

fn served(app: &App, headers: &HeaderMap, name: &str) -> Result<Response, AdminError> {
    if !app.console.on {
        return Err(switched_off().into());
    }
    let asset = mainstay_console::asset(name).ok_or_else(|| {
        ApiError::new(ErrorKind::NotFound, "the console has no such file; open /console/")
    })?;
    let tag = asset.tag();
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let known = known.is_some_and(|tags| tags.split(',').any(|t| t.trim() == tag));
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Response::new(Body::from(asset.text))
    };
    let fixed = [
        (header::CONTENT_TYPE, asset.media_type()),
        (header::CONTENT_SECURITY_POLICY, mainstay_console::SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Kept by browsers, and asked for again each time: a gateway may have been replaced.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let headers = response.headers_mut();
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}
