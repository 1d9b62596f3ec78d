//! The gateway's configuration, made by the composition root.

use std::net::SocketAddr;

use mainstay_identity::Identity;
use mainstay_route::Policy;
use mainstay_types::Region;
use metrics_exporter_prometheus::PrometheusHandle;

/// Requests in progress at most, unless set otherwise.
const REQUESTS_MAX: usize = 1_024;

/// What a gateway needs to start.
#[derive(Clone)]
pub struct GatewayConfig {
    /// Where to listen for HTTP.
    pub listen: SocketAddr,
    /// The control members, as `host:port`.
    pub control: Vec<String>,
    /// Where it is: it follows a member of its region and prefers its region's workers.
    pub region: Region,
    /// What a worker of another region costs more, in milliseconds; `None` lets one be chosen only when no worker of
    /// its own region can take the request.
    pub region_penalty_ms: Option<f64>,
    /// Keys and the tenants that they stand for. Empty: no key is asked for and everybody is `default`.
    pub keys: Vec<ApiKey>,
    /// How requests are placed.
    pub policy: Policy,
    /// Whether `cache_control` makes pins.
    pub pins: bool,
    /// Requests in progress at most; beyond it clients are told to retry.
    pub requests_max: usize,
    /// Who it is towards members and workers; without it, it calls them in plain text.
    pub identity: Option<Identity>,
    /// Renders `/metrics`, where the process records any.
    pub metrics: Option<PrometheusHandle>,
}

impl GatewayConfig {
    /// The usual settings around what has no usual value.
    #[must_use]
    pub fn new(listen: SocketAddr, control: Vec<String>) -> Self {
        Self {
            listen,
            control,
            region: Region::default(),
            region_penalty_ms: None,
            keys: Vec::new(),
            policy: Policy::Kv,
            pins: true,
            requests_max: REQUESTS_MAX,
            identity: None,
            metrics: None,
        }
    }
}

/// A credential. Its `Debug` form hides the key.
#[derive(Clone)]
pub struct ApiKey {
    /// What the client sends.
    pub key: String,
    /// Who that is.
    pub tenant: String,
}

impl core::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ApiKey").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}
