//! Bringing in what a request lacks, before it starts.
//!
//! The nearest first: host memory and disk of this machine, then whichever of the store and the other workers saves
//! most of the time that computing would take. Blocks are checked wherever they come from, and taken in by the
//! engine in the order of the chain; what does not come is computed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{Request, RetentionRange, caps};
use mainstay_proto::v1;
use mainstay_tier::Retention;
use mainstay_trace::{Kind, Span};
use mainstay_types::{BlockHasher, NamespaceId, SequenceHash, Tier};

use super::cost::{Far, Need, Offer};
use super::inherit::Inherited;
use super::loading::Turn;
use super::{BLOCKS_MIN, SOURCES_MAX};
use crate::engine::KvImport;
use crate::flights::Flight;
use crate::generate::worth_of_blocks;
use crate::shared::{Life, Shared};
use crate::tiers::leased;
use crate::tiers::wants::of_ranges;
use crate::tiers::{Tiers, now_ms};

/// The store's place among the sources that can be paused; no worker's address looks like it.
const REMOTE: &str = "the store of objects";

/// Why nothing, or no more, was brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The source had no more.
    Source,
    /// The engine had no room.
    Room,
    /// The source can't be reached, or refused.
    Refused,
    /// The bytes were not what they should have been.
    Damaged,
    /// It took too long.
    Late,
    /// The engine refused.
    Engine,
    /// The client left.
    Left,
}

impl Ended {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Room => "room",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Late => "late",
            Self::Engine => "engine",
            Self::Left => "left",
        }
    }

    /// Whether another source's blocks would not be taken, either.
    const fn is_final(self) -> bool {
        matches!(self, Self::Room | Self::Engine | Self::Left)
    }
}

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    Local,
    Remote,
    /// A worker, by its address.
    Peer(Arc<str>),
}

impl From {
    const fn name(&self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Peer(_) => "peer",
        }
    }

    /// Under which name it is paused; this machine's tiers look after themselves.
    fn pause(&self) -> Option<&str> {
        match self {
            Self::Local => None,
            Self::Remote => Some(REMOTE),
            Self::Peer(address) => Some(address),
        }
    }
}

/// Whose blocks are brought in, and what they are worth until somebody claims them.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) namespace: u128,
    pub(super) priority: u8,
    pub(super) duration_ms: u32,
    /// What it is done for.
    pub(super) span: Span,
}

/// Those of the sources that are worth asking.
pub(super) fn useful(shared: &Shared, mut sources: Vec<v1::BlockSource>) -> Vec<v1::BlockSource> {
    sources.retain(|source| source.address != shared.address);
    sources.truncate(SOURCES_MAX);
    sources
}

/// Has the engine take in what is at hand of a prompt and it does not have; gives up without a word to the client.
/// Answers with what the blocks that came were claimed for where they were, as ranges of the request.
pub(crate) async fn bring_in(
    shared: &Arc<Shared>,
    life: &Arc<Life>,
    flight: &Flight,
    request: &Request,
    sources: Vec<v1::BlockSource>,
) -> Vec<RetentionRange> {
    let (tiers, sources) = (shared.tiers(), useful(shared, sources));
    let said = !request.ranges.is_empty();
    if life.caps & caps::TRANSFER == 0 || (sources.is_empty() && tiers.is_none() && !said) {
        return Vec::new();
    }
    let blocks = names(life, request, &sources, tiers.is_some() || said);
    let held = held(shared, &blocks);
    let namespace = NamespaceId(request.namespace);
    if let Some(tiers) = &tiers {
        tiers.touch(namespace, &blocks[..held]);
    }
    let said = of_ranges(&request.ranges, &blocks, life.info.block_tokens, now_ms());
    want(shared, tiers.as_ref(), namespace, &said);
    let block_tokens = life.info.block_tokens;
    let claims = leased::of_request(&request.ranges, &request.leases, &blocks, block_tokens);
    shared.leased.lock().claim_all(namespace, claims);
    if sources.is_empty() && tiers.is_none() {
        return Vec::new();
    }
    let (priority, duration_ms) = worth_of_blocks(request);
    let span = flight.span();
    let claim = Claim { namespace: request.namespace, priority, duration_ms, span };
    let wanted = (&blocks[..], held);
    let (_, inherited) = load(shared, life, claim, wanted, (&sources, flight.gone())).await;
    if life.caps & caps::RETENTION == 0 {
        return Vec::new();
    }
    inherited.ranges(life.info.block_tokens, request.ranges.len(), now_ms())
}

/// Brings in what follows the blocks that the engine holds, until that would take longer than computing or whoever
/// wants it is gone; answers with how many came, and what was claimed for them where they were.
pub(super) async fn load(
    shared: &Arc<Shared>,
    life: &Arc<Life>,
    claim: Claim,
    (blocks, held): (&[SequenceHash], usize),
    (sources, gone): (&[v1::BlockSource], impl Future<Output = ()>),
) -> (usize, Inherited) {
    if blocks.len() < held + BLOCKS_MIN {
        return (0, Inherited::default());
    }
    let need = Need {
        block_tokens: life.info.block_tokens,
        block_bytes: life.info.block_bytes,
        prefill_us_per_token: shared.meter.pace().prefill_us_per_token,
    };
    let begun = Instant::now();
    let tiers = shared.tiers();
    let mut load = Load {
        shared,
        life,
        tiers: tiers.as_ref(),
        claim,
        blocks,
        at: held,
        need,
        loading: Span::default(),
        asking: None,
        inherited: Inherited::default(),
    };
    let limit = need.limit(blocks.len() - held);
    let ended = tokio::select! {
        biased;
        () = gone => Some(Ended::Left),
        done = tokio::time::timeout(limit, load.run(sources)) => done.err().map(|_| Ended::Late),
    };
    if let Some(ended) = ended {
        load.cut_off(ended, begun.elapsed());
    }
    let brought = load.at - held;
    tracing::debug!(brought, held, took = ?begun.elapsed(), "brought blocks in");
    metrics::histogram!("mainstay_worker_transfer_seconds").record(begun.elapsed().as_secs_f64());
    let namespace = NamespaceId(load.claim.namespace);
    let Load { inherited, at, .. } = load;
    let came = inherited.said().filter(|(place, _)| *place < at);
    let said: Vec<_> = came.map(|(place, said)| (blocks[place], said)).collect();
    want(shared, tiers.as_ref(), namespace, &said);
    (brought, inherited)
}

/// Remembers what was said of blocks, for whoever has them here.
fn want(
    shared: &Shared,
    tiers: Option<&Arc<Tiers>>,
    namespace: NamespaceId,
    said: &[(SequenceHash, Retention)],
) {
    shared.wants.lock().note_all(said);
    if let Some(tiers) = tiers {
        tiers.want(namespace, said);
    }
}

/// The names of the blocks that may be of use: all of the prompt, or as many as the sources hold.
fn names(
    life: &Life,
    request: &Request,
    sources: &[v1::BlockSource],
    all: bool,
) -> Vec<SequenceHash> {
    let block_tokens = life.info.block_tokens.max(1) as usize;
    // The last token is always computed, so the block that it ends is of no use.
    let useful = request.tokens.len().saturating_sub(1) / block_tokens;
    let offered = sources.iter().map(|source| source.blocks as usize).max().unwrap_or(0);
    let most = if all { useful } else { offered.min(useful) };
    let tokens = &request.tokens[..most * block_tokens];
    let namespace = NamespaceId(request.namespace);
    BlockHasher::hash_prompt(life.hash_key, namespace, life.info.block_tokens, tokens)
}

/// How many leading blocks the engine has.
pub(super) fn held(shared: &Shared, blocks: &[SequenceHash]) -> usize {
    let state = shared.events.lock();
    blocks.iter().take_while(|block| state.map.holds(**block, Tier::Device)).count()
}

/// Blocks on their way in.
pub(super) struct Load<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) life: &'a Arc<Life>,
    tiers: Option<&'a Arc<Tiers>>,
    pub(super) claim: Claim,
    pub(super) blocks: &'a [SequenceHash],
    /// How many are there.
    pub(super) at: usize,
    need: Need,
    /// Who is being asked, and how many blocks were there when that began.
    asking: Option<(From, usize)>,
    /// Of asking.
    pub(super) loading: Span,
    /// What was claimed for the blocks that came.
    pub(super) inherited: Inherited,
}

impl Load<'_> {
    /// Brings in for itself and others, or waits for who does.
    async fn run(&mut self, sources: &[v1::BlockSource]) {
        while self.at + BLOCKS_MIN <= self.blocks.len() {
            let from = self.at;
            match self.shared.transfers.loading.enter(self.blocks[from]) {
                Turn::First(lead) => {
                    self.ask_all(sources).await;
                    lead.brought(&self.blocks[from..self.at]);
                    return;
                }
                Turn::After(other) => {
                    metrics::counter!("mainstay_worker_loads_joined_total").increment(1);
                    let Some(brought) = other.brought().await else {
                        // What it had taken in before it gave up is in the map by now, or is brought again.
                        self.at = self.at.max(held(self.shared, self.blocks));
                        continue;
                    };
                    let rest = &self.blocks[from..];
                    let same = rest.iter().zip(brought.iter()).take_while(|(a, b)| a == b).count();
                    self.at += same;
                    // Where the other found nothing, there is nothing.
                    if same == 0 {
                        return;
                    }
                }
            }
        }
    }

    async fn ask_all(&mut self, sources: &[v1::BlockSource]) {
        if self.ask_local().await.is_final() {
            return;
        }
        // One more would make all of them slower; computing is the way out.
        let Ok(_permit) = self.shared.transfers.taking.try_acquire() else { return };
        let mut left: Vec<(From, usize)> = Vec::with_capacity(sources.len() + 1);
        left.extend(sources.iter().map(|source| {
            (
                From::Peer(source.address.as_str().into()),
                (source.blocks as usize).min(self.blocks.len()),
            )
        }));
        if let Some(remote) = self.tiers.and_then(|tiers| tiers.remote()) {
            let pack = remote.pack_blocks();
            left.push((From::Remote, self.blocks.len() - self.blocks.len() % pack));
        }
        while let Some((from, reach)) = self.best(&mut left) {
            let ended = self.ask(from, reach).await;
            // What comes next in the chain may be here all the same.
            if ended.is_final() || self.ask_local().await.is_final() {
                return;
            }
        }
    }

    /// Takes the source out that is worth most now, if one is worth anything.
    fn best(&self, left: &mut Vec<(From, usize)>) -> Option<(From, usize)> {
        let now_ms = self.shared.now_ms();
        let pauses = self.shared.transfers.pauses.lock();
        left.retain(|(from, reach)| {
            *reach >= self.at + BLOCKS_MIN
                && from.pause().is_none_or(|name| !pauses.holds(name, now_ms))
        });
        drop(pauses);
        let offer = |(from, reach): &(From, usize)| {
            let kind = if *from == From::Remote { Far::Remote } else { Far::Peer };
            Offer { kind, blocks: reach - self.at }
        };
        let offers: Vec<Offer> = left.iter().map(offer).collect();
        let order = self.shared.transfers.rates.order(&offers, &self.need, now_ms);
        order.first().map(|at| left.remove(*at))
    }

    async fn ask_local(&mut self) -> Ended {
        let Some(tiers) = self.tiers.filter(|tiers| tiers.local().is_some()) else {
            return Ended::Source;
        };
        let from = self.at;
        self.asking = Some((From::Local, from));
        self.loading = self.claim.span.child("load", Kind::Client);
        let ended = self.take_local(tiers).await;
        // To have nothing is what most prompts find, and no load.
        if ended == Ended::Source && self.at == from {
            self.asking = None;
            self.loading = Span::default();
        }
        self.conclude(ended);
        ended
    }

    async fn ask(&mut self, from: From, reach: usize) -> Ended {
        self.asking = Some((from.clone(), self.at));
        self.loading = self.claim.span.child("load", Kind::Client);
        let ended = match (&from, self.tiers) {
            (From::Peer(address), _) => self.take_from_peer(address, reach).await,
            (From::Remote, Some(tiers)) => self.take_remote(tiers).await,
            _ => Ended::Source,
        };
        self.conclude(ended);
        ended
    }

    /// A source was asked to its end.
    fn conclude(&mut self, ended: Ended) {
        let Some((from, at)) = self.asking.take() else { return };
        self.tell(&from, at, ended);
        if let Some(name) = from.pause() {
            let mut pauses = self.shared.transfers.pauses.lock();
            match ended {
                Ended::Refused | Ended::Damaged | Ended::Late => {
                    pauses.failed(name, self.shared.now_ms());
                }
                Ended::Source => pauses.well(name),
                Ended::Room | Ended::Engine | Ended::Left => {}
            }
        }
    }

    /// What became of asking a source.
    fn tell(&mut self, from: &From, at: usize, ended: Ended) {
        count_end(from, ended);
        let span = std::mem::take(&mut self.loading);
        span.set("mainstay.from", from.name());
        span.set("mainstay.blocks", (self.at - at) as i64);
        span.set("mainstay.ended", ended.name());
    }

    /// Nobody waits any longer.
    fn cut_off(&mut self, ended: Ended, after: Duration) {
        let progressed = self.asking.as_ref().is_some_and(|(_, from)| self.at > *from);
        if ended == Ended::Late && progressed {
            // Slow, and not deaf: the rates know that.
            if let Some((from, at)) = self.asking.take() {
                self.tell(&from, at, ended);
            }
            return;
        }
        let local = self.asking.as_ref().is_some_and(|(from, _)| *from == From::Local);
        if ended == Ended::Late && local {
            self.local_is_late(after);
        }
        self.conclude(ended);
    }

    /// A tier of this machine did not give in all that time what would have come next: it is at least as slow as that.
    /// Else a disk that hangs would be taken for as quick as it ever was.
    fn local_is_late(&self, after: Duration) {
        let tier = self.tiers.and_then(|tiers| tiers.local()).map(|local| local.furthest());
        let blocks = self.step().min(self.blocks.len() - self.at) as u64;
        let tokens = blocks * u64::from(self.life.info.block_tokens);
        if let Some(tier) = tier {
            self.shared.meter.loaded(tier, u32::try_from(tokens).unwrap_or(u32::MAX), after);
        }
    }

    /// Has the engine take in the next blocks, whose bytes were checked.
    pub(super) async fn import(&mut self, count: usize, bytes: Vec<u8>) -> Result<(), Ended> {
        let before = self.at.checked_sub(1).map(|at| self.blocks[at].0);
        let Claim { namespace, priority, duration_ms, .. } = self.claim;
        let import = KvImport {
            namespace,
            parent: before.unwrap_or(namespace),
            layout: self.life.info.kv_layout,
            blocks: self.blocks[self.at..self.at + count].iter().map(|block| block.0).collect(),
            bytes,
            priority,
            duration_ms,
        };
        let taken = self.shared.transfers.import(self.life, import).await.map_err(|error| {
            tracing::debug!(%error, "the engine takes no blocks");
            Ended::Engine
        })? as usize;
        self.at += taken.min(count);
        if let Some((from, _)) = &self.asking {
            metrics::counter!("mainstay_worker_loaded_blocks_total", "from" => from.name())
                .increment(taken as u64);
        }
        if taken < count { Err(Ended::Room) } else { Ok(()) }
    }
}

fn count_end(from: &From, ended: Ended) {
    let ended = ended.name();
    metrics::counter!("mainstay_worker_loads_total", "from" => from.name(), "ended" => ended)
        .increment(1);
    if matches!(from, From::Peer(_)) {
        metrics::counter!("mainstay_worker_transfers_total", "ended" => ended).increment(1);
    }
}
