//! What the offload filter spares an SSD, and what it costs in hits: agents' sessions beside strangers who ask once,
//! through the real shelves and the real filter, in the order of their times.
//!
//! `offload_cost HOST_BLOCKS DISK_BLOCKS STRANGERS [DIR [SESSIONS [AT_ONCE]]]`. `DIR` holds recorded Claude Code sessions
//! as JSON; without it, sessions are drawn from a seed. `STRANGERS` is how many blocks of prompts that nobody
//! repeats come for each new block of an agent. The disk is a shelf in memory: only its writes are counted.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::Context;
use mainstay_tier::{
    BlockKey, Filter, FilterSettings, HostSettings, HostTier, Layout, Put, Record, Retention,
    Touch, Verdict,
};
use mainstay_types::{NamespaceId, SequenceHash};
use random::random_from;

#[path = "../tests/support/random.rs"]
mod random;

const BLOCK_BYTES: u32 = 64;
/// A pause counts for no more than this.
const PAUSE_MAX: f64 = 300.0;

type Chain = Vec<u32>;

/// A request: its session, its blocks, whether the session ends with it.
struct Request {
    session: u64,
    blocks: Chain,
    last: bool,
}

fn flatten(requests: &serde_json::Value, out: &mut Vec<(f64, Chain)>) {
    for request in requests.as_array().into_iter().flatten() {
        if let Some(inner) = request.get("requests") {
            flatten(inner, out);
        } else if let Some(ids) = request.get("hash_ids").and_then(|ids| ids.as_array()) {
            let blocks = ids.iter().filter_map(|id| id.as_u64()).map(|id| id as u32).collect();
            out.push((request["t"].as_f64().unwrap_or(0.0), blocks));
        }
    }
}

fn recorded(folder: &Path, most: usize) -> anyhow::Result<Vec<Vec<(f64, Chain)>>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    let mut sessions = Vec::new();
    for path in paths.into_iter().take(most) {
        let text = std::fs::read(&path)?;
        let session: serde_json::Value =
            serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let mut requests = Vec::new();
        flatten(&session["requests"], &mut requests);
        requests.sort_by(|a, b| a.0.total_cmp(&b.0));
        sessions.push(requests);
    }
    Ok(sessions)
}

fn drawn(sessions: usize) -> Vec<Vec<(f64, Chain)>> {
    let mut random = random_from(1);
    let one = |_| {
        let turns = 5 + random() % 60;
        let (mut at, mut blocks) = (0.0, 200 + (random() % 200) as u32);
        let turn = |_| {
            at += 2.0 + (random() % 60) as f64;
            blocks += 5 + (random() % 25) as u32;
            (at, (0..blocks).collect())
        };
        (0..turns).map(turn).collect()
    };
    (0..sessions).map(one).collect()
}

/// A closed loop: when a session ends, the next begins.
fn in_order(sessions: Vec<Vec<(f64, Chain)>>, at_once: usize) -> Vec<Request> {
    let mut waiting = sessions.into_iter().enumerate().filter(|(_, requests)| !requests.is_empty());
    let mut open: BTreeMap<(u64, usize), std::vec::IntoIter<(f64, Chain)>> = BTreeMap::new();
    let mut order = Vec::new();
    let ms = |seconds: f64| (seconds * 1e3) as u64;
    for (number, (session, requests)) in waiting.by_ref().take(at_once).enumerate() {
        open.insert((ms(number as f64 * 17.0), session), requests.into_iter());
    }
    while let Some(((now_ms, session), mut requests)) = open.pop_first() {
        let Some((at, blocks)) = requests.next() else { continue };
        let next = requests.as_slice().first().map(|(next, _)| *next);
        order.push(Request { session: session as u64, blocks, last: next.is_none() });
        if let Some(next) = next {
            let pause = (next - at).clamp(0.0, PAUSE_MAX);
            open.insert((now_ms + ms(pause), session), requests);
        } else if let Some((session, requests)) = waiting.next() {
            open.insert((now_ms + 1_000, session), requests.into_iter());
        }
    }
    order
}

#[derive(Clone, Copy, PartialEq)]
enum Policy {
    Through,
    Leaving,
    Filtered,
}

struct Run {
    layout: Layout,
    host: HostTier,
    disk: HostTier,
    filter: Filter,
    policy: Policy,
    writes: u64,
}

impl Run {
    fn new(policy: Policy, host_blocks: u64, disk_blocks: u64) -> anyhow::Result<Self> {
        let layout = Layout::new("m", "r", "bf16", "plain", 16, BLOCK_BYTES)?;
        let tier = |blocks: u64| {
            let settings = HostSettings { budget_bytes: blocks * 4096, check_reads: false };
            HostTier::new(layout, settings)
        };
        let ghosts = disk_blocks as u32;
        let filter = Filter::new(FilterSettings { ghosts, ..FilterSettings::default() })?;
        let (host, disk) = (tier(host_blocks)?, tier(disk_blocks)?);
        Ok(Self { layout, host, disk, filter, policy, writes: 0 })
    }

    fn key(&self, session: u64, block: u32) -> BlockKey {
        BlockKey {
            namespace: NamespaceId(u128::from(session)),
            hash: SequenceHash(u128::from(block) + 1),
            layout: self.layout.id,
        }
    }

    fn keep(&mut self, key: BlockKey, parent: u32, retention: Retention) -> anyhow::Result<()> {
        let payload = [0; BLOCK_BYTES as usize];
        let parent = SequenceHash(u128::from(parent));
        let record = Record { key, parent, retention, payload: &payload, sum: None };
        let Self { host, disk, filter, policy, writes, .. } = self;
        let mut write = |record: &Record<'_>| {
            let stored = disk.put(record, 0).is_ok_and(|put| put == Put::Stored);
            *writes += u64::from(stored);
        };
        if *policy == Policy::Through {
            write(&record);
        }
        let _ = host.put_with(&record, 0, |leaving, bytes| {
            let touch = Touch {
                key: leaving.key,
                retention: leaving.held.retention,
                depth: 1,
                uses: leaving.uses,
                parent_held: true,
            };
            let worth = match policy {
                Policy::Through => false,
                Policy::Leaving => true,
                Policy::Filtered => filter.decide(&touch, 0) == Verdict::Write,
            };
            if worth {
                write(&Record {
                    key: leaving.key,
                    parent: leaving.held.parent,
                    retention: leaving.held.retention,
                    payload: bytes,
                    sum: None,
                });
            }
        })?;
        Ok(())
    }

    /// How many leading blocks were there.
    fn ask(&mut self, session: u64, blocks: &[u32], wanted: Retention) -> anyhow::Result<u64> {
        let mut into = [0; BLOCK_BYTES as usize];
        let (mut hits, mut whole, mut parent) = (0, true, 0);
        for block in blocks {
            let key = self.key(session, *block);
            let near = self.host.get(&key, &mut into)?.is_hit();
            let found = near || (whole && self.disk.get(&key, &mut into)?.is_hit());
            whole &= found;
            hits += u64::from(whole);
            if !near {
                self.keep(key, parent, wanted)?;
            }
            parent = *block + 1;
        }
        Ok(hits)
    }

    fn end(&self, session: u64, blocks: &HashSet<u32>) {
        let over = Retention { priority: 0, after: 0, until_ms: 0, pinned_until_ms: 0 };
        for block in blocks {
            let key = self.key(session, *block);
            self.host.retain(&key, over, 0);
            self.disk.retain(&key, over, 0);
        }
    }
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| words.get(at).map_or(Ok(default), |word| word.parse());
    let (host_blocks, disk_blocks, strangers) =
        (number(0, 20_000)?, number(1, 200_000)?, number(2, 3)?);
    let (most, at_once) = (number(4, 60)? as usize, number(5, 16)? as usize);
    let sessions = match words.get(3) {
        Some(folder) => recorded(Path::new(folder), most)?,
        None => drawn(most),
    };
    let requests = in_order(sessions, at_once);
    let asked: u64 = requests.iter().map(|request| request.blocks.len() as u64).sum();
    println!(
        "{} requests of agents, {asked} blocks; memory {host_blocks}, disk {disk_blocks}, {strangers} blocks of strangers for each new one",
        requests.len()
    );
    for (name, policy) in [
        ("write-through", Policy::Through),
        ("all that leaves", Policy::Leaving),
        ("the filter", Policy::Filtered),
    ] {
        let mut run = Run::new(policy, host_blocks, disk_blocks)?;
        let leased = Retention { priority: 80, after: 80, ..Retention::default() };
        let mut known: BTreeMap<u64, HashSet<u32>> = BTreeMap::new();
        let (mut hits, mut stranger) = (0, 1 << 32);
        for request in &requests {
            hits += run.ask(request.session, &request.blocks, leased)?;
            let own = known.entry(request.session).or_default();
            let before = own.len();
            own.extend(&request.blocks);
            let new = (own.len() - before) as u64 * strangers;
            for part in (0..new as u32).collect::<Vec<_>>().chunks(256) {
                run.ask(stranger, part, Retention::default())?;
                stranger += 1;
            }
            if request.last {
                run.end(request.session, &known.remove(&request.session).unwrap_or_default());
            }
        }
        println!(
            "{name:<16} {:>9} writes, {:.2} % of the agents' blocks hit",
            run.writes,
            100.0 * hits as f64 / asked as f64
        );
    }
    Ok(())
}
