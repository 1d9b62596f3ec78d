//! Blocks between two workers with real hosts, and from sources that are not what they should be.

mod wire;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
use crate::tests::fake_control::FakeControl;
use crate::tests::hosted::{BLOCK_BYTES, BLOCK_TOKENS, Parrot, content};
use crate::tests::{Stage, counted, eventually};

async fn worker(control: &FakeControl, name: &str) -> WorkerHandle {
    worker_that(control, name, serde_json::json!({})).await
}

/// A worker whose engine has a configuration.
async fn worker_that(
    control: &FakeControl,
    name: &str,
    engine_config: serde_json::Value,
) -> WorkerHandle {
    // Before the first count, or counts before it are lost.
    counted("none", &[]);
    let source = Source::Linked(entry_point::<Parrot>());
    let config = WorkerConfig {
        engine_config,
        ..WorkerConfig::new(name, vec![control.address.clone()], source)
    };
    start(config).await.expect("starts")
}

fn loads(ended: &str) -> u64 {
    let ended = format!("ended=\"{ended}\"");
    counted("mainstay_worker_loads_total", &["from=\"peer\"", &ended])
}

fn prompt() -> Vec<u32> {
    (0..41).collect()
}

/// Whole blocks before the prompt's last token, in tokens.
const WHOLE: u32 = 40;

/// Generates and says how many tokens were cached.
async fn cached(worker: &WorkerHandle, sources: &[(String, u32)]) -> u32 {
    cached_of(worker, sources, &prompt()).await
}

/// The same of any prompt.
async fn cached_of(worker: &WorkerHandle, sources: &[(String, u32)], prompt: &[u32]) -> u32 {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    let source = |(address, blocks): &(String, u32)| v1::BlockSource {
        address: address.clone(),
        blocks: *blocks,
    };
    let sources = sources.iter().map(source).collect();
    let request = v1::GenerateRequest { tokens: pack(prompt), sources, ..Stage::request() };
    let mut events = client.generate(request).await.expect("taken").into_inner();
    let (mut tokens, mut cached) = (Vec::new(), 0);
    while let Some(event) = events.message().await.expect("an event") {
        tokens.extend_from_slice(&event.tokens);
        cached = event.cached_tokens;
    }
    assert_eq!(tokens, prompt, "the answer is the same whatever came in");
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
    eventually("indexed", || control.held_of(id, &hashes) == hashes.len() as u64).await;
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

/// Gives blocks whose bytes, sums or counts are wrong, or gives them late.
#[derive(Clone)]
struct Liar {
    lie: Lie,
    after: Duration,
    asked: Arc<AtomicUsize>,
}

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

    async fn prefetch(
        &self,
        _: Request<v1::PrefetchRequest>,
    ) -> Result<Response<v1::PrefetchReply>, Status> {
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
        self.asked.fetch_add(1, Ordering::AcqRel);
        tokio::time::sleep(self.after).await;
        let names = request.into_inner().blocks;
        let names: Vec<u128> =
            names.as_chunks::<16>().0.iter().map(|name| u128::from_le_bytes(*name)).collect();
        let bytes: Vec<u8> = names.iter().flat_map(|name| content(*name)).collect();
        let mut chunk = v1::ExportedBlocks {
            count: names.len() as u32,
            checksum: checksum(SequenceHash(names[0]), &bytes),
            content: bytes.into(),
            ..v1::ExportedBlocks::default()
        };
        (self.lie)(&mut chunk);
        Ok(Response::new(Box::pin(futures::stream::once(async move { Ok(chunk) }))))
    }
}

async fn liar(lie: Lie) -> SocketAddr {
    source(lie, Duration::ZERO).await.0
}

/// A source, and how often it was asked.
async fn source(lie: Lie, after: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let liar = Liar { lie, after, asked: Arc::clone(&asked) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let served = tonic::transport::Server::builder()
        .add_service(WorkerServer::new(liar))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(served);
    (address, asked)
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
        let damaged = loads("damaged");
        assert_eq!(cached(&worker, &[(source, blocks)]).await, 0, "{what}");
        assert_eq!(loads("damaged"), damaged + 1, "{what}");
    }
    // And one that does not lie, so that the others failed for what they did.
    let worker = worker(&control, "honest").await;
    let source = liar(|_| {}).await.to_string();
    assert_eq!(cached(&worker, &[(source, blocks)]).await, WHOLE);
}

/// Blocks of the prompt that a source may have.
const BLOCKS: u32 = WHOLE / BLOCK_TOKENS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_hangs_holds_up_no_longer_than_computing_and_is_left_alone() {
    let control = FakeControl::start().await;
    let worker = worker_that(&control, "patient", serde_json::json!({"prefill_us": 400_000})).await;
    // The worker knows its pace from here on: computing a prompt takes 0.4 s, and a load may take as long.
    let first: Vec<u32> = (100..141).collect();
    assert_eq!(cached_of(&worker, &[], &first).await, 0);
    let (address, asked) = source(|_| {}, Duration::from_secs(60)).await;
    let sources = [(address.to_string(), BLOCKS)];
    let (late, begun) = (loads("late"), Instant::now());
    assert_eq!(cached(&worker, &sources).await, 0);
    assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
    assert_eq!(loads("late"), late + 1);
    let other: Vec<u32> = (200..241).collect();
    assert_eq!(cached_of(&worker, &sources, &other).await, 0);
    assert_eq!(asked.load(Ordering::Acquire), 1, "it is paused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_room_or_that_refuses_ends_the_load() {
    let control = FakeControl::start().await;
    let room = loads("room");
    let narrow = worker_that(&control, "narrow", serde_json::json!({"takes": 3})).await;
    let honest = [(liar(|_| {}).await.to_string(), BLOCKS)];
    assert_eq!(cached(&narrow, &honest).await, 3 * BLOCK_TOKENS);
    assert_eq!(loads("room"), room + 1);
    // The sum is right, the bytes are not those of the names: this engine alone can tell.
    let refused = loads("engine");
    let worker = worker(&control, "strict").await;
    let wrong: Lie = |chunk| {
        let mut first = [0; 16];
        first.copy_from_slice(&chunk.content[..16]);
        chunk.content = vec![7; chunk.content.len()].into();
        // Its first block's name is what the honest bytes say.
        chunk.checksum = checksum(SequenceHash(u128::from_le_bytes(first)), &chunk.content);
    };
    let (address, _) = source(wrong, Duration::ZERO).await;
    assert_eq!(cached(&worker, &[(address.to_string(), BLOCKS)]).await, 0);
    assert_eq!(loads("engine"), refused + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_ends_its_load_and_is_not_computed_for() {
    let control = FakeControl::start().await;
    let worker = worker(&control, "left").await;
    let (address, asked) = source(|_| {}, Duration::from_secs(60)).await;
    let left = loads("left");
    let sources = [(address.to_string(), BLOCKS)];
    let generating = cached(&worker, &sources);
    assert!(tokio::time::timeout(Duration::from_millis(500), generating).await.is_err());
    eventually("left", || loads("left") == left + 1).await;
    assert_eq!(asked.load(Ordering::Acquire), 1);
    // Its place is free, and nothing was computed.
    assert_eq!(cached(&worker, &[]).await, 0);
    assert_eq!(worker.drain().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_brings_a_prefix_in_and_the_others_wait_for_it() {
    let control = FakeControl::start().await;
    let worker = worker(&control, "joint").await;
    let (address, asked) = source(|_| {}, Duration::from_millis(300)).await;
    let sources = [(address.to_string(), BLOCKS)];
    // Each goes on in its own way behind the common prefix.
    let prompts = (0..6).map(|n| {
        let mut tokens = prompt();
        tokens.extend([900 + n, 1, 2, 3, 4, 5, 6]);
        tokens
    });
    let all: Vec<Vec<u32>> = prompts.collect();
    let cached = all.iter().map(|prompt| cached_of(&worker, &sources, prompt));
    assert_eq!(futures::future::join_all(cached).await, vec![WHOLE; all.len()]);
    assert_eq!(asked.load(Ordering::Acquire), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_hangs_ends_and_frees_its_place() {
    let stage = Stage::set().await;
    stage.engine().notes.lock().hangs = true;
    let request = || v1::ExportBlocksRequest { blocks: vec![1; 16].into(), ..Default::default() };
    let mut open = Vec::new();
    for _ in 0..super::TRANSFERS_MAX {
        open.push(stage.client().export_blocks(request()).await.expect("taken").into_inner());
    }
    let more = stage.client().export_blocks(request()).await.expect_err("one too many");
    assert_eq!(more.code(), tonic::Code::ResourceExhausted);
    let ended = open[0].message().await.expect_err("too late");
    assert_eq!(ended.code(), tonic::Code::DeadlineExceeded);
    // The others are not read at all, and end too.
    let mut again = Vec::new();
    let begun = Instant::now();
    while again.len() < super::TRANSFERS_MAX {
        assert!(begun.elapsed() < super::SERVE_MAX, "only {} are free", again.len());
        match stage.client().export_blocks(request()).await {
            Ok(stream) => again.push(stream),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Names of the prompt's whole blocks.
fn names() -> Vec<SequenceHash> {
    mainstay_types::BlockHasher::hash_prompt(
        mainstay_types::HashKey(crate::tests::fake_control::HASH_KEY),
        mainstay_types::NamespaceId(u128::from_le_bytes([1; 16])),
        BLOCK_TOKENS,
        &prompt(),
    )
}

fn prefetch_of(sources: &[(String, u32)]) -> v1::PrefetchRequest {
    let source = |(address, blocks): &(String, u32)| v1::BlockSource {
        address: address.clone(),
        blocks: *blocks,
    };
    v1::PrefetchRequest {
        namespace: vec![1; 16].into(),
        blocks: names().iter().flat_map(|name| name.0.to_le_bytes()).collect(),
        priority: 80,
        duration_ms: 60_000,
        sources: sources.iter().map(source).collect(),
        epoch: 0,
    }
}

async fn prefetch(
    worker: &WorkerHandle,
    request: v1::PrefetchRequest,
) -> Result<(u32, u32), Status> {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    client.prefetch(request).await.map(|reply| {
        let reply = reply.into_inner();
        (reply.held, reply.brought)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_brings_in_what_is_elsewhere_and_computes_nothing() {
    let control = FakeControl::start().await;
    let (one, other) = (worker(&control, "one").await, worker(&control, "other").await);
    assert_eq!(cached(&one, &[]).await, 0);
    let blocks = names().len() as u32;
    let sources = [(one.address().to_string(), blocks)];
    // Nobody is named, and nothing is computed.
    assert_eq!(prefetch(&other, prefetch_of(&[])).await.expect("taken"), (0, 0));
    assert_eq!(prefetch(&other, prefetch_of(&sources)).await.expect("taken"), (0, blocks));
    // What came in is known to be there once its events are heard.
    let begun = Instant::now();
    while prefetch(&other, prefetch_of(&sources)).await.expect("taken") != (blocks, 0) {
        assert!(begun.elapsed() < super::SERVE_MAX, "never held");
    }
    // The request that follows finds all of it, though nobody is named to it.
    assert_eq!(cached(&other, &[]).await, WHOLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_that_makes_no_sense_is_refused() {
    let control = FakeControl::start().await;
    let worker = worker(&control, "w").await;
    let usual = prefetch_of(&[]);
    for (what, bad) in [
        ("priority", v1::PrefetchRequest { priority: 101, ..usual.clone() }),
        ("no names", v1::PrefetchRequest { blocks: bytes::Bytes::new(), ..usual.clone() }),
        ("half a name", v1::PrefetchRequest { blocks: vec![1; 24].into(), ..usual.clone() }),
        ("namespace", v1::PrefetchRequest { namespace: vec![1; 15].into(), ..usual.clone() }),
    ] {
        let refused = prefetch(&worker, bad).await.expect_err(what);
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{what}");
    }
    let former = v1::PrefetchRequest { epoch: u64::MAX, ..usual };
    let refused = prefetch(&worker, former).await.expect_err("another epoch");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetches_are_bounded_and_end_with_their_caller() {
    let control = FakeControl::start().await;
    let worker = worker(&control, "bounded").await;
    let (address, asked) = source(|_| {}, Duration::from_secs(60)).await;
    let sources = [(address.to_string(), BLOCKS)];
    let left = loads("left");
    let all = (0..super::PREFETCHES_MAX).map(|_| prefetch(&worker, prefetch_of(&sources)));
    let mut all = Box::pin(futures::future::join_all(all));
    let waiting = tokio::time::timeout(Duration::from_millis(400), &mut all).await;
    assert!(waiting.is_err(), "they wait for the source");
    assert_eq!(asked.load(Ordering::Acquire), 1, "one load for one prefix");
    let more = prefetch(&worker, prefetch_of(&sources)).await.expect_err("one too many");
    assert_eq!(more.code(), tonic::Code::ResourceExhausted);
    drop(all);
    // Who waited for the first may have taken its place before it left, too.
    eventually("left", || loads("left") > left).await;
    // And their places are free within moments.
    let free = async {
        while prefetch(&worker, prefetch_of(&[])).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), free).await.is_ok());
}
