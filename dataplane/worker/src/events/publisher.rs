//! The task that keeps the worker registered: it renews the lease, reports on pins, has a feeder bring the stream
//! of block events to each member, and begins a new epoch when the worker was fenced.
//!
//! What it sends itself goes to the leader, one message at a time. In the plain form of the index the frames go
//! that way too, and there are no feeders. While the control plane is away the worker serves on: the task only
//! retries, ever more slowly, and what gathers is bounded by the frame log.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::convert::{model_to_wire, u128_to_wire};
use mainstay_proto::v1;
use mainstay_types::{Epoch, HashKey, PinId, WorkerId};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::feeder::{Feeders, published};
use crate::backoff::Backoff;
use crate::lifecycle::model_spec;
use crate::shared::{Life, Registration, Shared};

/// How long the first of a batch of reports, or of plain frames, waits for others.
const LINGER: Duration = Duration::from_millis(5);
/// Pin reports in one publish: each is an entry of the log.
const REPORTS_MAX: usize = 512;
const REGISTER_DEADLINE: Duration = Duration::from_secs(2);
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);
/// What one publish may take, whatever the lease.
const PUBLISH_DEADLINE_MIN: Duration = Duration::from_millis(200);
const PUBLISH_DEADLINE_MAX: Duration = Duration::from_secs(2);
/// A lease is renewed after this part of it.
const RENEW_PART: u32 = 4;
/// The shortest lease that is believed, so that a bad answer makes no storm.
const LEASE_MIN: Duration = Duration::from_millis(200);
/// An epoch that lasted so long was a healthy one.
const EPOCH_HEALTHY: Duration = Duration::from_secs(60);

/// Why an epoch ended.
enum End {
    /// The worker is stopping.
    Stopped,
    /// The engine is another, or gone.
    EngineEnded,
    /// The control plane takes nothing more under this epoch.
    Fenced,
}

/// Keeps the worker registered and its events published, until it stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut patience = Backoff::new(20, 10_000);
    let mut members = Vec::new();
    loop {
        let Some(life) = next_life(&shared).await else { return };
        let registered = tokio::select! {
            registered = register(&shared, &life) => registered,
            end = interrupted(&shared, life.number) => match end {
                End::Stopped => return,
                _ => continue,
            },
        };
        let Some(registration) = registered else {
            // The engine hashes with another key than the cluster; its successor will not.
            shared.life_ended(life.number).await;
            continue;
        };
        begin_epoch(&shared, registration);
        let began = Instant::now();
        match publish(&shared, &life, registration, &mut members).await {
            End::Stopped => return leave(&shared, registration).await,
            End::EngineEnded => leave(&shared, registration).await,
            End::Fenced => {
                if began.elapsed() >= EPOCH_HEALTHY {
                    patience.reset();
                } else {
                    tracing::warn!(
                        name = shared.settings.name,
                        epoch = registration.epoch.0,
                        "fenced soon after registering; is another worker using this name?"
                    );
                }
                tokio::select! {
                    () = tokio::time::sleep(patience.next_pause()) => {}
                    () = shared.stopped() => return,
                }
            }
        }
    }
}

/// The engine of the moment, or the next one; `None` when the worker stops.
async fn next_life(shared: &Shared) -> Option<Arc<Life>> {
    let mut lives = shared.life.subscribe();
    tokio::select! {
        life = lives.wait_for(Option::is_some) => life.ok().and_then(|life| life.clone()),
        () = shared.stopped() => None,
    }
}

async fn interrupted(shared: &Shared, life: u64) -> End {
    tokio::select! {
        () = shared.stopped() => End::Stopped,
        () = shared.life_ended(life) => End::EngineEnded,
    }
}

/// Registers until it succeeds. `None` when the cluster's hash key is not the engine's.
async fn register(shared: &Shared, life: &Life) -> Option<Registration> {
    let mut backoff = Backoff::new(50, 2_000);
    let mut incarnation = incarnation();
    loop {
        let request = v1::RegisterWorker {
            name: shared.settings.name.clone(),
            address: shared.address.clone(),
            incarnation,
            model: Some(model_to_wire(&model_spec(&shared.settings, &life.info))),
            blocks_total: life.info.blocks_total,
            region: shared.settings.region.as_str().to_owned(),
        };
        let reply = shared.control.call(REGISTER_DEADLINE, |mut client| {
            let request = request.clone();
            async move { client.register(request).await }
        });
        match reply.await.and_then(|reply| key_of(&reply).map(|key| (reply, key))) {
            Ok((reply, key)) => {
                if life.hash_key != key {
                    tracing::warn!("the cluster's hash key is another now; the engine is replaced");
                    shared.hash_key.send_replace(Some(key));
                    life.retire.notify_one();
                    return None;
                }
                let worker = WorkerId(reply.worker);
                let lease_ttl = Duration::from_millis(reply.lease_ttl_ms).max(LEASE_MIN);
                let epoch = Epoch(reply.epoch);
                let (life, plain) = (life.number, reply.plain_index);
                return Some(Registration { worker, epoch, lease_ttl, life, plain });
            }
            Err(status) => {
                tracing::warn!(code = ?status.code(), reason = status.message(), "not registered");
                *shared.trouble.lock() = status.message().to_owned();
                if status.code() == Code::FailedPrecondition {
                    // A lost answer may have begun an epoch that was fenced since.
                    incarnation = self::incarnation();
                }
            }
        }
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

fn key_of(reply: &v1::RegisterReply) -> Result<HashKey, Status> {
    let key = <[u8; 16]>::try_from(reply.hash_key.as_ref());
    key.map(HashKey).map_err(|_| Status::data_loss("the control plane answered without a hash key"))
}

/// A number that no other registration has.
fn incarnation() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        // Without a source of randomness, the time since 1970 tells attempts of one name apart well enough.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(1, |since| since.as_nanos() as u64)
    })
}

fn begin_epoch(shared: &Shared, registration: Registration) {
    tracing::info!(
        worker = registration.worker.0,
        epoch = registration.epoch.0,
        "registered with the control plane"
    );
    metrics::gauge!("mainstay_worker_epoch").set(registration.epoch.0 as f64);
    metrics::counter!("mainstay_worker_registrations_total").increment(1);
    shared.events.epoch_began(registration);
    shared.registration.send_replace(Some(registration));
}

async fn leave(shared: &Shared, registration: Registration) {
    let request = v1::LeaveRequest { worker: registration.worker.0, epoch: registration.epoch.0 };
    let left = shared
        .control
        .call(LEAVE_DEADLINE, |mut client| async move { client.leave(request).await });
    if let Err(status) = left.await {
        // The lease ends by itself.
        tracing::debug!(code = ?status.code(), reason = status.message(), "could not say goodbye");
    }
}

/// One publish, put together.
struct Batch {
    request: v1::PublishRequest,
    reports: Vec<(PinId, u32)>,
}

/// The epoch as the leader knows it.
struct Tenancy<'a> {
    shared: &'a Shared,
    registration: Registration,
    /// In the plain form, the frame that the leader expects.
    cursor: u64,
    lease_ttl: Duration,
    renew_at: Instant,
}

impl Tenancy<'_> {
    fn batch(&self) -> Batch {
        let mut state = self.shared.events.lock();
        let state = &mut *state;
        let frames = if self.registration.plain {
            state.log.plain_frames(self.cursor, &state.map)
        } else {
            Vec::new()
        };
        let reports = state.pins.reports(REPORTS_MAX);
        let wire = |(id, held): &(PinId, u32)| v1::PinReport {
            id: u128_to_wire(id.0),
            blocks_held: *held,
        };
        let request = v1::PublishRequest {
            worker: self.registration.worker.0,
            epoch: self.registration.epoch.0,
            frames: frames.iter().map(|frame| (**frame).clone()).collect(),
            pins: reports.iter().map(wire).collect(),
            snapshot: None,
        };
        Batch { request, reports }
    }

    /// Sends a batch to the leader, which may take a while to find.
    async fn send(&self, request: &v1::PublishRequest) -> Result<v1::PublishReply, Status> {
        let part = self.lease_ttl / RENEW_PART;
        let deadline = part.clamp(PUBLISH_DEADLINE_MIN, PUBLISH_DEADLINE_MAX);
        let call = self.shared.control.call(deadline, |mut client| {
            let request = request.clone();
            async move { client.publish(request).await }
        });
        let reply = call.await?;
        if !reply.leads && !self.registration.plain {
            self.shared.control.rotate();
            return Err(Status::unavailable("a member that does not lead took it"));
        }
        Ok(reply)
    }

    /// Takes an answer in. True when it moved things on, `None` when the stream is somebody else's.
    fn take(&mut self, batch: &Batch, reply: &v1::PublishReply, began: Instant) -> Option<bool> {
        self.lease_ttl = Duration::from_millis(reply.lease_ttl_ms).max(LEASE_MIN);
        self.renew_at = Instant::now() + self.lease_ttl / RENEW_PART;
        let mut state = self.shared.events.lock();
        state.pins.reported(&batch.reports);
        if !self.registration.plain {
            return Some(true);
        }
        let next_sequence = reply.next_sequence;
        if next_sequence > state.log.next_sequence() {
            tracing::error!(next_sequence, "somebody else publishes under this epoch");
            return None;
        }
        drop(state);
        let frames = &batch.request.frames;
        let went_on = match frames.first() {
            Some(first) => next_sequence > first.sequence,
            None => next_sequence >= self.cursor,
        };
        if !went_on {
            tracing::warn!(next_sequence, expected = self.cursor, "the leader lacks frames");
            metrics::counter!("mainstay_worker_gaps_total").increment(1);
        }
        published(frames.iter().filter(|frame| frame.sequence < next_sequence), began);
        self.cursor = next_sequence;
        Some(went_on)
    }

    /// Returns when there is something to say, or the lease is to be renewed.
    async fn due(&self) {
        let events = &self.shared.events;
        loop {
            let due = {
                let state = events.lock();
                let frames = self.registration.plain && state.log.plain_due(self.cursor);
                frames || state.pins.report_due()
            };
            if due {
                return tokio::time::sleep(LINGER).await;
            }
            if tokio::time::timeout_at(self.renew_at, events.news.notified()).await.is_err() {
                return;
            }
        }
    }
}

/// Who is to be fed: the members that the leader named, before that those of the configuration.
fn feed(feeders: &mut Option<Feeders>, shared: &Shared, members: &[String]) {
    let Some(feeders) = feeders else { return };
    if members.is_empty() {
        feeders.keep(&shared.control.addresses());
    } else {
        feeders.keep(members);
    }
}

async fn publish(
    shared: &Arc<Shared>,
    life: &Life,
    registration: Registration,
    members: &mut Vec<String>,
) -> End {
    // The first message goes out at once: the answer names the members.
    let (lease_ttl, renew_at) = (registration.lease_ttl, Instant::now());
    let mut tenancy = Tenancy { shared, registration, cursor: 1, lease_ttl, renew_at };
    let mut feeders = (!registration.plain).then(|| Feeders::new(shared, registration));
    feed(&mut feeders, shared, members);
    // Well below the lease: a member that leads again is told in time that this worker lives.
    let pause_ms_max = u64::try_from(lease_ttl.as_millis() / 8).unwrap_or(u64::MAX);
    let mut backoff = Backoff::new(20, pause_ms_max.clamp(20, 2_000));
    loop {
        tokio::select! {
            biased;
            end = interrupted(shared, life.number) => return end,
            () = tenancy.due() => {}
        }
        let batch = tenancy.batch();
        let empty = batch.request.frames.is_empty() && batch.request.pins.is_empty();
        if empty && Instant::now() < tenancy.renew_at {
            continue;
        }
        let began = Instant::now();
        let reply = tokio::select! {
            end = interrupted(shared, life.number) => return end,
            reply = tenancy.send(&batch.request) => reply,
        };
        let went_on = match reply {
            Ok(reply) => {
                if !reply.members.is_empty() && *members != reply.members {
                    members.clone_from(&reply.members);
                }
                feed(&mut feeders, shared, members);
                match tenancy.take(&batch, &reply, began) {
                    Some(went_on) => went_on,
                    None => return End::Fenced,
                }
            }
            Err(status) if fences(&status) => {
                tracing::warn!(code = ?status.code(), reason = status.message(), "this epoch is over");
                return End::Fenced;
            }
            Err(status) => {
                tracing::debug!(code = ?status.code(), reason = status.message(), "not published");
                metrics::counter!("mainstay_worker_publish_failures_total").increment(1);
                feed(&mut feeders, shared, members);
                false
            }
        };
        if went_on {
            backoff.reset();
            continue;
        }
        tokio::select! {
            end = interrupted(shared, life.number) => return end,
            () = tokio::time::sleep(backoff.next_pause()) => {}
        }
    }
}

/// Whether a refusal means that nothing will be taken under this epoch. Anything that is not a matter of the
/// moment does: a new epoch tells everything afresh, which mends whatever is amiss between the two sides.
fn fences(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition | Code::NotFound | Code::InvalidArgument | Code::OutOfRange
    )
}
