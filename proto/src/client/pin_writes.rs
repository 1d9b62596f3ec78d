//! Writes of pins over streams that stay open, one to each member that was asked.
//!
//! Many callers share a stream, so that what they ask at one time travels in one piece, and so do the answers. When
//! a stream breaks, everything that waits on it fails as unavailable and the caller's loop asks again, elsewhere if
//! need be; ids make that safe. A member of an older version knows no such stream and is asked call by call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{ControlPlane, LEADER_METADATA};
use crate::v1;
use crate::v1::control_client::ControlClient;
use crate::v1::pin_write::Change;

/// Writes that may wait on one stream; more wait for room.
const WAITING_MAX: usize = 1024;
/// How long a member that knows no streams is asked call by call before it is tried again.
const OLD_FOR: Duration = Duration::from_secs(30);

/// One stream to one member.
struct Link {
    out: mpsc::Sender<v1::PinWrite>,
    waiting: Arc<Waiting>,
    next_call: AtomicU64,
    room: Semaphore,
}

/// Who waits for which answer.
#[derive(Default)]
struct Waiting {
    calls: Mutex<HashMap<u64, oneshot::Sender<v1::PinWritten>>>,
    broken: AtomicBool,
}

impl Waiting {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<v1::PinWritten>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers until the stream ends; then all who still wait hear so by their senders' end.
    async fn read(self: Arc<Self>, mut answers: Streaming<v1::PinWritten>) {
        while let Ok(Some(answer)) = answers.message().await {
            if let Some(waiter) = self.calls().remove(&answer.call) {
                // It may have given up.
                let _ = waiter.send(answer);
            }
        }
        let mut calls = self.calls();
        self.broken.store(true, Ordering::Release);
        calls.clear();
    }

    /// Whether there is still somebody to answer.
    fn enter(&self, call: u64, waiter: oneshot::Sender<v1::PinWritten>) -> bool {
        let mut calls = self.calls();
        // Looked at under the lock, so that nobody enters after the last were let go.
        let whole = !self.broken.load(Ordering::Acquire);
        if whole {
            calls.insert(call, waiter);
        }
        whole
    }
}

/// Takes a caller off the list that no longer waits.
struct Entered<'a>(&'a Waiting, u64);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.calls().remove(&self.1);
    }
}

impl Link {
    async fn open(mut client: ControlClient<Channel>) -> Result<Arc<Self>, Status> {
        let (out, writes) = mpsc::channel(WAITING_MAX);
        let answers = client.write_pins(ReceiverStream::new(writes)).await?.into_inner();
        let waiting = Arc::new(Waiting::default());
        tokio::spawn(Arc::clone(&waiting).read(answers));
        let room = Semaphore::new(WAITING_MAX);
        Ok(Arc::new(Self { out, waiting, next_call: AtomicU64::new(1), room }))
    }

    async fn write(&self, change: Change, trace: &str) -> Result<v1::PinReply, Status> {
        let broken = || Status::unavailable("the connection to the control plane broke");
        let _room = self.room.acquire().await.map_err(|_| broken())?;
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (waiter, answer) = oneshot::channel();
        if !self.waiting.enter(call, waiter) {
            return Err(broken());
        }
        let _entered = Entered(&self.waiting, call);
        let write = v1::PinWrite { call, change: Some(change), traceparent: trace.to_owned() };
        self.out.send(write).await.map_err(|_| broken())?;
        read(answer.await.map_err(|_| broken())?)
    }
}

/// A call with its trace, as others have it: in the metadata.
fn traced<T>(message: T, trace: &str) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(value) = AsciiMetadataValue::try_from(trace)
        && !trace.is_empty()
    {
        request.metadata_mut().insert("traceparent", value);
    }
    request
}

fn read(answer: v1::PinWritten) -> Result<v1::PinReply, Status> {
    if let Some(reply) = answer.reply {
        return Ok(reply);
    }
    let mut status = match Code::from_i32(answer.code) {
        Code::Ok => Status::internal("the control plane answered nothing"),
        code => Status::new(code, answer.message),
    };
    if let Ok(leader) = AsciiMetadataValue::try_from(answer.leader)
        && !leader.is_empty()
    {
        status.metadata_mut().insert(LEADER_METADATA, leader);
    }
    Err(status)
}

/// What is known of a member as to streams.
#[derive(Default)]
enum Known {
    #[default]
    Nothing,
    Open(Arc<Link>),
    /// It knew no streams at that time.
    Old(tokio::time::Instant),
}

/// The streams of one client, by the member's place in its list.
#[derive(Default)]
pub(super) struct Links(Mutex<HashMap<usize, Arc<tokio::sync::Mutex<Known>>>>);

impl Links {
    /// The stream to the member, opened if there is none; `None` if the member knows no streams.
    async fn to(
        &self,
        at: usize,
        client: ControlClient<Channel>,
    ) -> Result<Option<Arc<Link>>, Status> {
        let known = {
            let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(links.entry(at).or_default())
        };
        // Held while it opens, so that one stream is opened and not one a caller.
        let mut known = known.lock().await;
        match &*known {
            Known::Open(link) if !link.waiting.broken.load(Ordering::Acquire) => {
                return Ok(Some(Arc::clone(link)));
            }
            Known::Old(since) if since.elapsed() < OLD_FOR => return Ok(None),
            _ => {}
        }
        match Link::open(client).await {
            Ok(link) => {
                *known = Known::Open(Arc::clone(&link));
                Ok(Some(link))
            }
            Err(status) if status.code() == Code::Unimplemented => {
                *known = Known::Old(tokio::time::Instant::now());
                Ok(None)
            }
            Err(status) => Err(status),
        }
    }
}

impl ControlPlane {
    /// Makes, extends or releases a pin, as [`ControlPlane::call`] calls: through the leader, again where that is safe,
    /// until `deadline` has passed. The pin in the reply may do without its blocks.
    pub async fn write_pin(
        &self,
        deadline: Duration,
        change: Change,
    ) -> Result<v1::PinReply, Status> {
        self.write_pin_counting(deadline, change, &mut 0).await
    }

    /// [`ControlPlane::write_pin`] as a part of a trace: `trace` is a `traceparent`, or empty.
    pub async fn write_pin_traced(
        &self,
        deadline: Duration,
        change: Change,
        trace: &str,
    ) -> Result<v1::PinReply, Status> {
        let call =
            self.call_at(deadline, |at, client| self.write_once(at, client, change.clone(), trace));
        call.await
    }

    /// [`ControlPlane::write_pin`], for who must know whether an attempt before the answered one may have been carried
    /// out: `attempts` grows by one with each.
    pub async fn write_pin_counting(
        &self,
        deadline: Duration,
        change: Change,
        attempts: &mut u32,
    ) -> Result<v1::PinReply, Status> {
        let call = self.call_at(deadline, |at, client| {
            *attempts += 1;
            self.write_once(at, client, change.clone(), "")
        });
        call.await
    }

    async fn write_once(
        &self,
        at: usize,
        mut client: ControlClient<Channel>,
        change: Change,
        trace: &str,
    ) -> Result<Response<v1::PinReply>, Status> {
        match self.inner.links.to(at, client.clone()).await? {
            Some(link) => link.write(change, trace).await.map(Response::new),
            None => match change {
                Change::Put(request) => client.create_pin(traced(request, trace)).await,
                Change::Extend(request) => client.extend_pin(traced(request, trace)).await,
                Change::Release(request) => client.release_pin(traced(request, trace)).await,
            },
        }
    }
}
