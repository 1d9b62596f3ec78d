//! Pins a second: so many clients, each making one pin after another, on a group that makes every one durable on a
//! majority before it answers. Beside it, in turns, puts of as many bytes to an etcd that runs already.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::client::ControlPlane;
use mainstay_proto::convert::pin_to_wire;
use mainstay_proto::v1::pin_write::Change;
use mainstay_types::{NamespaceId, PinId, PinRequest, PinScope, SequenceHash, SessionId, TenantId};
use prost::Message;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::etcd::{self, Etcd};

/// Blocks that a pin names: a prefix of 1,024 tokens.
const PIN_BLOCKS: u128 = 64;
const TTL_MS: u64 = 300_000;
/// Turns of a session; each supersedes the last, as harnesses do.
const SESSION_TURNS: u64 = 16;
/// Connections that the clients of either side share.
const CONNECTIONS: usize = 8;
/// The number that no measured client reaches.
const FIRST_CLIENT: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// What is measured, and against whom.
pub(super) struct Setting {
    pub(super) members: u64,
    /// Members that run already, instead of ones in this process.
    pub(super) control: Vec<String>,
    /// etcd's client addresses; nothing is compared without any.
    pub(super) etcd: Vec<String>,
    pub(super) clients: usize,
    pub(super) pins: usize,
    pub(super) rounds: usize,
}

pub(super) async fn run(setting: Setting) -> anyhow::Result<Vec<Value>> {
    let cluster = match setting.control.is_empty() {
        true => Some(Cluster::start(setting.members, false).await?),
        false => None,
    };
    let ours = match &cluster {
        Some(cluster) => vec![cluster.leader().await?.address().to_string()],
        None => setting.control.clone(),
    };
    let theirs = match setting.etcd.is_empty() {
        true => None,
        false => Some(etcd::leader(&setting.etcd).await?),
    };
    let mut rows = Vec::new();
    for round in 0..setting.rounds {
        let took = ours_once(&ours, &setting, round).await?;
        rows.push(row(&setting, "mainstay pins", round, &took));
        if let Some((leader, version)) = &theirs {
            let took = etcd_once(leader, &setting, round).await?;
            rows.push(row(&setting, &format!("etcd {version} puts"), round, &took));
        }
    }
    if let Some(cluster) = cluster {
        cluster.end().await;
    }
    Ok(rows)
}

/// What one round took.
struct Took {
    wall_s: f64,
    sorted_us: Vec<u64>,
}

/// A side: makes one thing durable on its members before it answers.
trait Maker: Clone + Send + 'static {
    /// The pin of one turn of one client's session, or what stands for it.
    fn make(&mut self, pin: PinRequest) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// As gateways make pins: over one stream a connection.
#[derive(Clone)]
struct Ours(ControlPlane);

impl Maker for Ours {
    async fn make(&mut self, pin: PinRequest) -> anyhow::Result<()> {
        self.0.write_pin(PATIENCE, Change::Put(pin_to_wire(&pin))).await?;
        Ok(())
    }
}

impl Maker for Etcd {
    async fn make(&mut self, pin: PinRequest) -> anyhow::Result<()> {
        // A session's key, which its next turn overwrites as a pin supersedes the last.
        let owner = pin.owner.as_ref().map_or("", SessionId::as_str);
        let key = format!("/pins/{}/{owner}", pin.tenant.as_str());
        self.put(key, Bytes::from(pin_to_wire(&pin).encode_to_vec())).await
    }
}

/// So many clients, each calling one after another until all calls are made.
async fn closed_loop<M: Maker>(
    setting: &Setting,
    connections: Vec<M>,
    round: usize,
) -> anyhow::Result<Took> {
    let next = Arc::new(AtomicU64::new(0));
    let total = setting.pins as u64;
    let began = Instant::now();
    let mut making = JoinSet::new();
    for own in 0..setting.clients {
        let (mut maker, next) = (connections[own % connections.len()].clone(), Arc::clone(&next));
        making.spawn(async move {
            let mut took_us = Vec::new();
            let mut turn = 0_u64;
            while next.fetch_add(1, Ordering::Relaxed) < total {
                let start = Instant::now();
                maker.make(request(round as u64, own as u64, turn)).await?;
                took_us.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
                turn += 1;
            }
            anyhow::Ok(took_us)
        });
    }
    let mut sorted_us: Vec<u64> = Vec::new();
    while let Some(made) = making.join_next().await {
        sorted_us.extend(made??);
    }
    let wall_s = began.elapsed().as_secs_f64();
    sorted_us.sort_unstable();
    Ok(Took { wall_s, sorted_us })
}

async fn ours_once(addresses: &[String], setting: &Setting, round: usize) -> anyhow::Result<Took> {
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS as u64 {
        let plane = ControlPlane::new(addresses)?;
        // A first pin, which leaves the client at the leader.
        let pin = pin_to_wire(&request(round as u64, FIRST_CLIENT + number, 0));
        plane.write_pin(PATIENCE, Change::Put(pin)).await?;
        connections.push(Ours(plane));
    }
    closed_loop(setting, connections, round).await
}

async fn etcd_once(leader: &str, setting: &Setting, round: usize) -> anyhow::Result<Took> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Etcd::connect(leader).await?);
    }
    closed_loop(setting, connections, round).await
}

fn row(setting: &Setting, side: &str, round: usize, took: &Took) -> Value {
    let last = took.sorted_us.len().saturating_sub(1) as f64;
    let at = |part: f64| took.sorted_us.get((last * part) as usize).map(|us| *us as f64 / 1_000.0);
    let inside = setting.control.is_empty() && side.starts_with("mainstay");
    json!({
        "side": side, "round": round + 1, "members_in_this_process": inside,
        "clients": setting.clients, "connections": CONNECTIONS, "writes": took.sorted_us.len(),
        "bytes_per_write": pin_to_wire(&request(0, 0, SESSION_TURNS - 1)).encoded_len(),
        "writes_per_s": (took.sorted_us.len() as f64 / took.wall_s).round(),
        "ms_p50": at(0.5), "ms_p99": at(0.99), "ms_max": at(1.0),
    })
}

/// The pin of one turn of one client's session.
pub(super) fn request(round: u64, client: u64, turn: u64) -> PinRequest {
    let (session, turn) = (turn / SESSION_TURNS, turn % SESSION_TURNS);
    let own = u128::from(round) << 24 | u128::from(client);
    let first = own << 64 | u128::from(session) << 32 | 1;
    // A later turn's prefix covers the former one's.
    let blocks = PIN_BLOCKS - u128::from(SESSION_TURNS) + u128::from(turn) + 1;
    PinRequest {
        id: PinId(own << 96 | u128::from(session) << 48 | u128::from(turn) << 8 | 1),
        tenant: TenantId::new("bench").expect("a name"),
        namespace: NamespaceId(9),
        owner: SessionId::new(&format!("r{round}-c{client}-s{session}")),
        blocks: (first..first + blocks).map(SequenceHash).collect(),
        prefix_tokens: u32::try_from(blocks * 16).unwrap_or(u32::MAX),
        ttl_ms: TTL_MS,
        priority: 50,
        copies_min: 1,
        tokens: None,
        scope: PinScope::default(),
    }
}
