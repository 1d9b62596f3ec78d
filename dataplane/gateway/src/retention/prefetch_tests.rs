//! Prefetches as workers see them: those that are due, those that clients ask for, and those whose session is back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::Stream;
use mainstay_block::{Event, SessionId, Stakes};
use mainstay_proto::client::channel;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_server::{Worker, WorkerServer};
use mainstay_types::{HashKey, NamespaceId, SequenceHash, TenantId, WorkerId};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::*;
use crate::model::PromptMemory;
use crate::placement::Placement;
use crate::replica::Replica;
use crate::testing::SOON;

/// Blocks of every session's prefix.
const BLOCKS: u32 = 10;

/// Holds a block of whatever it is asked for, and brings in the rest, after a while.
#[derive(Clone)]
struct Loader {
    after: Duration,
    asked: Arc<Mutex<Vec<v1::PrefetchRequest>>>,
    /// Calls that were left before their end.
    left: Arc<AtomicUsize>,
}

/// Counts a call that ends before it was answered.
struct Leaving(Option<Arc<AtomicUsize>>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(left) = &self.0 {
            left.fetch_add(1, Ordering::AcqRel);
        }
    }
}

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("it loads"))
}

#[tonic::async_trait]
impl Worker for Loader {
    type GenerateStream = Reply<v1::GenerateEvent>;
    type WatchLoadStream = Reply<v1::Load>;
    type ExportBlocksStream = Reply<v1::ExportedBlocks>;

    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        no()
    }

    async fn generate(
        &self,
        _: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        no()
    }

    async fn change_leases(
        &self,
        _: Request<v1::ChangeLeasesRequest>,
    ) -> Result<Response<v1::ChangeLeasesReply>, Status> {
        no()
    }

    async fn watch_load(
        &self,
        _: Request<v1::WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        no()
    }

    async fn export_blocks(
        &self,
        _: Request<v1::ExportBlocksRequest>,
    ) -> Result<Response<Self::ExportBlocksStream>, Status> {
        no()
    }

    async fn prefetch(
        &self,
        request: Request<v1::PrefetchRequest>,
    ) -> Result<Response<v1::PrefetchReply>, Status> {
        let request = request.into_inner();
        let blocks = (request.blocks.len() / 16) as u32;
        self.asked.lock().push(request);
        let mut leaving = Leaving(Some(Arc::clone(&self.left)));
        tokio::time::sleep(self.after).await;
        leaving.0 = None;
        Ok(Response::new(v1::PrefetchReply { held: 1, brought: blocks - 1 }))
    }
}

/// A gateway's part with one worker, which takes its time.
async fn set(after: Duration) -> (Retainer, Placement, Loader) {
    let loader = Loader { after, asked: Arc::default(), left: Arc::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = WorkerServer::new(loader.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    let workers = Workers::new(Replica::new(), Arc::new(channel), PromptMemory::default());
    workers.test_enter(WorkerId(1), &address);
    let placement = Placement::new(workers.clone(), Replica::new(), &crate::testing::config(1));
    let (retainer, _) = Retainer::new(true, workers);
    (retainer, placement, loader)
}

/// A session's turn, taken by the worker.
fn turn(retainer: &Retainer, session: &str) -> SessionId {
    let tenant = TenantId::new("a").expect("a name");
    let blocks: Arc<[SequenceHash]> = (0..u128::from(BLOCKS)).map(SequenceHash).collect();
    let parts = Parts { prompt: BLOCKS * 16 + 3, ..Parts::default() };
    let of = (NamespaceId(5), HashKey([7; 16]), 16);
    let who = (&tenant, Some(session));
    let keeping = retainer.keeping(who, false, of, (parts, &blocks)).expect("leases");
    keeping.on(WorkerId(1));
    retainer.session("a", session).expect("a name")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "{what}");
}

#[tokio::test]
async fn a_client_gets_what_it_asks_for() {
    let (retainer, placement, loader) = set(Duration::ZERO).await;
    turn(&retainer, "s");
    let done = retainer.prefetch(&placement, "a", "s").await.expect("it is brought in");
    assert_eq!((done.held, done.brought, done.ended()), (1, BLOCKS - 1, "brought"));
    assert_eq!((done.worker.id, done.prefix.blocks.len()), (WorkerId(1), BLOCKS as usize));
    let asked = loader.asked.lock().pop().expect("a call");
    let names: Vec<u8> = (0..u128::from(BLOCKS)).flat_map(u128::to_le_bytes).collect();
    assert_eq!(asked.blocks, names, "the whole blocks of its prompt, and nothing else");
    assert_eq!((asked.priority, asked.duration_ms, asked.epoch), (WORTH, HOLD_MS, 1));
    assert_eq!(asked.namespace, u128_to_wire(5));
}

#[tokio::test]
async fn what_is_due_is_carried_out() {
    let (retainer, placement, loader) = set(Duration::ZERO).await;
    let session = turn(&retainer, "s");
    let slot = retainer.slot("a");
    {
        let mut state = retainer.shared.state.lock();
        let mut tell = |event, now_ms| state.retention.told(slot, session, event, now_ms);
        // A tool that takes five seconds, and blocks that neither stay for that long nor are worth a hold.
        let stakes = Stakes { reload_ms: 100_000.0, price_per_ms: 100.0, kept_ms: 10 };
        for _ in 0..8 {
            tell(Event::Paused { tools: &["Bash"], stakes }, 0);
            tell(Event::Resumed, 5_000);
        }
        tell(Event::Paused { tools: &["Bash"], stakes }, 0);
        assert!(state.retention.next_due_ms().is_some_and(|due| due <= 2_000));
    }
    let carrying = tokio::spawn(fetch_ahead(retainer.clone(), placement));
    eventually("it is carried out", || loader.asked.lock().len() == 1).await;
    eventually("its place is free", || {
        retainer.shared.state.lock().prefetches.begin(session).is_ok()
    })
    .await;
    assert!(retainer.now_ms() >= 2_000, "not before it was due");
    carrying.abort();
}

#[tokio::test]
async fn who_comes_back_ends_what_is_on_its_way() {
    let (retainer, placement, loader) = set(Duration::from_secs(60)).await;
    let session = turn(&retainer, "s");
    let asking = {
        let (retainer, placement) = (retainer.clone(), placement.clone());
        tokio::spawn(async move { retainer.prefetch(&placement, "a", "s").await })
    };
    eventually("it is asked for", || loader.asked.lock().len() == 1).await;
    assert!(matches!(retainer.prefetch(&placement, "a", "s").await, Err(Missed::UnderWay)));
    turn(&retainer, "s");
    let ended = tokio::time::timeout(SOON, asking).await.expect("it ends").expect("in order");
    assert!(matches!(ended, Err(Missed::CalledOff)));
    eventually("the worker is left", || loader.left.load(Ordering::Acquire) == 1).await;
    assert!(retainer.shared.state.lock().prefetches.begin(session).is_ok(), "its place is free");
}

#[tokio::test]
async fn next_turns_have_few_places_and_one_that_comes_frees_its_own() {
    let (retainer, _, _) = set(Duration::ZERO).await;
    let tenant = TenantId::new("a").expect("a name");
    turn(&retainer, "s");
    let own = retainer.warmup(&tenant, Some("s")).expect("room");
    assert!(retainer.warmup(&tenant, Some("s")).is_none(), "one is at it");
    let others: Vec<_> = (0..).map_while(|_| retainer.warmup(&tenant, None)).collect();
    assert_eq!(others.len(), WARMUPS_MAX - 1);
    turn(&retainer, "s");
    let called = tokio::time::timeout(SOON, own.called_off()).await;
    assert!(called.is_ok(), "its turn has come");
    drop(own);
    assert!(retainer.warmup(&tenant, Some("s")).is_some());
}
