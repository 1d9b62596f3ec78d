//! A control plane without a log on disk and without consensus: one state machine behind gRPC, and as many members
//! as a test wants, each with an index of its own that is fed by streams.
//!
//! After every frame and every snapshot a member compares its index with what the worker says that it holds; any
//! difference is a fault, which tests look for at their end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use mainstay_index::BlockIndex;
use mainstay_proto::client::LEADER_METADATA;
use mainstay_proto::convert::{frame_from_wire, model_from_wire, proposal_to_wire, u128_from_wire};
use mainstay_proto::v1;
use mainstay_proto::v1::control_server::{Control, ControlServer};
use mainstay_state::{Limits, Machine, Outcome};
use mainstay_types::{
    Command, Epoch, ErrorCode, FenceCause, KeptTokens, LogIndex, NamespaceId, PinId, PinRequest,
    PinScope, PinState, Proposal, Region, SequenceHash, Stamp, TenantId, Tenure, WorkerId,
};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use super::fake_streams::Streams;

pub(crate) const HASH_KEY: [u8; 16] = [9; 16];
const LEASE_TTL_MS: u64 = 1_000;

/// What all members share: the log, as if it took no time.
struct Cluster {
    machine: Mutex<Machine>,
    entries: broadcast::Sender<v1::Entry>,
    started: Instant,
    plain: bool,
    leader: AtomicUsize,
    /// In the order of the members; what answers name.
    addresses: Mutex<Vec<String>>,
    members: Mutex<Vec<Arc<Member>>>,
    reports: Mutex<Vec<(PinId, u32)>>,
    leaves: Mutex<Vec<u64>>,
    hash_key: Mutex<[u8; 16]>,
    fetches: AtomicU32,
    /// Differences between what a worker says that it holds and what its frames gave.
    faults: Mutex<Vec<String>>,
}

struct Member {
    cluster: Arc<Cluster>,
    number: usize,
    /// No call is answered.
    away: AtomicBool,
    /// It has not heard of the last epochs yet.
    behind: AtomicBool,
    /// So many publishes are carried out and their answers lost.
    answers_to_lose: AtomicU32,
    /// So many publishes are lost on the way.
    publishes_to_lose: AtomicU32,
    publishes: AtomicU32,
    snapshots: AtomicU32,
    parts: AtomicU32,
    frames: Mutex<Vec<v1::EventFrame>>,
    streams: Mutex<Streams>,
}

/// The members, and what a test may do to them.
pub(crate) struct FakeControl {
    /// Of the first member.
    pub(crate) address: String,
    cluster: Arc<Cluster>,
    members: Vec<Arc<Member>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FakeControl {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.cluster.members.lock().clear();
    }
}

impl FakeControl {
    pub(crate) async fn start() -> Self {
        Self::start_with(1, false).await
    }

    pub(crate) async fn start_with(members: usize, plain: bool) -> Self {
        let cluster = Arc::new(Cluster {
            machine: Mutex::new(Machine::new(Limits::standard())),
            entries: broadcast::channel(65_536).0,
            started: Instant::now(),
            plain,
            leader: AtomicUsize::new(0),
            addresses: Mutex::default(),
            members: Mutex::default(),
            reports: Mutex::default(),
            leaves: Mutex::default(),
            hash_key: Mutex::new(HASH_KEY),
            fetches: AtomicU32::new(0),
            faults: Mutex::default(),
        });
        cluster.apply(Command::RaiseVersion { version: mainstay_state::VERSION_NEWEST });
        cluster.apply(Command::Bootstrap { hash_key: HASH_KEY });
        let mut tasks = Vec::new();
        for number in 0..members {
            let member = Arc::new(Member::new(&cluster, number));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            cluster.addresses.lock().push(listener.local_addr().expect("bound").to_string());
            cluster.members.lock().push(Arc::clone(&member));
            let incoming =
                tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            let server =
                tonic::transport::Server::builder().add_service(ControlServer::from_arc(member));
            tasks.push(tokio::spawn(async move {
                server.serve_with_incoming(incoming).await.expect("serves");
            }));
        }
        let ticking = Arc::clone(&cluster);
        tasks.push(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                ticking.apply(Command::Tick);
            }
        }));
        let members = cluster.members.lock().clone();
        let address = cluster.addresses.lock()[0].clone();
        Self { address, cluster, members, tasks }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.cluster.addresses.lock().clone()
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.cluster.machine.lock())
    }

    /// The blocks that the first member's index says a worker holds, of those up to `most`.
    pub(crate) fn indexed(&self, most: u128) -> Vec<u128> {
        self.indexed_at(0, most)
    }

    /// The same of any member.
    pub(crate) fn indexed_at(&self, member: usize, most: u128) -> Vec<u128> {
        let held = |index: &BlockIndex| -> Vec<u128> {
            (1..=most).filter(|block| !index.holders(SequenceHash(*block)).is_empty()).collect()
        };
        if self.cluster.plain {
            return self.look(|machine| held(machine.index()));
        }
        held(&self.members[member].streams.lock().index)
    }

    /// How many of these blocks the first member's index says that a worker holds.
    pub(crate) fn held_of(&self, worker: WorkerId, blocks: &[SequenceHash]) -> u64 {
        self.members[0].streams.lock().index.held_of(worker, blocks)
    }

    /// What was found to differ so far.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.cluster.faults.lock().clone()
    }

    pub(crate) fn go_away(&self, away: bool) {
        (0..self.members.len()).for_each(|member| self.member_away(member, away));
    }

    pub(crate) fn member_away(&self, member: usize, away: bool) {
        self.members[member].away.store(away, Ordering::Release);
    }

    pub(crate) fn member_behind(&self, member: usize, behind: bool) {
        self.members[member].behind.store(behind, Ordering::Release);
    }

    /// A member starts again: it has no blocks, and knows of none.
    pub(crate) fn member_forgets(&self, member: usize) {
        *self.members[member].streams.lock() = Streams::new();
    }

    pub(crate) fn lead(&self, member: usize) {
        self.cluster.leader.store(member, Ordering::Release);
    }

    /// Answers name these members from now on.
    pub(crate) fn name_members(&self, addresses: Vec<String>) {
        *self.cluster.addresses.lock() = addresses;
    }

    pub(crate) fn lose_answers(&self, count: u32) {
        self.members[0].answers_to_lose.store(count, Ordering::Release);
    }

    pub(crate) fn lose_publishes(&self, count: u32) {
        self.members[0].publishes_to_lose.store(count, Ordering::Release);
    }

    pub(crate) fn fence(&self, worker: WorkerId, epoch: Epoch) {
        self.cluster.apply(Command::FenceWorker { worker, epoch, cause: FenceCause::LeaseExpired });
    }

    pub(crate) fn set_hash_key(&self, key: [u8; 16]) {
        *self.cluster.hash_key.lock() = key;
    }

    pub(crate) fn publishes(&self) -> u32 {
        self.members.iter().map(|member| member.publishes.load(Ordering::Acquire)).sum()
    }

    /// Whole snapshots that a member took.
    pub(crate) fn snapshots(&self, member: usize) -> u32 {
        self.members[member].snapshots.load(Ordering::Acquire)
    }

    /// Parts of snapshots that a member was sent.
    pub(crate) fn parts(&self, member: usize) -> u32 {
        self.members[member].parts.load(Ordering::Acquire)
    }

    /// The numbers of all frames that arrived at the first member in an epoch, in order.
    pub(crate) fn sequences(&self, epoch: u64) -> Vec<u64> {
        self.frames(0).iter().filter(|f| f.epoch == epoch).map(|f| f.sequence).collect()
    }

    /// All frames that arrived at a member.
    pub(crate) fn frames(&self, member: usize) -> Vec<v1::EventFrame> {
        self.members[member].frames.lock().clone()
    }

    pub(crate) fn reports(&self) -> Vec<(PinId, u32)> {
        self.cluster.reports.lock().clone()
    }

    pub(crate) fn leaves(&self) -> Vec<u64> {
        self.cluster.leaves.lock().clone()
    }

    pub(crate) fn put_pin(&self, id: u128, blocks: &[u128], ttl_ms: u64) {
        self.put_pin_in(id, NamespaceId(super::fake_engine::SPACE), blocks, ttl_ms);
    }

    /// A pin of blocks of any namespace.
    pub(crate) fn put_pin_in(
        &self,
        id: u128,
        namespace: NamespaceId,
        blocks: &[u128],
        ttl_ms: u64,
    ) {
        let outcome = self.cluster.apply(Command::PutPin(PinRequest {
            id: PinId(id),
            tenant: TenantId::new("acme").expect("valid"),
            namespace,
            owner: None,
            blocks: blocks.iter().copied().map(SequenceHash).collect(),
            prefix_tokens: 4 * blocks.len() as u32,
            ttl_ms,
            priority: 50,
            copies_min: 1,
            tokens: None,
            scope: PinScope::default(),
        }));
        assert!(matches!(outcome, Outcome::Pin { .. }), "{outcome:?}");
    }

    /// Pins blocks that can be computed from these tokens.
    pub(crate) fn put_kept_pin(&self, id: u128, blocks: &[u128], tokens: &[u32]) {
        self.put_copied_pin(id, blocks, tokens, 1);
    }

    /// The same, with so many copies.
    pub(crate) fn put_copied_pin(&self, id: u128, blocks: &[u128], tokens: &[u32], copies: u8) {
        let outcome = self.cluster.apply(Command::PutPin(PinRequest {
            id: PinId(id),
            tenant: TenantId::new("acme").expect("valid"),
            namespace: NamespaceId(super::fake_engine::SPACE),
            owner: None,
            blocks: blocks.iter().copied().map(SequenceHash).collect(),
            prefix_tokens: tokens.len() as u32,
            ttl_ms: 60_000,
            priority: 50,
            copies_min: copies.into(),
            scope: PinScope::default(),
            tokens: Some(KeptTokens::new("toy", "r1", tokens)),
        }));
        assert!(matches!(outcome, Outcome::Pin { .. }), "{outcome:?}");
    }

    /// An order of the keeper.
    pub(crate) fn order_pin(&self, id: u128, worker: WorkerId, epoch: Epoch) -> Outcome {
        self.cluster.apply(Command::OrderPin { id: PinId(id), worker, epoch })
    }

    /// How often tokens were asked for.
    pub(crate) fn fetches(&self) -> u32 {
        self.cluster.fetches.load(Ordering::Acquire)
    }

    pub(crate) fn release_pin(&self, id: u128) {
        self.cluster.apply(Command::ReleasePin { id: PinId(id) });
    }

    pub(crate) fn extend_pin(&self, id: u128, ttl_ms: u64) {
        self.cluster.apply(Command::ExtendPin { id: PinId(id), ttl_ms });
    }

    pub(crate) fn pin_state(&self, id: u128) -> Option<PinState> {
        self.look(|machine| machine.pin(PinId(id)).map(|pin| pin.state))
    }
}

impl Cluster {
    fn apply(&self, command: Command) -> Outcome {
        let mono_ms = self.started.elapsed().as_millis() as u64;
        let tenure = Tenure { term: 1, node: 1, boot: 1 };
        let proposal =
            Proposal { stamp: Stamp { tenure, mono_ms, wall_ms: 1_000_000 + mono_ms }, command };
        let mut machine = self.machine.lock();
        let index = machine.applied().next();
        let outcome = machine.apply(index, &proposal);
        if matches!(proposal.command, Command::FenceWorker { .. } | Command::RegisterWorker { .. })
        {
            for member in &*self.members.lock() {
                member.streams.lock().follow(&machine);
            }
        }
        if !matches!(proposal.command, Command::Blocks(_)) {
            let proposal = Some(proposal_to_wire(&proposal));
            // Nobody may be watching.
            let _ = self.entries.send(v1::Entry { log_index: index.0, proposal });
        }
        outcome
    }

    fn carried_out(&self, command: Command) -> Result<Outcome, Status> {
        match self.apply(command) {
            Outcome::Refused { code, message } => Err(status(code, message)),
            outcome => Ok(outcome),
        }
    }
}

impl Member {
    fn new(cluster: &Arc<Cluster>, number: usize) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            number,
            away: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            answers_to_lose: AtomicU32::new(0),
            publishes_to_lose: AtomicU32::new(0),
            publishes: AtomicU32::new(0),
            snapshots: AtomicU32::new(0),
            parts: AtomicU32::new(0),
            frames: Mutex::default(),
            streams: Mutex::new(Streams::new()),
        }
    }

    fn here(&self) -> Result<(), Status> {
        if self.away.load(Ordering::Acquire) { Err(Status::unavailable("away")) } else { Ok(()) }
    }

    fn is_leader(&self) -> bool {
        self.cluster.leader.load(Ordering::Acquire) == self.number
    }

    /// Refuses what only a leader takes.
    fn leads(&self) -> Result<(), Status> {
        self.here()?;
        if self.is_leader() {
            return Ok(());
        }
        let mut status = Status::unavailable("another member leads");
        let leader = self.cluster.leader.load(Ordering::Acquire);
        let address = self.cluster.addresses.lock().get(leader).cloned().unwrap_or_default();
        status.metadata_mut().insert(LEADER_METADATA, address.parse().expect("ascii"));
        Err(status)
    }

    /// Refuses epochs that are over, and puts off those that are to come.
    fn living(&self, worker: WorkerId, epoch: Epoch) -> Result<u64, Status> {
        let machine = self.cluster.machine.lock();
        let known = machine.worker(worker);
        if self.behind.load(Ordering::Acquire) || known.is_none_or(|w| w.epoch < epoch) {
            return Err(Status::unavailable("that epoch is not known yet"));
        }
        let known = known.filter(|w| w.epoch == epoch && w.is_live());
        let over = || Status::failed_precondition("that epoch is over");
        known.map(|w| w.next_sequence.0).ok_or_else(over)
    }

    fn take_plain(&self, request: &v1::PublishRequest) -> Result<(), Status> {
        if !request.frames.is_empty() {
            self.leads()?;
        }
        assert!(request.snapshot.is_none(), "the plain form has no snapshots");
        for frame in &request.frames {
            self.frames.lock().push(frame.clone());
            self.cluster.carried_out(Command::Blocks(frame_from_wire(frame)?))?;
            let machine = self.cluster.machine.lock();
            let worker = WorkerId(frame.worker);
            let next = machine.worker(worker).expect("registered").next_sequence.0;
            let index = machine.index();
            let here = (index.digest(worker), index.worker_block_count(worker));
            if next == frame.sequence + 1 && here != (frame.digest, frame.blocks) {
                let fault = format!("plain frame {}: {here:?}", frame.sequence);
                self.cluster.faults.lock().push(fault);
            }
        }
        Ok(())
    }

    /// Frames or a part of a snapshot; answers with the frame that is expected next.
    fn take_stream(
        &self,
        worker: WorkerId,
        epoch: Epoch,
        request: &v1::PublishRequest,
    ) -> Result<u64, Status> {
        let mut streams = self.streams.lock();
        streams.enter(worker, epoch)?;
        let mut faults = Vec::new();
        for frame in &request.frames {
            self.frames.lock().push(frame.clone());
            faults.extend(streams.take_frame(worker, frame));
        }
        if let Some(part) = &request.snapshot {
            self.parts.fetch_add(1, Ordering::AcqRel);
            if let Some(mark) = streams.take_part(worker, part)? {
                self.snapshots.fetch_add(1, Ordering::AcqRel);
                let differs = streams.differs(worker, mark.digest, mark.blocks);
                faults.extend(differs.map(|differs| format!("snapshot {mark:?}: {differs}")));
            }
        }
        self.cluster.faults.lock().extend(faults);
        Ok(streams.next_sequence(worker))
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
impl Control for Member {
    async fn register(
        &self,
        request: Request<v1::RegisterWorker>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        self.leads()?;
        let request = request.into_inner();
        let model = request.model.as_ref().ok_or_else(|| Status::invalid_argument("model"))?;
        let outcome = self.cluster.carried_out(Command::RegisterWorker {
            name: request.name,
            address: request.address,
            incarnation: request.incarnation,
            model: model_from_wire(model),
            blocks_total: request.blocks_total,
            region: Region::or_local(&request.region)
                .ok_or_else(|| Status::invalid_argument("region"))?,
        })?;
        let Outcome::Registered { worker, epoch } = outcome else {
            return Err(Status::internal("another outcome"));
        };
        Ok(Response::new(v1::RegisterReply {
            worker: worker.0,
            epoch: epoch.0,
            lease_ttl_ms: LEASE_TTL_MS,
            hash_key: Bytes::copy_from_slice(&*self.cluster.hash_key.lock()),
            plain_index: self.cluster.plain,
        }))
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
        let blocks = !request.frames.is_empty() || request.snapshot.is_some();
        if !blocks || !request.pins.is_empty() {
            self.leads()?;
        }
        let mut next_sequence = self.living(worker, epoch)?;
        if self.cluster.plain {
            self.take_plain(&request)?;
            next_sequence = self.living(worker, epoch)?;
        } else if blocks {
            next_sequence = self.take_stream(worker, epoch, &request)?;
        }
        for report in &request.pins {
            let id = PinId(u128_from_wire(&report.id, "id")?);
            self.cluster.reports.lock().push((id, report.blocks_held));
            let blocks_held = report.blocks_held;
            self.cluster.apply(Command::ReportPin { worker, epoch, id, blocks_held });
        }
        if countdown(&self.answers_to_lose) {
            return Err(Status::resource_exhausted("the answer was lost"));
        }
        let leads = self.is_leader();
        Ok(Response::new(v1::PublishReply {
            next_sequence,
            lease_ttl_ms: if leads { LEASE_TTL_MS } else { 0 },
            leads,
            members: self.cluster.addresses.lock().clone(),
        }))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveReply>, Status> {
        self.leads()?;
        let request = request.into_inner();
        self.cluster.leaves.lock().push(request.epoch);
        self.cluster.carried_out(Command::FenceWorker {
            worker: WorkerId(request.worker),
            epoch: Epoch(request.epoch),
            cause: FenceCause::Left,
        })?;
        Ok(Response::new(v1::LeaveReply {}))
    }

    async fn freshness(
        &self,
        _: Request<v1::FreshnessRequest>,
    ) -> Result<Response<v1::FreshnessReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn put_tenant(
        &self,
        _: Request<v1::PutTenant>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn remove_tenant(
        &self,
        _: Request<v1::RemoveTenant>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn list_tenants(
        &self,
        _: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn put_key(&self, _: Request<v1::PutKey>) -> Result<Response<v1::TenantsReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn remove_key(
        &self,
        _: Request<v1::RemoveKey>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn put_join_token(
        &self,
        _: Request<v1::PutJoinToken>,
    ) -> Result<Response<v1::JoinTokensReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn list_join_tokens(
        &self,
        _: Request<v1::ListJoinTokensRequest>,
    ) -> Result<Response<v1::JoinTokensReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn remove_join_token(
        &self,
        _: Request<v1::RemoveJoinToken>,
    ) -> Result<Response<v1::JoinTokensReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn put_response(
        &self,
        _: Request<v1::PutResponse>,
    ) -> Result<Response<v1::ResponseReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn get_response(
        &self,
        _: Request<v1::GetResponseRequest>,
    ) -> Result<Response<v1::ResponseReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    async fn end_response(
        &self,
        _: Request<v1::EndResponse>,
    ) -> Result<Response<v1::ResponseReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }

    type WatchStream = WatchStream;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        self.here()?;
        assert!(request.into_inner().without_blocks, "a worker needs no blocks of others");
        let machine = self.cluster.machine.lock();
        let later = tokio_stream::wrappers::BroadcastStream::new(self.cluster.entries.subscribe());
        let LogIndex(log_index) = machine.applied();
        let state = machine.encode_without_blocks().into();
        let version = u32::from(machine.version());
        let image = v1::StateImage { log_index, state, version, plain_index: false };
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

    type WritePinsStream = tokio_stream::wrappers::ReceiverStream<Result<v1::PinWritten, Status>>;

    async fn write_pins(
        &self,
        _: Request<tonic::Streaming<v1::PinWrite>>,
    ) -> Result<Response<Self::WritePinsStream>, Status> {
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

    async fn pin_tokens(
        &self,
        request: Request<v1::PinTokensRequest>,
    ) -> Result<Response<v1::PinTokensReply>, Status> {
        self.here()?;
        self.cluster.fetches.fetch_add(1, Ordering::AcqRel);
        let request = request.into_inner();
        let id = PinId(u128_from_wire(&request.id, "id")?);
        let machine = self.cluster.machine.lock();
        let pin = machine.pin(id).filter(|pin| {
            let order = pin.keeping.orders.get(&WorkerId(request.worker));
            order.is_some_and(|order| order.epoch.0 == request.epoch)
        });
        let pin = pin.ok_or_else(|| Status::not_found("no order"))?;
        let packed = pin.request.tokens.as_ref().and_then(KeptTokens::packed).expect("kept");
        Ok(Response::new(v1::PinTokensReply {
            namespace: mainstay_proto::convert::u128_to_wire(pin.request.namespace.0),
            packed: Bytes::copy_from_slice(packed),
        }))
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

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        Err(Status::unimplemented("not asked by workers"))
    }
}
