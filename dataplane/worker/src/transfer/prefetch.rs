//! `Worker.Prefetch`: blocks that somebody will ask for soon come into the engine now.
//!
//! It is the load that a request begins with, without a request: names and no tokens, so that nothing can be computed.
//! The caller's leaving ends it.

use std::sync::Arc;

use mainstay_engine_abi::sdk::caps;
use mainstay_proto::convert::u128_from_wire;
use mainstay_proto::v1;
use mainstay_trace::Span;
use mainstay_types::{NamespaceId, SequenceHash};
use tokio::sync::oneshot;
use tonic::Status;

use super::bring::{Claim, held, load, useful};
use super::{BLOCKS_MAX, PREFETCHES_MAX};
use crate::generate::{exhausted, serving};
use crate::shared::Shared;

/// Carries out a call.
pub(crate) async fn prefetch(
    shared: &Arc<Shared>,
    request: v1::PrefetchRequest,
) -> Result<v1::PrefetchReply, Status> {
    let life = serving(shared, request.epoch)?;
    if life.caps & caps::TRANSFER == 0 {
        return Err(Status::unimplemented("this worker's engine takes no blocks in"));
    }
    let claim = Claim {
        namespace: u128_from_wire(&request.namespace, "namespace")?,
        priority: priority_of(request.priority)?,
        duration_ms: request.duration_ms,
        span: Span::default(),
    };
    let blocks = blocks_of(&request.blocks)?;
    let permit = Arc::clone(&shared.transfers.prefetching).try_acquire_owned().map_err(|_| {
        exhausted(&format!("{PREFETCHES_MAX} prefetches are under way on this worker"))
    })?;
    // A load has to be told that nobody waits for it, or it would not count as ended. The sender goes with the call.
    let (_waits, gone) = oneshot::channel::<()>();
    let sources = useful(shared, request.sources);
    let shared = Arc::clone(shared);
    let task = async move {
        let _permit = permit;
        let held = held(&shared, &blocks);
        if let Some(tiers) = shared.tiers() {
            tiers.touch(NamespaceId(claim.namespace), &blocks[..held]);
        }
        let gone = async move { _ = gone.await };
        let (brought, _) = load(&shared, &life, claim, (&blocks, held), (&sources, gone)).await;
        (held, brought)
    };
    let done = tokio::spawn(task).await;
    let (held, brought) = done.map_err(|error| Status::internal(error.to_string()))?;
    let count = |blocks: usize| u32::try_from(blocks).unwrap_or(u32::MAX);
    Ok(v1::PrefetchReply { held: count(held), brought: count(brought) })
}

fn priority_of(priority: u32) -> Result<u8, Status> {
    let priority = u8::try_from(priority).ok().filter(|priority| *priority <= 100);
    priority.ok_or_else(|| Status::invalid_argument("priority is 0 to 100"))
}

fn blocks_of(bytes: &[u8]) -> Result<Vec<SequenceHash>, Status> {
    let (names, rest) = bytes.as_chunks::<16>();
    if names.is_empty() || names.len() > BLOCKS_MAX || !rest.is_empty() {
        let problem = format!("blocks are 1 to {BLOCKS_MAX} names of 16 bytes each");
        return Err(Status::invalid_argument(problem));
    }
    Ok(names.iter().map(|name| SequenceHash(u128::from_le_bytes(*name))).collect())
}
