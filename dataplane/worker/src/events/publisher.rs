//! The task that speaks to the control plane: it registers, publishes block events and pin reports, renews the
//! lease, and begins a new epoch when it was fenced.
//!
//! One publish is under way at a time, and each carries whatever has gathered since the last. While the
//! control plane is away the worker serves on: the task only retries, ever more slowly, and what gathers is
//! bounded by the frame log.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::convert::{model_to_wire, u128_to_wire};
use mainstay_proto::v1;
use mainstay_types::{Epoch, HashKey, PinId, WorkerId};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::frames::Acknowledged;
use crate::backoff::Backoff;
use crate::lifecycle::model_spec;
use crate::shared::{Life, Registration, Shared};

/// How long the first of a batch of events waits for others.
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
        match publish(&shared, &life, registration).await {
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
                return Some(Registration { worker, epoch, lease_ttl, life: life.number });
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
    shared.events.epoch_began(registration.worker, registration.epoch);
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

fn batch(shared: &Shared, registration: Registration) -> Batch {
    let mut state = shared.events.lock();
    let state = &mut *state;
    let frames = state.log.frames(&state.map);
    let reports = state.pins.reports(REPORTS_MAX);
    let wire =
        |(id, held): &(PinId, u32)| v1::PinReport { id: u128_to_wire(id.0), blocks_held: *held };
    let pins = reports.iter().map(wire).collect();
    let (worker, epoch) = (registration.worker.0, registration.epoch.0);
    Batch { request: v1::PublishRequest { worker, epoch, frames, pins }, reports }
}

async fn publish(shared: &Shared, life: &Life, registration: Registration) -> End {
    let mut lease_ttl = registration.lease_ttl;
    let mut renew_at = Instant::now() + lease_ttl / RENEW_PART;
    let mut backoff = Backoff::new(20, 2_000);
    loop {
        tokio::select! {
            biased;
            end = interrupted(shared, life.number) => return end,
            () = due(shared, renew_at) => {}
        }
        let batch = batch(shared, registration);
        let empty = batch.request.frames.is_empty() && batch.request.pins.is_empty();
        if empty && Instant::now() < renew_at {
            continue;
        }
        let began = Instant::now();
        let deadline = (lease_ttl / RENEW_PART).clamp(PUBLISH_DEADLINE_MIN, PUBLISH_DEADLINE_MAX);
        let request = &batch.request;
        let reply = tokio::select! {
            end = interrupted(shared, life.number) => return end,
            reply = shared.control.call(deadline, |mut client| {
                let request = request.clone();
                async move { client.publish(request).await }
            }) => reply,
        };
        let went_on = match reply {
            Ok(reply) => {
                lease_ttl = Duration::from_millis(reply.lease_ttl_ms).max(LEASE_MIN);
                renew_at = Instant::now() + lease_ttl / RENEW_PART;
                let lag = began.elapsed() + if empty { Duration::ZERO } else { LINGER };
                metrics::histogram!("mainstay_worker_publish_lag_seconds")
                    .record(lag.as_secs_f64());
                match acknowledge(shared, &batch, reply.next_sequence) {
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

/// Takes an answer in. True when it moved the stream on, `None` when the stream is somebody else's.
fn acknowledge(shared: &Shared, batch: &Batch, next_sequence: u64) -> Option<bool> {
    let mut state = shared.events.lock();
    let before = batch.request.frames.first().map(|frame| frame.sequence);
    let acknowledged = state.log.acknowledge(next_sequence);
    state.pins.reported(&batch.reports);
    drop(state);
    match acknowledged {
        Acknowledged::All => Some(true),
        Acknowledged::Gap => {
            metrics::counter!("mainstay_worker_gaps_total").increment(1);
            Some(before.is_some_and(|first| next_sequence > first))
        }
        Acknowledged::Resync => {
            tracing::warn!(
                next_sequence,
                "the control plane asks for frames that are gone; telling all"
            );
            Some(false)
        }
        Acknowledged::Ahead => {
            tracing::error!(next_sequence, "somebody else publishes under this epoch");
            None
        }
    }
}

/// Returns when there is something to publish, or the lease is to be renewed.
async fn due(shared: &Shared, renew_at: Instant) {
    loop {
        let (due, full) = {
            let state = shared.events.lock();
            (state.log.due() || state.pins.report_due(), state.log.full())
        };
        if due {
            if !full {
                tokio::time::sleep(LINGER).await;
            }
            return;
        }
        if tokio::time::timeout_at(renew_at, shared.events.news.notified()).await.is_err() {
            return;
        }
    }
}
