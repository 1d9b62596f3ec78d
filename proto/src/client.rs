//! The control client: it finds the leader among the members it was given, follows it when it moves, and
//! retries what is safe to retry until a deadline.
//!
//! Every control write is idempotent (ids and incarnations are chosen by the caller), so a write whose answer
//! was lost may be sent again.

mod pin_writes;
mod whole;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::gather::Gathered;
use crate::v1::control_client::ControlClient;

pub use whole::Whole;

/// The metadata key under which a follower names the leader.
pub const LEADER_METADATA: &str = "mainstay-leader";
/// How many members a client keeps at most.
pub const MEMBERS_MAX: usize = 32;
/// The largest control message, in bytes: an image of the whole state is one message.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const PORT_USUAL: u16 = 80;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// How long one member may take to answer.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a call leaves a member alone that did not answer it.
const DOUBT: Duration = Duration::from_secs(2);

/// A client of the whole control plane rather than of one member.
#[derive(Clone)]
pub struct ControlPlane {
    inner: Arc<Inner>,
}

/// Opens a lazy channel to `host:port`. The seam for transport security: whoever starts a role decides.
pub type Connector = Arc<dyn Fn(&str) -> Result<Channel, Status> + Send + Sync>;

struct Inner {
    connector: Connector,
    members: std::sync::RwLock<Vec<(String, Channel)>>,
    current: AtomicUsize,
    links: pin_writes::Links,
}

/// Opens a lazy channel to `host:port` in plain text.
pub fn channel(address: &str) -> Result<Channel, Status> {
    let dial = |uri: Uri| async move { dial(&uri).await.map(TokioIo::new) };
    Ok(endpoint(address)?.connect_with_connector_lazy(tower::service_fn(dial)))
}

async fn dial(uri: &Uri) -> std::io::Result<Gathered<TcpStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let found = lookup_host((host, uri.port_u16().unwrap_or(PORT_USUAL))).await?;
    let addresses: Vec<_> = found.take(ADDRESSES_MAX).collect();
    // A name may have an address where nobody answers; the others get their share of the time.
    let share = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(Gathered::new(stream));
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// A [`Connector`] from whatever makes a channel of an endpoint that has this module's times and keepalives.
pub fn connector(open: impl Fn(&Endpoint) -> Channel + Send + Sync + 'static) -> Connector {
    Arc::new(move |address| Ok(open(&endpoint(address)?)))
}

fn endpoint(address: &str) -> Result<Endpoint, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Status::invalid_argument(format!("address {address:?}: {e}")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true);
    Ok(endpoint)
}

/// Members that let a call wait in vain: not asked again for a while, whoever names them as leader.
#[derive(Default)]
struct Doubts(Vec<(usize, tokio::time::Instant)>);

impl Doubts {
    fn note(&mut self, at: usize) {
        self.0.retain(|(other, _)| *other != at);
        self.0.push((at, tokio::time::Instant::now() + DOUBT));
    }

    /// The first from `at` on, of `count`, that is not doubted; `at` itself if all are.
    fn avoid(&self, at: usize, count: usize) -> usize {
        let now = tokio::time::Instant::now();
        let doubted = |at: usize| self.0.iter().any(|(other, until)| *other == at && *until > now);
        let start = at % count.max(1);
        let mut round = (0..count).map(|step| (start + step) % count);
        round.find(|at| !doubted(*at)).unwrap_or(start)
    }
}

impl ControlPlane {
    /// Takes the members' addresses (`host:port`); at least one, [`MEMBERS_MAX`] at most. They are called in plain
    /// text.
    pub fn new(addresses: &[String]) -> Result<Self, Status> {
        Self::with_connector(addresses, Arc::new(channel))
    }

    /// [`ControlPlane::new`] over channels of the caller's making.
    pub fn with_connector(addresses: &[String], connector: Connector) -> Result<Self, Status> {
        if addresses.is_empty() || addresses.len() > MEMBERS_MAX {
            return Err(Status::invalid_argument(format!(
                "give between 1 and {MEMBERS_MAX} control addresses, as HOST:PORT,HOST:PORT"
            )));
        }
        let members = addresses
            .iter()
            .map(|a| Ok((a.clone(), connector(a)?)))
            .collect::<Result<Vec<_>, Status>>()?;
        Ok(Self {
            inner: Arc::new(Inner {
                connector,
                members: std::sync::RwLock::new(members),
                current: AtomicUsize::new(0),
                links: pin_writes::Links::default(),
            }),
        })
    }

    /// A client of the member that answered last.
    #[must_use]
    pub fn current(&self) -> ControlClient<Channel> {
        self.pick(&Doubts::default()).1
    }

    /// The member that answered last, unless it is doubted; then the next that is not.
    fn pick(&self, doubts: &Doubts) -> (usize, ControlClient<Channel>) {
        let members = self.inner.members.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = doubts.avoid(self.inner.current.load(Ordering::Relaxed), members.len());
        let client = ControlClient::new(members[at].1.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        (at, client)
    }

    /// The addresses that it knows: those it was given, and leaders that it was sent to since.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let members = self.inner.members.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        members.iter().map(|(address, _)| address.clone()).collect()
    }

    /// A client of one member, over a connection of its own.
    pub fn member(&self, address: &str) -> Result<ControlClient<Channel>, Status> {
        Ok(ControlClient::new((self.inner.connector)(address)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Turns to the next member.
    pub fn rotate(&self) {
        self.inner.current.fetch_add(1, Ordering::Relaxed);
    }

    /// Turns to the member that `status` names as leader, or to the next one.
    pub fn follow(&self, status: &Status) {
        self.leave(self.inner.current.load(Ordering::Relaxed), status, &Doubts::default());
    }

    /// Turns from the member at `from` to the one that `status` names as leader, or to the next one; not to one that is
    /// doubted, which followers go on naming until they have another. Whoever was turned elsewhere meanwhile stays.
    fn leave(&self, from: usize, status: &Status, doubts: &Doubts) {
        let to = self.named(status);
        let count = self.inner.members.read().map_or(1, |members| members.len());
        let to = doubts.avoid(to.unwrap_or(from.wrapping_add(1)), count);
        let turn = |now: usize| (now % count == from % count).then_some(to);
        // Nothing to do if it was turned already.
        let _ = self.inner.current.fetch_update(Ordering::Relaxed, Ordering::Relaxed, turn);
    }

    /// Where the member lies that a refusal names as leader.
    fn named(&self, status: &Status) -> Option<usize> {
        let leader = status.metadata().get(LEADER_METADATA)?.to_str().ok()?;
        let mut members =
            self.inner.members.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        members.iter().position(|(a, _)| a == leader).or_else(|| {
            let fresh = members.len() < MEMBERS_MAX;
            let opened = fresh.then(|| (self.inner.connector)(leader).ok()).flatten()?;
            members.push((leader.to_owned(), opened));
            Some(members.len() - 1)
        })
    }

    /// Calls until it succeeds, fails for good, or `deadline` has passed since the start. A member that does not
    /// answer is left for the next: it may hang without its connection breaking.
    pub async fn call<T, F, Fut>(&self, deadline: Duration, mut call: F) -> Result<T, Status>
    where
        F: FnMut(ControlClient<Channel>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.call_at(deadline, |_, client| call(client)).await
    }

    /// [`ControlPlane::call`], with the member's place in the list.
    async fn call_at<T, F, Fut>(&self, deadline: Duration, mut call: F) -> Result<T, Status>
    where
        F: FnMut(usize, ControlClient<Channel>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let end = tokio::time::Instant::now() + deadline;
        let mut doubts = Doubts::default();
        loop {
            let patience = end.min(tokio::time::Instant::now() + ATTEMPT_MAX);
            let (at, client) = self.pick(&doubts);
            let result = tokio::time::timeout_at(patience, call(at, client)).await;
            let status = match result {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => {
                    doubts.note(at);
                    Status::deadline_exceeded("the control plane did not answer in time")
                }
            };
            if !is_transient(&status) {
                return Err(status);
            }
            // The next call begins elsewhere, also when this one has no time left.
            self.leave(at, &status, &doubts);
            if tokio::time::Instant::now() + RETRY_PAUSE >= end {
                return Err(status);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Whether another attempt may succeed. An internal error of a member's is final; one with a source was made here, out
/// of a connection that broke, as it is when a member ends while a call is on its way.
fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => true,
        Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
