//! What workers ask: to begin a life, to be heard, to say goodbye.
//!
//! A heartbeat without events writes nothing: the leader notes it in memory. A leader that a quorum has not
//! heard lately answers no heartbeat, so that a worker never trusts a lease that somebody else may end.

use std::time::Instant;

use mainstay_proto::convert::{frame_from_wire, model_from_wire, u128_from_wire};
use mainstay_proto::v1;
use mainstay_raft::ProposeError;
use mainstay_state::Outcome;
use mainstay_types::{Command, Epoch, EventFrame, EventSequence, FenceCause, PinId, WorkerId};
use tonic::Status;

use super::{Service, refuse, refused, unexpected};

/// Frames in one message.
const FRAMES_MAX: usize = 1024;
/// Blocks that all frames of one message name together; at 16 bytes each they fit an entry.
const BLOCKS_MAX: usize = 262_144;
/// Events in one frame; a frame is applied under one lock.
const EVENTS_MAX: usize = 16_384;
/// Pins that one message reports on.
const REPORTS_MAX: usize = 4096;
/// The longest name or address that is worth a look; the machine has its own, smaller limits.
const TEXT_BYTES_MAX: usize = 1024;

impl Service {
    pub(super) async fn register_worker(
        &self,
        request: v1::RegisterWorker,
    ) -> Result<v1::RegisterReply, Status> {
        let model = request.model.as_ref().ok_or(Status::invalid_argument("model is missing"))?;
        let texts = [&request.name, &request.address, &model.name, &model.revision];
        if texts.iter().any(|t| t.len() > TEXT_BYTES_MAX) {
            return Err(Status::invalid_argument(format!(
                "name, address and model must have at most {TEXT_BYTES_MAX} bytes each"
            )));
        }
        let command = Command::RegisterWorker {
            name: request.name.clone(),
            address: request.address.clone(),
            incarnation: request.incarnation,
            model: model_from_wire(model),
            blocks_total: request.blocks_total,
        };
        // Without the key a worker could hash nothing, and the lease would run while it waits.
        if self.group.leads() && self.group.read(|m| m.hash_key().is_none()) {
            return Err(Status::unavailable("the cluster has no hash key yet; try again"));
        }
        let (_, outcome) = self.group.propose(command).await.map_err(refuse)?;
        let Outcome::Registered { worker, epoch } = outcome else {
            return Err(unexpected(&outcome));
        };
        self.leases.renew(worker, epoch, Instant::now());
        let hash_key = self
            .group
            .read(|m| m.hash_key())
            .ok_or_else(|| Status::unavailable("the cluster has no hash key yet; try again"))?;
        tracing::info!(%worker, %epoch, name = request.name, "worker registered");
        Ok(v1::RegisterReply {
            worker: worker.0,
            epoch: epoch.0,
            lease_ttl_ms: self.leases.ttl_ms(),
            hash_key: hash_key.0.to_vec().into(),
        })
    }

    pub(super) async fn publish_events(
        &self,
        request: v1::PublishRequest,
    ) -> Result<v1::PublishReply, Status> {
        let (worker, epoch) = (WorkerId(request.worker), Epoch(request.epoch));
        let frames = check_frames(&request)?;
        let reports = check_reports(&request)?;
        if !self.group.leads() {
            let leader = self.group.leader_address().filter(|_| !self.is_leader());
            return Err(refuse(ProposeError::NotLeader { leader }));
        }
        let next = self.living(worker, epoch)?;
        // Before the log is asked: the worker was heard now, however long a quorum takes.
        self.leases.renew(worker, epoch, Instant::now());
        let next_sequence = self.put_frames(frames).await?.unwrap_or(next);
        self.put_reports(worker, epoch, reports).await?;
        Ok(v1::PublishReply { next_sequence: next_sequence.0, lease_ttl_ms: self.leases.ttl_ms() })
    }

    /// The next frame expected of a life that goes on; an error that says so for any other.
    fn living(&self, worker: WorkerId, epoch: Epoch) -> Result<EventSequence, Status> {
        let known = self
            .group
            .read(|m| m.worker(worker).map(|w| (w.epoch == epoch && w.is_live(), w.next_sequence)));
        match known {
            Some((true, next)) => Ok(next),
            _ => Err(Status::failed_precondition(format!(
                "epoch {epoch} of worker {worker} is over; register again"
            ))),
        }
    }

    async fn put_frames(&self, frames: Vec<EventFrame>) -> Result<Option<EventSequence>, Status> {
        if frames.is_empty() {
            return Ok(None);
        }
        let commands = frames.into_iter().map(Command::Blocks).collect();
        let mut next = None;
        for (_, outcome) in self.group.propose_many(commands).await.map_err(refuse)? {
            match outcome {
                Outcome::Blocks { next_sequence, accepted } => {
                    if !accepted {
                        metrics::counter!("mainstay_control_frame_gaps_total").increment(1);
                    }
                    next = Some(next_sequence);
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(next)
    }

    /// Puts reports through the log, every one: what this member has applied so far may be behind reports that
    /// are on their way, so only the order of the log can tell which is news. A report on a pin that is gone is
    /// late, not wrong.
    async fn put_reports(
        &self,
        worker: WorkerId,
        epoch: Epoch,
        reports: Vec<(PinId, u32)>,
    ) -> Result<(), Status> {
        if reports.is_empty() {
            return Ok(());
        }
        let report = |(id, blocks_held)| Command::ReportPin { worker, epoch, id, blocks_held };
        let news = reports.into_iter().map(report).collect();
        for (_, outcome) in self.group.propose_many(news).await.map_err(refuse)? {
            if let Outcome::Refused { code, message } = outcome
                && code != mainstay_types::ErrorCode::NotFound
            {
                return Err(refused(code, message));
            }
        }
        Ok(())
    }

    pub(super) async fn leave_cluster(
        &self,
        request: v1::LeaveRequest,
    ) -> Result<v1::LeaveReply, Status> {
        let (worker, epoch) = (WorkerId(request.worker), Epoch(request.epoch));
        let command = Command::FenceWorker { worker, epoch, cause: FenceCause::Left };
        match self.group.propose(command).await.map_err(refuse)? {
            (_, Outcome::Fenced) => {
                tracing::info!(%worker, %epoch, "worker left");
                Ok(v1::LeaveReply {})
            }
            (_, other) => Err(unexpected(&other)),
        }
    }

    fn is_leader(&self) -> bool {
        self.group.status().role == mainstay_raft::Role::Leader
    }
}

fn check_frames(request: &v1::PublishRequest) -> Result<Vec<EventFrame>, Status> {
    if request.frames.len() > FRAMES_MAX {
        return Err(Status::invalid_argument(format!("more than {FRAMES_MAX} frames at a time")));
    }
    let mut blocks = 0_usize;
    let mut frames = Vec::with_capacity(request.frames.len());
    for frame in &request.frames {
        if frame.worker != request.worker || frame.epoch != request.epoch {
            return Err(Status::invalid_argument("a frame of another worker or epoch"));
        }
        if frame.events.len() > EVENTS_MAX {
            return Err(Status::invalid_argument(format!("more than {EVENTS_MAX} events a frame")));
        }
        let frame = frame_from_wire(frame)?;
        blocks += frame.events.iter().map(mainstay_types::BlockEvent::block_count).sum::<usize>();
        if blocks > BLOCKS_MAX {
            return Err(Status::invalid_argument(format!(
                "more than {BLOCKS_MAX} blocks at a time; send them in several messages"
            )));
        }
        frames.push(frame);
    }
    Ok(frames)
}

fn check_reports(request: &v1::PublishRequest) -> Result<Vec<(PinId, u32)>, Status> {
    if request.pins.len() > REPORTS_MAX {
        return Err(Status::invalid_argument(format!("more than {REPORTS_MAX} pins at a time")));
    }
    request
        .pins
        .iter()
        .map(|pin| Ok((PinId(u128_from_wire(&pin.id, "id")?), pin.blocks_held)))
        .collect()
}
