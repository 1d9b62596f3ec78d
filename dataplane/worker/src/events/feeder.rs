//! One task per member of the control plane, which brings it the stream.
//!
//! Each has a connection and a place in the stream of its own, so that a member that is slow or away delays nobody.
//! One message is under way at a time: frames as far as there are any, the whole state in parts to a member that
//! lacks what the ring has let go of. A member that starts again has forgotten everything and can't ask; so an idle
//! feeder sends the newest frame again from time to time, and the answer tells. Whether the epoch is over is for
//! the publisher to find out: a feeder that is refused only waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::client::MEMBERS_MAX;
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::frames::Frames;
use super::snapshots::Snapshot;
use crate::backoff::Backoff;
use crate::shared::{Registration, Shared};

/// How long a member may take over a message.
const FRAMES_DEADLINE: Duration = Duration::from_secs(2);
/// Over a part of a snapshot, the last of which makes it put a whole state in place of another.
const PART_DEADLINE: Duration = Duration::from_secs(10);
/// How long an idle feeder believes what it last heard.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A member that asks for the whole state again within this time has to wait, ever longer.
const SNAPSHOTS_APART: Duration = Duration::from_secs(30);

/// The feeders of one epoch. Dropping it ends them.
pub(super) struct Feeders {
    shared: Arc<Shared>,
    registration: Registration,
    tasks: HashMap<String, JoinHandle<()>>,
}

impl Drop for Feeders {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
        metrics::gauge!("mainstay_worker_members_fed").set(0.0);
    }
}

impl Feeders {
    pub(super) fn new(shared: &Arc<Shared>, registration: Registration) -> Self {
        Self { shared: Arc::clone(shared), registration, tasks: HashMap::new() }
    }

    /// Feeds exactly these members: ends the feeders of others, begins those that are new.
    pub(super) fn keep(&mut self, addresses: &[String]) {
        let addresses = &addresses[..addresses.len().min(MEMBERS_MAX)];
        self.tasks.retain(|address, task| {
            // One that has ended before its time is begun again below.
            let stays = addresses.contains(address) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for address in addresses {
            if self.tasks.contains_key(address) {
                continue;
            }
            match self.shared.control.member(address) {
                Ok(client) => {
                    let feeder = Feeder::new(&self.shared, self.registration, client, address);
                    self.tasks.insert(address.clone(), tokio::spawn(feeder.run()));
                }
                Err(status) => {
                    tracing::warn!(address, reason = status.message(), "not a member's address");
                }
            }
        }
        metrics::gauge!("mainstay_worker_members_fed").set(self.tasks.len() as f64);
    }
}

/// What to send next.
enum Step {
    Frames(Vec<Arc<v1::EventFrame>>),
    Snapshot,
}

/// What came of it.
enum Fed {
    /// The member has what it was sent.
    Yes,
    /// It answered, and asks for something else.
    No,
    /// The epoch is over for this worker itself.
    Over,
}

struct Feeder {
    shared: Arc<Shared>,
    registration: Registration,
    client: ControlClient<Channel>,
    address: String,
    news: watch::Receiver<()>,
    /// The first frame that the member lacks, as it last said.
    cursor: u64,
    heard: Instant,
    /// What is being sent, kept so that another attempt need not make it again.
    snapshot: Option<Arc<Snapshot>>,
    snapshot_at: Option<Instant>,
    snapshot_backoff: Backoff,
}

impl Feeder {
    fn new(
        shared: &Arc<Shared>,
        registration: Registration,
        client: ControlClient<Channel>,
        address: &str,
    ) -> Self {
        Self {
            news: shared.events.waiting.subscribe(),
            shared: Arc::clone(shared),
            registration,
            client,
            address: address.to_owned(),
            // The least that a member can lack; it answers what it does lack.
            cursor: 1,
            heard: Instant::now(),
            snapshot: None,
            snapshot_at: None,
            snapshot_backoff: Backoff::new(20, 2_000),
        }
    }

    async fn run(mut self) {
        let mut backoff = Backoff::new(20, 2_000);
        loop {
            let Some(step) = self.next_step().await else { return };
            let fed = match step {
                Step::Frames(frames) => self.send_frames(&frames).await,
                Step::Snapshot => self.send_snapshot().await,
            };
            match fed {
                Ok(Fed::Yes) => {
                    backoff.reset();
                    continue;
                }
                Ok(Fed::No) => {}
                Ok(Fed::Over) => return,
                Err(status) => {
                    let (code, reason) = (status.code(), status.message());
                    tracing::debug!(address = self.address, ?code, reason, "not fed");
                    metrics::counter!("mainstay_worker_publish_failures_total").increment(1);
                }
            }
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    /// Waits for something to send. `None` when the epoch is over.
    async fn next_step(&mut self) -> Option<Step> {
        loop {
            self.news.borrow_and_update();
            let now = Instant::now();
            let probe_at = self.heard + PROBE_INTERVAL;
            let seal_at = {
                let mut state = self.shared.events.lock();
                if state.log.epoch() != self.registration.epoch {
                    return None;
                }
                let seal_at = state.seal_due(now);
                match state.log.frames_from(self.cursor) {
                    Frames::Next(frames) => return Some(Step::Frames(frames)),
                    Frames::Lost => return Some(Step::Snapshot),
                    Frames::UpToDate if now >= probe_at => {
                        if let Some(newest) = state.log.newest() {
                            return Some(Step::Frames(vec![newest]));
                        }
                        self.heard = now;
                    }
                    Frames::UpToDate => {}
                }
                seal_at
            };
            match seal_at {
                Some(seal_at) => tokio::time::sleep_until(seal_at).await,
                None => tokio::select! {
                    changed = self.news.changed() => changed.ok()?,
                    () = tokio::time::sleep_until(probe_at.max(now)) => {}
                },
            }
        }
    }

    async fn send(
        &mut self,
        request: v1::PublishRequest,
        deadline: Duration,
    ) -> Result<v1::PublishReply, Status> {
        match tokio::time::timeout(deadline, self.client.publish(request)).await {
            Ok(reply) => {
                self.heard = Instant::now();
                reply.map(tonic::Response::into_inner)
            }
            Err(_) => Err(Status::new(Code::DeadlineExceeded, "the member did not answer in time")),
        }
    }

    fn request(&self) -> v1::PublishRequest {
        let (worker, epoch) = (self.registration.worker.0, self.registration.epoch.0);
        v1::PublishRequest { worker, epoch, ..v1::PublishRequest::default() }
    }

    async fn send_frames(&mut self, frames: &[Arc<v1::EventFrame>]) -> Result<Fed, Status> {
        let began = Instant::now();
        let first = frames.first().map_or(self.cursor, |frame| frame.sequence);
        let frames_wire = frames.iter().map(|frame| (**frame).clone()).collect();
        let request = v1::PublishRequest { frames: frames_wire, ..self.request() };
        let reply = self.send(request, FRAMES_DEADLINE).await?;
        self.cursor = reply.next_sequence;
        if self.cursor <= first {
            metrics::counter!("mainstay_worker_gaps_total").increment(1);
            return Ok(Fed::No);
        }
        let taken = frames.iter().filter(|frame| frame.sequence < self.cursor);
        published(taken.map(|frame| &**frame), began);
        Ok(Fed::Yes)
    }

    async fn send_snapshot(&mut self) -> Result<Fed, Status> {
        let recent = self.snapshot_at.is_some_and(|at| at.elapsed() < SNAPSHOTS_APART);
        if recent {
            tokio::time::sleep(self.snapshot_backoff.next_pause()).await;
        } else {
            self.snapshot_backoff.reset();
        }
        // An attempt that failed is made again with the same state, if frames go on from there.
        let former = self.snapshot.take();
        let Some(snapshot) = self.shared.events.snapshot(self.registration).await else {
            return Ok(Fed::Over);
        };
        drop(former);
        tracing::info!(
            address = self.address,
            asked_from = self.cursor,
            sequence = snapshot.mark.sequence.0,
            blocks = snapshot.mark.blocks,
            "a member needs everything"
        );
        self.snapshot = Some(Arc::clone(&snapshot));
        for part in &snapshot.parts {
            let request = v1::PublishRequest { snapshot: Some(part.clone()), ..self.request() };
            let reply = self.send(request, PART_DEADLINE).await?;
            if part.last {
                self.cursor = reply.next_sequence;
            }
        }
        self.snapshot = None;
        self.snapshot_at = Some(Instant::now());
        metrics::counter!("mainstay_worker_snapshots_sent_total").increment(1);
        if self.cursor <= snapshot.mark.sequence.0 {
            return Ok(Fed::No);
        }
        Ok(Fed::Yes)
    }
}

/// Counts what a member has taken.
pub(super) fn published<'a>(frames: impl Iterator<Item = &'a v1::EventFrame>, began: Instant) {
    let (mut count, mut blocks) = (0, 0);
    for frame in frames {
        count += 1;
        blocks += frame.events.iter().map(named).sum::<u64>();
    }
    metrics::counter!("mainstay_worker_frames_published_total").increment(count);
    metrics::counter!("mainstay_worker_blocks_published_total").increment(blocks);
    let lag = began.elapsed() + super::LINGER;
    metrics::histogram!("mainstay_worker_publish_lag_seconds").record(lag.as_secs_f64());
}

fn named(event: &v1::BlockEvent) -> u64 {
    use v1::block_event::Event;
    match &event.event {
        Some(Event::Stored(stored)) => stored.blocks.len() as u64 / 16,
        Some(Event::Removed(removed)) => removed.blocks.len() as u64 / 16,
        Some(Event::Truncated(truncated)) => u64::from(truncated.count),
        Some(Event::Cleared(_)) | None => 0,
    }
}
