//! Block operations a second through the replicated path, and how stale the members' indexes are meanwhile.
//!
//! The clock stops when every frame is visible on all members and a cut that covers it is applied on all of them.
//! Staleness is taken at half the rate: from the moment a frame is due until each member has said that it is in its
//! index.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mainstay_control::ControlHandle;
use mainstay_proto::v1;
use mainstay_types::{Epoch, WorkerId};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::traffic::{Stream, Traffic, make};

/// Frames in a message, as a worker that has much to say sends them.
const MESSAGE_FRAMES: usize = 32;
/// Messages under way to one member at a time: what flow control lets through, without thousands of workers' messages
/// lying in this one process.
pub(super) const UNDER_WAY: usize = 64;
/// The part of the traffic that is sent as fast as it goes; the rest is paced.
const FLOOD_PART: f64 = 0.6;
const PATIENCE: Duration = Duration::from_secs(120);
/// The plain form is slow; its share of the traffic.
const PLAIN_PART: f64 = 0.05;
/// And of one event at a time.
const NAIVE_PART: f64 = 0.01;

#[derive(Clone, Copy)]
pub(super) struct Setting {
    pub(super) members: u64,
    pub(super) workers: u32,
    pub(super) block_ops: u64,
    pub(super) frame_blocks: usize,
}

pub(super) async fn run(setting: Setting, with_plain: bool) -> anyhow::Result<Vec<Value>> {
    let mut rows = vec![streams(setting).await?];
    if with_plain {
        rows.push(plain(setting, PLAIN_PART, "plain: every frame an entry").await?);
        let naive = Setting { frame_blocks: 1, ..setting };
        rows.push(plain(naive, NAIVE_PART, "naive: every event an entry").await?);
    }
    Ok(rows)
}

/// Where each stream stands in its frames.
struct Sent {
    streams: Vec<Stream>,
    at: Vec<usize>,
}

/// CPU seconds of this process.
fn cpu_s() -> f64 {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

async fn streams(setting: Setting) -> anyhow::Result<Value> {
    let cluster = Cluster::start(setting.members, false).await?;
    let workers = cluster.register(setting.workers).await?;
    let Traffic { streams, block_ops, wire_bytes } =
        make(&workers, setting.block_ops, setting.frame_blocks)?;
    let flood: Vec<usize> =
        streams.iter().map(|s| (s.frames.len() as f64 * FLOOD_PART) as usize).collect();
    let ops_at = |s: &Stream, at: usize| at.checked_sub(1).map_or(0, |last| s.ops[last]);
    let flood_ops: u64 = streams.iter().zip(&flood).map(|(s, at)| ops_at(s, *at)).sum();
    let mut sent = Sent { at: vec![0; streams.len()], streams };
    let (began, cpu) = (Instant::now(), cpu_s());
    flood_all(&cluster, &mut sent, &flood).await?;
    let visible_s = began.elapsed().as_secs_f64();
    committed(&cluster, &sent).await?;
    let (wall_s, cpu) = (began.elapsed().as_secs_f64(), cpu_s() - cpu);
    let rate = flood_ops as f64 / wall_s;
    let mut lags = paced(&cluster, &mut sent, rate / 2.0).await?;
    committed(&cluster, &sent).await?;
    let drift: u64 = cluster.members.iter().map(|m| m.group().streams().look(|s| s.drift())).sum();
    equal(&cluster, &sent)?;
    let row = json!({
        "form": "streams and cuts", "members": setting.members, "simulated_workers": setting.workers,
        "block_ops": flood_ops, "wall_s": round(wall_s), "visible_s": round(visible_s), "cpu_s": round(cpu),
        "block_ops_per_s": rate.round(), "cpu_ns_per_op_all_members_and_senders": round(cpu * 1e9 / flood_ops as f64),
        "wire_bytes_per_op": round(wire_bytes as f64 / block_ops as f64),
        "paced_block_ops_per_s": (rate / 2.0).round(),
        "staleness_ms_p50": quantile(&mut lags, 0.5), "staleness_ms_p99": quantile(&mut lags, 0.99),
        "staleness_ms_max": quantile(&mut lags, 1.0), "drift": drift,
    });
    cluster.end().await;
    Ok(row)
}

fn round(value: f64) -> Value {
    json!((value * 1_000.0).round() / 1_000.0)
}

fn quantile(samples_us: &mut [u64], part: f64) -> Value {
    samples_us.sort_unstable();
    let at = (samples_us.len().saturating_sub(1) as f64 * part) as usize;
    samples_us.get(at).map_or(Value::Null, |us| round(*us as f64 / 1_000.0))
}

/// Sends every stream up to a frame, to every member at once and as fast as each takes it.
async fn flood_all(cluster: &Cluster, sent: &mut Sent, upto: &[usize]) -> anyhow::Result<()> {
    let mut feeding = JoinSet::new();
    for member in &cluster.members {
        let client = Cluster::client(member)?;
        let under_way = Arc::new(Semaphore::new(UNDER_WAY));
        for (stream, to) in sent.streams.iter().zip(upto) {
            let (frames, to) = (Arc::clone(&stream.frames), *to);
            let (mut client, under_way) = (client.clone(), Arc::clone(&under_way));
            feeding.spawn(async move { put_all(&mut client, &frames[..to], &under_way).await });
        }
    }
    while let Some(fed) = feeding.join_next().await {
        fed??;
    }
    sent.at.copy_from_slice(upto);
    Ok(())
}

fn message(frames: &[v1::EventFrame]) -> v1::PublishRequest {
    v1::PublishRequest {
        worker: frames.first().map_or(0, |f| f.worker),
        epoch: frames.first().map_or(0, |f| f.epoch),
        frames: frames.to_vec(),
        ..v1::PublishRequest::default()
    }
}

type Client = v1::control_client::ControlClient<tonic::transport::Channel>;

/// Frames in messages, one after another.
pub(super) async fn put_all(
    client: &mut Client,
    frames: &[v1::EventFrame],
    under_way: &Semaphore,
) -> anyhow::Result<()> {
    for frames in frames.chunks(MESSAGE_FRAMES) {
        let _one = under_way.acquire().await?;
        put(client, frames).await?;
    }
    Ok(())
}

/// One message, until the member has taken all of it.
async fn put(client: &mut Client, frames: &[v1::EventFrame]) -> anyhow::Result<()> {
    let next = frames.last().map_or(0, |f| f.sequence + 1);
    let until = Instant::now() + PATIENCE;
    loop {
        match client.publish(message(frames)).await {
            Ok(reply) if reply.get_ref().next_sequence == next => return Ok(()),
            Ok(reply) => bail!(
                "a member expects frame {} after frame {}",
                reply.get_ref().next_sequence,
                next.saturating_sub(1)
            ),
            // It has not applied the worker's registration yet.
            Err(status) if status.code() == tonic::Code::Unavailable && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(status) => return Err(status).context("publishing frames"),
        }
    }
}

/// Sends the rest of every stream at a rate; answers how long each frame took to be on all members, in microseconds.
async fn paced(cluster: &Cluster, sent: &mut Sent, ops_per_s: f64) -> anyhow::Result<Vec<u64>> {
    let clients: Vec<Client> =
        cluster.members.iter().map(Cluster::client).collect::<Result<_, _>>()?;
    let left: u64 = sent
        .streams
        .iter()
        .zip(&sent.at)
        .filter_map(|(s, at)| Some(s.ops.last()? - at.checked_sub(1).map_or(0, |l| s.ops[l])))
        .sum();
    let (seconds, workers) = (left as f64 / ops_per_s, sent.streams.len());
    let began = Instant::now();
    let mut feeding = JoinSet::new();
    for (number, (stream, at)) in sent.streams.iter().zip(&sent.at).enumerate() {
        let (frames, first, clients) = (Arc::clone(&stream.frames), *at, clients.clone());
        let step = seconds / (frames.len() - first).max(1) as f64;
        // Workers do not seal their frames in step with each other.
        let began = began + Duration::from_secs_f64(step * number as f64 / workers as f64);
        feeding.spawn(async move { pace_one(frames, first, clients, began, step).await });
    }
    let mut lags = Vec::new();
    while let Some(fed) = feeding.join_next().await {
        lags.extend(fed??);
    }
    for (at, stream) in sent.at.iter_mut().zip(&sent.streams) {
        *at = stream.frames.len();
    }
    Ok(lags)
}

/// One worker: each frame is due at its time, and goes to each member with whatever is due by then.
async fn pace_one(
    frames: Arc<Vec<v1::EventFrame>>,
    first: usize,
    clients: Vec<Client>,
    began: Instant,
    step_s: f64,
) -> anyhow::Result<Vec<u64>> {
    let count = frames.len() - first;
    let due = move |at: usize| began + Duration::from_secs_f64(step_s * at as f64);
    let latest: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
    let mut feeding = JoinSet::new();
    for mut client in clients {
        let (frames, latest) = (Arc::clone(&frames), Arc::clone(&latest));
        feeding.spawn(async move {
            let mut at = 0;
            while at < count {
                tokio::time::sleep_until(due(at).into()).await;
                let now = Instant::now();
                let mut end = at + 1;
                while end < count && end - at < MESSAGE_FRAMES && due(end) <= now {
                    end += 1;
                }
                put(&mut client, &frames[first + at..first + end]).await?;
                for frame in at..end {
                    let lag = u64::try_from(due(frame).elapsed().as_micros()).unwrap_or(u64::MAX);
                    latest[frame].fetch_max(lag, Ordering::Relaxed);
                }
                at = end;
            }
            anyhow::Ok(())
        });
    }
    while let Some(fed) = feeding.join_next().await {
        fed??;
    }
    Ok(latest.iter().map(|lag| lag.load(Ordering::Relaxed)).collect())
}

/// Waits until a cut that covers everything sent is applied on all members.
async fn committed(cluster: &Cluster, sent: &Sent) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    let covered = |member: &ControlHandle| {
        member.group().read(|machine| {
            sent.streams.iter().zip(&sent.at).all(|(stream, at)| {
                let Some(frame) = at.checked_sub(1).and_then(|last| stream.frames.get(last)) else {
                    return true;
                };
                let cut = machine.worker(WorkerId(frame.worker)).and_then(|w| w.cut);
                cut.is_some_and(|cut| cut.sequence.0 >= frame.sequence)
            })
        })
    };
    while !cluster.members.iter().all(covered) {
        ensure!(Instant::now() < until, "no cut covers the frames after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Every member holds what every worker said last.
fn equal(cluster: &Cluster, sent: &Sent) -> anyhow::Result<()> {
    for member in &cluster.members {
        for stream in &sent.streams {
            let Some(last) = stream.frames.last() else { continue };
            let worker = WorkerId(last.worker);
            let (digest, next) = member
                .group()
                .streams()
                .look(|s| (s.index().digest(worker), s.position(worker, Epoch(last.epoch))));
            ensure!(digest == last.digest, "a member's index differs from worker {worker}");
            ensure!(next.is_some_and(|n| n.0 == last.sequence + 1), "worker {worker} is behind");
        }
    }
    Ok(())
}

/// Without streams: every frame is an entry, and goes through the leader. Of the traffic it gets the first `part`.
async fn plain(setting: Setting, part: f64, form: &str) -> anyhow::Result<Value> {
    let cluster = Cluster::start(setting.members, true).await?;
    let workers = cluster.register(setting.workers).await?;
    let wanted = (setting.block_ops as f64 * part) as u64;
    let Traffic { streams, block_ops, .. } = make(&workers, wanted, setting.frame_blocks)?;
    let client = Cluster::client(cluster.leader().await?)?;
    let (began, cpu) = (Instant::now(), cpu_s());
    let mut feeding = JoinSet::new();
    let under_way = Arc::new(Semaphore::new(UNDER_WAY));
    for stream in &streams {
        let (frames, mut client) = (Arc::clone(&stream.frames), client.clone());
        let under_way = Arc::clone(&under_way);
        feeding.spawn(async move { put_all(&mut client, &frames, &under_way).await });
    }
    while let Some(fed) = feeding.join_next().await {
        fed??;
    }
    let last = cluster.leader().await?.group().status().last_log;
    let until = Instant::now() + PATIENCE;
    while !cluster.members.iter().all(|m| m.group().read(|s| s.applied()) >= last) {
        ensure!(Instant::now() < until, "a member does not catch up");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (wall_s, cpu) = (began.elapsed().as_secs_f64(), cpu_s() - cpu);
    let row = json!({
        "form": form, "members": setting.members,
        "simulated_workers": setting.workers, "block_ops": block_ops, "wall_s": round(wall_s),
        "cpu_s": round(cpu), "block_ops_per_s": (block_ops as f64 / wall_s).round(),
        "cpu_ns_per_op_all_members_and_senders": round(cpu * 1e9 / block_ops as f64),
    });
    cluster.end().await;
    Ok(row)
}
