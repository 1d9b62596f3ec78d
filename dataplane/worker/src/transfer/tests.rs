//! Blocks between two workers with real hosts, and from sources that are not what they should be.

use std::net::SocketAddr;
use std::pin::Pin;

use futures::Stream;
use mainstay_engine_abi::sdk::entry_point;
use mainstay_engine_host::Source;
use mainstay_proto::tokens::pack;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_proto::v1::worker_server::{Worker, WorkerServer};
use mainstay_types::SequenceHash;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::checksum;
use crate::config::WorkerConfig;
use crate::lifecycle::{WorkerHandle, start};
use crate::tests::Stage;
use crate::tests::fake_control::FakeControl;
use crate::tests::hosted::{BLOCK_BYTES, BLOCK_TOKENS, Parrot, content};

async fn worker(control: &FakeControl, name: &str) -> WorkerHandle {
    let source = Source::Linked(entry_point::<Parrot>());
    let config = WorkerConfig::new(name, vec![control.address.clone()], source);
    start(config).await.expect("starts")
}

fn prompt() -> Vec<u32> {
    (0..41).collect()
}

/// Whole blocks before the prompt's last token, in tokens.
const WHOLE: u32 = 40;

/// Generates and says how many tokens were cached.
async fn cached(worker: &WorkerHandle, sources: &[(String, u32)]) -> u32 {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    let source = |(address, blocks): &(String, u32)| v1::BlockSource {
        address: address.clone(),
        blocks: *blocks,
    };
    let sources = sources.iter().map(source).collect();
    let request = v1::GenerateRequest { tokens: pack(&prompt()), sources, ..Stage::request() };
    let mut events = client.generate(request).await.expect("taken").into_inner();
    let (mut tokens, mut cached) = (Vec::new(), 0);
    while let Some(event) = events.message().await.expect("an event") {
        tokens.extend_from_slice(&event.tokens);
        cached = event.cached_tokens;
    }
    assert_eq!(tokens, prompt(), "the answer is the same whatever came in");
    cached
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_worker_computed_the_other_hits() {
    let control = FakeControl::start().await;
    let (one, other) = (worker(&control, "one").await, worker(&control, "other").await);
    assert_eq!(cached(&one, &[]).await, 0);
    let sources = [(one.address().to_string(), WHOLE / BLOCK_TOKENS)];
    assert_eq!(cached(&other, &sources).await, WHOLE);
    let mut hashes = mainstay_types::BlockHasher::hash_prompt(
        mainstay_types::HashKey(crate::tests::fake_control::HASH_KEY),
        mainstay_types::NamespaceId(u128::from_le_bytes([1; 16])),
        BLOCK_TOKENS,
        &prompt(),
    );
    hashes.truncate((WHOLE / BLOCK_TOKENS) as usize);
    let id = other.worker_id();
    crate::tests::eventually("indexed", || control.held_of(id, &hashes) == hashes.len() as u64)
        .await;
    assert!(control.faults().is_empty(), "{:?}", control.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_gone_holds_less_or_is_the_worker_itself_costs_nothing_but_the_hit() {
    let control = FakeControl::start().await;
    let (one, other) = (worker(&control, "one").await, worker(&control, "other").await);
    let gone = "127.0.0.1:1".to_owned();
    let itself = other.address().to_string();
    let empty = one.address().to_string();
    assert_eq!(cached(&other, &[(gone, 90), (itself, 80), (empty, 70)]).await, 0);
}

type Lie = fn(&mut v1::ExportedBlocks);

/// Gives blocks whose bytes, sums or counts are wrong.
struct Liar(Lie);

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Liar {
    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        Err(Status::unimplemented("a source alone"))
    }

    type GenerateStream = Reply<v1::GenerateEvent>;

    async fn generate(
        &self,
        _: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unimplemented("a source alone"))
    }

    async fn change_leases(
        &self,
        _: Request<v1::ChangeLeasesRequest>,
    ) -> Result<Response<v1::ChangeLeasesReply>, Status> {
        Err(Status::unimplemented("a source alone"))
    }

    type WatchLoadStream = Reply<v1::Load>;

    async fn watch_load(
        &self,
        _: Request<v1::WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        Err(Status::unimplemented("a source alone"))
    }

    type ExportBlocksStream = Reply<v1::ExportedBlocks>;

    async fn export_blocks(
        &self,
        request: Request<v1::ExportBlocksRequest>,
    ) -> Result<Response<Self::ExportBlocksStream>, Status> {
        let names = request.into_inner().blocks;
        let names: Vec<u128> =
            names.as_chunks::<16>().0.iter().map(|name| u128::from_le_bytes(*name)).collect();
        let bytes: Vec<u8> = names.iter().flat_map(|name| content(*name)).collect();
        let mut chunk = v1::ExportedBlocks {
            count: names.len() as u32,
            checksum: checksum(SequenceHash(names[0]), &bytes),
            content: bytes.into(),
        };
        (self.0)(&mut chunk);
        Ok(Response::new(Box::pin(futures::stream::once(async move { Ok(chunk) }))))
    }
}

async fn liar(lie: Lie) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let served = tonic::transport::Server::builder()
        .add_service(WorkerServer::new(Liar(lie)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(served);
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_blocks_are_computed_instead() {
    let control = FakeControl::start().await;
    let blocks = WHOLE / BLOCK_TOKENS;
    let lies: [(&str, Lie); 5] = [
        ("a flipped bit", |chunk| {
            let mut bytes = chunk.content.to_vec();
            bytes[BLOCK_BYTES + 3] ^= 4;
            chunk.content = bytes.into();
        }),
        ("another sum", |chunk| chunk.checksum ^= 1),
        ("too many", |chunk| chunk.count += 1),
        ("none", |chunk| chunk.count = 0),
        ("bytes cut", |chunk| chunk.content = chunk.content.slice(1..)),
    ];
    for (what, lie) in lies {
        let worker = worker(&control, what).await;
        let source = liar(lie).await.to_string();
        assert_eq!(cached(&worker, &[(source, blocks)]).await, 0, "{what}");
    }
    // And one that does not lie, so that the others failed for what they did.
    let worker = worker(&control, "honest").await;
    let source = liar(|_| {}).await.to_string();
    assert_eq!(cached(&worker, &[(source, blocks)]).await, WHOLE);
}
