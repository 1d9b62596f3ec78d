//! The first moments of a gateway: requests that come before it knows the cluster are held, not refused.
//!
//! A gateway that is replaced takes connections before its replica has been read. Who asks then would be told that
//! no worker has joined, or that a key is unknown; a fraction of a second later neither is so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::App;

/// How long after its start a gateway holds requests; a cluster without workers says so afterwards.
const HOLD_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Whether the gateway knows what it needs, once and for all.
#[derive(Clone)]
pub(super) struct Starting {
    app: App,
    over: Arc<AtomicBool>,
    until: Instant,
}

impl Starting {
    pub(super) fn new(app: App) -> Self {
        Self { app, over: Arc::default(), until: Instant::now() + HOLD_MAX }
    }

    fn is_over(&self) -> bool {
        let app = &self.app;
        let knows = app.replica.has_begun()
            && app.workers.any_routable()
            && !app.workers.model_names().is_empty();
        knows || Instant::now() >= self.until
    }
}

/// Holds a request of the API until the start is over.
pub(super) async fn hold(
    State(starting): State<Starting>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path().starts_with("/v1/") && !starting.over.load(Ordering::Acquire) {
        while !starting.is_over() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        starting.over.store(true, Ordering::Release);
    }
    next.run(request).await
}
