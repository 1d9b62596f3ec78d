//! A gateway that reaches nobody, for tests of what it does with its callers: whom it lets in, what it keeps for whom.
//!
//! Its control plane does not exist, so every request that is let in ends in a refusal; a [`Gate`] decides when.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use mainstay_proto::client::{ControlPlane, channel};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::config::{ApiKey, GatewayConfig};
use crate::http::App;
use crate::model::PromptMemory;
use crate::replica::Replica;
use crate::tenant::Tenants;
use crate::workers::Workers;

/// The key of the only tenant.
const KEY: &str = "key";
/// Longer than anything here takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A runtime with one thread for blocking work, so that a [`Gate`] holds all of that up.
pub(crate) fn one_blocking_thread() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).max_blocking_threads(1).enable_all();
    builder.build().expect("a runtime")
}

/// The configuration of a gateway with a tenant and without a control plane.
pub(crate) fn config(requests_max: usize) -> GatewayConfig {
    let listen = "127.0.0.1:0".parse().expect("an address");
    let mut config = GatewayConfig::new(listen, vec!["127.0.0.1:9".to_owned()]);
    config.keys = vec![ApiKey { key: KEY.to_owned(), tenant: "acme".to_owned() }];
    config.requests_max = requests_max;
    config
}

/// What handlers share, and what ends it.
pub(crate) fn app(requests_max: usize) -> (App, watch::Sender<bool>) {
    app_of(config(requests_max))
}

/// The same with a configuration of one's own.
pub(crate) fn app_of(config: GatewayConfig) -> (App, watch::Sender<bool>) {
    let control = ControlPlane::new(&config.control).expect("an address");
    let replica = Replica::new();
    let workers = Workers::new(replica.clone(), Arc::new(channel), PromptMemory::default());
    let tenants = Tenants::new(&config.keys, replica.clone()).expect("a tenant");
    let (stop, stopped) = watch::channel(false);
    let (retainer, _) = crate::retention::Retainer::new(false, workers.clone());
    let (sessions, _) = crate::sessions::Sessions::new(retainer.clone());
    let app = App::new(config, control, replica, workers, tenants, (sessions, retainer), stopped);
    (app, stop)
}

/// Headers of the only tenant.
pub(crate) fn headers() -> HeaderMap {
    HeaderMap::from_iter([(
        axum::http::HeaderName::from_static("x-api-key"),
        HeaderValue::from_static(KEY),
    )])
}

/// Waits until so many places for requests are free.
pub(crate) async fn places(app: &App, free: usize) {
    let wait = async {
        while app.permits.available_permits() != free {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, wait).await;
    assert!(waited.is_ok(), "{} free, not {free}", app.permits.available_permits());
}

/// Holds up all blocking work of a runtime with one thread for it, until it is dropped.
pub(crate) struct Gate(
    #[expect(dead_code, reason = "its end is what counts")] std::sync::mpsc::Sender<()>,
);

impl Gate {
    pub(crate) fn shut() -> Self {
        let (open, wait) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || {
            // An error says that the other end is gone, which is what it waits for.
            let _ = wait.recv();
        });
        Self(open)
    }
}
