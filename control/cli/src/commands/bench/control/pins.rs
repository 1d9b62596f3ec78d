//! Pins a second: so many clients, each making one pin after another, on a group that makes every one durable on a
//! majority before it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mainstay_proto::convert::pin_to_wire;
use mainstay_types::{NamespaceId, PinId, PinRequest, PinScope, SequenceHash, SessionId, TenantId};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::cluster::Cluster;

/// Blocks that a pin names: a prefix of 1,024 tokens.
const PIN_BLOCKS: u128 = 64;
const TTL_MS: u64 = 300_000;
/// Turns of a session; each supersedes the last, as harnesses do.
const SESSION_TURNS: u64 = 16;

pub(super) async fn run(members: u64, clients: usize, pins: usize) -> anyhow::Result<Value> {
    let cluster = Cluster::start(members, false).await?;
    let client = Cluster::client(cluster.leader().await?)?;
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut making = JoinSet::new();
    for own in 0..clients {
        let (mut client, next) = (client.clone(), Arc::clone(&next));
        making.spawn(async move {
            let mut took_us = Vec::new();
            let mut turn = 0_u64;
            while next.fetch_add(1, Ordering::Relaxed) < pins as u64 {
                let request = pin_to_wire(&request(own as u64, turn));
                let start = Instant::now();
                client.create_pin(request).await?;
                took_us.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
                turn += 1;
            }
            anyhow::Ok(took_us)
        });
    }
    let mut took_us: Vec<u64> = Vec::new();
    while let Some(made) = making.join_next().await {
        took_us.extend(made??);
    }
    let wall_s = began.elapsed().as_secs_f64();
    took_us.sort_unstable();
    let at = |part: f64| {
        let last = took_us.len().saturating_sub(1) as f64;
        took_us.get((last * part) as usize).map(|us| *us as f64 / 1_000.0)
    };
    let row = json!({
        "members": members, "clients": clients, "pins": took_us.len(), "blocks_per_pin": PIN_BLOCKS as u64,
        "pins_per_s": (took_us.len() as f64 / wall_s).round(),
        "ms_p50": at(0.5), "ms_p99": at(0.99), "ms_max": at(1.0),
    });
    cluster.end().await;
    Ok(row)
}

/// The pin of one turn of one client's session.
fn request(client: u64, turn: u64) -> PinRequest {
    let (session, turn) = (turn / SESSION_TURNS, turn % SESSION_TURNS);
    let first = u128::from(client) << 64 | u128::from(session) << 32 | 1;
    // A later turn's prefix covers the former one's.
    let blocks = PIN_BLOCKS - u128::from(SESSION_TURNS) + u128::from(turn) + 1;
    PinRequest {
        id: PinId(u128::from(client) << 96 | u128::from(session) << 48 | u128::from(turn) << 8 | 1),
        tenant: TenantId::new("bench").expect("a name"),
        namespace: NamespaceId(9),
        owner: SessionId::new(&format!("c{client}-s{session}")),
        blocks: (first..first + blocks).map(SequenceHash).collect(),
        prefix_tokens: u32::try_from(blocks * 16).unwrap_or(u32::MAX),
        ttl_ms: TTL_MS,
        priority: 50,
        copies_min: 1,
        scope: PinScope::default(),
    }
}
