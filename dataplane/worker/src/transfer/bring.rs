//! Taking blocks from other workers.

use std::sync::Arc;
use std::time::Instant;

use mainstay_engine_abi::sdk::{Request, caps};
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_types::{BlockHasher, NamespaceId, SequenceHash, Tier};

use super::{BLOCKS_MIN, BRING_MAX, CHUNK_BYTES, SOURCES_MAX, checksum};
use crate::engine::KvImport;
use crate::generate::worth_of_blocks;
use crate::shared::{Life, Shared};

/// What a message has beside its blocks.
const MESSAGE_SPARE_BYTES: usize = 64 << 10;

/// Why nothing, or no more, was brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
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
}

impl Ended {
    const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Room => "room",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Late => "late",
            Self::Engine => "engine",
        }
    }
}

/// Has the engine take in what others hold of a prompt and it does not; gives up without a word to the client.
pub(crate) async fn bring_in(
    shared: &Arc<Shared>,
    life: &Arc<Life>,
    request: &Request,
    mut sources: Vec<v1::BlockSource>,
) {
    if sources.is_empty() || life.caps & caps::TRANSFER == 0 {
        return;
    }
    sources.truncate(SOURCES_MAX);
    sources.sort_by_key(|source| std::cmp::Reverse(source.blocks));
    // The last token is always computed, so the block that it ends is of no use.
    let useful = (request.tokens.len() - 1) / life.info.block_tokens.max(1) as usize;
    let most = sources.first().map_or(0, |source| source.blocks as usize).min(useful);
    let tokens = &request.tokens[..most * life.info.block_tokens as usize];
    let namespace = NamespaceId(request.namespace);
    let blocks = BlockHasher::hash_prompt(life.hash_key, namespace, life.info.block_tokens, tokens);
    let held = held(shared, &blocks);
    if blocks.len() < held + BLOCKS_MIN {
        return;
    }
    // One more would make all of them slower; computing is the way out.
    let Ok(_permit) = shared.transfers.taking.try_acquire() else { return };
    let begun = Instant::now();
    let mut wanted = Wanted { life, request, blocks: &blocks, at: held };
    let brought = tokio::time::timeout(BRING_MAX, async {
        let mut ended = Ended::Source;
        for source in sources.iter().filter(|source| source.address != shared.address) {
            let reach = (source.blocks as usize).min(blocks.len());
            if reach < wanted.at + BLOCKS_MIN {
                break;
            }
            ended = wanted.from(shared, &source.address, reach).await;
            count_end(ended);
            // Another source's blocks would find no room either.
            if matches!(ended, Ended::Room | Ended::Engine) {
                break;
            }
        }
        ended
    });
    let ended = brought.await.unwrap_or_else(|_| {
        count_end(Ended::Late);
        Ended::Late
    });
    let blocks = wanted.at - held;
    tracing::debug!(blocks, held, took = ?begun.elapsed(), ?ended, "brought blocks in");
    metrics::histogram!("mainstay_worker_transfer_seconds").record(begun.elapsed().as_secs_f64());
}

fn count_end(ended: Ended) {
    metrics::counter!("mainstay_worker_transfers_total", "ended" => ended.name()).increment(1);
}

/// How many leading blocks the engine has.
fn held(shared: &Shared, blocks: &[SequenceHash]) -> usize {
    let state = shared.events.lock();
    blocks.iter().take_while(|block| state.map.holds(**block, Tier::Device)).count()
}

/// What is to come in.
struct Wanted<'a> {
    life: &'a Life,
    request: &'a Request,
    blocks: &'a [SequenceHash],
    /// How many are there.
    at: usize,
}

impl Wanted<'_> {
    async fn from(&mut self, shared: &Shared, address: &str, reach: usize) -> Ended {
        let Ok(channel) = shared.transfers.peer(address) else { return Ended::Refused };
        let most = CHUNK_BYTES.max(self.life.info.block_bytes as usize) + MESSAGE_SPARE_BYTES;
        let mut client = WorkerClient::new(channel).max_decoding_message_size(most);
        let wanted = &self.blocks[self.at..reach];
        let request = v1::ExportBlocksRequest {
            blocks: wanted.iter().flat_map(|block| block.0.to_le_bytes()).collect(),
            kv_layout: self.life.info.kv_layout,
        };
        let mut stream = match client.export_blocks(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => {
                tracing::debug!(address, %status, "a source of blocks refused");
                return Ended::Refused;
            }
        };
        loop {
            match stream.message().await {
                Ok(Some(chunk)) => {
                    if let Err(ended) = self.take(chunk, reach).await {
                        return ended;
                    }
                }
                Ok(None) => return Ended::Source,
                Err(_) => return Ended::Refused,
            }
        }
    }

    /// Checks a message and has the engine take it.
    async fn take(&mut self, chunk: v1::ExportedBlocks, reach: usize) -> Result<(), Ended> {
        let count = chunk.count as usize;
        let blocks = &self.blocks[self.at..reach];
        let due = (self.life.info.block_bytes as usize).checked_mul(count);
        let is_whole = count > 0
            && count <= blocks.len()
            && due == Some(chunk.content.len())
            && checksum(blocks[0], &chunk.content) == chunk.checksum;
        if !is_whole {
            tracing::warn!(
                count,
                "blocks from another worker are damaged; they are computed instead"
            );
            return Err(Ended::Damaged);
        }
        let before = self.at.checked_sub(1).map(|at| self.blocks[at].0);
        let (priority, duration_ms) = worth_of_blocks(self.request);
        let import = KvImport {
            namespace: self.request.namespace,
            parent: before.unwrap_or(self.request.namespace),
            layout: self.life.info.kv_layout,
            blocks: blocks[..count].iter().map(|block| block.0).collect(),
            bytes: chunk.content.into(),
            priority,
            duration_ms,
        };
        let bytes = import.bytes.len() as u64;
        let taken = self.life.engine.kv_import(import).await.map_err(|error| {
            tracing::debug!(%error, "the engine takes no blocks");
            Ended::Engine
        })? as usize;
        self.at += taken.min(count);
        metrics::counter!("mainstay_worker_transfer_blocks_total", "direction" => "in")
            .increment(taken as u64);
        metrics::counter!("mainstay_worker_transfer_bytes_total", "direction" => "in")
            .increment(bytes);
        if taken < count { Err(Ended::Room) } else { Ok(()) }
    }
}
