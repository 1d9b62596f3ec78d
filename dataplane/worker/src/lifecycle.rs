//! A worker from start to end.
//!
//! Order matters at both ends. At the start the address must be known before registering, the cluster's hash
//! key before the engine is created, and the engine's size before the registration that counts; the gRPC
//! service is up from the beginning. At the end no request is admitted any more, those in flight end or are
//! sent elsewhere, the cluster is told, and only then does the service close.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use mainstay_engine_abi::sdk::Info;
use mainstay_identity::{Guard, Role, incoming};
use mainstay_proto::client::{Connector, ControlPlane, channel, connector};
use mainstay_proto::v1::worker_server::WorkerServer;
use mainstay_types::{Epoch, ModelSpec, WorkerId};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::MESSAGE_BYTES_MAX;
use crate::config::{Settings, WorkerConfig};
use crate::engine::{HostOpener, Opener};
use crate::error::WorkerError;
use crate::events::frames::FrameLimits;
use crate::events::publisher;
use crate::flights::Failure;
use crate::server::{Server, allowed};
use crate::shared::Shared;
use crate::supervisor::{Opened, attach_tiers, open, supervise};

/// What a stream of one request may have on its way, so that a long prompt needs few round trips.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A prompt of a hundred thousand tokens travels as one frame; each further one would be a write and a read of its own.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// Streams of one connection beyond the requests: descriptions and loads.
const STREAMS_SPARE: u32 = 64;
/// How long the goodbye to the control plane may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a drain waits for blocks on their way to the tiers.
const SETTLE: Duration = Duration::from_secs(5);
/// How long clients may take to read the ends of their streams.
const LAST_READS: Duration = Duration::from_secs(2);

type End = Option<Result<(), WorkerError>>;

/// A running worker. Dropping the handle leaves it running; clones are the same worker.
#[derive(Clone)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
    address: SocketAddr,
    end: watch::Receiver<End>,
}

/// Starts a worker and returns once it is registered and serves.
///
/// # Errors
/// If the configuration can't work, the address is taken, the engine does not open, or no control member takes
/// the registration within `start_timeout_ms`.
///
/// Boxed, so that it is compiled here and not once more in each program that starts workers.
pub fn start(config: WorkerConfig) -> BoxFuture<'static, Result<WorkerHandle, WorkerError>> {
    Box::pin(async move {
        let (settings, source) = config.split()?;
        start_with(settings, Arc::new(HostOpener(source)), FrameLimits::standard()).await
    })
}

/// [`start`] with an engine that need not come from the host.
pub(crate) async fn start_with(
    settings: Settings,
    opener: Arc<dyn Opener>,
    limits: FrameLimits,
) -> Result<WorkerHandle, WorkerError> {
    settings.check()?;
    let (listener, address) = listen(settings.listen).await?;
    let control = |addresses: &[String]| {
        ControlPlane::with_connector(addresses, connect(&settings))
            .map_err(|s| WorkerError::Config(s.message().to_owned()))
    };
    let (writer, follower) = (control(&settings.control)?, control(&settings.control)?);
    let advertised = settings.advertise.clone().unwrap_or_else(|| address.to_string());
    let shared = Arc::new(Shared::new(settings, advertised, writer, limits));

    // Whatever returns early from here on drops the set, which ends the tasks.
    let mut tasks = JoinSet::new();
    let (close, closed) = oneshot::channel();
    let server = tokio::spawn(serve(Arc::clone(&shared), listener, closed));
    tasks.spawn(crate::pins::watch::follow(Arc::clone(&shared), follower));

    let opened = first_engine(&shared, &opener).await;
    let opened = opened.inspect_err(|_| server.abort())?;
    tasks.spawn(crate::load::sample(Arc::clone(&shared)));
    tasks.spawn(crate::pins::recompute::obey(Arc::clone(&shared)));
    let publisher = tokio::spawn(publisher::run(Arc::clone(&shared)));
    let supervisor = tokio::spawn(supervise(Arc::clone(&shared), opener, opened));
    let (ended, end) = watch::channel(None);
    let running = Running { tasks, server, close, publisher, supervisor };
    tokio::spawn(running.conclude(Arc::clone(&shared), ended));

    let handle = WorkerHandle { shared, address, end };
    handle.registered().await?;
    Ok(handle)
}

/// Opens channels to members: secured ones where there is an identity.
fn connect(settings: &Settings) -> Connector {
    match settings.identity.clone() {
        Some(identity) => connector(move |to| identity.channel(to, Role::Control)),
        None => Arc::new(channel),
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), WorkerError> {
    let refused = |error: std::io::Error| WorkerError::Listen {
        address: address.to_string(),
        reason: error.to_string(),
    };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let local = listener.local_addr().map_err(refused)?;
    Ok((listener, local))
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, closed: oneshot::Receiver<()>) {
    let requests_max = u32::try_from(shared.settings.requests_max).unwrap_or(u32::MAX);
    let service = WorkerServer::new(Server::new(Arc::clone(&shared)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let identity = shared.settings.identity.clone();
    let served = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(Some(FRAME_BYTES_MAX))
        .max_concurrent_streams(requests_max.saturating_add(STREAMS_SPARE))
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .layer(Guard::new(identity.is_some(), allowed))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming(listener, identity), async move {
            // A sender that is gone means the same.
            let _ = closed.await;
        })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC service ended");
        shared.start_draining();
        shared.stop.send_replace(true);
    }
}

/// Waits for the cluster's hash key, then opens the engine with it.
async fn first_engine(shared: &Shared, opener: &Arc<dyn Opener>) -> Result<Opened, WorkerError> {
    let limit = Duration::from_millis(shared.settings.start_timeout_ms);
    let mut keys = shared.hash_key.subscribe();
    let key = match tokio::time::timeout(limit, keys.wait_for(Option::is_some)).await {
        Ok(Ok(key)) => *key,
        _ => None,
    };
    let Some(key) = key else {
        return Err(WorkerError::Control(format!(
            "no member of {} told the cluster's hash key within {} ms",
            shared.settings.control.join(","),
            shared.settings.start_timeout_ms
        )));
    };
    let opened = open(shared, opener, 1, key).await.map_err(WorkerError::Engine)?;
    attach_tiers(shared, &opened.0).await.map_err(WorkerError::Config)?;
    let info = &opened.0.info;
    if model_spec(&shared.settings, info).name.is_empty() {
        return Err(WorkerError::Config(
            "the engine names no model; set the name that clients ask for".into(),
        ));
    }
    if info.block_tokens == 0 || info.context_tokens_max == 0 {
        return Err(WorkerError::Engine("it has no block size or no context length".into()));
    }
    Ok(opened)
}

/// What this worker serves.
pub(crate) fn model_spec(settings: &Settings, info: &Info) -> ModelSpec {
    let named = !settings.model_name.is_empty();
    ModelSpec {
        name: if named { settings.model_name.clone() } else { info.model.clone() },
        revision: settings.revision.clone(),
        block_tokens: info.block_tokens,
        context_tokens_max: info.context_tokens_max,
    }
}

/// The tasks of a running worker.
struct Running {
    tasks: JoinSet<()>,
    server: JoinHandle<()>,
    close: oneshot::Sender<()>,
    publisher: JoinHandle<()>,
    supervisor: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    /// Waits for the engine's keeper, which ends last in a stop and first in a failure, and ends the rest.
    async fn conclude(mut self, shared: Arc<Shared>, ended: watch::Sender<End>) {
        let result = self.supervisor.await;
        shared.start_draining();
        shared.flights.fail_all(u64::MAX, &Failure::unavailable("this worker is stopping"));
        shared.stop.send_replace(true);
        if tokio::time::timeout(GOODBYE, &mut self.publisher).await.is_err() {
            self.publisher.abort();
        }
        // The server may have ended by itself.
        let _ = self.close.send(());
        if tokio::time::timeout(LAST_READS, &mut self.server).await.is_err() {
            self.server.abort();
        }
        self.tasks.shutdown().await;
        let tiers = shared.tiers.lock().take();
        if let Some(tiers) = tiers {
            tiers.save().await;
        }
        let failed = |error: tokio::task::JoinError| WorkerError::System(error.to_string());
        ended.send_replace(Some(result.map_err(failed).and_then(|result| result)));
    }
}

impl WorkerHandle {
    #[cfg(test)]
    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its number in the cluster.
    #[must_use]
    pub fn worker_id(&self) -> WorkerId {
        self.shared.registration().map(|r| r.worker).unwrap_or_default()
    }

    /// The current epoch; it rises when the engine is replaced or the worker was fenced.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch()
    }

    /// Whether requests are admitted and the engine is registered as it is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    /// Waits until the worker has ended.
    ///
    /// # Errors
    /// If it ended because its engine was given up, or for want of something from the system.
    pub async fn wait(&self) -> Result<(), WorkerError> {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ok(())),
            Err(_) => Err(WorkerError::System("the runtime ended before the worker".into())),
        }
    }

    /// Admits nothing more, waits for the requests in flight up to `drain_timeout_ms`, sends the rest to other
    /// workers, says goodbye to the control plane and stops.
    ///
    /// # Errors
    /// As [`WorkerHandle::wait`].
    pub async fn drain(&self) -> Result<(), WorkerError> {
        self.shared.start_draining();
        let limit = Duration::from_millis(self.shared.settings.drain_timeout_ms);
        let mut count = self.shared.flights.count();
        tokio::select! {
            _ = count.wait_for(|count| *count == 0) => {}
            () = tokio::time::sleep(limit) => {}
            () = self.shared.stopped() => {}
        }
        if let Some(tiers) = self.shared.tiers() {
            tiers.settle(SETTLE).await;
        }
        self.shutdown().await
    }

    /// Sends the requests in flight to other workers and stops at once.
    ///
    /// # Errors
    /// As [`WorkerHandle::wait`].
    pub async fn shutdown(&self) -> Result<(), WorkerError> {
        self.shared.start_draining();
        self.shared.fail_requests(u64::MAX, &Failure::unavailable("this worker is draining"));
        self.shared.stop.send_replace(true);
        self.wait().await
    }

    /// Waits for the first registration; a worker that gets none is stopped.
    async fn registered(&self) -> Result<(), WorkerError> {
        let limit = Duration::from_millis(self.shared.settings.start_timeout_ms);
        let mut registration = self.shared.registration.subscribe();
        tokio::select! {
            // What it saw is not held while another branch waits.
            _ = async { registration.wait_for(Option::is_some).await.map(drop) } => Ok(()),
            end = self.wait() => {
                end.and(Err(WorkerError::System("stopped before it was registered".into())))
            }
            () = tokio::time::sleep(limit) => {
                let reason = self.shared.trouble.lock().clone();
                // The end of a worker that never began has no news.
                let _ = self.shutdown().await;
                Err(WorkerError::Control(reason))
            }
        }
    }
}
