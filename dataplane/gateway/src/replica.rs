//! The gateway's replica of the cluster's state: the same machine that control members run, fed by `Watch`.
//!
//! Any member will do; when one goes, the replica turns to the next and resumes from its log index. While no
//! member answers it stays as it is, ever staler, and says how old it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_proto::client::ControlPlane;
use mainstay_proto::v1;
use mainstay_proto::v1::watch_event::Event;
use mainstay_state::{Limits, Machine};
use mainstay_types::LogIndex;
use parking_lot::RwLock;
use tokio::sync::watch;

const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A member sends progress ten times a second; this much silence means that it is gone.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// A member that was cut off or removed says that it lives and has nothing new, for ever; even an idle leader
/// moves the log every ten seconds.
const STALE_MAX: Duration = Duration::from_secs(25);
/// The first message may be an image of the whole state, which takes its time to make and to send.
const IMAGE_MAX: Duration = Duration::from_secs(60);

/// A replica, shared by everything in the gateway that reads cluster state.
#[derive(Clone)]
pub(crate) struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    machine: RwLock<Machine>,
    heard: RwLock<Option<Instant>>,
    changed: watch::Sender<LogIndex>,
}

impl Replica {
    /// An empty replica, which [`Replica::follow`] fills.
    pub(crate) fn new() -> Self {
        let inner = Inner {
            machine: RwLock::new(Machine::new(Limits::standard())),
            heard: RwLock::new(None),
            changed: watch::Sender::new(LogIndex(0)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Looks at the state. The closure holds a lock: it must not wait for anything.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.inner.machine.read())
    }

    /// How long ago a member was last heard; `None` before the first image.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.inner.heard.read().map(|at| at.elapsed())
    }

    /// Wakes whenever the log index moves.
    pub(crate) fn changes(&self) -> watch::Receiver<LogIndex> {
        self.inner.changed.subscribe()
    }

    /// Follows the control plane for ever; ends when the task is aborted.
    pub(crate) async fn follow(self, control: ControlPlane) {
        loop {
            if let Err(status) = self.follow_one(&control).await {
                tracing::debug!(code = ?status.code(), reason = status.message(), "watch ended; turning to another member");
            }
            control.rotate();
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn follow_one(&self, control: &ControlPlane) -> Result<(), tonic::Status> {
        let started = self.inner.heard.read().is_some();
        let from = if started { self.read(|m| m.applied().0 + 1) } else { 0 };
        let request = v1::WatchRequest { from_log_index: from, without_blocks: false };
        let opened = tokio::time::timeout(SILENCE_MAX, control.current().watch(request)).await;
        let mut stream = opened
            .map_err(|_| tonic::Status::deadline_exceeded("watch did not open"))??
            .into_inner();
        let mut patience = IMAGE_MAX;
        let mut moved = Instant::now();
        loop {
            let message = tokio::time::timeout(patience, stream.message())
                .await
                .map_err(|_| tonic::Status::deadline_exceeded("watch fell silent"))??;
            let Some(event) = message.and_then(|m| m.event) else { return Ok(()) };
            patience = SILENCE_MAX;
            if !matches!(event, Event::Progress(_)) {
                moved = Instant::now();
            } else if moved.elapsed() > STALE_MAX {
                return Err(tonic::Status::unavailable("the member has no news of the log"));
            }
            if let Event::Image(_) = event {
                let replica = self.clone();
                let taken = tokio::task::spawn_blocking(move || replica.take(event)).await;
                taken.map_err(|e| tonic::Status::internal(e.to_string()))??;
            } else {
                self.take(event)?;
            }
        }
    }

    fn take(&self, event: Event) -> Result<(), tonic::Status> {
        match event {
            Event::Image(image) => {
                let machine = Machine::decode(&image.state, Limits::standard())
                    .map_err(|e| tonic::Status::data_loss(format!("state image: {e}")))?;
                *self.inner.machine.write() = machine;
            }
            Event::Entry(entry) => {
                let proposal = entry.proposal.as_ref();
                let proposal = proposal.ok_or_else(|| tonic::Status::data_loss("empty entry"))?;
                let proposal = mainstay_proto::convert::proposal_from_wire(proposal)?;
                self.inner.machine.write().apply(LogIndex(entry.log_index), &proposal);
            }
            Event::Progress(_) => {}
        }
        *self.inner.heard.write() = Some(Instant::now());
        let applied = self.read(Machine::applied);
        self.inner.changed.send_replace(applied);
        Ok(())
    }
}
