//! Starting and ending a member.
//!
//! The listener is bound first, so that a free port is known before anybody is told of it, and so that members
//! of a new group can reach each other while none of them has a leader yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use mainstay_identity::{Guard, Role, check_listener, incoming};
use mainstay_proto::client::connector;
use mainstay_raft::{Group, GroupConfig};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::transport::Server;

use crate::access;
use crate::by_caller::ByCaller;
use crate::config::{ControlConfig, LEASE_TTL_MS_MIN, Origin};
use crate::error::ControlError;
use crate::freshness::{self, Place};
use crate::leases::Leases;
use crate::service::Service;
use crate::{cuts, duties, founding, identities, versions};

/// Streams that do not end by themselves are cut after this when a member stops.
const DRAIN: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Streams that one connection may have open.
const STREAMS_MAX: u32 = 1024;

/// A running member.
pub struct ControlHandle {
    address: SocketAddr,
    advertised: String,
    group: Group,
    stop: Option<oneshot::Sender<()>>,
    closing: watch::Sender<bool>,
    server: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts a member. It answers when this returns; it may not have a leader yet.
///
/// Boxed, so that it is compiled here and not once more in each program that starts members.
pub fn start(config: ControlConfig) -> BoxFuture<'static, Result<ControlHandle, ControlError>> {
    Box::pin(begin(config))
}

async fn begin(mut config: ControlConfig) -> Result<ControlHandle, ControlError> {
    check(&config)?;
    check_listener(config.listen, config.identity.as_ref(), config.insecure)?;
    if let Some(identity) = config.identity.clone() {
        config.connector = connector(move |to| identity.channel(to, Role::Control));
    }
    let listen_error =
        |e: std::io::Error| ControlError::Listen { address: config.listen, detail: e.to_string() };
    let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());
    let mut group_config = GroupConfig::new(config.node_id, config.data_dir.clone());
    group_config.limits = config.limits;
    group_config.settings = config.settings.clone();
    group_config.connector = Arc::clone(&config.connector);
    let group = Group::start(group_config).await?;

    let (closing, closes) = watch::channel(false);
    let (stop, stopped) = oneshot::channel::<()>();
    let place = Arc::new(Place::new(config.region.clone()));
    let leases = Arc::new(Leases::new(Duration::from_millis(config.lease_ttl_ms)));
    let service = Service::new(
        group.clone(),
        Arc::clone(&leases),
        Arc::clone(&place),
        config.plain_index,
        Arc::clone(&config.connector),
        config.identity.clone(),
        closes,
    );
    let control = ByCaller::new(service);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .layer(
            Guard::new(config.identity.is_some(), access::allowed)
                .with_guests(config.identity.clone(), access::open),
        )
        .add_service(control)
        .add_service(group.service());
    let incoming = incoming(listener, config.identity.clone()).with_guests();
    let server = tokio::spawn(async move {
        let until = async {
            // The sender's end is an end, too.
            let _ = stopped.await;
        };
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, until).await {
            tracing::error!(%error, "the control plane's listener has ended");
        }
    });
    let (connector, hash_key) = (Arc::clone(&config.connector), config.hash_key);
    let tasks = vec![
        tokio::spawn(duties::run(group.clone(), leases, connector, hash_key)),
        tokio::spawn(versions::run(group.clone(), Arc::clone(&config.connector))),
        tokio::spawn(cuts::run(group.clone())),
        tokio::spawn(freshness::run(group.clone(), place, Arc::clone(&config.connector))),
        tokio::spawn(identities::run(group.clone(), Arc::clone(&config.connector))),
    ];
    let mut handle =
        ControlHandle { address, advertised, group, stop: Some(stop), closing, server, tasks };
    match handle.found(config).await {
        Ok(()) => Ok(handle),
        Err(error) => {
            handle.shutdown().await;
            Err(error)
        }
    }
}

fn check(config: &ControlConfig) -> Result<(), ControlError> {
    let fail = |text: String| Err(ControlError::Settings(text));
    if config.lease_ttl_ms < LEASE_TTL_MS_MIN {
        return fail(format!("a lease must last at least {LEASE_TTL_MS_MIN} ms"));
    }
    match &config.origin {
        origin if config.learner && !matches!(origin, Origin::Join(_)) => fail(
            "a learner joins a group that there is: give --join HOST:PORT with --learner".into(),
        ),
        Origin::Members(members) if !members.iter().any(|(id, _)| *id == config.node_id) => {
            fail(format!("member {} is not in its own list of members", config.node_id))
        }
        Origin::Members(members) => {
            let mut ids: Vec<_> = members.iter().map(|(id, _)| *id).collect();
            ids.sort_unstable();
            ids.dedup();
            if ids.len() == members.len() {
                return Ok(());
            }
            fail("two members of the list have the same id".into())
        }
        Origin::Join(members) if members.is_empty() => {
            fail("joining needs the address of a member: --join HOST:PORT".into())
        }
        _ => Ok(()),
    }
}

impl ControlHandle {
    async fn found(&mut self, config: ControlConfig) -> Result<(), ControlError> {
        let group = self.group.clone();
        match config.origin {
            Origin::Single => {
                group.init_single(&self.advertised).await?;
            }
            Origin::Members(members) => {
                let task = founding::found(group, members, config.connector);
                self.tasks.push(tokio::spawn(task));
            }
            Origin::Join(members) => {
                let address = self.advertised.clone();
                let task =
                    founding::join(group, address, config.learner, members, config.connector);
                self.tasks.push(tokio::spawn(task));
            }
            Origin::Wait => {}
        }
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address under which others know it.
    #[must_use]
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// Its member of the replicated log; [`Group::ended`] says when the process should exit.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Ends the member in an orderly way: no more calls, then no more log. Its data directory is free afterwards.
    pub async fn shutdown(mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.closing.send_replace(true);
        if let Some(stop) = self.stop.take() {
            // The server may have ended already.
            let _ = stop.send(());
        }
        // Appends of other members end only with the log.
        let (drained, ()) =
            tokio::join!(tokio::time::timeout(DRAIN, &mut self.server), self.group.shutdown());
        if drained.is_err() {
            self.server.abort();
        }
    }
}
