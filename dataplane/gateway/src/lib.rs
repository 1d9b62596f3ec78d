//! The gateway: HTTP in front, workers behind, a replica of the cluster's state in memory.
//!
//! Layout: [`config`] what it is told; `replica` the cluster's state; `members` whom it has that from; `workers` who serves; `model` tokenizer
//! and template; `placement` where a request goes, `line` where it waits; `generate` one generation with its moves;
//! `answer` from body to answer; `aliases` other names of models; `pins`; `tenant` and `quota`; `random` numbers;
//! `stored` responses; `sessions` and their lives, `lanes` of their turns, `retention` what they want kept; `history` of
//! the last hours; `seal` on thinking; `http` the routes.
//! It keeps no state that another gateway lacks, but for its view of sessions' lives, on which no answer rests: any of
//! them can serve a session's next turn.
#![forbid(unsafe_code)]

mod aliases;
mod answer;
mod config;
mod constrain;
mod generate;
mod history;
mod http;
mod lanes;
mod line;
mod lower;
mod members;
mod meters;
mod model;
mod pace;
mod pins;
mod placement;
mod prompt;
mod quota;
mod random;
mod replica;
mod retention;
mod seal;
mod sessions;
mod stored;
mod tenant;
#[cfg(test)]
mod testing;
mod workers;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use mainstay_identity::{Identity, Role};
use mainstay_proto::client::{Connector, ControlPlane, channel, connector};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use aliases::ModelAliases;
pub use config::{ApiKey, GatewayConfig, Recompute};
pub use mainstay_chat::Media;
pub use mainstay_route::{Policy, QueueOrder, QueueSettings};
pub use model::PromptMemory;

/// How long open streams, connections and turns in the background may go on after a shutdown was asked for.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long of that is left to tell readers of the background which turns will not end.
const SHUTDOWN_TELL: Duration = Duration::from_secs(2);

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration says something impossible.
    #[error("gateway configuration: {0}")]
    Config(String),
}

/// A running gateway.
pub struct GatewayHandle {
    address: SocketAddr,
    app: http::App,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    followers: Vec<JoinHandle<()>>,
}

/// Starts listening at once; requests are refused with a reason until a worker is routable.
///
/// Boxed, so that it is compiled here and not once more in each program that starts gateways.
pub fn start(config: GatewayConfig) -> BoxFuture<'static, Result<GatewayHandle, GatewayError>> {
    Box::pin(begin(config))
}

async fn begin(config: GatewayConfig) -> Result<GatewayHandle, GatewayError> {
    let control = ControlPlane::with_connector(&config.control, connect(&config, Role::Control))
        .map_err(|s| GatewayError::Config(s.message().to_owned()))?;
    // The watch stays on its member while writes follow the leader.
    let open = connect(&config, Role::Control);
    let members = members::Members::new(&config.control, config.region.clone(), open)
        .map_err(|s| GatewayError::Config(s.message().to_owned()))?;
    let replica = replica::Replica::new();
    let tenants = tenant::Tenants::new(&config.keys, replica.clone());
    let tenants = tenants.map_err(GatewayError::Config)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| GatewayError::Listen { address: config.listen, source })?;
    let address = listener
        .local_addr()
        .map_err(|source| GatewayError::Listen { address: config.listen, source })?;
    let workers = workers::Workers::new(
        replica.clone(),
        connect(&config, Role::Worker),
        config.prompt_memory,
    );
    let (retainer, letters) = retention::Retainer::new(config.lifecycle, workers.clone());
    let (sessions, changes) = sessions::Sessions::new(retainer.clone());
    let mut followers = vec![
        tokio::spawn(replica.clone().follow(members)),
        tokio::spawn(workers.clone().follow()),
        tokio::spawn(sessions.clone().follow(
            changes,
            vec![Box::new(sessions::Counted), Box::new(sessions.lanes().clone())],
        )),
        tokio::spawn(retention::deliver(letters, workers.clone())),
    ];
    let (stop, stopped) = watch::channel(false);
    let lives = (sessions, retainer.clone());
    let app = http::App::new(config, control, replica, workers, tenants, lives, stopped);
    followers.push(tokio::spawn(retention::fetch_ahead(retainer, app.placement.clone())));
    if app.console.is_on() {
        let (history, tally) = (app.console.history.clone(), app.meters.tally.clone());
        followers.push(tokio::spawn(history.follow(tally, app.workers.clone())));
    }
    let server = tokio::spawn(http::serve(listener, app.clone()));
    Ok(GatewayHandle { address, app, stop, server, followers })
}

/// Opens channels to nodes of that role: secured ones where there is an identity.
fn connect(config: &GatewayConfig, role: Role) -> Connector {
    let secured = |identity: Identity| connector(move |to| identity.channel(to, role));
    config.identity.clone().map_or_else(|| Arc::new(channel) as Connector, secured)
}

impl GatewayHandle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the console is; `None` if it is switched off. Who listens everywhere is reached on this machine, too.
    #[must_use]
    pub fn console(&self) -> Option<String> {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        self.app.console.is_on().then(|| format!("http://{address}/console/"))
    }

    /// Resolves once a request could be served.
    pub async fn ready(&self) {
        while !self.app.workers.any_routable() || self.app.workers.model_names().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many workers could take a request now.
    #[must_use]
    pub fn routable_workers(&self) -> usize {
        self.app.workers.routable_count()
    }

    /// Takes no new connections, lets what was begun end for a while, stops.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let ended = async {
            // However it ended, nobody comes in any more.
            let _ = (&mut self.server).await;
            self.app.drained().await;
        };
        if tokio::time::timeout(SHUTDOWN_GRACE, ended).await.is_err() {
            self.server.abort();
        }
        for follower in &self.followers {
            follower.abort();
        }
    }
}
