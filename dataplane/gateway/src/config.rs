//! The gateway's configuration, made by the composition root.

use std::net::SocketAddr;

use mainstay_chat::Media;
use mainstay_identity::Identity;
use mainstay_route::{Policy, QueueSettings};
use mainstay_types::Region;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::aliases::ModelAliases;
use crate::model::PromptMemory;

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
    /// Whether workers are told who holds more of a prompt than they do, so that they need not compute it. Workers of one
    /// revision have equal weights, since it holds a digest of them.
    pub transfer: bool,
    /// Whether what becomes of sessions decides how long their blocks are kept.
    pub lifecycle: bool,
    /// Keys and the tenants that they stand for. Empty: no key is asked for and everybody is `default`.
    pub keys: Vec<ApiKey>,
    /// How requests are placed.
    pub policy: Policy,
    /// Where they wait while no worker has room; without a threshold they never do.
    pub queue: QueueSettings,
    /// Whether `cache_control` makes pins.
    pub pins: bool,
    /// Which pins keep their tokens, unless the request says.
    pub recompute: Recompute,
    /// Other names of models.
    pub aliases: ModelAliases,
    /// What becomes of images and other content that is not text.
    pub media: Media,
    /// Whether Responses are served over WebSocket, too; else its clients are told to go on by POST.
    pub websocket: bool,
    /// Whether the console is served.
    pub console: bool,
    /// Names that it may be called by where no key is asked for, beside addresses and names that nobody else can have.
    pub hosts: Vec<String>,
    /// How much is remembered of prompts, so that the next turn of a conversation costs what is new in it.
    pub prompt_memory: PromptMemory,
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
            transfer: true,
            lifecycle: true,
            keys: Vec::new(),
            policy: Policy::Kv,
            queue: QueueSettings::default(),
            pins: true,
            recompute: Recompute::Explicit,
            aliases: ModelAliases::default(),
            media: Media::default(),
            websocket: true,
            console: true,
            hosts: Vec::new(),
            prompt_memory: PromptMemory::default(),
            requests_max: REQUESTS_MAX,
            identity: None,
            metrics: None,
        }
    }
}

/// Which pins keep their tokens, so that the cluster can compute their blocks again when all holders are lost, where
/// a request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// Those made by `/v1/pins`: whoever asks for a pin by itself wants it whatever happens.
    #[default]
    Explicit,
    /// All, also those of `cache_control`.
    All,
    /// None.
    Off,
}

impl Recompute {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::Explicit, Self::All, Self::Off];

    /// The name in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Explicit => "explicit",
            Self::All => "all",
            Self::Off => "off",
        }
    }

    /// The reverse of [`Recompute::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }

    /// Whether a pin keeps its tokens; `asked` is the request's word, `explicit` says that it came by `/v1/pins`.
    #[must_use]
    pub fn applies(self, asked: Option<bool>, explicit: bool) -> bool {
        asked.unwrap_or(match self {
            Self::Explicit => explicit,
            Self::All => true,
            Self::Off => false,
        })
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

#[cfg(test)]
mod tests {
    use super::Recompute;

    #[test]
    fn the_requests_word_counts_before_the_configuration() {
        for (choice, explicit, beside) in [
            (Recompute::Explicit, true, false),
            (Recompute::All, true, true),
            (Recompute::Off, false, false),
        ] {
            assert_eq!(
                (choice.applies(None, true), choice.applies(None, false)),
                (explicit, beside)
            );
            for asked in [true, false] {
                assert!([true, false].map(|by| choice.applies(Some(asked), by)) == [asked; 2]);
            }
            assert_eq!(Recompute::from_name(choice.name()), Some(choice));
        }
        assert_eq!(Recompute::from_name("yes"), None);
    }
}
