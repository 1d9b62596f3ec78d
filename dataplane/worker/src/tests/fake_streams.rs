//! The index of one member, fed by streams: frames in their order, snapshots in parts, and a look at the difference
//! after each.

use std::collections::HashMap;

use mainstay_index::BlockIndex;
use mainstay_proto::convert::{event_from_wire, frame_from_wire, mark_from_wire};
use mainstay_proto::v1;
use mainstay_state::Machine;
use mainstay_types::{BlockEvent, Epoch, StreamMark, WorkerId};
use tonic::Status;

/// Where a worker's stream stands at a member.
struct Stream {
    epoch: Epoch,
    next: u64,
    parts: Option<Parts>,
}

/// A snapshot that is coming in.
struct Parts {
    mark: StreamMark,
    next: u32,
    events: Vec<BlockEvent>,
}

pub(super) struct Streams {
    pub(super) index: BlockIndex,
    at: HashMap<WorkerId, Stream>,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self { index: BlockIndex::new(u64::MAX), at: HashMap::new() }
    }

    /// Drops what belongs to epochs that are over.
    pub(super) fn follow(&mut self, machine: &Machine) {
        let index = &mut self.index;
        self.at.retain(|worker, stream| {
            let known = machine.worker(*worker);
            let lives = known.is_some_and(|w| w.epoch == stream.epoch && w.is_live());
            if !lives {
                index.remove_worker(*worker);
            }
            lives
        });
    }

    pub(super) fn differs(&self, worker: WorkerId, digest: u64, blocks: u64) -> Option<String> {
        let here = (self.index.digest(worker), self.index.worker_block_count(worker));
        (here != (digest, blocks))
            .then(|| format!("the index has {here:?}, the worker says {:?}", (digest, blocks)))
    }

    /// Takes a frame; the answer is what differs then.
    pub(super) fn take_frame(
        &mut self,
        worker: WorkerId,
        frame: &v1::EventFrame,
    ) -> Option<String> {
        let stream = self.at.get_mut(&worker).filter(|stream| stream.next == frame.sequence)?;
        stream.next += 1;
        let events = frame_from_wire(frame).expect("well formed").events;
        self.index.apply_all(worker, &events);
        let differs = self.differs(worker, frame.digest, frame.blocks)?;
        Some(format!("frame {}: {differs}", frame.sequence))
    }

    pub(super) fn take_part(
        &mut self,
        worker: WorkerId,
        part: &v1::StreamSnapshot,
    ) -> Result<Option<StreamMark>, Status> {
        let mark = mark_from_wire(part.mark.as_ref())?;
        let stream = self.at.get_mut(&worker).expect("made by the caller");
        if part.part == 0 {
            stream.parts = Some(Parts { mark, next: 0, events: Vec::new() });
        }
        let Some(parts) = stream.parts.as_mut().filter(|p| p.mark == mark && p.next == part.part)
        else {
            stream.parts = None;
            stream.next = 0;
            return Ok(None);
        };
        parts.next += 1;
        for event in &part.events {
            parts.events.push(event_from_wire(event)?);
        }
        if !part.last {
            return Ok(None);
        }
        let events = stream.parts.take().expect("coming in").events;
        stream.next = mark.sequence.0 + 1;
        self.index.remove_worker(worker);
        self.index.apply_all(worker, &events);
        Ok(Some(mark))
    }

    /// Makes sure that the worker's stream is that of an epoch.
    pub(super) fn enter(&mut self, worker: WorkerId, epoch: Epoch) -> Result<(), Status> {
        match self.at.get(&worker).map(|stream| stream.epoch) {
            Some(known) if known == epoch => {}
            Some(known) if known > epoch => {
                return Err(Status::failed_precondition("that epoch is over"));
            }
            _ => {
                self.index.remove_worker(worker);
                self.at.insert(worker, Stream { epoch, next: 1, parts: None });
            }
        }
        Ok(())
    }

    pub(super) fn next_sequence(&self, worker: WorkerId) -> u64 {
        self.at[&worker].next
    }
}
