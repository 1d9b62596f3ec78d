//! The workers that the cluster knows, and the epochs of their caches.
//!
//! A name is a worker for as long as it is remembered; each registration with a new incarnation begins a new
//! epoch, so that whatever a former life still sends can be told apart. When the table is full, the worker that
//! was fenced longest ago is forgotten: pods with random names must not fill it for ever.

use std::collections::BTreeMap;

use mainstay_types::{
    CutSource, Epoch, ErrorCode, EventSequence, FenceCause, LogIndex, ModelSpec, Region,
    StreamMark, WorkerId,
};

use crate::outcome::Refusal;

pub(crate) const NAME_BYTES_MAX: usize = 128;
pub(crate) const ADDRESS_BYTES_MAX: usize = 256;
pub(crate) const MODEL_BYTES_MAX: usize = 256;

/// Whether a worker's epoch goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// Its frames and reports are taken.
    Live,
    /// Its epoch is over.
    Fenced(FenceCause),
}

impl WorkerState {
    /// The name in JSON and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Fenced(FenceCause::LeaseExpired) => "lease_expired",
            Self::Fenced(FenceCause::Left) => "left",
        }
    }
}

/// A worker as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Never used again for another name.
    pub id: WorkerId,
    /// Unique among those remembered.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// The current or last life of its cache.
    pub epoch: Epoch,
    /// What that life's registration brought along.
    pub incarnation: u64,
    /// What it serves.
    pub model: ModelSpec,
    /// Blocks that its device tier can hold.
    pub blocks_total: u64,
    /// Whether the epoch goes on.
    pub state: WorkerState,
    /// The next frame that is expected of this epoch, where frames are entries.
    pub next_sequence: EventSequence,
    /// Where its stream stood at the last cut that named it.
    pub cut: Option<StreamMark>,
    /// When it last registered or was fenced.
    pub changed_index: LogIndex,
    /// Where it is.
    pub region: Region,
}

impl Worker {
    /// Whether its epoch goes on.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state == WorkerState::Live
    }
}

/// A registration, taken apart.
pub(crate) struct Registration<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: &'a str,
    pub(crate) incarnation: u64,
    pub(crate) model: &'a ModelSpec,
    pub(crate) blocks_total: u64,
    pub(crate) region: &'a Region,
}

/// What a registration came to.
pub(crate) struct Registered {
    pub(crate) worker: WorkerId,
    pub(crate) epoch: Epoch,
    /// A former life ended with it: its blocks and pins must go.
    pub(crate) fenced: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Workers {
    by_id: BTreeMap<WorkerId, Worker>,
    by_name: BTreeMap<String, WorkerId>,
    /// How many workers live in each region that has any.
    live: BTreeMap<Region, u32>,
    /// The last id that was given out; 0 before the first.
    last_id: u32,
}

impl Workers {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.by_id.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn last_id(&self) -> u32 {
        self.last_id
    }

    pub(crate) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.by_id.get(&id)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Worker> {
        self.by_name.get(name).and_then(|id| self.by_id.get(id))
    }

    /// Rebuilds the table from an image; the caller has checked that ids and names are distinct.
    pub(crate) fn restore(last_id: u32, workers: Vec<Worker>) -> Self {
        let by_name = workers.iter().map(|w| (w.name.clone(), w.id)).collect();
        let mut live = BTreeMap::new();
        for worker in workers.iter().filter(|w| w.is_live()) {
            *live.entry(worker.region.clone()).or_insert(0) += 1;
        }
        Self { by_id: workers.into_iter().map(|w| (w.id, w)).collect(), by_name, live, last_id }
    }

    /// Regions with live workers, by name.
    pub(crate) fn live_regions(&self) -> impl Iterator<Item = &Region> {
        self.live.keys()
    }

    pub(crate) fn live_region_count(&self) -> usize {
        self.live.len()
    }

    fn enter(&mut self, region: &Region) {
        *self.live.entry(region.clone()).or_insert(0) += 1;
    }

    fn leave(&mut self, region: &Region) {
        if let Some(count) = self.live.get_mut(region) {
            *count -= 1;
            if *count == 0 {
                self.live.remove(region);
            }
        }
    }

    pub(crate) fn register(
        &mut self,
        index: LogIndex,
        workers_max: u32,
        registration: &Registration<'_>,
    ) -> Result<Registered, Refusal> {
        check_registration(registration)?;
        match self.by_name.get(registration.name).copied() {
            Some(id) => self.register_again(index, id, registration),
            None => self.register_first(index, workers_max, registration),
        }
    }

    fn register_again(
        &mut self,
        index: LogIndex,
        id: WorkerId,
        registration: &Registration<'_>,
    ) -> Result<Registered, Refusal> {
        let Some(worker) = self.by_id.get_mut(&id) else {
            return Err(Refusal::new(ErrorCode::Internal, "a name without its worker"));
        };
        if worker.incarnation == registration.incarnation {
            if worker.is_live() {
                return Ok(Registered { worker: id, epoch: worker.epoch, fenced: false });
            }
            // A retry that comes after the fence must not bring the fenced life back.
            return Err(Refusal::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "epoch {} of worker {} was fenced; register with a new incarnation",
                    worker.epoch, worker.name
                ),
            ));
        }
        let next = worker.epoch.0.checked_add(1).map(Epoch);
        let epoch =
            next.ok_or_else(|| Refusal::new(ErrorCode::ResourceExhausted, "epochs used up"))?;
        let former = core::mem::replace(worker, new_worker(index, id, epoch, registration));
        if former.is_live() {
            self.leave(&former.region);
        }
        self.enter(registration.region);
        Ok(Registered { worker: id, epoch, fenced: true })
    }

    fn register_first(
        &mut self,
        index: LogIndex,
        workers_max: u32,
        registration: &Registration<'_>,
    ) -> Result<Registered, Refusal> {
        let next = self.last_id.checked_add(1);
        let id =
            next.ok_or_else(|| Refusal::new(ErrorCode::ResourceExhausted, "worker ids used up"))?;
        if self.by_id.len() >= workers_max as usize {
            self.forget_longest_fenced(workers_max)?;
        }
        self.last_id = id;
        let (id, epoch) = (WorkerId(id), Epoch(1));
        self.by_id.insert(id, new_worker(index, id, epoch, registration));
        self.by_name.insert(registration.name.to_owned(), id);
        self.enter(registration.region);
        Ok(Registered { worker: id, epoch, fenced: false })
    }

    fn forget_longest_fenced(&mut self, workers_max: u32) -> Result<(), Refusal> {
        let fenced = self.by_id.values().filter(|w| !w.is_live());
        let oldest = fenced.min_by_key(|w| (w.changed_index, w.id)).map(|w| w.id);
        let Some(worker) = oldest.and_then(|id| self.by_id.remove(&id)) else {
            return Err(Refusal::new(
                ErrorCode::ResourceExhausted,
                format!("{workers_max} workers live already; raise the limit on workers"),
            ));
        };
        self.by_name.remove(&worker.name);
        Ok(())
    }

    /// Ends an epoch; answers whether it went on until now.
    pub(crate) fn fence(
        &mut self,
        index: LogIndex,
        id: WorkerId,
        epoch: Epoch,
        cause: FenceCause,
    ) -> Result<bool, Refusal> {
        let Some(worker) = self.by_id.get_mut(&id) else {
            return Err(Refusal::new(ErrorCode::NotFound, format!("no worker {id}")));
        };
        if epoch > worker.epoch {
            return Err(Refusal::new(
                ErrorCode::FailedPrecondition,
                format!("worker {} is in epoch {}, not yet in {epoch}", worker.name, worker.epoch),
            ));
        }
        let ends = epoch == worker.epoch && worker.is_live();
        if ends {
            worker.state = WorkerState::Fenced(cause);
            worker.changed_index = index;
            let region = worker.region.clone();
            self.leave(&region);
        }
        Ok(ends)
    }

    /// Notes where streams stand. A former epoch, or a leader that was behind the last one, moves nothing back.
    pub(crate) fn cut(&mut self, sources: &[CutSource]) {
        for source in sources {
            let Ok(worker) = self.live(source.worker, source.epoch) else { continue };
            if worker.cut.is_none_or(|known| known.sequence < source.mark.sequence) {
                worker.cut = Some(source.mark);
            }
        }
    }

    /// The worker, if `epoch` is its living one. All that a former life sends ends here.
    pub(crate) fn live(&mut self, id: WorkerId, epoch: Epoch) -> Result<&mut Worker, Refusal> {
        let refuse = |message| Err(Refusal::new(ErrorCode::FailedPrecondition, message));
        let Some(worker) = self.by_id.get_mut(&id) else {
            return refuse(format!("no worker {id}; register first"));
        };
        if worker.epoch != epoch {
            let (name, now) = (&worker.name, worker.epoch);
            return refuse(format!("worker {name} is in epoch {now}, not {epoch}; register again"));
        }
        if !worker.is_live() {
            let name = &worker.name;
            return refuse(format!("epoch {epoch} of worker {name} was fenced; register again"));
        }
        Ok(worker)
    }
}

fn new_worker(
    index: LogIndex,
    id: WorkerId,
    epoch: Epoch,
    registration: &Registration<'_>,
) -> Worker {
    Worker {
        id,
        name: registration.name.to_owned(),
        address: registration.address.to_owned(),
        epoch,
        incarnation: registration.incarnation,
        model: registration.model.clone(),
        blocks_total: registration.blocks_total,
        state: WorkerState::Live,
        next_sequence: EventSequence(1),
        cut: None,
        changed_index: index,
        region: registration.region.clone(),
    }
}

/// Whether a text from outside may be kept: short enough to bound memory, printable enough for tables.
pub(crate) fn text_is_fine(text: &str, bytes_min: usize, bytes_max: usize) -> bool {
    (bytes_min..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn check_registration(registration: &Registration<'_>) -> Result<(), Refusal> {
    let model = registration.model;
    for (what, text, bytes_min, bytes_max) in [
        ("worker name", registration.name, 1, NAME_BYTES_MAX),
        ("worker address", registration.address, 1, ADDRESS_BYTES_MAX),
        ("model name", model.name.as_str(), 1, MODEL_BYTES_MAX),
        ("model revision", model.revision.as_str(), 0, MODEL_BYTES_MAX),
    ] {
        if !text_is_fine(text, bytes_min, bytes_max) {
            return Err(Refusal::new(
                ErrorCode::InvalidArgument,
                format!(
                    "{what}: must be {bytes_min} to {bytes_max} bytes without control characters"
                ),
            ));
        }
    }
    if model.block_tokens == 0 {
        return Err(Refusal::new(
            ErrorCode::InvalidArgument,
            "block size: must be at least 1 token",
        ));
    }
    Ok(())
}
