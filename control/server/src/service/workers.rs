//! What workers ask: to begin a life, to be heard, to say goodbye.
//!
//! Frames of block events go to every member, each of which takes them into its own index; or, in the plain form of
//! the index, through the leader into the log. A heartbeat without events writes nothing: the leader notes it in memory. A leader that a quorum has not
//! heard lately answers no heartbeat, so that a worker never trusts a lease that somebody else may end.

use std::time::Instant;

use mainstay_proto::convert::{frame_from_wire, model_from_wire, u128_from_wire};
use mainstay_proto::v1;
use mainstay_raft::ProposeError;
use mainstay_state::{Outcome, Taken};
use mainstay_types::{
    Command, Epoch, EventFrame, EventSequence, FenceCause, PinId, Region, WorkerId,
};
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
        let region = Region::or_local(&request.region).ok_or_else(|| {
            Status::invalid_argument(format!(
                "a region has 1 to {} of a-z A-Z 0-9 - _ .; set --region",
                Region::BYTES_MAX
            ))
        })?;
        let command = Command::RegisterWorker {
            region,
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
            plain_index: self.plain_index,
        })
    }

    pub(super) async fn publish_events(
        &self,
        request: v1::PublishRequest,
    ) -> Result<v1::PublishReply, Status> {
        check_sizes(&request)?;
        if !self.plain_index && (!request.frames.is_empty() || request.snapshot.is_some()) {
            return self.take_stream(request);
        }
        let (worker, epoch) = (WorkerId(request.worker), Epoch(request.epoch));
        if request.snapshot.is_some() {
            return Err(Status::invalid_argument(
                "frames are entries here; there are no snapshots",
            ));
        }
        let frames: Vec<EventFrame> =
            request.frames.iter().map(frame_from_wire).collect::<Result<_, _>>()?;
        let reports = check_reports(&request)?;
        if !self.group.leads() {
            let leader = self.group.leader_address().filter(|_| !self.is_leader());
            return Err(refuse(ProposeError::NotLeader { leader }));
        }
        let next = self.living(worker, epoch)?;
        // Before the log is asked: the worker was heard now, however long a quorum takes.
        self.leases.renew(worker, epoch, Instant::now());
        let next = self.put_frames(frames).await?.unwrap_or(next);
        self.put_reports(worker, epoch, reports).await?;
        Ok(self.published(next))
    }

    fn published(&self, next: EventSequence) -> v1::PublishReply {
        v1::PublishReply {
            next_sequence: next.0,
            lease_ttl_ms: self.leases.ttl_ms(),
            leads: self.group.leads(),
            members: self.group.status().members.into_iter().map(|m| m.address).collect(),
        }
    }

    /// Takes frames or a part of a snapshot into this member's index. Any member does, whoever leads.
    fn take_stream(&self, request: v1::PublishRequest) -> Result<v1::PublishReply, Status> {
        let (worker, epoch) = (WorkerId(request.worker), Epoch(request.epoch));
        if !request.pins.is_empty() || !request.frames.is_empty() && request.snapshot.is_some() {
            return Err(Status::invalid_argument(
                "send frames, a part of a snapshot, or reports on pins, one at a time",
            ));
        }
        let streams = self.group.streams();
        let taken = match request.snapshot {
            Some(part) => Some(streams.take_snapshot(part)?),
            None => streams.take_frames(request.frames)?,
        };
        match taken {
            Some(Taken::EpochOver) => Err(over(worker, epoch)),
            Some(Taken::EpochUnknown) | None => {
                self.living(worker, epoch)?;
                Err(Status::unavailable("this member does not know the epoch yet; try again"))
            }
            Some(taken) => {
                if matches!(taken, Taken::Gap { .. } | Taken::SnapshotNeeded) {
                    metrics::counter!("mainstay_control_frame_gaps_total").increment(1);
                }
                if self.group.leads() {
                    self.leases.renew(worker, epoch, Instant::now());
                }
                Ok(self.published(taken.next_sequence().unwrap_or(EventSequence(0))))
            }
        }
    }

    /// The next frame expected of a life that goes on; an error that says so for any other.
    fn living(&self, worker: WorkerId, epoch: Epoch) -> Result<EventSequence, Status> {
        let known = self
            .group
            .read(|m| m.worker(worker).map(|w| (w.epoch == epoch && w.is_live(), w.next_sequence)));
        match known {
            Some((true, next)) if self.plain_index => Ok(next),
            Some((true, _)) => {
                Ok(self.group.streams().position(worker, epoch).unwrap_or(EventSequence(1)))
            }
            // Another member may have applied what this one has yet to hear of.
            None if !self.group.leads() => {
                Err(Status::unavailable("this member does not know the worker yet; try again"))
            }
            _ => Err(over(worker, epoch)),
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

fn over(worker: WorkerId, epoch: Epoch) -> Status {
    Status::failed_precondition(format!("epoch {epoch} of worker {worker} is over; register again"))
}

/// Whose frames they are, and that they are not too many.
fn check_sizes(request: &v1::PublishRequest) -> Result<(), Status> {
    if request.frames.len() > FRAMES_MAX {
        return Err(Status::invalid_argument(format!("more than {FRAMES_MAX} frames at a time")));
    }
    let mut blocks = 0_usize;
    let frames = request.frames.iter().map(|f| (f.worker, f.epoch, &f.events));
    let parts = request.snapshot.iter().map(|s| (s.worker, s.epoch, &s.events));
    for (worker, epoch, events) in frames.chain(parts) {
        if worker != request.worker || epoch != request.epoch {
            return Err(Status::invalid_argument("a frame of another worker or epoch"));
        }
        if events.len() > EVENTS_MAX {
            return Err(Status::invalid_argument(format!("more than {EVENTS_MAX} events a frame")));
        }
        blocks += events.iter().map(named_blocks).sum::<usize>();
        if blocks > BLOCKS_MAX {
            return Err(Status::invalid_argument(format!(
                "more than {BLOCKS_MAX} blocks at a time; send them in several messages"
            )));
        }
    }
    Ok(())
}

/// How many hashes an event brings along.
fn named_blocks(event: &v1::BlockEvent) -> usize {
    use v1::block_event::Event;
    match &event.event {
        Some(Event::Stored(stored)) => stored.blocks.len() / 16,
        Some(Event::Removed(removed)) => removed.blocks.len() / 16,
        Some(Event::Truncated(_) | Event::Cleared(_)) | None => 0,
    }
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
