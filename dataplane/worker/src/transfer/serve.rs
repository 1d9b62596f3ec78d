//! Giving blocks to other workers.

use std::sync::Arc;

use futures::Stream;
use mainstay_engine_abi::limits::TRANSFER_BLOCKS_MAX;
use mainstay_engine_abi::sdk::caps;
use mainstay_proto::convert::u128_from_wire;
use mainstay_proto::v1;
use mainstay_types::{NamespaceId, SequenceHash};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::inherit::Inherited;
use super::{BLOCKS_MAX, CHUNK_BYTES, SERVE_MAX, checksum};
use crate::shared::{Life, Shared};
use crate::tiers::{Tiers, now_ms};

/// One request's blocks on their way out.
struct Way {
    shared: Arc<Shared>,
    life: Arc<Life>,
    tiers: Option<Arc<Tiers>>,
    /// Whose they are; without it the engine alone is asked.
    namespace: Option<NamespaceId>,
    blocks: Vec<SequenceHash>,
    at: usize,
    /// Blocks of one message.
    step: usize,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

type Message = Result<v1::ExportedBlocks, Status>;

/// The blocks that another worker asks for, a message at a time, as far as this worker holds them. It ends after a
/// while, read or not: one that hangs must not keep others from their turn.
pub(crate) fn export(
    shared: &Arc<Shared>,
    request: &v1::ExportBlocksRequest,
) -> Result<impl Stream<Item = Message> + Send + use<>, Status> {
    let Some(life) = shared.life().filter(|life| life.caps & caps::TRANSFER != 0) else {
        return Err(Status::failed_precondition("this worker's engine gives no blocks"));
    };
    if request.kv_layout != life.info.kv_layout {
        return Err(Status::failed_precondition("the blocks here are of another layout"));
    }
    let blocks = names(&request.blocks)?;
    let namespace = if request.namespace.is_empty() {
        None
    } else {
        Some(NamespaceId(u128_from_wire(&request.namespace, "namespace")?))
    };
    let permit = Arc::clone(&shared.transfers.serving)
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted("too many transfers on this worker"))?;
    let of = usize::try_from(life.info.block_bytes).unwrap_or(usize::MAX).max(1);
    let step = (CHUNK_BYTES / of).clamp(1, TRANSFER_BLOCKS_MAX as usize);
    let tiers = shared.tiers();
    let shared = Arc::clone(shared);
    let way = Way { shared, life, tiers, namespace, blocks, at: 0, step, _permit: permit };
    // A task of its own, since a stream that nobody reads is not asked for anything. It makes one message ahead.
    let (send, messages) = mpsc::channel(1);
    tokio::spawn(async move {
        let ends = send.clone();
        if tokio::time::timeout(SERVE_MAX, way.all(send)).await.is_err() {
            metrics::counter!("mainstay_worker_transfers_cut_total").increment(1);
            // Where the last message still waits there is no room for a word about it.
            let _ = ends.try_send(Err(Status::deadline_exceeded("the transfer took too long")));
        }
    });
    Ok(ReceiverStream::new(messages))
}

impl Way {
    /// Sends all messages; ends early when nobody listens.
    async fn all(mut self, send: mpsc::Sender<Message>) {
        loop {
            // Only what there is room for is copied: a reader that is slow costs one message.
            let Ok(place) = send.reserve().await else { return };
            match self.next().await {
                Ok(Some(message)) => place.send(Ok(message)),
                Ok(None) => return,
                Err(status) => return place.send(Err(status)),
            }
        }
    }

    /// The next message; nothing once a block is missing.
    async fn next(&mut self) -> Result<Option<v1::ExportedBlocks>, Status> {
        let Some(first) = self.blocks.get(self.at).copied() else { return Ok(None) };
        let end = (self.at + self.step).min(self.blocks.len());
        let of = self.life.info.block_bytes.max(1) as usize;
        let wanted = &self.blocks[self.at..end];
        let names = wanted.iter().map(|block| block.0).collect();
        let exported = self.shared.transfers.export(&self.life, names).await;
        let mut content = exported.map_err(|error| Status::unavailable(error.to_string()))?;
        let in_engine = content.len() / of;
        if in_engine < wanted.len() {
            content.extend(self.lower_bytes(&wanted[in_engine..]).await);
        }
        let count = content.len() / of;
        if count == 0 {
            return Ok(None);
        }
        // After a hole nothing follows.
        self.at = if self.at + count < end { self.blocks.len() } else { end };
        metrics::counter!("mainstay_worker_transfer_blocks_total", "direction" => "out")
            .increment(count as u64);
        metrics::counter!("mainstay_worker_transfer_bytes_total", "direction" => "out")
            .increment(content.len() as u64);
        let checksum = checksum(first, &content);
        let mut said = Inherited::default();
        {
            let (wants, now_ms) = (self.shared.wants.lock(), now_ms());
            for (place, block) in wanted[..count].iter().enumerate() {
                if let Some(known) = wants.of(*block) {
                    said.note(place, &known, now_ms);
                }
            }
        }
        Ok(Some(v1::ExportedBlocks {
            count: count as u32,
            content: content.into(),
            checksum,
            retention: said.to_wire(now_ms()),
        }))
    }

    /// What the engine lacks and the local tiers have.
    async fn lower_bytes(&self, blocks: &[SequenceHash]) -> Vec<u8> {
        let Some((tiers, namespace)) = self.tiers.clone().zip(self.namespace) else {
            return Vec::new();
        };
        let keys = tiers.keys(namespace, blocks);
        let read = tokio::task::spawn_blocking(move || {
            tiers.local().map(|local| local.read(&keys).bytes).unwrap_or_default()
        });
        read.await.unwrap_or_default()
    }
}

fn names(packed: &[u8]) -> Result<Vec<SequenceHash>, Status> {
    let (names, rest) = packed.as_chunks::<16>();
    if names.is_empty() || names.len() > BLOCKS_MAX || !rest.is_empty() {
        return Err(Status::invalid_argument(format!(
            "blocks must be 1 to {BLOCKS_MAX} hashes of 16 bytes"
        )));
    }
    Ok(names.iter().map(|name| SequenceHash(u128::from_le_bytes(*name))).collect())
}
