//! Probes and metrics: alive, ready with reasons, Prometheus text.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;

/// A replica older than this still serves, and says so.
const STALE_AFTER_MS: u64 = 5_000;

pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Ready means: a replica has been read and some worker can take a request.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let mut reasons = app.workers.troubles();
    let begun = app.replica.has_begun();
    if !begun {
        reasons.push("no control member has answered yet".to_owned());
    }
    let routable = app.workers.any_routable() && !app.workers.model_names().is_empty();
    if !routable {
        reasons.push("no worker is routable".to_owned());
    }
    let ready = begun && routable;
    let age_ms = app.replica.age_ms();
    let stale = begun && age_ms.is_none_or(|age_ms| age_ms > STALE_AFTER_MS);
    if stale {
        reasons.push("the replica of the cluster's state is stale".to_owned());
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (
        status,
        Json(json!({
            "ready": ready, "stale": stale, "index_age_ms": age_ms, "region": app.region.as_str(),
            "reasons": reasons,
        })),
    )
        .into_response()
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let text = app.metrics.as_ref().map(|m| m.render()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
