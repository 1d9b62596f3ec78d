//! A control plane of one member, without a log on disk and without consensus: the state machine behind gRPC.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use mainstay_proto::convert::{frame_from_wire, model_from_wire, proposal_to_wire, u128_from_wire};
use mainstay_proto::v1;
use mainstay_proto::v1::control_server::{Control, ControlServer};
use mainstay_state::{Limits, Machine, Outcome};
use mainstay_types::{
    Command, Epoch, ErrorCode, FenceCause, LogIndex, NamespaceId, PinId, PinRequest, PinState,
    Proposal, SequenceHash, Stamp, TenantId, Tenure, WorkerId,
};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

pub(crate) const HASH_KEY: [u8; 16] = [9; 16];
const LEASE_TTL_MS: u64 = 1_000;

struct Inner {
    machine: Mutex<Machine>,
    entries: broadcast::Sender<v1::Entry>,
    started: Instant,
    /// No call is answered.
    away: AtomicBool,
    /// So many publishes are carried out and their answers lost.
    answers_to_lose: AtomicU32,
    /// So many publishes are lost on the way.
    publishes_to_lose: AtomicU32,
    publishes: AtomicU32,
    frames: Mutex<Vec<v1::EventFrame>>,
    reports: Mutex<Vec<(PinId, u32)>>,
    leaves: Mutex<Vec<u64>>,
    hash_key: Mutex<[u8; 16]>,
}

/// The member, and what a test may do to it.
pub(crate) struct FakeControl {
    pub(crate) address: String,
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FakeControl {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl FakeControl {
    pub(crate) async fn start() -> Self {
        let inner = Arc::new(Inner {
            machine: Mutex::new(Machine::new(Limits::standard())),
            entries: broadcast::channel(65_536).0,
            started: Instant::now(),
            away: AtomicBool::new(false),
            answers_to_lose: AtomicU32::new(0),
            publishes_to_lose: AtomicU32::new(0),
            publishes: AtomicU32::new(0),
            frames: Mutex::default(),
            reports: Mutex::default(),
            leaves: Mutex::default(),
            hash_key: Mutex::new(HASH_KEY),
        });
        inner.apply(Command::Bootstrap { hash_key: HASH_KEY });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = ControlServer::from_arc(Arc::clone(&inner));
        let server = tonic::transport::Server::builder().add_service(service);
        let served = tokio::spawn(async move {
            server.serve_with_incoming(incoming).await.expect("serves");
        });
        let ticking = Arc::clone(&inner);
        let ticks = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                ticking.apply(Command::Tick);
            }
        });
        Self { address, inner, tasks: vec![served, ticks] }
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.inner.machine.lock())
    }

    /// The blocks that the index says a worker holds, of those up to `most`.
    pub(crate) fn indexed(&self, most: u128) -> Vec<u128> {
        let machine = self.inner.machine.lock();
        let holds = |block: &u128| !machine.index().holders(SequenceHash(*block)).is_empty();
        (1..=most).filter(holds).collect()
    }

    pub(crate) fn go_away(&self, away: bool) {
        self.inner.away.store(away, Ordering::Release);
    }

    pub(crate) fn lose_answers(&self, count: u32) {
        self.inner.answers_to_lose.store(count, Ordering::Release);
    }

    pub(crate) fn lose_publishes(&self, count: u32) {
        self.inner.publishes_to_lose.store(count, Ordering::Release);
    }

    pub(crate) fn fence(&self, worker: WorkerId, epoch: Epoch) {
        self.inner.apply(Command::FenceWorker { worker, epoch, cause: FenceCause::LeaseExpired });
    }

    pub(crate) fn set_hash_key(&self, key: [u8; 16]) {
        *self.inner.hash_key.lock() = key;
    }

    pub(crate) fn publishes(&self) -> u32 {
        self.inner.publishes.load(Ordering::Acquire)
    }

    /// The numbers of all frames that arrived in an epoch, in order.
    pub(crate) fn sequences(&self, epoch: u64) -> Vec<u64> {
        let frames = self.inner.frames.lock();
        frames.iter().filter(|f| f.epoch == epoch).map(|f| f.sequence).collect()
    }

    pub(crate) fn reports(&self) -> Vec<(PinId, u32)> {
        self.inner.reports.lock().clone()
    }

    pub(crate) fn leaves(&self) -> Vec<u64> {
        self.inner.leaves.lock().clone()
    }

    pub(crate) fn put_pin(&self, id: u128, blocks: &[u128], ttl_ms: u64) {
        let outcome = self.inner.apply(Command::PutPin(PinRequest {
            id: PinId(id),
            tenant: TenantId::new("acme").expect("valid"),
            namespace: NamespaceId(super::fake_engine::SPACE),
            owner: None,
            blocks: blocks.iter().copied().map(SequenceHash).collect(),
            prefix_tokens: 4 * blocks.len() as u32,
            ttl_ms,
            priority: 50,
            copies_min: 1,
        }));
        assert!(matches!(outcome, Outcome::Pin { .. }), "{outcome:?}");
    }

    pub(crate) fn release_pin(&self, id: u128) {
        self.inner.apply(Command::ReleasePin { id: PinId(id) });
    }

    pub(crate) fn extend_pin(&self, id: u128, ttl_ms: u64) {
        self.inner.apply(Command::ExtendPin { id: PinId(id), ttl_ms });
    }

    pub(crate) fn pin_state(&self, id: u128) -> Option<PinState> {
        self.look(|machine| machine.pin(PinId(id)).map(|pin| pin.state))
    }
}

impl Inner {
    fn apply(&self, command: Command) -> Outcome {
        let mono_ms = self.started.elapsed().as_millis() as u64;
        let tenure = Tenure { term: 1, node: 1, boot: 1 };
        let proposal =
            Proposal { stamp: Stamp { tenure, mono_ms, wall_ms: 1_000_000 + mono_ms }, command };
        let mut machine = self.machine.lock();
        let index = machine.applied().next();
        let outcome = machine.apply(index, &proposal);
        if !matches!(proposal.command, Command::Blocks(_)) {
            let proposal = Some(proposal_to_wire(&proposal));
            // Nobody may be watching.
            let _ = self.entries.send(v1::Entry { log_index: index.0, proposal });
        }
        outcome
    }

    fn here(&self) -> Result<(), Status> {
        if self.away.load(Ordering::Acquire) { Err(Status::unavailable("away")) } else { Ok(()) }
    }

    fn carried_out(&self, command: Command) -> Result<Outcome, Status> {
        match self.apply(command) {
            Outcome::Refused { code, message } => Err(status(code, message)),
            outcome => Ok(outcome),
        }
    }
}

fn status(code: ErrorCode, message: String) -> Status {
    Status::new(tonic::Code::from_i32(code.grpc()), message)
}

fn countdown(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).is_ok()
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Control for Inner {
    async fn register(
        &self,
        request: Request<v1::RegisterWorker>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        self.here()?;
        let request = request.into_inner();
        let model = request.model.as_ref().ok_or_else(|| Status::invalid_argument("model"))?;
        let outcome = self.carried_out(Command::RegisterWorker {
            name: request.name,
            address: request.address,
            incarnation: request.incarnation,
            model: model_from_wire(model),
            blocks_total: request.blocks_total,
        })?;
        let Outcome::Registered { worker, epoch } = outcome else {
            return Err(Status::internal("another outcome"));
        };
        let hash_key = Bytes::copy_from_slice(&*self.hash_key.lock());
        let (worker, epoch) = (worker.0, epoch.0);
        Ok(Response::new(v1::RegisterReply { worker, epoch, lease_ttl_ms: LEASE_TTL_MS, hash_key }))
    }

    async fn publish(
        &self,
        request: Request<v1::PublishRequest>,
    ) -> Result<Response<v1::PublishReply>, Status> {
        self.here()?;
        if countdown(&self.publishes_to_lose) {
            return Err(Status::resource_exhausted("lost on the way"));
        }
        let request = request.into_inner();
        self.publishes.fetch_add(1, Ordering::AcqRel);
        let (worker, epoch) = (WorkerId(request.worker), Epoch(request.epoch));
        self.frames.lock().extend(request.frames.iter().cloned());
        for frame in &request.frames {
            self.carried_out(Command::Blocks(frame_from_wire(frame)?))?;
        }
        for report in &request.pins {
            let id = PinId(u128_from_wire(&report.id, "id")?);
            self.reports.lock().push((id, report.blocks_held));
            self.apply(Command::ReportPin { worker, epoch, id, blocks_held: report.blocks_held });
        }
        let next_sequence = {
            let machine = self.machine.lock();
            let known = machine.worker(worker).filter(|w| w.epoch == epoch && w.is_live());
            known.map(|w| w.next_sequence.0)
        };
        let next_sequence =
            next_sequence.ok_or_else(|| Status::failed_precondition("that epoch is over"))?;
        if countdown(&self.answers_to_lose) {
            return Err(Status::resource_exhausted("the answer was lost"));
        }
        Ok(Response::new(v1::PublishReply { next_sequence, lease_ttl_ms: LEASE_TTL_MS }))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveReply>, Status> {
        self.here()?;
        let request = request.into_inner();
        self.leaves.lock().push(request.epoch);
        self.carried_out(Command::FenceWorker {
            worker: WorkerId(request.worker),
            epoch: Epoch(request.epoch),
            cause: FenceCause::Left,
        })?;
        Ok(Response::new(v1::LeaveReply {}))
    }

    type WatchStream = WatchStream;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        self.here()?;
        assert!(request.into_inner().without_blocks, "a worker needs no blocks of others");
        let machine = self.machine.lock();
        let later = tokio_stream::wrappers::BroadcastStream::new(self.entries.subscribe());
        let LogIndex(log_index) = machine.applied();
        let state = machine.encode_without_blocks().into();
        let version = u32::from(mainstay_state::IMAGE_VERSION);
        let image = v1::StateImage { log_index, state, version };
        let event = |event| Ok(v1::WatchEvent { event: Some(event) });
        let first =
            futures::stream::once(async move { event(v1::watch_event::Event::Image(image)) });
        let later = later.map(move |entry| match entry {
            Ok(entry) => event(v1::watch_event::Event::Entry(entry)),
            Err(_) => Err(Status::data_loss("lagged")),
        });
        Ok(Response::new(Box::pin(first.chain(later))))
    }

    async fn create_pin(&self, _: Request<v1::PutPin>) -> Result<Response<v1::PinReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn extend_pin(
        &self,
        _: Request<v1::ExtendPin>,
    ) -> Result<Response<v1::PinReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn release_pin(
        &self,
        _: Request<v1::ReleasePin>,
    ) -> Result<Response<v1::PinReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn get_pin(
        &self,
        _: Request<v1::GetPinRequest>,
    ) -> Result<Response<v1::PinReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn list_pins(
        &self,
        _: Request<v1::ListPinsRequest>,
    ) -> Result<Response<v1::ListPinsReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn add_member(
        &self,
        _: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn remove_member(
        &self,
        _: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }
}
