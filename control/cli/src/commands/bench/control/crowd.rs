//! `mainstay bench console`: a gateway before a crowd of simulated workers, for a browser to look at.
//!
//! Member, gateway, replica, index and console are the real ones, and so are the calls: each worker registers, publishes
//! the frames of its blocks, and tells its load every second. Simulated are the engines alone: all workers share one
//! address, answer no request, and make their loads up. One of them holds as many blocks as were asked for, the others a
//! hundred each; the chains are those of the tenant that shows no key, so that its map has them one by one.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::Stream;
use mainstay_gateway::{GatewayConfig, GatewayHandle};
use mainstay_index::BlockIndex;
use mainstay_proto::convert::event_to_wire;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_server::{Worker, WorkerServer};
use mainstay_types::{
    BlockEvent, BlockHashKey, HashKey, NamespaceId, SequenceHash, Tier, WorkerId,
};
use tokio::sync::Semaphore;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::cluster::Cluster;
use super::index::{UNDER_WAY, put_all};
use crate::config::{ModelFiles, model_files};
use crate::output::print;

/// The model's block size and context, and each worker's room.
const BLOCK_TOKENS: u32 = 16;
const CONTEXT_TOKENS: u32 = 131_072;
const BLOCKS_TOTAL: u64 = 131_072;
/// Blocks of each worker but the first, in two chains of which three others hold the first one, too.
const BLOCKS_EACH: u64 = 100;
/// Blocks of an event.
const EVENT_BLOCKS: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Simulated workers
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=8_000))]
    workers: u32,
    /// Blocks of the first one
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=131_072))]
    blocks: u64,
    /// Where the gateway listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let model = model_files(None, None)?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let like = v1::RegisterWorker {
        name: "w".to_owned(),
        address: listener.local_addr()?.to_string(),
        incarnation: 1,
        model: Some(v1::ModelSpec {
            name: model.name.clone(),
            revision: model.revision.clone(),
            block_tokens: BLOCK_TOKENS,
            context_tokens_max: CONTEXT_TOKENS,
        }),
        blocks_total: BLOCKS_TOTAL,
        region: String::new(),
    };
    let model_name = format!("{}@{}", model.name, model.revision);
    let crowd = WorkerServer::new(Crowd { model: Arc::new(model), streams: Arc::default() });
    let server = tonic::transport::Server::builder().add_service(crowd);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let cluster = Cluster::start(1, false).await?;
    let registered = cluster.register_like(&like, args.workers).await?;
    let member = cluster.leader().await?;
    let gateway = GatewayConfig::new(args.listen, vec![member.address().to_string()]);
    let gateway = mainstay_gateway::start(gateway).await?;
    let key = registered.first().context("at least one worker")?.hash_key.as_ref().try_into();
    let key = BlockHashKey::new(HashKey(key.context("a hash key of 16 bytes")?));
    let chains = Chains { namespace: key.namespace("default", &model_name, "", BLOCK_TOKENS), key };
    fill(&cluster, &chains, &registered, args.blocks).await?;
    wait_until_seen(&gateway, args.workers as usize).await?;
    print(&format!("ready http://{}", gateway.address()));
    print(&format!("console {}", gateway.console().unwrap_or_default()));
    crate::commands::asked_to_stop().await?;
    gateway.shutdown().await;
    cluster.end().await;
    Ok(())
}

async fn wait_until_seen(gateway: &GatewayHandle, workers: usize) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while gateway.routable_workers() < workers {
        let seen = gateway.routable_workers();
        ensure!(Instant::now() < until, "the gateway reaches {seen} of {workers} workers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// What prompts of the tenant that shows no key hash to.
struct Chains {
    key: BlockHashKey,
    namespace: NamespaceId,
}

impl Chains {
    /// The events of a chain of so many blocks; `number` tells it from others.
    fn stored(&self, number: u32, blocks: u64) -> Vec<BlockEvent> {
        let (mut parent, mut left, mut events) = (self.namespace.0, blocks, Vec::new());
        while left > 0 {
            let from = parent;
            let hashes = (0..left.min(EVENT_BLOCKS)).map(|_| {
                parent = self.key.block_hash(parent, &[number; BLOCK_TOKENS as usize]);
                SequenceHash(parent)
            });
            let blocks: Vec<SequenceHash> = hashes.collect();
            left -= blocks.len() as u64;
            let (namespace, tier) = (self.namespace, Tier::Device);
            events.push(BlockEvent::Stored { namespace, parent: SequenceHash(from), blocks, tier });
        }
        events
    }

    /// What the worker of that place holds.
    fn held(&self, place: u32, blocks: u64) -> Vec<BlockEvent> {
        if place > 0 {
            let shared = self.stored(place / 4, BLOCKS_EACH / 5);
            return [shared, self.stored(1_000_000 + place, BLOCKS_EACH - BLOCKS_EACH / 5)]
                .concat();
        }
        let (mut left, mut number, mut events) = (blocks, 0, Vec::new());
        while left > 0 {
            // Chains of many lengths.
            let length = left.min(20 + u64::from(number) * 7_919 % 900);
            events.extend(self.stored(2_000_000 + number, length));
            (left, number) = (left - length, number + 1);
        }
        events
    }
}

/// Publishes what every worker holds, as each would.
async fn fill(
    cluster: &Cluster,
    chains: &Chains,
    workers: &[v1::RegisterReply],
    blocks: u64,
) -> anyhow::Result<()> {
    let client = Cluster::client(cluster.leader().await?)?;
    let under_way = Semaphore::new(UNDER_WAY);
    let mut index = BlockIndex::new(u64::MAX);
    for (place, reply) in (0..).zip(workers) {
        let worker = WorkerId(reply.worker);
        let frames: Vec<v1::EventFrame> = (1..)
            .zip(chains.held(place, blocks))
            .map(|(sequence, event)| {
                index.apply(worker, &event);
                v1::EventFrame {
                    worker: worker.0,
                    epoch: reply.epoch,
                    sequence,
                    events: vec![event_to_wire(&event)],
                    digest: index.digest(worker),
                    blocks: index.worker_block_count(worker),
                }
            })
            .collect();
        put_all(&mut client.clone(), &frames, &under_way).await?;
    }
    Ok(())
}

/// The service of all workers at once: a call does not say which of them it means.
struct Crowd {
    model: Arc<ModelFiles>,
    streams: Arc<AtomicU32>,
}

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

const NO_ENGINE: &str = "a simulated worker of `mainstay bench console` has no engine";

#[tonic::async_trait]
impl Worker for Crowd {
    type GenerateStream = Reply<v1::GenerateEvent>;
    type WatchLoadStream = Reply<v1::Load>;
    type ExportBlocksStream = Reply<v1::ExportedBlocks>;

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        let file = |(name, content): &(String, bytes::Bytes)| v1::ModelFile {
            name: name.clone(),
            content: content.clone(),
        };
        let files =
            request.into_inner().with_files.then(|| self.model.files.iter().map(file).collect());
        Ok(Response::new(v1::DescribeReply {
            model: self.model.name.clone(),
            revision: self.model.revision.clone(),
            block_tokens: BLOCK_TOKENS,
            context_tokens_max: CONTEXT_TOKENS,
            device: "simulated".to_owned(),
            blocks_total: BLOCKS_TOTAL,
            files: files.unwrap_or_default(),
            ..v1::DescribeReply::default()
        }))
    }

    async fn watch_load(
        &self,
        _: Request<v1::WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let number = u64::from(self.streams.fetch_add(1, Ordering::Relaxed));
        let pace = tokio::time::interval(Duration::from_secs(1));
        let loads = futures::stream::unfold((pace, 0), move |(mut pace, tick)| async move {
            pace.tick().await;
            Some((Ok(load(number, tick)), (pace, tick + 1)))
        });
        Ok(Response::new(Box::pin(loads)))
    }

    async fn generate(
        &self,
        _: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unavailable(NO_ENGINE))
    }

    async fn change_leases(
        &self,
        _: Request<v1::ChangeLeasesRequest>,
    ) -> Result<Response<v1::ChangeLeasesReply>, Status> {
        Ok(Response::new(v1::ChangeLeasesReply {}))
    }

    async fn prefetch(
        &self,
        _: Request<v1::PrefetchRequest>,
    ) -> Result<Response<v1::PrefetchReply>, Status> {
        Err(Status::unavailable(NO_ENGINE))
    }

    async fn export_blocks(
        &self,
        _: Request<v1::ExportBlocksRequest>,
    ) -> Result<Response<Self::ExportBlocksStream>, Status> {
        Err(Status::unavailable(NO_ENGINE))
    }
}

/// A load that is another one every second.
fn load(number: u64, tick: u64) -> v1::Load {
    let cached = (number * 3_701 + tick * 911) % (BLOCKS_TOTAL - 64);
    v1::Load {
        running: ((number + tick) % 9) as u32,
        waiting: ((number * tick) % 5) as u32,
        blocks_total: BLOCKS_TOTAL,
        blocks_used: cached + 40,
        blocks_cached: cached,
        blocks_pinned: cached / 4,
        epoch: 1,
        hit_tokens: number * 900 + tick * 16,
        query_tokens: number * 1_000 + tick * 20,
        evictions: tick * number,
        prefill_us_per_token: 12.5,
        decode_us_per_step: 9_000.0,
        ..v1::Load::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_holds_what_it_says() {
        let key = BlockHashKey::new(HashKey([7; 16]));
        let chains = Chains { namespace: key.namespace("default", "m@1", "", BLOCK_TOKENS), key };
        let mut index = BlockIndex::new(u64::MAX);
        for place in 0..8 {
            for event in chains.held(place, 5_000) {
                index.apply(WorkerId(place + 1), &event);
            }
        }
        assert_eq!(index.worker_block_count(WorkerId(1)), 5_000);
        for place in 1..8 {
            assert_eq!(index.worker_block_count(WorkerId(place + 1)), BLOCKS_EACH, "{place}");
        }
        // The chain that workers share is there once.
        let different = 5_000 + 7 * (BLOCKS_EACH - BLOCKS_EACH / 5) + 2 * (BLOCKS_EACH / 5);
        assert_eq!(index.block_count(), different);
    }
}
