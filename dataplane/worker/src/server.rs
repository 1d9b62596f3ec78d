//! The gRPC face that gateways see.
//!
//! It is up before the engine is, and answers `UNAVAILABLE` until then, so that a gateway which learned the
//! address early finds somebody there. Streams end when the worker stops.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{Stream, StreamExt};
use mainstay_engine_abi::sdk::caps;
use mainstay_identity::Role;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_server::Worker;
use mainstay_trace::{Parent, Span};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::generate::generate;
use crate::shared::Shared;

/// Load streams at one time; each gateway opens one.
const LOAD_STREAMS_MAX: usize = 1_024;

/// Who may call a secured worker: requests come through gateways, so that they are accounted for.
pub(crate) fn allowed(path: &str) -> &'static [Role] {
    match path.strip_prefix("/mainstay.v1.Worker/").unwrap_or_default() {
        "Generate" | "ChangeLeases" | "Prefetch" => &[Role::Gateway],
        "ExportBlocks" => &[Role::Worker],
        "Describe" | "WatchLoad" => &[Role::Gateway, Role::Admin],
        _ => &[],
    }
}

/// The service.
pub(crate) struct Server {
    shared: Arc<Shared>,
    load_streams: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, load_streams: Arc::default() }
    }
}

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Counts one load stream for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[tonic::async_trait]
impl Worker for Server {
    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeReply>, Status> {
        let Some(life) = self.shared.life() else {
            return Err(Status::unavailable("the engine of this worker is starting"));
        };
        let Some(registration) = self.shared.registration() else {
            return Err(Status::unavailable("this worker is not registered yet"));
        };
        let settings = &self.shared.settings;
        let file = |(name, content): &(String, bytes::Bytes)| v1::ModelFile {
            name: name.clone(),
            content: content.clone(),
        };
        let with_files = request.into_inner().with_files;
        let files =
            if with_files { settings.model_files.iter().map(file).collect() } else { vec![] };
        let model = crate::lifecycle::model_spec(settings, &life.info);
        Ok(Response::new(v1::DescribeReply {
            worker: registration.worker.0,
            epoch: registration.epoch.0,
            name: settings.name.clone(),
            model: model.name,
            revision: model.revision,
            block_tokens: model.block_tokens,
            context_tokens_max: model.context_tokens_max,
            vocab: life.info.vocab,
            engine: life.engine.name(),
            device: life.info.device.clone(),
            blocks_total: life.info.blocks_total,
            files,
            takes_guided: life.caps & caps::GUIDED != 0,
        }))
    }

    type GenerateStream = Reply<v1::GenerateEvent>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let span = Span::serve("serve", &Parent::from_metadata(request.metadata()));
        let events = generate(&self.shared, request.into_inner(), span).await?;
        Ok(Response::new(Box::pin(events)))
    }

    async fn change_leases(
        &self,
        request: Request<v1::ChangeLeasesRequest>,
    ) -> Result<Response<v1::ChangeLeasesReply>, Status> {
        crate::retention::change(&self.shared, request.into_inner()).await.map(Response::new)
    }

    type ExportBlocksStream = Reply<v1::ExportedBlocks>;

    async fn export_blocks(
        &self,
        request: Request<v1::ExportBlocksRequest>,
    ) -> Result<Response<Self::ExportBlocksStream>, Status> {
        let span = Span::serve("export", &Parent::from_metadata(request.metadata()));
        let blocks = crate::transfer::export(&self.shared, &request.into_inner())?;
        let shared = Arc::clone(&self.shared);
        // The span ends with the stream, which waits for the end of the worker.
        let stop = Box::pin(async move {
            let _span = span;
            shared.stopped().await;
        });
        Ok(Response::new(Box::pin(blocks.take_until(stop))))
    }

    async fn prefetch(
        &self,
        request: Request<v1::PrefetchRequest>,
    ) -> Result<Response<v1::PrefetchReply>, Status> {
        crate::transfer::prefetch(&self.shared, request.into_inner()).await.map(Response::new)
    }

    type WatchLoadStream = Reply<v1::Load>;

    async fn watch_load(
        &self,
        _: Request<v1::WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let counted = Counted(Arc::clone(&self.load_streams));
        if self.load_streams.fetch_add(1, Ordering::AcqRel) >= LOAD_STREAMS_MAX {
            return Err(Status::resource_exhausted("too many load streams on this worker"));
        }
        let now = crate::load::load(&self.shared);
        let later = WatchStream::from_changes(self.shared.load.subscribe());
        let loads = futures::stream::once(async move { now }).chain(later).map(move |load| {
            let _ = &counted;
            Ok(load)
        });
        let shared = Arc::clone(&self.shared);
        let stop = Box::pin(async move { shared.stopped().await });
        Ok(Response::new(Box::pin(loads.take_until(stop))))
    }
}
