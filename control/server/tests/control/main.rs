//! The control plane through its gRPC surface: workers, pins, watchers, members, and what happens when the leader
//! dies.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cluster;
mod guests;
mod keeper;
mod pin_writes;
mod regions;
mod responses;
mod security;
mod streams;
mod versions;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use mainstay_control::{ControlConfig, ControlHandle, Origin, start};
use mainstay_proto::client::channel;
use mainstay_proto::convert::{event_to_wire, pin_to_wire, proposal_from_wire, u128_to_wire};
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_proto::v1::watch_event::Event;
use mainstay_state::{Limits, Machine};
use mainstay_types::{
    BlockEvent, LogIndex, NamespaceId, NodeId, PinId, PinRequest, PinScope, SequenceHash, TenantId,
    Tier,
};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Long enough for a busy machine; tests that pass never wait this long.
const SOON: Duration = Duration::from_secs(20);

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "{what} does not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn client(handle: &ControlHandle) -> ControlClient<Channel> {
    ControlClient::new(channel(&handle.address().to_string()).unwrap())
}

async fn single(dir: &TempDir, lease_ttl_ms: u64) -> ControlHandle {
    start_single(dir, lease_ttl_ms, false).await
}

/// A member whose index is in its machine.
async fn plain(dir: &TempDir) -> ControlHandle {
    start_single(dir, 60_000, true).await
}

async fn start_single(dir: &TempDir, lease_ttl_ms: u64, plain_index: bool) -> ControlHandle {
    let mut config = ControlConfig::single(NodeId(1), dir.path());
    config.lease_ttl_ms = lease_ttl_ms;
    config.plain_index = plain_index;
    let handle = start(config).await.unwrap();
    eventually("leading", async || handle.group().leads().then_some(())).await;
    handle
}

fn worker(name: &str, incarnation: u64) -> v1::RegisterWorker {
    v1::RegisterWorker {
        name: name.into(),
        address: "127.0.0.1:7000".into(),
        incarnation,
        model: Some(v1::ModelSpec {
            name: "demo".into(),
            revision: "1".into(),
            block_tokens: 16,
            context_tokens_max: 4096,
        }),
        blocks_total: 1000,
        region: String::new(),
    }
}

fn pin(id: u128, ttl_ms: u64) -> v1::PutPin {
    pin_to_wire(&PinRequest {
        id: PinId(id),
        tenant: TenantId::new("acme").unwrap(),
        namespace: NamespaceId(9),
        owner: None,
        blocks: vec![SequenceHash(id * 10 + 1), SequenceHash(id * 10 + 2)],
        prefix_tokens: 32,
        ttl_ms,
        priority: 50,
        copies_min: 1,
        tokens: None,
        scope: PinScope::default(),
    })
}

fn stored(registered: &v1::RegisterReply, sequence: u64, blocks: &[u128]) -> v1::EventFrame {
    let event = BlockEvent::Stored {
        namespace: NamespaceId(9),
        parent: SequenceHash(9),
        blocks: blocks.iter().map(|b| SequenceHash(*b)).collect(),
        tier: Tier::Device,
    };
    v1::EventFrame {
        worker: registered.worker,
        epoch: registered.epoch,
        sequence,
        events: vec![event_to_wire(&event)],
        ..v1::EventFrame::default()
    }
}

fn publish(registered: &v1::RegisterReply, frames: Vec<v1::EventFrame>) -> v1::PublishRequest {
    v1::PublishRequest {
        worker: registered.worker,
        epoch: registered.epoch,
        frames,
        ..v1::PublishRequest::default()
    }
}

async fn register(
    client: &mut ControlClient<Channel>,
    request: v1::RegisterWorker,
) -> v1::RegisterReply {
    eventually("registering", async || match client.register(request.clone()).await {
        Ok(reply) => Some(reply.into_inner()),
        Err(status) if status.code() == Code::Unavailable => None,
        Err(status) => panic!("{status}"),
    })
    .await
}

async fn worker_state(client: &mut ControlClient<Channel>, id: u32) -> String {
    let status = client.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    status.workers.into_iter().find(|w| w.worker == id).unwrap().state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_lives_publishes_and_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let handle = plain(&dir).await;
    let mut c = client(&handle);
    let me = register(&mut c, worker("w", 1)).await;
    assert_eq!((me.epoch, me.lease_ttl_ms, me.hash_key.len()), (1, 60_000, 16));
    let again = register(&mut c, worker("w", 1)).await;
    assert_eq!(again, me, "a retry is the same life");

    let frames = vec![stored(&me, 1, &[1, 2]), stored(&me, 2, &[3])];
    let reply = c.publish(publish(&me, frames)).await.unwrap().into_inner();
    assert_eq!(reply.next_sequence, 3);
    assert_eq!(c.publish(publish(&me, vec![])).await.unwrap().into_inner().next_sequence, 3);
    let gap = c.publish(publish(&me, vec![stored(&me, 9, &[4])])).await.unwrap().into_inner();
    assert_eq!(gap.next_sequence, 3);
    assert_eq!(handle.group().read(|m| m.index().block_count()), 3);

    let next = register(&mut c, worker("w", 2)).await;
    assert_eq!((next.worker, next.epoch), (me.worker, 2));
    let stale = c.publish(publish(&me, vec![])).await.unwrap_err();
    assert_eq!(stale.code(), Code::FailedPrecondition);
    assert_eq!(handle.group().read(|m| m.index().block_count()), 0);

    let leave = v1::LeaveRequest { worker: next.worker, epoch: next.epoch };
    c.leave(leave).await.unwrap();
    c.leave(leave).await.unwrap();
    assert_eq!(worker_state(&mut c, next.worker).await, "left");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_are_refused_before_they_cost_the_log_anything() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    let me = register(&mut c, worker("w", 1)).await;
    let before = handle.group().status().last_log;
    let mut refused: Vec<(&str, Status)> = Vec::new();
    let foreign = v1::EventFrame { worker: 77, ..stored(&me, 1, &[1]) };
    refused.push(("frame", c.publish(publish(&me, vec![foreign])).await.unwrap_err()));
    let many = vec![v1::EventFrame { events: vec![], ..stored(&me, 1, &[]) }; 1025];
    refused.push(("frames", c.publish(publish(&me, many)).await.unwrap_err()));
    let big: Vec<u128> = (0..262_145).collect();
    refused
        .push(("blocks", c.publish(publish(&me, vec![stored(&me, 1, &big)])).await.unwrap_err()));
    let mut odd = stored(&me, 1, &[1]);
    if let Some(v1::block_event::Event::Stored(s)) = &mut odd.events[0].event {
        s.blocks = vec![0; 17].into();
    }
    refused.push(("hash", c.publish(publish(&me, vec![odd])).await.unwrap_err()));
    let report = v1::PinReport { id: vec![1].into(), blocks_held: 1 };
    let request = v1::PublishRequest { pins: vec![report], ..publish(&me, vec![]) };
    refused.push(("report", c.publish(request).await.unwrap_err()));
    let huge = PinRequest { blocks: vec![SequenceHash(1); 131_073], ..request_of(1) };
    refused.push(("pin", c.create_pin(pin_to_wire(&huge)).await.unwrap_err()));
    let nobody = v1::PutPin { tenant: String::new(), ..pin(1, 1000) };
    refused.push(("tenant", c.create_pin(nobody).await.unwrap_err()));
    let unmodelled = v1::RegisterWorker { model: None, ..worker("x", 1) };
    refused.push(("model", c.register(unmodelled).await.unwrap_err()));
    let long = v1::RegisterWorker { name: "x".repeat(5000), ..worker("x", 1) };
    refused.push(("name", c.register(long).await.unwrap_err()));
    let member = v1::AddMemberRequest { address: "a:1".into(), ..Default::default() };
    refused.push(("member", c.add_member(member).await.unwrap_err()));
    for (what, status) in refused {
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    }
    let ticks = handle.group().status().last_log.0 - before.0;
    assert!(ticks < 50, "{ticks} entries, more than time alone explains");
    handle.shutdown().await;
}

fn request_of(id: u128) -> PinRequest {
    mainstay_proto::convert::pin_from_wire(&pin(id, 1000)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_workers_epoch_ends_and_one_that_is_heard_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 400).await;
    let mut c = client(&handle);
    let silent = register(&mut c, worker("silent", 1)).await;
    let heard = register(&mut c, worker("heard", 1)).await;
    c.publish(publish(&silent, vec![stored(&silent, 1, &[1])])).await.unwrap();
    let start = Instant::now();
    eventually("the lease's end", async || {
        c.publish(publish(&heard, vec![])).await.unwrap();
        let state = worker_state(&mut c, silent.worker).await;
        (state == "lease_expired").then_some(())
    })
    .await;
    assert!(start.elapsed() >= Duration::from_millis(400), "too early");
    assert_eq!(worker_state(&mut c, heard.worker).await, "live");
    assert_eq!(handle.group().read(|m| m.index().block_count()), 0);
    let over = c.publish(publish(&silent, vec![])).await.unwrap_err();
    assert_eq!(over.code(), Code::FailedPrecondition);
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_is_made_kept_reported_extended_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    let me = register(&mut c, worker("w", 1)).await;
    let made = c.create_pin(pin(1, 300)).await.unwrap().into_inner().pin.unwrap();
    assert_eq!(made.state, "pending");
    let start = Instant::now();
    let id = u128_to_wire(1);
    let report = v1::PinReport { id: id.clone(), blocks_held: 2 };
    let request = v1::PublishRequest { pins: vec![report], ..publish(&me, vec![]) };
    c.publish(request.clone()).await.unwrap();
    let get = |local| v1::GetPinRequest { id: u128_to_wire(1), local };
    let seen = c.get_pin(get(false)).await.unwrap().into_inner().pin.unwrap();
    assert_eq!((seen.state.as_str(), seen.holders.len()), ("active", 1));
    assert_eq!(seen.holders[0].name, "w");
    // Saying the same again writes nothing.
    let changed = handle.group().read(|m| m.pin(PinId(1)).unwrap().changed_index);
    c.publish(request).await.unwrap();
    assert_eq!(handle.group().read(|m| m.pin(PinId(1)).unwrap().changed_index), changed);

    let listed = c.list_pins(v1::ListPinsRequest { tenant: "acme".into(), ..Default::default() });
    assert_eq!(listed.await.unwrap().into_inner().pins.len(), 1);
    let others = c.list_pins(v1::ListPinsRequest { tenant: "else".into(), ..Default::default() });
    assert_eq!(others.await.unwrap().into_inner().pins.len(), 0);

    eventually("the pin's end", async || {
        let pin = c.get_pin(get(true)).await.unwrap().into_inner().pin.unwrap();
        (pin.state == "expired").then_some(())
    })
    .await;
    // 300 ms, and twice the skew that members' clocks may have.
    assert!(start.elapsed() >= Duration::from_millis(750), "ended after {:?}", start.elapsed());
    let late = c.extend_pin(v1::ExtendPin { id, ttl_ms: 1000 }).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);

    c.create_pin(pin(2, 60_000)).await.unwrap();
    let longer = v1::ExtendPin { id: u128_to_wire(2), ttl_ms: 120_000 };
    let longer = c.extend_pin(longer).await.unwrap().into_inner().pin.unwrap();
    assert!(longer.ttl_left_ms > 100_000, "{}", longer.ttl_left_ms);
    let released = c.release_pin(v1::ReleasePin { id: u128_to_wire(2) }).await.unwrap();
    assert_eq!(released.into_inner().pin.unwrap().state, "released");
    let absent = c.get_pin(v1::GetPinRequest { id: u128_to_wire(3), local: false }).await;
    assert_eq!(absent.unwrap_err().code(), Code::NotFound);
    handle.shutdown().await;
}

/// A replica as gateways keep one.
struct Replica {
    machine: Machine,
    images: usize,
    entries: usize,
}

impl Replica {
    fn new() -> Self {
        Self { machine: Machine::new(Limits::standard()), images: 0, entries: 0 }
    }

    /// Follows a member until the replica has applied `at`.
    async fn follow(
        &mut self,
        client: &mut ControlClient<Channel>,
        at: LogIndex,
        without_blocks: bool,
    ) {
        let from = if self.images == 0 { 0 } else { self.machine.applied().0 + 1 };
        let request = v1::WatchRequest {
            from_log_index: from,
            without_blocks,
            version: u32::from(mainstay_state::VERSION_NEWEST),
            ..v1::WatchRequest::default()
        };
        let mut stream = client.watch(request).await.unwrap().into_inner();
        let mut seen = LogIndex(0);
        while seen < at {
            let event = tokio::time::timeout(SOON, stream.message()).await.unwrap().unwrap();
            match event.unwrap().event.unwrap() {
                Event::Image(image) => {
                    self.machine = Machine::decode(&image.state, Limits::standard()).unwrap();
                    self.images += 1;
                    seen = LogIndex(image.log_index);
                }
                Event::Entry(entry) => {
                    let proposal = proposal_from_wire(&entry.proposal.unwrap()).unwrap();
                    self.machine.apply(LogIndex(entry.log_index), &proposal);
                    self.entries += 1;
                    seen = LogIndex(entry.log_index);
                }
                Event::Progress(progress) => seen = LogIndex(progress.log_index),
                Event::Index(_) | Event::Items(_) => {}
            }
        }
    }
}

fn state_of(handle: &ControlHandle) -> (LogIndex, u128) {
    handle.group().read(|m| (m.applied(), m.digest()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_follows_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let handle = plain(&dir).await;
    let mut c = client(&handle);
    let me = register(&mut c, worker("w", 1)).await;
    let mut replica = Replica::new();
    let mut bare = Replica::new();
    for sequence in 1..=20 {
        let frame = stored(&me, sequence, &[u128::from(sequence)]);
        c.publish(publish(&me, vec![frame])).await.unwrap();
        if sequence == 10 {
            let (at, _) = state_of(&handle);
            replica.follow(&mut c, at, false).await;
            bare.follow(&mut c, at, true).await;
            assert_eq!(replica.machine.index().block_count(), 10);
            assert_eq!(bare.machine.index().block_count(), 0);
        }
    }
    c.create_pin(pin(1, 60_000)).await.unwrap();
    // Ticks go on, so the comparison is at an index that both have been at.
    let (at, digest) = state_of(&handle);
    replica.follow(&mut c, at, false).await;
    assert_eq!(replica.images, 1, "it resumed rather than started anew");
    assert!(replica.entries >= 11);
    if replica.machine.applied() == at {
        assert_eq!(replica.machine.digest(), digest);
    }
    assert_eq!(replica.machine.index().block_count(), 20);
    assert!(replica.machine.pin(PinId(1)).is_some());
    bare.follow(&mut c, at, true).await;
    assert_eq!(bare.machine.index().block_count(), 0);
    assert!(bare.machine.pin(PinId(1)).is_some());

    // A watcher that knows more than this member is sent elsewhere.
    let ahead = v1::WatchRequest { from_log_index: 1_000_000, ..Default::default() };
    let mut stream = c.watch(ahead).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    handle.shutdown().await;
}

#[tokio::test]
async fn members_that_can_not_start_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let config = ControlConfig::single(NodeId(1), dir.path());
    let text = async |change: &dyn Fn(&mut ControlConfig)| {
        let mut config = config.clone();
        change(&mut config);
        start(config).await.err().expect("must be refused").to_string()
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_at = taken.local_addr().unwrap();
    assert!(text(&|c| c.listen = taken_at).await.contains("--listen"));
    assert!(text(&|c| c.lease_ttl_ms = 1).await.contains("at least"));
    assert!(text(&|c| c.origin = Origin::Members(vec![])).await.contains("own list"));
    assert!(text(&|c| c.origin = Origin::Join(vec![])).await.contains("--join"));
    std::fs::write(dir.path().join("file"), "x").unwrap();
    assert!(text(&|_| ()).await.contains("--data-dir"));
}
