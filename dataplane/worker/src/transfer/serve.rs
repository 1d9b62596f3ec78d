//! Giving blocks to other workers.

use std::sync::Arc;

use futures::Stream;
use mainstay_engine_abi::limits::TRANSFER_BLOCKS_MAX;
use mainstay_engine_abi::sdk::caps;
use mainstay_proto::v1;
use mainstay_types::SequenceHash;
use tonic::Status;

use super::{BLOCKS_MAX, CHUNK_BYTES, checksum};
use crate::shared::{Life, Shared};

/// One request's blocks on their way out.
struct Way {
    life: Arc<Life>,
    blocks: Vec<SequenceHash>,
    at: usize,
    /// Blocks of one message.
    step: usize,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// The blocks that another worker asks for, a message at a time, as far as the engine holds them.
pub(crate) fn export(
    shared: &Arc<Shared>,
    request: &v1::ExportBlocksRequest,
) -> Result<impl Stream<Item = Result<v1::ExportedBlocks, Status>> + Send + use<>, Status> {
    let Some(life) = shared.life().filter(|life| life.caps & caps::TRANSFER != 0) else {
        return Err(Status::failed_precondition("this worker's engine gives no blocks"));
    };
    if request.kv_layout != life.info.kv_layout {
        return Err(Status::failed_precondition("the blocks here are of another layout"));
    }
    let blocks = names(&request.blocks)?;
    let permit = Arc::clone(&shared.transfers.serving)
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted("too many transfers on this worker"))?;
    let of = usize::try_from(life.info.block_bytes).unwrap_or(usize::MAX).max(1);
    let step = (CHUNK_BYTES / of).clamp(1, TRANSFER_BLOCKS_MAX as usize);
    let way = Way { life, blocks, at: 0, step, _permit: permit };
    Ok(futures::stream::unfold(way, |mut way| async move {
        let next = way.next().await.transpose()?;
        Some((next, way))
    }))
}

impl Way {
    /// The next message; nothing once a block is missing. Only what is asked for is copied: a reader that is slow
    /// costs one message.
    async fn next(&mut self) -> Result<Option<v1::ExportedBlocks>, Status> {
        let Some(first) = self.blocks.get(self.at).copied() else { return Ok(None) };
        let end = (self.at + self.step).min(self.blocks.len());
        let names = self.blocks[self.at..end].iter().map(|block| block.0).collect();
        let exported = self.life.engine.kv_export(names).await;
        let content = exported.map_err(|error| Status::unavailable(error.to_string()))?;
        let count = content.len() / self.life.info.block_bytes.max(1) as usize;
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
        Ok(Some(v1::ExportedBlocks { count: count as u32, content: content.into(), checksum }))
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
