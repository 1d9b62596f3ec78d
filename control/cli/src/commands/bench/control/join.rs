//! How long a member takes until it has a large index: one that is new, and one that starts again from its disk.
//!
//! No snapshot of Raft holds blocks; each worker sends a member what it holds. The workers are simulated: what each
//! holds was made beforehand, and goes to whoever asks as a worker's snapshot does, followed by frames. Meanwhile the
//! group serves: pins are made one after another, and every worker goes on storing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use mainstay_control::ControlHandle;
use mainstay_index::BlockIndex;
use mainstay_proto::client::{ControlPlane, channel};
use mainstay_proto::convert::{event_to_wire, mark_to_wire, pin_to_wire};
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_types::{
    BlockEvent, Epoch, EventSequence, NamespaceId, SequenceHash, StreamMark, Tier, WorkerId,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::cluster::Cluster;
use super::pins::request;

const NAMESPACE: NamespaceId = NamespaceId(7 << 64 | 7);
/// Blocks of one session's prefix: 32,000 tokens.
const SESSION_BLOCKS: u64 = 2_000;
/// The first of them are a system prompt and tools, one of a few, which all workers hold.
const SHARED_BLOCKS: u64 = 256;
const PROMPTS: u64 = 8;
/// Blocks in a part of a snapshot.
const PART_BLOCKS: usize = 32_768;
/// What each worker goes on storing, and how often.
const FRAME_BLOCKS: u64 = 64;
const FRAME_EVERY: Duration = Duration::from_millis(200);
const PIN_CLIENTS: u64 = 8;
const PIN_EVERY: Duration = Duration::from_millis(5);
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(300);

/// A simulated worker: a state, and the frames after it.
struct Worker {
    worker: WorkerId,
    epoch: Epoch,
    mark: StreamMark,
    parts: Vec<v1::StreamSnapshot>,
    frames: Mutex<Vec<v1::EventFrame>>,
}

pub(super) async fn run(members: u64, workers: u32, blocks: u64) -> anyhow::Result<Value> {
    let mut cluster = Cluster::start(members, false).await?;
    let registered = cluster.register(workers).await?;
    let (workers, truth) = make(&registered, blocks);
    let held = truth.held_count();
    let ends = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    tasks.spawn(go_on(workers.clone(), truth, Arc::clone(&ends)));
    let addresses: Vec<String> = cluster.members.iter().map(|m| m.address().to_string()).collect();
    let began = Instant::now();
    for address in &addresses {
        feed(&mut tasks, address, &workers, &ends)?;
    }
    for at in 0..cluster.members.len() {
        consistent(&cluster, at, &workers).await?;
    }
    let load_s = began.elapsed().as_secs_f64();
    let took = Arc::new(Mutex::new(Vec::new()));
    for client in 0..PIN_CLIENTS {
        tasks.spawn(pin(addresses.clone(), client, Arc::clone(&took), Arc::clone(&ends)));
    }

    let address: SocketAddr = super::super::free_addresses(1)?[0];
    feed(&mut tasks, &address.to_string(), &workers, &ends)?;
    let began = Instant::now();
    cluster.start_joining(address).await?;
    let new = cluster.members.len() - 1;
    consistent(&cluster, new, &workers).await?;
    let join_s = began.elapsed().as_secs_f64();
    let mut pins_us: Vec<u64> = took.lock().split_off(0);

    let leader = cluster.leader().await?.group().node();
    let follower = cluster.members.iter().position(|m| m.group().node() != leader);
    let follower = follower.expect("a group of several has a follower");
    let began = Instant::now();
    let open_s = cluster.restart(follower).await?.as_secs_f64();
    consistent(&cluster, follower, &workers).await?;
    let restart_s = began.elapsed().as_secs_f64();

    let drift: u64 = cluster.members.iter().map(|m| m.group().streams().look(|s| s.drift())).sum();
    ends.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    cluster.end().await;
    pins_us.sort_unstable();
    let p99 = (pins_us.len().saturating_sub(1)) * 99 / 100;
    Ok(json!({
        "members": members, "simulated_workers": workers.len(), "blocks_held": held,
        "first_load_s": load_s, "join_s": join_s, "restart_s": restart_s, "restart_open_s": open_s,
        "pins_during_join": pins_us.len(), "pin_ms_p99_during_join": pins_us.get(p99).map(|us| *us as f64 / 1e3),
        "drift": drift,
    }))
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The hashes of a chain that is known by a number.
fn chain(number: u64, from: u64, to: u64) -> Vec<SequenceHash> {
    let hash = |at| {
        let low = mix(number << 20 | at);
        SequenceHash(u128::from(mix(low)) << 64 | u128::from(low))
    };
    (from..to).map(hash).collect()
}

fn stored(parent: SequenceHash, blocks: Vec<SequenceHash>) -> BlockEvent {
    BlockEvent::Stored { namespace: NAMESPACE, parent, blocks, tier: Tier::Device }
}

/// Sessions for each worker until all of them hold so many blocks, and an index that holds the same.
fn make(registered: &[v1::RegisterReply], blocks: u64) -> (Vec<Arc<Worker>>, BlockIndex) {
    let mut truth = BlockIndex::new(u64::MAX);
    let each = blocks / registered.len().max(1) as u64;
    let mut session = PROMPTS;
    let mut workers = Vec::new();
    for reply in registered {
        let (worker, epoch) = (WorkerId(reply.worker), Epoch(reply.epoch));
        let mut events = Vec::new();
        while truth.worker_block_count(worker) < each {
            let prompt = chain(session % PROMPTS, 0, SHARED_BLOCKS);
            let parent = *prompt.last().expect("a prompt has blocks");
            for event in [
                stored(SequenceHash(NAMESPACE.0), prompt),
                stored(parent, chain(session, SHARED_BLOCKS, SESSION_BLOCKS)),
            ] {
                truth.apply(worker, &event);
                events.push(event);
            }
            session += 1;
        }
        let sequence = EventSequence(1);
        let (digest, blocks) = (truth.digest(worker), truth.worker_block_count(worker));
        let mark = StreamMark { sequence, digest, blocks };
        let parts = parts(worker, epoch, mark, &events);
        let frames = Mutex::default();
        workers.push(Arc::new(Worker { worker, epoch, mark, parts, frames }));
    }
    (workers, truth)
}

fn parts(
    worker: WorkerId,
    epoch: Epoch,
    mark: StreamMark,
    events: &[BlockEvent],
) -> Vec<v1::StreamSnapshot> {
    let empty = |part: usize| v1::StreamSnapshot {
        worker: worker.0,
        epoch: epoch.0,
        mark: Some(mark_to_wire(mark)),
        part: part as u32,
        last: false,
        events: Vec::new(),
    };
    let (mut parts, mut blocks) = (vec![empty(0)], 0);
    for event in events {
        if blocks >= PART_BLOCKS {
            parts.push(empty(parts.len()));
            blocks = 0;
        }
        blocks += event.block_count();
        if let Some(part) = parts.last_mut() {
            part.events.push(event_to_wire(event));
        }
    }
    if let Some(part) = parts.last_mut() {
        part.last = true;
    }
    parts
}

/// Every worker stores one more short session now and then.
async fn go_on(
    workers: Vec<Arc<Worker>>,
    mut truth: BlockIndex,
    ends: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let mut session = 1 << 40;
    while !ends.load(Ordering::Relaxed) {
        tokio::time::sleep(FRAME_EVERY).await;
        for worker in &workers {
            let event = stored(SequenceHash(NAMESPACE.0), chain(session, 0, FRAME_BLOCKS));
            truth.apply(worker.worker, &event);
            let mut frames = worker.frames.lock();
            let sequence = worker.mark.sequence.0 + frames.len() as u64 + 1;
            frames.push(v1::EventFrame {
                worker: worker.worker.0,
                epoch: worker.epoch.0,
                sequence,
                events: vec![event_to_wire(&event)],
                digest: truth.digest(worker.worker),
                blocks: truth.worker_block_count(worker.worker),
            });
            session += 1;
        }
    }
    Ok(())
}

/// Every worker brings a member its stream, as long as the measurement lasts.
fn feed(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    address: &str,
    workers: &[Arc<Worker>],
    ends: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let client = ControlClient::new(channel(address)?);
    for worker in workers {
        let (worker, client, ends) = (Arc::clone(worker), client.clone(), Arc::clone(ends));
        tasks.spawn(async move {
            let mut cursor = 0;
            while !ends.load(Ordering::Relaxed) {
                // A member that is not there, or does not know the worker yet, is asked again.
                match worker.bring(client.clone(), cursor).await {
                    Ok(next) if next != cursor => cursor = next,
                    Ok(_) | Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
            Ok(())
        });
    }
    Ok(())
}

impl Worker {
    /// Sends what comes next; answers what the member asks for then.
    async fn bring(
        &self,
        mut client: ControlClient<Channel>,
        cursor: u64,
    ) -> Result<u64, tonic::Status> {
        let empty = || v1::PublishRequest {
            worker: self.worker.0,
            epoch: self.epoch.0,
            ..Default::default()
        };
        if cursor <= self.mark.sequence.0 {
            let mut next = 0;
            for part in &self.parts {
                let request = v1::PublishRequest { snapshot: Some(part.clone()), ..empty() };
                next = client.publish(request).await?.into_inner().next_sequence;
            }
            return Ok(next);
        }
        let frames: Vec<v1::EventFrame> = {
            let frames = self.frames.lock();
            let skip = usize::try_from(cursor - self.mark.sequence.0 - 1).unwrap_or(usize::MAX);
            // One that it has, if there is no other: a member that started again says then that it has nothing.
            let skip = skip.min(frames.len().saturating_sub(1));
            frames.iter().skip(skip).take(32).cloned().collect()
        };
        if frames.is_empty() {
            return Ok(cursor);
        }
        let reply = client.publish(v1::PublishRequest { frames, ..empty() }).await?;
        Ok(reply.into_inner().next_sequence)
    }
}

/// One client that makes a pin after another.
async fn pin(
    addresses: Vec<String>,
    client: u64,
    took_us: Arc<Mutex<Vec<u64>>>,
    ends: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let plane = ControlPlane::new(&addresses)?;
    let mut turn = 0;
    while !ends.load(Ordering::Relaxed) {
        let wire = pin_to_wire(&request(99, client, turn));
        let began = Instant::now();
        plane
            .call(PATIENCE, |mut client| {
                let wire = wire.clone();
                async move { client.create_pin(wire).await }
            })
            .await?;
        took_us.lock().push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        turn += 1;
        tokio::time::sleep(PIN_EVERY).await;
    }
    Ok(())
}

/// Waits until a member votes, has applied what the leader had, and holds every worker's blocks as it reports them.
async fn consistent(cluster: &Cluster, at: usize, workers: &[Arc<Worker>]) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    let wanted = cluster.leader().await?.group().status().last_log;
    let latest: Vec<u64> =
        workers.iter().map(|w| w.mark.sequence.0 + w.frames.lock().len() as u64).collect();
    let member: &ControlHandle = &cluster.members[at];
    let id = member.group().node();
    loop {
        let status = member.group().status();
        let votes = status.members.iter().any(|m| m.id == id && m.voter);
        let applied = member.group().read(|s| s.applied()) >= wanted;
        let all = member.group().streams().look(|streams| {
            workers.iter().zip(&latest).all(|(w, latest)| {
                streams.position(w.worker, w.epoch).is_some_and(|next| next.0 > *latest)
            })
        });
        if votes && applied && all {
            return Ok(());
        }
        ensure!(Instant::now() < until, "member {id} is not consistent after {PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}
